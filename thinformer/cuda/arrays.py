"""Arrays in a GPU's memory, of any library that has ``__cuda_array_interface__``.

They are read in place, by their strides. The functions here wait for the GPU: when they return,
results are written and errors about values have been raised.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cuda import extremes, run
from thinformer.cuda.halve import Geometry
from thinformer.cuda.jit import cuda, device_of
from thinformer.halving.problem import Factor, Problem, make_factor, make_points, make_problem
from thinformer.halving.schedule import Schedule
from thinformer.kernels import Kernel, linear
from thinformer.kernels.phi import (
    ENERGY,
    EXPONENTIAL,
    MATERN_3_2,
    MATERN_5_2,
    SOBOLEV,
    STEIN,
)
from thinformer.support import checks

RANGED = (MATERN_3_2, MATERN_5_2, ENERGY, SOBOLEV)  # kernels that not all points may have
Source = int | tuple[NDArray, NDArray]
"""Where draws come from: a seed; or starting points (problems, length) and numbers (problems, ...),
the uniforms of all rounds and then the coins."""


class OnGpu(NamedTuple):
    """An array in a GPU's memory.

    name : of the argument
    owner : the caller's object
    pointer : address of the first element
    shape, strides : strides in elements
    dtype : float16, float32 or float64
    stream : what to wait for before reading: a stream, 0 for the whole GPU, None for nothing
    computed : the dtype of computations, if another one than that of its numbers
    """

    name: str
    owner: Any
    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype
    stream: int | None
    computed: type | None = None

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def computed_in(self) -> type:
        """The dtype of computations with its numbers."""
        return self.computed or run.COMPUTED_IN[self.dtype.name]

    def astype(self, dtype: type, copy: bool = False) -> OnGpu:
        """Return the same memory, to be computed in another dtype; nothing is copied."""
        return self._replace(computed=dtype)

    def transpose(self, *axes: int) -> OnGpu:
        """Return the same memory with its axes in another order."""
        return self._replace(
            shape=tuple(self.shape[a] for a in axes), strides=tuple(self.strides[a] for a in axes)
        )


def from_interface(name: str, array: Any) -> OnGpu:
    """Return an array of another library as its interface describes it.

    Raises
    ------
    TypeError, ValueError
        The array has a mask, another dtype, or strides that are no whole numbers of elements.
    """
    interface = array.__cuda_array_interface__
    if interface.get("mask") is not None:
        raise ValueError(f"{name} must have no mask")
    try:
        dtype = np.dtype(interface["typestr"])
    except TypeError:
        dtype = np.dtype(np.void)
    if dtype.name not in checks.COMPUTED_IN or not dtype.isnative:
        got = interface["typestr"]
        raise TypeError(
            f"{name} must be float16, float32 or float64; got {got!r} (ThinformerAttention takes"
            " bfloat16 tensors of torch)"
        )
    return described(name, array, dtype)


def described(name: str, array: Any, dtype: np.dtype) -> OnGpu:
    """Return an array of any dtype as its interface describes it."""
    interface = array.__cuda_array_interface__
    shape = tuple(map(int, interface["shape"]))
    if (given := interface.get("strides")) is None:
        given = dtype.itemsize * np.cumprod([1, *shape[:0:-1]])[::-1] if shape else ()
    pointer = int(interface["data"][0])
    if any(n % dtype.itemsize for n in (pointer, *given)):
        raise ValueError(f"{name} must have strides of whole numbers of {dtype}; got {given}")
    strides = tuple(int(stride) // dtype.itemsize for stride in given)
    # an interface before version 3 does not name the stream that writes the numbers
    stream = interface.get("stream") if interface["version"] >= 3 else 0
    return OnGpu(name, array, pointer, shape, strides, dtype, stream)


@contextlib.contextmanager
def readable(*arrays: OnGpu) -> Iterator[None]:
    """Make the arrays' GPU the current one, and wait until their numbers are written."""
    devices = {a.name: device_of(a.pointer) for a in arrays if a.pointer}
    if len(set(devices.values())) > 1:
        got = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{', '.join(devices)} must be on one GPU; got {got}")
    with cuda.gpus[next(iter(devices.values()), 0)]:
        for stream in {a.stream for a in arrays} - {None}:
            (cuda.external_stream(stream) if stream else cuda).synchronize()
        yield


