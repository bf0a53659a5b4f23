"""`thin`, `mmd` and `compare` of arrays that are on a GPU: the answers are those of the CPU."""

import math

import numpy as np
import pytest
from numba import njit  # noqa: TID251
from simulator import THREADS, OnGpu, host

from thinformer import (
    compare,
    error_curve,
    fit_weights,
    kernels,
    kh_compress,
    median_distance,
    mmd,
    mmd2_unbiased,
    thin,
)
from thinformer.cuda import sums
from thinformer.kernels import energy, exponential, gaussian, matern, polynomial, sobolev, stein

SUM = gaussian([0.5, 1]) + 0.3 * polynomial(2) + 2 * sobolev() + 0.1 * exponential(3)


@pytest.fixture(autouse=True)
def few_threads(monkeypatch, arrays_on_the_simulator):
    monkeypatch.setattr(sums, "THREADS", THREADS)


def unit_points(n=40, dim=2, dtype=np.float64):
    return np.random.default_rng(0).random((n, dim)).astype(dtype)


@njit
def of_difference(difference):
    return math.exp(-abs(difference))


@njit
def laplace_of_columns(x, y):
    value = 1.0
    for j in range(x.size):
        value *= of_difference(x[j] - y[j])
    return value


@njit
def cubic(product, x_norm, y_norm):
    return (1 + product) ** 3 + 0 * x_norm * y_norm


KERNELS = {
    "gaussian": "gaussian",
    "sum": SUM,
    "exponential": exponential([0.3, 2]),
    "matern": matern(0.4, nu=2.5),
    "sobolev": "sobolev",
    "a function": laplace_of_columns,
    "of products": kernels.of_products(cubic),
}


RUN = "gaussian", "exponential", "matern", "a function"


@pytest.mark.parametrize(
    "name",
    [name if name in RUN else pytest.param(name, marks=pytest.mark.nightly) for name in KERNELS],
)
def test_kernels(name):
    points = unit_points()
    options = {"kernel": KERNELS[name], "g": 1, "rng": 0}
    expected = thin(points, 5, **options)
    np.testing.assert_array_equal(thin(points, 5, device="cuda", **options), expected)
    rows = thin(OnGpu(points), 5, **options)
    np.testing.assert_array_equal(host(rows), expected)
    del options["g"]
    expected = mmd(points, expected, **options)
    assert mmd(OnGpu(points), rows, **options) == pytest.approx(expected, rel=1e-9)
    assert expected > 1e-4


@pytest.mark.parametrize("method", ["kernel-thinning", "greedy", "kh-compress", "standard"])
def test_layouts_and_methods(method):
    """Strides of any sign, and float16, which is computed in float32; results stay there."""
    wide = np.random.default_rng(0).random((80, 6))
    for points in (wide[::-2, 1:3], wide[:40, :2].astype(np.float16)):
        expected, weights = thin(points, 5, method=method, rng=0, return_weights=True)
        found, of_rows = thin(OnGpu(points), 5, method=method, rng=0, return_weights=True)
        np.testing.assert_array_equal(host(found), expected)
        np.testing.assert_allclose(host(of_rows), weights, atol=1e-6)


@pytest.mark.parametrize("target", ["auto", "sample"])
def test_scores(target):
    points = unit_points(dtype=np.float32)[::-1]
    kernel = stein(-(points - 0.5), "median")
    options = {"kernel": kernel, "rng": 0, "target": target}
    expected = thin(points, 5, g=1, **options)
    rows = thin(OnGpu(points), 5, g=1, **options)
    np.testing.assert_array_equal(host(rows), expected)
    for size in (rows, expected):
        value = mmd(OnGpu(points), size, **options)
        assert value == pytest.approx(mmd(points, expected, **options), rel=1e-9)
    with pytest.warns(UserWarning, match="scores point away from the mass"):
        thin(OnGpu(points), 5, kernel=stein(points - 0.5), method="greedy")
    with pytest.raises(ValueError, match=r"scores must have the shape of the points \(39, 2\)"):
        thin(OnGpu(points[:39]), 5, kernel=kernel, bandwidth="median")


def test_gram_matrices():
    x = unit_points()[:, 0]
    K = np.exp(-np.abs(np.subtract.outer(x, x)))
    expected = thin(K, 5, kernel="precomputed", g=1, rng=0)
    found = thin(OnGpu(K), 5, kernel="precomputed", g=1, rng=0)
    np.testing.assert_array_equal(host(found), expected)
    skew = K + np.triu(np.full((40, 40), 1e-6), 1)
    with pytest.raises(ValueError, match="points must be symmetric"):
        thin(OnGpu(skew), 5, kernel="precomputed")
    with pytest.raises(ValueError, match=r"must be a Gram matrix \(n, n\)"):
        thin(OnGpu(K[:30]), 5, kernel="precomputed")


