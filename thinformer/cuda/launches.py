"""The launches of a schedule, as data: which rounds share one, and the tables that kernels read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cuda.halve import threads_for
from thinformer.halving.schedule import Schedule
from thinformer.halving.steps import adaptive_factor, simple_factor

LAUNCH_FLOPS = 2**21  # operations that one block computes in the time of a launch


class Launch(NamedTuple):
    """One launch: rounds first_round .. last_round-1, with `share` blocks a problem."""

    first_round: int
    last_round: int
    share: int
    threads: int


def launches(
    schedule: Schedule, problems: int, dims: int, processors: int, dtype: type
) -> list[Launch]:
    """Return the launches of a schedule, in order.

    A round's launch has a block for each bucket. The last rounds share one launch, with a block for
    each problem, where that costs little: the problems alone keep all processors busy, or one block
    computes the round in less time than a launch takes.
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


def round_tables(
    schedule: Schedule, dtype: type, adaptive: bool = False
) -> tuple[NDArray, NDArray]:
    """Return a schedule as the kernel's `table` (rounds, 3) and `factors` (rounds, 2).

    `adaptive` says which thresholds the factors are of.
    """
    factor = adaptive_factor if adaptive else simple_factor
    table = np.empty((len(schedule.rounds), 3), np.int64)
    factors: NDArray = np.empty((len(schedule.rounds), 2), dtype)
    coins = schedule.length - schedule.size
    for i, (pairs, buckets, delta) in enumerate(schedule.rounds):
        table[i] = pairs, buckets, coins
        coins += buckets
        least = pairs // buckets
        factors[i] = [factor(2 * n, delta) if n else 0 for n in (least, least + 1)]
    return table, factors


def count_draws(schedule: Schedule) -> int:
    """Return how many uniforms and coins a problem has."""
    return schedule.length - schedule.size + sum(r.buckets for r in schedule.rounds)
