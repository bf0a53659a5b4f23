"""A schedule on the GPU: which kernels are launched, and with which arguments.

`run_schedule` takes NumPy arrays, and returns one. The other functions take arrays that are on the
GPU already, of any library; they allocate nothing and do not wait. `select_pairs` and
`select_points` draw and measure before `rounds.halve_rounds` launches the rounds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cuda import draw, tiles
from thinformer.cuda.halve import Geometry
from thinformer.cuda.jit import SIMULATED, cuda, user_function
from thinformer.cuda.launches import Launch, count_draws, count_memory, launches, round_tables
from thinformer.cuda.rounds import Resident, halve_rounds
from thinformer.cuda.values import FIRST, Term, Variant, phi_sobolev
from thinformer.halving.problem import CONSTANT, Factor, Points, Problem, Products
from thinformer.halving.schedule import Schedule
from thinformer.kernels import exponential, phi
from thinformer.kernels.phi import OF_DISTANCE, SOBOLEV, STEIN, TABLE

PHI: dict[int, Callable] = {
    phi.LINEAR: phi.phi_linear,
    phi.POLYNOMIAL: phi.phi_polynomial,
    phi.EXPONENTIAL: phi.phi_exponential,
    phi.GAUSSIAN: phi.phi_gaussian,
    phi.LAPLACE: phi.phi_laplace,
    phi.INVERSE_MULTIQUADRIC: phi.phi_inverse_multiquadric,
    phi.MATERN_3_2: phi.phi_matern_3_2,
    phi.MATERN_5_2: phi.phi_matern_5_2,
    phi.RATIONAL_QUADRATIC: phi.phi_rational_quadratic,
    phi.ENERGY: phi.phi_energy,
    phi.SOBOLEV: phi_sobolev,
}
# by the name of a dtype, what converts its numbers; half precision is given as int16
LOAD = {
    "float32": tiles.same,
    "float64": tiles.same,
    "float16": tiles.of_float16,
    "bfloat16": tiles.of_bfloat16,
}
COMPUTED_IN: dict[str, type] = {
    "float16": np.float32, "bfloat16": np.float32, "float32": np.float32, "float64": np.float64,
}  # fmt: skip


HALF = ("float16", "bfloat16")


class Workspace(NamedTuple):
    """The arrays on the GPU that a selection writes; `workspace` has their shapes.

    They are arguments of the kernels in `draw` and `halve`.
    """

    left: Any
    draws: Any
    largest: Any
    finite: Any
    parameters: Any
    kept: Any
    memory: Any


def workspace(
    schedule: Schedule, problems: int, dtype: type, made: list[Launch]
) -> dict[str, tuple]:
    """Return the shape and dtype of each array of a `Workspace`."""
    return {
        "left": ((problems, 2 * schedule.length), np.int64),
        "draws": ((problems, count_draws(schedule)), dtype),
        "largest": ((problems,), dtype),
        "finite": ((problems,), np.bool_),
        "parameters": ((problems, 2, 3), dtype),
        "kept": ((problems, schedule.size), np.int64),
        "memory": ((count_memory(made, problems),), dtype),
    }


class Rounds(NamedTuple):
    """A schedule, its rounds on the GPU as `round_tables` describes them, and their launches."""

    schedule: Schedule
    table: Any
    factors: Any
    made: list[Launch]


class Sequences(NamedTuple):
    """The sequences that the problems belong to, and how their points are drawn.

    numbers : (problems / heads,) int64 on the GPU, which sequence of the memory each one is; -1 for
        none, whose problems stay as they are in the workspace
    tokens : (sequences, any) int64 on the GPU: the rows of each sequence that count come first; or
        (0, 0) where all rows count
    counts : (sequences,) int64 on the GPU, the points that count in each sequence; or (0,) where
        `n_points` count in each
    n_points : the most points that count in a sequence
    strided : whether ``pre_thin="stride"``
    seed : (1,) int64 on the GPU; or None where the workspace already holds starting points and
        draws, 0 in `largest` and True in `finite`
    """

    numbers: Any
    tokens: Any
    counts: Any
    n_points: int
    strided: bool
    seed: Any


def select_pairs(
    stored: str,
    keys: tuple[Any, Geometry],
    values: tuple[Any, Geometry],
    rounds: Rounds,
    work: Workspace,
    sequences: Sequences,
    *,
    scale: float,
    scales: Any,
    stream: Any = 0,
) -> None:
    """Choose (key, value) pairs that are on the GPU; write them to ``work.kept``.

    The function allocates nothing and does not wait. ``work.finite`` says which problems are
    finite; the others keep some valid positions. A schedule without rounds keeps
    ``left[:, :length]``.

    Parameters
    ----------
    stored : str
        The name of the dtype of the keys' and values' numbers; half precision is given as int16.
    keys, values : window and geometry
    scale : float
        Softmax scale.
    scales : array (1, 1)
        An argument of the kernel that factors do not use.
    """
    dtype, problems = COMPUTED_IN[stored], work.left.shape[0]
    if problems == 0:
        return
    draw_and_measure(stored, keys, values, rounds, work, sequences, keys[1].heads, stream)
    blocks = -(-problems // draw.THREADS)
    key_scale = dtype(exponential(scale**-0.5).scale)
    draw.make_scale(dtype)[blocks, draw.THREADS, stream](key_scale, work.largest, work.parameters)
    terms = (
        Term(phi.phi_exponential, "products"), Term(phi.phi_linear, "products"),
    )  # fmt: skip
    tensor = stored in HALF and has_tensor_cores()
    variant = Variant("factors", terms, True, LOAD[stored], dtype, tensor)
    resident = Resident(*keys, *values, work.parameters, scales, sequences.numbers)
    halve_work(variant, resident, rounds, work, stream)


def select_points(
    stored: str,
    points: tuple[Any, Geometry],
    variant: Variant,
    rounds: Rounds,
    work: Workspace,
    sequences: Sequences,
    *,
    scales: Any,
    stream: Any = 0,
) -> None:
    """Choose points that are on the GPU under any kernel, as `select_pairs` does.

    ``work.parameters`` and `scales` are the kernel's. ``work.largest`` gets the largest magnitudes
    among the starting points.
    """
    problems, nothing = work.left.shape[0], (points[0], points[1]._replace(dim=0))
    if problems == 0:
        return
    draw_and_measure(stored, nothing, points, rounds, work, sequences, 1, stream)
    resident = Resident(*points, *points, work.parameters, scales, sequences.numbers)
    halve_work(variant, resident, rounds, work, stream)


def halve_work(
    variant: Variant, resident: Resident, rounds: Rounds, work: Workspace, stream: Any
) -> None:
    """Launch all rounds on a workspace that was drawn and measured."""
    halve_rounds(
        variant, resident, rounds.made, (rounds.table, rounds.factors), work.draws, work.left,
        work.kept, work.memory, stream,
    )  # fmt: skip


def draw_and_measure(
    stored: str,
    keys: tuple[Any, Geometry],
    values: tuple[Any, Geometry],
    rounds: Rounds,
    work: Workspace,
    sequences: Sequences,
    draw_heads: int,
    stream: Any = 0,
) -> None:
    """Write a seed's draws and starting points to the workspace, then measure keys and values.

    The first `draw_heads` heads have draws of their own, which the others share in turn.
    """
    dtype, threads = COMPUTED_IN[stored], draw.THREADS
    numbers, tokens, counts, n_points, _, seed = sequences
    problems, parts = work.left.shape[0], -(-n_points // draw.MEASURED_ROWS)
    if seed is not None:
        draw_all(rounds, work, sequences, dtype, draw_heads, keys[1].heads, stream)
    draw.make_measure(LOAD[stored], dtype, threads)[problems * parts, threads, stream](
        *keys, *values, numbers, tokens, counts, n_points, rounds.schedule.length, parts,
        work.left, work.largest, work.finite,
    )  # fmt: skip


def draw_all(
    rounds: Rounds,
    work: Workspace,
    sequences: Sequences,
    dtype: type,
    draw_heads: int,
    heads: int,
    stream: Any = 0,
) -> None:
    """Write a seed's draws and starting points to the workspace; `heads` problems a sequence."""
    numbers, tokens, counts, n_points, strided, seed = sequences
    draw.make_draw(dtype)[work.left.shape[0], draw.THREADS, stream](
        seed, draw_heads, heads, numbers, tokens, counts, rounds.table, n_points, int(strided),
        work.left, work.draws, work.largest, work.finite,
    )  # fmt: skip


