"""Importing this module lets transformers and sentence-transformers open ternary checkpoints and packed models.

    import ternarize_cli.hf
    model = SentenceTransformer("MiniLM-packed")

Where torch loads the entry points of installed packages, which is its default, this import is not needed.

`encoders.transformers_plugin` has the code.
"""

from ternarize_cli.encoders.transformers_plugin import TernarizeConfig, TernarizeQuantizer, quiet_libraries

__all__ = ["TernarizeConfig", "TernarizeQuantizer", "quiet_libraries"]
