"""Compress and Compress++ around a user's halving: the definition, any n, any rows, faults."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinformer import coreset_size, kernel_halve, mmd, thin
from thinformer.thinning.tree import compress, symmetrize


def every_other(points):
    """Every second row in sorted order; not increasing, so the order of rows shows too."""
    return np.argsort(points, axis=0, kind="stable").reshape(-1)[1::2]


def definition(points, halve, g):
    """Algorithm 1 of arXiv 2111.07941 word by word: the rows of Compress(halve, g)."""

    def rows_of(rows):
        if len(rows) == 4**g:
            return rows
        quarters = [rows_of(quarter) for quarter in np.split(rows, 4)]
        left = np.concatenate(quarters)
        return left[halve(points[left])]

    return rows_of(np.arange(len(points)))


@pytest.mark.parametrize(("p", "g"), [(0, 0), (1, 0), (1, 1), (2, 0), (3, 1), (4, 0), (5, 2)])
def test_powers_of_four_are_the_definition(p, g):
    points = np.random.default_rng(p).normal(size=(4**p, 1))
    rows = compress(points, every_other, g=g)
    np.testing.assert_array_equal(rows, definition(points, every_other, g))
    assert rows.dtype == np.int64
    assert len(rows) == coreset_size(4**p, g) == 2 ** (g + p)


def test_what_the_function_is_given():
    """Consecutive rows, 16 times 4^(g+1) of them; then what is left of four such; then of all."""
    points, given_rows = np.arange(256.0), []

    def first_half(bucket):
        given_rows.append(bucket)
        return np.arange(len(bucket) // 2)

    compress(points, first_half, g=1)
    assert [len(bucket) for bucket in given_rows] == [16] * 16 + [32] * 4 + [64]
    for i, bucket in enumerate(given_rows[:16]):
        np.testing.assert_array_equal(bucket, points[16 * i : 16 * i + 16])
    assert given_rows[16].tolist() == [*range(8), *range(16, 24), *range(32, 40), *range(48, 56)]


@given(st.integers(1, 700), st.integers(0, 4))
def test_any_n(n, g):
    sizes = []

    def halve(bucket):
        sizes.append(len(bucket))
        return np.arange(1, len(bucket), 2)

    rows = compress(np.arange(n), halve, g=g)
    assert len(rows) == coreset_size(n, g)
    assert np.all(np.diff(rows) > 0)
    assert rows[0] >= 0
    assert rows[-1] == n - 1  # evenly spaced rows end with the last, and so does every half
    assert all(size % 2 == 0 and size >= 4 for size in sizes) or len(rows) == 1
    if len(rows) < n:
        gaps = np.diff(rows)
        assert gaps.max() <= 2 * n / len(rows) + 2


@pytest.mark.slow
def test_no_row_is_dropped_systematically():
    """With a fair halving, all 64 of 100 rows that it starts from have the same chance."""
    rng = np.random.default_rng(0)
    counts = np.zeros(100)
    fair = symmetrize(lambda x: np.arange(0, len(x), 2), rng)
    for _ in range(800):
        counts[compress(np.arange(100), fair)] += 1
    start = np.arange(1, 65) * 100 // 64 - 1
    assert np.flatnonzero(counts).tolist() == start.tolist()
    chance = 1 / 8
    deviation = (counts[start] - 800 * chance) / np.sqrt(800 * chance * (1 - chance))
    assert np.max(np.abs(deviation)) < 5


@pytest.mark.parametrize(
    "points",
    [
        [f"word {i:02}" for i in range(64)],
        np.arange(64, dtype=np.uint8),
        np.arange(64).astype("datetime64[D]"),
        np.arange(64).astype(object),
        np.arange(64 * 6).reshape(64, 2, 3),
        np.asfortranarray(np.arange(128.0).reshape(64, 2)),
        np.arange(64) + 1j,
    ],
    ids=lambda points: str(getattr(points, "dtype", type(points))),
)
def test_rows_may_be_anything(points):
    seen = []

    def halve(rows):
        seen.append(rows)
        return np.arange(0, len(rows), 2, dtype=np.int32)

    rows = compress(points, halve)
    assert rows.tolist() == [0, 8, 16, 24, 32, 40, 48, 56]
    array = np.asarray(points)
    assert all(part.dtype == array.dtype and part.shape[1:] == array.shape[1:] for part in seen)
    np.testing.assert_array_equal(seen[-1], array[np.arange(0, 64, 4)])


def test_thin_is_given_what_compress_keeps():
    points = np.random.default_rng(0).normal(size=(256, 1))
    kept = compress(points, every_other, g=1)

    def take_three(rows):
        np.testing.assert_array_equal(rows, points[kept])
        return [5, 0, 7]

    assert compress(points, every_other, take_three, g=1).tolist() == kept[[5, 0, 7]].tolist()
    few = compress(points[:4], None, lambda rows: [len(rows) - 1], g=9)  # nothing to halve
    assert few.tolist() == [3]


def test_kernel_halving_makes_it_compress_plus_plus():
    """With the package's own halving and thinning: better than the half as many random rows."""
    points = np.random.default_rng(0).normal(size=(1024, 2))

    def halve(rows):
        return kernel_halve(np.exp(-((rows[:, None] - rows[None]) ** 2).sum(2) / 2), rng=0)

    rows = compress(points, halve, lambda left: thin(left, 32, bandwidth=1.0, rng=0), g=2)
    assert len(rows) == 32
    random = [np.random.default_rng(seed).choice(1024, 32, replace=False) for seed in range(5)]
    error = mmd(points, rows, bandwidth=1.0)
    assert error < np.mean([mmd(points, r, bandwidth=1.0) for r in random]) / 3


