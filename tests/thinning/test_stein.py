"""Stein kernels without traps: their target, unlike scales, scores of a wrong sign."""

import warnings

import numpy as np
import pandas as pd
import pytest

from reference import kernels as reference_kernels
from thinformer import KernelThinner, compare, kernels, mmd, thin
from thinformer.thinning.scales import deviations

RNG = np.random.default_rng(11)
X = RNG.normal(0.5, 1.5, size=(400, 2))  # biased, and too wide
STEIN = kernels.stein(-X, 2.0)
K = reference_kernels.stein(X, X, -X, -X, 2.0)
ROWS = np.arange(3, 400, 13)
UNITS = np.array([1e-2, 50.0])
REVERSED = "^scores point away from the mass of the points: they should be the gradient of the log"


def ksd(rows):
    return np.sqrt(K[np.ix_(rows, rows)].mean())


# the target


@pytest.mark.parametrize("method", ["compress++", "kernel-thinning"])
@pytest.mark.parametrize("kernel", [STEIN, 2.5 * STEIN, kernels.stein(-X, "median")], ids=str)
def test_a_stein_kernel_implies_its_target(kernel, method):
    rows = thin(X, 20, kernel=kernel, method=method, rng=0)
    explicit = thin(X, 20, kernel=kernel, method=method, target="mean-zero", rng=0)
    np.testing.assert_array_equal(rows, explicit)
    of_sample = thin(X, 20, kernel=kernel, method=method, target="sample", rng=0)
    assert ksd(rows) < ksd(of_sample) / 3


@pytest.mark.parametrize("kernel", ["gaussian", kernels.matern() + kernels.linear(), "energy"])
def test_other_kernels_stand_for_the_points(kernel):
    rows = thin(X, 20, kernel=kernel, rng=0)
    np.testing.assert_array_equal(rows, thin(X, 20, kernel=kernel, target="sample", rng=0))
    value = mmd(X, ROWS, kernel=kernel)
    assert value == mmd(X, ROWS, kernel=kernel, target="sample")


@pytest.mark.parametrize("method", ["standard", "random"])
def test_a_method_that_does_not_look_has_no_target(method):
    rows = thin(X, 20, kernel=STEIN, method=method, rng=0)
    np.testing.assert_array_equal(rows, thin(X, 20, method=method, rng=0))


def test_the_target_of_the_estimator():
    rows = KernelThinner(20, kernel=STEIN, random_state=0).fit(X).coreset_indices_
    np.testing.assert_array_equal(rows, thin(X, 20, kernel=STEIN, rng=0, target="mean-zero"))


# discrepancies


def test_mmd_is_the_kernel_stein_discrepancy():
    assert mmd(X, ROWS, kernel=STEIN) == pytest.approx(ksd(ROWS), rel=1e-12)
    share = np.full(400, 1 / 400)
    share[ROWS] -= 1 / len(ROWS)
    of_sample = mmd(X, ROWS, kernel=STEIN, target="sample")
    assert of_sample == pytest.approx(np.sqrt(share @ K @ share), rel=1e-9)


def test_compare_has_the_kernel_stein_discrepancy():
    coresets = {"every 13th": ROWS, "few": [1, 2, 3]}
    table = compare(X, coresets, kernel=STEIN)
    assert [row.mmd for row in table] == pytest.approx([ksd(ROWS), ksd([1, 2, 3])], rel=1e-12)
    assert str(table).splitlines()[0].split()[:4] == ["coreset", "size", "KSD", "energy"]
    to_points = compare(X, coresets, kernel=STEIN, target="sample")
    assert to_points[0].mmd == mmd(X, ROWS, kernel=STEIN, target="sample")
    assert str(to_points).splitlines()[0].split()[:4] == ["coreset", "size", "MMD", "energy"]
    plain = compare(X, coresets)
    for row, other, third in zip(table, to_points, plain, strict=True):
        assert row._replace(mmd=0) == other._replace(mmd=0) == third._replace(mmd=0)


