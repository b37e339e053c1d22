"""Compares an imported BitNet checkpoint with transformers' own pass of it; prints JSON.

    python docs/results/check_bitnet.py TOKENIZER

The checkpoint is a BERT of 12 layers of width 768 with random weights, which transformers' `pack_weights` has packed.
TOKENIZER is a folder with BERT's tokenizer. `linear` is the relative difference of one product, and `pooled` are
cosines of 8 vectors (mean over 64 random tokens, or 40), the mean and the lowest, for each `linear_class` and backend.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from check_exports import cosines
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel
from transformers.integrations.bitnet import pack_weights

from ternarize_cli import load
from ternarize_cli.compress.options import ImportOptions
from ternarize_cli.compress.session import pack

LINEAR = "encoder.layer.5.intermediate.dense"


def save_checkpoint(folder: Path, tokenizer: Path, kind: str) -> None:
    """Writes a checkpoint of the method "bitnet" with a `linear_class`."""
    torch.manual_seed(0)
    BertModel(BertConfig(initializer_range=0.05)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    stored, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": kind, "quantization_mode": "offline"}
    for key in [key for key in stored if stored[key].dim() == 2 and "embeddings" not in key]:
        mean = stored[key].abs().mean()
        stored[key] = pack_weights((stored[key] / mean).round().clamp(-1, 1).to(torch.int8))
        stored[f"{key}_scale"] = (mean if kind == "autobitlinear" else 1 / mean).bfloat16().reshape(1)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def pooled(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """Computes the means of the last hidden states."""
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return ((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).numpy()


@torch.inference_mode()
def main() -> None:
    """Compares and prints."""
    report: dict[str, Any] = {"versions": {name: version(name) for name in ("torch", "transformers")}}
    for kind in ("autobitlinear", "bitlinear"):
        with TemporaryDirectory() as place:
            source, packed = Path(place) / "source", Path(place) / "packed"
            save_checkpoint(source, Path(sys.argv[1]), kind)
            pack(source, packed, imported=ImportOptions(round=kind == "bitlinear"))
            theirs: Any = AutoModel.from_pretrained(source, dtype=torch.float32).eval()
            torch.manual_seed(1)
            ids, inputs = torch.randint(1000, 30000, (8, 64)), torch.randn(64, 768)
            mask = torch.ones_like(ids)
            mask[3:, 40:] = 0
            expected, product = pooled(theirs, ids, mask), theirs.get_submodule(LINEAR)(inputs)
            for backend in ("reference", "native"):
                encoder: Any = load(packed, backend=backend, device="cpu")
                model = encoder[0].auto_model
                found: dict[str, Any] = {"pooled": cosines(expected, pooled(model, ids, mask))}
                if backend == "reference":
                    off = (model.get_submodule(LINEAR)(inputs) - product).norm() / product.norm()
                    found["linear"] = float(f"{float(off):.1e}")
                report[f"{kind} {backend}"] = found
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
