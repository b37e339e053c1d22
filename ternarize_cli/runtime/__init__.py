"""Runs packed models without PyTorch: NumPy, tokenizers and the compiled library are all that it needs.

    from ternarize_cli.runtime import Encoder
    vectors = Encoder("my-packed").encode(["a text"])

    encoder.py       a model: texts to vectors
    heads.py         a reranker or a classifier: pairs or texts to scores
    opening.py       opens a folder that may come from anybody
    tokenizing.py    texts to ids of tokens; transformer_settings.py has what sentence-transformers sets of it
    text_blocks.py   ids to hidden states: embeddings and blocks
    blocks.py        the blocks in the library's layout, for models in PyTorch, too
    modules.py       what modules.json asks for behind the encoder: pooling, Dense, Normalize
    image_*.py       images to hidden states: image_processing.py makes pixels, image_blocks.py runs them
    packed_file.py   weights by the names of a model's modules; tensor_file.py reads safetensors
    native/          the compiled library

Nothing here may import torch or transformers. `ternarize export --to wheel` copies these files into a model's wheel.
"""

from ternarize_cli.runtime.encoder import Encoder
from ternarize_cli.runtime.heads import Classifier, Reranker
from ternarize_cli.runtime.tokenizing import Tokens

__all__ = ["Classifier", "Encoder", "Reranker", "Tokens"]
