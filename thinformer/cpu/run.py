"""KH-Compress: runs a schedule over a list of problems on a body.

Draws and problems meet here: a draw's leading axes broadcast to the problems', without a copy for
each problem.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.halving.draws import Draws, from_streams, head_keys
from thinformer.halving.problem import Factor, Points, Problem, compiled_for, value_cost
from thinformer.halving.schedule import Schedule, compress_schedule, coreset_size, published_length
from thinformer.support import checks, threads

PRE_THIN = ("even", "stride")


class Plan(NamedTuple):
    """A schedule and how a sequence is brought to its length."""

    schedule: Schedule
    pre_thin: str


def plan(n_points: int, g: int, size: int | None, delta: float, pre_thin: str = "even") -> Plan:
    """Check the settings of a compression of `n_points` points and return its plan.

    With g it is the published schedule, from n points for n the largest power of four not above
    `n_points`; with `size`, or where n points would not be halved, from as many as halve evenly.
    Where there are no more points than the coreset takes, the plan keeps all of them. The
    published rule, ``pre_thin="stride"``, has only n points before it.
    """
    g, delta = checks.integer("g", g, 0), checks.failure_probability(delta)
    pre_thin = checks.choice("pre_thin", pre_thin, PRE_THIN)
    if size is not None:
        size = checks.integer("size", size, 1)
    n = published_length(n_points)
    if pre_thin == "stride":
        n_points = n
    if size is None:
        size = coreset_size(n_points, g)
        if size < n:
            n_points = n
    return Plan(compress_schedule(n_points, min(n_points, size), delta), pre_thin)


def starting_points(n_points: int, settings: Plan, draws: Draws, stack: tuple[int, ...]) -> NDArray:
    """Return the (problems, length) positions that the first round starts from, increasing.

    "even": one of each of the strata of `stratified`.

    "stride": positions 0, s, 2s, ... with s = n_points // length, as the published code does.
    Positions from length * s on are never looked at.
    """
    check_draws(settings.schedule, draws)
    length, problems = settings.schedule.length, math.prod(stack)
    if settings.pre_thin == "stride":
        positions = np.arange(length) * (n_points // length)
    elif length == n_points:
        positions = np.arange(length)
    else:
        strata, row = _rows(draws.strata, stack, length + 1, "strata", np.float64)
        if not ((strata >= 0) & (strata < 1)).all():  # NaN is not
            raise ValueError(
                f"draws.strata must lie in [0, 1); got {strata.min()} to {strata.max()}"
            )
        return stratified(n_points, strata)[row]
    return np.broadcast_to(positions, (problems, length)).astype(np.int64, order="C")


def stratified(n_points: int, uniforms: NDArray) -> NDArray[np.int64]:
    """Return (heads, length) positions, increasing, for uniforms (heads, length + 1) in [0, 1).

    All positions are cut into `length` consecutive strata, whose sizes differ by one at most, laid
    around the sequence as around a ring from a random start; one position of each is taken at
    random. Every position has the same chance, length / n_points.
    """
    from thinformer.cpu import halve  # imports Numba

    positions = np.empty((len(uniforms), uniforms.shape[1] - 1), np.int64)
    halve.stratify(n_points, uniforms, positions)
    return positions


def draw(schedule: Schedule, seed: int, heads: int) -> Draws:
    """Return what `make_draws` does, in a sixth of the time."""
    from thinformer.cpu import halve  # imports Numba

    keys = head_keys(seed, heads)

    def numbers(stream: int, size: int) -> NDArray:
        out = np.empty((keys.size, size))
        halve.unit_numbers(keys, stream, out)
        return out

    return from_streams(schedule, numbers)


def compress(
    problem: Problem,
    schedule: Schedule,
    draws: Draws,
    index: NDArray,
    stack: tuple[int, ...],
    adaptive: bool = False,
) -> list[NDArray]:
    """Run the rounds of a schedule; return the positions left after each, (problems, n) int64.

    The first are those before any round.

    Where there are problems for every thread, each takes some through all rounds; otherwise, and
    where that would take long, they share the buckets of a round.

    Parameters
    ----------
    problem : Products or Points
    index : (problems, length) int64 array
        The positions to start from; not modified.
    stack : tuple of int
        The problems' axes, to which the draws' leading axes broadcast.
    adaptive : bool
        Halve with kernel thinning's adaptive thresholds.
    """
    from thinformer.cpu import halve  # imports Numba

    halve = compiled_for(problem, halve.halve_buckets)
    factor, dims, cost = _per_value(problem)
    dtype = factor.window.dtype
    problems = len(index)
    rounds = []
    for round_, uniform, coin in zip(schedule.rounds, draws.uniforms, draws.coins, strict=True):
        drawn = (
            *_rows(uniform, stack, round_.pairs, "uniforms", dtype),
            *_rows(coin, stack, round_.buckets, "coins", np.bool_),
        )
        rounds.append((round_, drawn, np.empty((problems, round_.pairs), np.int64)))

    def halve_buckets(i: int, work: NDArray, *part: int) -> None:
        round_, drawn, kept = rounds[i]
        points = rounds[i - 1][2] if i else index
        halve(*part, problem, round_, adaptive, points, kept, *drawn, work)

    def compress_problems(first: int, last: int) -> None:
        work = halve.workspace(max(r.largest_bucket for r in schedule.rounds), dims, dtype)
        for i, round_ in enumerate(schedule.rounds):
            units = first * round_.buckets, last * round_.buckets
            halve_buckets(i, work, *units, 0, round_.largest_bucket)

    def share_round(i: int, first: int, last: int) -> Iterator[None]:
        points = schedule.rounds[i].largest_bucket
        work = halve.workspace(points, dims, dtype)
        piece = (
            int(threads.PIECE_FLOPS / (points * cost)) // halve.PANEL * halve.PANEL or halve.PANEL
        )
        if piece >= points:
            halve_buckets(i, work, first, last, 0, points)
            return
        for unit in range(first, last):
            for start in range(0, points, piece):
                halve_buckets(i, work, unit, unit + 1, start, start + piece)
                yield

    if not rounds:
        return [index]
    flops = [problems * r.buckets * r.largest_bucket**2 * cost for r in schedule.rounds]
    whole = problems >= threads.get_num_threads() and sum(flops) < problems * threads.PIECE_FLOPS
    if whole:
        threads.run(compress_problems, problems, sum(flops))
    else:
        for i, round_ in enumerate(schedule.rounds):
            threads.run(partial(share_round, i), problems * round_.buckets, flops[i])
    return [index, *(kept for _, _, kept in rounds)]


def compress_on(
    device: str,
    problem: Problem,
    schedule: Schedule,
    draws: Draws,
    index: NDArray,
    stack: tuple[int, ...],
) -> NDArray:
    """Run a schedule on "cpu" or "cuda"; return the positions kept, (problems, size) int64.

    The arguments are those of `compress`.
    """
    if device == "cpu":
        return compress(problem, schedule, draws, index, stack)[-1]
    from thinformer.cuda import run  # imports numba.cuda

    return run.compress(problem, schedule, _of_problems(schedule, draws, stack), index, stack)


def source_on_gpu(n_points: int, settings: Plan, draws: Draws | int, stack: tuple[int, ...]) -> Any:
    """Return what `thinformer.cuda.arrays` takes draws from: their seed, or what was given."""
    if isinstance(draws, int):
        return draws
    index = starting_points(n_points, settings, draws, stack)
    return index, drawn_numbers(settings.schedule, draws, stack)


def drawn_numbers(schedule: Schedule, draws: Draws, stack: tuple[int, ...]) -> NDArray:
    """Return the uniforms and then the coins of all rounds of each problem, (problems, ...)."""
    drawn = _of_problems(schedule, draws, stack)
    return np.concatenate(drawn, axis=1) if drawn else np.empty((math.prod(stack), 0))


def _of_problems(schedule: Schedule, draws: Draws, stack: tuple[int, ...]) -> list[NDArray]:
    """The uniforms of all rounds and then the coins of all rounds, a row a problem."""
    rows = [
        *(_rows(uniform, stack, round_.pairs, "uniforms", np.float64)
          for round_, uniform in zip(schedule.rounds, draws.uniforms, strict=True)),
        *(_rows(coin, stack, round_.buckets, "coins", np.bool_)
          for round_, coin in zip(schedule.rounds, draws.coins, strict=True)),
    ]  # fmt: skip
    return [draw[row] for draw, row in rows]


def _per_value(problem: Problem) -> tuple[Factor | Points, int, int]:
    """A part of the problem with its dtype, the columns of all parts, and a kernel value's cost."""
    if isinstance(problem, Points):
        return problem, problem.dim, value_cost(problem)
    dims = problem.keys.dim + problem.values.dim
    return problem.keys, dims, dims


