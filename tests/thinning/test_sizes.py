"""Errors by size, in numbers of independent draws, and the size "auto"."""

import math

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from points import X, assert_rows, mixture

from thinformer import error_curve, kernels, mmd, thin
from thinformer.thinning import ess, sizes


def autoregressive(n, slope, seed=0, columns=1):
    """Draws (n, columns) with the integrated autocorrelation time (1 + slope) / (1 - slope)."""
    z = np.random.default_rng(seed).normal(size=(n, columns))
    for t in range(1, n):
        z[t] += slope * z[t - 1]
    return z


def gram(x, bandwidth):
    squared = ((x[:, None] - x[None]) ** 2).sum(axis=2)
    return np.exp(-squared / (2 * bandwidth**2))


@pytest.mark.parametrize("weighted", [False, True])
def test_worth_is_that_of_the_formula(weighted):
    weights = np.random.default_rng(1).uniform(1, 3, len(X)) if weighted else None
    curve = error_curve(X, [5, 40], bandwidth=1.5, weights=weights, rng=3)
    share = np.full(len(X), 1 / len(X)) if weights is None else weights / weights.sum()
    K = gram(X, 1.5)
    for size, error, draws in zip(curve.sizes, curve.mmd, curve.draws, strict=True):
        rows = thin(X, int(size), bandwidth=1.5, weights=weights, rng=3)
        difference = share.copy()
        difference[rows] -= 1 / size
        squared = difference @ K @ difference
        np.testing.assert_allclose(error, np.sqrt(squared), rtol=1e-9)
        np.testing.assert_allclose(draws, (1 - share @ K @ share) / squared, rtol=1e-9)
    assert curve.ess == (len(X) if weights is None else 1 / (share @ share))


def test_independent_draws_are_worth_their_number():
    rng = np.random.default_rng(0)
    measured = [mmd(X, rng.integers(len(X), size=25), bandwidth=1.0) ** 2 for _ in range(400)]
    K = gram(X, 1.0)
    worth = (1 - K.mean()) / np.mean(measured)
    assert worth == pytest.approx(25, rel=0.05)


def test_under_a_stein_kernel_draws_are_of_the_density():
    points = np.random.default_rng(0).normal(size=(400, 2))
    kernel = kernels.stein(-points, bandwidth=1.0)
    curve = error_curve(points, [20], kernel=kernel)
    rows = thin(points, 20, kernel=kernel, rng=0)
    ksd = mmd(points, rows, kernel=kernel)
    np.testing.assert_allclose(curve.mmd, [ksd], rtol=1e-9)
    assert curve.measure == "KSD"
    assert str(curve).split()[:2] == ["size", "KSD"]
    itself = 2 + (points**2).sum(axis=1)  # d / bandwidth^2 + |score|^2
    np.testing.assert_allclose(curve.draws, [itself.mean() / ksd**2], rtol=1e-6)
    with pytest.raises(ValueError, match="no coreset is worth 1,000,000 independent draws; all"):
        thin(points, "auto", ess=1e6, kernel=kernel)


@pytest.mark.parametrize(
    "options",
    [{}, {"method": "kernel-thinning"}, {"kernel": "energy"}, {"method": "random"},
     {"unique": False}, {"standardize": "whiten"}],
    ids=str,
)  # fmt: skip
def test_auto_is_a_call_with_the_size_it_finds(options):
    x = mixture(600)
    rows = thin(x, "auto", rng=5, **options)
    assert_rows(rows, 600, rows.size, distinct=options.get("unique", True))
    np.testing.assert_array_equal(rows, thin(x, rows.size, rng=5, **options))
    assert error_curve(x, [rows.size], rng=5, **options).draws[0] >= 600


def test_auto_is_the_smallest_size_to_5_percent():
    line = np.linspace(0, 1, 500)[:, None]  # where evenly spaced rows get nearer with every row
    for draws in (30, 300, 3000):
        size = thin(line, "auto", ess=draws, method="standard").size
        every = error_curve(line, range(1, 400), method="standard").draws
        least = 1 + np.flatnonzero(every >= draws)[0]
        assert least <= size <= max(least + 1, 1.05 * least)


def test_more_draws_take_more_rows():
    found = [thin(mixture(2000), "auto", ess=each, rng=0).size for each in (1, 20, 400, 8000)]
    assert found == sorted(set(found))
    assert found[0] == 1
    assert found[-1] < 200


def test_all_rows_have_no_error():
    assert thin(X, "auto", ess=1e30).size > 250
    curve = error_curve(X[:7], [7])
    assert curve.mmd[0] == pytest.approx(0, abs=1e-7)
    assert thin(np.zeros((9, 2)), "auto", bandwidth=1.0).size == 1  # equal points


