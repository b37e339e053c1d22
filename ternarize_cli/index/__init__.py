"""From vectors to an index to answers.

`build` makes an index folder of vectors that `vectors` encoded (`fill` is FAISS's part, `documents` the texts', `truth`
what it is judged by), `format` is what the folder records about itself, `change` and `add` delete and add documents,
`tune` finds its settings, and `search` opens the folder and answers queries. FAISS reads files in `faiss_file` alone.
"""
