"""The CUDA kernels in Numba's simulator, a Python thread for each of theirs; test_cuda.py runs it.

Threads take turns, each up to its next barrier and in a random order, so a missing barrier shows:
some thread runs ahead and finds what another has not written yet.
"""

import contextlib
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numba.cuda.simulator import kernel as simulator
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from problems import (
    Attention,
    Points,
    in_domain,
    integers,
    reference_numpy,
    smallest_margin,
)

from reference import landmarks as reference_landmarks
from thinformer import (
    ThinformerAttention,
    attention,
    compress_kv,
    compress_schedule,
    kernel_halve,
    kh_compress,
    make_draws,
    thin,
    thinformer_attention,
)
from thinformer.attending.landmarks import (
    CANDIDATES,
    CORRECTIONS,
    PROPOSALS,
    QUERIES,
    STREAMS,
    SUMMED,
)
from thinformer.cpu.pivots import BLOCK
from thinformer.cpu.run import embed, starting_points
from thinformer.cuda import arrays, draw, run, tiles
from thinformer.cuda.halve import Geometry
from thinformer.cuda.jit import SIMULATED, cuda
from thinformer.cuda.values import make_tabulate
from thinformer.halving.draws import _unit_numbers, head_keys, seed_from
from thinformer.halving.plan import plan
from thinformer.halving.problem import make_points
from thinformer.kernels import exponential, gaussian, matern, polynomial, sobolev, stein
from thinformer.kernels.catalogue import KERNELS
from thinformer.measuring import validate
from thinformer.torch.choose import landmarks_on_gpu as landmarks_module
from thinformer.torch.choose import on_cpu
from thinformer.torch.choose.on_cpu import bits_of_seed
from thinformer.torch.choose.operators import landmarks, select

THREADS = 32
FLOAT32_TOLERANCE = 1e-4


class Turns(simulator.BlockManager):
    """Runs the threads of a block one at a time, each to its next barrier, in a random order."""

    rng = np.random.default_rng(0)

    def run(self, grid_point, *arguments):
        # a grid has no more than 65,535 blocks along its other axes, and problems may be more
        assert tuple(self._grid_dim[1:]) == (1, 1)
        threads = [
            Thread(lambda: self._f(*arguments), self, grid_point, point, False)
            for point in np.ndindex(*self._block_dim)
        ]
        while threads:
            for i in self.rng.permutation(len(threads)):
                threads[i].take_turn()
            at_barrier = [thread for thread in threads if thread.is_alive()]
            for thread in threads:
                if thread.exception:
                    raise thread.exception[0].with_traceback(thread.exception[1])
            assert len(at_barrier) in (0, len(threads)), "some threads miss a barrier"
            threads = at_barrier


class Thread(simulator.BlockThread):
    """A thread that waits for its turn."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.turn, self.over = threading.Semaphore(0), threading.Semaphore(0)
        self.begun = False

    def take_turn(self):
        if self.begun:
            self.turn.release()
        else:
            self.begun = True
            self.start()
        self.over.acquire()
        if self.finished:
            self.join()

    finished = False

    def run(self):
        with np.errstate(over="ignore", invalid="ignore"):  # random words; points not finite
            super().run()
        self.finished = True
        self.over.release()

    def syncthreads(self):
        self.over.release()
        self.turn.acquire()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    assert SIMULATED
    monkeypatch.setattr(simulator, "BlockManager", Turns)
    monkeypatch.setattr(run, "threads_for", lambda largest_bucket, dtype: THREADS)
    monkeypatch.setattr(draw, "THREADS", THREADS)


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
    monkeypatch.setattr(run, "threads_for", lambda largest_bucket, dtype: 128)
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
    np.testing.assert_array_equal(thin(points, 10, **options, device="cuda"), expected)


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


@pytest.mark.parametrize(("dtype", "magnitude"), [("f8", 1.0), ("f8", 1e150), ("f4", 1e30)])
def test_attention(dtype, magnitude):
    rng = np.random.default_rng(0)
    schedule = compress_schedule(64, 16)
    problem = Attention(rng.standard_normal((1, 64, 2, 3)).astype(dtype),
                        (magnitude * rng.standard_normal((1, 64, 2, 5))).astype(dtype))  # fmt: skip
    draws = make_draws(schedule, 2, 2)
    expected, traces = reference_numpy(problem, schedule, draws)
    assert smallest_margin(traces) > (1e-12 if dtype == "f8" else FLOAT32_TOLERANCE)
    kept = compress_kv(*problem, size=16, draws=draws, device="cuda")
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize("seed", range(3))
def test_keys_whose_exponential_overflows(seed):
    """The shift is the bucket's own largest |k|^2: any smaller one would give infinity."""
    rng = np.random.default_rng(seed)
    key = rng.standard_normal((1, 64, 1, 2)).astype(np.float32)
    key[:, rng.integers(64)] *= 40
    value = rng.standard_normal((1, 64, 1, 2)).astype(np.float32)
    problem, schedule = Attention(key, value), compress_schedule(64, 32)
    draws = make_draws(schedule, seed, 1)
    expected, traces = reference_numpy(problem, schedule, draws)
    assert smallest_margin(traces) > FLOAT32_TOLERANCE
    kept = compress_kv(*problem, size=32, draws=draws, device="cuda")
    np.testing.assert_array_equal(kept, expected)


