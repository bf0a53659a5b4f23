"""The witness function of two samples, against its definition."""

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist

from thinformer import mmd, two_sample_test
from thinformer.kernels import gaussian, stein
from thinformer.thinning import witness as module
from thinformer.thinning.arguments import median_distance
from thinformer.thinning.scales import deviations
from thinformer.thinning.witness import witness

RNG = np.random.default_rng(5)
X = RNG.normal(size=(60, 3))
Y = RNG.normal(size=(80, 3)) * [1, 2, 1] + [0.5, 0, 0]


def found(x=X, y=Y, kernel="gaussian", bandwidth="median", standardize=False, v=None, w=None,
          rng=0):  # fmt: skip
    return witness(x, y, kernel, bandwidth, standardize, v, w, rng)


def brute_force(k, z, x, y, v=None, w=None):
    return np.average(k(z, x), axis=1, weights=v) - np.average(k(z, y), axis=1, weights=w)


def rbf(bandwidth):
    return lambda a, b: np.exp(-cdist(a, b, "sqeuclidean") / (2 * bandwidth**2))


def test_it_is_the_difference_of_two_means():
    got = found(bandwidth=0.8)
    np.testing.assert_array_equal(got.points, np.concatenate([X, Y]))
    np.testing.assert_allclose(got.values, brute_force(rbf(0.8), got.points, X, Y), atol=1e-13)
    assert got.labels == ["0", "1", "2"]
    means = got.values[:60].mean() - got.values[60:].mean()
    assert means == pytest.approx(mmd(X, Y, bandwidth=0.8, standardize=False) ** 2)


def test_it_is_positive_where_x_has_more_points():
    x, y = np.zeros((5, 1)), np.full((5, 1), 4.0)
    np.testing.assert_allclose(found(x, y, bandwidth=1.0).values, [1 - np.exp(-8)] * 5
                               + [np.exp(-8) - 1] * 5)  # fmt: skip


@pytest.mark.parametrize("kernel", ["energy", gaussian(0.5) + gaussian(2.0), "linear"])
def test_other_kernels(kernel):
    k = {"energy": lambda a, b: -cdist(a, b) / median_distance(np.concatenate([X, Y])),
         "linear": lambda a, b: a @ b.T}.get(
             kernel if isinstance(kernel, str) else "", lambda a, b: rbf(0.5)(a, b) + rbf(2.0)(a, b)
         )  # fmt: skip
    got = found(kernel=kernel)
    np.testing.assert_allclose(got.values, brute_force(k, got.points, X, Y), atol=1e-12)


def test_the_bandwidth_and_the_scales_are_of_both_samples():
    both = np.concatenate([X, Y]) * [1, 1, 100]
    scaled = both / deviations(both)
    got = found(both[:60], both[60:], standardize="scale")
    assert got.bandwidth == median_distance(scaled)
    np.testing.assert_allclose(got.points, both)  # in the units that were given
    expected = brute_force(rbf(got.bandwidth), scaled, scaled[:60], scaled[60:])
    np.testing.assert_allclose(got.values, expected, atol=1e-13)


def test_weights_count_in_the_means_and_points_without_are_not_drawn():
    rng = np.random.default_rng(6)
    v, w = rng.exponential(size=60), rng.exponential(size=80)
    v[:10] = 0
    got = found(bandwidth=1.0, v=v, w=w)
    np.testing.assert_array_equal(got.rows, np.arange(10, 140))
    expected = brute_force(rbf(1.0), got.points, X, Y, v, w)
    np.testing.assert_allclose(got.values, expected, atol=1e-13)


def test_of_large_samples_some_points_are_drawn_and_all_count(monkeypatch):
    monkeypatch.setattr(module, "POINTS", 50)
    got = found(bandwidth=1.0)
    of_x = got.rows < 60
    assert np.bincount(of_x).tolist() == [50, 50]
    assert len(set(got.rows.tolist())) == 100
    np.testing.assert_array_equal(got.points, np.concatenate([X, Y])[got.rows])
    np.testing.assert_allclose(got.values, brute_force(rbf(1.0), got.points, X, Y), atol=1e-13)
    assert set(found(rng=1).rows.tolist()) != set(got.rows.tolist())


def test_points_are_drawn_with_the_odds_of_their_weights(monkeypatch):
    monkeypatch.setattr(module, "POINTS", 1)
    share = np.array([0.2, 0.0, 0.5, 0.3])
    generator = np.random.default_rng(0)
    counts = np.bincount([module._drawn(share, generator)[0] for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, share, atol=0.03)


def test_columns_by_name_in_any_order():
    frames = [pd.DataFrame(each, columns=["a", "b", "c"]) for each in (X, Y)]
    got = found(*frames, bandwidth=1.0)
    other = found(frames[0], frames[1][["c", "a", "b"]], bandwidth=1.0)
    np.testing.assert_array_equal(got.values, other.values)
    np.testing.assert_array_equal(got.points, other.points)
    assert got.labels == ["a", "b", "c"]


def test_a_result_of_the_test_can_be_looked_at():
    result = two_sample_test(X, Y, standardize="scale", rng=0, permutations=99)
    best = max(result.kernels, key=lambda each: each.statistic)
    got = found(kernel=best.name, bandwidth=best.bandwidth, standardize="scale")
    squared = got.values[:60].mean() - got.values[60:].mean()
    assert 0 < squared - best.mmd2 < 1 / 60 + 1 / 80  # what points add that meet themselves


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"y": Y[:, :2]}, ValueError, "y must have the 3 dimensions of x; got 2"),
        ({"y": np.full((4, 3), np.nan)}, ValueError, "y must be finite"),
        ({"v": np.ones(5)}, ValueError, r"x_weights must be numbers of shape \(60,\)"),
        ({"w": -np.ones(80)}, ValueError, "y_weights must be finite and have a finite sum"),
        ({"kernel": "cosine"}, ValueError, "kernel must be a Kernel or one of"),
        ({"kernel": "precomputed"}, ValueError, "kernel must compare any two points here"),
        ({"kernel": stein(X)}, ValueError, "kernel must compare any two points here"),
        ({"bandwidth": "auto"}, ValueError, "bandwidth must be a positive number"),
        ({"x": X * 0, "y": Y * 0}, ValueError, "needs points that differ"),
    ],
)
def test_errors(arguments, error, match):
    with pytest.raises(error, match=match):
        found(**arguments)
