"""`thin` on a GPU: every method keeps what the CPU body keeps; and the sums that it is made of."""

import numpy as np
import pytest
from simulator import THREADS

from thinformer import bodies, kernels, thin
from thinformer.cpu import points as on_cpu
from thinformer.cuda import launches, sums
from thinformer.cuda import points as on_gpu
from thinformer.cuda.shared import Sharing
from thinformer.halving.problem import make_points
from thinformer.kernels import exponential, gaussian, polynomial, sobolev, stein

LABELS = {"float64": np.float64, "float32": np.float32}
SUM = gaussian([0.5, 1]) + 0.3 * polynomial(2) + 2 * sobolev() + 0.1 * exponential(3)


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    monkeypatch.setattr(sums, "THREADS", THREADS)


def unit_points(n, dim=2, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).random((n, dim)).astype(dtype)


def scored(points, bandwidth=0.6):
    return stein(-(points - 0.5) * np.arange(1, points.shape[1] + 1), bandwidth)


def problems(dtype=np.float64):
    """Points of more columns than are staged at once, and kernels of every form."""
    wide, flat = unit_points(70, 35, dtype=dtype), unit_points(70, dtype=dtype)
    gram = np.exp(-np.abs(np.subtract.outer(flat[:, 0], flat[:, 0])))
    return {
        "gaussian": make_points(wide, gaussian(2)),
        "sum": make_points(flat, SUM),
        "stein": make_points(wide, scored(wide, np.linspace(0.5, 2, 35))),
        "precomputed": make_points(gram, kernels.Kernel("gram", kernels.phi.TABLE, companion=gram)),
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("gaussian", np.float32),
        ("sum", np.float64),
        ("stein", np.float64),
        ("precomputed", np.float32),
    ],
)
def test_sums(name, dtype, monkeypatch):
    """Mean embeddings, squared norms and diagonals, of some points in any order, in parts."""
    monkeypatch.setattr(on_gpu, "LENGTH", 16)
    problem = problems(dtype)[name]
    there = bodies.place("cuda", problem)
    rng = np.random.default_rng(1)
    at, index = rng.permutation(70)[:37], rng.permutation(70)[:45]
    weights = rng.standard_normal(45)

    def close(found, expected):
        off = 1e-12 if dtype == np.float64 else 2e-6
        np.testing.assert_allclose(found, expected, rtol=0, atol=off * np.abs(expected).max())

    expected = on_cpu.embed(problem, at, index, weights)
    close(bodies.embed(there, at, index, weights), expected)
    assert np.ptp(expected) > 1e-3
    sets = np.stack([rng.permutation(70)[:45] for _ in range(2)])
    expected = on_cpu.square(problem, sets, weights)
    close(bodies.square(there, sets, weights), expected)
    assert abs(expected[0] - expected[1]) > 1e-6 * abs(expected[0])
    expected = on_cpu.diagonal(problem, at)
    close(bodies.diagonal(there, at), expected)
    close(bodies.gram(there, index), on_cpu.gram(problem, index))
    np.testing.assert_array_equal(bodies.embed(there, at, index[:0], weights[:0]), np.zeros(37))


@pytest.mark.parametrize(
    ("name", "unique", "blocks"),
    [
        ("gaussian", True, 3),
        ("gaussian", False, 1),
        ("precomputed", True, 1),
        ("precomputed", False, 3),
    ],
)
def test_swaps(name, unique, blocks, monkeypatch):
    """Several passes, in one launch each, or in one of several blocks for each point."""
    monkeypatch.setattr(launches, "SPAN_FLOPS", 2**23 if blocks == 1 else 0)
    problem = problems()[name]
    there = bodies.place("cuda", problem)
    candidates, size = np.arange(2, 70), 5
    mean = on_cpu.embed(problem, candidates, np.arange(70), np.full(70, 1 / 70))
    for coreset in (np.arange(size), np.array([0, 60, 7, 33, 12])):
        potential = on_cpu.diagonal(problem, candidates) / size - 2 * mean
        equal = np.full(size, 1 / size)
        potential += 2 * on_cpu.embed(problem, candidates, candidates[coreset], equal)
        told = []
        for passes in (1, 8):
            given = problem, candidates, potential, coreset, unique, passes
            expected = on_cpu.swap(*given)
            told = []
            found = bodies.swap(there, *given[1:], told.append)
            np.testing.assert_array_equal(found, expected)
        assert np.sum(expected != coreset) >= 2
        assert told[-1] == 1.0


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("unique", [True, False])
def test_swaps_of_equal_points(unique, blocks, monkeypatch):
    """Of equal candidates the first is taken, or the point stays where none is better."""
    monkeypatch.setattr(launches, "SPAN_FLOPS", 2**23 if blocks == 1 else 0)
    points = np.repeat(unit_points(9), 4, axis=0)
    problem = make_points(points, gaussian(0.3))
    there = bodies.place("cuda", problem)
    every, size = np.arange(36), 3
    mean = on_cpu.embed(problem, every, every, np.full(36, 1 / 36))
    coreset = np.array([30, 31, 35])
    potential = on_cpu.diagonal(problem, every) / size - 2 * mean
    potential += 2 * on_cpu.embed(problem, every, coreset, np.full(size, 1 / size))
    expected = on_cpu.swap(problem, every, potential, coreset, unique, 8)
    found = bodies.swap(there, every, potential, coreset, unique, 8)
    np.testing.assert_array_equal(found, expected)
    taken = bodies.grow(there, every, 7, mean, unique)
    np.testing.assert_array_equal(taken, on_cpu.grow(problem, every, 7, mean, unique))


