"""The methods of `thin`: their quality, their swaps, blocks, and the targets they represent."""

import math

import numpy as np
import pytest
from points import SWAPPED, X, assert_rows, mixture

from reference import kernels as reference_kernels
from thinformer import kernels, kh_compress, mmd, thin
from thinformer.cpu import sums
from thinformer.cpu.points import diagonal, embed
from thinformer.thinning import methods
from thinformer.thinning.arguments import as_problem
from thinformer.thinning.methods import METHODS
from thinformer.thinning.task import Task


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


@pytest.mark.slow
@pytest.mark.parametrize("method", ["compress++", "kernel-thinning", "kh-compress", "halving"])
def test_unrefined_halves_are_unbiased(method):
    """Each row has the same chance, size / n, without swaps."""
    counts = np.zeros(32)
    for seed in range(600):
        rows = thin(X[:32], 8, method=method, refine=False, g=0, rng=seed, bandwidth=1.0)
        counts[rows] += 1
    assert counts.sum() == 600 * 8
    assert np.max(np.abs(counts - 150)) < 5 * math.sqrt(600 * 0.25 * 0.75)


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
    of_sample = thin(points, 24, target="sample", **settings)
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


def test_sets_of_a_stack_stand_alone():
    """Under kernels that are shifted by their largest value as under others."""
    rng = np.random.default_rng(0)
    stack = np.stack([rng.normal(size=(256, 2)), 40 * rng.normal(size=(256, 2))])
    kernel = kernels.exponential([1.0, 1.0])
    kept = kh_compress(stack, g=0, kernel=kernel, rng=0)
    for points, rows in zip(stack, kept, strict=True):
        np.testing.assert_array_equal(rows, kh_compress(points, g=0, kernel=kernel, rng=0))
