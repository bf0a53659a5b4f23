"""Thinning a point set to any number of its rows: kernel thinning, Compress++ and simpler ways."""

from __future__ import annotations

import bisect
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.cpu.run import Plan, compress, compress_on, is_finite, plan, starting_points
from thinformer.halving.draws import Draws, make_draws, seed_from
from thinformer.halving.problem import Points, compiled_for, make_factor
from thinformer.halving.schedule import Round, Schedule, compress_schedule
from thinformer.kernels import linear
from thinformer.kernels.catalogue import as_kernel
from thinformer.kernels.phi import ENERGY
from thinformer.support import checks
from thinformer.thinning.discrepancy import (
    TARGETS,
    as_problem,
    as_weights,
    diagonal,
    embed,
    resolve,
    square,
)
from thinformer.thinning.tables import as_points

METHODS = ("compress++", "kernel-thinning", "kh-compress", "halving", "standard", "random")
ON_GPU = ("kh-compress", "halving")  # the methods that a GPU computes
SWAPPED = METHODS[:2]  # the methods that end in KT-SWAP
BLIND = METHODS[4:]  # those that do not look at the points
COPIES = 2  # weighted points become so many equally weighted ones, times n
TARGET = 181  # times as many points as are chosen, at most, is what Compress++ compares with
BLOCK = 2**14  # rows that kernel thinning gets at once from Compress++, about
PASSES = 8  # of KT-SWAP, at most; more lower the MMD by less than 1 % (n = 12,500 to 1250 rows)


