"""The compiled loops over many problems, on threads: schedules, scans, draws.

Each function allocates the results of a compiled loop, and runs the loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from thinformer.halving.draws import Draws, from_streams, head_keys, of_one_head
from thinformer.halving.plan import Plan, check_draws, draw_rows
from thinformer.halving.problem import Factor, Points, Problem, value_cost
from thinformer.halving.schedule import Schedule
from thinformer.kernels import Kernel
from thinformer.kernels.phi import OF_PRODUCTS, PAIRWISE
from thinformer.support import threads
from thinformer.support.progress import ignore, within


def without_subnormals(
    task: Callable[[int, int], Iterable[float] | None], units: int, flops: float
) -> None:
    """Run compiled loops on threads, see `threads.run`, while subnormal results count as zero.

    Halving is not run so: where one key is far from all others, kernel values between the others
    may all be subnormal, and they decide.
    """
    from thinformer.cpu import subnormals  # imports Numba

    def flushed(first: int, last: int) -> Iterator[float]:
        before = subnormals.flush()
        try:
            yield from task(first, last) or ()
        finally:
            subnormals.restore(before)

    threads.run(flushed if subnormals.ARE_SLOW else task, units, flops)


def starting_points(n_points: int, settings: Plan, draws: Draws, stack: tuple[int, ...]) -> NDArray:
    """Return the positions (problems, length) that the first round starts from, increasing.

    "even" takes one position of each stratum, see `stratified`.

    "stride" takes positions 0, s, 2s, ... with s = n_points // length, as the published code does.
    Positions from length * s on are never read.
    """
    check_draws(settings.schedule, draws)
    length, problems = settings.schedule.length, math.prod(stack)
    if settings.pre_thin == "stride":
        positions = np.arange(length) * (n_points // length)
    elif length == n_points:
        positions = np.arange(length)
    else:
        strata, row = draw_rows(draws.strata, stack, length + 1, "strata", np.float64)
        if not ((strata >= 0) & (strata < 1)).all():  # NaN is not
            raise ValueError(
                f"draws.strata must lie in [0, 1); got {strata.min()} to {strata.max()}"
            )
        return stratified(n_points, strata)[row]
    return np.broadcast_to(positions, (problems, length)).astype(np.int64, order="C")


def stratified(n_points: int, uniforms: NDArray) -> NDArray[np.int64]:
    """Return positions (heads, length), increasing, for uniforms (heads, length + 1) in [0, 1).

    The sequence is a ring with a random start. It is cut into `length` consecutive strata, whose
    sizes differ by one at most, and one position of each is drawn. Every position is drawn with the
    same probability, length / n_points.
    """
    from thinformer.cpu import draw  # imports Numba

    positions = np.empty((len(uniforms), uniforms.shape[1] - 1), np.int64)
    draw.stratify(n_points, uniforms, positions)
    return positions


def draw_numbers(schedule: Schedule, seed: int, heads: int | None = None) -> Draws:
    """Return the draws of `make_draws`, in a sixth of its time."""
    from thinformer.cpu import draw  # imports Numba

    keys = head_keys(seed, heads or 1)

    def numbers(stream: int, size: int) -> NDArray:
        out = np.empty((keys.size, size))
        draw.unit_numbers(keys, stream, out)
        return out

    draws = from_streams(schedule, numbers)
    return draws if heads is not None else of_one_head(draws)


def run_schedule(
    problem: Problem,
    schedule: Schedule,
    draws: Draws,
    index: NDArray,
    stack: tuple[int, ...],
    adaptive: bool = False,
    done: Callable[[float], None] = ignore,
) -> list[NDArray]:
    """Run the rounds of a schedule; return the positions left after each, (problems, n) int64.

    The first array has the positions before any round.

    Where there are problems for every thread, a thread takes some problems through all rounds.
    Otherwise, and where that would take long, the threads share the buckets of each round.

    Parameters
    ----------
    problem : Products or Points
    index : (problems, length) int64 array
        The positions to start from; not modified.
    stack : tuple of int
        The problems' axes, to which the draws' leading axes broadcast.
    adaptive : bool
        Whether to halve with kernel thinning's adaptive thresholds.
    done : function
        done(fraction) receives the part of the work that is done.
    """
    from thinformer.cpu import halve  # imports Numba

    halve_compiled = compiled_for(problem, halve.halve_buckets)
    factor, dims, cost = _per_value(problem)
    dtype = factor.window.dtype
    problems = len(index)
    rounds = []
    for round_, uniform, coin in zip(schedule.rounds, draws.uniforms, draws.coins, strict=True):
        drawn = (
            *draw_rows(uniform, stack, round_.pairs, "uniforms", dtype),
            *draw_rows(coin, stack, round_.buckets, "coins", np.bool_),
        )
        rounds.append((round_, drawn, np.empty((problems, round_.pairs), np.int64)))

    def halve_buckets(i: int, work: NDArray, *part: int) -> None:
        round_, drawn, kept = rounds[i]
        points = rounds[i - 1][2] if i else index
        halve_compiled(*part, problem, round_, adaptive, points, kept, *drawn, work)

    def compress_problems(first: int, last: int) -> None:
        work = halve.workspace(max(r.largest_bucket for r in schedule.rounds), dims, dtype)
        for i, round_ in enumerate(schedule.rounds):
            units = first * round_.buckets, last * round_.buckets
            halve_buckets(i, work, *units, 0, round_.largest_bucket)

    def share_round(i: int, first: int, last: int) -> Iterator[float]:
        points = schedule.rounds[i].largest_bucket
        work = halve.workspace(points, dims, dtype)
        panels = int(threads.PIECE_FLOPS / (points * cost)) // halve.PANEL
        piece = max(1, panels) * halve.PANEL
        if piece >= points:
            halve_buckets(i, work, first, last, 0, points)
            return
        for unit in range(first, last):
            for start in range(0, points, piece):
                halve_buckets(i, work, unit, unit + 1, start, start + piece)
                yield unit - first + min(1.0, (start + piece) / points) ** 2

    if not rounds:
        done(1.0)
        return [index]
    flops = [problems * r.buckets * r.largest_bucket**2 * cost for r in schedule.rounds]
    whole = problems >= threads.get_num_threads() and sum(flops) < problems * threads.PIECE_FLOPS
    if whole:
        threads.run(compress_problems, problems, sum(flops), done)
    else:
        ends = [sum(flops[:i]) / (sum(flops) or 1) for i in range(len(flops) + 1)]
        for i, round_ in enumerate(schedule.rounds):
            part = within(done, ends[i], ends[i + 1])
            threads.run(partial(share_round, i), problems * round_.buckets, flops[i], part)
    return [index, *(kept for _, _, kept in rounds)]


def _per_value(problem: Problem) -> tuple[Factor | Points, int, int]:
    """Return a part of the problem with its dtype, the columns of all parts, and a value's cost."""
    if isinstance(problem, Points):
        return problem, problem.dim, value_cost(problem)
    dims = problem.keys.dim + problem.values.dim
    return problem.keys, dims, dims


