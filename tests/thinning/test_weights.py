"""Weights of a coreset's rows: against other algorithms, and what holds for the best weights."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from points import X, assert_rows, mixture

from reference import kernels as formulas
from reference import weights as reference
from thinformer import compare, fit_weights, kernels, median_distance, mmd, thin
from thinformer.thinning.methods import METHODS
from thinformer.thinning.moments import column_errors
from thinformer.thinning.simplex import least_on_simplex

RNG = np.random.default_rng(1)
ROWS = np.sort(RNG.choice(300, 25, replace=False))
SHARE = RNG.uniform(size=300)
KERNELS = {
    "linear": (kernels.linear(1.0), {"constant": 1.0}),
    "polynomial": (kernels.polynomial(2), {"degree": 2}),
    "exponential": (kernels.exponential(2.0), {"bandwidth": 2.0}),
    "gaussian": (kernels.gaussian(0.7), {"bandwidth": 0.7}),
    "laplace": (kernels.laplace(0.7), {"bandwidth": 0.7}),
    "inverse_multiquadric": (kernels.inverse_multiquadric(0.7), {"bandwidth": 0.7}),
    "matern": (kernels.matern(0.7), {"bandwidth": 0.7}),
    "rational_quadratic": (kernels.rational_quadratic(0.7), {"bandwidth": 0.7}),
    "energy": (kernels.energy(), {}),
    "sobolev": (kernels.sobolev(), {}),
}
EACH_KERNEL = pytest.mark.parametrize("name", KERNELS)


def in_domain(name, points):
    return points % 1 if name == "sobolev" else points


def parts(name, points, rows, share=None):
    """The Gram matrix of rows, the mean embedding at them, and its squared norm."""
    formula, arguments = getattr(formulas, name), KERNELS[name][1]
    p = np.full(len(points), 1 / len(points)) if share is None else share / share.sum()
    y = points[rows]
    return (
        formula(y, y, **arguments),
        formula(y, points, **arguments) @ p,
        p @ formula(points, points, **arguments) @ p,
    )


def assert_on_simplex(weights, size):
    assert weights.dtype == np.float64
    assert weights.shape == (size,)
    assert weights.min() >= 0
    assert abs(weights.sum() - 1) < 1e-12


def gap(weights, K, m):
    """A bound of half of what the squared MMD is above the least one, in units of the kernel.

    It is 0 where the Karush-Kuhn-Tucker conditions hold: the gradient is the same on the support,
    and not smaller outside.
    """
    gradient = K @ weights - m
    return (weights @ gradient - gradient.min()) / (np.abs(K).max() or 1)


@EACH_KERNEL
@pytest.mark.parametrize("share", [None, SHARE], ids=["equal", "weighted"])
def test_the_simplex_against_least_squares(name, share):
    points = in_domain(name, X)
    K, m, square = parts(name, points, ROWS, share)
    got = fit_weights(points, ROWS, kernel=KERNELS[name][0], weights=share)
    assert_on_simplex(got, 25)
    assert gap(got, K, m) < 1e-13
    other = reference.on_simplex(K, m, square)
    least = reference.squared_mmd(other, K, m, square)
    assert abs(reference.squared_mmd(got, K, m, square) - least) < 1e-12 * np.abs(K).max()
    if name in ("gaussian", "laplace", "matern", "energy"):  # the weights are unique
        np.testing.assert_allclose(got, other, rtol=1e-5, atol=1e-7)


@given(st.data())
def test_conditions_of_the_least_value(data):
    n = data.draw(st.integers(1, 80), "n")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    points = rng.normal(size=(n, data.draw(st.integers(1, 4), "d")))
    rows = rng.integers(n, size=data.draw(st.integers(1, n), "size"))  # some of them twice
    name = data.draw(st.sampled_from(["gaussian", "laplace", "matern", "energy"]), "kernel")
    share = rng.uniform(size=n) if data.draw(st.booleans(), "weighted") else None
    K, m, square = parts(name, points, rows, share)
    options = {"kernel": KERNELS[name][0], "weights": share}
    weights = fit_weights(points, rows, **options)
    assert_on_simplex(weights, rows.size)
    assert gap(weights, K, m) < 1e-13
    affine = fit_weights(points, rows, constraint="affine", **options)
    assert abs(affine.sum() - 1) < 1e-12
    values = [
        reference.squared_mmd(w, K, m, square)
        for w in (affine, weights, np.full(rows.size, 1 / rows.size))
    ]
    assert values[1] <= values[2] + 1e-14
    assert values[0] <= values[1] * (1 + 1e-3) + 1e-5  # but for the nugget


@pytest.mark.parametrize("seed", range(8))
def test_a_few_rows_against_all_supports(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(30, 2))
    rows = rng.choice(30, 6, replace=False)
    K, m, _ = parts("gaussian", points, rows, share := rng.exponential(size=30) ** 3)
    got = fit_weights(points, rows, kernel=KERNELS["gaussian"][0], weights=share)
    expected = reference.by_enumeration(K, m)
    np.testing.assert_allclose(got, expected, atol=1e-9)
    np.testing.assert_array_equal(got == 0, expected == 0)


def test_two_rows():
    points = np.array([[0.0], [1.0], [3.0]])
    k = np.exp(-(np.subtract.outer(points[:, 0], points[:, 0]) ** 2) / 2)
    m = k[:2].mean(axis=1)
    first = (1 - k[0, 1] + m[0] - m[1]) / (2 - 2 * k[0, 1])
    for constraint in ("simplex", "affine"):
        got = fit_weights(points, [0, 1], bandwidth=1.0, constraint=constraint)
        np.testing.assert_allclose(got, [first, 1 - first], rtol=1e-5)
    right = {"bandwidth": 3.0, "weights": [0, 1, 3]}  # the mean is to the right of both rows
    np.testing.assert_array_equal(fit_weights(points, [0, 1], **right), [0, 1])
    assert fit_weights(points, [0, 1], constraint="affine", **right)[0] < -0.5


@pytest.mark.parametrize("name", ["gaussian", "laplace", "matern", "energy"])
def test_affine_weights_solve_the_bordered_system(name):
    rows = ROWS[:10]
    K, m, square = parts(name, X, rows, SHARE)
    got = fit_weights(X, rows, kernel=KERNELS[name][0], weights=SHARE, constraint="affine")
    expected = reference.of_sum_one(K, m)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    assert abs(got.sum() - 1) < 1e-12
    least = reference.squared_mmd(expected, K, m, square)
    assert least <= reference.squared_mmd(got, K, m, square) < least * (1 + 1e-6)


@pytest.mark.parametrize("constraint", ["simplex", "affine"])
@pytest.mark.parametrize("name", ["laplace", "energy"])
def test_all_points_have_their_own_weights(name, constraint):
    order = RNG.permutation(40)
    got = fit_weights(
        X[:40], order, kernel=KERNELS[name][0], weights=SHARE[:40], constraint=constraint
    )
    expected = SHARE[order] / SHARE[:40].sum()
    np.testing.assert_allclose(got, expected, atol=1e-8 if constraint == "simplex" else 1e-5)


@pytest.mark.parametrize("constraint", ["simplex", "affine"])
@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("method", METHODS)
def test_the_mmd_is_not_above_that_of_equal_weights(name, method, constraint):
    points = in_domain(name, X)
    kernel = KERNELS[name][0]
    rows, weights = thin(
        points, 20, kernel=kernel, method=method, rng=0, return_weights=constraint
    )  # fmt: skip
    assert_rows(rows, 300, 20)
    np.testing.assert_array_equal(rows, thin(points, 20, kernel=kernel, method=method, rng=0))
    equal = mmd(points, rows, kernel=kernel)
    rounding = 2e-8 * abs(points).max() ** 2
    weighted = mmd(points, rows, kernel=kernel, coreset_weights=weights)
    assert weighted <= equal + rounding
    if method == "random":
        assert weighted < equal


def test_many_rows_of_low_rank(monkeypatch):
    """The Gram matrix is singular to rounding, and most weights are 0."""
    factorised = []
    factorise = scipy.linalg.cho_factor

    def counted(*given, **options):
        factorised.append(given)
        return factorise(*given, **options)

    monkeypatch.setattr(scipy.linalg, "cho_factor", counted)
    points = mixture(1000)
    rows, weights = thin(points, 300, kernel=kernels.gaussian(2.0), rng=0, return_weights=True)
    k = formulas.gaussian(points[rows], points, 2.0)
    assert_on_simplex(weights, 300)
    assert gap(weights, k[:, rows], k.mean(axis=1)) < 3e-14
    assert 10 < np.count_nonzero(weights) < 150
    assert len(factorised) < 25


def test_stein():
    kernel, scores = kernels.stein(-X, 0.9), -X
    y = ROWS
    K = formulas.stein(X[y], X[y], scores[y], scores[y], 0.9)
    weights = fit_weights(X, y, kernel=kernel)
    assert gap(weights, K, np.zeros(25)) < 1e-13
    got = mmd(X, y, kernel=kernel, coreset_weights=weights)
    assert math.isclose(got, math.sqrt(weights @ K @ weights), rel_tol=1e-10)
    assert got < 0.9 * mmd(X, y, kernel=kernel)
    for method in ("compress++", "random", "standard"):
        for constraint in ("simplex", "affine"):
            rows, weights = thin(
                X, 20, kernel=kernel, method=method, rng=0, return_weights=constraint
            )  # fmt: skip
            better = mmd(X, rows, kernel=kernel, coreset_weights=weights)
            assert better < mmd(X, rows, kernel=kernel)
    own = fit_weights(X, y, kernel=kernel, target="sample", weights=SHARE)
    share = SHARE / SHARE.sum()
    assert gap(own, K, formulas.stein(X[y], X, scores[y], scores, 0.9) @ share) < 1e-13
    with pytest.raises(ValueError, match="^weights are of the points, with which target"):
        fit_weights(X, y, kernel=kernel, weights=SHARE)


def test_weights_of_thin_are_those_that_are_fitted():
    for options in ({"bandwidth": 1.0}, {"bandwidth": 1.0, "weights": SHARE}, {"kernel": "energy"}):
        rows, weights = thin(X, 30, rng=3, return_weights=True, **options)
        np.testing.assert_allclose(weights, fit_weights(X, rows, **options), atol=1e-9)
    rows, weights = thin(X, 30, rng=3, bandwidth=1.0, return_weights="affine")
    expected = fit_weights(X, rows, bandwidth=1.0, constraint="affine")
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    rows, weights = thin(X, "auto", ess=30, bandwidth=1.0, rng=0, return_weights=True)
    np.testing.assert_array_equal(rows, thin(X, "auto", ess=30, bandwidth=1.0, rng=0))
    np.testing.assert_allclose(weights, fit_weights(X, rows, bandwidth=1.0), atol=1e-9)


def test_all_rows_and_repeated_rows():
    rows, weights = thin(X, 300, kernel="laplace", rng=0, weights=SHARE, return_weights=True)
    np.testing.assert_array_equal(rows, np.arange(300))
    np.testing.assert_allclose(weights, SHARE / SHARE.sum(), atol=1e-8)
    heavy = np.where(np.arange(300) == 7, 300.0, 1.0)
    rows, weights = thin(
        X, 20, bandwidth=1.0, weights=heavy, unique=False, rng=0, return_weights=True
    )  # fmt: skip
    assert np.count_nonzero(rows == 7) > 1
    assert_on_simplex(weights, 20)
    twice = fit_weights(X, np.repeat(ROWS, 2), bandwidth=1.0)
    once = fit_weights(X, ROWS, bandwidth=1.0)
    np.testing.assert_allclose(twice.reshape(-1, 2).sum(axis=1), once, atol=1e-6)


def test_float32_points_have_weights_in_float64():
    few = X.astype(np.float32)
    kernel = kernels.gaussian(2.0)
    rows, weights = thin(few, 60, kernel=kernel, rng=0, return_weights=True)
    k = formulas.gaussian(few[rows].astype(float), few.astype(float), 2.0)
    assert gap(weights, k[:, rows], k.mean(axis=1)) < 2e-11  # the bandwidth is one in float32
    gram = formulas.gaussian(X, X, 1.0).astype(np.float32)
    rows, weights = thin(gram, 40, kernel="precomputed", rng=0, return_weights=True)
    whole = gram.astype(np.float64)
    assert gap(weights, whole[np.ix_(rows, rows)], whole[rows].mean(axis=1)) < 3e-14
    assert gram.flags.writeable


def test_rows_or_points_of_its_own():
    own = fit_weights(X, X[ROWS], bandwidth=1.0)
    np.testing.assert_allclose(own, fit_weights(X, ROWS, bandwidth=1.0), atol=1e-9)
    grid = np.stack(np.meshgrid(*[np.linspace(-2, 2, 5)] * 2), axis=-1).reshape(-1, 2)
    weights = fit_weights(X, grid, bandwidth=1.0)
    assert_on_simplex(weights, 25)
    better = mmd(X, grid, bandwidth=1.0, coreset_weights=weights)
    assert better < mmd(X, grid, bandwidth=1.0) / 3
    frame = pd.DataFrame({"a": X[:, 0], "b": 1e4 * X[:, 1]})
    assert mmd(frame, ROWS, coreset_weights=fit_weights(frame, ROWS)) < mmd(frame, ROWS)


def test_units_do_not_matter():
    here = fit_weights(X, ROWS, bandwidth=1.0)
    np.testing.assert_array_equal(fit_weights(2.0**99 * X, ROWS, bandwidth=2.0**99), here)
    times = fit_weights(X, ROWS, kernel=2.0**99 * kernels.gaussian(1.0))
    np.testing.assert_array_equal(times, here)


def test_rows_that_do_not_differ():
    for constraint in ("simplex", "affine"):
        options = {"bandwidth": 1.0, "constraint": constraint}
        np.testing.assert_array_equal(fit_weights(X, [5], **options), [1.0])
        np.testing.assert_array_equal(fit_weights(X, [5, 5, 5], **options), np.full(3, 1 / 3))
        np.testing.assert_array_equal(fit_weights(np.ones((4, 2)), [0, 2], **options), [0.5, 0.5])


def test_mmd_with_weights_is_the_formula():
    K, m, square = parts("laplace", X, ROWS, SHARE)
    for weights in (SHARE[:25], RNG.normal(1, 1, size=25)):
        w = weights / weights.sum()
        got = mmd(X, ROWS, kernel=KERNELS["laplace"][0], weights=SHARE, coreset_weights=weights)
        assert math.isclose(got, math.sqrt(reference.squared_mmd(w, K, m, square)), rel_tol=1e-12)
    repeats = np.arange(1, 26)
    often = mmd(X, np.repeat(ROWS, repeats), bandwidth=1.0)
    assert math.isclose(mmd(X, ROWS, bandwidth=1.0, coreset_weights=repeats), often, rel_tol=1e-12)
    equal = mmd(X, ROWS, bandwidth=1.0, coreset_weights=np.full(25, 7))
    assert math.isclose(equal, mmd(X, ROWS, bandwidth=1.0), rel_tol=1e-14)


def test_compare_takes_pairs():
    repeats = np.arange(1, 26)
    often = np.repeat(ROWS, repeats)
    pairs = {"pair": (ROWS, repeats), "often": often, "equal": (ROWS, np.ones(25)), "rows": ROWS}
    pair, other, equal, rows = compare(X, pairs, bandwidth=1.0)
    assert (pair.size, other.size) == (25, often.size)
    np.testing.assert_allclose(pair[2:6], other[2:6], rtol=1e-10)
    for one, two in zip(pair.columns, other.columns, strict=True):
        np.testing.assert_allclose(one[1:3], two[1:3], rtol=1e-10)
        assert abs(one.tails - two.tails) < 0.3  # quantiles of repeated rows are interpolated
    assert equal[1:] == rows[1:]
    (two_rows,) = compare(X, {"two": (3, 5)}, bandwidth=1.0)
    assert two_rows.size == 2
    found = thin(X, 25, bandwidth=1.0, rng=0, return_weights=True)
    (weighted,) = compare(X, {"found": found}, bandwidth=1.0)
    assert weighted.mmd == mmd(X, found[0], bandwidth=1.0, coreset_weights=found[1])
    mean = found[1] @ X[found[0]] - X.mean(axis=0)
    assert math.isclose(weighted.mean, (abs(mean) / X.std(axis=0)).max(), rel_tol=1e-10)
    kernel = kernels.stein(-X, 1.0)
    (of_density,) = compare(X, {"found": found}, kernel=kernel)
    assert of_density.mmd == mmd(X, found[0], kernel=kernel, coreset_weights=found[1])


def test_moments_of_negative_weights():
    points = np.array([[0.0], [1.0], [2.0], [5.0]])
    (error,) = column_errors(points, points[:3], ["a"], None, np.array([0.5, -0.5, 1.0]))
    # mean 1.5 and variance 0.5 * 2.25 - 0.5 * 0.25 + 0.25 = 1.25, of points 2 and 3.5
    assert math.isclose(error.mean, 0.5 / 3.5**0.5)
    assert math.isclose(error.deviation, 1 - (1.25 / 3.5) ** 0.5)
    assert math.isnan(error.tails)
    (error,) = column_errors(points, points[:3], ["a"], None, np.array([-1.0, 3.0, -1.0]))
    assert math.isnan(error.deviation)
    (row,) = compare(points, {"few": ([0, 1, 2], [0.5, -0.5, 1.0])}, bandwidth=1.0)
    assert math.isclose(row.covariance, 1 - 1.25 / 3.5)
    assert "nan" in str(compare(points, {"few": ([0, 1], [2, -1])}, bandwidth=1.0))


def test_stages():
    def told(call):
        stages = []
        call(progress=lambda stage, fraction: stages.append((stage, fraction)))
        return [stage for stage, fraction in stages if fraction == 1]

    assert told(lambda **more: fit_weights(X, ROWS, **more)) == ["mean embedding", "weights"]
    stein = kernels.stein(-X, 1.0)
    assert told(lambda **more: fit_weights(X, ROWS, kernel=stein, **more)) == ["weights"]
    found = told(lambda **more: thin(X, 9, method="random", return_weights=True, **more))
    assert found == ["mean embedding", "weights"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_weights(X, ROWS, constraint="convex"),
         "^constraint must be one of 'simplex', 'affine'; got 'convex'"),
        (lambda: thin(X, 5, return_weights="convex"),
         "^return_weights must be True, False or one of 'simplex', 'affine'; got 'convex'"),
        (lambda: thin(X, 5, return_weights=None), "^return_weights must be .*; got None"),
        (lambda: thin(X, 5, return_weights=1), "^return_weights must be .*; got 1"),
        (lambda: fit_weights(X, [300]), "^coreset must hold rows from 0 to 299; got 300 to 300"),
        (lambda: fit_weights(X, ROWS, weights=-SHARE), "^weights must be finite and have a"),
        (lambda: mmd(X, ROWS, coreset_weights=SHARE),
         r"^coreset_weights must be numbers of shape \(25,\); got dtype float64, shape \(300,\)"),
        (lambda: mmd(X, [1, 2], coreset_weights=[1, -1]),
         "^coreset_weights must be finite and have a positive, finite sum; got 0"),
        (lambda: mmd(X, [1, 2], coreset_weights=[1, np.nan]),
         "^coreset_weights must be finite and have a positive, finite sum; got nan"),
        (lambda: compare(X, {"a": (ROWS, SHARE)}),
         r"^the weights of coresets\['a'\] must be numbers of shape \(25,\)"),
        (lambda: fit_weights(-np.exp(-np.abs(np.subtract.outer(SHARE, SHARE))), ROWS,
                             kernel="precomputed"),
         "^kernel must be positive definite, or conditionally so, to fit weights"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_matrix_that_is_not_semidefinite():
    with pytest.raises(np.linalg.LinAlgError):
        least_on_simplex(np.diag([1.0, 1.0, -5.0]), np.array([0.0, 1.0, -1.0]), 1e-14)


def test_median_bandwidth_is_that_of_mmd():
    points = mixture(1500)
    rows = np.arange(0, 1500, 50)
    given = fit_weights(points, rows, bandwidth=median_distance(points, 0))
    np.testing.assert_array_equal(fit_weights(points, rows), given)
