"""The one way to the bodies: a call is sent to the CPU or to a GPU here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu import points, run
from thinformer.halving.draws import Draws
from thinformer.halving.plan import Plan, check_draws, drawn_numbers, draws_of_problems
from thinformer.halving.problem import Factor, Points, Problem
from thinformer.halving.schedule import Schedule
from thinformer.kernels import Kernel
from thinformer.support import checks
from thinformer.support.progress import ignore

Device = Literal["auto", "cpu", "cuda"]
DEVICES = get_args(Device)


def on_gpu(array: Any) -> bool:
    """Return whether an array is in a GPU's memory."""
    return hasattr(array, "__cuda_array_interface__")


def float_array(name: str, array: Any) -> NDArray:
    """Return an argument as a float array; as `thinformer.cuda.arrays.OnGpu` if it is on a GPU.

    An `OnGpu` has the shape and dtype of an array, and the checks of arguments read nothing else.
    """
    if not on_gpu(array):
        return checks.float_array(name, array)
    from thinformer.cuda import arrays  # imports numba.cuda

    there: Any = arrays.from_interface(name, array)
    return there


def choose(device: Device, **arrays: Any) -> Literal["cpu", "cuda"]:
    """Return "cpu" or "cuda" for a call on some arrays, all or none of which are on a GPU.

    "auto" is "cuda" for arrays on a GPU, and "cpu" for others.

    Raises
    ------
    ValueError
        The device is not in DEVICES; or some arrays are on a GPU and some are not.
    TypeError
        The device is "cpu" and the arrays are on a GPU.
    CudaUnavailableError
        The call needs a GPU, and none can be used; a RuntimeError that says why.
    """
    checks.choice("device", device, DEVICES)
    there = [name for name, array in arrays.items() if on_gpu(array)]
    if there and len(there) < len(arrays):
        here = [name for name in arrays if name not in there]
        raise ValueError(
            f"{', '.join(arrays)} must be in one memory; got {', '.join(there)} on a GPU,"
            f" {', '.join(here)} in the CPU's"
        )
    if there and device == "cpu":
        raise TypeError(
            f'{", ".join(there)} must be in the CPU\'s memory for device="cpu"; got arrays on a GPU'
        )
    if device == "cpu" or (device == "auto" and not there):
        return "cpu"
    from thinformer.cuda.jit import check_available  # imports numba.cuda

    check_available(f"{there[0]}, which is on a GPU," if there else 'device="cuda"')
    return "cuda"


def run_schedule(
    device: str,
    problem: Problem | Factor,
    schedule: Schedule,
    draws: Draws,
    index: NDArray,
    stack: tuple[int, ...],
    done: Callable[[float], None] = ignore,
) -> NDArray:
    """Run a schedule on "cpu" or "cuda"; return the positions kept, (problems, size) int64.

    The arguments are those of `thinformer.cpu.run.run_schedule`. A GPU tells only when all is done.
    """
    if device == "cpu":
        assert not isinstance(problem, Factor)  # a Gram matrix: `halve_gram`
        return run.run_schedule(problem, schedule, draws, index, stack, done=done)[-1]
    from thinformer.cuda import run as on_cuda  # imports numba.cuda

    kept = on_cuda.run_schedule(
        problem, schedule, draws_of_problems(schedule, draws, stack), index, stack
    )
    done(1.0)
    return kept


def halve_gram(
    device: str, gram: Factor, schedule: Schedule, draws: Draws, stack: tuple[int, ...]
) -> NDArray:
    """Run a schedule of one round on Gram matrices; return positions (problems, pairs) int64."""
    check_draws(schedule, draws)
    if device == "cpu":
        return run.halve_gram(gram, schedule, draws, stack)
    index = np.tile(np.arange(schedule.length), (gram.first.size, 1))
    return run_schedule(device, gram, schedule, draws, index, stack)


def source_on_gpu(n_points: int, settings: Plan, draws: Draws | int, stack: tuple[int, ...]) -> Any:
    """Return a `thinformer.cuda.arrays.Source`: the seed, or starting points and numbers."""
    if isinstance(draws, int):
        return draws
    index = run.starting_points(n_points, settings, draws, stack)
    return index, drawn_numbers(settings.schedule, draws, stack)


@contextlib.contextmanager
def reading(*arrays: Any) -> Iterator[None]:
    """Compute on the GPU of the arrays that are on one, when they are written."""
    there = [array for array in arrays if on_gpu(array)]
    if not there:
        yield
        return
    from thinformer.cuda import arrays as on_cuda  # imports numba.cuda

    some = np.dtype(np.int8)
    with on_cuda.readable(*(on_cuda.described("points", array, some) for array in there)):
        yield


