"""`thin` returns what the specification returns, given the same draws."""

from itertools import pairwise

import numpy as np
import pytest
from specified import Specified

from reference import kernels as reference_kernels
from reference.compress import bucket_bounds, kh_compress
from reference.thinning import (
    compress,
    compress_plus_plus,
    kt_compress_levels,
    kt_halving,
    kt_swap,
)
from thinformer import compress_schedule, kernels, make_draws, thin
from thinformer.halving.steps import adaptive_factor, adaptive_threshold, next_variance

TIE = 1e-12
KERNELS = {
    "gaussian": (kernels.gaussian(0.8), lambda x, y: reference_kernels.gaussian(x, y, 0.8)),
    "matern": (kernels.matern(1.3, 2.5), lambda x, y: reference_kernels.matern(x, y, 1.3, 2.5)),
    "energy": (kernels.energy(), reference_kernels.energy),
    "exponential": (
        kernels.exponential(3.0),
        lambda x, y: reference_kernels.exponential(x, y, 3.0),
    ),
    "sum": (
        kernels.gaussian(0.5) + 2.0 * kernels.laplace(),
        lambda x, y: reference_kernels.gaussian(x, y, 0.5) + 2 * reference_kernels.laplace(x, y),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("n", "size"), [(64, 8), (100, 7), (37, 30), (9, 1), (256, 16)])
def test_kernel_thinning(name, n, size):
    kernel, gram = KERNELS[name]
    decided = 0
    for seed in range(4):
        points = np.random.default_rng(seed).standard_normal((n, 2))
        specified = Specified(points, gram, seed)
        every = np.arange(n)
        expected = specified.kernel_thinning(every, size, 0.5, every, every)
        if min(specified.margins) < TIE:
            continue
        decided += 1
        kept = thin(points, size, kernel=kernel, method="kernel-thinning", rng=seed)
        np.testing.assert_array_equal(kept, expected)
    assert decided >= 3


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("n", "size", "g"), [(256, 8, 2), (1000, 10, 1), (300, 5, 0), (1024, 16, 4)]
)
def test_compress_plus_plus(name, n, size, g):
    kernel, gram = KERNELS[name]
    decided = 0
    for seed in range(3):
        points = np.random.default_rng(seed).standard_normal((n, 2))
        specified = Specified(points, gram, seed)
        expected = specified.compress_plus_plus(size, g, 0.5)
        if min(specified.margins) < TIE:
            continue
        decided += 1
        np.testing.assert_array_equal(thin(points, size, kernel=kernel, g=g, rng=seed), expected)
    assert decided >= 2


def test_scalar_steps_are_those_of_the_specification():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((40, 2))
    K = reference_kernels.gaussian(points, points)
    _, trace = kt_halving(K, 0.3, rng.uniform(-1, 1, 20))
    variance = 0.0
    for b, a in zip(trace.b, trace.a, strict=True):
        assert adaptive_threshold(b, variance, adaptive_factor(40, 0.3)) == pytest.approx(
            a, rel=1e-14
        )
        variance = next_variance(variance, b, a)
    assert next_variance(0.0, 2.0, 4.0) == 4.0
    assert next_variance(4.0, 0.0, 0.0) == 4.0


def test_variance_is_bounded():
    """sigma^2 <= b_max^2 (1/2 + L)^2 / (2 L) with L = log(2 S / delta), the bound of KH."""
    rng = np.random.default_rng(0)
    factor, log = adaptive_factor(1000, 0.5), np.log(2 * 1000 / 0.5)
    for _ in range(20):
        variance = 0.0
        for b in rng.random(500) ** rng.integers(1, 5):
            variance = next_variance(variance, b, adaptive_threshold(b, variance, factor))
        assert 0 < variance <= (0.5 + log) ** 2 / (2 * log)


def test_the_tree_unrolled_is_the_recursive_one():
    """Compress as the paper writes it and as rounds of buckets, for a halving without draws."""

    def halve(rows):
        return rows[np.argsort(rows % 7, kind="stable")[: len(rows) // 2]]

    n, g = 4**4, 1
    rounds = compress_schedule(n, 2**g * 16).rounds
    rows = np.arange(n)
    for pairs, buckets, _ in rounds:
        bounds = 2 * np.array(bucket_bounds(pairs, buckets))
        rows = np.concatenate([halve(rows[a:b]) for a, b in pairwise(bounds)])
    np.testing.assert_array_equal(rows, compress(halve, np.arange(n), g))
    thinned = compress_plus_plus(halve, lambda r: r[::2], np.arange(n), g)
    np.testing.assert_array_equal(thinned, rows[::2])


def test_swapping_never_raises_the_error():
    """One pass is the paper's; more never hurt, and each lowers the MMD or stops."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((80, 2))
    K = reference_kernels.gaussian(points, points)
    mean = K.mean(axis=1)
    start = rng.choice(80, (1, 8), replace=False)

    def error(coreset):
        return K[np.ix_(coreset, coreset)].mean() - 2 * mean[coreset].mean()

    errors = [error(start[0])]
    errors += [error(kt_swap(K, mean, start, passes=passes)[0]) for passes in range(1, 8)]
    assert np.all(np.diff(errors) <= 0)
    assert errors[1] < errors[0]


def test_kh_compress_takes_another_halving():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((64, 2))
    schedule = compress_schedule(64, 16)
    draws = make_draws(schedule, 1)

    def gram(x):
        return reference_kernels.gaussian(x, x)

    arguments = (gram, points, schedule.rounds, draws.uniforms, draws.coins)
    levels, _ = kt_compress_levels(lambda rows: gram(points[rows]), np.arange(64), *arguments[2:])
    kept, _ = kh_compress(*arguments, halving=kt_halving)
    np.testing.assert_array_equal(levels[-1], kept)
