import json

import numpy as np
import pytest
from arrays import qkv
from checkout import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from reference.attention import exact_attention, thinformer_attention
from thinformer import (
    Draws,
    attention,
    compress_kv,
    compress_schedule,
    coreset_size,
    make_draws,
    set_num_threads,
)
from thinformer.data import ACTIVATIONS, load_activations

CASES = [
    case
    for case in json.loads((GOLDEN / "thinformer_vectors.json").read_text())
    if case["kind"] == "attention"
]


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden(case):
    arrays = np.load(GOLDEN / "thinformer_vectors.npz")
    query, key, value, expected, out, weights = (
        arrays[f"{case['name']}_{field}"]
        for field in ("query", "key", "value", "indices", "out", "weights")
    )
    uniforms = [arrays[f"{case['name']}_u{r}"] for r in range(case["rounds"])]
    draws = Draws(
        tuple(u.transpose(0, 2, 1, 3).reshape(case["B"], case["H"], -1) for u in uniforms),
        tuple(np.full(u.shape[1], c) for u, c in zip(uniforms, case["coins"], strict=True)),
    )
    result = attention(
        query, key, value, g=case["g"], delta=case["delta"], pre_thin="stride", draws=draws,
        return_weights=True, return_indices=True,
    )  # fmt: skip
    np.testing.assert_array_equal(result.indices, expected)
    np.testing.assert_allclose(result.output, out, rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.weights, weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_the_specification(dtype):
    rng = np.random.default_rng(0)
    query, key, value = qkv(rng, B=2, dtype=dtype)
    schedule = compress_schedule(300, 64)
    draws = make_draws(schedule, 11, heads=2)
    output, weights, indices, _ = thinformer_attention(query, key, value, 0.3, schedule, draws)
    result = attention(query, key, value, size=64, scale=0.3, draws=draws, return_weights=True,
                       return_indices=True)  # fmt: skip
    tolerance = 100 * np.finfo(dtype).eps
    np.testing.assert_array_equal(result.indices, indices)
    np.testing.assert_allclose(result.output, output, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(result.weights, weights, rtol=tolerance, atol=tolerance)
    assert result.output.dtype == result.weights.dtype == dtype


@pytest.mark.slow
@given(st.integers(1, 300), st.integers(0, 4), st.sampled_from(["f2", "f4", "f8"]))
def test_size_at_least_S_is_exact(S, more, dtype):
    query, key, value = qkv(S, S=S, dtype=dtype)
    result = attention(query, key, value, size=S + more, rng=0, return_weights=True,
                       return_indices=True)  # fmt: skip
    expected, weights = exact_attention(
        *(x.astype(np.float64) for x in (query, key, value)), key.shape[-1] ** -0.5
    )
    np.testing.assert_array_equal(result.indices, np.broadcast_to(np.arange(S), (1, 2, S)))
    tolerance = 20 * np.finfo(dtype).eps
    np.testing.assert_allclose(result.output, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(result.weights, weights, rtol=tolerance, atol=tolerance)
    assert result.output.dtype == np.dtype(dtype)


def test_optional_results_are_none_unless_asked_for():
    query, key, value = qkv()
    plain = attention(query, key, value, rng=0)
    assert plain.weights is None
    assert plain.indices is None
    full = attention(query, key, value, rng=0, return_weights=True, return_indices=True)
    np.testing.assert_array_equal(plain.output, full.output)
    np.testing.assert_allclose(full.weights.sum(axis=-1), 1)
    kept = np.take_along_axis(value, full.indices.transpose(0, 2, 1)[..., None], axis=1)
    again = np.einsum("bhts,bshd->bthd", full.weights, kept)
    np.testing.assert_allclose(again, full.output)


@given(st.integers(0, 200), st.integers(1, 200), st.integers(1, 70), st.integers(1, 300),
       st.sampled_from(["f4", "f8"]))  # fmt: skip
def test_softmax_attention_of_any_shape(T, S, E, D, dtype):
    """Blocks of queries and tiles of keys that are full, partial or just one."""
    rng = np.random.default_rng(T + S)
    query, key, value = qkv(rng, B=2, T=T, S=S, E=E, D=D, dtype=dtype)
    query[:, ::3] *= 30  # peaked rows beside flat ones
    result = attention(query, key, value, size=S, return_weights=True)
    expected, weights = exact_attention(query, key, value, np.dtype(dtype).type(E**-0.5))
    tolerance = 2000 * np.finfo(dtype).eps
    np.testing.assert_allclose(result.output, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(result.weights, weights, rtol=tolerance, atol=tolerance)


def test_huge_logits():
    """As large as they come in float32 and apart by more than exp can tell."""
    query, key, value = qkv(T=70, S=90, dtype=np.float32)
    query *= 1e4
    result = attention(query, key, value, size=90, return_weights=True)
    expected, _ = exact_attention(*(x.astype(float) for x in (query, key, value)), 8**-0.5)
    np.testing.assert_allclose(result.weights.sum(-1), 1, rtol=1e-5)
    assert np.mean(np.abs(result.output - expected) < 1e-2) > 0.99


def test_memory_is_not_quadratic():
    """S = T = 8192: exact attention's weights alone would take 268 MB."""
    import tracemalloc

    query, key, value = qkv(T=8192, S=8192, H=1, E=4, D=4,
                            dtype=np.float32)  # fmt: skip
    attention(query, key, value, g=1, rng=0)
    for size in (None, 8192):  # thinned; exact
        tracemalloc.start()
        attention(query, key, value, g=1, size=size, rng=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30e6


@given(st.integers(1, 6), st.integers(0, 2**32))
def test_permuting_heads_permutes_results(H, seed):
    """Given the same draws, head by head."""
    rng = np.random.default_rng(seed)
    key, value = rng.standard_normal((1, 100, H, 4)), rng.standard_normal((1, 100, H, 3))
    draws = make_draws(compress_schedule(100, 16), seed, heads=H)
    order = rng.permutation(H)
    permuted = Draws(
        tuple(u[order] for u in draws.uniforms), tuple(c[order] for c in draws.coins),
        draws.strata[order],
    )  # fmt: skip
    kept = compress_kv(key, value, size=16, draws=draws)
    again = compress_kv(key[:, :, order], value[:, :, order], size=16, draws=permuted)
    np.testing.assert_array_equal(again, kept[:, order])


@given(st.integers(0, 2**32), st.sampled_from([2.0**-100, 2.0**-20, 4.0, 2.0**100]),
       st.sampled_from(["f4", "f8"]))  # fmt: skip
def test_scaling_values_changes_no_choice(seed, c, dtype):
    """<v, v'> + vmax^2 scales with the values, and kernel halving is blind to a factor."""
    rng = np.random.default_rng(seed)
    key = rng.standard_normal((1, 200, 2, 4)).astype(dtype)
    value = rng.standard_normal((1, 200, 2, 3)).astype(dtype)
    c = key.dtype.type(c)
    np.testing.assert_array_equal(
        compress_kv(key, value, g=0, rng=seed), compress_kv(key, c * value, g=0, rng=seed)
    )


def test_scale_is_a_scaling_of_keys():
    key, value = qkv(E=16)[1:]
    np.testing.assert_array_equal(
        compress_kv(key, value, g=0, rng=0, scale=1.0),
        compress_kv(key / 2, value, g=0, rng=0, scale=4.0),
    )
    np.testing.assert_array_equal(
        compress_kv(key, value, g=0, rng=0), compress_kv(key, value, g=0, rng=0, scale=0.25)
    )


def test_batch_and_threads_change_nothing():
    """A sequence keeps the same keys alone and as the last of many, on any number of threads."""
    key, value = qkv(B=9, S=2047, E=16, D=16, dtype=np.float32)[1:]
    expected = compress_kv(key, value, g=2, rng=3)
    for threads in (1, 2, 5):
        set_num_threads(threads)
        np.testing.assert_array_equal(compress_kv(key, value, g=2, rng=3), expected)
        np.testing.assert_array_equal(compress_kv(key[8:], value[8:], g=2, rng=3), expected[8:])


def test_heads_draw_independently():
    key = np.tile(np.random.default_rng(0).standard_normal((1, 256, 1, 4)), (1, 1, 2, 1))
    kept = compress_kv(key, key, g=0, rng=0)
    assert not np.array_equal(kept[0, 0], kept[0, 1])


def test_layouts():
    """Read in place, whatever the strides; never modified."""
    rng = np.random.default_rng(0)
    query, key, value = qkv(rng, B=2, E=6, D=6)
    expected = attention(query, key, value, g=1, rng=0).output

    def bhsd(x):  # contiguous as (B, H, S, E), seen as (B, S, H, E)
        return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)

    def packed(x):  # a slice of a larger projection
        wide = rng.standard_normal((*x.shape[:3], 3 * x.shape[3]))
        wide[..., 6:12] = x
        return wide[..., 6:12]

    def read_only(x):
        x = x.copy()
        x.flags.writeable = False
        return x

    for layout in (bhsd, packed, read_only, np.asfortranarray):
        arrays = [layout(x) for x in (query, key, value)]
        np.testing.assert_allclose(attention(*arrays, g=1, rng=0).output, expected, rtol=1e-12)
        for array, original in zip(arrays, (query, key, value), strict=True):
            np.testing.assert_array_equal(array, original)
    repeated = np.broadcast_to(key[:, :, :1], key.shape)  # stride 0
    np.testing.assert_array_equal(
        compress_kv(repeated, value, rng=0), compress_kv(repeated.copy(), value, rng=0)
    )


def test_no_queries_and_no_sequences():
    query, key, value = qkv()
    assert attention(query[:, :0], key, value, rng=0).output.shape == (1, 0, 2, 5)
    assert attention(query[:0], key[:0], value[:0], rng=0).output.shape == (0, 7, 2, 5)
    no_heads = (array[:, :, :0] for array in (query, key, value))
    assert attention(*no_heads, rng=0).output.shape == (1, 7, 0, 5)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_real_activations(name, dtype):
    """Keys of norm up to 146, whose exp overflows float64, give coresets without a warning."""
    for layer in load_activations(name).values():
        query, key, value = (layer[role].astype(dtype) for role in ("query", "key", "value"))
        S = key.shape[1]
        for g in (0, 2):
            result = attention(query[:, :50], key, value, g=g, rng=0, return_indices=True)
            assert result.indices.shape[-1] == coreset_size(S, g)
            assert np.all(np.diff(result.indices) > 0)
            assert np.all(np.isfinite(result.output))
            # the walk is alive: with keys that all look alike, other tokens would be kept
            nothing = compress_kv(np.zeros_like(key), np.zeros_like(value), g=g, rng=0)
            assert np.all(np.mean(result.indices == nothing, axis=-1) < 0.9)


def test_error_falls_with_g_on_real_activations():
    layer = load_activations("audio")["layer0"]
    query, key, value = (layer[role].astype(np.float32) for role in ("query", "key", "value"))
    exact = attention(query, key, value, size=1500).output
    errors = []
    for g in range(6):
        runs = [attention(query, key, value, g=g, rng=seed).output - exact for seed in range(5)]
        errors.append(np.mean([np.linalg.norm(run) for run in runs]) / np.linalg.norm(exact))
    assert np.all(np.diff(errors) < 0)
    assert errors[-1] < errors[0] / 6


@pytest.mark.slow
def test_selection_takes_little_memory():
    """65,536 tokens: beside 33 MB of keys and values, positions and draws (24 bytes a token) and
    what the threads work in.
    """
    import tracemalloc

    key, value = qkv(S=65536, H=1, E=64, D=64, dtype=np.float32)[1:]
    compress_kv(key, value, g=2, rng=0)
    tracemalloc.start()
    compress_kv(key, value, g=2, rng=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 65536 * 60 + 2 * 2 * 1024 * 129 * 4 * 2
