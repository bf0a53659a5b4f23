"""A schedule on the GPU: which kernels are launched, and with what.

`halve_rounds` is for points that are on the GPU already, by whatever library; it allocates nothing
and waits for nothing. `compress` is that for NumPy arrays, from and to the CPU's memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer import kernels
from thinformer.cuda import prepare, tiles
from thinformer.cuda._numba import SIMULATED, cuda
from thinformer.cuda.halve import Geometry, Variant, make_kernel, threads_for
from thinformer.halving import simple_factor
from thinformer.kernels import OF_DISTANCE, SOBOLEV
from thinformer.problem import CONSTANT, DEGREE, Factor, Points, Problem, Products
from thinformer.schedule import Schedule

PHI = {
    kernels.LINEAR: kernels.phi_linear,
    kernels.POLYNOMIAL: kernels.phi_polynomial,
    kernels.EXPONENTIAL: kernels.phi_exponential,
    kernels.GAUSSIAN: kernels.phi_gaussian,
    kernels.LAPLACE: kernels.phi_laplace,
    kernels.INVERSE_MULTIQUADRIC: kernels.phi_inverse_multiquadric,
    kernels.MATERN_3_2: kernels.phi_matern_3_2,
    kernels.MATERN_5_2: kernels.phi_matern_5_2,
    kernels.RATIONAL_QUADRATIC: kernels.phi_rational_quadratic,
    kernels.ENERGY: kernels.phi_energy,
}
# how the numbers of a window, by the name of their dtype, are converted; half precision is given
# as int16
LOAD = {
    "float32": tiles.same,
    "float64": tiles.same,
    "float16": tiles.of_float16,
    "bfloat16": tiles.of_bfloat16,
}
COMPUTED_IN: dict[str, type] = {
    "float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64,
}  # fmt: skip
LAUNCH_FLOPS = 2**21  # operations of one block in the time that a launch takes


class Launch(NamedTuple):
    """Rounds first_round .. last_round-1 in one launch, of `share` blocks a problem."""

    first_round: int
    last_round: int
    share: int
    threads: int


class Resident(NamedTuple):
    """All that the kernel reads of the problems, on the GPU; see `halve.make_kernel`."""

    window: Any
    geometry: Geometry
    other_window: Any
    other_geometry: Geometry
    parameters: Any
    scales: Any


def launches(
    schedule: Schedule, problems: int, dims: int, processors: int, dtype: type
) -> list[Launch]:
    """Return the launches that a schedule takes, in order.

    A round has a block for each bucket. The last rounds are one launch of a block for each problem
    where that costs little: as long as the problems alone keep all processors busy, or the round
    is less work for one block than a launch takes.
    """
    rounds = schedule.rounds
    alone = len(rounds) - 1  # the first round that is part of the last launch
    while alone > 0:
        before = rounds[alone - 1]
        work = before.buckets * before.largest_bucket**2 * dims
        if problems < 2 * processors and work > LAUNCH_FLOPS:
            break
        alone -= 1
    made = [
        Launch(i, i + 1, rounds[i].buckets, threads_for(rounds[i].largest_bucket, dtype))
        for i in range(alone)
    ]
    if rounds:
        made.append(Launch(alone, len(rounds), 1, threads_for(rounds[-1].largest_bucket, dtype)))
    return made


def round_tables(schedule: Schedule, dtype: type) -> tuple[NDArray, NDArray]:
    """Return the schedule as the kernel's `table` and `factors`."""
    table = np.empty((len(schedule.rounds), 3), np.int64)
    factors: NDArray = np.empty((len(schedule.rounds), 2), dtype)
    coins = schedule.length - schedule.size
    for i, (pairs, buckets, delta) in enumerate(schedule.rounds):
        table[i] = pairs, buckets, coins
        coins += buckets
        least = pairs // buckets
        factors[i] = [simple_factor(2 * n, delta) if n else 0 for n in (least, least + 1)]
    return table, factors


def drawn_numbers(schedule: Schedule) -> int:
    """How many uniforms and coins a problem has."""
    return schedule.length - schedule.size + sum(r.buckets for r in schedule.rounds)


