"""Builds an index of vectors, and answers queries from it.

`build` makes an index folder from encoded vectors: `fill` makes the FAISS index, `documents` stores the texts, and
`truth` the queries by which recall is measured. `format` is the folder's record of itself. `change` and `add` delete
and add documents, `tune` finds the search settings, and `search` opens the folder and answers queries. Only
`faiss_file` lets FAISS read files.
"""