def halve_gram(
    device: str, gram: Factor, schedule: Schedule, draws: Draws, stack: tuple[int, ...]
) -> NDArray:
    """Run a schedule of one round on Gram matrices and return (problems, pairs) int64."""
    from thinformer.cpu import halve  # imports Numba

    check_draws(schedule, draws)
    if device == "cuda":
        from thinformer.cuda import run  # imports numba.cuda

        index = np.tile(np.arange(schedule.length), (gram.first.size, 1))
        return run.compress(gram, schedule, _of_problems(schedule, draws, stack), index, stack)
    (round_,) = schedule.rounds
    dtype = gram.window.dtype
    uniforms, uniform_row = _rows(draws.uniforms[0], stack, round_.pairs, "uniforms", dtype)
    coins, coin_row = _rows(draws.coins[0], stack, 1, "coins", np.bool_)
    problems = gram.first.size
    kept = np.empty((problems, round_.pairs), np.int64)

    def halve(first: int, last: int) -> None:
        work = np.empty(2 * round_.pairs, dtype)
        halve.halve_gram(
            first, last, gram, round_.delta, kept, uniforms, uniform_row, coins, coin_row, work
        )

    threads.run(halve, problems, problems * gram.dim**2)
    return kept


def largest_entries(*scans: tuple[Factor, NDArray]) -> list[NDArray]:
    """Return max |entry| of every problem for each scan, NaN if any entry is.

    A scan is a factor and the rows to look at: (problems, n) int64, or (1, n) for all problems.
    """
    from thinformer.cpu import halve  # imports Numba

    problems = scans[0][0].first.size
    largest = [np.empty(problems, factor.window.dtype) for factor, _ in scans]

    def scan(first: int, last: int) -> None:
        for (factor, index), found in zip(scans, largest, strict=True):
            halve.scan(first, last, factor, index, found)

    entries = sum(problems * index.shape[1] * factor.dim for factor, index in scans)
    threads.run(scan, problems, 8 * entries)  # reading a number takes the time of some 8 operations
    return largest


