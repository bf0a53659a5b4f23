"""The launches of a schedule, as data: which rounds share one, and the tables that kernels read.

For sequences whose lengths only the GPU knows, `plans_by_length` lists all plans.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cuda.halve import threads_for
from thinformer.cuda.shared import WIDEST, Sharing, blocks_up_to, numbers_a_bucket
from thinformer.cuda.tiles import PANEL
from thinformer.cuda.values import tile_rows
from thinformer.halving.plan import Plan, plan
from thinformer.halving.schedule import Round, Schedule
from thinformer.halving.steps import adaptive_factor, simple_factor

LAUNCH_FLOPS = 2**21  # operations that one block computes in the time of a launch
# the same for the launches of a span, of which there are many: the CPU needs longer for one, if no
# CUDA graph has captured it
SPAN_FLOPS = 2**23
STORED_FLOPS = 32  # operations that one block computes in the time of reading a stored value
WIDTHS = (256, 512, WIDEST)  # points of a span
MOST_STORED = 2**24  # numbers; half of them are used, which the cache of a large GPU holds
BUSY = 16  # blocks for each multiprocessor that are enough
PHI_DIMS = 8  # columns that cost as much as a kernel value beyond its products


class Launch(NamedTuple):
    """One launch: rounds first_round .. last_round-1, with `share` blocks a problem.

    With `shared` it stands for all launches of one round whose buckets are shared between blocks.
    """

    first_round: int
    last_round: int
    share: int
    threads: int
    shared: Sharing | None = None


def launches(
    schedule: Schedule, problems: int, dims: int, processors: int, dtype: type
) -> list[Launch]:
    """Return the launches of a schedule, in order.

    A round's launch has a block for each bucket, or the buckets are shared between blocks
    (`sharing`). The last rounds share one launch, with a block for each problem, where that costs
    little: the problems alone keep all processors busy, or one block computes the round in less
    time than a launch takes.
    """
    rounds = schedule.rounds
    alone = len(rounds) - 1  # the first round that is part of the last launch
    while alone > 0:
        before = rounds[alone - 1]
        work = before.buckets * before.largest_bucket**2 * dims
        if problems < 2 * processors and work > LAUNCH_FLOPS:
            break
        alone -= 1
    made = []
    for i, round_ in enumerate(rounds[:alone] if alone < len(rounds) - 1 else rounds):
        threads = threads_for(round_.largest_bucket, dtype)
        shared = sharing(round_, problems, dims, processors, tile_rows(threads))
        made.append(Launch(i, i + 1, round_.buckets, threads, shared))
    if alone < len(rounds) - 1:
        made.append(Launch(alone, len(rounds), 1, threads_for(rounds[-1].largest_bucket, dtype)))
    return made


def sharing(round_: Round, problems: int, dims: int, processors: int, rows: int) -> Sharing | None:
    """Return how the buckets of a round are shared, in tiles of `rows`; None where they are not.

    The way with the smallest cost is taken; the cost is in operations of one multiprocessor.
    """
    buckets, points = problems * round_.buckets, round_.largest_bucket
    work = points**2 * (dims + PHI_DIMS)  # of a bucket
    waves = -(-buckets // processors)  # of blocks, if each has a bucket
    best, cost = None, waves * work
    if cost < 2 * SPAN_FLOPS:  # also a matrix of one row, of which nothing is halved
        return None
    for widest in WIDTHS:
        width = min(widest, -(-points // rows) * rows)
        spans = -(-points // width)
        of_width = buckets * work // processors + 2 * spans * SPAN_FLOPS
        of_width += waves * points * width // 2 * STORED_FLOPS
        if buckets * width**2 <= MOST_STORED and of_width < cost:
            blocks = buckets * (width // PANEL) * -(-points // rows)  # of the last span
            tiles = max(1, min(width // rows, blocks // (BUSY * processors)))
            best, cost = Sharing(width, points, tiles), of_width
    return best


def span_launches(shared: Sharing, buckets: int, threads: int) -> list[tuple[int, int]]:
    """Return the first point of each span, and the blocks of `collect`, for all `buckets`."""
    width, points, tiles = shared
    rows, panels = tile_rows(threads), width // PANEL
    return [
        (begin, buckets * panels * blocks_up_to(min(begin + width, points), tiles, rows))
        for begin in range(0, points, width)
    ]


def count_memory(made: list[Launch], problems: int) -> int:
    """Return how many numbers of memory the rounds need whose buckets are shared."""
    return max(
        (
            problems * one.share * numbers_a_bucket(one.shared, one.threads)
            for one in made
            if one.shared is not None
        ),
        default=0,
    )


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


def plans_by_length(
    longest: int, g: int, size: int | None, min_length: int, pre_thin: str
) -> tuple[list[tuple[int, Plan]], NDArray, NDArray]:
    """Return the plans of all lengths up to `longest`, each with the least length that has it.

    The arrays (longest + 1,) int64 have, for each length, the number of its plan and how many keys
    are kept. The number is -1 where all tokens are kept, whatever their number.
    """
    # a plan is the same between two of these lengths, if it does not keep all tokens
    ends = {1, min_length, longest + 1, *(2**i for i in range(longest.bit_length()))}
    if size is not None:
        ends.update(size << i for i in range(longest.bit_length()))
    bounds = sorted(end for end in ends if 1 <= end <= longest + 1)
    number, kept = (np.full(longest + 1, n, np.int64) for n in (-1, 0))
    plans: dict[Plan, int] = {}
    for first, end in itertools.pairwise(bounds):
        last = end - 1
        of_run = plan(last, g, last if last < min_length else size, 0.5, pre_thin)
        if of_run.schedule[:2] == (last, last):
            kept[first:end] = np.arange(first, end)
        else:
            plans.setdefault(of_run, first)
            number[first:end], kept[first:end] = list(plans).index(of_run), of_run.schedule.size
    return [(first, of_length) for of_length, first in plans.items()], number, kept
