"""Kernels with labels: their values, their scale, what thins with them, and what they refuse."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics.pairwise import rbf_kernel
from specified import Specified

from reference import kernels as reference_kernels
from thinformer import (
    KernelThinner,
    compare,
    error_curve,
    kernels,
    kh_compress,
    median_distance,
    mmd,
    mmd2_unbiased,
    thin,
)
from thinformer.cpu.points import diagonal, embed
from thinformer.thinning.arguments import as_problem, resolve

RNG = np.random.default_rng(5)
N = 70  # more than two panels
X = RNG.uniform(size=(N, 3))  # in the unit cube, for sobolev
Y = RNG.normal(size=(N, 2))
SCORES = RNG.normal(size=X.shape)
KERNELS = {
    "gaussian": kernels.gaussian(),
    "linear": kernels.linear(),
    "exponential": kernels.exponential(),
    "sobolev": kernels.sobolev(),
    "matern": kernels.matern(),
}
PRECISION = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)], ids=["float64", "float32"]
)
# compiled code has no branch on the dtype, and takes 5 s to compile for these
SINGLE = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(np.float64, 1e-12, id="float64"),
        pytest.param(np.float32, 2e-5, id="float32", marks=pytest.mark.nightly),
    ],
)
NUMBERS = [(1.0, 0.0), (0.0, 1.0), (0.5, 0.25), (0.0, 0.0)]


def gram(kernel, points=X, dtype=np.float64):
    """The Gram matrix of some points, each entry by the loop that sums kernel values."""
    problem = as_problem(points.astype(dtype, copy=False), kernel)
    every = np.arange(len(points))
    columns = [embed(problem, every, every[j : j + 1], np.ones(1)) for j in every]
    np.testing.assert_array_equal(diagonal(problem, every), np.diagonal(columns))
    np.testing.assert_array_equal(columns, np.transpose(columns))
    return np.column_stack(columns)


def assert_close(got, expected, tolerance):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@SINGLE
@pytest.mark.parametrize(("constant", "squared"), NUMBERS)
@pytest.mark.parametrize("name", KERNELS)
def test_compiled_values_are_the_formula(name, constant, squared, dtype, tolerance):
    x, y = (array.astype(dtype).astype(np.float64) for array in (X, Y))
    kernel = kernels.with_labels(KERNELS[name], y, constant=constant, squared=squared)
    K = getattr(reference_kernels, name)(x, x)
    expected = reference_kernels.with_labels(K, y, y, constant, squared)
    assert_close(gram(kernel, x, dtype), expected, tolerance)


def test_the_published_kernels():
    """Of Nadaraya-Watson and of ridge regression, for labels of one column."""
    y, K = Y[:, 0], rbf_kernel(X, gamma=0.5)
    of_means = gram(kernels.with_labels(kernels.gaussian(), y))
    assert_close(of_means, K * (1 + np.outer(y, y)), 1e-12)
    of_ridge = gram(kernels.with_labels(kernels.gaussian(), y, constant=0, squared=1))
    assert_close(of_ridge, K**2 + K * np.outer(y, y), 1e-12)


@SINGLE
def test_sums_and_weights(dtype, tolerance):
    both = 2.0 * kernels.gaussian() + kernels.sobolev() + kernels.linear(1.0)
    K = 2 * reference_kernels.gaussian(X, X) + reference_kernels.sobolev(X, X) + X @ X.T + 1
    kernel = kernels.with_labels(both, Y, squared=0.5)
    expected = reference_kernels.with_labels(K, Y, Y, 1.0, 0.5)
    assert_close(gram(kernel, dtype=dtype), expected, tolerance)
    assert_close(gram(3.0 * kernel, dtype=dtype), 3 * expected, tolerance)
    assert_close(gram(kernels.with_labels(3.0 * both, Y), dtype=dtype), 3 * K * (1 + Y @ Y.T), 2e-5)
    assert kernel.labels.squared == 0.5  # not changed in place


@SINGLE
@pytest.mark.parametrize("columns", [1, 2, 3, 5])
def test_scores_and_labels(columns, dtype, tolerance):
    """A Stein kernel has its scores between the points and the labels."""
    x, y, scores = (
        array.astype(dtype).astype(np.float64)
        for array in (X, RNG.normal(size=(N, columns)), SCORES)
    )
    K = reference_kernels.stein(x, x, scores, scores, 0.8)
    kernel = kernels.with_labels(kernels.stein(scores, 0.8), y, constant=0.5)
    expected = reference_kernels.with_labels(K, y, y, constant=0.5)
    assert_close(gram(kernel, x, dtype), expected, tolerance)


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_small_integers_are_exact(n, d, e, seed):
    """In any shape, bit for bit."""
    rng = np.random.default_rng(seed)
    x, y = rng.integers(-2, 3, (n, d)).astype(float), rng.integers(-2, 3, (n, e))
    K = x @ x.T
    got = gram(kernels.with_labels("linear", y, constant=2, squared=3), x)
    np.testing.assert_array_equal(got, K * (3 * K + 2 + y @ y.T))


@pytest.mark.parametrize("labels", [Y[:, 0] > 0, (Y[:, 0] > 0).astype(np.int8)], ids=str)
def test_labels_of_classes(labels):
    K = reference_kernels.gaussian(X, X)
    expected = K * (1 + np.outer(labels, labels))
    assert_close(gram(kernels.with_labels(kernels.gaussian(), labels)), expected, 1e-12)


def test_rows_are_those_of_the_specification():
    x, y = RNG.normal(size=(500, 2)), RNG.normal(size=(500, 1))

    def of_rows(a, b):
        K = reference_kernels.gaussian(a[:, :2], b[:, :2], 1.5)
        return reference_kernels.with_labels(K, a[:, 2:], b[:, 2:], 0.0, 1.0)

    specified = Specified(np.hstack([x, y]), of_rows, 3)
    expected = specified.compress_plus_plus(20, 1, 0.5)
    assert min(specified.margins) > 1e-10
    kernel = kernels.with_labels(kernels.gaussian(1.5), y, constant=0, squared=1)
    np.testing.assert_array_equal(thin(x, 20, kernel=kernel, g=1, rng=3), expected)


def test_a_kernel_of_labels_that_do_not_differ_chooses_the_same_rows():
    """It is the kernel times a number, which the halvings do not see."""
    x = RNG.normal(size=(600, 2))
    plain = thin(x, 30, kernel=kernels.matern(), rng=2)
    kernel = kernels.with_labels(kernels.matern(), np.ones(600), constant=1.0)
    np.testing.assert_array_equal(thin(x, 30, kernel=kernel, rng=2), plain)
    none = kh_compress(x, kernel=kernels.matern(), rng=2)
    kernel = kernels.with_labels(kernels.matern(), np.ones(600), constant=1.0)
    np.testing.assert_array_equal(kh_compress(x, kernel=kernel, rng=2), none)


def test_labels_are_represented():
    """A coreset of points and labels has a smaller error in both than one of the points alone."""
    x = RNG.normal(size=(2000, 1))
    y = np.sin(3 * x[:, 0]) + RNG.normal(size=2000)
    kernel = kernels.with_labels(kernels.gaussian(1.0), y)
    rows = thin(x, 40, kernel=kernel, rng=0)
    of_points = thin(x, 40, kernel=kernels.gaussian(1.0), rng=0)
    assert mmd(x, rows, kernel=kernel) < mmd(x, of_points, kernel=kernel) / 3
    share = np.full(2000, 1 / 2000)
    share[rows] -= 1 / 40
    K = reference_kernels.gaussian(x, x) * (1 + np.outer(y, y))
    assert mmd(x, rows, kernel=kernel) == pytest.approx(np.sqrt(share @ K @ share), rel=1e-9)
    table = compare(x, {"both": rows}, kernel=kernel)
    assert table[0].mmd == mmd(x, rows, kernel=kernel)
    curve = error_curve(x, [40], kernel=kernel, rng=0)
    assert curve.mmd[0] == pytest.approx(table[0].mmd, rel=1e-9)
    weights = np.arange(2000) < 1500
    few = thin(x, 40, kernel=kernel, weights=weights, rng=0)
    assert few.max() < 1500


def test_two_samples_of_points_and_labels():
    """Labels of x, then of y."""
    kernel = kernels.with_labels(kernels.gaussian(), Y[:, 0])
    K = reference_kernels.gaussian(X, X) * (1 + np.outer(Y[:, 0], Y[:, 0]))
    a, b = np.arange(40), np.arange(40, N)
    expected = -2 * K[np.ix_(a, b)].mean()
    for rows in (a, b):
        own = K[np.ix_(rows, rows)]
        expected += (own.sum() - np.trace(own)) / (len(rows) * (len(rows) - 1))
    assert mmd2_unbiased(X[a], X[b], kernel=kernel) == pytest.approx(expected, rel=1e-12)


# the bandwidth and the units


def test_a_name_takes_the_median_distance():
    x, y = RNG.normal(size=(1500, 2)), RNG.normal(size=1500)
    named = 2.0 * kernels.with_labels("matern", y, squared=3.0)
    number = 2.0 * kernels.with_labels(kernels.matern(median_distance(x, 3)), y, squared=3.0)
    resolved = resolve(named, "median", x, 3)
    assert resolved.scale == number.scale
    assert (resolved.weight, resolved.labels.squared) == (2.0, 1.5)
    rows = np.arange(30)
    assert mmd(x, rows, kernel=named, rng=3) == mmd(x, rows, kernel=number, rng=3)
    stein = kernels.with_labels(kernels.stein(-x, "median"), y)
    resolved = resolve(stein, "median", x, 3)
    assert resolved.scale == 1 / median_distance(x, 3)
    assert resolved.labels is stein.labels
    with pytest.raises(ValueError, match=r"^kernel matern has bandwidth='median', .*a number"):
        kh_compress(x, kernel=named)
    with pytest.raises(ValueError, match="^bandwidth is part of the kernel 'matern'"):
        thin(x, 5, kernel=named, bandwidth=2.0)


def test_columns_are_standardised_as_without_labels_and_labels_are_not():
    x, y = X * [1.0, 30.0, 1.0], 100 * Y[:, 0]
    u = np.subtract(*np.quantile(x, [0.75, 0.25], axis=0)) / 1.3489795003921634
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    rows = np.arange(0, N, 9)
    named = kernels.with_labels("gaussian", y)
    expected = mmd(x / u, rows, kernel=named)
    assert mmd(frame, rows, kernel=named) == pytest.approx(expected, rel=1e-12)
    assert mmd(x, rows, kernel=named, standardize="scale") == pytest.approx(expected, rel=1e-12)
    with pytest.warns(UserWarning, match="^points have columns on unlike scales"):
        mmd(x, rows, kernel=named)
    with warnings.catch_warnings():  # a bandwidth that is given has the units of the points
        warnings.simplefilter("error")
        number = kernels.with_labels(kernels.gaussian(2.0), y)
        assert mmd(frame, rows, kernel=number) == mmd(x, rows, kernel=number)


def test_the_estimator_takes_such_a_kernel():
    kernel = kernels.with_labels("gaussian", Y)
    rows = KernelThinner(10, kernel=kernel, random_state=0).fit(X).coreset_indices_
    np.testing.assert_array_equal(rows, thin(X, 10, kernel=kernel, rng=0))


# Stein kernels without gradients of the density


def log_p(x):
    """A Gaussian with a skew, up to a constant."""
    return -0.5 * x**2 + np.log1p(np.exp(-(x**2))) - 0.1 * np.cos(x)


@PRECISION
def test_gradient_free_stein_is_the_formula(dtype, tolerance):
    points = X.astype(dtype).astype(np.float64)
    log_ratio = RNG.normal(size=N) + 500  # exp of which is beyond the range of float32
    kernel = kernels.gradient_free_stein(-points, log_ratio, 0.6)
    scaled = log_ratio - log_ratio.max()
    expected = reference_kernels.gradient_free_stein(
        points, points, -points, -points, scaled, scaled, 0.6
    )
    assert_close(gram(kernel, points, dtype), expected, tolerance)


@pytest.mark.filterwarnings("ignore:log_ratio has a range")
def test_the_mean_is_zero_under_the_density_without_gradients():
    """By the trapezoidal rule: under p, whose gradients are not in the kernel, and not under q."""
    x = np.linspace(-12, 12, 4001)
    p, q = np.exp(log_p(x)), stats.norm.pdf(x, 0.0, 1.2)
    p /= p.sum()
    kernel = kernels.gradient_free_stein(-x[:, None] / 1.2**2, np.log(q) - np.log(p), 1.0 / 0.8)
    problem = as_problem(x[:, None], kernel)
    at = np.array([1000, 1800, 2000, 2300])
    size = np.abs(embed(problem, at, np.arange(4001), p * (x > 0))).max()
    np.testing.assert_allclose(embed(problem, at, np.arange(4001), p), 0, atol=1e-11 * size)
    assert np.abs(embed(problem, at, np.arange(4001), q / q.sum())).max() > 1e-3 * size


def test_points_represent_the_density_without_gradients():
    """A sample of q, which is wider than p and off its centre, is thinned to points of p."""
    x = RNG.normal(0.3, 1.3, size=(2000, 1))
    log_ratio = (-0.5 * (x - 0.3) ** 2 / 1.3**2 + 0.5 * x**2)[:, 0]
    kernel = kernels.gradient_free_stein(-(x - 0.3) / 1.3**2, log_ratio, "median")
    rows = thin(x, 50, kernel=kernel, rng=0)
    np.testing.assert_array_equal(rows, thin(x, 50, kernel=kernel, rng=0, target="mean-zero"))
    assert abs(x[rows].mean()) < 0.05
    assert x[rows].std() == pytest.approx(1.0, abs=0.1)
    plain = thin(x, 50, kernel=kernel, rng=0, target="sample")
    assert mmd(x, rows, kernel=kernel) < mmd(x, plain, kernel=kernel) / 3
    K = gram(resolve(kernel, "median", x, 0), x)
    expected = math.sqrt(K[np.ix_(rows, rows)].mean())
    assert mmd(x, rows, kernel=kernel) == pytest.approx(expected, rel=1e-9)
    assert str(compare(x, {"a": rows}, kernel=kernel)).split()[2] == "KSD"
    labelled = kernels.with_labels(kernels.stein(-x, 1.0), x[:, 0])
    of_sample = thin(x, 20, kernel=labelled, rng=0)  # its mean is zero under no density
    np.testing.assert_array_equal(of_sample, thin(x, 20, kernel=labelled, rng=0, target="sample"))


def test_log_ratios():
    with pytest.warns(UserWarning, match="^log_ratio has a range of 10.1: the density of the"):
        kernels.gradient_free_stein(-X, np.linspace(0, 10.1, N))
    kernels.gradient_free_stein(-X, np.linspace(0, 9.9, N))
    for bad, message in [
        (np.ones(9), r"^log_ratio must have one number for each of 70 points; got shape \(9,\)"),
        (np.ones((N, 1)), r"^log_ratio must have one .*; got shape \(70, 1\)"),
        (np.full(N, -np.inf), "^log_ratio must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernels.gradient_free_stein(-X, bad)
    with pytest.raises(ValueError, match="^log_ratio must have at least one number"):
        kernels.gradient_free_stein(X[:0], [])


# what is refused


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (["a"] * N, TypeError, "^labels must be numbers, of classes one column .* got dtype <U1"),
        (Y * 1j, TypeError, "^labels must be numbers, .* got dtype complex128"),
        (Y[:, 0] * np.nan, ValueError, "^labels must be finite; it holds NaN"),
        (Y[None], ValueError, r"^labels must have shape \(n,\) or \(n, e\); got \(1, 70, 2\)"),
        (Y[:, :0], ValueError, r"^labels must have shape .*; got \(70, 0\)"),
        (1.0, ValueError, r"^labels must have shape .*; got \(\)"),
    ],
)
def test_labels_of_the_right_kind(labels, error, message):
    with pytest.raises(error, match=message):
        kernels.with_labels("gaussian", labels)


def test_kernels_that_take_no_labels():
    one_of_ours = "^kernel must be positive definite and one of thinformer.kernels, no function"
    for kernel in (
        "energy",
        kernels.gaussian() + kernels.energy(),
        kernels.pairwise(max),
        kernels.Kernel("precomputed", 14, companion=np.eye(N)),
    ):
        with pytest.raises(ValueError, match=one_of_ours):
            kernels.with_labels(kernel, Y)
    for kernel in ("precomputed", "gausian", max, kernels.matern):
        with pytest.raises(ValueError, match="^kernel must be a Kernel or one of energy, "):
            kernels.with_labels(kernel, Y)
    labelled = kernels.with_labels("gaussian", Y)
    with pytest.raises(ValueError, match="^kernel has labels already; give them all at once"):
        kernels.with_labels(labelled, Y)
    for a, b in [(labelled, kernels.gaussian()), (kernels.gaussian(), labelled)]:
        with pytest.raises(ValueError, match="^a sum takes no kernel with labels; use with_labels"):
            a + b
    for make in (kernels.with_labels, kernels.gradient_free_stein):
        with pytest.raises(ValueError, match=rf"\(call it: {make.__name__}\(\)\)$"):
            thin(X, 5, kernel=make)


@pytest.mark.parametrize("name", ["constant", "squared"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, "1", None, True])
def test_parameters_out_of_range(name, value):
    with pytest.raises(
        ValueError, match=f"^{name} must (be finite|not be negative); got {value!r}"
    ):
        kernels.with_labels("gaussian", Y, **{name: value})


def test_labels_of_other_points():
    kernel = kernels.with_labels(kernels.gaussian(), Y[:9])
    for call in (
        lambda: thin(X, 5, kernel=kernel),
        lambda: mmd(X, [1, 2], kernel=kernel),
        lambda: kh_compress(X, kernel=kernel),
        lambda: kh_compress(X.reshape(7, 10, 3), kernel=kernel),
    ):
        with pytest.raises(ValueError, match=r"^labels must have a row for each of the points \("):
            call()
    kernel = kernels.with_labels(kernels.gaussian(), Y)
    with pytest.raises(ValueError, match="^coreset must hold rows of points for kernel gaussian w"):
        mmd(X, X[:5], kernel=kernel)


def test_labels_beyond_the_range_of_the_dtype():
    for labels, numbers in ((1e300 * Y, {}), (Y, {"squared": 1e300})):
        kernel = kernels.with_labels(kernels.gaussian(), labels, **numbers)
        with pytest.raises(ValueError, match="^labels must be finite"):
            thin(X.astype(np.float32), 5, kernel=kernel)
    kernel = kernels.with_labels(kernels.gaussian(), 1e300 * Y)
    with pytest.raises(ValueError, match="^kernel gaussian must have finite values; k"):
        thin(X, 5, kernel=kernel)
    exponential = kernels.with_labels(kernels.exponential(0.01), Y)
    with pytest.raises(ValueError, match="^kernel exponential overflows on these points"):
        thin(X, 5, kernel=exponential)
