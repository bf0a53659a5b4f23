"""Keys and values: the kernels keep what the specification keeps, and draw what the seed says."""

import numpy as np
import pytest
from problems import (
    Attention,
    reference_numpy,
    smallest_margin,
)
from simulator import FLOAT32_TOLERANCE, THREADS

from thinformer import (
    compress_kv,
    compress_schedule,
    make_draws,
)
from thinformer.cpu.run import starting_points
from thinformer.cuda import run, tiles
from thinformer.cuda.halve import Geometry
from thinformer.cuda.jit import cuda
from thinformer.halving.draws import seed_from
from thinformer.halving.plan import plan


@pytest.mark.parametrize(("dtype", "magnitude"), [("f8", 1.0), ("f8", 1e150), ("f4", 1e30)])
def test_attention(dtype, magnitude):
    rng = np.random.default_rng(0)
    schedule = compress_schedule(64, 16)
    problem = Attention(rng.standard_normal((1, 64, 2, 3)).astype(dtype),
                        (magnitude * rng.standard_normal((1, 64, 2, 5))).astype(dtype))  # fmt: skip
    draws = make_draws(schedule, 2, 2)
    expected, traces = reference_numpy(problem, schedule, draws)
    assert smallest_margin(traces) > (1e-12 if dtype == "f8" else FLOAT32_TOLERANCE)
    kept = compress_kv(*problem, size=16, draws=draws, device="cuda")
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("seed", range(3))
def test_keys_whose_exponential_overflows(seed):
    """The shift is the bucket's own largest |k|^2: any smaller one would give infinity."""
    rng = np.random.default_rng(seed)
    key = rng.standard_normal((1, 64, 1, 2)).astype(np.float32)
    key[:, rng.integers(64)] *= 40
    value = rng.standard_normal((1, 64, 1, 2)).astype(np.float32)
    problem, schedule = Attention(key, value), compress_schedule(64, 32)
    draws = make_draws(schedule, seed, 1)
    expected, traces = reference_numpy(problem, schedule, draws)
    assert smallest_margin(traces) > FLOAT32_TOLERANCE
    kept = compress_kv(*problem, size=32, draws=draws, device="cuda")
    np.testing.assert_array_equal(kept, expected)


def test_largest_in_block():
    """The same in all threads, in several blocks at once and wherever the largest is."""
    largest = tiles.make_largest_in_block(THREADS, np.float32)

    def find(numbers, found):
        found[cuda.grid(1)] = largest(numbers[cuda.grid(1)])

    numbers = np.random.default_rng(0).standard_normal((12, THREADS)).astype(np.float32)
    found = cuda.to_device(np.zeros(numbers.size, np.float32))
    cuda.jit(find)[12, THREADS](cuda.to_device(numbers.ravel()), found)
    expected = np.repeat(numbers.max(axis=1), THREADS)
    np.testing.assert_array_equal(found.copy_to_host(), expected)


def selected(key, value, size, seed, pre_thin="even"):
    """Choose pairs that are on the GPU, from a seed there."""
    B, S, H, E = key.shape
    D = value.shape[-1]
    settings = plan(S, 2, size, 0.5, pre_thin)
    schedule = settings.schedule
    stored = key.dtype.name
    dtype = run.COMPUTED_IN[stored]
    made = run.launches(schedule, B * H, E + D, 1, dtype)
    shapes = run.workspace(schedule, B * H, dtype, made)
    work = run.Workspace(
        **{name: cuda.to_device(np.full(shape, 77, of)) for name, (shape, of) in shapes.items()}
    )
    as_stored = {"float16": np.int16}.get(stored, key.dtype)
    run.select_pairs(
        stored,
        (cuda.to_device(key.ravel().view(as_stored)), Geometry(0, H, S * H * E, E, H * E, 1, E)),
        (cuda.to_device(value.ravel().view(as_stored)), Geometry(0, H, S * H * D, D, H * D, 1, D)),
        run.Rounds(schedule, *map(cuda.to_device, run.round_tables(schedule, dtype)), made),
        work,
        run.Sequences(
            cuda.to_device(np.arange(B)), cuda.to_device(np.zeros((0, 0), int)),
            cuda.to_device(np.zeros(0, int)), S, pre_thin == "stride",
            cuda.to_device(np.array([seed], np.uint64).view(np.int64)),
        ),
        scale=E**-0.5, scales=cuda.to_device(np.zeros((1, 1), dtype)),
    )  # fmt: skip
    return settings, run.Workspace(*(array.copy_to_host() for array in work))


@pytest.mark.parametrize(("S", "size"), [(64, 16), (50, 3), (16, 1)])
def test_draws_are_those_of_the_seed(S, size, monkeypatch):
    monkeypatch.setattr(run, "halve_rounds", lambda *arguments: None)
    key = np.ones((2, S, 2, 1), np.float32)
    for seed in (0, 2**64 - 1, seed_from(3)):
        settings, work = selected(key, key, size, seed)
        draws, length = make_draws(settings.schedule, seed, 2), settings.schedule.length
        for p in range(4):
            uniforms = np.concatenate([u[p % 2] for u in draws.uniforms])
            coins = np.concatenate([c[p % 2] for c in draws.coins])
            np.testing.assert_array_equal(work.draws[p, : length - size], uniforms.astype("f4"))
            np.testing.assert_array_equal(work.draws[p, length - size :], coins)
        start = starting_points(S, settings, draws, (2, 2))
        np.testing.assert_array_equal(work.left[:, :length], start)


@pytest.mark.parametrize(
    ("dtype", "pre_thin"),
    [(np.float16, "even"), (np.float32, "even"), (np.float32, "stride"), (np.float64, "even")],
)
def test_the_same_keys_from_a_seed(dtype, pre_thin):
    """Drawn, measured and halved on the GPU as on the CPU; a head that is not finite is found."""
    rng = np.random.default_rng(0)
    key, value = rng.standard_normal((1, 40, 2, 3)), rng.standard_normal((1, 40, 2, 2))
    key, value = key.astype(dtype), (100 * value).astype(dtype)
    expected = compress_kv(key, value, size=4, rng=3, pre_thin=pre_thin)
    settings, work = selected(key, value, 4, seed_from(3), pre_thin)
    np.testing.assert_array_equal(work.kept, expected[0])
    start = work.left[:, : settings.schedule.length]
    vmax = [abs(value[0, start[h], h].astype(work.largest.dtype)).max() for h in range(2)]
    np.testing.assert_array_equal(work.largest, vmax)
    assert work.finite.tolist() == [True, True]
    for array, bad in ((key, np.nan), (value, np.inf)):
        good, array[0, 7, 1, 1] = array[0, 7, 1, 1], bad
        _, work = selected(key, value, 4, seed_from(3), pre_thin)
        array[0, 7, 1, 1] = good
        assert work.finite.tolist() == [True, False]
        np.testing.assert_array_equal(work.kept[0], expected[0, 0])
        assert (np.diff(work.kept[1]) > 0).all()
        assert 0 <= work.kept[1, 0] <= work.kept[1, -1] < 40


def test_half_precision_is_converted_exactly():
    bits = np.arange(2**16, dtype=np.uint16).view(np.int16)
    with np.errstate(invalid="ignore"):
        expected = bits.view(np.float16).astype(np.float32)
    found = np.array([tiles.of_float16(word) for word in bits])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    some = bits[::37]
    found = np.array([tiles.of_bfloat16(word) for word in some])
    np.testing.assert_array_equal(found.view(np.uint32) >> 16, some.view(np.uint16))
