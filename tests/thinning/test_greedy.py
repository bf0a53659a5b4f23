"""The method "greedy" of `thin`, and `debias`: the specification, ties, and what is better."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from points import X

from reference import greedy as specified
from reference import kernels as reference_kernels
from thinformer import KernelThinner, debias, error_curve, kernels, mmd, set_num_threads, thin
from thinformer.cpu.points import grow
from thinformer.halving.problem import make_points
from thinformer.kernels.phi import TABLE
from thinformer.support import threads
from thinformer.thinning.arguments import as_problem
from thinformer.thinning.streaming import merge_and_reduce

TIE = 1e-13
GRAMS = {
    "gaussian": (kernels.gaussian(0.8), lambda x: reference_kernels.gaussian(x, x, 0.8)),
    "energy": (kernels.energy(), lambda x: reference_kernels.energy(x, x)),
    "stein": (kernels.stein(-X[:, :2], 1.5), None),
    "sum": (
        kernels.gaussian(0.5) + 2.0 * kernels.laplace(),
        lambda x: reference_kernels.gaussian(x, x, 0.5) + 2 * reference_kernels.laplace(x, x),
    ),
}


def gram_of(name, points):
    if name == "stein":
        return reference_kernels.stein(points, points, -points, -points, 1.5)
    return GRAMS[name][1](points)


@given(st.data())
def test_it_chooses_what_the_specification_chooses(data):
    name = data.draw(st.sampled_from(sorted(GRAMS)), "kernel")
    n, seed = data.draw(st.integers(1, 70), "n"), data.draw(st.integers(0, 2**32), "seed")
    unique = data.draw(st.booleans(), "unique")
    size = data.draw(st.integers(1, min(n, 12)), "size")
    zero = name == "stein" and data.draw(st.booleans(), "mean zero")
    weighted = data.draw(st.booleans(), "weighted")
    rng = np.random.default_rng(seed)
    points = rng.normal(0.5, 1.5, size=(n, 2))
    weights = rng.uniform(0.1, 1, n) if weighted else np.ones(n)
    K = gram_of(name, points)
    mean = np.zeros(n) if zero else K @ weights / weights.sum()
    expected, margin = specified.greedy(K, mean, size, unique)
    assume(margin > TIE)
    kernel = kernels.stein(-points, 1.5) if name == "stein" else GRAMS[name][0]
    rows = thin(
        points, size, kernel=kernel, method="greedy", unique=unique, rng=0,
        weights=weights if weighted else None, target="mean-zero" if zero else "sample",
    )  # fmt: skip
    np.testing.assert_array_equal(rows, np.sort(expected))


@given(st.data())
def test_of_equally_good_rows_the_first_is_chosen(data):
    """Small integers and weights of a sixteenth are exact, so ties are ties."""
    copies = data.draw(st.integers(1, 16), "copies")
    few = np.array(data.draw(st.lists(st.integers(-2, 2), min_size=16, max_size=16), "numbers"))
    points = np.repeat(few, copies).astype(float)[:, None]  # rows 0 to copies-1 are equal, ...
    order = np.random.default_rng(copies).permutation(len(points))
    points = points[order]
    size, unique = data.draw(st.integers(1, 16), "size"), data.draw(st.booleans(), "unique")
    K = points @ points.T + 1
    weights = np.zeros(len(points))
    weights[:16] = 1 / 16
    mean = K @ weights
    # of the same numbers, as the specification divides by the size, which is not exact
    potential, expected = np.diagonal(K) / 2 - mean, []
    for _ in range(size):
        y = int(np.argmin(potential))
        expected.append(y)
        potential = potential + K[y] - mean
        if unique:
            potential[y] = np.inf
    for kernel, table in (
        (kernels.linear(1.0), points),
        (kernels.Kernel("t", TABLE, companion=K), K),
    ):
        problem = as_problem(table, kernel)
        chosen = grow(problem, np.arange(len(points)), size, mean, unique)
        np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 31, 32, 33, 511, 512, 513, 1100])
def test_any_number_of_panels(dtype, n):
    """The order of the choice; each choice is the best by the Gram matrix in float64."""
    points = np.random.default_rng(n).normal(0.5, 1.5, (n, 3)).astype(dtype)
    K = reference_kernels.stein(*[points.astype(float)] * 2, *[-points.astype(float)] * 2, 1.0)
    problem = as_problem(points, kernels.stein(-points, 1.0))
    chosen = grow(problem, np.arange(n), 40, np.zeros(n), False)
    potential = np.diagonal(K) / 2
    for y in chosen:
        tolerance = 1e-11 if dtype == np.float64 else 1e-3
        assert potential[y] <= potential.min() + tolerance
        potential = potential + K[y]


def test_the_choice_goes_on_after_an_interruption(monkeypatch):
    """In pieces as in one, and each piece is told."""
    expected, told = thin(X, 20, method="greedy", rng=0), []
    monkeypatch.setattr(threads, "PIECE_FLOPS", 1.0)
    set_num_threads(1)
    rows = thin(X, 20, method="greedy", rng=0, progress=lambda *each: told.append(each))
    np.testing.assert_array_equal(rows, expected)
    parts = [fraction for stage, fraction in told if stage == "greedy choice"]
    assert parts == [i / 20 for i in range(21)]

    class Ended(Exception):
        pass

    def end(stage, fraction):
        if stage == "greedy choice" and fraction >= 0.5:
            raise Ended

    with pytest.raises(Ended):
        thin(X, 20, method="greedy", rng=0, progress=end)


def test_rows_that_are_taken_are_not_the_best_again():
    """One point is better than all others under the score of a narrow normal."""
    points = np.r_[0.0, np.linspace(2, 3, 19)][:, None]
    kernel = kernels.stein(-100 * points, 1.0)
    settings = {"kernel": kernel, "method": "greedy"}
    assert thin(points, 5, unique=False, **settings).tolist() == [0] * 5
    assert thin(points, 5, **settings).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_told(value):
    gram = np.eye(20)
    gram[3, 7] = gram[7, 3] = value
    problem = make_points(
        points=np.zeros((20, 1)), kernel=kernels.Kernel("t", TABLE, companion=gram)
    )
    with pytest.raises(ValueError, match="^kernel must have finite values; between some of"):
        grow(problem, np.arange(20), 6, np.zeros(20), True)


def test_weights_have_no_part_in_a_mean_of_zero_but_rows_without_are_not_chosen():
    weights = np.r_[np.zeros(100), np.random.default_rng(0).uniform(1, 2, 200)]
    settings = {"kernel": kernels.stein(-X, 1.5), "method": "greedy"}
    rows = thin(X, 20, weights=weights, **settings)
    expected = thin(X[100:], 20, kernel=kernels.stein(-X[100:], 1.5), method="greedy")
    np.testing.assert_array_equal(rows, 100 + expected)


def test_it_is_better_than_chance_and_refinement_better_still():
    points = np.random.default_rng(0).normal(size=(1000, 2))
    error = {
        method: mmd(points, thin(points, 30, method=method, bandwidth=1.0, rng=0), bandwidth=1.0)
        for method in ("kernel-thinning", "greedy", "random")
    }
    assert error["kernel-thinning"] < error["greedy"] < error["random"] / 3


def test_other_ways_to_call_it():
    settings = {"method": "greedy", "bandwidth": 1.5}
    rows = thin(X, 20, rng=0, **settings)
    fitted = KernelThinner(20, random_state=0, **settings).fit(X)
    np.testing.assert_array_equal(fitted.coreset_indices_, rows)
    np.testing.assert_array_equal(merge_and_reduce([X], 20, rng=0, **settings).rows, rows)
    streamed = merge_and_reduce([X[:150], X[150:]], 20, rng=0, **settings).rows
    assert np.unique(streamed).size == 20
    curve = error_curve(X, [5, 20], **settings)
    assert curve.mmd[1] == pytest.approx(mmd(X, rows, bandwidth=1.5))
    few = thin(X, "auto", ess=20, rng=0, **settings)
    assert mmd(X, few, bandwidth=1.5) < mmd(X, thin(X, 20, method="random", rng=0), bandwidth=1.5)


# weights


@pytest.mark.parametrize(("n", "size"), [(40, None), (40, 7), (12, 50)])
def test_weights_are_the_shares_of_the_specification(n, size):
    decided = 0
    for seed in range(4):
        points = np.random.default_rng(seed).normal(0.5, 1.5, (n, 2))
        K = gram_of("stein", points)
        expected, margin = specified.debias(K, size or n)
        if margin > TIE:
            decided += 1
            weights = debias(points, kernels.stein(-points, 1.5), size=size)
            np.testing.assert_array_equal(weights, expected)
            weights = debias(points, 2.0 * kernels.stein(-points, 1.5), size=size)
            np.testing.assert_array_equal(weights, expected)
    assert decided >= 3


def moments(points, weights):
    mean = np.average(points, axis=0, weights=weights)
    return mean, np.cov(points, rowvar=False, aweights=weights, ddof=0)


def test_weights_represent_the_density():
    points = np.random.default_rng(0).normal(1.0, 1.5, (1500, 2))
    kernel = kernels.stein(-points, "median")
    weights = debias(points, kernel, rng=0)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    mean, covariance = moments(points, weights)
    np.testing.assert_allclose(mean, 0, atol=0.02)
    np.testing.assert_allclose(covariance, np.eye(2), atol=0.1)
    settings = {"weights": weights, "unique": False, "rng": 0}
    steps = {
        "stein": thin(points, 60, kernel=kernel, target="sample", **settings),
        "gaussian": thin(points, 60, **settings),
        "greedy": thin(points, 60, kernel=kernel, method="greedy", unique=False, rng=0),
    }
    off = {}
    for name, rows in steps.items():
        mean, covariance = moments(points[rows], None)
        off[name] = np.abs(mean).max(), np.abs(covariance - np.eye(2)).max()
    for name in ("stein", "gaussian"):
        assert off[name][0] < off["greedy"][0]
        assert off[name][1] < off["greedy"][1]


def test_weights_know_the_unit_and_the_cube():
    units = np.array([1e-2, 50.0])
    points = np.random.default_rng(1).normal(0.5, 1.5, (300, 2))
    kernel = kernels.stein(-points / units, "median")
    with pytest.warns(UserWarning, match="^points have columns on unlike scales"):
        debias(points * units, kernel)
    scaled = debias(points * units, kernel, standardize="scale")
    mean, _ = moments(points, scaled)
    np.testing.assert_allclose(mean, 0, atol=0.1)
    cube = np.random.default_rng(0).beta(2, 3, size=(500, 2))
    mean, _ = moments(cube, debias(cube, "sobolev"))
    np.testing.assert_allclose(mean, 0.5, atol=0.05)  # of the points it is 0.4


def test_what_debias_takes():
    kernel = kernels.stein(-X, 1.5)
    with pytest.raises(ValueError, match="^size must be an integer of at least 1; got 0$"):
        debias(X, kernel, size=0)
    with pytest.raises(ValueError, match="^target='mean-zero' takes a positive definite kernel"):
        debias(X, "energy")
    with pytest.raises(ValueError, match="^scores must have the shape of the points"):
        debias(X[:9], kernel)
    with pytest.raises(ValueError, match="^points must be finite"):
        debias(np.where(X > 2, np.nan, X), kernel)
    with pytest.warns(UserWarning, match="^scores point away"):
        debias(X, kernels.stein(X, 1.5))
