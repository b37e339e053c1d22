"""Packs codes into bytes and unpacks them, by the codecs of the format (`format.codecs`), on any device."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ternarize_cli.format.codecs import INVALID, Codec
from ternarize_cli.format.scheme import LEVELS

__all__ = ["decode", "pack", "unpack"]


def pack(codec: Codec, codes: Tensor) -> Tensor:
    """Packs codes `[out, in]` of the codec's grid, of any dtype: uint8 `[out, codec.width(in)]`."""
    first, second = LEVELS[codec.levels][:2]
    codes = codes.to(torch.int8)
    codes = F.pad(codes, (0, -codes.shape[1] % codec.per_byte), value=codec.padding)
    digits = ((codes - first) // (second - first)).to(torch.uint8).unflatten(1, (-1, codec.per_byte))
    packed: Tensor = digits[..., 0].clone()
    for i in range(1, codec.per_byte):
        packed += digits[..., i] * codec.radix**i
    return packed


def unpack(codec: Codec, packed: Tensor, in_features: int) -> Tensor:
    """Unpacks uint8 `[out, codec.width(in)]`: int8 codes `[out, in]`.

    Raises:
        ValueError: the dtype or the width is wrong, a byte or code is invalid, or padding has a wrong value.
    """
    codec.check_shape(str(packed.dtype).removeprefix("torch."), packed.shape, in_features)
    codes = decode(codec, packed)
    if bool((codes == INVALID).any()) or bool((codes[:, in_features:] != codec.padding).any()):
        codec.check_codes(codes.cpu().numpy(), packed.cpu().numpy(), in_features)  # says what is wrong
    return codes[:, :in_features].contiguous()


def decode(codec: Codec, packed: Tensor) -> Tensor:
    """Unpacks uint8 `[..., width]` without checks: int8 codes `[..., width * per_byte]`, with the padding."""
    return F.embedding(packed.int(), _table(codec).to(packed.device)).flatten(-2)


@cache
def _table(codec: Codec) -> Tensor:
    return torch.from_numpy(codec.table)