def test_largest_in_block():
    """The same in all threads, in several blocks at once and wherever the largest is."""
    largest = tiles.make_largest_in_block(THREADS, np.float32)

    def find(numbers, found):
        found[cuda.grid(1)] = largest(numbers[cuda.grid(1)])

    numbers = np.random.default_rng(0).standard_normal((12, THREADS)).astype(np.float32)
    found = cuda.to_device(np.zeros(numbers.size, np.float32))
    cuda.jit(find)[12, THREADS](cuda.to_device(numbers.ravel()), found)
    expected = np.repeat(numbers.max(axis=1), THREADS)
    np.testing.assert_array_equal(found.copy_to_host(), expected)


def test_attention_over_the_keys_chosen():
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, 20, 1, 2))
    expected = attention(query, key, value, size=5, rng=0, return_indices=True)
    found = attention(query, key, value, size=5, rng=0, return_indices=True, device="cuda")
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_allclose(found.output, expected.output, rtol=1e-12)


def selected(key, value, size, seed, pre_thin="even"):
    """Choose pairs that are on the GPU, from a seed there."""
    B, S, H, E = key.shape
    D = value.shape[-1]
    settings = plan(S, 2, size, 0.5, pre_thin)
    schedule = settings.schedule
    stored = key.dtype.name
    dtype = run.COMPUTED_IN[stored]
    shapes = run.workspace(schedule, B * H, dtype)
    work = run.Workspace(
        **{name: cuda.to_device(np.full(shape, 77, of)) for name, (shape, of) in shapes.items()}
    )
    as_stored = {"float16": np.int16}.get(stored, key.dtype)
    run.select_pairs(
        stored,
        (cuda.to_device(key.ravel().view(as_stored)), Geometry(0, H, S * H * E, E, H * E, 1, E)),
        (cuda.to_device(value.ravel().view(as_stored)), Geometry(0, H, S * H * D, D, H * D, 1, D)),
        run.Rounds(schedule, *map(cuda.to_device, run.round_tables(schedule, dtype))),
        work,
        run.Sequences(
            cuda.to_device(np.arange(B)), cuda.to_device(np.zeros((0, 0), int)), S,
            pre_thin == "stride", cuda.to_device(np.array([seed], np.uint64).view(np.int64)),
        ),
        scale=E**-0.5, scales=cuda.to_device(np.zeros((1, 1), dtype)), processors=1,
    )  # fmt: skip
    return settings, run.Workspace(*(array.copy_to_host() for array in work))


@pytest.mark.parametrize(("S", "size"), [(64, 16), (50, 3), (16, 1)])
def test_draws_are_those_of_the_seed(S, size, monkeypatch):
    monkeypatch.setattr(run, "halve_rounds", lambda *arguments: None)
    key = np.ones((2, S, 2, 1), np.float32)
    for seed in (0, 2**64 - 1, seed_from(3)):
        settings, work = selected(key, key, size, seed)
        draws, length = make_draws(settings.schedule, seed, 2), settings.schedule.length
        for p in range(4):
            uniforms = np.concatenate([u[p % 2] for u in draws.uniforms])
            coins = np.concatenate([c[p % 2] for c in draws.coins])
            np.testing.assert_array_equal(work.draws[p, : length - size], uniforms.astype("f4"))
            np.testing.assert_array_equal(work.draws[p, length - size :], coins)
        start = starting_points(S, settings, draws, (2, 2))
        np.testing.assert_array_equal(work.left[:, :length], start)


@pytest.mark.parametrize(
    ("dtype", "pre_thin"),
    [(np.float16, "even"), (np.float32, "even"), (np.float32, "stride"), (np.float64, "even")],
)
def test_the_same_keys_from_a_seed(dtype, pre_thin):
    """Drawn, measured and halved on the GPU as on the CPU; a head that is not finite is found."""
    rng = np.random.default_rng(0)
    key, value = rng.standard_normal((1, 40, 2, 3)), rng.standard_normal((1, 40, 2, 2))
    key, value = key.astype(dtype), (100 * value).astype(dtype)
    expected = compress_kv(key, value, size=4, rng=3, pre_thin=pre_thin)
    settings, work = selected(key, value, 4, seed_from(3), pre_thin)
    np.testing.assert_array_equal(work.kept, expected[0])
    start = work.left[:, : settings.schedule.length]
    vmax = [abs(value[0, start[h], h].astype(work.largest.dtype)).max() for h in range(2)]
    np.testing.assert_array_equal(work.largest, vmax)
    assert work.finite.tolist() == [True, True]
    for array, bad in ((key, np.nan), (value, np.inf)):
        good, array[0, 7, 1, 1] = array[0, 7, 1, 1], bad
        _, work = selected(key, value, 4, seed_from(3), pre_thin)
        array[0, 7, 1, 1] = good
        assert work.finite.tolist() == [True, False]
        np.testing.assert_array_equal(work.kept[0], expected[0, 0])
        assert (np.diff(work.kept[1]) > 0).all()
        assert 0 <= work.kept[1, 0] <= work.kept[1, -1] < 40


