"""Bandwidths of a Stein kernel: one for each column, and those that are taken from the points."""

import numpy as np
import pytest
from scipy import stats

from reference import kernels as reference_kernels
from reference.greedy import greedy
from thinformer import compare, kernels, kh_compress, median_distance, mmd, thin
from thinformer.cpu.points import embed
from thinformer.thinning.arguments import as_problem, resolve
from thinformer.thinning.scales import deviations

RNG = np.random.default_rng(4)
X = RNG.normal(size=(70, 3)) * [0.1, 1.0, 30.0]
SCORES = RNG.normal(size=X.shape) / [0.1, 1.0, 30.0]
BANDWIDTHS = [[0.2, 0.7, 11.0], (3, 2, 1), np.array([5e-2, 1e2, 1.0])]


def gram(kernel, points=X, dtype=np.float64):
    problem = as_problem(points.astype(dtype), kernel)
    every = np.arange(len(points))
    return np.column_stack([embed(problem, every, every[j : j + 1], np.ones(1)) for j in every])


def by_differences(x, y, s, t, bandwidth):
    """Stein's operator on both arguments of the inverse multiquadric, with central differences."""

    def k(x, y):
        return (1 + np.sum(((x - y) / bandwidth) ** 2)) ** -0.5

    value = k(x, y) * (s @ t)
    for e in np.diag(1e-3 * bandwidth):
        h = e.sum()
        value += (k(x + e, y) - k(x - e, y)) / (2 * h) * (t @ e) / h
        value += (k(x, y + e) - k(x, y - e)) / (2 * h) * (s @ e) / h
        corners = k(x + e, y + e) - k(x + e, y - e) - k(x - e, y + e) + k(x - e, y - e)
        value += corners / (4 * h**2)
    return value


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
def test_a_bandwidth_for_each_column_by_differences(bandwidth):
    got = gram(kernels.stein(SCORES, bandwidth))
    for i, j in [(0, 1), (2, 2), (5, 60), (69, 3)]:
        expected = by_differences(X[i], X[j], SCORES[i], SCORES[j], np.array(bandwidth, float))
        assert got[i, j] == pytest.approx(expected, rel=5e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
def test_a_bandwidth_for_each_column_is_the_formula(bandwidth, dtype, tolerance):
    points, scores = (a.astype(dtype).astype(np.float64) for a in (X, SCORES))
    expected = reference_kernels.stein(points, points, scores, scores, bandwidth)
    got = gram(kernels.stein(scores, bandwidth), points, dtype)
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_equal_bandwidths_are_one():
    one, each = kernels.stein(SCORES, 0.7), kernels.stein(SCORES, [0.7] * 3)
    np.testing.assert_array_equal(gram(one), gram(each))


def test_the_mean_is_zero_with_a_bandwidth_for_each_column():
    """Under a Gaussian, by the trapezoidal rule, which is exact to rounding for such integrands."""
    deviation, ticks = np.array([1.0, 20.0]), np.linspace(-9, 9, 181)
    standard = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    weights = stats.norm.pdf(standard).prod(axis=1) * (ticks[1] - ticks[0]) ** 2
    kernel = kernels.stein(-standard / deviation, [1.5, 40.0])
    problem = as_problem(standard * deviation, kernel)
    at = np.array([0, 16000, 16380, 18000, 32760])
    np.testing.assert_allclose(embed(problem, at, np.arange(len(standard)), weights), 0, atol=1e-12)


def test_the_median_is_that_of_the_points():
    points, scores = RNG.normal(size=(1500, 2)), RNG.normal(size=(1500, 2))
    named = kernels.stein(scores, "median")
    number = kernels.stein(scores, median_distance(points, rng=3))
    resolved = resolve(2.0 * named, "median", points, 3)
    assert (resolved.scale, resolved.degree, resolved.weight) == (number.scale, number.degree, 2.0)
    rows = np.arange(30)
    values = [mmd(points, rows, kernel=k, target="mean-zero", rng=3) for k in (named, number)]
    assert values[0] == values[1] > 0
    assert resolve(kernels.stein(scores[:1], "median"), "median", points[:1], 0).scale == 1


def test_the_median_of_thin():
    points = RNG.normal(0.5, 1.5, size=(600, 2))
    settings = {"target": "mean-zero", "rng": 1}
    rows = thin(points, 20, kernel=kernels.stein(-points, "median"), **settings)
    # up to 1000 points, the median takes them all and draws nothing
    number = kernels.stein(-points, median_distance(points))
    np.testing.assert_array_equal(rows, thin(points, 20, kernel=number, **settings))


@pytest.mark.parametrize(("n", "least"), [(2, 2), (300, 300), (1500, 1000)])
def test_the_scaled_median(n, least):
    points = RNG.normal(size=(n, 2))
    resolved = resolve(2.0 * kernels.stein(points, "scaled median"), "median", points, 3)
    length = median_distance(points, rng=3) / np.sqrt(np.log(least))
    assert resolved.scale == pytest.approx(1 / length, rel=1e-15)
    assert resolved.weight == 2.0
    one = kernels.stein(points[:1], "scaled median")
    assert resolve(one, "median", points[:1], 0).scale == 1


def preconditioned(points, scores, matrix):
    """The Gram matrix with |x - y|^2 / l^2 replaced by the product with a matrix."""
    x, s = points[:, None] - points, scores[:, None] - scores
    q = 1 + np.einsum("abi,ij,abj->ab", x, matrix, x)
    fourth = np.einsum("abi,ij,abj->ab", x, matrix @ matrix, x)
    products = np.trace(matrix) + np.einsum("abi,ij,abj->ab", x, matrix, s)
    return q**-0.5 * (scores @ scores.T) + q**-1.5 * products - 3 * q**-2.5 * fourth


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("standardize", [False, "scale"])
def test_the_covariance_is_a_preconditioner(dtype, standardize):
    mixing = np.array([[1.0, 0.2, 0.0], [0.9, 0.3, 0.1], [0.0, 2.0, 1.0]])
    points = (RNG.normal(0.5, 1.5, size=(200, 3)) @ mixing + 100).astype(dtype)
    scores = RNG.normal(size=(200, 3)) - (points - 100)
    units = deviations(points) if standardize else np.ones(3)
    x, s = points.astype("f8") / units, scores * units
    K = 2 * preconditioned(x, s, np.linalg.inv(np.cov(x, rowvar=False)))
    kernel = 2.0 * kernels.stein(scores, "covariance")
    rows = np.arange(3, 200, 13)
    value = mmd(points, rows, kernel=kernel, standardize=standardize)
    assert value == pytest.approx(np.sqrt(K[np.ix_(rows, rows)].mean()), rel=1e-9)
    chosen, margin = greedy(K, np.zeros(200), 12)
    assert margin > 1e-6
    found = thin(points, 12, kernel=kernel, method="greedy", standardize=standardize)
    np.testing.assert_array_equal(found, np.sort(chosen))
    (row,) = compare(points, {"a": rows}, kernel=kernel, standardize=standardize)
    assert row.mmd == value
    assert row.energy == pytest.approx(
        compare(points, {"a": rows}, kernel=kernels.stein(scores), standardize=standardize)[
            0
        ].energy
    )


def test_a_covariance_without_an_inverse():
    Y = RNG.normal(size=(70, 3))
    for points in (np.repeat(Y[:, :1], 3, axis=1), Y[:3], Y[:1], np.c_[Y[:, :2], Y[:, 0] * 2]):
        with pytest.raises(ValueError, match="^bandwidth='covariance' needs points with a cov"):
            mmd(points, [0], kernel=kernels.stein(-points, "covariance"))
    with pytest.raises(ValueError, match="^kernel stein must have scores"):
        thin(Y, 3, kernel=kernels.stein(-Y[:, :2], "covariance"))
    with pytest.raises(ValueError, match="^points must be finite"):
        thin(Y * np.nan, 3, kernel=kernels.stein(-Y, "covariance"))
    with pytest.raises(ValueError, match=r"^kernel stein has bandwidth='covariance', .*a number"):
        kh_compress(Y, kernel=kernels.stein(-Y, "covariance"))


def test_bandwidths_out_of_range():
    with pytest.raises(ValueError, match="^bandwidth must be .*'median', .* or 'covariance'; got"):
        kernels.stein(SCORES, "scott")
    for bad in ([1.0, -1.0, 1.0], [1.0, 0.0, 1.0], np.nan):
        with pytest.raises(ValueError, match="^bandwidth must be positive and finite"):
            kernels.stein(SCORES, bad)
    with pytest.raises(ValueError, match="^bandwidth must have one number for each of 3 dim"):
        as_problem(X, kernels.stein(SCORES, [1.0, 2.0]))
    with pytest.raises(ValueError, match="^kernel stein has parameters beyond the range"):
        as_problem(X, kernels.stein(SCORES, 1e-200))
    with pytest.raises(ValueError, match=r"^kernel stein has bandwidth='median', .*a number"):
        kh_compress(X, kernel=kernels.stein(SCORES, "median"))
