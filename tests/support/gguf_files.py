"""Reads GGUF files by the package gguf, and writes tokenizers of the kinds that llama.cpp knows."""

from pathlib import Path
from typing import Any

import numpy as np

from support.models import WORDS


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, np.ndarray]]]:
    """Returns a file's metadata by their keys, and its tensors' types and float32 values by their names."""
    import gguf

    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = tensor.tensor_type.name, np.asarray(values, np.float32)
    return fields, tensors


def save_byte_tokenizer(folder: Path, *, ends: bool = True) -> int:
    """Writes a byte-level BPE tokenizer as ModernBERT and RoBERTa have; returns the vocabulary's size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    if ends:
        names = [("<s>", 1), ("</s>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=names)
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "model_max_length": 64}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def save_unigram_tokenizer(folder: Path) -> int:
    """Writes a Unigram tokenizer as XLM-R has; returns the vocabulary's size."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [
        *((f"▁{word}", -5.0 - 0.1 * i) for i, word in enumerate(WORDS)),
        ("▁", -3.0),
        *((c, -9.0) for c in letters),
    ]
    tokenizer = Tokenizer(models.Unigram([*((name, 0.0) for name in special), *pieces], unk_id=3))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    names = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=names)
    named = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named, model_max_length=64).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def save_piece_tokenizer(folder: Path, *, left_out: str = "") -> int:
    """Writes a SentencePiece-like BPE tokenizer as Gemma has, without the token `left_out`; returns the size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    names += sorted({letter for word in WORDS for letter in word})
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left = "▁"
        for letter in word:
            if left + letter not in names:
                names.append(left + letter)
                merges.append((left, letter))
            left += letter
    vocabulary = {name: i for i, name in enumerate(name for name in names if name != left_out)}
    made = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(made)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    ends = [("<bos>", 2), ("<eos>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A <eos>", special_tokens=ends)
    named = {"bos_token": "<bos>", "pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named, model_max_length=64).save_pretrained(folder)
    return len(vocabulary)
