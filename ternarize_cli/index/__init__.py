"""From a corpus to an index to answers.

`encode` turns texts into vectors with a model's own prompts and pooling, `vectors` writes them to files, `shards` keeps
the finished part of a long run safe, `build` fills a FAISS index from the shards, `format` is what an index folder
records about itself, and `search` opens such a folder and answers queries.
"""