class OnGpu:
    """A NumPy array as another library's array in a GPU's memory."""

    def __init__(self, array, **interface):
        self.array = array
        interface = {"stream": None} | interface
        self.__cuda_array_interface__ = array.__array_interface__ | {"version": 3} | interface


def memory(pointer, span, dtype, owner):
    """The caller's own memory, of which no number but those of `span` can be read."""
    number = np.ctypeslib.as_ctypes_type(dtype)
    return FakeCUDAArray(np.ctypeslib.as_array((number * span).from_address(pointer)))


@pytest.fixture
def arrays_on_the_simulator(monkeypatch):
    monkeypatch.setattr(arrays, "memory", memory)
    return arrays


def host(kept):
    assert isinstance(kept, FakeCUDAArray)
    return kept.copy_to_host()


LAYOUTS = {
    "contiguous": lambda x: x,
    "one set": lambda x: x[0, 1],
    "transposed": lambda x: x.transpose(1, 0, 3, 2)[..., ::2, :].transpose(0, 1, 3, 2)[:, :, ::-1],
    "expanded": lambda x: np.broadcast_to(x[0, 0], x.shape),
    "float16": lambda x: x.astype(np.float16),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_points_that_are_on_a_gpu(layout, arrays_on_the_simulator):
    """Read in place, whatever their strides; the result stays there."""
    points = LAYOUTS[layout](np.random.default_rng(0).standard_normal((2, 3, 20, 4)))
    expected = kh_compress(points, size=5, rng=0)
    kept = kh_compress(OnGpu(points), size=5, rng=0)
    np.testing.assert_array_equal(host(kept), expected)
    schedule = compress_schedule(20, 5)
    drawn = (
        make_draws(schedule, 1, points.shape[-3]) if points.ndim > 2 else make_draws(schedule, 1)
    )
    expected = kh_compress(points, size=5, draws=drawn)
    kept = kh_compress(OnGpu(points), size=5, draws=drawn, device="cuda")
    np.testing.assert_array_equal(host(kept), expected)


@pytest.mark.parametrize(
    "kernel", [polynomial(2, bandwidth=[1, 0.5]), gaussian() + 2 * matern([1, 2]), exponential(3)]
)
def test_kernels_of_points_that_are_on_a_gpu(kernel, arrays_on_the_simulator):
    points = np.random.default_rng(0).standard_normal((30, 2))
    expected = kh_compress(points, size=7, kernel=kernel, rng=0)
    kept = kh_compress(OnGpu(points), size=7, kernel=kernel, rng=0)
    np.testing.assert_array_equal(host(kept), expected)


@pytest.mark.parametrize("pre_thin", ["even", "stride"])
def test_keys_that_are_on_a_gpu(pre_thin, arrays_on_the_simulator):
    """Keys and values of different strides, drawn there or given draws."""
    rng = np.random.default_rng(0)
    key, value = rng.standard_normal((2, 3, 22, 2)), rng.standard_normal((2, 22, 3, 6))
    key, value = key.transpose(0, 2, 1, 3), value[..., ::-2]
    draws = make_draws(plan(22, 0, 4, 0.5, pre_thin).schedule, 1, 3)
    for options in ({"rng": 5}, {"draws": draws}):
        options |= {"size": 4, "pre_thin": pre_thin, "scale": 0.7}
        expected = compress_kv(key, value, **options)
        kept = compress_kv(OnGpu(key), OnGpu(value), **options)
        np.testing.assert_array_equal(host(kept), expected)
    everything = host(compress_kv(OnGpu(key), OnGpu(value), size=30))
    np.testing.assert_array_equal(everything, np.broadcast_to(np.arange(22), (2, 3, 22)))
    assert compress_kv(OnGpu(key[:0]), OnGpu(value[:0]), size=4).shape == (0, 3, 4)


def test_cupy_gets_an_array_of_cupy(arrays_on_the_simulator, monkeypatch):
    class OfCuPy(OnGpu):
        __module__ = "cupy"

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(asarray=lambda kept: ("cupy", kept)))
    points = np.random.default_rng(0).standard_normal((20, 2))
    library, kept = kh_compress(OfCuPy(points), size=5, rng=0)
    assert library == "cupy"
    np.testing.assert_array_equal(host(kept), kh_compress(points, size=5, rng=0))


def test_what_is_being_written_is_waited_for(arrays_on_the_simulator, monkeypatch):
    """The stream that the interface names; the whole GPU where it is too old to name one."""
    waited = []
    stream = lambda handle: SimpleNamespace(synchronize=lambda: waited.append(handle))  # noqa: E731
    monkeypatch.setattr(cuda, "external_stream", stream, raising=False)
    monkeypatch.setattr(cuda, "synchronize", lambda: waited.append("all"))
    points = np.random.default_rng(0).standard_normal((8, 2))
    key = points.reshape(1, 8, 1, 2)
    kh_compress(OnGpu(points), size=2)
    assert waited == []
    compress_kv(OnGpu(key, stream=7), OnGpu(key, stream=7), size=2)
    assert waited == [7]
    kh_compress(OnGpu(points, version=2), size=2)
    assert waited == [7, "all"]