def test_compare_with_another_kernel_of_mean_zero():
    cube = RNG.random((60, 2))
    table = compare(cube, {"a": np.arange(9)}, kernel="sobolev", target="mean-zero")
    assert table[0].mmd == mmd(cube, np.arange(9), kernel="sobolev", target="mean-zero")
    assert str(table).splitlines()[0].split()[2] == "MMD"
    with pytest.raises(ValueError, match="^target must be one of 'auto', 'sample', 'mean-zero'"):
        compare(cube, {"a": np.arange(9)}, target="zero")


@pytest.mark.parametrize("kernel", ["energy", kernels.gaussian() + kernels.energy()], ids=str)
def test_the_energy_kernel_has_no_measure_of_mean_zero(kernel):
    """The square of its norm is negative, which read as a discrepancy of 0."""
    for call in (
        lambda: thin(X, 5, kernel=kernel, target="mean-zero"),
        lambda: mmd(X, ROWS, kernel=kernel, target="mean-zero"),
        lambda: compare(X, {"a": ROWS}, kernel=kernel, target="mean-zero"),
    ):
        with pytest.raises(ValueError, match="^target='mean-zero' takes a positive definite"):
            call()


# unlike scales


@pytest.mark.parametrize("bandwidth", [2.0, "median", 2.0 * UNITS], ids=str)
@pytest.mark.parametrize("frame", [False, True])
def test_unlike_scales_are_told(bandwidth, frame):
    points = pd.DataFrame(X * UNITS, columns=["a", "b"]) if frame else X * UNITS
    kernel = kernels.stein(-X / UNITS, bandwidth)
    for call in (
        lambda: thin(points, 20, kernel=kernel, rng=0),
        lambda: mmd(points, ROWS, kernel=kernel),
        lambda: compare(points, {"a": ROWS}, kernel=kernel),
    ):
        with pytest.warns(UserWarning, match=r"^points have columns on unlike .* column 1 is 7"):
            call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thin(points, 20, kernel=kernel, standardize=False, rng=0)


def test_the_remedy_for_unlike_scales_works():
    """A bandwidth for each column is no remedy: scores of the narrow column outweigh the others."""
    points, scores = X * UNITS, -X / UNITS
    with pytest.warns(UserWarning, match="standardize='scale' gives all columns, and the scores, "):
        of_bandwidths = thin(points, 40, kernel=kernels.stein(scores, 2.0 * UNITS), rng=0)
    kernel = kernels.stein(scores, "median")
    rows = thin(points, 40, kernel=kernel, standardize="scale", rng=0)
    assert np.abs(X[rows].mean(axis=0)).max() < 0.1
    assert np.abs(X[rows].std(axis=0) - 1).max() < 0.15
    assert np.abs(X[of_bandwidths].mean(axis=0)).max() > 0.2


@pytest.mark.parametrize("bandwidth", [2.0, "median", [1.0, 3.0]], ids=str)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_scores_are_standardized_with_the_points(bandwidth, dtype):
    """As points and scores that are scaled by hand, times a number too."""
    points, scores = (X * UNITS).astype(dtype), -X / UNITS
    u = deviations(points)
    by_hand = points / u.astype(dtype), 2.5 * kernels.stein(scores * u, bandwidth)
    kernel, scale = 2.5 * kernels.stein(scores, bandwidth), {"standardize": "scale"}
    rows = thin(points, 20, kernel=kernel, rng=0, **scale)
    np.testing.assert_array_equal(rows, thin(by_hand[0], 20, kernel=by_hand[1], rng=0))
    frame = pd.DataFrame(points, columns=["a", "b"])
    of_frame = KernelThinner(20, kernel=kernel, random_state=0, **scale).fit(frame)
    np.testing.assert_array_equal(of_frame.coreset_indices_, rows)
    points = points.astype("f8")
    by_hand = points / deviations(points), by_hand[1]
    expected = mmd(by_hand[0], rows, kernel=by_hand[1])
    assert mmd(points, rows, kernel=kernel, **scale) == expected
    (row,) = compare(points, {"few": rows}, kernel=kernel, **scale)
    assert (row.mmd, row.energy) == compare(by_hand[0], {"few": rows}, kernel=by_hand[1])[0][2:4]
    assert kernel.companion is not by_hand[1].companion  # the user's kernel is as before
    np.testing.assert_array_equal(kernel.companion, scores)