def halve_gram(gram: Factor, schedule: Schedule, draws: Draws, stack: tuple[int, ...]) -> NDArray:
    """Run a schedule of one round on Gram matrices; return positions (problems, pairs) int64."""
    from thinformer.cpu import halve  # imports Numba

    (round_,) = schedule.rounds
    dtype = gram.window.dtype
    uniforms, uniform_row = draw_rows(draws.uniforms[0], stack, round_.pairs, "uniforms", dtype)
    coins, coin_row = draw_rows(draws.coins[0], stack, 1, "coins", np.bool_)
    problems = gram.first.size
    kept = np.empty((problems, round_.pairs), np.int64)

    def halve_problems(first: int, last: int) -> None:
        work = np.empty(2 * round_.pairs, dtype)
        halve.halve_gram(
            first, last, gram, round_.delta, kept, uniforms, uniform_row, coins, coin_row, work
        )

    threads.run(halve_problems, problems, problems * gram.dim**2)
    return kept


def largest_entries(*scans: tuple[Factor, NDArray]) -> list[NDArray]:
    """Return max |entry| of every problem, (problems,) for each scan; NaN if an entry is NaN.

    A scan is a factor and the rows to read: (problems, n) int64, or (1, n) for all problems.
    """
    from thinformer.cpu import draw  # imports Numba

    problems = scans[0][0].first.size
    largest = [np.empty(problems, factor.window.dtype) for factor, _ in scans]

    def scan(first: int, last: int) -> None:
        for (factor, index), found in zip(scans, largest, strict=True):
            draw.scan(first, last, factor, index, found, draw.workspace(found.dtype))

    entries = sum(problems * index.shape[1] * factor.dim for factor, index in scans)
    threads.run(scan, problems, 8 * entries)  # to read a number takes the time of some 8 operations
    return largest


def all_rows(n_points: int) -> NDArray:
    """Return the rows (1, n_points) for a scan of all points."""
    return np.arange(n_points, dtype=np.int64)[None]


def is_finite(factor: Factor, n_points: int) -> bool:
    """Return whether all rows of all problems are finite."""
    (largest,) = largest_entries((factor, all_rows(n_points)))
    return bool(np.isfinite(largest).all())


def function_of_points(kernel: Kernel) -> Kernel:
    """Return the kernel; for `of_products`, with the function of two points that the loops call."""
    if kernel.tag != OF_PRODUCTS:
        return kernel
    from thinformer.cpu import jit  # imports Numba

    return replace(kernel, tag=PAIRWISE, companion=jit.from_products(kernel.companion))


def compiled_for(problem: Problem, kernel: Callable) -> Callable:
    """Return the compiled loop for a problem; for a user's own kernel, one without the disk cache.

    A user's function is compiled into the loop, and no other process could find that version again.
    """
    from thinformer.cpu import jit  # imports Numba

    with_function = isinstance(problem, Points) and callable(problem.companion)
    return jit.uncached(kernel) if with_function else kernel
