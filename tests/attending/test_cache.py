"""`compress_cache`: bodies equal the reference; what is kept, what it is worth, errors."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import cache as reference
from thinformer import compress_cache
from thinformer.attending.cache import RECENT, SINKS, CacheOptions
from thinformer.torch.cache import on_cpu
from thinformer.torch.cache.cached import Cached
from thinformer.torch.cache.compress import compress

SCALE = 0.25


def arrays(B=1, L=96, S=300, H=4, H_kv=2, E=16, D=8, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = (B, L, H, E), (B, S, H_kv, E), (B, S, H_kv, D)
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def smooth(S=1000, seed=0):
    """Keys that drift, values that depend on them, and queries whose distribution stays."""
    rng = np.random.default_rng(seed)
    key = rng.normal(size=(1, S + 64, 2, 16)).cumsum(axis=1) / 8
    query = rng.normal(size=(1, 1, 4, 16)) + rng.normal(size=(1, S + 64, 4, 16))
    return query, key, np.sin(key)


def of_reference(query, key, value, log_mass, options, scale):
    """The reference's answer for all heads, in the layout of `CompressedCache`."""
    B, _, H, _ = query.shape
    H_kv, heads = key.shape[2], []
    for b, h in np.ndindex(B, H_kv):
        own = query[b, :, h * (H // H_kv) : (h + 1) * (H // H_kv)].swapaxes(0, 1)
        heads.append(
            reference.compress_cache(
                own, key[b, :, h], value[b, :, h], log_mass[b, :, h], scale, *options
            )
        )
    keys, values, masses = (
        np.stack([head[i] for head in heads]).reshape(B, H_kv, *heads[0][i].shape).swapaxes(1, 2)
        for i in range(3)
    )
    return keys, values, masses, np.stack([head.positions for head in heads]).reshape(B, H_kv, -1)


def of_numpy(query, key, value, log_mass, options, scale):
    size, recent = options
    return compress_cache(query, key, value, size, recent=recent, scale=scale, log_mass=log_mass)


def of_torch(query, key, value, log_mass, options, scale, compress=compress):
    """Tensors come back without positions, which the keys tell."""
    query, key, value, log_mass = (
        torch.from_numpy(np.ascontiguousarray(array.swapaxes(1, 2)))
        for array in (query, key, value, log_mass)
    )
    kept = compress(query, Cached(key, value, log_mass), CacheOptions(*options), scale)
    keys, values, masses = (tensor.numpy().swapaxes(1, 2) for tensor in kept)
    whole = key.numpy().swapaxes(1, 2)
    found = (whole[:, :, None] == keys[:, None]).all(-1)  # (B, S, n, H_kv)
    return keys, values, masses, np.moveaxis(found.argmax(1), 1, 2)


BODIES = {
    "numpy": (of_numpy, 1e-9),
    "torch": (of_torch, 1e-9),
    "torch on the CPU": (partial(of_torch, compress=on_cpu.compress), 1e-9),
}


@pytest.mark.parametrize("body", BODIES)
@given(
    seed=st.integers(0, 2**16),
    S=st.integers(60, 400),
    H_kv=st.integers(1, 3),
    group=st.integers(1, 3),
    L=st.integers(1, 96),
    recent=st.integers(1, 40),
    masses=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_bodies_give_the_references_answer(body, seed, S, H_kv, group, L, recent, masses):
    query, key, value = arrays(2, L, S, H_kv * group, H_kv, seed=seed)
    log_mass = np.zeros(key.shape[:3])
    if masses:  # landmarks of a compression before, and padding
        log_mass[:, :20] = np.random.default_rng(seed).normal(size=log_mass[:, :20].shape)
        log_mass[1, :7] = -np.inf
    options = recent + 15, recent
    expected = of_reference(query, key, value, log_mass, options, SCALE)
    compute, tolerance = BODIES[body]
    for got, wanted in zip(
        compute(query, key, value, log_mass, options, SCALE), expected, strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


def test_what_is_kept():
    """The first and the latest tokens as they are; of the others those that are attended to."""
    query, key, value = arrays(S=400, H=2)
    key[0, 200, 0] = 4 * query[0, 5, 0]  # one query needs it
    kept = compress_cache(query, key, value, 64, scale=SCALE)
    positions = kept.indices[0]
    assert (np.diff(positions) > 0).all()
    for of_head in positions:
        assert of_head[:SINKS].tolist() == list(range(SINKS))
        assert of_head[-RECENT:].tolist() == list(range(400 - RECENT, 400))
    assert 200 in positions[0]
    rows = positions.swapaxes(0, 1)[None, ..., None]
    np.testing.assert_array_equal(kept.key, np.take_along_axis(key, rows, 1))
    np.testing.assert_array_equal(kept.value[:, -RECENT:], value[:, -RECENT:])
    assert (kept.log_mass[:, -RECENT:] == 0).all()
    moved = kept.value != np.take_along_axis(value, rows, 1)
    assert moved[:, :-RECENT].any(axis=(0, 2, 3)).all()


def attend(query, key, value, log_mass):
    """Attention of queries (T, E) to keys (S, E) with log masses (S,)."""
    weights = np.exp(SCALE * query @ key.T + log_mass)
    return weights / weights.sum(1, keepdims=True) @ value


def test_the_queries_that_come_next_lose_little():
    """At most half of what they lose where the same keys keep their own values."""
    query, key, value = smooth()
    then, now = query[0, 1000:], query[:, 904:1000]
    kept = compress_cache(now, key[:, :1000], value[:, :1000], 128, scale=SCALE)
    error = dropped = 0.0
    for head in range(4):
        h = head // 2
        exact = attend(then[:, head], key[0, :1000, h], value[0, :1000, h], 0)
        rows = kept.indices[0, h]
        fitted = attend(
            then[:, head], kept.key[0, :, h], kept.value[0, :, h], kept.log_mass[0, :, h]
        )
        own = attend(then[:, head], key[0, rows, h], value[0, rows, h], 0)
        error += np.sum((fitted - exact) ** 2)
        dropped += np.sum((own - exact) ** 2)
    assert 0 < error < 0.5 * dropped


def test_nothing_is_lost_where_all_keys_fit():
    query, key, value = arrays(S=50)
    kept = compress_cache(query, key, value, 50)
    np.testing.assert_array_equal(kept.key, key)
    np.testing.assert_array_equal(kept.value, value)
    assert (kept.log_mass == 0).all()
    assert (kept.indices == np.arange(50)).all()


def test_padding_changes_nothing():
    query, key, value = arrays(S=200)
    alone = compress_cache(query, key, value, 64)
    padded = [np.concatenate([array[:, :30], array], axis=1) for array in (key, value)]
    log_mass = np.zeros((1, 230, 2))
    log_mass[:, :30] = -np.inf
    kept = compress_cache(query, *padded, 64, log_mass=log_mass)
    for got, wanted in zip(kept[:3], alone[:3], strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)
    assert (kept.indices == alone.indices + 30).all()
    few = compress_cache(
        query,
        key,
        value,
        64,
        log_mass=np.where(np.arange(200) < 150, -np.inf, 0.0)[None, :, None].repeat(2, 2),
    )
    assert (few.log_mass == -np.inf).sum() == 2 * (64 - 50)
    np.testing.assert_allclose(few.value[:, 14:], value[:, 150:], rtol=1e-12)


@pytest.mark.parametrize("choose", [compress, on_cpu.compress], ids=["torch", "torch on the CPU"])
def test_queries_of_padding_do_not_count(choose):
    """A sequence without any keeps padding, and its neighbour does not notice."""
    arrays_of_two = arrays(2, L=70, S=200)
    query, *held = (torch.from_numpy(array.swapaxes(1, 2).copy()) for array in arrays_of_two)
    log_mass = torch.zeros(2, 2, 200, dtype=torch.float64)
    log_mass[0], query[0], query[1, :, :33] = -torch.inf, torch.nan, torch.nan
    kept = choose(query, Cached(*held, log_mass), CacheOptions(64), SCALE)
    of_one = Cached(*(tensor[1:] for tensor in (*held, log_mass)))
    alone = choose(query[1:, :, 33:], of_one, CacheOptions(64), SCALE)
    for got, wanted in zip(kept, alone, strict=True):
        torch.testing.assert_close(got[1:], wanted, rtol=1e-9, atol=1e-9)
    assert (kept.log_masses[0] == -torch.inf).all()
    assert kept.values.isfinite().all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes(dtype):
    query, key, value = arrays(dtype=dtype)
    kept = compress_cache(query, key, value, 64)
    assert {array.dtype.type for array in kept[:3]} == {dtype}
    wide = compress_cache(*(array.astype(np.float64) for array in (query, key, value)), 64)
    shared = (kept.indices == wide.indices).mean()
    assert shared > 0.95  # scores that are nearly equal may change places


def test_a_cache_is_compressed_again():
    """A compressed cache with new tokens behind it is a cache."""
    query, key, value = smooth()
    kept = compress_cache(query[:, 800:900], key[:, :900], value[:, :900], 128, scale=SCALE)
    grown = [
        np.concatenate([old, new[:, 900:1000]], axis=1)
        for old, new in zip(kept[:2], (key, value), strict=True)
    ]
    log_mass = np.concatenate([kept.log_mass, np.zeros((1, 100, 2))], axis=1)
    again = compress_cache(query[:, 904:1000], *grown, 128, scale=SCALE, log_mass=log_mass)
    exact = attend(query[0, 1000:, 0], key[0, :1000, 0], value[0, :1000, 0], 0)
    once = compress_cache(query[:, 904:1000], key[:, :1000], value[:, :1000], 128, scale=SCALE)
    of_once, of_twice = (
        np.linalg.norm(attend(query[0, 1000:, 0], *(array[0, :, 0] for array in one[:3])) - exact)
        for one in (once, again)
    )
    assert of_twice < 1.1 * of_once < 0.5 * np.linalg.norm(exact)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"size": 36}, "size must be at least 37, .* got 36"),
        ({"size": 2.5}, "size must be an integer"),
        ({"recent": 0}, "recent must be an integer of at least 1; got 0"),
        ({"query": np.ones((1, 9, 4, 8))}, r"query must have shape \(B, L, H, E\)"),
        ({"query": np.ones((1, 9, 3, 16))}, "multiple of the 2 heads of key; got 3 heads"),
        ({"query": np.ones((1, 0, 4, 16))}, r"got shape \(1, 0, 4, 16\)"),
        ({"value": np.ones((1, 299, 2, 8))}, "value must have shape"),
        ({"key": np.full((1, 300, 2, 16), np.nan)}, "key must be finite"),
        ({"scale": -1}, "scale must be positive"),
        ({"log_mass": np.zeros((1, 300))}, r"log_mass must have shape \(1, 300, 2\)"),
        ({"log_mass": np.full((1, 300, 2), np.inf)}, "log_mass must be finite or minus infinity"),
        ({"log_mass": np.full((1, 300, 2), -np.inf)}, "log_mass must leave each head a key"),
        ({"key": np.ones((1, 300, 0, 16)), "value": np.ones((1, 300, 0, 8))}, "at least one head"),
        ({"key": np.full((1, 300, 2, 16), 1e200)}, "key must have norms below"),
        ({"query": np.full((1, 9, 4, 16), -1e200)}, "query must have norms below"),
        ({"scale": 1e307}, "scale must keep the logits in the range of float64; got 1e\\+307"),
    ],
)
def test_errors_name_the_argument(change, error):
    names = dict(zip(("query", "key", "value"), arrays(), strict=True)) | {"size": 64} | change
    with pytest.raises(ValueError, match=error):
        compress_cache(**names)