def thin(
    points: Any,
    size: int,
    *,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    method: str = "compress++",
    g: int = 4,
    delta: float = 0.5,
    refine: bool = True,
    unique: bool = True,
    weights: ArrayLike | None = None,
    target: str = "sample",
    rng: int | np.random.Generator | None = None,
    device: str = "auto",
) -> NDArray[np.int64]:
    r"""Choose the rows that represent a point set best.

    Parameters
    ----------
    points : (n, d) array, pandas or polars frame, xarray or ArviZ posterior
        float32 is computed in float32, float64 and integers in float64. A memory-mapped array is
        read in place. Of a posterior, rows are its draws, chain after chain, and columns
        the elements of its variables.
    size : int
        Rows to choose, from 1 to n.
    kernel : str, Kernel, function or "precomputed"
        The name of a kernel, or one made by `thinformer.kernels`. Your own: k(x, y) compiled by
        ``numba.njit``, or in plain Python, which is slow. With "precomputed", `points` is the
        symmetric (n, n) Gram matrix.
    bandwidth : float, sequence of d floats, or "median"
        Of a kernel given by name: in the units of the points, one for all dimensions or one for
        each. "median" is the median distance between distinct points, of 1000 drawn from `rng`.
        Dimensions in different units want bandwidths of their own, or standardised points.
    method : str
        - "compress++": Compress++ (arXiv 2111.07941), kernel halving over a tree of buckets to
          :math:`2^g` times `size` rows, then kernel thinning of those. Near-linear in n.
        - "kernel-thinning": KT-SPLIT with adaptive thresholds, then KT-SWAP (arXiv 2105.05842).
          Mostly a smaller error; quadratic in n.
        - "kh-compress": KH-Compress (arXiv 2502.12063), near-linear, no swaps.
        - "halving": kernel halving KH of all points, again and again; quadratic in n.
        - "standard": evenly spaced rows, ending with the last. "random": drawn uniformly.
    g : int
        Oversampling of "compress++": a smaller error for a time that grows as :math:`4^g`.
    delta : float
        Failure probability of the halvings, in (0, 1].
    refine : bool
        End "compress++" and "kernel-thinning" with KT-SWAP: each row chosen is replaced in turn by
        the one that makes the MMD least, in up to eight passes. Without, the result is one of the
        halves at random, as the unbiased guarantees want it.
    unique : bool
        Choose no row twice.
    weights : (n,) array, optional
        What the points weigh in the sample that is to be represented; rows chosen weigh the same.
    target : "sample" or "mean-zero"
        Represent the points; or the measure whose mean embedding is zero, for `stein` kernels.
    rng : None, int or numpy.random.Generator
        Where all random numbers come from (SPEC 7): fresh ones, a seed, or a generator, which is
        advanced by one number.
    device : {"auto", "cpu", "cuda"}
        Where to compute; "auto" is the CPU. On a GPU, "cuda", for the methods "kh-compress" and
        "halving" under all kernels but `stein` and your own, with the same draws.

    Returns
    -------
    (size,) int64 array
        Row numbers, increasing.

    Raises
    ------
    TypeError, ValueError
        The points are not finite numbers of shape (n, d); another argument is out of its range, or
        does not go with the others.

    Notes
    -----
    With c = :math:`2^g` size rows left by the tree, "compress++" computes about
    :math:`2 c^2 \log_2(n / c)` kernel values in the tree, at most 181 c `size` to compare with,
    and :math:`c^2` in KT-SPLIT. Beyond the papers, KT-SWAP goes on for up to eight passes, of at
    most 2 c `size` values each, and in "compress++" its target is not the c rows but those before
    some of the halvings, 90 to 181 times as many as are chosen. Where c would be above 16,384, the
    rows are dealt out to blocks for which it is not, each is thinned to its share, and time is
    linear in n.

    Halvings start from `size` times a power of two of the rows they get, evenly spread: in
    "kernel-thinning", "kh-compress" and "halving" of all n, and up to half of them are left out.
    With `refine`, KT-SWAP makes up for it.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import thin
    >>> x = np.random.default_rng(0).normal(size=(1000, 2))
    >>> rows = thin(x, 20, rng=0)
    >>> x[rows].shape
    (20, 2)
    """
    if bodies.on_gpu(points):
        raise NotImplementedError(
            "thin takes points in the CPU's memory; kh_compress takes those on a GPU"
        )
    array = as_points(points)
    n = len(array)
    size = checks.integer("size", size, 1)
    if size > n:
        raise ValueError(f"size must be at most the {n} points there are; got {size}")
    method = checks.choice("method", method, METHODS)
    target = checks.choice("target", target, TARGETS)
    device = bodies.choose(device)
    if device == "cuda" and method not in ON_GPU:
        raise NotImplementedError(
            f'device="cuda" computes method {" or ".join(map(repr, ON_GPU))}; got {method!r}'
        )
    g, delta = checks.integer("g", g, 0), checks.failure_probability(delta)
    refine, unique = checks.boolean("refine", refine), checks.boolean("unique", unique)
    generator = np.random.default_rng(seed_from(rng))
    share = None if weights is None else as_weights(weights, n)
    if share is not None and np.ptp(share) == 0:
        share = None
    if target == "mean-zero" and not (refine and method in SWAPPED):
        raise ValueError(
            f"target='mean-zero' takes refine=True and method {' or '.join(map(repr, SWAPPED))}; "
            f"got refine={refine!r}, method={method!r}"
        )
    if isinstance(kernel, str) and kernel != "precomputed":
        as_kernel(kernel)
    if method in BLIND or (size == n and unique):  # whatever the kernel
        checks.finite("points", is_finite(make_factor(array, linear()), n))
        if size == n and unique:
            return np.arange(n)
        if method == "standard":
            rows = _standard(n, size, share)
        else:
            rows = _random(n, size, share, unique, generator)
        return _without_repeats(np.sort(rows), n, share) if unique else np.sort(rows)
    resolved = resolve(kernel, bandwidth, array, generator)
    if target == "mean-zero" and any(term.tag == ENERGY for term in resolved.summands):
        raise ValueError("target='mean-zero' takes a positive definite kernel; energy is not")
    if device == "cuda":
        array = np.ascontiguousarray(array)
    problem = as_problem(array, resolved, shift=True)
    task = Task(problem, n, size, share, delta, refine, unique, target, generator, device)
    if method == "compress++":
        rows = _compress_plus_plus(task, g)
    elif method == "kernel-thinning":
        rows = _kernel_thinning(task, _equal_copies(task), delta, _eligible(task), None)
    elif method == "kh-compress":
        rows = _kh_compress(task)
    else:
        rows = _halving(task)
    rows = np.sort(rows)
    return _without_repeats(rows, n, share) if unique else rows


class Task(NamedTuple):
    """What is to be thinned, to how many rows, and how; weights are None where they are equal."""

    problem: Points
    n: int
    size: int
    weights: NDArray | None
    delta: float
    refine: bool
    unique: bool
    target: str
    generator: np.random.Generator
    device: str = "cpu"

    def draws(self, schedule: Schedule) -> Draws:
        """Draws of a schedule, from the next number of the generator."""
        return make_draws(schedule, seed_from(self.generator))


