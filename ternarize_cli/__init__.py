"""ternarize: any encoder, with every linear weight in {-1, 0, +1}.

Importing this package is cheap: it loads neither torch nor transformers. `import ternarize_cli.hf` registers the
plug-in that lets `AutoModel.from_pretrained` and `SentenceTransformer` open ternary checkpoints and packed models.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
