"""Tiny random models of all encoder families of transformers, each through convert, pack and a comparison.

    for row in sweep(kinds()): print(row.kind, row.outcome, row.detail)

A family is a `model_type`. Its default config is made small by the names of its numbers (`shrink`); a family whose
numbers have to fit each other in another way has an entry in SETTINGS. Each family runs in a process of its own, forked
from this one, with limits on memory and time: a crash in a library ends one row, not the sweep.
"""

import json
import multiprocessing
import resource
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from support.models import save_word_tokenizer

__all__ = ["Row", "kinds", "sweep", "try_family"]

Outcome = Literal["works", "refused", "not made", "fault"]
SECONDS, BYTES = 120, 8 << 30
TEXT_NUMBERS: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "embed_dim", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("word_embed_proj_dim", "d_embed", "model_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_encoder_layers", "num_decoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "encoder_attention_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "hidden_dim"), 64),
    **dict.fromkeys(("d_inner", "ffn_hidden_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("head_dim", "d_kv", "d_head"), 8),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok",), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_encoder_position_embeddings", "n_ctx"), 80),
    **dict.fromkeys(("max_decoder_position_embeddings", "max_sequence_length"), 80),
    "projection_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "attention_window": 4,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.15,
}
LISTS: dict[str, int] = {"depths": 1, "hidden_sizes": 16, "neck_hidden_sizes": 16, "embed_dims": 16, "num_heads": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "distilbert": {"hidden_dim": 64},
    "swin": {"embed_dim": 16, "patch_size": 2, "window_size": 4, "depths": [1, 1], "num_heads": [2, 2]},
    "swinv2": {"embed_dim": 16, "patch_size": 2, "window_size": 4, "depths": [1, 1], "num_heads": [2, 2]},
    "donut-swin": {"embed_dim": 16, "patch_size": 2, "window_size": 4, "depths": [1, 1], "num_heads": [2, 2]},
    "maskformer-swin": {"embed_dim": 16, "patch_size": 2, "window_size": 4, "depths": [1, 1], "num_heads": [2, 2]},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "squeezebert": {"embedding_size": 32, "q_groups": 2, "k_groups": 2, "v_groups": 2, "post_attention_groups": 1},
    "mobilebert": {"intra_bottleneck_size": 32, "embedding_size": 32, "num_feedforward_networks": 2},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": 64},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "vits": {"hidden_size": 32},
    "convbert": {"num_attention_heads": 4, "head_ratio": 2},
    "funnel": {"block_sizes": [1, 1], "d_head": 8, "n_head": 4},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "nemotron": {"num_key_value_heads": 4},
    "esm": {"mask_token_id": 4, "pad_token_id": 0},
    "reformer": {"axial_pos_embds_dim": [8, 24], "axial_pos_shape": [4, 20]},
    **{key: {"hidden_sizes": [32] * 4, "num_attention_heads": [1, 2, 4, 8]} for key in ("pvt", "pvt_v2")},
    "bit": {"num_groups": 4},
    "glpn": {"hidden_sizes": [32] * 4, "num_attention_heads": [1, 2, 4, 8], "depths": [1] * 4},
    "segformer": {"hidden_sizes": [32] * 4, "num_attention_heads": [1, 2, 4, 8], "depths": [1] * 4},
    "beit": {"use_relative_position_bias": False},
    "dinov3_convnext": {"hidden_sizes": [16] * 4, "depths": [1] * 4},
}


@dataclass(frozen=True)
class Row:
    """What became of one family.

    Attributes:
        kind: the family's `model_type`.
        outcome: "works"; "refused" in words, before anything was written; "not made": transformers makes no small model
            of the family from the settings here; "fault": anything else, which is to be mended.
        detail: the cosine and width of the vectors, or the sentence.
    """

    kind: str
    outcome: Outcome
    detail: str


def kinds() -> list[str]:
    """The families of text and image encoders: those that AutoModel has and that a mapping of encoders lists."""
    from transformers.models.auto import modeling_auto as auto

    listed = {
        *auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        *auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES,
        *auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        *auto.MODEL_FOR_IMAGE_MAPPING_NAMES,
        *auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        *auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        *("dpr", "m2m_100", "pegasus", "blenderbot", "t5gemma", "switch_transformers", "longt5"),
    }
    return sorted(listed & set(auto.MODEL_MAPPING_NAMES))