def _compress_plus_plus(task: Task, g: int) -> NDArray:
    """Compress++ of all rows, in interleaved blocks where there is more to do than in one."""
    rows = _equal_copies(task)
    wanted = rows.size if task.size >= rows.size >> g else task.size << g
    blocks = min(task.size, -(-wanted // BLOCK))
    if blocks == 1:
        return _compress_block(task, rows, g, _spare(task, rows), every=True)
    block_of = np.arange(rows.size) % blocks
    if task.weights is not None and task.unique:
        # all copies of a row to one block, or several choose it; in turn, by number of copies
        _, copies = np.unique(rows, return_counts=True)
        place = np.argsort(np.argsort(copies, kind="stable"), kind="stable")
        block_of = np.repeat(place % blocks, copies)
    # to each block a share of the size as of the copies
    ends = np.concatenate([[0], np.cumsum(np.bincount(block_of, minlength=blocks))])
    sizes = np.diff(np.round(ends * (task.size / rows.size)).astype(np.int64))
    spare = _spare(task, rows)
    kept = []
    for block, size in enumerate(sizes):
        if size:
            part = task._replace(size=int(size), delta=task.delta / blocks)
            own = rows[block_of == block]
            kept.append(_compress_block(part, own, g, spare[block::blocks], every=False))
    return np.concatenate(kept)


def _compress_block(task: Task, rows: NDArray, g: int, spare: NDArray, every: bool) -> NDArray:
    """Compress++: a tree of halvings to about 2^g size rows, then kernel thinning of those.

    spare : other rows that may be chosen
    every : whether the rows stand for all points
    """
    fitting = (rows.size // task.size).bit_length() - 1
    wanted = math.log2(rows.size / task.size) - g
    halvings = min(fitting, max(0, round(wanted)))
    if halvings == 0 and every:
        return _kernel_thinning(task, rows, task.delta, _eligible(task), None)
    left = rows.size >> halvings
    # the paper's shares of the failure probability: m rounds of KT-SPLIT, r halvings of a tree
    rounds = (left // task.size).bit_length() - 1
    of_split = rounds / (rounds + 2.0**rounds * halvings) if rounds else 0.0
    schedule = compress_schedule(rows.size, left, task.delta * (1 - of_split) or task.delta)
    draws = task.draws(schedule)
    start = rows[starting_points(rows.size, Plan(schedule, "even"), draws, ())]
    levels = compress(task.problem, schedule, draws, start, (), adaptive=True)
    kept = levels[-1][0]
    before = next(level[0] for level in levels if level.shape[1] <= max(left, TARGET * task.size))
    candidates = np.union1d(kept, spare[:: max(1, spare.size // left)])
    if task.unique and candidates.size < task.size:  # few points weigh all
        candidates = _eligible(task)
    return _kernel_thinning(task, kept, task.delta * of_split, candidates, before)


def _kernel_thinning(
    task: Task, rows: NDArray, delta: float, candidates: NDArray, target: NDArray | None
) -> NDArray:
    """Kernel thinning of equally weighted rows: KT-SPLIT, and KT-SWAP among the candidates.

    target : rows to compare with, equally weighted; all points with their weights if None
    """
    rounds = (rows.size // task.size).bit_length() - 1
    even = Schedule(task.size << rounds, task.size, ())
    start = rows[starting_points(rows.size, Plan(even, "even"), task.draws(even), ())[0]]
    coresets = _split(task, start, rounds, delta)
    if not task.refine:
        return coresets[task.generator.integers(len(coresets))]
    standard = rows[(np.arange(task.size) + 1) * rows.size // task.size - 1]
    coresets = np.vstack([coresets, standard])
    if target is None:
        target, weights = np.arange(task.n), as_weights(task.weights, task.n)
    else:
        weights = np.full(target.size, 1 / target.size)
    return _swap(task, candidates, coresets, target, weights)


def _split(task: Task, rows: NDArray, rounds: int, delta: float) -> NDArray:
    """KT-SPLIT: halve the rows into two, each of those into two, ...: (2^rounds, size)."""
    sets = rows[None]
    for _ in range(rounds):
        pairs, buckets = sets.size // 2, len(sets)
        schedule = Schedule(2 * pairs, pairs, (Round(pairs, buckets, delta / rounds),))
        draws = task.draws(schedule)
        draws = draws._replace(coins=(np.zeros(buckets, np.bool_),))
        flat = sets.reshape(1, -1)
        one = compress(task.problem, schedule, draws, flat, (), adaptive=True)[-1][0]
        other = flat.reshape(-1, 2).sum(axis=1) - one
        halves = one.reshape(buckets, -1), other.reshape(buckets, -1)
        sets = np.stack(halves, axis=1).reshape(2 * buckets, -1)
    return sets


def _swap(
    task: Task, candidates: NDArray, coresets: NDArray, target: NDArray, weights: NDArray
) -> NDArray:
    """KT-SWAP: improve the best of some coresets, row by row, among increasing candidates."""
    from thinformer.cpu import sums  # imports Numba

    problem, size = task.problem, task.size
    mean = np.zeros(candidates.size)
    if task.target == "sample":
        mean = embed(problem, candidates, target, weights)
    places = np.searchsorted(candidates, coresets)
    equal = np.full(size, 1 / size)
    errors = square(problem, coresets, equal) - 2 * mean[places].mean(axis=1)
    coreset = places[np.argmin(errors)]
    if task.unique:
        coreset = _distinct(coreset, candidates.size)
    potential = diagonal(problem, candidates) / size - 2 * mean
    potential += 2 * embed(problem, candidates, candidates[coreset], equal)
    padded = -(-candidates.size // sums.PANEL) * sums.PANEL
    memory = np.empty(2 * padded * problem.dim, problem.window.dtype)
    work = sums.workspace(problem.dim, problem.window.dtype)
    if not (np.isfinite(potential).all() and np.isfinite(errors).all()):
        raise ValueError("kernel must have finite values; between some of the points it has not")
    improve = compiled_for(problem, sums.swap)
    improve(problem, candidates, potential, coreset, task.unique, PASSES, memory, work)
    return candidates[coreset]


def _kh_compress(task: Task) -> NDArray:
    """KH-Compress, from as many of the points as halve evenly to the size."""
    rows = _equal_copies(task)
    settings = plan(rows.size, 0, task.size, task.delta)
    draws = task.draws(settings.schedule)
    start = rows[starting_points(rows.size, settings, draws, ())]
    return compress_on(task.device, task.problem, settings.schedule, draws, start, ())[0]


def _halving(task: Task) -> NDArray:
    """Kernel halving of all points at once, repeated."""
    rows = _equal_copies(task)
    rounds = (rows.size // task.size).bit_length() - 1
    schedule = Schedule(
        task.size << rounds,
        task.size,
        tuple(Round(task.size << i, 1, task.delta / rounds) for i in reversed(range(rounds))),
    )
    draws = task.draws(schedule)
    start = rows[starting_points(rows.size, Plan(schedule, "even"), draws, ())]
    return compress_on(task.device, task.problem, schedule, draws, start, ())[0]


def _standard(n: int, size: int, weights: NDArray | None) -> NDArray:
    """Evenly spaced rows that end with the last, or the middles of equal shares of the weight."""
    if weights is None:
        return (np.arange(size) + 1) * n // size - 1
    return _at_shares((np.arange(size) + 0.5) / size, weights)


def _random(
    n: int, size: int, weights: NDArray | None, unique: bool, generator: np.random.Generator
) -> NDArray:
    """Rows drawn with chances proportional to their weights."""
    if not unique:
        return generator.choice(n, size, p=weights)
    if weights is None:
        return generator.choice(n, size, replace=False)
    with np.errstate(divide="ignore"):
        keys = np.log(weights) + generator.gumbel(size=n)
    return np.argsort(-keys, kind="stable")[:size]


def _equal_copies(task: Task) -> NDArray:
    """Rows that weigh the same and stand for the weighted sample: each once, if weights are equal.

    Otherwise 2 n rows by systematic resampling: a row comes as often as its weight says, rounded up
    or down. Its error is below that of thinning to sqrt(n) rows.
    """
    if task.weights is None:
        return np.arange(task.n)
    copies = COPIES * task.n
    return _at_shares((np.arange(copies) + task.generator.random()) / copies, task.weights)


def _spare(task: Task, rows: NDArray) -> NDArray:
    """The rows that weigh too little to have a copy, of which many may be chosen once."""
    return np.setdiff1d(_eligible(task), rows) if task.weights is not None else rows[:0]


def _eligible(task: Task) -> NDArray:
    """The rows that may come in by swaps: those that weigh, if they are enough."""
    weighing = np.arange(task.n) if task.weights is None else np.flatnonzero(task.weights)
    return np.arange(task.n) if task.unique and weighing.size < task.size else weighing


def _at_shares(shares: NDArray, weights: NDArray) -> NDArray:
    """The rows at which the running sum of the weights passes the given shares of it."""
    reached = np.cumsum(weights)
    last = np.flatnonzero(weights)[-1]
    return np.minimum(np.searchsorted(reached, shares * reached[-1], side="right"), last)


def _distinct(places: NDArray, n: int) -> NDArray:
    """The same places with repeats replaced by others, the smallest that are free."""
    distinct = np.unique(places)
    free = np.setdiff1d(np.arange(n), distinct)
    return np.concatenate([distinct, free[: places.size - distinct.size]])


def _without_repeats(rows: NDArray, n: int, weights: NDArray | None) -> NDArray:
    """Increasing rows with each repeat replaced by the nearest free row of those that weigh."""
    distinct = np.unique(rows)
    if distinct.size == rows.size:
        return rows
    repeats = rows[1:][np.diff(rows) == 0]
    weighing = np.arange(n) if weights is None else np.flatnonzero(weights)
    free = np.setdiff1d(weighing, distinct).tolist()
    if len(free) < repeats.size:
        free = np.setdiff1d(np.arange(n), distinct).tolist()
    chosen = []
    for row in repeats.tolist():
        at = bisect.bisect(free, row)
        nearest = [i for i in (at - 1, at) if 0 <= i < len(free)]
        chosen.append(free.pop(min(nearest, key=lambda i: abs(free[i] - row))))
    return np.sort(np.concatenate([distinct, chosen]))
