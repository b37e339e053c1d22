"""A packed model that runs without PyTorch: from texts to vectors.

    texts ──tokenizing──▶ Tokens ──text_blocks──▶ hidden states ──pooling──▶ ──modules──▶ vectors

Everything from the hidden states on is computed by the compiled library, for models in PyTorch too, so that both give
equal vectors, bit for bit.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ternarize_cli.errors import CheckpointError, InputError, UnavailableError, shown
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.runtime.blocks import head_refusal
from ternarize_cli.runtime.modules import Pooling, read_modules
from ternarize_cli.runtime.native.library import library
from ternarize_cli.runtime.packed_file import IN_TORCH, PackedFile, codec_of
from ternarize_cli.runtime.tensor_file import TensorFile
from ternarize_cli.runtime.text_blocks import TextBlocks
from ternarize_cli.runtime.tokenizing import TextTokenizer, Tokens
from ternarize_cli.storage.bounds import read_object

__all__ = ["Encoder", "Tokens"]

_BUDGET = 8192
"""The most tokens in a batch."""
_FILLER = "a"


class Encoder:
    """A packed model, read from its folder.

        encoder = Encoder("my-packed")
        vectors = encoder.encode(["a text", "another one"])   # float32 [2, dim]

    Calls may come from any thread; the compiled library uses all processors for each.

    Attributes:
        folder: the model's folder.
        kind: "encoder".
        reads: what it reads: "text".
        dim: the number of dimensions of a vector.
        limit: the most tokens of a text that are read, special tokens included.
        prompts: the prompts by name; default_prompt_name: the name of the one that is used if none is named.
        similarity: how vectors are compared, by sentence-transformers' name.
    """

    kind = "encoder"
    reads = frozenset({"text"})

    def __init__(self, folder: str | Path) -> None:
        """Reads a packed model.

        Only what the files say is checked here; `ternarize_cli.runtime.open_model` also checks that they are those that
        were packed.

        Raises:
            CheckpointError: a file is missing or damaged (FormatError: the weights or their description).
            UnavailableError: the compiled library is missing, or the model asks for something that this runtime does
                not do, which the message names.
        """
        self.folder = folder = Path(folder)
        config = read_object(folder / "config.json")
        described = config.get("quantization_config")
        codec = codec_of(described, str(folder))
        block = Artifact.from_dict(described).block.get("")
        if block is None:
            raise UnavailableError(
                f"{folder} has no description of its blocks, which runs without PyTorch",
                hint=f"pack it again with this version; if it stays so, {IN_TORCH}",
            )
        if reason := head_refusal(block):
            raise UnavailableError(f"{folder}: {reason}", hint=IN_TORCH)
        self._library = library()
        self._modules = modules = read_modules(folder)
        file = PackedFile(TensorFile(folder / "model.safetensors"), codec)
        self._blocks = TextBlocks(self._library, file, block)
        self._tokenizer = _tokenizer(folder, config, self._blocks.longest)
        if modules.pooling is None:
            raise UnavailableError(f"{folder} has no module that pools tokens", hint=IN_TORCH)
        self._pooling: Pooling = modules.pooling
        self.limit = self._tokenizer.limit
        self.prompts: Mapping[str, str] = modules.prompts
        self.default_prompt_name = modules.default_prompt
        self.similarity = modules.similarity
        self._lock = Lock()
        width = modules.width(self._blocks.width * len(self._pooling.modes))
        self._whole = width
        self.dim = min(width, modules.dimensions or width)

    def encode(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> np.ndarray:
        """Encodes texts: float32 `[texts, dimensions]`, in their order.

        Texts of similar length go through the model together, up to 8,192 tokens at a time. A vector does not depend on
        what it shares a batch with.

        Args:
            texts: the texts.
            prompt_name: the name of the prompt that is put before each; None: the model's default, if it has one.
            prompt: the prompt itself, instead of its name.
            normalize: whether vectors get length 1; None: as the model does.
            dimensions: the number of leading dimensions that are kept; None: as the model does.

        Raises:
            InputError: there is no prompt of that name, a text is no text, `dimensions` is not between 1 and the width
                of a vector, or a text has a token that the model's table has no row for.
        """
        if isinstance(texts, str):
            raise InputError("encode takes a list of texts", hint="encode([text])")
        chosen = self._prompt(prompt_name) if prompt is None else prompt
        tokens = self._tokenizer(texts, chosen)
        skipped = self._skipped(chosen)
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i].ids))
        made = np.empty((len(tokens), self._dimensions(dimensions)), dtype=np.float32)
        for rows in _batches(order, tokens):
            some = [tokens[i] for i in rows]
            made[rows] = self._vectors(some, skipped, normalize, dimensions)
        return made

    def encode_tokens(
        self,
        tokens: Sequence[Tokens],
        *,
        prompt: str = "",
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> np.ndarray:
        """Encodes texts that have been tokenised, as one batch: float32 `[texts, dimensions]`.

        Args:
            tokens: the texts, as `tokenize` gives them.
            prompt: the prompt that they were tokenised behind, which some models leave out of pooling.
            normalize, dimensions: as `encode` takes them.

        Raises:
            InputError: as `encode`.
        """
        return self._vectors(tokens, self._skipped(prompt), normalize, dimensions)

    def token_vectors(self, tokens: Sequence[Tokens]) -> list[np.ndarray]:
        """Returns the last hidden states of texts that have been tokenised: float32 `[tokens, width]` for each.

        Raises:
            InputError: as `encode`.
        """
        hidden, starts = self._blocks(tokens)
        return [hidden[begin:end] for begin, end in pairwise(starts)]

    def tokenize(self, texts: Sequence[str], *, prompt: str | None = None) -> list[Tokens]:
        """Tokenises texts, with special tokens, and cuts them at `limit` tokens.

        Raises:
            InputError: something is no text.
        """
        return self._tokenizer(texts, self._prompt(None) if prompt is None else prompt)

    def token_spans(self, text: str, tokens: Tokens) -> list[tuple[str, int, int, bool]]:
        """Returns of each token its string, the places where it begins and ends, and whether it is special."""
        return self._tokenizer.spans(tokens, text)

    def _vectors(
        self, tokens: Sequence[Tokens], skipped: int, normalize: bool | None, dimensions: int | None
    ) -> np.ndarray:
        hidden, starts = self._blocks(tokens)
        vectors = self._library.pool(hidden, starts, self._pooling.modes, skipped)
        vectors = self._modules.behind_pooling(self._library, vectors, normalize=normalize is not False)
        kept = self._dimensions(dimensions)
        if kept < vectors.shape[1]:
            vectors = np.ascontiguousarray(vectors[:, :kept])
        if normalize:
            self._library.normalize(vectors)
        return vectors

    def _skipped(self, prompt: str) -> int:
        """Returns the number of tokens of a prompt that pooling leaves out."""
        return 0 if self._pooling.includes_prompt or not prompt else self._tokenizer.prompt_tokens(prompt)

    def _dimensions(self, wanted: int | None) -> int:
        if wanted is None:
            return self.dim
        if not 1 <= wanted <= self._whole:
            raise InputError(f"{wanted} dimensions are asked for, and vectors have {self._whole}", hint="ask for fewer")
        return wanted

    def _prompt(self, name: str | None) -> str:
        if name is None:
            return self.prompts[self.default_prompt_name] if self.default_prompt_name is not None else ""
        if name not in self.prompts:
            known = ", ".join(sorted(self.prompts)) or "none"
            raise InputError(f"the model has no prompt named {name!r}", hint=f"its prompts: {known}")
        return self.prompts[name]


def _batches(order: Sequence[int], tokens: Sequence[Tokens]) -> list[list[int]]:
    """Cuts an order of texts into batches of at most `_BUDGET` tokens."""
    found: list[list[int]] = []
    room = 0
    for i in order:
        length = len(tokens[i].ids)
        if not found or length > room:
            found.append([])
            room = _BUDGET
        found[-1].append(i)
        room -= length
    return found


def _tokenizer(folder: Path, config: Mapping[str, Any], longest: int | None) -> TextTokenizer:
    """Reads the tokenizer of a folder, with the length at which its settings cut texts."""
    settings = _optional(folder / "tokenizer_config.json")
    own: dict[str, Any] = {}
    for path in sorted(folder.glob("sentence_*_config.json")):
        own |= read_object(path)
    named = own.get("max_seq_length")
    read = [settings.get("model_max_length"), config.get("max_position_embeddings")]
    lengths = read if named is None else [named]
    known = [int(n) for n in lengths if isinstance(n, int | float) and not isinstance(n, bool) and 0 < n < 1 << 24]
    if named is not None and not known:
        raise CheckpointError(f"{folder}: max_seq_length is {shown(named)}", hint="fetch the files again")
    limit = min([*known, *([] if longest is None else [longest])], default=1 << 24)
    return TextTokenizer(folder, settings, limit, lower=bool(own.get("do_lower_case")))


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
