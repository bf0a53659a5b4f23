"""Kernels that `thin` takes: names, functions, Gram matrices, sums; values beyond the range."""

import math
import warnings

import numpy as np
import pytest
from numba import njit  # noqa: TID251
from numba.core.caching import NullCache
from points import X, assert_rows

from reference import kernels as reference_kernels
from thinformer import kernels, kh_compress, median_distance, mmd, thin
from thinformer.cpu import halve, jit
from thinformer.cpu.points import embed
from thinformer.kernels import phi
from thinformer.thinning.arguments import as_problem
from thinformer.thinning.methods import BLIND, METHODS


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.linear(1.0),
        kernels.polynomial(2),
        kernels.exponential(1.5),
        kernels.matern(1.0, nu=2.5),
        kernels.inverse_multiquadric(),
        kernels.rational_quadratic(1.0, 2.0),
        kernels.energy(),
        2.0 * kernels.gaussian(0.5) + kernels.laplace([1.0, 2.0]),
    ],
    ids=lambda kernel: kernel.name,
)
def test_every_kernel_is_thinned_well(kernel):
    errors = {
        method: np.mean([mmd(X, thin(X, 20, method=method, kernel=kernel, rng=seed), kernel=kernel)
                         for seed in range(3)])
        for method in ("compress++", "random")
    }  # fmt: skip
    assert errors["compress++"] < errors["random"] / 2


def test_a_gram_matrix_gives_the_rows_of_its_points():
    K = reference_kernels.gaussian(X, X)
    for method in METHODS:
        np.testing.assert_array_equal(
            thin(K, 15, kernel="precomputed", method=method, rng=0),
            thin(X, 15, bandwidth=1.0, method=method, rng=0),
        )


def test_a_plain_function_gives_the_rows_of_its_kernel():
    with pytest.warns(UserWarning, match="it is called 1275 times") as warned:
        rows = thin(X[:50], 9, kernel=lambda x, y: math.exp(-((x - y) @ (x - y)) / 2), rng=0)
    assert warned[0].filename == __file__
    np.testing.assert_array_equal(rows, thin(X[:50], 9, kernel=kernels.gaussian(), rng=0))


def test_the_median_bandwidth_is_the_median_distance():
    for seed in range(3):
        np.testing.assert_array_equal(
            thin(X, 20, rng=seed), thin(X, 20, bandwidth=median_distance(X), rng=seed)
        )


def gram(kernel, points):
    """The Gram matrix, by the compiled sums."""
    problem, every = as_problem(points, kernel), np.arange(len(points))
    return np.array([embed(problem, every, every[i : i + 1], np.ones(1)) for i in every])


@pytest.mark.parametrize(
    "kernel",
    [
        kernels.gaussian() + kernels.exponential(2.0),
        kernels.exponential([2.0, 3.0]),
        4.0 * kernels.linear(1.0) + 0.5 * kernels.matern([1.0, 2.0], 2.5),
        sum([kernels.energy(), 3.0 * kernels.laplace()]),
    ],
    ids=["sum with exponential", "exponential by dimension", "linear and matern", "energy"],
)
def test_a_kernel_is_its_gram_matrix(kernel):
    """Whatever it is shifted or scaled by inside: the same rows as from its own values."""
    points = 2 * X[:200, :2]
    K = gram(kernel, points)
    for method in ("kernel-thinning", "halving"):
        rows = thin(points, 20, kernel=kernel, method=method, rng=0)
        np.testing.assert_array_equal(rows, thin(K, 20, kernel="precomputed", method=method, rng=0))


def test_a_factor_changes_the_mmd_and_not_the_rows():
    def k(x, y):
        return math.exp(-((x - y) ** 2).sum())

    few, plain = X[:40, :2], kernels.pairwise(k)
    for kernel in (kernels.gaussian(), plain):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            once, more = (mmd(few, [0, 1, 2], kernel=c * kernel) for c in (1.0, 9.0))
        assert more == pytest.approx(3 * once)
    rows = thin(few, 5, kernel=1e5 * kernels.gaussian(), rng=0)
    np.testing.assert_array_equal(rows, thin(few, 5, kernel=kernels.gaussian(), rng=0))


