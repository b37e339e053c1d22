"""A packed model that runs without PyTorch: from texts or images to vectors.

    texts ──tokenizing──▶ Tokens ──text_blocks──▶ hidden states ──pooling──▶ ──modules──▶ vectors
    images ──image_processing──▶ pixel values ──image_blocks──▶ hidden states ──pooling──▶ ──modules──▶ vectors

Everything from the hidden states on is computed by the compiled library, for models in PyTorch too, so that both give
equal vectors, bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ternarize_cli.errors import InputError, UnavailableError, shown
from ternarize_cli.model_folder.model_kind import kind_of
from ternarize_cli.runtime.checked_folder import check_packed
from ternarize_cli.runtime.modules import Modules, Pooling, read_modules, require_prompt
from ternarize_cli.runtime.native.library import library
from ternarize_cli.runtime.packed_file import IN_TORCH
from ternarize_cli.runtime.text_blocks import PackedText, batches, open_text
from ternarize_cli.runtime.tokenizing import Tokens
from ternarize_cli.storage.bounds import read_object

if TYPE_CHECKING:
    from PIL.Image import Image

    from ternarize_cli.runtime.image_captions import Captions
    from ternarize_cli.runtime.image_encoder import PackedImages

__all__ = ["Encoder", "Tokens"]

_IMAGES = 64
"""The most images whose pixel values are in memory at a time."""


class Encoder:
    """A packed model, read from its folder.

        encoder = Encoder("my-packed")
        vectors = encoder.encode(["a text", "another one"])   # float32 [2, dim]

    Calls may come from any thread; the compiled library uses all processors for each.

    Attributes:
        folder: the model's folder.
        kind: "encoder".
        reads: a frozenset of what it reads: "text", "image" or both.
        dim: the number of dimensions of a vector.
        limit: the most tokens of a text that are read, special tokens included; 0 for a model that reads images only.
        prompts: the prompts by name; default_prompt_name: the name of the one that is used if none is named.
        similarity: how vectors are compared, by sentence-transformers' name.
    """

    kind = "encoder"

    def __init__(self, folder: str | Path) -> None:
        """Reads a packed model, whose files are first compared with those that were packed.

        Raises:
            CheckpointError: a file is missing or damaged, asks for something that no folder may ask for, or is not the
                one that was packed (FormatError).
            UnavailableError: the compiled library is missing, or the model asks for something that this runtime does
                not do, which the message names.
        """
        self.folder = folder = Path(folder)
        check_packed(folder)
        if kind_of(folder) == "cross-encoder":
            raise UnavailableError(
                f"{folder} has a head that gives scores, and makes no vectors",
                hint="Reranker(MODEL) for pairs of texts, Classifier(MODEL) for labels",
            )
        self._library = library()
        self._images: PackedImages | None = None
        self._captions: Captions | None = None
        self._text: PackedText | None = None
        self._unread = f"{folder} reads images, not texts"
        if _reads_images(folder):
            modules, width = self._open_images(folder)
        else:
            modules = read_modules(folder)
            self._text = open_text(folder)
            if modules.pooling is None:
                raise UnavailableError(f"{folder} has no module that pools tokens", hint=IN_TORCH)
            width = self._text.blocks.width * len(modules.pooling.modes)
        self._modules, self._pooling = modules, modules.pooling or Pooling(())
        read = {"text": self._text, "image": self._images}
        self.reads = frozenset(kind for kind, part in read.items() if part is not None)
        self.limit = 0 if self._text is None else self._text.tokenizer.limit
        self.prompts: Mapping[str, str] = modules.prompts
        self.default_prompt_name = modules.default_prompt
        self.similarity = modules.similarity
        self._whole = modules.width(width)
        self.dim = min(self._whole, modules.dimensions or self._whole)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy, in another process or not, opens the folder again
        Encoder.__init__(self, state["folder"])

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> np.ndarray:
        """Encodes texts: float32 `[texts, dimensions]`, in their order; one string gives its vector, `[dimensions]`.

        Texts of similar length go through the model together, up to 8,192 tokens at a time. A vector does not depend on
        what it shares a batch with.

        Args:
            texts: the texts, or one.
            prompt_name: the name of the prompt that is put before each; None: the model's default, if it has one.
            prompt: the prompt itself; it excludes `prompt_name`.
            normalize: whether vectors get length 1; None: as the model does.
            dimensions: the number of leading dimensions that are kept; None: as the model does.

        Raises:
            InputError: there is no prompt of that name, or both are given; a text is no text, or has a token that the
                model's table has no row for; `dimensions` is not between 1 and the width of a vector; or the model
                reads no texts.
        """
        if isinstance(texts, str):
            (vector,) = self.encode(
                [texts], prompt_name=prompt_name, prompt=prompt, normalize=normalize, dimensions=dimensions
            )
            return np.array(vector)
        if prompt is not None and prompt_name is not None:
            raise InputError("prompt and prompt_name exclude each other", hint="give one of them")
        chosen = self._prompt(prompt_name) if prompt is None else prompt
        tokens = self._texts.tokenizer(texts, chosen)
        skipped = self._skipped(chosen)
        made = np.empty((len(tokens), self._dimensions(dimensions)), dtype=np.float32)
        for rows in batches(tokens):
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
            normalize: whether vectors get length 1; None: as the model does.
            dimensions: the number of leading dimensions that are kept; None: as the model does.

        Raises:
            InputError: a text has a token that the model's table has no row for, or more tokens than there are
                positions; ids or types are no whole numbers, or not as many as tokens; `dimensions` is not between 1
                and the width of a vector; or the model reads no texts.
        """
        return self._vectors(tokens, self._skipped(prompt), normalize, dimensions)

    def encode_images(
        self, images: "Sequence[Image]", *, normalize: bool | None = None, dimensions: int | None = None
    ) -> np.ndarray:
        """Encodes images of PIL: float32 `[images, dimensions]`, in their order.

        Images of one size go through the model together, up to 8,192 tokens at a time. A vector does not depend on what
        it shares a batch with.

        Args:
            images: the images, upright: their EXIF orientation is not followed.
            normalize: whether vectors get length 1; None: as the model does.
            dimensions: the number of leading dimensions that are kept; None: as the model does.

        Raises:
            InputError: an image can't be read, has a mode that the model does not read, or would become too large;
                `dimensions` is not between 1 and the width of a vector; or the model reads no images.
        """
        if not isinstance(images, Sequence):
            raise InputError("encode_images takes a list of images", hint="encode_images([image])")
        made = np.empty((len(images), self._dimensions(dimensions)), dtype=np.float32)
        for start in range(0, len(images), _IMAGES):  # pixel values of all images would take too much memory
            some = images[start : start + _IMAGES]
            pixels = self.process_images(some, _names(start))
            made[start : start + len(some)] = self.encode_pixels(pixels, normalize=normalize, dimensions=dimensions)
        return made

    def process_images(self, images: "Sequence[Image]", name: Callable[[int], str] | None = None) -> list[np.ndarray]:
        """Makes the pixel values of images of PIL: float32 `[channels, height, width]` of each.

        Args:
            images: the images, as `encode_images` takes them.
            name: gives the name by which a message calls an image, by its place in `images`; None: "images[0]" and so
                on.

        Raises:
            InputError: an image can't be read, has a mode that the model does not read, or would become too large; or
                the model reads no images.
        """
        return self._reader.pixels(images, name or _names(0))

    def encode_pixels(
        self, pixels: Sequence[np.ndarray], *, normalize: bool | None = None, dimensions: int | None = None
    ) -> np.ndarray:
        """Encodes images whose pixel values have been made: float32 `[images, dimensions]`, in their order.

        Args:
            pixels: the images, as `process_images` gives them.
            normalize: whether vectors get length 1; None: as the model does.
            dimensions: the number of leading dimensions that are kept; None: as the model does.

        Raises:
            InputError: `dimensions` is not between 1 and the width of a vector; or the model reads no images.
        """
        made = np.empty((len(pixels), self._dimensions(dimensions)), dtype=np.float32)
        for places, vectors in self._reader.vectors(self._library, pixels):
            made[places] = self._finished(vectors, normalize, dimensions)
        return made

    def token_vectors(self, tokens: Sequence[Tokens]) -> list[np.ndarray]:
        """Returns the last hidden states of texts that have been tokenised: float32 `[tokens, width]` for each.

        Raises:
            InputError: a text has a token that the model's table has no row for, or more tokens than there are
                positions; or the model reads no texts.
        """
        hidden, starts = self._texts.blocks(tokens)
        return [hidden[begin:end] for begin, end in pairwise(starts)]

    def tokenize(self, texts: Sequence[str], *, prompt: str | None = None) -> list[Tokens]:
        """Tokenises texts, with special tokens, and cuts them at `limit` tokens.

        Raises:
            InputError: something is no text.
        """
        return self._texts.tokenizer(texts, self._prompt(None) if prompt is None else prompt)

    def token_spans(self, text: str, tokens: Tokens) -> list[tuple[str, int, int, bool]]:
        """Returns of each token its string, the places where it begins and ends, and whether it is special."""
        return self._texts.tokenizer.spans(tokens, text)

    def _vectors(
        self, tokens: Sequence[Tokens], skipped: int, normalize: bool | None, dimensions: int | None
    ) -> np.ndarray:
        if self._captions is not None:
            return self._finished(self._captions.vectors(tokens), normalize, dimensions)
        hidden, starts = self._texts.blocks(tokens)
        vectors = self._library.pool(hidden, starts, self._pooling.modes, skipped)
        return self._finished(vectors, normalize, dimensions)

    def _finished(self, vectors: np.ndarray, normalize: bool | None, dimensions: int | None) -> np.ndarray:
        """Computes what the modules behind the encoder make of vectors; they are overwritten."""
        vectors = self._modules.behind_pooling(self._library, vectors, normalize=normalize is not False)
        kept = self._dimensions(dimensions)
        if kept < vectors.shape[1]:
            vectors = np.ascontiguousarray(vectors[:, :kept])
        if normalize:
            self._library.normalize(vectors)
        return vectors

    def _open_images(self, folder: Path) -> tuple[Modules, int]:
        """Opens a model that reads images, and returns its modules and the width of what the encoder gives them."""
        from ternarize_cli.runtime.image_captions import open_captions
        from ternarize_cli.runtime.image_encoder import modules_of, open_images

        modules = modules_of(folder)
        self._images = open_images(folder, modules.pooling)
        if self._images.has_towers:
            try:
                self._captions = open_captions(folder)
                self._text = self._captions.text
            except UnavailableError as e:
                self._unread = str(e)
        return modules, self._images.width

    @property
    def _reader(self) -> "PackedImages":
        if self._images is None:
            raise InputError(f"{self.folder} reads texts, not images", hint="encode(texts)")
        return self._images

    @property
    def _texts(self) -> PackedText:
        if self._text is None:
            raise InputError(self._unread, hint="encode_images(images)")
        return self._text

    def _skipped(self, prompt: str) -> int:
        """Returns the number of tokens of a prompt that pooling leaves out."""
        return 0 if self._pooling.includes_prompt or not prompt else self._texts.tokenizer.prompt_tokens(prompt)

    def _dimensions(self, wanted: int | None) -> int:
        if wanted is None:
            return self.dim
        if isinstance(wanted, bool) or not isinstance(wanted, int | np.integer):
            raise InputError(f"dimensions is {shown(wanted)}, no number of dimensions", hint="dimensions=128")
        if not 1 <= wanted <= self._whole:
            raise InputError(f"{wanted} dimensions are asked for, and vectors have {self._whole}", hint="ask for fewer")
        return int(wanted)

    def _prompt(self, name: str | None) -> str:
        if name is None:
            return self.prompts[self.default_prompt_name] if self.default_prompt_name is not None else ""
        require_prompt(self.prompts, name)
        return self.prompts[name]


def _names(start: int) -> Callable[[int], str]:
    return lambda i: f"images[{start + i}]"


def _reads_images(folder: Path) -> bool:
    """Returns whether the description of a model's blocks has a stack that reads images."""
    described = read_object(folder / "config.json").get("quantization_config")
    blocks = described.get("block") if isinstance(described, dict) else None
    if not isinstance(blocks, dict):
        return False
    own = blocks.get("")
    return "vision_model" in blocks or (isinstance(own, dict) and not own.get("embeddings"))
