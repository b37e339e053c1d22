"""Computes the patches of images as matrix products."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["PatchProducts"]


class PatchProducts(TorchFunctionMode):
    """A context in which a convolution whose windows lie side by side is one product of float16 matrices.

    Such a convolution cuts an image into patches. cuDNN reorders the whole image first, which takes a multiple.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Computes a function of PyTorch."""
        if func is F.conv2d and not kwargs and len(args) == 7:
            x, weight, bias, stride, padding, dilation, groups = args
            side_by_side = tuple(stride) == tuple(weight.shape[2:]) and (padding == "valid" or not any(padding))
            if side_by_side and set(dilation) == {1} and groups == 1:
                return _patches(x, weight, bias)
        return func(*args, **(kwargs or {}))


def _patches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Computes `[images, channels, height, width]` to float16 `[images, out, rows, columns]`."""
    outputs, channels, high, wide = weight.shape
    rows, columns = x.shape[2] // high, x.shape[3] // wide
    x = x[:, :, : rows * high, : columns * wide].half()
    cut = x.reshape(len(x), channels, rows, high, columns, wide)
    flat = cut.permute(0, 2, 4, 1, 3, 5).reshape(len(x) * rows * columns, channels * high * wide)
    made = F.linear(flat, weight.half().flatten(1), None if bias is None else bias.half())
    return made.view(len(x), rows, columns, outputs).permute(0, 3, 1, 2)