def shrink(config: Any, words: int, changes: dict[str, Any]) -> Any:
    """Makes a config of the same class with the numbers of a tiny model, in the configs inside it, too."""
    numbers = {**TEXT_NUMBERS, "vocab_size": words, **changes}
    made: dict[str, Any] = {}
    for name, value in numbers.items():
        old = getattr(config, name, None)
        fixed = isinstance(getattr(type(config), name, None), property)
        wanted = old is not None or (name == "vocab_size" and hasattr(config, name))
        if name in changes or (wanted and not fixed and not isinstance(old, list | tuple | dict)):
            made[name] = value
    for name, value in LISTS.items():
        old = getattr(config, name, None)
        if isinstance(old, list | tuple) and name not in changes:
            made[name] = [value] * len(old)
    if "block_sizes" in changes:  # a Funnel counts its layers itself
        made.pop("num_hidden_layers", None)
    types = getattr(config, "layer_types", None)
    if isinstance(types, list) and not isinstance(getattr(type(config), "layer_types", None), property):
        made["layer_types"] = config.layer_types[:1] + config.layer_types[-1:]
    for name in getattr(config, "sub_configs", None) or ():
        if (inner := getattr(config, name, None)) is not None:
            made[name] = shrink(inner, words, {}).to_dict()
    return type(config)(**made)


def save(kind: str, folder: Path) -> None:
    """Writes a tiny random model of a family, with a word tokenizer if it reads texts, and a processor for images."""
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel

    from ternarize_cli.encoders.modalities import modalities_of

    folder.mkdir()
    words = save_word_tokenizer(folder)
    torch.manual_seed(0)
    config = shrink(AutoConfig.for_model(kind), words, SETTINGS.get(kind, {}))
    kinds_of = MODEL_MAPPING[type(config)]
    if isinstance(kinds_of, tuple):  # AutoModel chooses by the architecture
        config.architectures = [kinds_of[0].__name__]
    AutoModel.from_config(config).eval().save_pretrained(folder)
    reads = modalities_of(folder)
    if "image" in reads:
        vision = getattr(config, "vision_config", config)
        size = getattr(vision, "image_size", None)
        size = size if isinstance(size, int) else 32
        processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size}}
        if reads == {"text", "image"}:
            processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": size}}
            processor |= {"crop_size": {"height": size, "width": size}}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    if reads == {"image"}:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink(missing_ok=True)


def try_family(kind: str) -> Row:
    """Makes a tiny model of a family, converts it at int4 and at ternary, packs both, and compares the vectors."""
    import numpy as np

    from ternarize_cli.compress.result_check import vectors_of
    from ternarize_cli.compress.session import convert, pack
    from ternarize_cli.encoders.loading import load_encoder
    from ternarize_cli.errors import TernarizeError
    from ternarize_cli.format.scheme import Scheme

    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    try:
        try:
            save(kind, folder / "model")
        except Exception as e:
            return Row(kind, "not made", f"{type(e).__name__}: {' '.join(str(e).split())[:160]}")
        try:
            for levels in ("ternary", "int4"):
                convert(folder / "model", folder / levels, Scheme(levels=levels))
                pack(folder / levels, folder / f"{levels}-packed")
        except TernarizeError as e:
            left = {path.name for path in folder.iterdir()} - {"model"}
            words = " ".join(str(e).replace(str(folder / "model"), "MODEL").split())
            if e.exit_code in (2, 4) and not left:
                return Row(kind, "refused", words[:300])
            return Row(kind, "fault", f"exit {e.exit_code}, left {sorted(left)}: {words[:300]}")
        found = [vectors_of(load_encoder(folder / name, device="cpu"), folder) for name in ("model", "int4-packed")]
        details = []
        for modality, wanted in found[0].items():
            given = found[1][modality]
            lengths = np.linalg.norm(given, axis=1) * np.linalg.norm(wanted, axis=1)
            cosine = float(((given * wanted).sum(axis=1) / np.maximum(lengths, 1e-12)).min())
            details.append(f"{modality} {wanted.shape[1]}, {cosine:.3f}")
        return Row(kind, "works", "; ".join(details))
    except Exception as e:
        return Row(kind, "fault", f"{type(e).__name__}: {' '.join(str(e).split())[:300]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(wanted: Sequence[str]) -> Iterator[Row]:
    """Tries families one after the other, each in a forked process with limits; yields a row for each."""
    import sentence_transformers  # noqa: F401 (imported once, before the forks)

    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    for kind in wanted:
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(kind, send))
        process.start()
        send.close()
        try:
            yield receive.recv() if receive.poll(SECONDS) else Row(kind, "fault", f"no end after {SECONDS} s")
        except EOFError:
            process.join()
            yield Row(kind, "fault", f"the process ended with exit code {process.exitcode}")
        process.kill()
        process.join()


def _child(kind: str, send: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    send.send(try_family(kind))