def all_rows(n_points: int) -> NDArray:
    """Return the rows (1, n_points) of a scan of everything."""
    return np.arange(n_points, dtype=np.int64)[None]


def is_finite(factor: Factor, n_points: int) -> bool:
    """Return whether all rows of all problems are finite."""
    (largest,) = largest_entries((factor, all_rows(n_points)))
    return bool(np.isfinite(largest).all())


def check_draws(schedule: Schedule, draws: Draws) -> None:
    """Check that draws are Draws with as many rounds as the schedule; `_rows` checks shapes."""
    if not isinstance(draws, Draws):
        raise TypeError(f"draws must be a thinformer.Draws; got {type(draws).__name__}")
    for name, arrays in (("uniforms", draws.uniforms), ("coins", draws.coins)):
        if len(arrays) != len(schedule.rounds):
            raise ValueError(
                f"draws.{name} must have one array for each of {len(schedule.rounds)} rounds; "
                f"got {len(arrays)}"
            )


def _rows(
    draw: NDArray | None, stack: tuple[int, ...], size: int, name: str, dtype: type | np.dtype
) -> tuple[NDArray, NDArray]:
    """A draw as (rows, size), and for each problem of the stack the row that is its own."""
    shape = None if draw is None else np.shape(draw)
    try:
        if shape is None or shape[-1:] != (size,):
            raise ValueError
        row = _row_numbers(shape[:-1], stack)
    except ValueError:
        raise ValueError(
            f"draws.{name} must have shape (..., {size}) with leading axes that broadcast to "
            f"{stack}; got {shape}"
        ) from None
    return np.array(draw, dtype, order="C").reshape(math.prod(shape[:-1]), size), row


@lru_cache(maxsize=64)  # the same for all draws of a schedule
def _row_numbers(lead: tuple[int, ...], stack: tuple[int, ...]) -> NDArray[np.int64]:
    """For each problem of a stack, the number of the row it has in an array of leading axes."""
    rows = np.arange(math.prod(lead), dtype=np.int64).reshape(lead)
    return np.broadcast_to(rows, stack).flatten()