OVERFLOWING = [
    (kernels.linear(), 1e30, "f4", "^kernel linear must have finite values"),
    (kernels.polynomial(), 1e120, "f8", "^kernel polynomial must have finite values"),
    (kernels.exponential(), 1e30, "f4", "^kernel exponential must have finite values"),
    (kernels.matern(), 1e30, "f4", "^kernel matern overflows"),
    (kernels.energy(), 1e160, "f8", "^kernel energy overflows"),
    (1e300 * kernels.gaussian(), 1.0, "f4", "^kernel gaussian has parameters beyond the range"),
    (1e-300 * kernels.gaussian(), 1.0, "f4", "^kernel gaussian has parameters beyond the range"),
    (kernels.stein(X * 1e39), 1.0, "f4", "^scores must be finite"),
    (kernels.stein(X, 1e-30), 1.0, "f4", "^kernel stein has parameters beyond the range"),
    (kernels.gaussian() + kernels.exponential(0.01), 1.0, "f8", "^kernel exponential overflows"),
]


@pytest.mark.parametrize(("kernel", "factor", "dtype", "message"), OVERFLOWING)
def test_values_beyond_the_range_are_an_error(kernel, factor, dtype, message):
    """No arbitrary rows, and no NaN."""
    points = (X * factor).astype(dtype)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match=message):
        thin(points, 5, kernel=kernel, rng=0)


def test_a_function_that_fails_for_some_points():
    bad = X[5, 0]

    def k(x, y):
        return math.nan if bad in (x[0], y[0]) else math.exp(-((x - y) ** 2).sum())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="^kernel must return finite numbers; for some of"):
            thin(X[:100], 5, kernel=k)


@pytest.mark.slow
def test_functions_are_tried_in_the_dtype_of_the_points():
    """A cosine in float32 is symmetric to the digits it has."""

    @njit
    def cosine(product, a, b):
        return product / np.sqrt(a) / np.sqrt(b)

    points = X.astype("f4")
    kept = kh_compress(points, g=1, kernel=kernels.of_products(cosine), rng=0)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_array_equal(kept, kh_compress(unit, g=1, kernel="linear", rng=0))


@pytest.mark.parametrize("method", BLIND)
def test_methods_that_do_not_look_call_no_kernel(method):
    def k(x, y):
        raise AssertionError

    assert_rows(thin(X, 5, kernel=k, method=method, rng=0), 300, 5, True)
    assert_rows(thin(X, 300, kernel=k, rng=0), 300, 300, True)


def test_kernels_that_kh_compress_does_not_take():
    plain = kernels.pairwise(lambda x, y: 1.0)
    with pytest.raises(TypeError, match="^kernel must be compiled by numba.njit here"):
        kh_compress(X, kernel=plain)
    table = kernels.Kernel("t", phi.TABLE, companion=np.eye(300))
    with pytest.raises(ValueError, match="^kernel precomputed must be a matrix of the 300 points"):
        kh_compress(np.stack([X, X]), kernel=table)
    with pytest.raises(ValueError, match="^points must be finite"):
        kh_compress(X * np.nan, kernel="sobolev")


@pytest.mark.slow
def test_machine_code_for_a_function_is_not_stored():
    """No other process could use it."""

    @njit
    def k(x, y):
        return np.exp(-np.abs(x - y).sum())

    kh_compress(X, g=1, rng=0)  # which calls this one loop alone, and compiles no other with k
    stored, twin = halve.halve_buckets, jit.uncached(halve.halve_buckets)
    before = len(stored.signatures), len(twin.signatures)
    kh_compress(X, kernel=kernels.pairwise(k), g=1, rng=0)
    assert (len(stored.signatures), len(twin.signatures)) == (before[0], before[1] + 1)
    assert isinstance(twin._cache, NullCache)