def test_bad_arrays_on_a_gpu(arrays_on_the_simulator, monkeypatch):
    points = np.random.default_rng(0).standard_normal((4, 5, 6, 2))
    bad = points.copy()
    bad[1, 2, 3, 1] = np.inf
    far = np.float32([[1e19, 0], [0, 0]])
    key = points[:1]
    spoiled = np.where(key == key.max(), np.nan, key)
    K = np.eye(6)
    skew = K + np.triu(np.full((6, 6), 1e-6), 1)
    square = K.reshape(1, 6, 6)
    for error, message, call in (
        (ValueError, "points must be finite", lambda: kh_compress(OnGpu(bad[1]), size=2)),
        (ValueError, "key must be finite", lambda: compress_kv(OnGpu(spoiled), OnGpu(key), size=2)),
        (ValueError, "value must be finite",
         lambda: compress_kv(OnGpu(key), OnGpu(spoiled), size=2)),
        (ValueError, "K must be symmetric; got entries that differ by 1e-06",
         lambda: kernel_halve(OnGpu(skew))),
        (ValueError, "K must be finite",
         lambda: kernel_halve(OnGpu(np.where(K > 0, np.nan, K)))),
        (ValueError, "K must have shape", lambda: kernel_halve(OnGpu(K[:5]))),
        (ValueError, r"points must have shape \(..., S, d\)", lambda: kh_compress(OnGpu(K[0]))),
        (ValueError, "kernel matern overflows",
         lambda: kh_compress(OnGpu(far), size=1, kernel="matern")),
        (NotImplementedError, "points on a GPU take kernels of products.*; got sobolev",
         lambda: kh_compress(OnGpu(points), kernel="sobolev")),
        (NotImplementedError, "without an exponential one.*; got sum",
         lambda: kh_compress(OnGpu(points), kernel=gaussian() + exponential())),
        (NotImplementedError, "one bandwidth for an exponential",
         lambda: kh_compress(OnGpu(points), kernel=exponential([1, 2]))),
        (NotImplementedError, "leading axes that are not at equal distances",
         lambda: kh_compress(OnGpu(points[:, :3, None].repeat(2, 2)[:, :, ::2]
                                   .swapaxes(0, 1)[:, :3]), size=2)),
        (TypeError, "points must be float16, float32 or float64; got '<i8'",
         lambda: kh_compress(OnGpu(np.arange(8).reshape(4, 2)))),
        (TypeError, "got '<V2'", lambda: kh_compress(OnGpu(points, typestr="<V2"))),
        (ValueError, "points must have no mask", lambda: kh_compress(OnGpu(points, mask=OnGpu(K)))),
        (ValueError, "strides of whole numbers",
         lambda: kh_compress(OnGpu(np.zeros((4, 20), "u1")[:, :16].view(np.float64)))),
        (TypeError, "key must have|key, value must have one dtype",
         lambda: compress_kv(OnGpu(key), OnGpu(key.astype("f4")))),
        (ValueError, "key, value must be in one memory; got value on a GPU, key in the CPU's",
         lambda: compress_kv(key, OnGpu(key))),
        (TypeError, 'points must be in the CPU\'s memory for device="cpu"',
         lambda: kh_compress(OnGpu(points), device="cpu")),
        (NotImplementedError, "compress_kv chooses the keys there",
         lambda: attention(OnGpu(key), OnGpu(key), OnGpu(key))),
        (NotImplementedError, "kh_compress takes those on a GPU", lambda: thin(OnGpu(K), 2)),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    assert kernel_halve(OnGpu(square)).shape == (1, 3)
    assert kernel_halve(OnGpu(K + (skew - K) / 1000)).shape == (3,)  # of rounding
    monkeypatch.setattr(arrays, "device_of", lambda pointer: int(pointer == key.ctypes.data))
    with pytest.raises(ValueError, match="key, value must be on one GPU; got key on 1, value on 0"):
        compress_kv(OnGpu(key), OnGpu(spoiled), size=2)


def test_no_memory_for_arrays_on_a_gpu(arrays_on_the_simulator, monkeypatch):
    """The error says how much; the next call works."""

    def no_memory(*shape):
        raise RuntimeError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")

    points = np.random.default_rng(0).standard_normal((16, 2))
    # positions before each round, draws, what is measured, parameters, positions kept
    nbytes = 8 * 2 * 16 + 8 * (12 + 5) + 8 + 1 + 8 * 6 + 8 * 4
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "device_array", no_memory)
        with pytest.raises(MemoryError, match=f"not enough memory for {nbytes} bytes"):
            kh_compress(OnGpu(points), size=4)
    assert kh_compress(OnGpu(points), size=4).shape == (4,)


