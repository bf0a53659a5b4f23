"""Points and Gram matrices: the kernels keep what the specification keeps."""

import os

import numpy as np
import pytest
from problems import (
    Points,
    in_domain,
    integers,
    reference_numpy,
    smallest_margin,
)
from simulator import FLOAT32_TOLERANCE, THREADS, OnGpu, host

from thinformer import (
    compress_schedule,
    kernel_halve,
    kh_compress,
    make_draws,
    thin,
)
from thinformer.cpu.points import embed
from thinformer.cuda import launches, run, tiles
from thinformer.cuda.jit import cuda
from thinformer.cuda.values import make_tabulate
from thinformer.halving.problem import make_points
from thinformer.kernels import (
    exponential,
    gaussian,
    matern,
    polynomial,
    sobolev,
    with_labels,
)
from thinformer.kernels.catalogue import KERNELS
from thinformer.measuring import validate


def points_problem(rng, kernel, S, size, dtype, dim=2):
    schedule = compress_schedule(S, size)
    points = rng.standard_normal((schedule.length, dim)).astype(dtype)
    return Points(points, kernel), schedule, make_draws(schedule, int(rng.integers(2**62)))


@pytest.mark.parametrize("kernel", KERNELS)
def test_points(kernel):
    """Two rounds, the first of four buckets; panels of several tiles."""
    rng = np.random.default_rng(0)
    problem, schedule, draws = points_problem(rng, kernel, 80, 20, np.float64)
    problem = problem._replace(points=in_domain(kernel, problem.points))
    expected, traces = reference_numpy(problem, schedule, draws)
    assert smallest_margin(traces) > 1e-12
    assert 5 < np.sum(expected % 2) < 15
    kept = kh_compress(problem.points, size=20, kernel=kernel, draws=draws, device="cuda")
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize(("S", "size"), [(2, 1), (3, 2), (24, 1), (100, 9), (90, 45)])
def test_any_size(S, size):
    """Buckets of uneven sizes, less than a panel, and more columns than are staged at once."""
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64):
        dim = 35 if S == 90 and dtype == np.float32 else 2
        problem, schedule, draws = points_problem(rng, "gaussian", S, size, dtype, dim)
        expected, traces = reference_numpy(problem, schedule, draws)
        assert smallest_margin(traces) > FLOAT32_TOLERANCE
        kept = kh_compress(problem.points, size=size, draws=draws, device="cuda")
        np.testing.assert_array_equal(kept, expected)


def test_tiles_of_more_rows_than_a_panel(monkeypatch):
    """As in blocks of the size that GPUs get."""
    monkeypatch.setattr(launches, "threads_for", lambda largest_bucket, dtype: 128)
    rng = np.random.default_rng(0)
    problem, schedule, draws = points_problem(rng, "exponential", 150, 75, np.float64)
    expected, traces = reference_numpy(problem, schedule, draws)
    assert smallest_margin(traces) > 1e-12
    kept = kh_compress(problem.points, size=75, kernel="exponential", draws=draws, device="cuda")
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", ["linear", "polynomial"])
def test_integers_bit_for_bit(kernel, dtype):
    rng = np.random.default_rng(0)
    schedule = compress_schedule(70, 35)
    problem = Points(integers(rng, schedule.length, 3, dtype), kernel)
    draws = make_draws(schedule, 0)
    expected, _ = reference_numpy(problem, schedule, draws)
    kept = kh_compress(problem.points, size=35, kernel=kernel, draws=draws, device="cuda")
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("distance", [1e3, 1e5])
def test_far_clusters(distance):
    """Points of a cluster are told apart however far the clusters are from each other."""
    rng = np.random.default_rng(2)
    schedule = compress_schedule(64, 32)
    points = rng.standard_normal((64, 3)) + distance * rng.choice([-1, 1], (64, 1))
    problem, draws = Points(points.astype(np.float32), "gaussian"), make_draws(schedule, 1)
    expected, traces = reference_numpy(problem, schedule, draws)
    assert smallest_margin(traces) > FLOAT32_TOLERANCE
    kept = kh_compress(problem.points, size=32, draws=draws, device="cuda")
    np.testing.assert_array_equal(kept, expected)


def test_bandwidths_and_weights():
    """A bandwidth a dimension; a factor, to which halving is blind."""
    rng = np.random.default_rng(0)
    points = rng.standard_normal((48, 3))
    for kernel in (3 * gaussian([1, 0.5, 2]), matern(0.7, nu=2.5)):
        expected = kh_compress(points, size=24, kernel=kernel, rng=1)
        kept = kh_compress(points, size=24, kernel=kernel, rng=1, device="cuda")
        np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("method", ["kh-compress", "halving"])
@pytest.mark.parametrize(
    ("kernel", "bandwidth"),
    [("gaussian", 0.7), ("exponential", 0.9), ("polynomial", [0.7, 2.0]),
     (gaussian([0.5, 1]) + 0.3 * polynomial(2) + 2 * sobolev() + 0.1 * exponential(3), "median"),
     ("precomputed", "median")],
)  # fmt: skip
def test_thin(method, kernel, bandwidth):
    """Bandwidths by column, sums of kernels of all kinds, and Gram matrices."""
    points = np.random.default_rng(0).random((40, 3))[::-1, :2]
    if kernel == "precomputed":
        points = np.exp(-np.abs(np.subtract.outer(points[:, 0], points[:, 0])))
    options = {"kernel": kernel, "bandwidth": bandwidth, "method": method, "rng": 0}
    expected = thin(points, 10, **options)
    assert 0 < np.sum(expected % 2) < 10
    told = []
    options |= {"device": "cuda", "progress": lambda *stage: told.append(stage)}
    np.testing.assert_array_equal(thin(points, 10, **options), expected)
    assert told == [("halving", 0.0), ("halving", 1.0)]


