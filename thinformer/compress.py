"""KH-Compress: runs a schedule over a list of problems on a body.

Draws and problems meet here: a draw's leading axes broadcast to the problems', without a copy for
each problem.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer import _checks, _pool
from thinformer.draws import Draws
from thinformer.problem import Factor
from thinformer.schedule import (
    Round,
    Schedule,
    compress_schedule,
    coreset_size,
    published_length,
)

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
    g, delta = _checks.integer("g", g, 0), _checks.failure_probability(delta)
    pre_thin = _checks.choice("pre_thin", pre_thin, PRE_THIN)
    if size is not None:
        size = _checks.integer("size", size, 1)
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

    "even": n_points positions are cut into `length` consecutive strata, whose sizes differ by one
    at most, laid around the sequence as around a ring from a random start; one position of each is
    taken at random. Every position has the same chance, length / n_points.

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
        start = (strata[:, :1] * n_points).astype(np.int64)
        bounds = np.arange(length + 1, dtype=np.int64) * n_points // length
        inside = (strata[:, 1:] * np.diff(bounds)).astype(np.int64)
        return np.sort((start + bounds[:-1] + inside) % n_points, axis=1)[row]
    return np.broadcast_to(positions, (problems, length)).astype(np.int64, order="C")


def compress(
    factors: tuple[Factor, Factor],
    schedule: Schedule,
    draws: Draws,
    index: NDArray,
    stack: tuple[int, ...],
) -> NDArray:
    """Run the rounds of a schedule and return the positions kept, (problems, size) int64.

    Parameters
    ----------
    factors : two Factor
        The kernel of the problems.
    index : (problems, length) int64 array
        The positions to start from; not modified.
    stack : tuple of int
        The problems' axes, to which the draws' leading axes broadcast.
    """
    from thinformer import cpu  # imports Numba

    dtype = factors[0].window.dtype
    dims = factors[0].dim + factors[1].dim

    def halve_all(round_: Round, uniform: NDArray, coin: NDArray, index: NDArray) -> NDArray:
        uniforms, uniform_row = _rows(uniform, stack, round_.pairs, "uniforms", dtype)
        coins, coin_row = _rows(coin, stack, round_.buckets, "coins", np.bool_)
        kept = np.empty((len(index), round_.pairs), np.int64)

        def halve(first: int, last: int) -> None:
            work = cpu.workspace(round_.largest_bucket, dims, dtype)
            cpu.halve_buckets(
                first, last, *factors, round_, index, kept,
                uniforms, uniform_row, coins, coin_row, work,
            )  # fmt: skip

        units = len(index) * round_.buckets
        _pool.run(halve, units, units * round_.largest_bucket**2 * dims)
        return kept

    for round_, uniform, coin in zip(schedule.rounds, draws.uniforms, draws.coins, strict=True):
        index = halve_all(round_, uniform, coin, index)
    return index


def halve_gram(gram: Factor, schedule: Schedule, draws: Draws, stack: tuple[int, ...]) -> NDArray:
    """Run a schedule of one round on Gram matrices and return (problems, pairs) int64."""
    from thinformer import cpu  # imports Numba

    check_draws(schedule, draws)
    (round_,) = schedule.rounds
    dtype = gram.window.dtype
    uniforms, uniform_row = _rows(draws.uniforms[0], stack, round_.pairs, "uniforms", dtype)
    coins, coin_row = _rows(draws.coins[0], stack, 1, "coins", np.bool_)
    problems = gram.first.size
    kept = np.empty((problems, round_.pairs), np.int64)

    def halve(first: int, last: int) -> None:
        work = np.empty(2 * round_.pairs, dtype)
        cpu.halve_gram(
            first, last, gram, round_.delta, kept, uniforms, uniform_row, coins, coin_row, work
        )

    _pool.run(halve, problems, problems * gram.dim**2)
    return kept


def largest_entries(factor: Factor, index: NDArray) -> NDArray:
    """Return max |entry| of every problem over its rows in index, infinite or NaN if any is.

    index : (problems, n) int64, or (1, n) where all problems share the rows.
    """
    from thinformer import cpu  # imports Numba

    dtype = factor.window.dtype
    bits = np.dtype(f"i{dtype.itemsize}")
    of_bits = factor._replace(window=factor.window.view(bits))
    magnitude = bits.type(np.iinfo(bits).max)
    largest = np.empty(factor.first.size, bits)

    def scan(first: int, last: int) -> None:
        cpu.scan(first, last, of_bits, index, magnitude, largest)

    _pool.run(scan, largest.size, largest.size * index.shape[1] * factor.dim)
    return largest.view(dtype)


def finite_problems(factor: Factor, n_points: int) -> NDArray:
    """Return for every problem whether all its rows are finite."""
    return np.isfinite(largest_entries(factor, np.arange(n_points)[None]))


def is_finite(factor: Factor, n_points: int) -> bool:
    """Return whether all rows of all problems are finite."""
    return bool(finite_problems(factor, n_points).all())


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
        rows = np.arange(math.prod(shape[:-1])).reshape(shape[:-1])
        row = np.broadcast_to(rows, stack).astype(np.int64).ravel()
    except ValueError:
        raise ValueError(
            f"draws.{name} must have shape (..., {size}) with leading axes that broadcast to "
            f"{stack}; got {shape}"
        ) from None
    return np.array(draw, dtype, order="C").reshape(rows.size, size), row
