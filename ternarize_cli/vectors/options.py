"""How a model encodes, and how shards of vectors are written: the options of `ternarize encode`."""

import re
from dataclasses import dataclass
from typing import Annotated

from ternarize_cli.errors import InputError
from ternarize_cli.storage.command_option import (
    ALLOW_PICKLE,
    BACKEND,
    DEVICE,
    MANY,
    MAX_BATCH,
    THREADS,
    Option,
    plain_signature,
)

__all__ = ["EncoderOptions", "ShardOptions"]


@plain_signature
@dataclass(frozen=True)
class EncoderOptions:
    """How a model is loaded and used.

    Attributes:
        batch_size: texts or images per forward pass; None: as many texts of like length as make 8,192 tokens
            (32,768 without padding in a fused encoder on a GPU), or 32 images.
        backend: kernels for a packed model's linears; a model that is not packed takes only "auto".
        device: torch device; None: the CPU for a backend of CPUs, otherwise CUDA if there is a GPU.
        threads: CPU threads; None leaves their number as it is.
        prompt_name: a prompt that the model keeps, such as "query".
        normalize: make vectors of length 1, or leave them as pooled; None: as the model does.
        allow_pickle: read pytorch_model.bin where there is no safetensors file.
    """

    batch_size: Annotated[
        int | None,
        Option(
            "Texts or images per forward pass; default: similar texts with 8,192 tokens in all (32,768 on a GPU), "
            "or 32 images.",
            min=1,
            max=MAX_BATCH,
        ),
    ] = None
    backend: Annotated[str, BACKEND] = "auto"
    device: Annotated[str | None, DEVICE] = None
    threads: Annotated[int | None, THREADS] = None
    prompt_name: Annotated[str | None, Option("A prompt that the model keeps, e.g. query.")] = None
    normalize: Annotated[bool | None, Option("Vectors of length 1, or as pooled; default: as the model does.")] = None
    allow_pickle: Annotated[bool, ALLOW_PICKLE] = False


@dataclass(frozen=True)
class ShardOptions:
    """How shards of vectors are written, and by whom.

    Attributes:
        shard: "I/N": only every N-th shard from the I-th, for N jobs, of which the first is 1; None: all.
        size: rows of a shard; None: 8,192 texts or 1,024 images.
        dtype: "fp32", "fp16" or "int8".
        engine: "local", this process, or "ray", Ray's workers.
        workers: of Ray.
        ray_address: a running cluster of Ray; None: one on this machine.
        format: "parquet" or "npy".
    """

    shard: Annotated[
        str | None, Option("Only every N-th shard from the I-th, for N jobs; the first is 1.", metavar="I/N")
    ] = None
    size: Annotated[
        int | None,
        Option("Rows of a shard; default: 8,192 texts, 1,024 images.", name="shard_size", min=1, max=MANY),
    ] = None
    dtype: Annotated[str, Option("Numbers in shards.", metavar="fp32|fp16|int8")] = "fp32"
    engine: Annotated[str, Option("What encodes shards: this process, or Ray's workers.", metavar="local|ray")] = (
        "local"
    )
    workers: Annotated[int, Option("Ray: how many workers.", min=1, max=10_000)] = 1
    ray_address: Annotated[
        str | None, Option("Ray: a running cluster; default: one on this machine.", metavar="ADDRESS")
    ] = None
    format: str = "parquet"

    @property
    def part(self) -> tuple[int, int]:
        """(i, n): the i-th of n jobs; (1, 1) if `shard` is None.

        Raises:
            InputError: `shard` is not I/N with I from 1 to N.
        """
        if self.shard is None:
            return 1, 1
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.shard)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise InputError(
                f"--shard {self.shard}: I/N with I from 1 to N", hint="--shard 1/8 is the first of eight jobs"
            )
        return int(found[1]), int(found[2])