def test_scores_are_whitened_with_the_points():
    """The scores of a Gaussian become those of the standard normal, on its own subspace too."""
    mixing = np.array([[1.0, 0.0], [0.9, 0.2]]) * UNITS[:, None]
    z = RNG.normal(size=(400, 2))
    z = np.linalg.solve(
        np.linalg.cholesky(np.cov(z, rowvar=False, ddof=0)), (z - z.mean(axis=0)).T
    ).T
    points, scores = z @ mixing.T, -z @ np.linalg.inv(mixing)  # covariance of z: the identity
    rows = thin(points, 20, kernel=kernels.stein(scores, 2.0), standardize="whiten", rng=0)
    expected = mmd(z, rows, kernel=kernels.stein(-z, 2.0))
    value = mmd(points, rows, kernel=kernels.stein(scores, 2.0), standardize="whiten")
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    doubled = np.column_stack([points, points[:, 0] / UNITS[0] + points[:, 1] / UNITS[1]])
    kernel = kernels.stein(np.column_stack([scores, np.zeros(400)]), 2.0)
    value = mmd(doubled, rows, kernel=kernel, standardize="whiten")
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_scores_of_other_points_are_told():
    for scores in (np.ones((400, 3)), np.ones((399, 2))):
        for standardize in ("scale", "whiten", False):
            with pytest.raises(ValueError, match="scores"):
                thin(X, 20, kernel=kernels.stein(scores), standardize=standardize)


# the sign of the scores


@pytest.mark.parametrize("target", ["auto", "sample"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_scores_of_the_wrong_sign_are_told(target, dtype, offset):
    points = (X + offset).astype(dtype)
    with pytest.warns(UserWarning, match=REVERSED):
        thin(points, 20, kernel=kernels.stein(X, 2.0), target=target, rng=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        thin(points, 20, kernel=kernels.stein(-X, 2.0), target=target, rng=0)


def mixture_score(x):
    """Of two normals at -3 and 3."""
    return 3 * np.tanh(3 * x) - x


@pytest.mark.parametrize(
    ("points", "scores"),
    [
        (RNG.normal(0.5, 1.5, (300, 2)), lambda x: -x),
        (RNG.normal(8.0, 0.3, (300, 2)), lambda x: -x),
        (RNG.standard_cauchy((300, 2)), lambda x: -2 * x / (1 + x**2)),
        (RNG.normal(size=(300, 1)) + np.where(RNG.random((300, 1)) < 0.3, 3, -3), mixture_score),
        (RNG.gamma(3.0, size=(300, 1)), lambda x: 2 / x - 1),
    ],
    ids=["biased", "far off", "heavy tails", "two modes", "skew"],
)
def test_scores_of_the_right_sign_are_not(points, scores):
    kernel = kernels.stein(scores(points), 1.0)
    thin(points, 20, kernel=kernel, rng=0)  # a warning would be an error
    with pytest.warns(UserWarning, match=REVERSED):
        thin(points, 20, kernel=kernels.stein(-scores(points), 1.0), rng=0)


def test_weights_count_for_the_sign():
    """Half of the points weigh nothing; their scores are of the wrong sign."""
    scores = np.where(np.arange(400)[:, None] < 200, -X, 3 * X)
    kernel = kernels.stein(scores, 2.0)
    with pytest.warns(UserWarning, match=REVERSED):
        thin(X, 20, kernel=kernel, rng=0)
    thin(X, 20, kernel=kernel, weights=np.arange(400) < 200, rng=0)
