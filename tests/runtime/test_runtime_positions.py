"""Tables of positions: rotary turns and relative biases are those that transformers' modules compute."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, T5Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.t5.modeling_t5 import T5Attention

from ternarize_cli.errors import CheckpointError
from ternarize_cli.format.block_parts import Relative, Rotary
from ternarize_cli.runtime.positions import relative_bias, rotary_turns

LONG = 8192


@pytest.mark.parametrize(("theta", "numbers"), [(10_000.0, 64), (160_000.0, 64), (500_000.0, 128)])
def test_rotary_turns_are_those_of_a_model(theta: float, numbers: int) -> None:
    parameters = {"rope_type": "default", "rope_theta": theta}
    config = LlamaConfig(hidden_size=4 * numbers, num_attention_heads=4, rope_parameters=parameters)
    module = LlamaRotaryEmbedding(config)
    own = [values[0, :, : numbers // 2].numpy() for values in module(torch.zeros(1), torch.arange(LONG)[None])]
    # Another last bit of a frequency makes 1e-4 at late positions. torch's powers have one on some machines.
    for made, expected in zip(rotary_turns(Rotary(theta, numbers), LONG), own, strict=True):
        assert (made.shape, made.dtype) == ((LONG, numbers // 2), np.float32)
        assert np.abs(made - expected)[:64].max() < 5e-6
        assert np.abs(made - expected).max() < 1e-3
    by_given = rotary_turns(Rotary(theta, numbers, 1.0, tuple(module.inv_freq.tolist())), LONG)
    assert all(np.abs(made - expected).max() < 3e-7 for made, expected in zip(by_given, own, strict=True))


def test_given_frequencies_and_factors_are_used() -> None:
    cos, sin = rotary_turns(Rotary(10_000.0, 6, 1.5, (1.0, 0.25, 0.1)), 5)
    angles = np.arange(5)[:, None] * np.float32([1.0, 0.25, 0.1]).astype(np.float64)
    assert np.abs(cos - 1.5 * np.cos(angles)).max() < 2e-7
    assert np.abs(sin - 1.5 * np.sin(angles)).max() < 2e-7


@pytest.mark.parametrize(("buckets", "distance"), [(32, 128), (32, 20), (64, 500), (8, 3), (6, 9), (320, 800)])
def test_relative_positions_are_in_the_buckets_of_transformers(buckets: int, distance: int) -> None:
    settings = {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": distance}
    attention = T5Attention(T5Config(d_model=32, d_kv=8, num_heads=4, **settings), has_relative_attention_bias=True)
    tokens = 2 * distance + 3
    bias = attention.compute_bias(tokens, tokens)[0].detach().numpy()  # [heads, query, key]
    table = attention.relative_attention_bias.weight.detach().numpy()
    made = relative_bias(Relative("bias", buckets, distance), table, 4)
    assert (made.shape, made.dtype) == ((4, 2 * distance + 1), np.float32)
    assert made.flags.c_contiguous
    for query in (0, distance // 2, distance + 1, tokens - 1):
        places = np.clip(np.arange(tokens) - query, -distance, distance) + distance
        assert (made[:, places] == bias[:, query]).all()


@pytest.mark.parametrize("shape", [(31, 4), (33, 4), (32, 3), (32, 0), (128,)])
def test_a_table_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match=r"relative\.bias is no table of 32 × 4 relative positions") as caught:
        relative_bias(Relative("relative.bias", 32, 128), np.zeros(shape, np.float32), 4)
    assert caught.value.hint == "fetch the model again"