@pytest.mark.parametrize(
    ("name", "unique", "blocks"),
    [("stein", True, 1), ("stein", False, 3), ("gaussian", True, 3), ("gaussian", False, 1)],
)
def test_greedy_choice(name, unique, blocks, monkeypatch):
    monkeypatch.setattr(launches, "SPAN_FLOPS", 2**23 if blocks == 1 else 0)
    problem = problems()[name]
    candidates, mean = np.arange(3, 70), np.zeros(67)
    if name == "gaussian":
        mean = on_cpu.embed(problem, candidates, np.arange(70), np.full(70, 1 / 70))
    expected = on_cpu.grow(problem, candidates, 6, mean, unique)
    found = bodies.grow(bodies.place("cuda", problem), candidates, 6, mean, unique)
    np.testing.assert_array_equal(found, expected)


METHODS = {
    "kernel-thinning": {"method": "kernel-thinning"},
    "of KT-SPLIT alone": {"method": "kernel-thinning", "refine": False},
    "compress++": {"g": 1},
    "compress++, rows twice": {"g": 1, "unique": False},
    "weighted": {"g": 0, "weights": np.arange(40) % 5},
    "greedy": {"method": "greedy"},
    "halving": {"method": "halving"},
    "random": {"method": "random"},
}


@pytest.mark.parametrize("dtype", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("method", METHODS)
def test_methods(method, dtype):
    points = unit_points(40, dtype=dtype)
    settings = METHODS[method] | {"rng": 0}
    expected = thin(points, 5, **settings)
    np.testing.assert_array_equal(thin(points, 5, device="cuda", **settings), expected)


@pytest.mark.parametrize("method", ["kernel-thinning", "compress++", "greedy", "kh-compress"])
@pytest.mark.parametrize("kernel", ["sum", "stein", "wide stein", "precomputed"])
def test_kernels(kernel, method):
    points = unit_points(40, 2 if kernel != "wide stein" else 35)
    options = {"method": method, "g": 1, "rng": 0, "target": "sample"}
    if kernel == "precomputed":
        points = np.exp(-np.abs(np.subtract.outer(points[:, 0], points[:, 0])))
        options["kernel"] = "precomputed"
    else:
        options["kernel"] = SUM if kernel == "sum" else scored(points)
    if kernel == "stein" and method != "kh-compress":
        options["target"] = "mean-zero"
    expected = thin(points, 5, **options)
    np.testing.assert_array_equal(thin(points, 5, device="cuda", **options), expected)


def test_blocks_and_levels(monkeypatch):
    """Compress++ in blocks; and the rows that it compares with, of any round."""
    from thinformer.thinning import methods

    points = unit_points(70)
    monkeypatch.setattr(methods, "BLOCK", 16)
    for target in (1, 3, 7, 181):
        monkeypatch.setattr(methods, "TARGET", target)
        expected = thin(points, 6, g=1, rng=2)
        np.testing.assert_array_equal(thin(points, 6, g=1, rng=2, device="cuda"), expected)


def test_the_stages_are_told():
    points, stages = unit_points(40), {}
    for device in ("cpu", "cuda"):
        told = []
        thin(points, 5, g=1, rng=0, device=device, progress=lambda *stage: told.append(stage))  # noqa: B023
        stages[device] = list(dict.fromkeys(stage for stage, _ in told))
        assert told[-1] == ("KT-SWAP", 1.0)
    assert stages["cuda"] == stages["cpu"]
    assert len(stages["cpu"]) == 4


@pytest.mark.parametrize("n", [70, 64])
def test_kt_split_of_buckets_that_blocks_share(n, monkeypatch):
    """The variance of adaptive thresholds goes from span to span."""
    shared = []

    def sharing(round_, *_):
        shared.append(Sharing(32, round_.largest_bucket, 1))
        return shared[-1]

    points = unit_points(n)
    options = {"method": "kernel-thinning", "refine": False, "rng": 3}
    expected = thin(points, n // 4, **options)
    alone = thin(points, n // 4, device="cuda", **options)
    np.testing.assert_array_equal(alone, expected)
    monkeypatch.setattr(launches, "sharing", sharing)
    monkeypatch.setattr(launches, "LAUNCH_FLOPS", 0)
    np.testing.assert_array_equal(thin(points, n // 4, device="cuda", **options), expected)
    assert [each.points for each in shared] == [4 * (n // 4), 2 * (n // 4)]