def halve_rounds(
    variant: Variant,
    resident: Resident,
    made: list[Launch],
    tables: tuple[Any, Any],
    draws: Any,
    left: Any,
    kept: Any,
    stream: Any = 0,
) -> None:
    """Launch all rounds; arguments on the GPU as in `halve.make_kernel`."""
    problems = left.shape[0]
    for first_round, last_round, share, threads in made if problems else ():
        kernel = make_kernel(variant, threads)[problems * share, threads, stream]
        kernel(*resident, *tables, first_round, last_round, share, draws, left, kept)


class Workspace(NamedTuple):
    """What a selection writes on the GPU, beside the schedule's tables; `workspace` says how much.

    The arrays are those of the kernels in `prepare` and `halve`.
    """

    left: Any
    draws: Any
    largest: Any
    finite: Any
    parameters: Any
    kept: Any


def workspace(schedule: Schedule, problems: int, dtype: type) -> dict[str, tuple]:
    """Return the shape and dtype of each array of a `Workspace`."""
    return {
        "left": ((problems, 2 * schedule.length), np.int64),
        "draws": ((problems, drawn_numbers(schedule)), dtype),
        "largest": ((problems,), dtype),
        "finite": ((problems,), np.bool_),
        "parameters": ((problems, 2, 3), dtype),
        "kept": ((problems, schedule.size), np.int64),
    }