def test_kernels_of_kh_compress():
    """What the CPU learns from all points, it learns here from a few that are extreme."""
    stack = np.random.default_rng(0).random((2, 24, 2))
    for kernel in (SUM, sobolev(2), exponential([0.3, 2]), energy() + matern(0.5)):
        expected = kh_compress(stack, size=6, kernel=kernel, rng=0)
        np.testing.assert_array_equal(
            host(kh_compress(OnGpu(stack), size=6, kernel=kernel, rng=0)), expected
        )


def test_sizes_and_weights():
    points = unit_points(64)
    there = OnGpu(points)
    options = {"method": "kh-compress", "rng": 0}
    expected = error_curve(points, [4, 16], **options)
    np.testing.assert_allclose(error_curve(there, [4, 16], **options).mmd, expected.mmd, rtol=1e-9)
    expected = thin(points, "auto", ess=20, **options)
    np.testing.assert_array_equal(host(thin(there, "auto", ess=20, **options)), expected)
    assert median_distance(there) == median_distance(points)
    weights = np.arange(64) / 10
    expected = fit_weights(points, [1, 9, 30], weights=weights)
    found = fit_weights(there, OnGpu(np.array([1, 9, 30])), weights=OnGpu(weights))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_mmd_and_compare():
    """In float64 whatever the points are; a coreset may have points of its own."""
    points = unit_points(dtype=np.float32)
    rows = np.array([3, 30, 17])
    few = points[:7] / 2
    for coreset, there in ((rows, rows), (rows, OnGpu(rows)), (few, OnGpu(few))):
        expected = mmd(points, coreset)
        assert mmd(OnGpu(points), there) == pytest.approx(expected, rel=1e-9)
    table = compare(points, {"a": rows, "b": (rows, [0.2, 0.2, 0.6])})
    found = compare(OnGpu(points), {"a": OnGpu(rows), "b": (OnGpu(rows), [0.2, 0.2, 0.6])})
    for one, other in zip(table, found, strict=True):
        assert one.columns == other.columns
        np.testing.assert_allclose(other[1:6], one[1:6], rtol=1e-9)


def test_bad_points():
    points = unit_points()
    bad = points.copy()
    bad[17, 1] = np.nan
    far = np.float32([[3e19, 0], [0, 0], [1, 1]])
    for error, message, call in (
        (ValueError, "points must be finite", lambda: thin(OnGpu(bad), 5)),
        (ValueError, "points must be finite", lambda: thin(OnGpu(bad), 5, method="standard")),
        (ValueError, "kernel matern overflows", lambda: thin(OnGpu(far), 2, kernel=matern())),
        (ValueError, r"points must lie in \[0, 1\] for kernel sobolev; got 0",
         lambda: thin(OnGpu(3 * points), 5, kernel="sobolev")),
        (ValueError, "exponential overflows on these points",
         lambda: kh_compress(OnGpu(99 * points), kernel=exponential() + gaussian())),
        (ValueError, r"points must have shape \(n, d\)", lambda: thin(OnGpu(points[:, 0]), 5)),
        (ValueError, "bandwidth must have one number for each of 2",
         lambda: thin(OnGpu(points), 5, bandwidth=[1.0, 2, 3])),
        (TypeError, "points must be float16, float32 or float64; got '<i8'",
         lambda: thin(OnGpu(np.arange(8).reshape(4, 2)), 2)),
        (TypeError, 'points must be in the CPU\'s memory for device="cpu"',
         lambda: thin(OnGpu(points), 5, device="cpu")),
        (NotImplementedError, "kernels without labels; got gaussian with labels",
         lambda: thin(OnGpu(points), 5, kernel=kernels.with_labels(gaussian(), np.ones(40)))),
        (NotImplementedError, "standardize must be 'auto' or False for points on a GPU",
         lambda: thin(OnGpu(points), 5, standardize="scale")),
        (NotImplementedError, "bandwidth must not be 'covariance' for points on a GPU",
         lambda: thin(OnGpu(points), 5, kernel=stein(-points, "covariance"))),
        (NotImplementedError, "compiled by numba.njit for points on a GPU",
         lambda: thin(OnGpu(points), 5, kernel=laplace_of_columns.py_func)),
        (NotImplementedError, "float32 or float64 for a function of your own",
         lambda: thin(OnGpu(points.astype("f2")), 5, kernel=laplace_of_columns)),
        (NotImplementedError, "x must be in the CPU's memory here; thin, mmd and compare take",
         lambda: mmd2_unbiased(OnGpu(points), OnGpu(points))),
        (ValueError, "points, coreset must be in one memory; got points on a GPU",
         lambda: mmd(OnGpu(points), points)),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    with pytest.warns(UserWarning, match="points have columns on unlike scales"):
        thin(OnGpu(points * [1, 100]), 5, method="greedy")
