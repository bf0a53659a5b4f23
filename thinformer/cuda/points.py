"""One point set under any kernel on a GPU: halving, sums, swaps, greedy choice.

The functions are those of `thinformer.cpu.points`. The points are copied to the GPU once, or are
there; rows and numbers are copied to the GPU for a call, and its result is copied back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cuda import greedy, launches, rounds, run, sums, tiles
from thinformer.cuda.halve import Geometry
from thinformer.cuda.jit import compiling, cuda
from thinformer.cuda.values import Variant, tile_rows
from thinformer.halving.draws import Draws
from thinformer.halving.plan import draws_of_problems
from thinformer.halving.problem import Points
from thinformer.halving.schedule import Schedule
from thinformer.support.progress import ignore

LENGTH = 2**12  # points that a block adds up, at least
PARTS = 2**24  # numbers that the blocks write, at most


class PointsOnGpu(NamedTuple):
    """Points (n, dim) on a GPU under a kernel.

    variant : what kernels are compiled for
    window : (span,) the points' numbers; half precision is given as int16
    geometry : where they are in the window
    columns : of the window's rows that the kernel reads: those of the points, and of scores
    parameters, scales : (1, terms, ...) and (terms, dim), on the GPU
    """

    variant: Variant
    window: Any
    geometry: Geometry
    columns: int
    parameters: Any
    scales: Any

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Where row 0 is, the strides of rows and columns, and the columns."""
        return (self.geometry.first, *self.geometry[4:])

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The first arguments of the kernels in `sums`."""
        return self.window, self.place, self.parameters[0], self.scales


def to_gpu(problem: Points) -> PointsOnGpu:
    """Return the points of one problem, copied to the GPU.

    Raises
    ------
    NotImplementedError
        The GPU cannot compute the kernel.
    """
    variant, (factor,), parameters, scales = run.describe(problem)
    with run.out_of_memory(factor.window.nbytes):
        on_gpu = map(cuda.to_device, (factor.window, parameters, scales))
        window, of_terms, of_columns = on_gpu
    columns = 0 if variant.form in ("entries", "function") else problem.dim
    return PointsOnGpu(variant, window, run.geometry(factor, ()), columns, of_terms, of_columns)


def halve(
    problem: PointsOnGpu,
    schedule: Schedule,
    draws: Draws,
    start: NDArray,
    adaptive: bool = False,
    done: Callable[[float], None] = ignore,
    at_most: int = 0,
) -> tuple[NDArray, NDArray]:
    """Run the rounds of a schedule, as `thinformer.cpu.points.halve` does."""
    length, size, dtype = schedule.length, schedule.size, problem.variant.dtype
    if not schedule.rounds:
        done(1.0)
        return start, start
    variant = problem.variant._replace(adaptive=adaptive)
    drawn = draws_of_problems(schedule, draws, ())
    numbers = np.concatenate([draw.astype(dtype) for draw in drawn], axis=1)
    left = np.empty((1, 2 * length), np.int64)
    left[0, :length] = start
    tables = launches.round_tables(schedule, dtype, adaptive)
    dim = max(problem.columns, 1)
    made = launches.launches(schedule, 1, dim, run.processors(), dtype)
    shared = launches.count_memory(made, 1)
    arrays = (*tables, np.zeros(1, np.int64), numbers, left)
    nbytes = sum(array.nbytes for array in arrays) + 8 * size + shared * np.dtype(dtype).itemsize
    with run.out_of_memory(nbytes):
        table, factors, sequences, numbers_there, left_there = map(cuda.to_device, arrays)
        kept = cuda.device_array((1, size), np.int64)
        place = problem.window, problem.geometry
        resident = rounds.Resident(*place, *place, problem.parameters, problem.scales, sequences)
        memory = cuda.device_array(shared, dtype)
        rounds.halve_rounds(
            variant, resident, made, (table, factors), numbers_there, left_there, kept, memory
        )
        last = kept.copy_to_host()[0]
        before = last
        if at_most >= length:
            before = start
        elif at_most > size:
            pairs = max(round_.pairs for round_ in schedule.rounds if round_.pairs <= at_most)
            if pairs > size:
                at = 2 * (length - pairs)
                before = left_there[0, at : at + pairs].copy_to_host()
    done(1.0)
    return last, before


def embed(
    problem: PointsOnGpu,
    at: NDArray,
    index: NDArray,
    weights: NDArray,
    done: Callable[[float], None] = ignore,
) -> NDArray:
    """Return sum_j w_j k(x, y_j) for the points x at (n,) and y_j at index (m,): (n,) float64."""
    n, m = at.size, index.size
    if n == 0 or m == 0:
        done(1.0)
        return np.zeros(n)
    threads = launches.threads_for(m, problem.variant.dtype)
    rows, panels = tile_rows(threads), -(-n // tiles.PANEL)
    padded = panels * tiles.PANEL
    length = _length(m, rows, PARTS // padded)
    parts = -(-m // length)
    positions = np.concatenate([at, np.full(padded - n, at[-1]), index])
    shares = _padded(weights, rows, problem.variant.dtype)
    with run.out_of_memory(positions.nbytes + shares.nbytes + 8 * (parts * padded + n)):
        in_parts = cuda.device_array((parts, padded), np.float64)
        total = cuda.device_array(n, np.float64)
        sums.make_embed(problem.variant, threads)[parts * panels, threads](
            *problem.arguments, *map(cuda.to_device, (positions, shares)), panels, length, in_parts
        )
        sums.make_add_up()[_blocks(n), sums.THREADS](in_parts, total)
        out = total.copy_to_host()
    done(1.0)
    return out


def square(
    problem: PointsOnGpu,
    sets: NDArray,
    weights: NDArray,
    done: Callable[[float], None] = ignore,
) -> NDArray:
    """Return sum_ij w_i w_j k(x_i, x_j) for each row of sets (sets, n): (sets,) float64."""
    several, n = sets.shape
    threads = launches.threads_for(n, problem.variant.dtype)
    rows, panels = tile_rows(threads), -(-n // tiles.PANEL)
    length = _length(n, rows, PARTS // (several * panels))
    parts = -(-n // length)
    shares = _padded(weights, rows, problem.variant.dtype)
    sets = np.ascontiguousarray(sets)
    with run.out_of_memory(sets.nbytes + shares.nbytes + 8 * several * parts * panels):
        in_parts = cuda.device_array((several, parts, panels), np.float64)
        sums.make_square(problem.variant, threads)[several * parts * panels, threads](
            *problem.arguments, *map(cuda.to_device, (sets, shares)), panels, length, in_parts
        )
        out = in_parts.copy_to_host().sum(axis=(1, 2))
    done(1.0)
    return out


def diagonal(problem: PointsOnGpu, at: NDArray) -> NDArray:
    """Return k(x, x) for the points x at (n,): (n,) float64."""
    with run.out_of_memory(16 * at.size):
        out = cuda.device_array(at.size, np.float64)
        with compiling("kernel"):  # the first of all calls: see `as_problem`
            sums.make_diagonal(problem.variant)[_blocks(at.size), sums.THREADS](
                *problem.arguments, _to_gpu(at), out
            )
        return out.copy_to_host()


def gram(problem: PointsOnGpu, rows: NDArray) -> NDArray[np.float64]:
    """Return the Gram matrix (s, s) of rows (s,)."""
    s = rows.size
    with run.out_of_memory(8 * s * (s + 1)):
        out = cuda.device_array((s, s), np.float64)
        sums.make_gram(problem.variant)[_blocks(s * s), sums.THREADS](
            *problem.arguments, _to_gpu(rows), out
        )
        return out.copy_to_host()


def in_float64(problem: PointsOnGpu) -> PointsOnGpu:
    """Return the problem in float64; the points stay as they are, and are converted when read."""
    of_terms, of_columns = (
        cuda.to_device(array.copy_to_host().astype(np.float64))
        for array in (problem.parameters, problem.scales)
    )
    variant = problem.variant._replace(dtype=np.float64)
    return problem._replace(variant=variant, parameters=of_terms, scales=of_columns)


def swap(
    problem: PointsOnGpu,
    candidates: NDArray,
    potential: NDArray,
    coreset: NDArray,
    unique: bool,
    passes: int,
    done: Callable[[float], None] = ignore,
) -> NDArray[np.int64]:
    """Return a coreset in which each point was replaced in turn by the candidate of least MMD.

    The arguments are those of `thinformer.cpu.points.swap`.
    """
    n, size = candidates.size, coreset.size
    taken = np.zeros(n, np.int8)
    if unique:
        taken[coreset] = 1
    blocks, steps = _shares(problem, n, size)
    with run.out_of_memory(_nbytes(problem, n)):
        variant, arguments, index = _side_by_side(problem, candidates)
        improve = sums.make_swap(variant, sums.THREADS)[blocks, sums.THREADS]
        there = _to_gpu(coreset)
        state = (
            *map(_to_gpu, (index, potential)), cuda.device_array(n, variant.dtype),
            cuda.to_device(taken), there, 2 / size, int(unique),
        )  # fmt: skip
        found = (
            *_found(blocks), cuda.device_array(2, np.int64),
            cuda.to_device(np.zeros(1, np.int64)),
        )  # fmt: skip
        before = 0
        for i in range(passes):
            for first in range(0, size + 1, steps):
                last = min(first + steps, size + 1)
                improve(*arguments, *state, first, last, *found)
            changes = int(found[-1].copy_to_host()[0])
            done((i + 1) / passes if changes > before else 1.0)
            if changes == before:
                break
            before = changes
        return there.copy_to_host()


def grow(
    problem: PointsOnGpu,
    candidates: NDArray,
    size: int,
    mean: NDArray,
    unique: bool,
    done: Callable[[float], None] = ignore,
) -> NDArray[np.int64]:
    """Return `size` places in `candidates` (n,), each in turn the one that makes the MMD least.

    The arguments are those of `thinformer.cpu.points.grow`.
    """
    n = candidates.size
    blocks, steps = _shares(problem, n, size)
    potential = diagonal(problem, candidates) / 2 - mean
    with run.out_of_memory(_nbytes(problem, n)):
        variant, arguments, index = _side_by_side(problem, candidates)
        extend = greedy.make_extend(variant, sums.THREADS)[blocks, sums.THREADS]
        chosen, total = cuda.device_array(size, np.int64), cuda.to_device(np.zeros(1))
        left = cuda.to_device(potential)
        state = (*map(_to_gpu, (index, mean)), left, chosen, int(unique))
        found = *_found(blocks), total
        for first in range(0, size + 1, steps):
            last = min(first + steps, size + 1)
            extend(*arguments, *state, first, last, *found)
        places, potential = chosen.copy_to_host(), left.copy_to_host()
        least = total.copy_to_host()[0]
    potential[places] = 0  # infinite where they are taken
    if not (np.isfinite(least) and np.isfinite(potential).all()):
        raise ValueError("kernel must have finite values; between some of the points it has not")
    done(1.0)
    return places


def _to_gpu(array: NDArray) -> Any:
    """Return a copy on the GPU, which takes arrays without gaps."""
    return cuda.to_device(np.ascontiguousarray(array))


def _gathered(problem: PointsOnGpu, index: NDArray) -> Any:
    """Return the points at index (n,), on the GPU: their columns, one after the other."""
    n, columns = index.size, problem.columns
    out = cuda.device_array(columns * n, problem.variant.dtype)
    sums.make_gather(problem.variant.load)[_blocks(out.size), sums.THREADS](
        problem.window, problem.place, _to_gpu(index), out, (0, 1, n, columns)
    )
    return out


def _side_by_side(
    problem: PointsOnGpu, candidates: NDArray
) -> tuple[Variant, tuple[Any, ...], NDArray]:
    """Return candidates (n,) as columns that are neighbours in memory, where the kernel has some.

    Returns the version of the kernel, its first arguments, and the candidates' rows there.
    """
    if not problem.columns:  # of a Gram matrix, and of a function, whose points are rows
        return problem.variant, problem.arguments, candidates
    n, dim = candidates.size, problem.geometry.dim
    window = _gathered(problem, candidates)
    variant = problem.variant._replace(load=tiles.same)
    return variant, (window, (0, 1, n, dim), *problem.arguments[2:]), np.arange(n)


def _shares(problem: PointsOnGpu, n: int, size: int) -> tuple[int, int]:
    """Return the blocks that share n candidates, and the steps of a launch.

    One block takes all steps where a step takes it less time than a launch.
    """
    if n * (3 * max(problem.columns, 1) + 8) <= launches.SPAN_FLOPS:
        return 1, size + 1
    return min(_blocks(n), 4 * run.processors()), 1


def _found(blocks: int) -> tuple[Any, Any]:
    """Return memory for what the blocks find in a step, and in the step before."""
    return cuda.device_array((2, blocks), np.float64), cuda.device_array((2, blocks), np.int64)


def _nbytes(problem: PointsOnGpu, n: int) -> int:
    """Return the bytes that n candidates take, about."""
    return n * (problem.columns * np.dtype(problem.variant.dtype).itemsize + 40)


def _length(m: int, rows: int, most: int) -> int:
    """Return how many of m points a block adds up, in whole tiles, for at most `most` parts."""
    length = max(LENGTH, math.ceil(m / max(most, 1)))
    return -(-length // rows) * rows


def _padded(weights: NDArray, rows: int, dtype: type) -> NDArray:
    """Return weights (m,) with zeros behind them, for whole tiles."""
    padded: NDArray = np.zeros(-(-weights.size // rows) * rows, dtype)
    padded[: weights.size] = weights
    return padded


def _blocks(n: int) -> int:
    """Return how many blocks have a thread for each of n numbers."""
    return max(1, -(-n // sums.THREADS))
