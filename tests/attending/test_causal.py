"""`causal_attention`: equal to the reference, to exact attention, and blind to the future."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from reference import cache as reference
from thinformer import causal_attention


def arrays(T, H=4, H_kv=2, E=8, D=6, B=1, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = (B, T, H, E), (B, T, H_kv, E), (B, T, H_kv, D)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def exact(query, key, value):
    tensors = (torch.from_numpy(array.swapaxes(1, 2).copy()) for array in (query, key, value))
    output = scaled_dot_product_attention(*tensors, is_causal=True, enable_gqa=True)
    return output.numpy().swapaxes(1, 2)


@given(
    T=st.integers(1, 200), block=st.integers(1, 70), recent=st.integers(1, 30),
    seed=st.integers(0, 2**16),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_equal_to_the_reference(T, block, recent, seed):
    query, key, value = arrays(T, seed=seed)
    size = recent + 12
    output = causal_attention(query, key, value, size, block=block, recent=recent, scale=0.4)
    for h in range(2):
        heads = slice(2 * h, 2 * h + 2)
        expected = reference.causal_attention(
            query[0, :, heads].swapaxes(0, 1), key[0, :, h], value[0, :, h], 0.4, size, block,
            recent,
        )  # fmt: skip
        np.testing.assert_allclose(output[0, :, heads].swapaxes(0, 1), expected, atol=1e-9)


@pytest.mark.parametrize("block", [16, 300, 1000])
def test_exact_where_all_keys_fit(block):
    query, key, value = arrays(300, B=2)
    output = causal_attention(query, key, value, 300, block=block, recent=32)
    np.testing.assert_allclose(output, exact(query, key, value), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("place", [1, 99, 100, 257, 399])
def test_the_future_has_no_influence(place):
    """Not one bit."""
    query, key, value = arrays(400)
    options = {"size": 64, "block": 100, "recent": 16}
    output = causal_attention(query, key, value, **options)
    for array in (query, key, value):
        array[:, place:] = np.random.default_rng(1).normal(size=array[:, place:].shape)
    other = causal_attention(query, key, value, **options)
    np.testing.assert_array_equal(output[:, :place], other[:, :place])
    assert (output[:, place:] != other[:, place:]).any(axis=-1).all()


def test_nearer_than_a_window():
    """A window of as many keys as a query here attends to, at most."""
    rng = np.random.default_rng(0)
    key = rng.normal(size=(1, 1500, 2, 16)).cumsum(axis=1) / 8
    query, value = rng.normal(size=(1, 1500, 2, 16)), np.sin(key)
    wanted = exact(query, key, value)
    output = causal_attention(query, key, value, 128, block=128, recent=32)
    place = np.arange(1500)
    near = torch.from_numpy((place[:, None] >= place) & (place[:, None] - place < 256))
    tensors = (torch.from_numpy(array.swapaxes(1, 2).copy()) for array in (query, key, value))
    window = scaled_dot_product_attention(*tensors, attn_mask=near).numpy().swapaxes(1, 2)
    assert np.linalg.norm(output - wanted) < 0.5 * np.linalg.norm(window - wanted)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dtypes(dtype):
    query, key, value = arrays(300, dtype=dtype)
    output = causal_attention(query, key, value, 300, block=64, recent=32)
    assert output.dtype == dtype
    wide = exact(*(array.astype(np.float64) for array in (query, key, value)))
    np.testing.assert_allclose(output, wide, atol=2e-3 if dtype == np.float16 else 1e-5)


def test_errors_name_the_argument():
    query, key, value = arrays(50)
    with pytest.raises(ValueError, match="as many tokens, .* got 40 and 50"):
        causal_attention(query[:, :40], key, value)
    with pytest.raises(ValueError, match="size must be at least 133, .* got 64"):
        causal_attention(query, key, value, 64)
    with pytest.raises(ValueError, match="block must be an integer of at least 1; got 0"):
        causal_attention(query, key, value, block=0)
