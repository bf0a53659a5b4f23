"""`thin`: what holds for any points, weights, threads and methods, how good it is, bad input."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit  # noqa: TID251
from numba.core.caching import NullCache

from reference import kernels as reference_kernels
from thinformer import kernels, kh_compress, median_distance, mmd, set_num_threads, thin
from thinformer.cpu import halve, jit, sums
from thinformer.cpu.run import diagonal, embed
from thinformer.kernels import phi
from thinformer.thinning import methods
from thinformer.thinning.arguments import as_problem
from thinformer.thinning.methods import BLIND, METHODS
from thinformer.thinning.task import Task

SWAPPED = ("compress++", "kernel-thinning")
X = np.random.default_rng(0).normal(size=(300, 2))
EACH_METHOD = pytest.mark.parametrize("method", METHODS)


def mixture(n, seed=0):
    """A mixture of eight Gaussians on a circle."""
    rng = np.random.default_rng(seed)
    angle = rng.integers(8, size=n) * np.pi / 4
    centres = 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centres + rng.normal(size=(n, 2))


def assert_rows(rows, n, size, distinct=True):
    assert type(rows) is np.ndarray
    assert rows.dtype == np.int64
    assert rows.shape == (size,)
    assert np.diff(rows).min(initial=1) >= (1 if distinct else 0)
    assert rows[0] >= 0
    assert rows[-1] < n


def laid_out(array, layout):
    """The same numbers in other places of memory."""
    n, d = array.shape
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "reversed":
        return array[::-1].copy()[::-1]
    if layout == "every third":
        wide = np.zeros((3 * n, 2 * d), array.dtype)
        wide[::3, 1::2] = array
        return wide[::3, 1::2]
    if layout == "swapped":
        return array.astype(array.dtype.newbyteorder())
    return array


@given(st.data())
def test_any_points_any_size_any_method(data):
    n = data.draw(st.integers(1, 300), "n")
    size = data.draw(st.integers(1, n), "size")
    method = data.draw(st.sampled_from(METHODS), "method")
    dtype = data.draw(st.sampled_from(["f2", "f4", "f8", "i4", "?"]), "dtype")
    layout = data.draw(st.sampled_from(["C", "F", "reversed", "every third", "swapped"]), "layout")
    weighted = data.draw(st.booleans(), "weighted")
    settings = {
        "method": method,
        "g": data.draw(st.integers(0, 5), "g"),
        "refine": data.draw(st.booleans(), "refine"),
        "unique": data.draw(st.booleans(), "unique"),
        "kernel": data.draw(st.sampled_from(["gaussian", "laplace", "energy"]), "kernel"),
        "bandwidth": 1.0,
        "rng": data.draw(st.integers(0, 2**32), "rng"),
        "weights": [*np.random.default_rng(n).integers(0, 3, n - 1), 1] if weighted else None,
    }
    points = (3 * np.random.default_rng(n).normal(size=(n, 2))).astype(dtype)
    rows = thin(laid_out(points, layout), size, **settings)
    assert_rows(rows, n, size, settings["unique"])
    np.testing.assert_array_equal(rows, thin(points, size, **settings))  # again, and wherever


@EACH_METHOD
def test_a_seed_gives_the_same_rows(method):
    first = thin(X, 20, method=method, rng=1)
    np.testing.assert_array_equal(first, thin(X, 20, method=method, rng=np.int64(1)))
    np.testing.assert_array_equal(first, thin(X, 20, method=method, rng=np.random.default_rng(1)))
    others = [thin(X, 20, method=method, refine=False, rng=seed) for seed in range(2, 6)]
    if method != "standard":
        assert any(first.tolist() != other.tolist() for other in others)
    thin(X, 20, method=method)  # fresh numbers


@EACH_METHOD
@pytest.mark.parametrize("size", [20, 300])
def test_a_generator_is_advanced_by_one_number(method, size):
    used, counted = np.random.default_rng(5), np.random.default_rng(5)
    thin(X, size, method=method, rng=used)
    counted.integers(2**64, dtype=np.uint64)
    assert used.bit_generator.state == counted.bit_generator.state


@EACH_METHOD
def test_the_input_is_not_touched(method, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    frozen, weights = X.copy(), np.arange(300.0)
    frozen.flags.writeable = weights.flags.writeable = False
    expected = thin(X, 20, method=method, rng=0, weights=weights)
    for points in (mapped, frozen):
        np.testing.assert_array_equal(
            thin(points, 20, method=method, rng=0, weights=weights), expected
        )
        np.testing.assert_array_equal(points, X)
    np.testing.assert_array_equal(weights, np.arange(300))


@EACH_METHOD
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_threads_change_nothing(method, dtype):
    points = mixture(3000).astype(dtype)
    results = []
    for threads in (1, 2, 5):
        set_num_threads(threads)
        results.append(thin(points, 16, method=method, bandwidth=1.0, rng=0).tolist())
    assert results[0] == results[1] == results[2]


@EACH_METHOD
def test_all_points(method):
    for n in (1, 2, 31):
        rows = thin(X[:n], n, method=method, bandwidth=1.0, rng=0)
        np.testing.assert_array_equal(rows, np.arange(n))


@EACH_METHOD
def test_far_from_the_origin(method):
    """Moving all points by a number that leaves their differences exact changes nothing."""
    grid = np.round(X * 2**20) / 2**20
    here = thin(grid, 20, method=method, bandwidth=1.0, rng=0)
    np.testing.assert_array_equal(
        thin(grid + 2.0**20, 20, method=method, bandwidth=1.0, rng=0), here
    )


@EACH_METHOD
def test_units_do_not_matter(method):
    here = thin(X, 20, method=method, rng=0)
    np.testing.assert_array_equal(thin(X * 2.0**100, 20, method=method, rng=0), here)
    each = thin(X * [1, 8], 20, method=method, bandwidth=[2.0, 16.0], rng=0)
    np.testing.assert_array_equal(each, thin(X, 20, method=method, bandwidth=2.0, rng=0))


@EACH_METHOD
@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "energy"])
def test_points_that_are_all_equal(method, kernel):
    same = np.full((50, 2), 0.1)
    for unique in (True, False):
        rows = thin(same, 12, method=method, kernel=kernel, bandwidth=1.0, unique=unique, rng=0)
        assert_rows(rows, 50, 12, unique)
    if method in BLIND:
        assert_rows(thin(same, 12, method=method, kernel=kernel), 50, 12, True)
        return
    with pytest.raises(ValueError, match="^bandwidth='median' needs points that differ; all 50"):
        thin(same, 12, method=method, kernel=kernel)


def test_pairs_of_equal_points():
    """A point that comes twice stands for two: chosen or not, rows stay distinct."""
    double = np.repeat(X[:100], 2, axis=0)
    for method in METHODS:
        assert_rows(thin(double, 60, method=method, rng=0), 200, 60)


def test_one_point():
    assert thin(X[:1], 1).tolist() == [0]
    assert mmd(X[:1], [0]) == 0


def test_standard_ends_with_the_last():
    assert thin(X, 7, method="standard").tolist() == [41, 84, 127, 170, 213, 256, 299]
    rows = thin(X[:4], 2, method="standard", weights=[1, 0, 0, 3], unique=False)
    assert rows.tolist() == [0, 3] or rows.tolist() == [3, 3]
    assert thin(X[:4], 2, method="standard", weights=[1, 1, 2, 4]).tolist() == [2, 3]


def test_random_is_uniform():
    counts = np.zeros(20)
    for seed in range(600):
        counts[thin(X[:20], 5, method="random", rng=seed, bandwidth=1.0)] += 1
    assert np.max(np.abs(counts - 150)) < 5 * math.sqrt(600 * 0.25 * 0.75)


@pytest.mark.parametrize("method", ["compress++", "kernel-thinning", "kh-compress", "halving"])
def test_unrefined_halves_are_unbiased(method):
    """Each row has the same chance, size / n, without swaps."""
    counts = np.zeros(32)
    for seed in range(600):
        rows = thin(X[:32], 8, method=method, refine=False, g=0, rng=seed, bandwidth=1.0)
        counts[rows] += 1
    assert counts.sum() == 600 * 8
    assert np.max(np.abs(counts - 150)) < 5 * math.sqrt(600 * 0.25 * 0.75)


# weights


@EACH_METHOD
def test_equal_weights_are_no_weights(method):
    expected = thin(X, 20, method=method, rng=0)
    for weights in (np.full(300, 0.7), np.ones(300, int), [True] * 300):
        np.testing.assert_array_equal(thin(X, 20, method=method, rng=0, weights=weights), expected)


@EACH_METHOD
def test_a_weighted_sample_is_represented(method):
    """Better than by the rows that are chosen without its weights."""
    points = mixture(1000)
    weights = np.exp(points[:, 0] / 2)
    weighted, unweighted = [], []
    for seed in range(3):
        for errors, given_weights in ((weighted, weights), (unweighted, None)):
            rows = thin(points, 25, method=method, weights=given_weights, rng=seed, bandwidth=1.5)
            errors.append(mmd(points, rows, weights=weights, bandwidth=1.5))
    assert np.mean(weighted) < np.mean(unweighted) / 1.5
    if method in SWAPPED:
        assert np.mean(weighted) < np.mean(unweighted) / 5


@EACH_METHOD
def test_weights_have_no_unit(method):
    weights = np.random.default_rng(0).integers(1, 9, 300).astype(float)
    expected = thin(X, 20, method=method, rng=0, weights=weights)
    np.testing.assert_array_equal(
        thin(X, 20, method=method, rng=0, weights=weights * 2.0**40), expected
    )


@EACH_METHOD
@pytest.mark.parametrize("refine", [True, False])
def test_rows_without_weight_are_not_chosen(method, refine):
    weights = np.zeros(300)
    weighing = np.random.default_rng(0).choice(300, 60, replace=False)
    weights[weighing] = np.random.default_rng(1).uniform(0.5, 1, 60)
    for size in (1, 10, 60):
        rows = thin(X, size, method=method, rng=0, weights=weights, refine=refine)
        assert_rows(rows, 300, size)
        assert set(rows) <= set(weighing)
    rows = thin(X, 70, method=method, rng=0, weights=weights, refine=refine)
    assert_rows(rows, 300, 70)


@EACH_METHOD
def test_rows_repeat_where_they_may(method):
    weights = np.zeros(300)
    weights[[5, 100, 250]] = [3, 2, 1]
    rows = thin(X, 12, method=method, rng=0, weights=weights, unique=False)
    assert_rows(rows, 300, 12, distinct=False)
    assert set(rows) <= {5, 100, 250}
    counts = np.bincount(rows, minlength=300)[[5, 100, 250]]
    if method == "random":
        assert counts.max() > 1
    else:
        assert counts.tolist() == [6, 4, 2]


# how good


@pytest.mark.parametrize("weights", [None, np.arange(2000) % 5], ids=["equal", "weighted"])
@pytest.mark.parametrize("unique", [True, False])
def test_blocks(monkeypatch, weights, unique):
    """Where a tree would leave too many rows they are thinned in interleaved blocks."""
    points = mixture(2000)
    settings = {"bandwidth": 1.5, "weights": weights}
    whole = thin(points, 200, unique=unique, rng=0, **settings)
    monkeypatch.setattr(methods, "BLOCK", 1000)
    rows = thin(points, 200, unique=unique, rng=0, **settings)
    assert_rows(rows, 2000, 200, distinct=unique)
    assert rows.tolist() != whole.tolist()
    if weights is not None:
        assert np.all(weights[rows] > 0)
    random = thin(points, 200, method="random", rng=0, **settings)
    errors = [mmd(points, chosen, **settings) for chosen in (whole, rows, random)]
    assert errors[0] < errors[1] < errors[2] / 4


@pytest.mark.parametrize(
    ("n", "size", "g"), [(302, 301, 0), (300, 3, 9), (300, 1, 15), (250, 90, 2)]
)
@pytest.mark.parametrize("unique", [True, False])
def test_blocks_of_any_size(monkeypatch, n, size, g, unique):
    """Blocks that hardly have the rows they are to choose, or fewer to choose than blocks."""
    monkeypatch.setattr(methods, "BLOCK", 100)
    points = mixture(n)
    few = np.r_[np.ones(30), np.zeros(n - 30)]
    for weights in (None, few, np.r_[1e6, np.ones(n - 1)], np.arange(n) % 2 + 0.5):
        rows = thin(points, size, g=g, bandwidth=1.0, weights=weights, unique=unique, rng=0)
        assert_rows(rows, n, size, distinct=unique)


def test_quality():
    """On the mixture, mean over five seeds: swaps are worth most, any halving beats chance."""
    points, errors = mixture(2048), {}
    for method in METHODS:
        errors[method] = np.mean(
            [
                mmd(points, thin(points, 32, method=method, bandwidth=1.5, rng=seed), bandwidth=1.5)
                for seed in range(5)
            ]
        )
    assert errors["kernel-thinning"] < errors["compress++"] < 1.5 * errors["kernel-thinning"]
    assert errors["compress++"] < errors["random"] / 3
    for method in ("kh-compress", "halving"):
        assert errors["compress++"] < errors[method] < errors["random"]


def test_refining_helps():
    points = mixture(1000)
    for method in SWAPPED:
        with_swaps, without = (
            np.mean(
                [
                    mmd(
                        points,
                        thin(points, 20, method=method, refine=refine, bandwidth=1.5, rng=seed),
                        bandwidth=1.5,
                    )
                    for seed in range(3)
                ]
            )
            for refine in (True, False)
        )
        assert with_swaps < without / 1.3


def task_for(points, size, unique=True, target="sample", kernel=None):
    problem = as_problem(points, kernel or kernels.gaussian(1.0))
    return Task(
        problem, len(points), size, None, 0.5, True, unique, target, np.random.default_rng(0)
    )


@pytest.mark.parametrize("unique", [True, False])
def test_swaps_never_raise_the_error(unique):
    """The result is at least as good as the best of the coresets it starts from."""
    points = mixture(200)
    every, share = np.arange(200), np.full(200, 1 / 200)
    rng = np.random.default_rng(0)
    for size in (1, 7, 33):
        coresets = np.array([rng.choice(200, size, replace=False) for _ in range(4)])
        task = task_for(points, size, unique)
        rows = methods._swap(task, every, coresets.copy(), every, share)
        best = min(mmd(points, start, bandwidth=1.0) for start in coresets)
        got = mmd(points, rows, bandwidth=1.0)
        assert got < best
        assert np.unique(rows).size == size or not unique
        for place in range(size):  # no single exchange makes it better
            for other in range(0, 200, 9):
                changed = rows.copy()
                changed[place] = other
                if np.unique(changed).size == size:
                    assert mmd(points, changed, bandwidth=1.0) > got - 1e-12


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_potential_is_kept_up_to_date(dtype):
    """After the swaps it is what its definition says, and swaps were counted."""
    points = mixture(150).astype(dtype)
    candidates, size = np.arange(3, 150, 2), 9
    problem = as_problem(points, kernels.gaussian(1.0))
    mean = embed(problem, candidates, np.arange(150), np.full(150, 1 / 150))
    K = reference_kernels.gaussian(*[points[candidates].astype(float)] * 2)
    coreset = np.arange(size) * 3
    start = coreset.copy()

    def potential_of(chosen):
        return np.diagonal(K) / size + 2 * K[:, chosen].mean(axis=1) - 2 * mean

    potential = diagonal(problem, candidates) / size - 2 * mean
    potential += 2 * embed(problem, candidates, candidates[coreset], np.full(size, 1 / size))
    tolerance = 1e-13 if dtype == np.float64 else 1e-6
    np.testing.assert_allclose(potential, potential_of(coreset), rtol=0, atol=tolerance)
    memory = np.empty(2 * 96 * 2, dtype)
    changes = sums.swap(
        problem,
        candidates,
        potential,
        coreset,
        True,
        100,
        memory,
        sums.workspace(2, np.dtype(dtype)),
    )
    assert changes >= np.sum(coreset != start) > 0
    np.testing.assert_allclose(potential, potential_of(coreset), rtol=0, atol=10 * tolerance)
    again = sums.swap(
        problem,
        candidates,
        potential,
        coreset,
        True,
        100,
        memory,
        sums.workspace(2, np.dtype(dtype)),
    )
    assert again == 0 or dtype == np.float32


def test_one_pass_swaps_as_the_formula_says():
    points = mixture(60)
    problem = as_problem(points, kernels.gaussian(1.0))
    every, size = np.arange(60), 5
    mean = embed(problem, every, every, np.full(60, 1 / 60))
    K = reference_kernels.gaussian(points, points)

    def error(rows):
        return K[np.ix_(rows, rows)].mean() - 2 * mean[rows].mean()

    expected = np.arange(size)
    for place in range(size):
        tried = [np.where(np.arange(size) == place, y, expected) for y in range(60)]
        free = [y for y in range(60) if y not in expected or y == expected[place]]
        expected = tried[min(free, key=lambda y: error(tried[y]))]
    coreset = np.arange(size)
    potential = np.diagonal(K) / size + 2 * K[:, coreset].mean(axis=1) - 2 * mean
    sums.swap(
        problem, every, potential, coreset, True, 1, np.empty(256), sums.workspace(2, points.dtype)
    )
    np.testing.assert_array_equal(coreset, expected)


# a measure whose mean embedding is zero


@pytest.mark.parametrize("method", SWAPPED)
def test_mean_zero_stands_for_the_density(method):
    """Rows of a sample of another density are chosen to represent N(0, 1) by its score."""
    points = np.random.default_rng(0).normal(0.8, 1.5, size=(600, 1))
    kernel = kernels.stein(-points)
    settings = {"kernel": kernel, "rng": 0, "method": method, "g": 5}
    rows = thin(points, 24, target="mean-zero", **settings)
    of_sample = thin(points, 24, **settings)
    discrepancy = {
        name: mmd(points, chosen, kernel=kernel, target="mean-zero")
        for name, chosen in {
            "rows": rows,
            "sample": of_sample,
            "standard": thin(points, 24, method="standard"),
        }.items()
    }
    assert discrepancy["rows"] < discrepancy["sample"] / 3
    assert discrepancy["rows"] < discrepancy["standard"] / 3
    assert abs(points[rows].mean()) < 0.1 < points[of_sample].mean()
    assert abs(points[rows].std() - 1) < 0.15


def test_mean_zero_stands_for_the_cube():
    points = np.random.default_rng(0).beta(2, 3, size=(500, 2))
    rows = thin(points, 20, kernel="sobolev", target="mean-zero", method="kernel-thinning", rng=0)
    start = thin(points, 20, method="standard")
    got, before = (mmd(points, r, kernel="sobolev", target="mean-zero") for r in (rows, start))
    assert got < before / 2
    assert np.all(np.abs(points[rows].mean(axis=0) - 0.5) < 0.1)


# kernels


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


NAN = np.where(X > 2, np.nan, X)
STEIN = kernels.stein(-X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "^size must be an integer of at least 1; got 0$"),
        ({"size": 2.0}, "^size must be an integer of at least 1; got 2.0$"),
        ({"size": True}, "^size must be an integer of at least 1; got True$"),
        ({"size": 301}, "^size must be at most the 300 points there are; got 301$"),
        ({"points": NAN}, "^points must be finite; it holds NaN or infinity$"),
        ({"points": NAN, "bandwidth": 1.0}, "^points must be finite; it holds NaN or infinity$"),
        ({"points": NAN, "method": "random"}, "^points must be finite; it holds NaN or infinity$"),
        ({"points": X * np.nan}, "^points must be finite; it holds NaN or infinity$"),
        ({"points": X[:, 0]}, r"^points must have shape \(n, d\); got shape \(300,\) \(one column"),
        ({"method": "compress"}, r"^method must be one of 'compress\+\+', .*; got 'compress'$"),
        ({"method": None}, "^method must be one of .*; got None$"),
        ({"target": "zero"}, "^target must be one of 'sample', 'mean-zero'; got 'zero'$"),
        ({"device": "tpu"}, "^device must be one of 'auto', 'cpu'.*; got 'tpu'$"),
        ({"g": -1}, "^g must be an integer of at least 0; got -1$"),
        ({"g": 1.5}, "^g must be an integer of at least 0; got 1.5$"),
        ({"delta": 0}, r"^delta must lie in \(0, 1\]; got 0$"),
        ({"delta": 1.5}, r"^delta must lie in \(0, 1\]; got 1.5$"),
        ({"rng": -1}, "^rng must be None, a non-negative int or a numpy.random.Generator; got -1$"),
        (
            {"weights": np.ones(3)},
            r"^weights must be numbers of shape \(300,\); got dtype float64, ",
        ),
        ({"weights": np.ones((300, 1))}, r"^weights must .*, shape \(300, 1\)$"),
        ({"weights": ["a"] * 300}, r"^weights must be numbers of shape \(300,\); got dtype <U1"),
        ({"weights": np.zeros(300)}, "^weights must be finite .* not all zero$"),
        ({"weights": -np.ones(300)}, "^weights must be finite .* none of them negative"),
        ({"weights": NAN[:, 0]}, "^weights must be finite"),
        ({"weights": np.full(300, 1e307)}, "^weights must be finite and have a finite sum"),
        ({"kernel": "gausian"}, "^kernel must be a Kernel or one of energy, .*; got 'gausian'$"),
        ({"kernel": None}, "^kernel must be a Kernel or one of energy, .*; got None$"),
        ({"kernel": kernels.gaussian}, r"^kernel must be .* \(call it: gaussian\(\)\)$"),
        ({"kernel": lambda x, y: x[0]}, "^kernel must be symmetric; got entries that differ by"),
        (
            {"kernel": lambda x, y: "no"},
            "^kernel must return finite numbers; on some of the points",
        ),
        ({"kernel": "precomputed"}, r"^points must be a Gram matrix \(n, n\) .*got \(300, 2\)$"),
        ({"kernel": "sobolev"}, r"^points must lie in \[0, 1\] for kernel sobolev; got -"),
        (
            {"kernel": kernels.stein(-X[:9])},
            r"^scores must have the shape of the points \(300, 2\); got \(9, 2\)$",
        ),
        ({"bandwidth": 0}, "^bandwidth must be positive and finite; got 0$"),
        ({"bandwidth": [1, -1]}, "^bandwidth must be positive and finite; got -1.0$"),
        (
            {"bandwidth": [1, 2, 3]},
            "^bandwidth must have one number for each of 2 dimensions; got 3$",
        ),
        (
            {"bandwidth": "scott"},
            "^bandwidth must be a positive number, .* or 'median'; got 'scott'$",
        ),
        ({"bandwidth": None}, "^bandwidth must be a positive number, .* or 'median'; got None$"),
        (
            {"kernel": "linear", "bandwidth": 1.0},
            "^bandwidth is part of the kernel 'linear', or it ",
        ),
        (
            {"kernel": kernels.gaussian(), "bandwidth": 1.0},
            "^bandwidth is part of the kernel 'gaussian', or it has none; got 1.0 besides$",
        ),
        ({"points": np.ones((9, 2))}, "^bandwidth='median' needs points that differ; all 9 that"),
        (
            {"kernel": STEIN, "target": "mean-zero", "method": "halving"},
            r"^target='mean-zero' takes refine=True and method 'compress\+\+' or "
            "'kernel-thinning'; got refine=True, method='halving'$",
        ),
        (
            {"kernel": STEIN, "target": "mean-zero", "refine": False},
            "^target='mean-zero' takes .* got refine=False, method='compress",
        ),
        (
            {"kernel": "energy", "target": "mean-zero"},
            "^target='mean-zero' takes a positive definite kernel; energy is not$",
        ),
        (
            {"kernel": kernels.gaussian() + kernels.energy(), "target": "mean-zero"},
            "^target='mean-zero' takes a positive definite kernel; energy is not$",
        ),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, dict) else "",
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        thin(**({"points": X, "size": 5} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": X + 1j}, "^points must be float16, float32 or float64; got dtype complex128$"),
        (
            {"points": X.astype(object)},
            "^points must be float16, float32 or float64; got dtype obj",
        ),
        ({"rng": "seed"}, "^rng must be None, a non-negative int or .*; got 'seed'$"),
        ({"rng": np.random.RandomState}, "^rng must be None, a non-negative int or"),
    ],
)
def test_bad_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        thin(**({"points": X, "size": 5} | arguments))


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


def test_functions_are_tried_in_the_dtype_of_the_points():
    """A cosine in float32 is symmetric to the digits it has."""

    @njit
    def cosine(product, a, b):
        return product / np.sqrt(a) / np.sqrt(b)

    points = X.astype("f4")
    kept = kh_compress(points, g=1, kernel=kernels.of_products(cosine), rng=0)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_array_equal(kept, kh_compress(unit, g=1, kernel="linear", rng=0))


@pytest.mark.parametrize("size", [100, 400, 1100, 2400])
def test_heavy_and_light_weights(size):
    """Rows that weigh too little for a copy can be chosen, and blocks get their share."""
    rng = np.random.default_rng(0)
    points, weights = rng.normal(size=(9000, 2)), np.exp(3 * rng.normal(size=9000))
    settings = {"weights": weights, "bandwidth": 1.6}
    error = mmd(points, thin(points, size, rng=0, **settings), **settings)
    random = mmd(
        points, thin(points, size, method="random", unique=False, rng=0, **settings), **settings
    )
    assert error < random / 4


@pytest.mark.parametrize("method", BLIND)
def test_methods_that_do_not_look_call_no_kernel(method):
    def k(x, y):
        raise AssertionError

    assert_rows(thin(X, 5, kernel=k, method=method, rng=0), 300, 5, True)
    assert_rows(thin(X, 300, kernel=k, rng=0), 300, 300, True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"refine": "no"}, TypeError, "^refine must be True or False; got 'no'$"),
        ({"unique": None}, TypeError, "^unique must be True or False; got None$"),
        ({"kernel": np.eye(300)}, ValueError, "^kernel must be a Kernel or one of"),
        ({"method": np.array(["a", "b"])}, ValueError, "^method must be one of"),
        (
            {"kernel": "gausian", "method": "random"},
            ValueError,
            "^kernel must be a Kernel or one of .*; got 'gausian'$",
        ),
        (
            {"kernel": kernels.Kernel("t", phi.TABLE, companion=np.eye(5))},
            ValueError,
            "^points must be a Gram matrix",
        ),
        ({"kernel": kernels.Kernel("t", phi.PAIRWISE)}, TypeError, "^kernel must be comp|call"),
    ],
)
def test_more_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        thin(X, 5, rng=0, **arguments)


def test_kernels_that_kh_compress_does_not_take():
    plain = kernels.pairwise(lambda x, y: 1.0)
    with pytest.raises(TypeError, match="^kernel must be compiled by numba.njit here"):
        kh_compress(X, kernel=plain)
    table = kernels.Kernel("t", phi.TABLE, companion=np.eye(300))
    with pytest.raises(ValueError, match="^kernel precomputed must be a matrix of the 300 points"):
        kh_compress(np.stack([X, X]), kernel=table)
    with pytest.raises(ValueError, match="^points must be finite"):
        kh_compress(X * np.nan, kernel="sobolev")


def test_sets_of_a_stack_stand_alone():
    """Under kernels that are shifted by their largest value as under others."""
    rng = np.random.default_rng(0)
    stack = np.stack([rng.normal(size=(256, 2)), 40 * rng.normal(size=(256, 2))])
    kernel = kernels.exponential([1.0, 1.0])
    kept = kh_compress(stack, g=0, kernel=kernel, rng=0)
    for points, rows in zip(stack, kept, strict=True):
        np.testing.assert_array_equal(rows, kh_compress(points, g=0, kernel=kernel, rng=0))


def test_machine_code_for_a_function_is_not_stored():
    """No other process could use it."""

    @njit
    def k(x, y):
        return np.exp(-np.abs(x - y).sum())

    thin(X, 10, rng=0)
    stored, twin = halve.halve_buckets, jit.uncached(halve.halve_buckets)
    before = len(stored.signatures), len(twin.signatures)
    thin(X, 10, kernel=k, rng=0)
    assert (len(stored.signatures), len(twin.signatures)) == (before[0], before[1] + 1)
    assert isinstance(twin._cache, NullCache)
