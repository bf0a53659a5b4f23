"""The methods of `thin`: Compress++, kernel thinning, KH-Compress, halving, greedy, and two blind.

The blind ones, standard and random, do not look at the points.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from thinformer import bodies
from thinformer.cpu.run import starting_points
from thinformer.halving.draws import Draws
from thinformer.halving.plan import Plan, plan
from thinformer.halving.schedule import Round, Schedule, compress_schedule
from thinformer.support.progress import begin, ignore, labelled, within
from thinformer.thinning.arguments import as_weights
from thinformer.thinning.task import Task
from thinformer.thinning.weights import (
    at_shares,
    eligible,
    equal_copies,
    repeats_to_first_free,
    repeats_to_nearest_free,
    spare_rows,
)

Method = Literal[
    "compress++", "kernel-thinning", "kh-compress", "halving", "greedy", "standard", "random"
]  # fmt: skip
METHODS = get_args(Method)
SWAPPED = METHODS[:2]  # the methods that end in KT-SWAP
OF_MEAN_ZERO = (*SWAPPED, "greedy")  # the methods that take a measure of mean zero
BLIND = METHODS[5:]  # the methods that do not look at the points
TARGET = 181  # Compress++ compares with at most TARGET * size rows
BLOCK = 2**14  # Compress++ leaves kernel thinning about so many rows at once
PASSES = 8  # of KT-SWAP, at most; more lower the MMD by less than 1 % (n = 12,500 to 1250 rows)


def choose_rows(task: Task, method: str, g: int) -> NDArray:
    """Return the rows that a method chooses, increasing; g is that of Compress++."""
    if method in BLIND or (task.size == task.n and task.unique):
        return blind_rows(task.n, task.size, method, task.weights, task.unique, task.generator)
    if method == "compress++":
        rows = compress_plus_plus(task, g)
    elif method == "kernel-thinning":
        rows = kernel_thinning(task, equal_copies(task), task.delta, eligible(task), None)
    elif method == "kh-compress":
        rows = kh_compress_rows(task)
    elif method == "greedy":
        return np.sort(greedy_rows(task))
    else:
        rows = halve_repeatedly(task)
    return _in_order(rows, task.n, task.weights, task.unique)


def blind_rows(
    n: int,
    size: int,
    method: str,
    weights: NDArray | None,
    unique: bool,
    generator: np.random.Generator,
) -> NDArray:
    """Return the rows of n that are chosen without a look at the points, increasing."""
    if size == n and unique:
        return np.arange(n)
    if method == "standard":
        rows = standard_rows(n, size, weights)
    else:
        rows = random_rows(n, size, weights, unique, generator)
    return _in_order(rows, n, weights, unique)


def _in_order(rows: NDArray, n: int, weights: NDArray | None, unique: bool) -> NDArray:
    """Increasing rows; none of them twice, if `unique`."""
    rows = np.sort(rows)
    return repeats_to_nearest_free(rows, n, weights) if unique else rows


def halvings_to(n_rows: int, size: int) -> int:
    """How often `n_rows` rows can be halved so that at least `size` are left."""
    return max(0, (n_rows // size).bit_length() - 1)


def compress_plus_plus(task: Task, g: int) -> NDArray:
    """Compress++ of all rows: in one block, or in interleaved blocks if one would be too large."""
    rows = equal_copies(task)
    wanted = rows.size if task.size >= rows.size >> g else task.size << g
    blocks = min(task.size, -(-wanted // BLOCK))
    if blocks == 1:
        return _compress_block(task, rows, g, spare_rows(task, rows), every=True)
    block_of = np.arange(rows.size) % blocks
    if task.weights is not None and task.unique:
        # all copies of a row go to one block, or several blocks would choose the row; rows are
        # dealt out in the order of their number of copies, so that blocks are of similar size
        _, copies = np.unique(rows, return_counts=True)
        place = np.argsort(np.argsort(copies, kind="stable"), kind="stable")
        block_of = np.repeat(place % blocks, copies)
    # a block chooses the same share of `size` as it has of the copies
    ends = np.concatenate([[0], np.cumsum(np.bincount(block_of, minlength=blocks))])
    sizes = np.diff(np.round(ends * (task.size / rows.size)).astype(np.int64))
    spare = spare_rows(task, rows)
    kept = []
    for block, size in enumerate(sizes):
        if size:
            tell = labelled(task.tell, f"block {block + 1} of {blocks}")
            part = task._replace(size=int(size), delta=task.delta / blocks, tell=tell)
            own = rows[block_of == block]
            kept.append(_compress_block(part, own, g, spare[block::blocks], every=False))
    return np.concatenate(kept)


def _compress_block(task: Task, rows: NDArray, g: int, spare: NDArray, every: bool) -> NDArray:
    """Compress++: a tree of halvings to about 2^g size rows, then kernel thinning of these.

    rows : equally weighted
    spare : other rows that may be chosen
    every : whether `rows` represent all points, not only a block of them
    """
    wanted = math.log2(rows.size / task.size) - g
    halvings = min(halvings_to(rows.size, task.size), max(0, round(wanted)))
    if halvings == 0 and every:
        return kernel_thinning(task, rows, task.delta, eligible(task), None)
    left = rows.size >> halvings
    # the paper's shares of the failure probability: m rounds of KT-SPLIT, r halvings of a tree
    rounds = halvings_to(left, task.size)
    of_split = rounds / (rounds + 2.0**rounds * halvings) if rounds else 0.0
    schedule = compress_schedule(rows.size, left, task.delta * (1 - of_split) or task.delta)
    draws = task.draws(schedule)
    start = _starting_rows(rows, schedule, draws)
    done = begin(task.tell, "halving")
    most = max(left, TARGET * task.size)
    kept, before = bodies.halve(task.problem, schedule, draws, start, True, done, most)
    candidates = np.union1d(kept, spare[:: max(1, spare.size // left)])
    if task.unique and candidates.size < task.size:  # a few rows carry all the weight
        candidates = eligible(task)
    return kernel_thinning(task, kept, task.delta * of_split, candidates, before)


def kernel_thinning(
    task: Task, rows: NDArray, delta: float, candidates: NDArray, target: NDArray | None
) -> NDArray:
    """Kernel thinning of equally weighted rows: KT-SPLIT, and KT-SWAP among the candidates.

    target : equally weighted rows that KT-SWAP compares with; None for all points and their weights
    """
    rounds = halvings_to(rows.size, task.size)
    no_rounds = Schedule(task.size << rounds, task.size, ())
    start = _starting_rows(rows, no_rounds, task.draws(no_rounds))
    coresets = _split(task, start, rounds, delta)
    if not task.refine:
        return coresets[task.generator.integers(len(coresets))]
    coresets = np.vstack([coresets, rows[standard_rows(rows.size, task.size, None)]])
    if target is None:
        target, weights = np.arange(task.n), as_weights(task.weights, task.n)
    else:
        weights = np.full(target.size, 1 / target.size)
    return _swap(task, candidates, coresets, target, weights)


def _split(task: Task, rows: NDArray, rounds: int, delta: float) -> NDArray:
    """KT-SPLIT: halve the rows, halve both halves, and so on; returns (2^rounds, size)."""
    sets = rows[None]
    done = begin(task.tell, "KT-SPLIT") if rounds else ignore
    for i in range(rounds):
        # buckets are half as long in each round, so a round is half the work of the one before
        part = within(done, *((1 - 0.5**j) / (1 - 0.5**rounds) for j in (i, i + 1)))
        pairs, buckets = sets.size // 2, len(sets)
        schedule = Schedule(2 * pairs, pairs, (Round(pairs, buckets, delta / rounds),))
        draws = task.draws(schedule)
        draws = draws._replace(coins=(np.zeros(buckets, np.bool_),))
        flat = sets.reshape(-1)
        one, _ = bodies.halve(task.problem, schedule, draws, flat, adaptive=True, done=part)
        other = flat.reshape(-1, 2).sum(axis=1) - one
        halves = one.reshape(buckets, -1), other.reshape(buckets, -1)
        sets = np.stack(halves, axis=1).reshape(2 * buckets, -1)
    return sets


def _swap(
    task: Task, candidates: NDArray, coresets: NDArray, target: NDArray, weights: NDArray
) -> NDArray:
    """KT-SWAP: take the best coreset; replace each of its rows in turn by the best candidate.

    candidates : (m,) increasing rows; coresets : (any, size) rows, all of them candidates
    target, weights : (t,) rows to compare with and their weights
    """
    problem, size = task.problem, task.size
    mean = np.zeros(candidates.size)
    if task.target == "sample":
        done = begin(task.tell, "mean embedding")
        mean = bodies.embed(problem, candidates, target, weights, done)
    places = np.searchsorted(candidates, coresets)
    equal = np.full(size, 1 / size)
    errors = bodies.square(problem, coresets, equal) - 2 * mean[places].mean(axis=1)
    coreset = places[np.argmin(errors)]
    if task.unique:
        coreset = repeats_to_first_free(coreset, candidates.size)
    potential = bodies.diagonal(problem, candidates) / size - 2 * mean
    potential += 2 * bodies.embed(problem, candidates, candidates[coreset], equal)
    if not (np.isfinite(potential).all() and np.isfinite(errors).all()):
        raise ValueError("kernel must have finite values; between some of the points it has not")
    done = begin(task.tell, "KT-SWAP")
    found = bodies.swap(problem, candidates, potential, coreset, task.unique, PASSES, done)
    return candidates[found]


def kh_compress_rows(task: Task) -> NDArray:
    """KH-Compress, from as many of the rows as halve evenly to the size."""
    rows = equal_copies(task)
    return _run(task, rows, plan(rows.size, 0, task.size, task.delta).schedule)


def greedy_rows(task: Task) -> NDArray:
    """Greedy choice, in its order: each row is the one that makes the MMD of the rows so far least.

    For a Stein kernel it is Stein thinning (Riabiz et al., 2022).
    """
    candidates = eligible(task)
    mean = np.zeros(candidates.size)
    if task.target == "sample":
        every, weights = np.arange(task.n), as_weights(task.weights, task.n)
        done = begin(task.tell, "mean embedding")
        mean = bodies.embed(task.problem, candidates, every, weights, done)
    done = begin(task.tell, "greedy choice")
    found = bodies.grow(task.problem, candidates, task.size, mean, task.unique, done)
    return candidates[found]


def halve_repeatedly(task: Task) -> NDArray:
    """Kernel halving of all rows in one bucket, repeated until `size` are left."""
    rows = equal_copies(task)
    rounds = halvings_to(rows.size, task.size)
    schedule = Schedule(
        task.size << rounds,
        task.size,
        tuple(Round(task.size << i, 1, task.delta / rounds) for i in reversed(range(rounds))),
    )
    return _run(task, rows, schedule)


def _run(task: Task, rows: NDArray, schedule: Schedule) -> NDArray:
    """Run a schedule with kernel halving; returns (size,) rows."""
    draws = task.draws(schedule)
    start = _starting_rows(rows, schedule, draws)
    done = begin(task.tell, "halving")
    return bodies.halve(task.problem, schedule, draws, start, done=done)[0]


def _starting_rows(rows: NDArray, schedule: Schedule, draws: Draws) -> NDArray:
    """The (length,) rows that a schedule starts from: one from each stratum of `rows`."""
    return rows[starting_points(rows.size, Plan(schedule, "even"), draws, ())[0]]


def standard_rows(n: int, size: int, weights: NDArray | None) -> NDArray:
    """Standard thinning: evenly spaced rows, the last row included.

    With weights (n,), the rows at the middles of `size` equal shares of the total weight.
    """
    if weights is None:
        return (np.arange(size) + 1) * n // size - 1
    return at_shares((np.arange(size) + 0.5) / size, weights)


def random_rows(
    n: int, size: int, weights: NDArray | None, unique: bool, generator: np.random.Generator
) -> NDArray:
    """Rows drawn with probabilities proportional to their weights."""
    if not unique:
        return generator.choice(n, size, p=weights)
    if weights is None:
        return generator.choice(n, size, replace=False)
    with np.errstate(divide="ignore"):
        keys = np.log(weights) + generator.gumbel(size=n)
    return np.argsort(-keys, kind="stable")[:size]