@pytest.mark.parametrize("body", BODIES)
def test_only_ratios_of_masses_count(body):
    query, key, value = arrays(S=200)
    log_mass = np.random.default_rng(0).normal(size=(1, 200, 2))
    compute, _ = BODIES[body]
    low, high = (compute(query, key, value, log_mass + m, (64, 32), SCALE) for m in (0, 800))
    np.testing.assert_allclose(high[1], low[1], atol=1e-6)
    np.testing.assert_allclose(high[2] - 800, low[2], atol=1e-6)


def test_masses_are_in_the_range_of_the_keys():
    query, key, value = arrays(dtype=np.float32)
    for number in (1e300, -1e300):
        log_mass = np.zeros((1, 300, 2))
        log_mass[:, 5] = number
        with pytest.raises(ValueError, match="log_mass must be in the range of float32"):
            compress_cache(query, key, value, 64, log_mass=log_mass)


@pytest.mark.parametrize("group", [1, 128])
def test_queries_that_attend_alike(group):
    """The Gram matrix of nearly equal columns is singular but for rounding and the nugget."""
    rng = np.random.default_rng(942113)
    query = (2e-4 * rng.normal(size=(1, 256, group, 16))).astype(np.float32)
    key, value = rng.normal(size=(1, 235, 1, 16)), rng.normal(size=(1, 235, 1, 8))
    tokens = key.astype(np.float32), value.astype(np.float32)
    kept = compress_cache(query, *tokens, 185, recent=16, scale=SCALE)
    exact = attend(query[0, :, 0], tokens[0][0, :, 0], tokens[1][0, :, 0], 0)
    output = attend(query[0, :, 0], *(array[0, :, 0] for array in kept[:3]))
    assert np.linalg.norm(output - exact) < 2e-3 * np.linalg.norm(exact)
    assert np.abs(kept.value).max() < 10