@pytest.fixture
def torch_on_the_simulator(monkeypatch):
    """Tensors of the CPU as if they were CUDA tensors: all but torch's and Numba's own devices."""
    from thinformer.torch.choose import on_gpu as bridge

    gpu = SimpleNamespace(multi_processor_count=1)
    monkeypatch.setattr(bridge, "_current", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(bridge, "_stream", lambda device: 0)
    monkeypatch.setattr(bridge, "_array", lambda tensor: FakeCUDAArray(tensor.numpy()))
    monkeypatch.setattr(bridge, "PIVOT_THREADS", THREADS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return bridge


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [*((dtype, "(B, S, H, E)") for dtype in ("bfloat16", "float16", "float32", "float64")),
     ("bfloat16", "(H, S, B, 2 E)"), ("float64", "(H, S, B, 2 E)"), ("float16", "expanded")],
)  # fmt: skip
def test_torch(torch_on_the_simulator, dtype, layout):
    """From tensors of any strides and dtype to tensors, as on the CPU with the same generator."""
    generator = torch.Generator().manual_seed(0)
    of = {"dtype": getattr(torch, dtype)}
    key = torch.randn((1, 20, 2, 3), generator=generator).to(**of)
    value = torch.randn((1, 20, 2, 5), generator=generator).to(**of)
    if layout == "expanded":
        key, value = key[:1, :, :1].expand(1, 20, 2, 3), value[:1, :, :1].expand(1, 20, 2, 5)
    elif layout == "(H, S, B, 2 E)":
        key, value = (x.transpose(0, 2).repeat_interleave(2, 3)[..., ::2].transpose(0, 2)
                      for x in (key, value))  # fmt: skip
    settings = plan(20, 2, 3, 0.5)
    kept, finite = torch_on_the_simulator.select(
        key, value, settings=settings, scale=0.7, seed=torch.tensor(bits_of_seed(5))
    )
    expected, _, _ = select(key, value, None, torch.tensor(5), 2, 3, 0.7, "even", 0)
    assert (kept.shape, kept.dtype, kept.is_contiguous()) == ((1, 2, 3), torch.int64, True)
    assert torch.equal(kept, expected)
    assert finite.tolist() == [[True, True]]


def test_torch_keeps_all_where_nothing_is_thinned(torch_on_the_simulator):
    key = torch.zeros(2, 5, 2, 3)
    kept, finite = torch_on_the_simulator.select(
        key, key, settings=plan(5, 2, None, 0.5), scale=1.0, seed=torch.tensor(0)
    )
    assert torch.equal(kept, torch.arange(5).expand(2, 2, 5))
    assert finite.all()
    kept, finite = torch_on_the_simulator.select(
        key[:0], key[:0], settings=plan(5, 2, 1, 0.5), scale=1.0, seed=torch.tensor(0)
    )
    assert (kept.shape, finite.shape) == ((0, 2, 1), (0, 2))


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


@pytest.mark.parametrize(("pre_thin", "min_length"), [("even", 0), ("stride", 0), ("even", 12)])
def test_torch_with_padding(torch_on_the_simulator, pre_thin, min_length):
    """Each sequence keeps what it keeps on the CPU, NaN behind the mask included; none, of none."""
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn((2, 6, 20, 2, 3), generator=generator)
    lengths = torch.tensor([20, 9, 0, 17, 9, 2])
    valid = torch.arange(20) < lengths[:, None]
    valid[4] = valid[4].flip(0)  # padding in front
    valid[3] = torch.arange(20) % 7 != 3  # and within
    key[~valid], value[~valid] = torch.nan, torch.inf
    value[1, 4, 1] = torch.nan
    expected = select(key, value, valid, torch.tensor(5), 0, 4, 0.7, pre_thin, min_length)
    kept = expected[0].shape[-1]
    found = on_cpu.select(
        key.as_subclass(OnCuda), value, valid, torch.tensor(bits_of_seed(5)), g=0, size=4,
        scale=0.7, pre_thin=pre_thin, min_length=min_length, kept=kept,
    )  # fmt: skip
    for one, other in zip(found, expected, strict=True):
        if one.dtype == torch.int64 and one.ndim == 3:
            good = expected[2][..., None].expand_as(other)  # a head with NaN keeps some or other
            one, other = one.where(good, 0), other.where(good, 0)
        assert torch.equal(one, other)
    assert not found[2][1, 1]
    none = on_cpu.select(
        key[:0].as_subclass(OnCuda), value[:0], valid[:0], torch.tensor(5), g=0, size=4,
        scale=0.7, pre_thin=pre_thin, min_length=min_length, kept=kept,
    )  # fmt: skip
    assert [(tuple(x.shape), x.dtype) for x in none] == [
        ((0, *x.shape[1:]), x.dtype) for x in expected
    ]


def test_a_mask_is_not_captured(torch_on_the_simulator, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    key, settings = torch.zeros(1, 4, 1, 2), {"g": 0, "size": 2, "pre_thin": "even"}
    with pytest.raises(RuntimeError, match="cannot be captured in a CUDA graph"):
        torch_on_the_simulator.select_valid(
            key, key, torch.ones(1, 4, dtype=torch.bool), 2, 0, **settings
        )


@pytest.mark.parametrize(("E", "D"), [(1, 1), (300, 1), (1, 260)])
def test_few_columns_and_many(E, D, torch_on_the_simulator):
    """More than are staged at once by either factor; one pair in a bucket; infinity in float16."""
    generator = torch.Generator().manual_seed(0)
    key = torch.randn((1, 6, 1, E), generator=generator).half() / E**0.5
    value = torch.randn((1, 6, 1, D), generator=generator).half()
    seed = torch.tensor(bits_of_seed(5))
    for size in (1, 3, 6):
        settings = plan(6, 0, size, 0.5)
        kept, finite = torch_on_the_simulator.select(
            key, value, settings=settings, scale=1.0, seed=seed
        )
        expected, _, _ = select(key, value, None, torch.tensor(5), 0, size, 1.0, "even", 0)
        assert torch.equal(kept, expected)
        assert finite.all()
    value[0, 2, 0, 0] = torch.inf
    kept, finite = torch_on_the_simulator.select(
        key, value, settings=plan(6, 0, 1, 0.5), scale=1.0, seed=seed
    )
    assert not finite.any()
    assert 0 <= int(kept) < 6


@pytest.fixture
def poisoned_memory():
    """Memory that torch hands out is full of NaN, so that reading what was not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def landmarks_on_gpu(query, key, value, valid=None, *, size, **settings):
    settings = {"scale": 0.5, "correction": "queries", "temperature": None, "min_length": 0,
                "g": 0, "width": size} | settings  # fmt: skip
    return on_cpu.landmarks(query, key.as_subclass(OnCuda), value, valid,
                        torch.tensor(bits_of_seed(5)), size=size, **settings)  # fmt: skip


def test_unit_numbers(torch_on_the_simulator):
    for seed in (0, 2**64 - 1):
        on_gpu = torch.tensor(int(np.uint64(seed).astype(np.int64)))
        for heads, stream, size in ((3, STREAMS + 2, 50), (1, 0, 1), (2, 5, 0)):
            numbers = torch_on_the_simulator.unit_numbers(on_gpu, heads, stream, size)
            expected = _unit_numbers(head_keys(seed, heads), stream, size)
            np.testing.assert_array_equal(numbers, expected)


@pytest.mark.parametrize("norm", [0, 1e-160, 1e-3, 1, 30, 1e4, 1e150])
def test_temperatures(norm):
    query, key = np.random.default_rng(0).standard_normal((2, 9, 3))
    expected = reference_landmarks.temperature(3 * query, norm * key, 0.7)
    query, key = (torch.from_numpy(x[None, :, None]) for x in (3 * query, norm * key))
    found = landmarks_module._temperature(query, key, 0.7)
    np.testing.assert_allclose(found, [[expected]], rtol=1e-14)
    assert landmarks_module._temperature(query[:, :0], key, 0.7).tolist() == [[1]]


PIVOTS = {  # L, E, n_out, proposals
    "columns of several tiles, many rounds": (75, 3, 19, 90),
    "more rows than are staged at once": (20, 70, 4, 12),
    "few of them distinct": (40, 2, 11, 88),
    "weights that underflow": (40, 2, 5, 40),
    "too few proposals": (30, 2, 12, 9),
    "one of two": (2, 1, 1, 8),
}


def pivots_problem(case, dtype):
    """Four heads in two sequences, whose heads have the same draws."""
    L, E, n_out, proposals = PIVOTS[case]
    rng = np.random.default_rng(len(case))
    x = rng.standard_normal((4, L, E)) / E**0.25
    if case == "few of them distinct":
        x = x[:, np.arange(L) % 7]
    if case == "weights that underflow":
        x[:, ::2] = 5
        x[:, 1::2] *= 30 / np.linalg.norm(x[:, 1::2], axis=-1, keepdims=True)
    uniforms = rng.random((2, proposals, 2))
    uniforms[:, :2, 0] = 0, 1 - 2**-53
    x = x.astype(dtype)
    return x, np.sum(x**2, axis=2) / 2, n_out, uniforms


def pivots_on_gpu(bridge, x, h, n_out, uniforms, weights):
    factor = np.full((len(x), n_out, x.shape[1]), np.nan)
    rows = np.concatenate([x.swapaxes(1, 2), factor], axis=1)
    rows, h, weights, uniforms = map(torch.from_numpy, (rows.astype(x.dtype), h, weights, uniforms))
    taken = bridge.pivots(rows, x.shape[2], n_out, h, weights, uniforms, block=BLOCK,
                          nugget=np.finfo(x.dtype).eps ** 0.5)  # fmt: skip
    return taken.numpy(), rows[:, rows.shape[1] - n_out :].numpy()


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, np.float64) for case in PIVOTS),
     *((case, np.float32) for case in list(PIVOTS)[:2])],
)  # fmt: skip
def test_pivots(case, dtype, torch_on_the_simulator, poisoned_memory):
    x, h, n_out, uniforms = pivots_problem(case, dtype)
    weights = np.exp(2 * (h - h.max(axis=1, keepdims=True)).astype(float))
    taken, factor = pivots_on_gpu(torch_on_the_simulator, x, h, n_out, uniforms, weights)
    for p in range(4):
        chosen = np.flatnonzero(taken[p])
        others = np.flatnonzero(~taken[p])[: n_out - len(chosen)]
        expected = reference_landmarks.pivots(x[p], h[p], n_out, uniforms[p % 2])
        np.testing.assert_array_equal(np.sort([*chosen, *others]), expected)
        assert (len(others) > 0) == (case == "too few proposals")
        # the kernel among the pivots is that of the factor
        F = factor[p, : len(chosen), chosen].astype(float)
        N = np.exp(x[p, chosen] @ x[p, chosen].T - h[p, chosen, None] - h[p, chosen])
        N += np.finfo(dtype).eps ** 0.5 * np.eye(len(chosen))
        np.testing.assert_allclose(F @ F.T, N, atol=1e-12 if dtype == np.float64 else 1e-5)
    if case == "weights that underflow":
        assert (weights == 0).any()
        assert not taken[weights == 0].any()


@pytest.mark.parametrize("weight", [0, np.nan])
def test_no_pivots_where_there_is_no_diagonal(weight, torch_on_the_simulator):
    x, h, n_out, uniforms = pivots_problem("one of two", np.float64)
    taken, _ = pivots_on_gpu(torch_on_the_simulator, x, h, n_out, uniforms, h * weight)
    assert not taken.any()


@pytest.mark.parametrize("spread", [0, 0.3, 2, 10, 1000])
def test_landmarks_drawn(spread):
    """Some of them surely, by exponents that are alike, or far apart."""
    rng = np.random.default_rng(1)
    h, numbers = spread * rng.standard_normal((3, 4, 30)), rng.random((4, 1))
    numbers[:2] = [[0], [1 - 2**-53]]
    for n_out in (1, 2, 9, 29):
        found = landmarks_module._draw(torch.from_numpy(h), n_out, torch.from_numpy(numbers))
        expected = [
            [reference_landmarks.draw_landmarks(*head, n_out, u) for head, (u,) in
             zip(of_sequence[:, None], numbers, strict=True)]
            for of_sequence in h
        ]  # fmt: skip
        np.testing.assert_array_equal(found, expected)
    found = landmarks_module._draw(torch.full((1, 4, 30), torch.nan), 9, torch.from_numpy(numbers))
    assert (found.diff() > 0).all()
    assert 0 <= found.min() <= found.max() < 30


def specified_landmarks(query, key, value, n_out, correction, temperature, scale):
    """Positions (B, H, n_out) by the specification, of the draws of seed 5."""
    (B, T, H, _), S = query.shape, key.shape[1]
    times = SUMMED if correction == "queries" else CANDIDATES
    keys, sizes = head_keys(seed_from(5), H), (min(T, QUERIES), min(S, times * n_out))
    strata = [_unit_numbers(keys, STREAMS + i, size + 1) for i, size in enumerate(sizes)]
    if correction == "queries":
        uniforms = _unit_numbers(keys, STREAMS + 2, 1)[:, 0]
    else:
        uniforms = _unit_numbers(keys, STREAMS + 2, 2 * PROPOSALS * n_out).reshape(H, -1, 2)
    draws = [reference_landmarks.LandmarkDraws(*x) for x in zip(*strata, uniforms, strict=True)]
    return [
        [reference_landmarks.landmark_attention(
            query[b, :, h], key[b, :, h], value[b, :, h], scale, n_out, correction, draws[h],
            temperature)[2].positions for h in range(H)]
        for b in range(B)
    ]  # fmt: skip


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize(
    ("dtype", "shape", "temperature"),
    [("float64", (40, 33, 3, 4), None), ("float32", (40, 33, 3, 4), None),
     ("float64", (QUERIES + 20, 9, 2, 1), 1.4), ("float32", (1, 50, 1, 8), None)],
)  # fmt: skip
def test_landmarks(correction, dtype, shape, temperature, torch_on_the_simulator, poisoned_memory,
                   monkeypatch):  # fmt: skip
    """Those of the specification, from tensors of any strides; a CUDA graph can be captured."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    (T, S, E, n_out), rng = shape, np.random.default_rng(1)
    query, key, value = (
        rng.standard_normal((2, 2, n, E)).astype(dtype).swapaxes(1, 2) for n in (T, S, S)
    )
    expected = specified_landmarks(query, key, value, n_out, correction, temperature, 0.7)
    indices, counts, finite, sampled, summed, tau = landmarks_on_gpu(
        *map(torch.from_numpy, (query, key, value)), size=n_out, scale=0.7, correction=correction,
        temperature=temperature,
    )  # fmt: skip
    np.testing.assert_array_equal(indices, expected)
    assert counts.tolist() == [n_out, n_out]
    assert finite.all()
    m = min(T, QUERIES) if correction == "queries" else 0
    assert sampled.shape == (2, 2, m)
    assert summed.shape == (2, 2, min(S, SUMMED * n_out) if m else 0)
    assert torch.equal(sampled, sampled[:1].expand(2, 2, m))
    if m == T:
        assert torch.equal(sampled[0, 0], torch.arange(T))
    of_head = key[1, :, 1] - key[1, :, 1].mean(axis=0)
    default = reference_landmarks.temperature(query[1, :, 1], of_head, 0.7)
    np.testing.assert_allclose(tau[1, 1], temperature or default, rtol=1e-6)


@pytest.mark.parametrize("case", ["a query a token", "other queries"])
def test_landmarks_with_padding(case, torch_on_the_simulator, poisoned_memory):
    """As on the CPU: queries of groups, sequences that keep all, heads with NaN, no token."""
    generator = torch.Generator().manual_seed(0)
    of = {"generator": generator, "dtype": torch.float64}
    key, value = torch.randn((2, 7, 26, 2, 3), **of)
    query = torch.randn((7, 26 if case == "a query a token" else 5, 4, 3), **of)
    lengths = torch.tensor([26, 11, 0, 22, 11, 2, 9])
    valid = torch.arange(26) < lengths[:, None]
    valid[4] = valid[4].flip(0)  # padding in front
    valid[3] = torch.arange(26) % 6 != 3  # and within
    key[~valid], value[~valid] = torch.nan, torch.inf
    if case == "a query a token":
        query[~valid] = torch.nan
    key[1, 4, 1] = value[5, 0, 0, 1] = torch.nan
    query[0, 3, 0, 0] = torch.nan  # of the first head's group
    for correction, g, size, min_length in (("queries", 0, 3, 0), ("nystrom", 1, None, 10)):
        tensors, settings = (query, key, value, valid), (g, size, 0.6, correction, None, min_length)
        expected = landmarks(*tensors, torch.tensor(5), *settings)
        found = landmarks_on_gpu(*tensors, size=size, g=g, scale=0.6, correction=correction,
                                 width=expected[0].shape[-1], min_length=min_length)  # fmt: skip
        good = expected[2]
        assert torch.equal(found[2], good)
        if correction == "queries":
            some = [good[i].tolist() for i in (0, 1, 5)]
            assert some == [[False, True], [True, False], [False, True]]
        assert torch.equal(found[1], expected[1])
        # a head that is not finite has some
        indices, of_cpu = (x.where(good[..., None], 0) for x in (found[0], expected[0]))
        assert torch.equal(indices, of_cpu)
        assert ((found[0] >= 0) & (found[0] < 26)).all()
        assert torch.equal(found[3], expected[3])
        assert torch.equal(found[4], expected[4])
        torch.testing.assert_close(found[5][good], expected[5][good], rtol=1e-13, atol=0)
        for x, y in zip(found, expected, strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize("axis", range(3))
def test_landmarks_of_nothing(axis, torch_on_the_simulator):
    """No sequence, no query, no head."""
    shape = [2, 6, 2]
    shape[axis] = 0
    B, T, H = shape
    query, key = torch.zeros(B, T, H, 3), torch.ones(B, 9, H, 3)
    found = landmarks_on_gpu(query, key, key, size=2)
    assert [tuple(x.shape) for x in found] == [
        (B, H, 2),
        (B,),
        (B, H),
        (B, H, T),
        (B, H, 2 * SUMMED * (T > 0)),
        (B, H),
    ]
    assert (found[5] == 1).all()


def test_landmarks_in_half_precision(torch_on_the_simulator):
    """Widened first, and with autocast too."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16):
        tensors = torch.randn((3, 1, 20, 2, 3), generator=generator).to(dtype)
        expected = landmarks_on_gpu(*tensors.float(), size=4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = landmarks_on_gpu(*tensors, size=4)
        assert all(map(torch.equal, found, expected))


def test_attention_to_landmarks(torch_on_the_simulator, monkeypatch):
    """What is made of the choice is torch's: the same output, weights and gradients."""
    generator = torch.Generator().manual_seed(0)
    tensors = [x.requires_grad_() for x in
               torch.randn((3, 2, 20, 2, 3), generator=generator, dtype=torch.float64)]  # fmt: skip
    options = {"size": 5, "correction": "queries", "return_weights": True, "return_indices": True,
               "key_padding_mask": torch.arange(20) >= torch.tensor([[20], [14]])}  # fmt: skip
    of_choice, results, calls = on_cpu.landmarks, [], []

    def on_gpu(query, key, value, valid, seed, **settings):
        calls.append(valid)
        found = of_choice(query, key.as_subclass(OnCuda), value, valid,
                       torch.tensor(bits_of_seed(int(seed))), **settings)  # fmt: skip
        return tuple(x.as_subclass(torch.Tensor) for x in found)

    for choose in (of_choice, on_gpu):
        monkeypatch.setattr(on_cpu, "landmarks", choose)
        got = thinformer_attention(*tensors, generator=torch.Generator().manual_seed(3), **options)
        gradients = torch.autograd.grad(got.output.square().sum(), tensors)
        results.append([*got, *gradients])
    assert len(calls) == 1
    assert torch.equal(results[0][2], results[1][2])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    module = ThinformerAttention(size=5, correction="queries")
    assert module(*tensors)[0].shape == tensors[0].shape
    assert calls[1] is None


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
    assert sum(row.cases for row in rows) == sum(case["kind"] != "thin" for case, _ in few)
    assert all((row.body, row.failed) == ("numba.cuda", []) for row in rows)


def test_half_precision_is_converted_exactly():
    bits = np.arange(2**16, dtype=np.uint16).view(np.int16)
    with np.errstate(invalid="ignore"):
        expected = bits.view(np.float16).astype(np.float32)
    found = np.array([tiles.of_float16(word) for word in bits])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.signbit(found), np.signbit(expected))
    some = bits[::37]
    found = np.array([tiles.of_bfloat16(word) for word in some])
    np.testing.assert_array_equal(found.view(np.uint32) >> 16, some.view(np.uint16))


def test_what_is_not_there_is_refused():
    points = np.random.default_rng(0).random((8, 1))
    with pytest.raises(NotImplementedError, match='device="cpu" takes stein and functions'):
        thin(points, 2, kernel=stein(-points), method="halving", device="cuda")
    with pytest.raises(NotImplementedError, match="'kh-compress' or 'halving'; got 'compress"):
        thin(points, 2, device="cuda")


def test_this_is_a_process_of_its_own():
    assert os.environ["NUMBA_ENABLE_CUDASIM"] == "1"
