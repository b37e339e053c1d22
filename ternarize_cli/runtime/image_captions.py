"""The tower of a CLIP that reads texts: from tokens to the vectors that its `get_text_features` gives.

The vector of a text is a linear of the hidden state at its end token. SigLIP's tower pools the last token of a padded
batch, so that a vector depends on the texts beside it; it is not read here.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ternarize_cli.errors import CheckpointError, UnavailableError, shown
from ternarize_cli.runtime.image_tensors import FileTensors, Linear
from ternarize_cli.runtime.native.library import library
from ternarize_cli.runtime.packed_file import IN_TORCH
from ternarize_cli.runtime.text_blocks import PackedText, open_text
from ternarize_cli.runtime.tokenizing import Tokens
from ternarize_cli.storage.bounds import read_object

__all__ = ["Captions", "open_captions"]

_OLD_END = 2
"""The id that configs of old CLIPs name for the end token, whose id is in truth the highest of a text."""


class Captions(NamedTuple):
    """A tower that reads texts.

    Attributes:
        text: its embeddings, blocks and tokenizer.
        end: the id of the end token; None: the highest of a text.
        projection: the linear behind it.
    """

    text: PackedText
    end: int | None
    projection: Linear

    def vectors(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """Encodes texts as one batch: float32 `[texts, width]`.

        Raises:
            InputError: as `TextBlocks`.
        """
        hidden, starts = self.text.blocks(tokens)
        places = []
        for text, (begin, _) in zip(tokens, pairwise(starts.tolist()), strict=True):
            ids = np.array(text.ids)
            places.append(begin + int((ids if self.end is None else ids == self.end).argmax()))
        return self.projection(hidden[places])


def open_captions(folder: Path) -> Captions:
    """Reads the tower of a model that reads texts.

    Raises:
        CheckpointError: a file is missing or damaged (FormatError: the weights or their description).
        UnavailableError: the model's texts are not read here; the message says why.
    """
    config = read_object(folder / "config.json")
    if config.get("model_type") != "clip":
        what = f"the texts of a {shown(config.get('model_type'))} are not read here"
        raise UnavailableError(f"{folder}: {what}, since padding changes their vectors", hint=IN_TORCH)
    own = config.get("text_config") or {}
    end = own.get("eos_token_id", 49407) if isinstance(own, dict) else None
    if type(end) is not int:
        raise CheckpointError(f"{folder / 'config.json'}: eos_token_id is {shown(end)}", hint="fetch the file again")
    text = open_text(folder, stack="text_model")
    projection = FileTensors(library(), text.file, 1e-5).linear("text_projection", text.blocks.width)
    return Captions(text, None if end == _OLD_END else end, projection)
