"""The kernels for training compute what PyTorch's operations compute, forward and backward.

On a GPU they multiply float32 numbers as TF32, which keeps ten bits behind the point.
"""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ternarize_cli.arithmetic.gpu_training.attention import self_attention
from ternarize_cli.arithmetic.gpu_training.column_sums import column_sums
from ternarize_cli.arithmetic.gpu_training.norm import layer_norm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OF_PRODUCTS = 1e-5 if DEVICE == "cpu" else 3e-2


def by_pytorch(qkv: Tensor, heads: int, scale: float, mask: Tensor | None, distances: Tensor | None) -> Tensor:
    texts, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = (x.view(texts, tokens, heads, -1).transpose(1, 2) for x in qkv.split(width, -1))
    scores = (q @ k.transpose(-1, -2)) * scale
    if distances is not None:
        place = torch.arange(tokens, device=qkv.device)
        reach = distances.shape[1] // 2
        scores = scores + distances[:, (place - place[:, None]).clamp(-reach, reach) + reach]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).reshape(texts, tokens, width)


@pytest.mark.parametrize("by_distance", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("tokens", "heads", "head"), [(17, 2, 8), (40, 2, 32), (70, 3, 24), (130, 2, 16), (33, 1, 80)])
def test_attention(tokens: int, heads: int, head: int, masked: bool, by_distance: bool) -> None:
    torch.manual_seed(tokens)
    lengths, place = torch.tensor([tokens, tokens // 2, 1], device=DEVICE), torch.arange(tokens, device=DEVICE)
    mask = torch.stack([place < lengths[0], place >= tokens - lengths[1], place < lengths[2]]) if masked else None
    distances = 3 * torch.randn(heads, 11, device=DEVICE) if by_distance else None
    qkv = torch.randn(3, tokens, 3 * heads * head, device=DEVICE, requires_grad=True)
    of_y = torch.randn(3, tokens, heads * head, device=DEVICE)
    y = self_attention(qkv, heads, head**-0.5, mask, distances)
    expected = by_pytorch(qkv, heads, head**-0.5, mask, distances)
    torch.testing.assert_close(y, expected, atol=OF_PRODUCTS, rtol=OF_PRODUCTS)
    gradients = [torch.autograd.grad(made, qkv, of_y)[0] for made in (y, expected)]
    torch.testing.assert_close(*gradients, atol=OF_PRODUCTS, rtol=OF_PRODUCTS)


@pytest.mark.parametrize("width", [8, 48, 384])
@pytest.mark.parametrize("rows", [1, 700])
def test_layer_norm(rows: int, width: int) -> None:
    torch.manual_seed(width)
    shapes = (rows, width), (width,), (width,)
    given = [torch.randn(*shape, device=DEVICE, requires_grad=True) for shape in shapes]
    of_y = torch.randn(rows, width, device=DEVICE)
    y = layer_norm(*given, 1e-5, torch.float32)
    expected = F.layer_norm(given[0], (width,), *given[1:], 1e-5)
    torch.testing.assert_close(y, expected)
    for a, b in zip(*(torch.autograd.grad(made, given, of_y) for made in (y, expected)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_a_layer_norm_of_another_dtype_has_gradients_of_its_own() -> None:
    torch.manual_seed(0)
    x, gain, shift = (torch.randn(*shape, dtype=dtype, device=DEVICE, requires_grad=True) for shape, dtype in _GIVEN)
    y = layer_norm(x, gain, shift, 1e-5, torch.bfloat16)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert [t.grad.dtype for t in (x, gain, shift) if t.grad is not None] == [dtype for _, dtype in _GIVEN]
    torch.testing.assert_close(y.float(), F.layer_norm(x.float(), (64,), gain, shift, 1e-5), atol=0.02, rtol=0.01)


_GIVEN = [((5, 64), torch.bfloat16), ((64,), torch.float32), ((64,), torch.float32)]


@pytest.mark.parametrize("shape", [(1, 16), (700, 130), (2500, 24)])
def test_column_sums(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16().to(DEVICE)
    torch.testing.assert_close(column_sums(x), x.float().sum(dim=0), atol=1e-4, rtol=1e-4)