@pytest.mark.parametrize(
    "kernel",
    [polynomial(2, bandwidth=[0.5] * 35), exponential([2.0, *[5.0] * 34]), 3 * gaussian([2] * 35),
     gaussian(2) + 0.3 * polynomial(2) + 2 * sobolev() + 0.1 * matern([3] * 35, nu=2.5)],
)  # fmt: skip
def test_kernel_values(kernel):
    """A tile of a sum of terms, with bandwidths by column and more columns than are staged."""
    points = np.random.default_rng(0).random((16, 35))
    problem = make_points(points, kernel)
    variant, (factor,), parameters, scales = run.describe(problem)
    tabulate, positions = make_tabulate(variant, THREADS), np.arange(16)[::-1].copy()

    def tile(window, place, parameters, scales, positions, out):
        rows = cuda.shared.array((tiles.DEPTH, 16 + tiles.PAD), np.float64)
        panel = cuda.shared.array((tiles.DEPTH, tiles.PANEL + tiles.PAD), np.float64)
        patch, other = cuda.local.array(16, np.float64), cuda.local.array(16, np.float64)
        none = (0.0, 0.0, 0.0)
        tabulate(patch, other, rows, panel, window, place, window, place, positions, 0, 0, none,
                 none, parameters, scales)  # fmt: skip
        row, point = 4 * (cuda.threadIdx.x // 8), 4 * (cuda.threadIdx.x % 8)
        for i in range(16):
            out[row + i // 4, point + i % 4] = patch[i]

    out = cuda.to_device(np.zeros((16, 32)))
    place = (0, factor.row, factor.column, 35)
    arrays_ = factor.window.copy(), parameters[0], scales, positions
    window, *others = map(cuda.to_device, arrays_)
    cuda.jit(tile)[1, THREADS](window, place, *others, out)
    each = [embed(problem, positions, positions[i : i + 1], np.ones(1)) for i in range(16)]
    np.testing.assert_allclose(out.copy_to_host()[:, :16], each, rtol=1e-12)


@pytest.mark.parametrize(("S", "dtype"), [(70, "f8"), (33, "f4"), (2, "f8"), (1, "f8")])
def test_kernel_halve(S, dtype, arrays_on_the_simulator):
    """A stack of matrices; an odd last point is carried over."""
    x = np.random.default_rng(0).standard_normal((2 if S < 70 else 1, 2, S))
    K = np.exp(-((x[..., None] - x[..., None, :]) ** 2)).astype(dtype)
    expected = kernel_halve(K, rng=0)
    kept = kernel_halve(K, rng=0, device="cuda")
    np.testing.assert_array_equal(kept, expected)
    assert kernel_halve(K[:0], device="cuda").shape == (0, 2, -(-S // 2))
    assert kernel_halve(OnGpu(K[:0])).shape == (0, 2, -(-S // 2))
    np.testing.assert_array_equal(host(kernel_halve(OnGpu(K.swapaxes(0, 1)), rng=0)),
                                  expected.swapaxes(0, 1))  # fmt: skip


def test_stacks():
    """Each set of a stack gets what it gets alone."""
    points = np.random.default_rng(0).standard_normal((2, 24, 2, 2)).transpose(2, 0, 1, 3)
    kept = kh_compress(points, size=6, rng=0, device="cuda")
    assert kept.shape == (2, 2, 6)
    np.testing.assert_array_equal(kept, kh_compress(points, size=6, rng=0))


@pytest.mark.nightly
def test_validate(monkeypatch):
    """The command's comparison with what was recorded, on its smallest cases."""
    few = {}
    for case, fields in validate.load_vectors():
        if case["kind"] != "attention" and case.get("kernel") in (None, "gaussian", "sobolev"):
            largest = max(fields[name].size for name in validate.INPUTS if name in fields)
            few.setdefault((case["kind"], case.get("kernel")), []).append((largest, case, fields))
    few = [min(vectors, key=lambda vector: vector[0])[1:] for vectors in few.values()]
    assert {case["kind"] for case, _ in few} == {"halve", "points", "thin"}
    monkeypatch.setattr(validate, "load_vectors", lambda: few)
    monkeypatch.setattr(validate.importlib.util, "find_spec", lambda name: None)
    rows = validate.validate("cuda")
    assert sum(row.cases for row in rows) == len(few)
    assert all((row.body, row.failed) == ("numba.cuda", []) for row in rows)


def test_what_is_not_there_is_refused():
    points = np.random.default_rng(0).random((8, 1))
    labelled = with_labels(gaussian(), np.ones(8))
    with pytest.raises(NotImplementedError, match='device="cpu" takes kernels with labels too$'):
        thin(points, 2, kernel=labelled, device="cuda")
    with pytest.raises(NotImplementedError, match="got gaussian with labels$"):
        kh_compress(OnGpu(points), kernel=labelled)


def test_this_is_a_process_of_its_own():
    assert os.environ["NUMBA_ENABLE_CUDASIM"] == "1"
