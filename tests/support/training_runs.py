"""Runs of training that end just before their first step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.families import Family, save_family, save_processor, save_text
from support.images import write_folder
from support.models import WORDS
from ternarize_cli.distill import Sources, Training, distill
from ternarize_cli.distill.options import DistillOptions
from ternarize_cli.distill.trainer import Trainer


class _Begun(Exception):
    """Ends a run when its training begins."""


def trainer_of(family: Family, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """The trainer of a run that distils a tiny model of a family, just before its first step."""
    begun: list[Trainer] = []

    def begin(self: Trainer, *args: Any) -> bool:
        begun.append(self)
        raise _Begun

    monkeypatch.setattr(Trainer, "run", begin)
    data = folder / "data"
    if "image_size" in family[2]:
        source = save_family(family, folder / "source")
        save_processor(source)
        write_folder(data, np.random.default_rng(0).integers(0, 255, (40, 16, 16, 3), dtype=np.uint8), None)
    else:
        source = save_text(family, folder / "source")
        chance = np.random.default_rng(0)
        data.write_text("\n".join(" ".join(chance.choice(WORDS, size)) for size in chance.integers(3, 40, 120)))
    training = Training(steps=2, batch_size=8)
    with pytest.raises(_Begun):
        distill(source, source, Sources([data]), folder / "out", training, DistillOptions(device="cpu"))
    return begun[0]