@pytest.mark.parametrize("choose", ["numpy", "torch", "torch on the CPU"])
@pytest.mark.parametrize("mass", [-83, -86, -90])
def test_keys_of_nearly_no_mass_in_float32(choose, mass):
    """Ratios of masses are in the range of float32, and those keys count for nothing."""
    query, key, value = arrays(S=200, dtype=np.float32)
    log_mass = np.zeros((1, 200, 2), np.float32)
    log_mass[:, :20] = mass
    compute, _ = BODIES[choose]
    kept = compute(query, key, value, log_mass, (64, 32), SCALE)
    assert all(np.isfinite(array).all() for array in kept[:3])
    exact = attend(query[0, :, 0], key[0, 20:, 0], value[0, 20:, 0], 0)
    output = attend(query[0, :, 0], *(array[0, :, 0] for array in kept[:3]))
    none = compute(query, key, value, np.where(log_mass < 0, -np.inf, log_mass), (64, 32), SCALE)
    without = attend(query[0, :, 0], *(array[0, :, 0] for array in none[:3]))
    off, least = np.linalg.norm(output - exact), np.linalg.norm(without - exact)
    assert off < 1.2 * least


@pytest.mark.parametrize("choose", BODIES)
@pytest.mark.parametrize("number", [1e-25, 1e-17, 1e17, 1e25])
def test_the_scale_of_values_does_not_matter(choose, number):
    query, key, value = arrays(S=200, dtype=np.float32)
    log_mass = np.zeros((1, 200, 2), np.float32)
    compute, _ = BODIES[choose]
    scaled = compute(query, key, np.float32(number) * value, log_mass, (64, 32), SCALE)
    kept = compute(query, key, value, log_mass, (64, 32), SCALE)
    assert (scaled[3] == kept[3]).mean() > 0.95
    assert np.isfinite(scaled[1]).all()


@pytest.mark.parametrize("choose", BODIES)
def test_values_stay_in_the_range_of_float16(choose):
    query, key, value = arrays(S=300, dtype=np.float16)
    value = np.clip(value.astype(np.float32) * 20_000, -65_504, 65_504).astype(np.float16)
    log_mass = np.zeros((1, 300, 2), np.float32 if choose != "numpy" else np.float16)
    compute, _ = BODIES[choose]
    kept = compute(query, key, value, log_mass, (64, 32), SCALE)
    assert kept[1].dtype == np.float16
    assert np.isfinite(kept[1]).all()
    assert (np.abs(kept[1]) == 65_504).any()
