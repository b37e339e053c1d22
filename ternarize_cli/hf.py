"""The plug-in's door: `import ternarize_cli.hf`, and transformers and sentence-transformers open our artifacts.

    import ternarize_cli.hf
    model = SentenceTransformer("MiniLM-packed")

What it does stands in `encoders.transformers_plugin`.
"""

from ternarize_cli.encoders.transformers_plugin import TernarizeConfig, TernarizeQuantizer, quiet_libraries

__all__ = ["TernarizeConfig", "TernarizeQuantizer", "quiet_libraries"]