def to_cpu(array: Any) -> Any:
    """Return an array that is on a GPU as a copy in the CPU's memory; all else as it is."""
    if not on_gpu(array):
        return array
    from thinformer.cuda import resident  # imports numba.cuda

    return resident.to_cpu(array)


def beside(owner: Any, array: NDArray) -> Any:
    """Return an array on the GPU of another one, for its library; as it is if that is on none."""
    if not on_gpu(owner):
        return array
    from thinformer.cuda import resident  # imports numba.cuda

    return resident.beside(owner, array)


def rows_of(points: NDArray | Any, rows: NDArray) -> NDArray:
    """Return some rows of points (n, d), in the CPU's memory; the points may be an `OnGpu`."""
    if isinstance(points, np.ndarray):
        return points[rows]
    from thinformer.cuda import resident  # imports numba.cuda

    return resident.rows_of(points, rows)


def is_finite(points: Any) -> bool:
    """Return whether all numbers of points (..., n, d) on a GPU, an `OnGpu`, are finite."""
    from thinformer.cuda import arrays as on_cuda  # imports numba.cuda

    with on_cuda.readable(points):
        return on_cuda.is_finite(points)


def under(points: Any, kernel: Kernel, shift: bool) -> Any:
    """Return points (n, d) on a GPU, an `OnGpu`, under a kernel; see `place`."""
    from thinformer.cuda import resident  # imports numba.cuda

    return resident.place(points, kernel, shift)


def place(device: str, problem: Points) -> Points | Any:
    """Return points where "cpu" or "cuda" computes with them; the functions below take either.

    On a GPU it is a `thinformer.cuda.points.PointsOnGpu`.
    """
    if device == "cpu":
        return problem
    from thinformer.cuda import points as on_cuda  # imports numba.cuda

    return on_cuda.to_gpu(problem)


def _of(problem: Points | Any) -> Any:
    """The module that computes with points: either has the functions below."""
    if isinstance(problem, Points):
        return points
    from thinformer.cuda import points as on_cuda  # imports numba.cuda

    return on_cuda


def halve(
    problem: Points | Any,
    schedule: Schedule,
    draws: Draws,
    start: NDArray,
    adaptive: bool = False,
    done: Callable[[float], None] = ignore,
    at_most: int = 0,
) -> tuple[NDArray, NDArray]:
    """Run the rounds of a schedule on one point set, see `thinformer.cpu.points.halve`."""
    return _of(problem).halve(problem, schedule, draws, start, adaptive, done, at_most)


def embed(
    problem: Points | Any,
    at: NDArray,
    index: NDArray,
    weights: NDArray,
    done: Callable[[float], None] = ignore,
) -> NDArray:
    """Return sum_j w_j k(x, y_j) for the points x at (n,) and y_j at index (m,): (n,) float64."""
    return _of(problem).embed(problem, at, index, weights, done)


def square(
    problem: Points | Any,
    sets: NDArray,
    weights: NDArray,
    done: Callable[[float], None] = ignore,
) -> NDArray:
    """Return sum_ij w_i w_j k(x_i, x_j) for each row of sets (sets, n): (sets,) float64."""
    return _of(problem).square(problem, sets, weights, done)


def diagonal(problem: Points | Any, at: NDArray) -> NDArray:
    """Return k(x, x) for the points x at (n,): (n,) float64."""
    return _of(problem).diagonal(problem, at)


def gram(problem: Points | Any, rows: NDArray) -> NDArray[np.float64]:
    """Return the Gram matrix (s, s) of rows (s,)."""
    return _of(problem).gram(problem, rows)


def in_float64(problem: Points | Any) -> Points | Any:
    """Return the problem in float64: in float32 the MMD of many rows is below the rounding of k."""
    return _of(problem).in_float64(problem)


def swap(
    problem: Points | Any,
    candidates: NDArray,
    potential: NDArray,
    coreset: NDArray,
    unique: bool,
    passes: int,
    done: Callable[[float], None] = ignore,
) -> NDArray[np.int64]:
    """Return a coreset after passes of KT-SWAP, see `thinformer.cpu.points.swap`."""
    return _of(problem).swap(problem, candidates, potential, coreset, unique, passes, done)


def grow(
    problem: Points | Any,
    candidates: NDArray,
    size: int,
    mean: NDArray,
    unique: bool,
    done: Callable[[float], None] = ignore,
) -> NDArray[np.int64]:
    """Return places in `candidates` chosen greedily, see `thinformer.cpu.points.grow`."""
    return _of(problem).grow(problem, candidates, size, mean, unique, done)
