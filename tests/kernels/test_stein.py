"""Bandwidths of a Stein kernel: one for each column, and the median distance of the points."""

import numpy as np
import pytest
from scipy import stats

from reference import kernels as reference_kernels
from thinformer import kernels, kh_compress, median_distance, mmd, thin
from thinformer.cpu.run import embed
from thinformer.thinning.arguments import as_problem, resolve

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


def test_bandwidths_out_of_range():
    with pytest.raises(ValueError, match="^bandwidth must be .* or 'median'; got 'scott'$"):
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