def test_a_coreset_stands_for_many_points(monkeypatch):
    x = mixture(3000)
    exact = error_curve(x, [2, 4])
    monkeypatch.setattr(sizes, "COMPARED", 1000)
    near = error_curve(x, [2, 4])
    np.testing.assert_allclose(near.draws, exact.draws, rtol=0.15)
    assert (near.draws != exact.draws).all()


def test_the_default_sizes_double_until_the_points_are_met():
    curve = error_curve(X, ess=200, rng=1)
    np.testing.assert_array_equal(curve.sizes, 2 ** np.arange(curve.sizes.size))
    assert (curve.draws[:-1] < 200).all()
    assert curve.draws[-1] >= 200
    assert curve.ess == 200


def test_it_prints_as_a_table():
    curve = sizes.ErrorCurve(
        np.array([1, 64]), np.array([0.5, 0.001]), np.array([2.5, 123_456.0]), 900.0
    )
    assert str(curve) == (
        "   size       MMD  worth independent draws\n"
        "      1   0.50000                      2.5\n"
        "     64   0.00100                  123,000\n"
        "The points are worth 900 (ESS)."
    )


def test_ess_of_draws_in_order():
    for slope in (0.5, 0.9):
        x = autoregressive(40_000, slope, columns=2)
        assert ess.of_draws(x) == pytest.approx(40_000 * (1 - slope) / (1 + slope), rel=0.15)
    independent = np.random.default_rng(0).normal(size=(40_000, 1))
    assert 36_000 < ess.of_draws(independent) <= 40_000
    assert ess.of_draws(autoregressive(5000, -0.5)) == 5000  # at most n
    slow = np.column_stack([autoregressive(5000, 0.9), independent[:5000]])
    assert ess.of_draws(slow) == ess.of_draws(slow[:, :1])  # the smallest
    assert ess.of_draws(1e300 * slow) == pytest.approx(ess.of_draws(slow))
    assert ess.of_draws(np.ones((50, 2))) == 50
    assert ess.of_draws(np.ones((1, 1))) == 1
    assert ess.of_draws(np.array([[0.0], [1.0], [0.0]])) == 3


def test_ess_is_near_to_arviz():
    arviz_stats = pytest.importorskip("arviz_stats")
    x = autoregressive(4000, 0.8)[:, 0]
    theirs = arviz_stats.ess(x.reshape(4, 1000), method="mean")
    assert ess.of_draws(x[:, None]) == pytest.approx(float(theirs), rel=0.15)


def test_which_rows_are_draws_in_order():
    x = autoregressive(800, 0.9)
    own = ess.of_draws(x)
    chains = x.reshape(4, 200)
    posterior = xr.Dataset({"mu": (("chain", "draw"), chains)})
    for points in (posterior, posterior["mu"], {"mu": chains}, {"mu": x[:, 0]},
                   xr.DataTree.from_dict({"posterior": posterior})):  # fmt: skip
        assert error_curve(points, [1]).ess == own
    frame = pd.DataFrame({"lp__": np.zeros(800), "mu": x[:, 0]})
    with pytest.warns(UserWarning, match="lp__"):
        assert error_curve(frame, [1]).ess == own
    for points in (x, pd.DataFrame({"mu": x[:, 0]}), xr.Dataset({"mu": (("cell",), x[:, 0])})):
        assert error_curve(points, [1]).ess == 800
    assert error_curve(posterior, [1], ess=7).ess == 7
    half = np.repeat([0.0, 1.0], 400)  # half of the rows count: half as many draws
    assert error_curve(x, [1], weights=half).ess == pytest.approx(400)
    assert error_curve(posterior, [1], weights=half).ess == pytest.approx(own / 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"size": "many"}, "size must be an integer or 'auto'; got 'many'"),
        ({"size": 5, "ess": 10}, "ess is for size='auto'; got ess=10 with size=5"),
        ({"size": "auto", "ess": 0}, "ess must be"),
        ({"size": "auto", "ess": math.inf}, "ess must be"),
        ({"size": "auto", "ess": "all"}, "ess must be"),
    ],
)
def test_errors(arguments, said):
    with pytest.raises((TypeError, ValueError), match=said):
        thin(X, **arguments)


@pytest.mark.parametrize("wrong", [[], [3, 3], [5, 2], [0], [301], [2.5], ["a"]])
def test_errors_of_sizes(wrong):
    with pytest.raises((TypeError, ValueError), match="sizes must be"):
        error_curve(X, wrong)
