"""The CUDA kernels in Numba's simulator, a Python thread for each of theirs; test_cuda.py runs it.

Threads take turns, each up to its next barrier and in a random order, so a missing barrier shows:
some thread runs ahead and finds what another has not written yet.
"""

import contextlib
import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numba.cuda.simulator import kernel as simulator
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from problems import Attention, Points, integers, reference_numpy, smallest_margin

from thinformer import (
    attention,
    compress_kv,
    compress_schedule,
    kh_compress,
    make_draws,
    thin,
    validate,
)
from thinformer.compress import plan, starting_points
from thinformer.cuda import launch, prepare, tiles
from thinformer.cuda._numba import SIMULATED, cuda
from thinformer.cuda.halve import Geometry
from thinformer.draws import seed_from
from thinformer.kernels import KERNELS, gaussian, matern
from thinformer.torch.library import select
from thinformer.torch.op import bits_of_seed

THREADS = 32
FLOAT32_TOLERANCE = 1e-4


class Turns(simulator.BlockManager):
    """Runs the threads of a block one at a time, each to its next barrier, in a random order."""

    rng = np.random.default_rng(0)

    def run(self, grid_point, *arguments):
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
    monkeypatch.setattr(launch, "threads_for", lambda largest_bucket, dtype: THREADS)
    monkeypatch.setattr(prepare, "THREADS", THREADS)


def points_problem(rng, kernel, S, size, dtype, dim=2):
    schedule = compress_schedule(S, size)
    points = rng.standard_normal((schedule.length, dim)).astype(dtype)
    return Points(points, kernel), schedule, make_draws(schedule, int(rng.integers(2**62)))


@pytest.mark.parametrize("kernel", [name for name in KERNELS if name != "sobolev"])
def test_points(kernel):
    """Two rounds, the first of four buckets; panels of several tiles."""
    rng = np.random.default_rng(0)
    problem, schedule, draws = points_problem(rng, kernel, 80, 20, np.float64)
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
    monkeypatch.setattr(launch, "threads_for", lambda largest_bucket, dtype: 128)
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
@pytest.mark.parametrize("kernel", ["gaussian", "exponential"])
def test_thin(method, kernel):
    points = np.random.default_rng(0).standard_normal((40, 3))[::-1, :2]
    options = {"kernel": kernel, "bandwidth": 0.7, "method": method, "rng": 0}
    expected = thin(points, 10, **options)
    np.testing.assert_array_equal(thin(points, 10, **options, device="cuda"), expected)


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
    dtype = launch.COMPUTED_IN[stored]
    shapes = launch.workspace(schedule, B * H, dtype)
    work = launch.Workspace(
        **{name: cuda.to_device(np.full(shape, 77, of)) for name, (shape, of) in shapes.items()}
    )
    as_stored = {"float16": np.int16}.get(stored, key.dtype)
    launch.select_pairs(
        stored,
        (cuda.to_device(key.ravel().view(as_stored)), Geometry(H, S * H * E, E, H * E, 1, E)),
        (cuda.to_device(value.ravel().view(as_stored)), Geometry(H, S * H * D, D, H * D, 1, D)),
        schedule,
        tuple(map(cuda.to_device, launch.round_tables(schedule, dtype))),
        work,
        seed=cuda.to_device(np.array([seed], np.uint64).view(np.int64)),
        scale=E**-0.5, n_points=S, strided=pre_thin == "stride",
        scales=cuda.to_device(np.zeros(1, dtype)), processors=1,
    )  # fmt: skip
    return settings, launch.Workspace(*(array.copy_to_host() for array in work))


@pytest.mark.parametrize(("S", "size"), [(64, 16), (50, 3), (16, 1)])
def test_draws_are_those_of_the_seed(S, size):
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


@pytest.mark.parametrize("pre_thin", ["even", "stride"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
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


@pytest.fixture
def torch_on_the_simulator(monkeypatch):
    """Tensors of the CPU as if they were CUDA tensors: all but torch's and Numba's own devices."""
    from thinformer.torch import cuda as bridge

    gpu = SimpleNamespace(multi_processor_count=1)
    monkeypatch.setattr(bridge, "_current", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(bridge, "_stream", lambda device: 0)
    monkeypatch.setattr(bridge, "_array", lambda tensor: FakeCUDAArray(tensor.numpy()))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    return bridge


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["(B, S, H, E)", "(H, S, B, 2 E)", "expanded"])
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


def test_validate(monkeypatch):
    """The command's comparison with what was recorded, on its smallest cases."""
    vectors = [(case, fields) for case, fields in validate.load_vectors()
               if case.get("kernel") in ("gaussian", "sobolev") and case["kind"] == "points"
               and case["family"] == "points"]  # fmt: skip
    smallest = sorted(vectors, key=lambda vector: len(vector[1]["points"]))
    gaussian = [vector for vector in smallest if vector[0]["kernel"] == "gaussian"][:1]
    sobolev = [vector for vector in smallest if vector[0]["kernel"] == "sobolev"][:1]
    monkeypatch.setattr(validate, "load_vectors", lambda: gaussian + sobolev)
    monkeypatch.setattr(validate.importlib.util, "find_spec", lambda name: None)
    (row,) = validate.validate("cuda")
    assert (row.body, row.cases, row.failed) == ("numba.cuda", 1, [])


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


def test_other_kernels_are_refused():
    points = np.random.default_rng(0).random((8, 1))
    for kernel in ("sobolev", gaussian() + gaussian(2)):
        with pytest.raises(NotImplementedError, match='device="cpu"'):
            kh_compress(points, size=2, kernel=kernel, device="cuda")
    points = np.random.default_rng(0).random((8, 2))
    with pytest.raises(NotImplementedError, match="one bandwidth for a kernel of products"):
        thin(points, 2, kernel="polynomial", bandwidth=[1, 2], method="halving", device="cuda")
    with pytest.raises(NotImplementedError, match="'kh-compress' or 'halving'; got 'compress"):
        thin(points, 2, device="cuda")


def test_this_is_a_process_of_its_own():
    assert os.environ["NUMBA_ENABLE_CUDASIM"] == "1"