def compress_points(
    points: Any, kernel: Kernel, schedule: Schedule, strided: bool, source: Source
) -> Any:
    """Run a schedule on points (..., S, d) on a GPU; return positions (..., size) there.

    Raises
    ------
    NotImplementedError
        The GPU cannot compute the kernel.
    ValueError
        The points are not finite, or their distances are beyond the range of their dtype.
    """
    *stack, S, dim = points.shape
    if 0 in stack:
        return of_nothing(points, stack, schedule.size)
    if kernel.labels or any(t.tag >= STEIN for t in kernel.summands):
        raise NotImplementedError(
            "kh_compress takes points on a GPU under kernels of points alone; `thin` takes Stein"
            f" kernels and functions; got {kernel.name}{' with labels' if kernel.labels else ''}"
        )
    describe = make_points if isinstance(kernel.scale, tuple) else make_problem
    few: NDArray = np.empty((0, dim), points.computed_in)
    describe(few, kernel)  # checks that the kernel fits the dimensions
    if describe is make_points or any(t.tag in RANGED for t in kernel.summands) or kernel.terms:
        few = few_of(points, kernel)
    if describe is make_points:
        problem: Problem = make_points(few, kernel, shift=True)
    else:
        problem = make_problem(few, kernel)
    variant, _, parameters, scales = run.describe(problem, run.LOAD[points.dtype.name])
    with (
        readable(points),
        allocated(schedule, math.prod(stack), dim, points, source) as (work, rounds),
    ):
        work = work._replace(parameters=cuda.to_device(parameters))
        run.select_points(
            points.dtype.name, window(points), variant, rounds, work,
            sequences_of(points, S, strided, source), scales=cuda.to_device(scales),
        )  # fmt: skip
        finite = work.finite.copy_to_host()
        kept = result(work, schedule, points, stack)
    checks.finite(points.name, bool(finite.all()))
    return kept


def few_of(points: OnGpu, kernel: Kernel) -> NDArray:
    """Return few points (m, dim), in which the checks of a kernel find what they do in all points.

    Raises
    ------
    ValueError
        The points are not finite.
    """
    *stack, S, dim = points.shape
    norms = [term.scale for term in kernel.summands if term.tag == EXPONENTIAL]
    scales: NDArray = np.empty((len(norms), dim), points.computed_in)
    for row, scale in zip(scales, norms, strict=True):
        row[:] = scale
    with readable(points):
        load = run.LOAD[points.dtype.name]
        few, finite = extremes.find(*window(points), math.prod(stack), S, load, scales)
    checks.finite(points.name, finite)
    return few


def compress_pairs(
    key: Any, value: Any, scale: float, schedule: Schedule, strided: bool, source: Source
) -> Any:
    """Run a schedule on keys and values (B, S, H, dim) on a GPU; return positions (B, H, size).

    Raises
    ------
    ValueError
        A key or value is not finite.
    """
    B, S, H, _ = key.shape
    if 0 in (B, H):
        return of_nothing(key, [B, H], schedule.size)
    key, value = key.transpose(0, 2, 1, 3), value.transpose(0, 2, 1, 3)
    dims = key.shape[-1] + value.shape[-1]
    with readable(key, value), allocated(schedule, B * H, dims, key, source) as (work, rounds):
        run.select_pairs(
            key.dtype.name, window(key), window(value), rounds, work,
            sequences_of(key, S, strided, source), scale=scale,
            scales=cuda.to_device(np.zeros((1, 1), key.computed_in)),
        )  # fmt: skip
        finite = work.finite.copy_to_host()
        if not finite.all():
            for array in (key, value):
                checks.finite(array.name, is_finite(array))
        return result(work, schedule, key, [B, H])