@pytest.mark.parametrize("n", [0, 1, 2, 6, 7])
def test_symmetrize_keeps_either_half(n):
    fair = symmetrize(lambda x: np.arange(0, len(x) - 1, 2), rng=0)
    points = np.zeros((n, 2))
    half = np.arange(0, n - 1, 2).tolist()
    other = set(range(n)) - set(half)
    results = [fair(points) for _ in range(60)]
    assert all(rows.dtype == np.int64 and len(rows) == n // 2 for rows in results)
    for rows in results:
        assert rows.tolist() == half or set(rows.tolist()) <= other
    if n >= 2:
        kept = sum(rows.tolist() == half for rows in results)
        assert 18 <= kept <= 42


def test_symmetrize_is_a_sequence_of_coins():
    def coins(rng):
        fair = symmetrize(lambda x: [0], rng)
        return [int(fair(np.zeros(2))[0]) for _ in range(40)]

    assert coins(3) == coins(3)
    assert coins(3) != coins(4)
    assert 10 <= sum(coins(3)) <= 30
    generator = np.random.default_rng(3)
    assert coins(generator) == coins(3)
    assert coins(generator) != coins(3)  # the generator has moved on
    first, second = np.random.default_rng(3), np.random.default_rng(3)
    coins(first)
    second.integers(2**64, dtype=np.uint64)
    assert first.bit_generator.state == second.bit_generator.state


def test_symmetrize_is_unbiased():
    """Every row of an even number is kept half the time, whatever the halving prefers."""
    fair = symmetrize(every_other, rng=1)
    points, counts = np.random.default_rng(0).normal(size=(10, 1)), np.zeros(10)
    for _ in range(1000):
        counts[fair(points)] += 1
    assert np.max(np.abs(counts - 500)) < 5 * np.sqrt(250)


HALF = "^halve must return 2 distinct row numbers of 4"


@pytest.mark.parametrize(
    ("halve", "error", "message"),
    [
        (lambda x: [0], ValueError, HALF + "; got 1$"),
        (lambda x: [0, 1, 2], ValueError, HALF + "; got 3$"),
        (lambda x: [], ValueError, HALF + "; got 0$"),
        (lambda x: [0, 4], ValueError, HALF + ", from 0 to 3; got 0 to 4$"),
        (lambda x: [-1, 2], ValueError, HALF + ", from 0 to 3; got -1 to 2$"),
        (lambda x: [1, 1], ValueError, HALF + "; got repeats$"),
        (lambda x: [0.0, 1.0], TypeError, HALF + r", a sequence of integers; got dtype float64"),
        (lambda x: [True, False], TypeError, HALF + ", a sequence of integers; got dtype bool"),
        (lambda x: [[0, 1]], TypeError, HALF + r", .* got dtype int64, shape \(1, 2\)$"),
        (lambda x: None, TypeError, HALF + r", .* got dtype object, shape \(\)$"),
    ],
)
def test_a_halving_that_does_not_halve(halve, error, message):
    with pytest.raises(error, match=message):
        compress(np.arange(16), halve)
    fair = symmetrize(halve, rng=0)
    with pytest.raises(error, match=message):
        fair(np.arange(4))


@pytest.mark.parametrize(
    ("thin_", "error", "message"),
    [
        (lambda x: [], ValueError, "^thin must return distinct row numbers of 4; got 0$"),
        (lambda x: [0, 4], ValueError, "^thin must return .* of 4, from 0 to 3; got 0 to 4$"),
        (lambda x: [2, 2], ValueError, "^thin must return .*; got repeats$"),
        (lambda x: 1, TypeError, r"^thin must return .*; got dtype int64, shape \(\)$"),
        (lambda x: [0.5], TypeError, "^thin must return .*; got dtype float64, "),
    ],
)
def test_a_thinning_that_does_not_thin(thin_, error, message):
    with pytest.raises(error, match=message):
        compress(np.arange(16), lambda x: np.arange(len(x) // 2), thin_)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"^points must have shape \(n, ...\); got shape \(\)"):
        compress(3.0, every_other)
    with pytest.raises(ValueError, match=r"^points must have at least one point; got shape \(0,"):
        compress(np.empty((0, 2)), every_other)
    for g in (-1, 1.0, None):
        with pytest.raises(ValueError, match=f"^g must be an integer of at least 0; got {g}"):
            compress(np.arange(16), every_other, g=g)
    with pytest.raises((TypeError, ValueError), match="^rng must be None, a non-negative int"):
        symmetrize(every_other, rng="seed")


def test_errors_of_the_function_are_its_own():
    def halve(rows):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        compress(np.arange(16), halve)
