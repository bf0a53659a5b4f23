"""One point set under any kernel: halving, sums of kernel values, swaps, greedy choice.

Each function allocates the results of compiled loops, and runs them on threads.
`thinformer.cuda.points` has the same functions for points on a GPU; `thinformer.bodies` chooses.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.run import compiled_for, run_schedule
from thinformer.halving.draws import Draws
from thinformer.halving.problem import Points, value_cost
from thinformer.halving.schedule import Schedule
from thinformer.support import threads
from thinformer.support.progress import ignore


def halve(
    problem: Points,
    schedule: Schedule,
    draws: Draws,
    start: NDArray,
    adaptive: bool = False,
    done: Callable[[float], None] = ignore,
    at_most: int = 0,
) -> tuple[NDArray, NDArray]:
    """Run the rounds of a schedule on one point set, from the rows start (length,).

    Returns the rows left after the last round, (size,), and the first rows that are at most
    `at_most`: before or after some round, or the last ones.
    """
    levels = run_schedule(problem, schedule, draws, start[None], (), adaptive, done)
    before = next((level[0] for level in levels if level.shape[1] <= at_most), levels[-1][0])
    return levels[-1][0], before


def embed(
    problem: Points,
    at: NDArray,
    index: NDArray,
    weights: NDArray,
    done: Callable[[float], None] = ignore,
) -> NDArray:
    """Return sum_j w_j k(x, y_j) for the points x at (n,) and y_j at index (m,): (n,) float64.

    done(fraction) receives the part that is done.
    """
    from thinformer.cpu import sums  # imports Numba

    out = np.empty(at.size, np.float64)
    kernel = compiled_for(problem, sums.embed)

    def task(first: int, last: int) -> None:
        totals = np.empty(sums.PANEL)
        kernel(first, last, problem, at, index, weights, out, totals, _workspace(problem))

    panels = -(-at.size // sums.PANEL)
    threads.run(task, panels, at.size * index.size * value_cost(problem), done)
    return out


def embed_bins(
    problem: Points,
    at: NDArray,
    index: NDArray,
    weights: NDArray,
    starts: NDArray,
    done: Callable[[float], None] = ignore,
) -> NDArray:
    """Return `embed` for each bin of the points y_j: (bins, n) float64.

    Bin b has the points y_j at index[starts[b] : starts[b + 1]], and their weights.
    """
    from thinformer.cpu import bins  # imports Numba

    out = np.empty((starts.size - 1, at.size), np.float64)
    kernel = compiled_for(problem, bins.embed_bins)

    def task(first: int, last: int) -> None:
        totals = np.empty(bins.PANEL)
        work = _workspace(problem)
        kernel(first, last, problem, at, index, weights, starts, out, totals, work)

    panels = -(-at.size // bins.PANEL)
    threads.run(task, panels, at.size * index.size * value_cost(problem), done)
    return out


def square(
    problem: Points, sets: NDArray, weights: NDArray, done: Callable[[float], None] = ignore
) -> NDArray:
    """Return sum_ij w_i w_j k(x_i, x_j) for each row of sets (sets, n): (sets,) float64.

    done(fraction) receives the part that is done.
    """
    from thinformer.cpu import sums  # imports Numba

    parts = np.empty((len(sets), -(-sets.shape[1] // sums.PANEL)), np.float64)
    kernel = compiled_for(problem, sums.square)

    def task(first: int, last: int) -> None:
        totals = np.empty((2, sums.PANEL))
        kernel(first, last, problem, sets, weights, parts, *totals, _workspace(problem))

    def panels_done(fraction: float) -> None:
        whole, rest = divmod(fraction * len(sets), 1)  # a panel meets all panels before it
        done((whole + rest**2) / len(sets))

    threads.run(task, parts.size, sets.size * sets.shape[1] * value_cost(problem), panels_done)
    return parts.sum(axis=1)


def diagonal(problem: Points, at: NDArray) -> NDArray:
    """Return k(x, x) for the points x at (n,): (n,) float64."""
    from thinformer.cpu import sums  # imports Numba

    out = np.empty(at.size, np.float64)
    kernel = compiled_for(problem, sums.diagonal)
    kernel(0, -(-at.size // sums.PANEL), problem, at, out, _workspace(problem))
    return out


def swap(
    problem: Points,
    candidates: NDArray,
    potential: NDArray,
    coreset: NDArray,
    unique: bool,
    passes: int,
    done: Callable[[float], None] = ignore,
) -> NDArray[np.int64]:
    """Return a coreset in which each point was replaced in turn by the candidate of least MMD.

    Parameters
    ----------
    candidates, potential, coreset, unique
        As in `sums.swap`; not modified.
    passes : int
        Passes over the coreset, at most; a pass without a change is the last one.
    done : function
        done(fraction) receives the part that is done.
    """
    from thinformer.cpu import simd, sums  # imports Numba

    potential, coreset = potential.copy(), coreset.copy()
    memory = np.empty(2 * simd.padded_size(candidates.size) * problem.dim, problem.window.dtype)
    work, improve = _workspace(problem), compiled_for(problem, sums.swap)
    for i in range(passes):  # an interrupt is noticed between them
        changes = improve(problem, candidates, potential, coreset, unique, 1, memory, work)
        done((i + 1) / passes if changes else 1.0)
        if not changes:
            break
    return coreset


def grow(
    problem: Points,
    candidates: NDArray,
    size: int,
    mean: NDArray,
    unique: bool,
    done: Callable[[float], None] = ignore,
) -> NDArray[np.int64]:
    """Return `size` places in `candidates` (n,), each in turn the one that makes the MMD least.

    It runs on one thread: to share out a pass over 10,000 points costs about what it saves.

    Parameters
    ----------
    mean : (n,) float64 array
        The target's mean embedding at the candidates; 0 for the measure of mean zero.
    unique : bool
        Whether a candidate may be taken only once.
    done : function
        done(fraction) receives the part that is done.
    """
    from thinformer.cpu import greedy, simd  # imports Numba

    n, dtype = candidates.size, problem.window.dtype
    padded = simd.padded_size(n)
    means, potential = np.zeros(padded), np.full(padded, np.inf)
    means[:n] = mean
    potential[:n] = diagonal(problem, candidates) / 2 - mean
    chosen = np.empty(size, np.int64)
    memory, work = np.empty(2 * padded * problem.dim, dtype), _workspace(problem)
    extend = compiled_for(problem, greedy.extend)
    piece = max(1, int(threads.PIECE_FLOPS / (n * value_cost(problem))))
    total = 0.0
    for first in range(0, size, piece):  # an interrupt is noticed between them
        last = min(first + piece, size)
        total += extend(
            first, last, problem, candidates, means, potential, chosen, unique, memory, work
        )
        done(last / size)
    potential[chosen] = 0  # infinite where they are taken
    if not (np.isfinite(total) and np.isfinite(potential[:n]).all()):
        raise ValueError("kernel must have finite values; between some of the points it has not")
    return chosen


def gram(problem: Points, rows: NDArray) -> NDArray[np.float64]:
    """Return the Gram matrix (s, s) of rows."""
    out = np.empty((rows.size, rows.size))
    one = np.ones(1)
    for j in range(rows.size):
        out[j:, j] = out[j, j:] = embed(problem, rows[j:], rows[j : j + 1], one)
    return out


def in_float64(problem: Points) -> Points:
    """Return the problem in float64: in float32 the MMD of many rows is below the rounding of k."""
    if problem.window.dtype == np.float64:
        return problem
    window, scales, parameters = (
        part.astype(np.float64) for part in (problem.window, problem.scales, problem.parameters)
    )
    companion = problem.companion
    if isinstance(companion, np.ndarray):
        companion = companion.astype(np.float64)
        companion.flags.writeable = False  # one type, so the loops are compiled once
    window.flags.writeable = False
    return problem._replace(
        window=window, scales=scales, parameters=parameters, companion=companion
    )


def _workspace(problem: Points) -> NDArray:
    from thinformer.cpu import sums  # imports Numba

    return sums.workspace(problem.dim, problem.window.dtype)
