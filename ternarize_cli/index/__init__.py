"""From a corpus to an index to answers.

`corpora` opens what there is to encode, `encode` turns it into vectors with a model's own prompts and pooling, and
`vectors` writes them to files. `vector_shards` writes them to a folder of numbered shards (`shards` keeps these safe),
and `vector_folder` reads such a folder. `build` makes an index folder of one (`fill` is FAISS's part, `documents` the
texts', `truth` what it is judged by), `format` is what the folder records about itself, `change` adds and deletes
documents, and `search` opens the folder and answers queries.
"""