def halve_gram(K: Any, schedule: Schedule, drawn: NDArray) -> Any:
    """Run a schedule of one round on Gram matrices (..., S, S) on a GPU; return positions there.

    Where S is odd, the last point is kept too.

    Raises
    ------
    ValueError
        K is not finite, or not symmetric.
    """
    *stack, S, _ = K.shape
    if 0 in stack:
        return of_nothing(K, stack, schedule.size + S % 2)
    problems, pairs, dtype = math.prod(stack), schedule.size, K.computed_in
    matrices = make_factor(np.empty((0, S), dtype), linear())
    variant, _, parameters, scales = run.describe(matrices, run.LOAD[K.dtype.name])
    left = np.broadcast_to(np.arange(2 * schedule.length), (problems, 2 * schedule.length))
    kept: Any = np.full((problems, pairs + S % 2), S - 1)
    with readable(K):
        made = run.launches(schedule, problems, 1, run.processors(), dtype)
    shared = run.count_memory(made, problems)
    nbytes = left.nbytes + kept.nbytes
    nbytes += (problems * drawn.shape[1] + shared) * np.dtype(dtype).itemsize
    with readable(K), run.out_of_memory(nbytes):
        kept = cuda.to_device(kept)
        found = extremes.inspected(*window(K), problems, S, run.LOAD[K.dtype.name], dtype)
        if pairs:
            place, geometry = window(K)
            resident = run.Resident(
                place, geometry, place, geometry, cuda.to_device(parameters),
                cuda.to_device(scales), cuda.to_device(np.arange(problems // geometry.heads)),
            )  # fmt: skip
            tables = tuple(map(cuda.to_device, run.round_tables(schedule, dtype)))
            run.halve_rounds(
                variant, resident, made, tables, cuda.to_device(drawn.astype(dtype)),
                cuda.to_device(np.ascontiguousarray(left)), kept[:, :pairs],
                cuda.device_array(shared, dtype),
            )  # fmt: skip
        kept = like(K.owner, kept.reshape(*stack, pairs + S % 2))
        extremes.check_matrices(K.name, *found)
    return kept


@contextlib.contextmanager
def allocated(
    schedule: Schedule, problems: int, dims: int, points: OnGpu, source: Source
) -> Iterator[tuple[run.Workspace, run.Rounds]]:
    """Allocate a workspace and the schedule's tables on the current GPU, for the `with` block.

    `dims` is the number of columns of all factors. Given draws are copied there. Where memory runs
    out, here or in the block, the error says how much the workspace takes.
    """
    dtype = points.computed_in
    launches = run.launches(schedule, problems, dims, run.processors(), dtype)
    shapes = run.workspace(schedule, problems, dtype, launches)
    nbytes = sum(math.prod(shape) * np.dtype(of).itemsize for shape, of in shapes.values())
    given: dict[str, NDArray] = {}
    if not isinstance(source, int):
        index, drawn = source
        given["left"] = np.zeros(shapes["left"][0], np.int64)
        given["left"][:, : schedule.length] = index
        given["draws"] = drawn.astype(dtype)
        given["largest"], given["finite"] = np.zeros(problems, dtype), np.ones(problems, np.bool_)
    with run.out_of_memory(nbytes):
        made = {
            name: cuda.to_device(given[name]) if name in given else cuda.device_array(shape, of)
            for name, (shape, of) in shapes.items()
        }
        table, factors = map(cuda.to_device, run.round_tables(schedule, dtype))
        yield run.Workspace(**made), run.Rounds(schedule, table, factors, launches)


def sequences_of(points: OnGpu, n_points: int, strided: bool, source: Source) -> run.Sequences:
    """Return the sequences of points (..., S, dim), all of whose rows count."""
    seed = None
    if isinstance(source, int):
        seed = cuda.to_device(np.array([source], np.uint64).view(np.int64))
    numbers = cuda.to_device(np.arange(math.prod(points.shape[:-3])))
    tokens, counts = (cuda.to_device(np.zeros(shape, np.int64)) for shape in ((0, 0), 0))
    return run.Sequences(numbers, tokens, counts, n_points, strided, seed)


def result(work: run.Workspace, schedule: Schedule, points: OnGpu, stack: list[int]) -> Any:
    """Return the positions kept, (*stack, size), as an array for the library of the points."""
    kept = work.kept
    if not schedule.rounds:
        kept = cuda.to_device(np.ascontiguousarray(work.left.copy_to_host()[:, : schedule.length]))
    return like(points.owner, kept.reshape(*stack, schedule.size))


def of_nothing(points: OnGpu, stack: list[int], size: int) -> Any:
    """Return the positions, (*stack, size), of a stack without problems."""
    with readable(points):
        return like(points.owner, cuda.device_array((*stack, size), np.int64))


def is_finite(points: OnGpu) -> bool:
    """Return whether all numbers of points (..., S, dim) are finite."""
    *stack, S, _ = points.shape
    schedule = Schedule(S, S, ())
    with allocated(schedule, math.prod(stack), 0, points, 0) as (work, rounds):
        nothing = window(points)[0], window(points)[1]._replace(dim=0)
        sequences = sequences_of(points, S, True, 0)
        run.draw_and_measure(
            points.dtype.name, window(points), nothing, rounds, work, sequences, draw_heads=1
        )
        return bool(work.finite.copy_to_host().all())


def window(array: OnGpu) -> tuple[Any, Geometry]:
    """Return the memory of points (..., S, dim) as a flat array, and where problems are in it.

    Half precision is given as int16.

    Raises
    ------
    NotImplementedError
        The problems of several leading axes are not at equal distances.
    """
    *stack, _, dim = array.shape
    whole, before = flat(array)
    first = np.full(stack, before)
    for axis, stride in enumerate(array.strides[:-2]):
        steps = np.arange(stack[axis]) * stride
        first += steps.reshape(-1, *(1,) * (len(stack) - 1 - axis))
    row, column = array.strides[-2:]
    factor = Factor(whole, first.ravel(), row, column, dim, 0, np.empty(0))
    try:
        return whole, run.geometry(factor, tuple(stack))
    except ValueError as error:
        raise NotImplementedError(
            f"{array.name} has leading axes that are not at equal distances on the GPU; make it"
            " contiguous"
        ) from error


def flat(array: OnGpu) -> tuple[Any, int]:
    """Return an array's memory from its lowest number to its highest, and where its first one is.

    Half precision is given as int16.
    """
    stored = np.dtype(np.int16) if array.dtype == np.float16 else array.dtype
    if 0 in array.shape:
        return cuda.device_array(0, stored), 0
    reach = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    before = -sum(min(r, 0) for r in reach)
    address = array.pointer - before * stored.itemsize
    return memory(address, 1 + sum(map(abs, reach)), stored, array.owner), before


def memory(pointer: int, span: int, dtype: np.dtype, owner: Any) -> Any:
    """Return an array of `span` numbers at an address; it keeps their owner alive."""
    interface = {
        "shape": (span,), "strides": None, "typestr": dtype.str, "data": (pointer, False),
        "version": 3, "stream": None,
    }  # fmt: skip
    return cuda.from_cuda_array_interface(interface, owner=owner, sync=False)


def like(owner: Any, kept: Any) -> Any:
    """Return an array of numba.cuda as one of CuPy, in place, if the input was one of CuPy."""
    if type(owner).__module__.partition(".")[0] == "cupy":
        return sys.modules["cupy"].asarray(kept)
    return kept
