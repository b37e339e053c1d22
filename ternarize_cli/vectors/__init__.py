"""Encodes texts or images to vectors, and keeps these in a stream, a file, or a folder of shards.

`session` takes the names of a model and a corpus, and `options` says what can be chosen. `encode` opens a model and
gives vectors: `text_encoder` and `image_encoder` prepare batches, and `model_run` runs the model on them.
`vector_files` writes vectors to a file. `vector_shards` writes them to a folder of numbered shards (`finished_work`
keeps these safe, `ray_engine` spreads them over a cluster), and `vector_folder` reads such a folder. `origin` records
which model made them.
"""
