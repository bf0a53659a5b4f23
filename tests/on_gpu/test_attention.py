"""Keys and values: a GPU keeps what the CPU keeps, of arrays in either memory."""

import numpy as np
import pytest
from devices import FLOAT32_TOLERANCE, OnGpu, at, host
from problems import Attention, reference_numpy, smallest_margin

from thinformer import attention, compress_kv, compress_schedule, make_draws


def pairs(shape, S, E, D, dtype=np.float64, seed=0):
    """Keys (*shape, E) and values (*shape, D), S tokens in place of None."""
    rng, shape = np.random.default_rng(seed), [S if n is None else n for n in shape]
    return (rng.standard_normal((*shape, E)).astype(dtype),
            rng.standard_normal((*shape, D)).astype(dtype))  # fmt: skip


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_dtypes(dtype):
    """Draws whose decisions no rounding turns."""
    S, size, H = at((256, 32, 4), (16, 4, 1))
    schedule = compress_schedule(S, size)
    key, value = pairs((2, None, H), S, 8, 5, dtype)
    computed = "float64" if dtype == "float64" else "float32"
    problem = Attention(key.astype(computed), value.astype(computed))
    for seed in range(100):
        draws = make_draws(schedule, seed, H)
        expected, traces = reference_numpy(problem, schedule, draws)
        if smallest_margin(traces) > FLOAT32_TOLERANCE:
            break
    assert smallest_margin(traces) > FLOAT32_TOLERANCE
    options = {"size": size, "draws": draws}
    np.testing.assert_array_equal(compress_kv(key, value, device="cuda", **options), expected)
    kept = compress_kv(OnGpu(key), OnGpu(value), **options)
    np.testing.assert_array_equal(host(kept), expected)


@pytest.mark.parametrize("pre_thin", ["even", "stride"])
@pytest.mark.parametrize(
    ("S", "size", "H", "E", "D"),
    [at((4096, 256, 4, 64, 64), (36, 9, 1, 3, 2)), at((1000, 77, 2, 3, 130), (21, 5, 1, 3, 34)),
     (3, 2, 1, 1, 1), at((3136, 224, 2, 64, 64), (10, 5, 2, 8, 8))],
)  # fmt: skip
def test_sizes(S, size, H, E, D, pre_thin):
    """Blocks of all sizes, panels that are not full, and columns that are staged in turn."""
    key, value = pairs((1, None, H), S, E, D)
    options = {"size": size, "rng": 1, "pre_thin": pre_thin}
    expected = compress_kv(key, value, **options)
    np.testing.assert_array_equal(compress_kv(key, value, device="cuda", **options), expected)
    np.testing.assert_array_equal(host(compress_kv(OnGpu(key), OnGpu(value), **options)), expected)


LAYOUTS = {
    "heads first": lambda x: x.transpose(0, 2, 1, 3),
    "every second column": lambda x: x.transpose(0, 2, 1, 3)[..., ::2],
    "backwards": lambda x: x.transpose(0, 2, 1, 3)[:, ::-1, ::-1, ::-1],
    "one head for all": lambda x: np.broadcast_to(x.transpose(0, 2, 1, 3)[:, :, :1],
                                                  (x.shape[0], x.shape[2], 3, x.shape[3])),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    """Arrays (B, H, S, dim) in memory, read in place."""
    B, H, S, size, dim = at((2, 3, 700, 60, 16), (1, 2, 10, 3, 4))
    key, value = (LAYOUTS[layout](x) for x in pairs((B, H, None), S, dim, dim - 2))
    expected = compress_kv(key, value, size=size, rng=2)
    kept = compress_kv(OnGpu(key), OnGpu(value), size=size, rng=2)
    np.testing.assert_array_equal(host(kept), expected)
    np.testing.assert_array_equal(
        compress_kv(key, value, size=size, rng=2, device="cuda"), expected
    )


def test_magnitudes():
    """Keys whose exponentials would overflow without the bucket's shift; very large values."""
    S, size = at((512, 64), (16, 4))
    key, value = pairs((1, None, 2), S, 4, 3)
    key[:, S // 3] *= 40
    for of_values in (1.0, 1e150):
        expected = compress_kv(key, of_values * value, size=size, rng=3)
        kept = compress_kv(OnGpu(key), OnGpu(of_values * value), size=size, rng=3)
        np.testing.assert_array_equal(host(kept), expected)


WAYS = {
    "halving": {},
    "herding": {"temperature": "auto"},
    "nystrom": {"correction": "nystrom"},
    "queries": {"correction": "queries"},
}


@pytest.mark.parametrize("way", WAYS)
def test_attention_to_the_keys_kept(way):
    """Of arrays in either memory, in any layout: keys, outputs and weights."""
    S, size = at((2048, 128), (12, 3))
    key, value = pairs((1, None, 2), S, 16, 16)
    given = key[:, S // 2 :: -1] + 1, key[..., ::-1], value
    options = WAYS[way] | {"size": size, "rng": 4, "return_weights": True, "return_indices": True}
    expected = attention(*given, **options)
    copied = attention(*given, device="cuda", **options)
    there = map(host, attention(*map(OnGpu, given), **options))
    for output, weights, indices in (copied, there):
        np.testing.assert_array_equal(indices, expected.indices)
        np.testing.assert_allclose(output, expected.output, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(weights, expected.weights, rtol=1e-7, atol=1e-7)


def test_numbers_that_are_not_finite():
    """The error is raised, and the next call computes."""
    key, value = pairs((1, None, 2), at(300, 10), 4, 3)
    expected = compress_kv(key, value, size=4, rng=5)
    for array in (key, value):
        good, array[0, 7, 1, 1] = array[0, 7, 1, 1], np.nan
        with pytest.raises(ValueError, match="must be finite"):
            compress_kv(OnGpu(key), OnGpu(value), size=4)
        array[0, 7, 1, 1] = good
    np.testing.assert_array_equal(
        host(compress_kv(OnGpu(key), OnGpu(value), size=4, rng=5)), expected
    )