def select_pairs(
    stored: str,
    keys: tuple[Any, Geometry],
    values: tuple[Any, Geometry],
    schedule: Schedule,
    tables: tuple[Any, Any],
    work: Workspace,
    *,
    seed: Any,
    scale: float,
    n_points: int,
    strided: bool,
    scales: Any,
    processors: int,
    stream: Any = 0,
) -> None:
    """Choose (key, value) pairs that are on the GPU, from a seed there, into ``work.kept``.

    Nothing is allocated and nothing waited for. ``work.finite`` says which problems are finite;
    others keep some valid positions. A schedule without rounds keeps ``left[:, :length]``.

    Parameters
    ----------
    stored : str
        The name of the dtype of the keys' and values' numbers, given as int16 if half precision.
    keys, values : window and geometry
    seed : (1,) int64 array
    scale : float
        Softmax scale.
    n_points, strided : the length of the sequences, and whether ``pre_thin="stride"``
    scales : array of one number, of no use here
    """
    dtype, load = COMPUTED_IN[stored], LOAD[stored]
    problems, heads, threads = work.left.shape[0], keys[1].heads, prepare.THREADS
    if problems == 0:
        return
    parts = -(-n_points // prepare.MEASURED_ROWS)
    draw = prepare.make_draw(dtype)[problems, threads, stream]
    measure = prepare.make_measure(load, dtype, threads)[(parts, problems), threads, stream]
    scale_values = prepare.make_scale(dtype)[-(-problems // threads), threads, stream]
    draw(seed, heads, tables[0], n_points, int(strided), work.left, work.draws, work.largest,
         work.finite)  # fmt: skip
    measure(*keys, *values, n_points, schedule.length, work.left, work.largest, work.finite)
    key_scale = dtype(kernels.exponential(scale**-0.5).scale)
    scale_values(key_scale, work.largest, work.parameters)
    variant = Variant(kernels.phi_exponential, kernels.phi_linear, False, True, load, dtype)
    resident = Resident(*keys, *values, work.parameters, scales)
    made = launches(schedule, problems, keys[1].dim + values[1].dim, processors, dtype)
    halve_rounds(variant, resident, made, tables, work.draws, work.left, work.kept, stream)


def compress(
    problem: Problem,
    schedule: Schedule,
    drawn: list[NDArray],
    index: NDArray,
    stack: tuple[int, ...],
) -> NDArray:
    """Run a schedule on the GPU; return the positions kept, (problems, size) int64.

    As `thinformer.compress.compress` does on the CPU. The problems, which are copied to the GPU,
    lie in their window at the distances that a contiguous stack of arrays has.

    Parameters
    ----------
    drawn : list of (problems, ...) arrays
        The uniforms of all rounds, then the coins of all rounds.
    problem, schedule, index, stack : as there

    Raises
    ------
    NotImplementedError
        A kernel that is not of products or distances, or a sum of kernels.
    MemoryError
        There is not enough memory on the GPU; it can be used afterwards.
    """
    variant, factors, parameters, scales = describe(problem)
    if not schedule.rounds or len(index) == 0:
        return index.copy()
    problems, dtype = len(index), variant.dtype
    numbers = np.concatenate([draw.astype(dtype) for draw in drawn], axis=1)
    left = np.empty((problems, 2 * schedule.length), np.int64)
    left[:, : schedule.length] = index
    made = launches(schedule, problems, sum(f.dim for f in factors), processors(), dtype)
    windows = [factor.window for factor in factors]
    places = [geometry(factor, stack) for factor in factors]
    arrays = (*windows, parameters, scales, *round_tables(schedule, dtype), numbers, left)
    kept = np.empty((problems, schedule.size), np.int64)
    with out_of_memory(sum(array.nbytes for array in arrays) + kept.nbytes):
        *windows, parameters, scales, table, of_round, numbers, left = map(cuda.to_device, arrays)
        on_gpu = cuda.device_array(kept.shape, kept.dtype)
        window, other = windows[0], windows[-1]
        resident = Resident(window, places[0], other, places[-1], parameters, scales)
        halve_rounds(variant, resident, made, (table, of_round), numbers, left, on_gpu)
        on_gpu.copy_to_host(kept)
    return kept


def describe(problem: Problem) -> tuple[Variant, list[Factor | Points], NDArray, NDArray]:
    """Return the version of the kernel for a problem, its factors, `parameters` and `scales`."""
    if isinstance(problem, Products):
        dtype = problem.keys.window.dtype.type
        factors: list[Any] = [problem.keys, problem.values][: 1 + (problem.values.dim > 0)]
        phis = [PHI[factor.tag] for factor in factors]
        shifted = problem.keys.tag == kernels.EXPONENTIAL
        variant = Variant(
            phis[0], phis[1] if len(phis) > 1 else None, False, shifted, tiles.same, dtype
        )
        parameters = np.stack([factors[0].parameters, factors[-1].parameters], axis=1)
        return variant, factors, parameters, np.zeros(1, dtype)
    if len(problem.tags) > 1:
        raise NotImplementedError('device="cuda" takes no sum of kernels; device="cpu" does')
    tag, dtype, scales = int(problem.tags[0]), problem.window.dtype.type, problem.scales[0]
    if tag >= SOBOLEV:
        raise NotImplementedError(
            'device="cuda" takes kernels of products and of distances only; device="cpu" takes all'
        )
    distances = tag >= OF_DISTANCE
    if not distances and (scales != scales[0]).any():
        raise NotImplementedError(
            'device="cuda" takes one bandwidth for a kernel of products; device="cpu" takes one a'
            " dimension"
        )
    # distances are scaled once they are subtracted; halving is blind to the term's weight
    scale = 1 if distances else scales[0]
    one = np.array([scale, *problem.parameters[0, CONSTANT : DEGREE + 1]], dtype)
    parameters = np.ascontiguousarray(np.broadcast_to(one, (problem.first.size, 2, 3)))
    shifted = tag == kernels.EXPONENTIAL
    variant = Variant(PHI[tag], None, distances, shifted, tiles.same, dtype)
    return variant, [problem], parameters, np.ascontiguousarray(scales)


def geometry(factor: Factor | Points, stack: tuple[int, ...]) -> Geometry:
    """Return where the problems of a stack (..., H) are, whose leading axes are one in memory."""
    first, heads = factor.first, stack[-1] if stack else 1
    head = int(first[1] - first[0]) if heads > 1 else 0
    batch = int(first[heads] - first[0]) if first.size > heads else 0
    problems = np.arange(first.size)
    expected = first[0] + problems // heads * batch + problems % heads * head
    if first[0] != 0 or not np.array_equal(first, expected):
        raise ValueError("the arrays of a stack must be at equal distances in memory")
    return Geometry(heads, batch, head, factor.row, factor.column, factor.dim)


def processors() -> int:
    """Multiprocessors of the current GPU."""
    return 2 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT


@contextlib.contextmanager
def out_of_memory(nbytes: int) -> Iterator[None]:
    """Say how much was asked for where a GPU's memory does not suffice."""
    try:
        yield
    except Exception as error:
        if "OUT_OF_MEMORY" not in str(error):
            raise
        raise MemoryError(
            f"the GPU has not enough memory for {nbytes:,} bytes; take fewer problems at once"
        ) from error
