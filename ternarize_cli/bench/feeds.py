"""Makes the batches of each point: one batch of random tokens or pixels, or padded batches of a file of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ternarize_cli.bench.lengths import BATCHES, padded_batches
from ternarize_cli.bench.options import DEFAULT_TOKENS, BenchOptions
from ternarize_cli.bench.subject import Subject, max_tokens
from ternarize_cli.data.texts import source_name
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.engines.inputs import Batch, random_batch
from ternarize_cli.errors import InputError

__all__ = ["Feed", "check_inputs", "make_feeds", "point_title"]


@dataclass(frozen=True)
class Feed:
    """The batches of one point.

    Attributes:
        batches: batches of equally many texts or images.
        lengths: the file of their texts; None for a grid point.
    """

    batches: tuple[Batch, ...]
    lengths: str | None = None

    @property
    def batch(self) -> int:
        """Number of texts or images in a batch."""
        return self.batches[0][0].shape[0]

    @property
    def image(self) -> str | None:
        """Height and width of the images, such as `224x224`; None for texts."""
        first = self.batches[0][0]
        return "x".join(str(side) for side in first.shape[2:]) if first.ndim == 4 else None

    @property
    def title(self) -> str:
        """Name of the point, such as `8 x 128`."""
        tokens = self.batches[0][0].shape[1]
        return point_title({"batch": self.batch, "tokens": tokens, "image": self.image, "lengths": self.lengths})


def make_feeds(subject: Subject, options: BenchOptions, texts: Sequence[str], device: str) -> list[Feed]:
    """Makes what is timed, in order: the grid, then batches of `texts`."""
    points = options.points(images=subject.image is not None)
    feeds = [Feed((random_batch(subject.packed, point, options.seed, device),)) for point in points]
    if options.lengths is not None:
        name = Path(source_name(options.lengths)).name
        drawn = padded_batches(
            subject.packed, texts, sorted(set(options.batch_sizes)), min(BATCHES, options.repeats), device
        )
        feeds += [Feed(tuple(batches), name) for batches in drawn.values()]
    return feeds


def check_inputs(folder: Path, options: BenchOptions) -> None:
    """Checks that a model can be fed with what the options ask for.

    Raises:
        InputError: it reads images and the options are about texts, or it takes fewer tokens.
    """
    if modalities_of(folder) == {"image"}:
        for option, value in {"--tokens": options.tokens, "--lengths": options.lengths, "--text": options.text}.items():
            if value is not None:
                raise InputError(
                    f"{option} is about texts, and {folder.name} reads images",
                    hint="leave it out: the size of its images decides how many tokens there are",
                )
        return
    limit = max_tokens(checkpoint.read_config(folder))
    wanted = options.tokens or (DEFAULT_TOKENS if options.text is None else ())
    too_many = [tokens for tokens in wanted if limit is not None and tokens > limit]
    if too_many:
        raise InputError(f"{folder.name} takes at most {limit} tokens, not {too_many[0]}", hint=f"--tokens {limit}")


def point_title(row: Mapping[str, Any]) -> str:
    """Names the point of a row: `8 x 128`, `8 x 224x224`, `8 x lengths of texts.txt`, or the encoded texts.

    Args:
        row: the fields of a `BenchRow`.
    """
    if row.get("encoded"):
        return f"{row['encoded']}, batches of {row['batch']}"
    what = f"lengths of {row['lengths']}" if row.get("lengths") else row.get("image") or row["tokens"]
    return f"{row['batch']} x {what}"
