"""Thinning a stream of points of which only a chunk at a time is at hand: merge and reduce.

Each chunk is halved to a coreset of level 0, as often as leaves 2^g times the rows that are wanted.
Where four of a level are held and a fifth comes, the four are merged and halved once, to one of the
next level. So a row goes through log4(chunks) reductions, and coresets grow as the square root of
the rows they stand for, as in Compress (arXiv 2111.07941), without which the last merges would
decide the error. In the end those of lower levels are halved until all rows weigh the same, and all
are thinned together.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.halving.draws import seed_from
from thinformer.support import checks
from thinformer.thinning.arguments import resolve
from thinformer.thinning.thin import thin

LEAST = 4096  # rows of a coreset, however few are wanted
FULL = 4  # coresets of a level that the next one merges
BLIND = ("standard", "random")  # the methods that do not look at the points


class Coreset(NamedTuple):
    """Rows that stand for a stretch of the stream.

    rows : their numbers in the stream, increasing
    points : (rows, d)
    weights : how many rows of the stream, or how much of their weight, each stands for
    """

    rows: NDArray[np.int64]
    points: NDArray
    weights: NDArray[np.float64]


def merge_and_reduce(
    chunks: Iterable[NDArray | tuple[NDArray, NDArray]],
    size: int,
    *,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    method: str = "compress++",
    g: int = 4,
    delta: float = 0.5,
    rng: int | np.random.Generator | None = None,
    keep: Callable[[NDArray[np.int64]], None] | None = None,
) -> Coreset:
    """Choose the rows that represent a stream of points best.

    Parameters
    ----------
    chunks : iterable of (rows, d) float arrays, or of pairs of one and its (rows,) weights
        Best all of one length, the last excepted.
    size : int
        Rows to choose, at most as many as the stream has.
    kernel, bandwidth, method, g, delta
        See `thinformer.thin`. "median" is of the first chunk, `g` the oversampling of each coreset
        too, and `delta` that of each halving.
    rng : None, int or numpy.random.Generator
        See `thinformer.thin`.
    keep : function, optional
        Called whenever rows were dropped with the numbers of those that are left, increasing: what
        else the caller holds of other rows can go.

    Returns
    -------
    Coreset
        Of `size` rows. With a single chunk they are those of `thin`.

    Raises
    ------
    TypeError, ValueError
        As in `thinformer.thin`; the stream has fewer rows than `size`.

    Notes
    -----
    Holds two chunks, and of c chunks at most about 6 sqrt(c) max(2^g size, 4096) points.
    """
    size, g = checks.integer("size", size, 1), checks.integer("g", g, 0)
    settings = {"kernel": kernel, "bandwidth": bandwidth, "delta": delta}
    stream = _numbered(chunks)
    first, second = next(stream, None), next(stream, None)
    if first is None:
        raise ValueError("chunks must hold at least one row")
    if second is None:
        coreset = _thinned(first, size, settings | {"method": method, "g": g, "rng": rng})
    else:
        generator = np.random.default_rng(seed_from(rng))
        if method not in BLIND:
            chosen = resolve(kernel, bandwidth, first.points, generator)
            settings |= {"kernel": chosen, "bandwidth": "median"}
        settings |= {"rng": generator}
        stream = itertools.chain([first, second], stream)
        del first, second  # only as long as they are needed
        union = _reduced(stream, 2**g * size, method, settings, keep)
        if len(union.rows) < size:
            raise ValueError(
                f"size must be at most the {len(union.rows)} rows that weigh enough; got {size}"
            )
        coreset = _thinned(union, size, settings | {"method": method, "g": g})
    if keep is not None:
        keep(coreset.rows)
    return coreset


def _numbered(chunks: Iterable[NDArray | tuple[NDArray, NDArray]]) -> Iterator[Coreset]:
    """Each chunk that has rows as a coreset of itself."""
    start = 0
    for chunk in chunks:
        points, weights = chunk if isinstance(chunk, tuple) else (chunk, np.ones(len(chunk)))
        if len(points):
            yield Coreset(np.arange(start, start + len(points)), points, weights)
        start += len(points)


def _reduced(
    stream: Iterable[Coreset],
    candidates: int,
    method: str,
    settings: dict[str, Any],
    keep: Callable[[NDArray[np.int64]], None] | None,
) -> Coreset:
    """All coresets that are left at the end of the stream, as one."""
    least = max(candidates, LEAST)
    settings = settings | {"method": method if method in BLIND else "kh-compress"}
    levels: list[list[Coreset]] = []
    usual = 0  # halvings of a chunk: a short one has as many as the others, for equal weights
    for i, chunk in enumerate(stream):
        if not chunk.weights.any():
            continue
        usual = max(usual, _halvings(len(chunk.rows), least))
        coreset = _halved(chunk, min(usual, _halvings(len(chunk.rows), 1)), settings)
        for level in itertools.count():
            if level == len(levels):
                levels.append([])
            if len(levels[level]) < FULL:
                levels[level].append(coreset)
                break
            full, levels[level] = _union(levels[level]), [coreset]
            coreset = _halved(full, min(1, _halvings(len(full.rows), least)), settings)
        if keep is not None and i:  # the second chunk was drawn before the first was halved
            keep(_union(itertools.chain(*reversed(levels))).rows)
    if not levels:
        raise ValueError("weights must be finite, none of them negative and not all zero")
    # in the end all rows weigh the same, or nearly: thinning makes copies of rows that do not
    unions = [_union(level) for level in reversed(levels)]
    heaviest = max(union.weights.mean() for union in unions)
    even = []
    for union in unions:
        halvings = round(math.log2(heaviest / union.weights.mean()))
        even.append(_halved(union, min(halvings, _halvings(len(union.rows), 1)), settings))
    return _union(even)


def _halvings(rows: int, least: int) -> int:
    """How often rows can be halved to no less than some."""
    return max(0, (rows // least).bit_length() - 1)


def _halved(coreset: Coreset, halvings: int, settings: dict[str, Any]) -> Coreset:
    """A coreset halved some times; those left weigh twice as much each time."""
    if not halvings:
        return coreset
    points, weights = coreset.points, coreset.weights
    size = len(points) >> halvings
    # of unequal weights a row may stand for several; of equal ones it never does
    repeats = bool(np.ptp(weights) > 0)
    chosen = thin(points, size, weights=weights, unique=not repeats, **settings)
    chosen, times = np.unique(chosen, return_counts=True)
    # up to 2^halvings - 1 rows more or less: equal weights are worth more, and stay equal
    share = weights.mean() * 2**halvings
    return Coreset(coreset.rows[chosen], points[chosen], share * times)


def _thinned(coreset: Coreset, size: int, settings: dict[str, Any]) -> Coreset:
    """The rows in the end, equally weighted."""
    chosen = thin(coreset.points, size, weights=coreset.weights, **settings)
    weights = np.full(size, coreset.weights.sum() / size)
    return Coreset(coreset.rows[chosen], coreset.points[chosen], weights)


def _union(coresets: Iterable[Coreset]) -> Coreset:
    """Coresets of successive stretches as one."""
    return Coreset(*(np.concatenate(parts) for parts in zip(*coresets, strict=True)))