def run_schedule(
    problem: Problem | Factor,
    schedule: Schedule,
    drawn: list[NDArray],
    index: NDArray,
    stack: tuple[int, ...],
) -> NDArray:
    """Run a schedule on the GPU; return the positions kept, (problems, size) int64.

    It does what `thinformer.cpu.run.run_schedule` does on the CPU. The problems are copied to the
    GPU; in their window they must be at the equal distances of a stack of arrays.

    Parameters
    ----------
    problem : Products or Points, or a Factor of Gram matrices
    drawn : list of (problems, ...) arrays
        The uniforms of all rounds, then the coins of all rounds.
    schedule, index, stack : as in `thinformer.cpu.run.run_schedule`

    Raises
    ------
    NotImplementedError
        The GPU cannot compute the kernel.
    MemoryError
        The GPU has not enough memory; the process can go on using it.
    """
    variant, factors, parameters, scales = describe(problem)
    if not schedule.rounds or len(index) == 0:
        return index.copy()
    problems, dtype = len(index), variant.dtype
    numbers = np.concatenate([draw.astype(dtype) for draw in drawn], axis=1)
    left = np.empty((problems, 2 * schedule.length), np.int64)
    left[:, : schedule.length] = index
    dims = 1 if variant.form == "entries" else sum(f.dim for f in factors)
    made = launches(schedule, problems, dims, processors(), dtype)
    windows = [factor.window for factor in factors]
    places = [geometry(factor, stack) for factor in factors]
    sequences = np.arange(problems // places[0].heads)
    arrays = (
        *windows, parameters, scales, sequences, *round_tables(schedule, dtype), numbers, left,
    )  # fmt: skip
    kept = np.empty((problems, schedule.size), np.int64)
    shared = count_memory(made, problems)
    nbytes = sum(array.nbytes for array in (*arrays, kept)) + shared * np.dtype(dtype).itemsize
    with out_of_memory(nbytes):
        *windows, parameters, scales, sequences, table, of_round, numbers, left = map(
            cuda.to_device, arrays
        )
        on_gpu = cuda.device_array(kept.shape, kept.dtype)
        memory = cuda.device_array(shared, dtype)
        window, other = windows[0], windows[-1]
        resident = Resident(window, places[0], other, places[-1], parameters, scales, sequences)
        halve_rounds(variant, resident, made, (table, of_round), numbers, left, on_gpu, memory)
        on_gpu.copy_to_host(kept)
    return kept


def describe(
    problem: Problem | Factor, load: Any = tiles.same
) -> tuple[Variant, list[Factor], NDArray, NDArray]:
    """Return the version of the kernel for a problem, its factors, `parameters` and `scales`.

    `load` converts a stored number of the points.
    """
    if isinstance(problem, Factor):
        return entries(problem, load, problem.window.dtype.type)
    if isinstance(problem, Products):
        dtype = problem.keys.window.dtype.type
        factors = [problem.keys, problem.values][: 1 + (problem.values.dim > 0)]
        shifted = problem.keys.tag == phi.EXPONENTIAL
        terms = tuple(Term(PHI[factor.tag], "products") for factor in factors)
        variant = Variant("factors", terms, shifted, load, dtype)
        parameters = np.stack([factors[0].parameters, factors[-1].parameters], axis=1)
        return variant, factors, parameters, np.zeros((1, 1), dtype)
    dtype = problem.window.dtype.type
    if problem.tags.tolist() == [TABLE]:
        n = len(problem.companion)
        matrix = _factor(problem)._replace(window=problem.companion.ravel(), row=n, column=1, dim=n)
        return entries(matrix, load, dtype)
    if callable(problem.companion):
        own = user_function(problem.companion)
        variant = Variant("function", (), False, load, dtype, function=own)
        return variant, [_factor(problem)], problem.parameters[None], problem.scales
    if problem.companion.ndim == 1:
        raise NotImplementedError(
            'device="cuda" takes the kernels of thinformer.kernels, their sums, functions of your'
            ' own and Gram matrices; device="cpu" takes kernels with labels too'
        )
    variant = Variant("terms", tuple(map(term, problem.tags.tolist())), False, load, dtype)
    parameters = problem.parameters.copy()
    parameters[problem.tags == SOBOLEV, CONSTANT] = 1
    return variant, [_factor(problem)], parameters[None], np.ascontiguousarray(problem.scales)


def _factor(problem: Points) -> Factor:
    """Return where points are, as a factor; no kernel reads its parameters."""
    dim = problem.scales.shape[1]  # scores are in columns behind these
    return Factor(*problem[:4], dim, int(problem.tags[0]), problem.parameters)


def term(tag: int) -> Term:
    """Return the term of a kernel's tag."""
    if tag == STEIN:  # in no sum
        return Term(phi.stein_of, "stein")
    of = "products" if tag < OF_DISTANCE else "distances" if tag < SOBOLEV else "sobolev"
    return Term(PHI[tag], of)


def entries(
    matrices: Factor, load: Any, dtype: type
) -> tuple[Variant, list[Factor], NDArray, NDArray]:
    """Return what `describe` returns, for Gram matrices."""
    variant = Variant("entries", (), False, load, dtype)
    return variant, [matrices], np.zeros((1, 1, FIRST), dtype), np.zeros((1, 1), dtype)


def geometry(factor: Factor | Points, stack: tuple[int, ...]) -> Geometry:
    """Return where the problems of a stack (..., H) are, at equal distances for each axis."""
    first, heads = factor.first, stack[-1] if stack else 1
    start = int(first[0])
    head = int(first[1]) - start if heads > 1 else 0
    batch = int(first[heads]) - start if first.size > heads else 0
    problems = np.arange(first.size)
    expected = start + problems // heads * batch + problems % heads * head
    if not np.array_equal(first, expected):
        raise ValueError("the arrays of a stack must be at equal distances in memory")
    return Geometry(start, heads, batch, head, factor.row, factor.column, factor.dim)


def processors() -> int:
    """Return the number of multiprocessors of the current GPU."""
    return 2 if SIMULATED else cuda.get_current_device().MULTIPROCESSOR_COUNT


def has_tensor_cores() -> bool:
    """Return whether the current GPU has the instruction of `mma`."""
    return SIMULATED or cuda.get_current_device().compute_capability >= (8, 0)


@contextlib.contextmanager
def out_of_memory(nbytes: int) -> Iterator[None]:
    """Raise MemoryError with the number of bytes where a GPU's memory does not suffice."""
    try:
        yield
    except Exception as error:
        if "OUT_OF_MEMORY" not in str(error):
            raise
        raise MemoryError(
            f"the GPU has not enough memory for {nbytes:,} bytes; take fewer problems at once"
        ) from error
