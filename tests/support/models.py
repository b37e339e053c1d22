"""Tiny encoders made from configs, offline, and their tokenizers."""

import json
from pathlib import Path

WORDS = (
    "the a of to and in on for with from by cat dog house tree river stone light water fire bird mouse keyboard "
    "file list open close read write sort search index vector model weight scale code row column big small red green"
).split()


def save_word_tokenizer(folder: Path) -> int:
    """Writes a word-level BERT tokenizer over WORDS; returns the vocabulary's size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate(specials + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    )
    fast.save_pretrained(folder)
    return len(vocabulary)


def save_modules(folder: Path, dim: int) -> None:
    """Makes a transformers folder a sentence-transformers one: mean pooling and normalisation."""
    prefix = "sentence_transformers.models."
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [{"idx": i, "name": str(i), "path": path, "type": prefix + kind} for i, (path, kind) in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": dim, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "2_Normalize").mkdir()


def save_tiny_bert(folder: Path, *, seed: int = 0, **overrides: int) -> Path:
    """A 2-layer BERT of width 32 with a word-level tokenizer, as a sentence-transformers folder.

    Its weights are larger than usual, so that its layers matter beside the residual stream.
    """
    import torch
    from transformers import BertConfig, BertModel

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = save_word_tokenizer(folder)
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=vocabulary, max_position_embeddings=64, initializer_range=0.15, **(settings | overrides)
    )
    BertModel(config).save_pretrained(folder)
    save_modules(folder, config.hidden_size)
    return folder


def add_dense(folder: Path, **changes: object) -> None:
    """Puts a Dense module before normalisation, behind any there, as LaBSE and the sentence-t5 models have."""
    import torch
    from sentence_transformers.base.modules import Dense

    torch.manual_seed(1)
    settings = {"in_features": 32, "out_features": 16, "activation_function": torch.nn.Tanh()} | changes
    dense = Dense(**settings)  # type: ignore[arg-type]
    modules = json.loads((folder / "modules.json").read_text())
    path = f"{len(modules) - 1}_Dense"
    modules.insert(-1, {"path": path, "type": "sentence_transformers.models.Dense"})
    modules = [m | {"idx": i, "name": str(i)} for i, m in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / path).mkdir()
    dense.save(str(folder / path))


def make_version_1(folder: Path) -> Path:
    """Turns an artifact into one of format version 1, which had neither a digest nor a description of blocks."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    known = {k: v for k, v in config["quantization_config"].items() if k not in ("block", "digest")}
    path.write_text(json.dumps(config | {"quantization_config": known | {"format_version": 1}}))
    return folder


def save_image_processor(folder: Path, size: int) -> None:
    """The image processor of a ViT: resize to size × size, scale to [-1, 1]."""
    processor = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def save_tiny_vit(folder: Path, *, seed: int = 0) -> Path:
    """A 2-layer ViT of width 32 on images of 8 × 8, as a plain transformers folder; weights as in `save_tiny_bert`."""
    import torch
    from transformers import ViTConfig, ViTModel

    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(seed)
    ViTModel(ViTConfig(image_size=8, patch_size=4, initializer_range=0.15, **settings)).save_pretrained(folder)
    save_image_processor(folder, 8)
    return folder


def save_tiny_clip(folder: Path, kind: str = "CLIP") -> Path:
    """A CLIP or Siglip of two 2-layer towers of width 32, as a plain transformers folder."""
    import torch
    import transformers as hf

    folder.mkdir()
    words = save_word_tokenizer(folder)
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ids = {"vocab_size": words, "max_position_embeddings": 64, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    torch.manual_seed(0)
    text, vision = tower | ids, tower | {"image_size": 8, "patch_size": 4}
    projection = {"projection_dim": 16} if kind == "CLIP" else {}
    config = getattr(hf, f"{kind}Config")(text_config=text, vision_config=vision, **projection)
    getattr(hf, f"{kind}Model")(config).save_pretrained(folder)
    save_image_processor(folder, 8)
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor |= {"processor_class": f"{kind}Processor", "image_processor_type": f"{kind}ImageProcessor"}
    if kind == "CLIP":
        processor |= {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def save_gpt2(folder: Path, **pooling: bool) -> Path:
    """A GPT-2 whose tokenizer knows bytes and adds no special token, so that an empty text has no token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2Model, PreTrainedTokenizerFast

    folder.mkdir()
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<eos>", "<pad>"]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"eos_token": "<eos>", "pad_token": "<pad>", "model_max_length": 64}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    GPT2Model(GPT2Config(vocab_size=len(names), **size)).save_pretrained(folder)
    save_modules(folder, 32)
    if pooling:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))
    return folder
