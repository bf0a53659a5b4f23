"""Which schedule a compression runs, and the draws as rows.

`plan` checks the settings of a compression. `draw_rows` broadcasts the leading axes of a draw to
the stack of problems, without a copy for each problem.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from thinformer.halving.draws import Draws
from thinformer.halving.schedule import Schedule, compress_schedule, coreset_size, published_length
from thinformer.support import checks

PreThin = Literal["even", "stride"]
PRE_THIN = get_args(PreThin)


class Plan(NamedTuple):
    """A schedule, and how points are chosen before it: every n-th, or one of each stratum."""

    schedule: Schedule
    pre_thin: str


def plan(n_points: int, g: int, size: int | None, delta: float, pre_thin: str = "even") -> Plan:
    """Check the settings of a compression of `n_points` points and return its plan.

    Let n be the largest power of four that is not above `n_points`. With `g` the schedule is the
    published one and starts from n points. With `size`, or where n points would not be halved, it
    starts from the largest length that halves evenly. If the coreset takes all points or more, the
    plan keeps all of them. The published rule, ``pre_thin="stride"``, never takes more than n
    points.
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


def check_draws(schedule: Schedule, draws: Draws) -> None:
    """Check that draws are Draws with as many rounds as the schedule; `draw_rows` checks shapes."""
    if not isinstance(draws, Draws):
        raise TypeError(f"draws must be a thinformer.Draws; got {type(draws).__name__}")
    for name, arrays in (("uniforms", draws.uniforms), ("coins", draws.coins)):
        if len(arrays) != len(schedule.rounds):
            raise ValueError(
                f"draws.{name} must have one array for each of {len(schedule.rounds)} rounds; "
                f"got {len(arrays)}"
            )


def draw_rows(
    draw: NDArray | None, stack: tuple[int, ...], size: int, name: str, dtype: type | np.dtype
) -> tuple[NDArray, NDArray]:
    """Return a draw as (rows, size), and the row of each problem of the stack, (problems,)."""
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


def draws_of_problems(schedule: Schedule, draws: Draws, stack: tuple[int, ...]) -> list[NDArray]:
    """Return the uniforms of all rounds, then the coins of all rounds, (problems, any) each."""
    rows = [
        *(draw_rows(uniform, stack, round_.pairs, "uniforms", np.float64)
          for round_, uniform in zip(schedule.rounds, draws.uniforms, strict=True)),
        *(draw_rows(coin, stack, round_.buckets, "coins", np.bool_)
          for round_, coin in zip(schedule.rounds, draws.coins, strict=True)),
    ]  # fmt: skip
    return [draw[row] for draw, row in rows]


def drawn_numbers(schedule: Schedule, draws: Draws, stack: tuple[int, ...]) -> NDArray:
    """Return `draws_of_problems` side by side, (problems, any)."""
    drawn = draws_of_problems(schedule, draws, stack)
    return np.concatenate(drawn, axis=1) if drawn else np.empty((math.prod(stack), 0))


@lru_cache(maxsize=64)  # the same for all draws of a schedule
def _row_numbers(lead: tuple[int, ...], stack: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the row of each problem of a stack in an array with leading axes, (problems,)."""
    rows = np.arange(math.prod(lead), dtype=np.int64).reshape(lead)
    return np.broadcast_to(rows, stack).flatten()
