"""Merge and reduce: thin a stream of points that arrives in chunks.

- Each chunk is halved to a coreset of level 0. The halving stops before less than max(2^g size,
  4096) rows would be left.
- When there are four coresets of one level and a fifth arrives, the four are merged and halved
  once. The result is a coreset of the next level.
- At the end of the stream, the coresets of lower levels are halved until all rows have about the
  same weight. Then all coresets are merged and thinned to `size` rows.

So each row passes through log4(chunks) merges. The size of a coreset grows as the square root of
the number of rows that it represents, as in Compress (arXiv 2111.07941). If coresets had a fixed
size, the last merges would dominate the error.
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
from thinformer.support.progress import Progress
from thinformer.thinning.arguments import resolve
from thinformer.thinning.methods import BLIND, Method, halvings_to
from thinformer.thinning.thin import thin

LEAST = 4096  # a coreset has at least so many rows, however small `size` is
FULL = 4  # so many coresets of a level are merged into one of the next level


class Coreset(NamedTuple):
    """Rows that represent a stretch of the stream.

    rows : (m,) their numbers in the stream, increasing
    points : (m, d)
    weights : (m,) the number of rows of the stream that each represents, or their total weight
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
    method: Method = "compress++",
    g: int = 4,
    delta: float = 0.5,
    rng: int | np.random.Generator | None = None,
    keep: Callable[[NDArray[np.int64]], None] | None = None,
    progress: Progress = None,
) -> Coreset:
    """Choose `size` rows that represent a stream of points.

    Parameters
    ----------
    chunks : iterable of (rows, d) float arrays, or of pairs (array, its (rows,) weights)
        All chunks except the last should have the same length.
    size : int
        Rows to choose, at most the number of rows in the stream.
    kernel, bandwidth, method, g, delta
        See `thinformer.thin`. A median bandwidth is computed from the first chunk. `g` is also the
        oversampling of each coreset, and `delta` the failure probability of each halving.
    rng : None, int or numpy.random.Generator
        See `thinformer.thin`.
    keep : function, optional
        It is called after rows were dropped, with the increasing numbers of the rows that are left.
        The caller can then drop its own data of all other rows.
    progress : None, bool or function
        See `thinformer.thin`. It tells of the last thinning; the iterable knows how much was read.

    Returns
    -------
    Coreset
        It has `size` rows of equal weight. For a single chunk they are the rows of `thin`.

    Raises
    ------
    TypeError, ValueError
        As in `thinformer.thin`; or the stream has fewer rows than `size`.

    Notes
    -----
    For c chunks, memory holds two chunks and at most about 6 sqrt(c) max(2^g size, 4096) points.
    """
    size, g = checks.integer("size", size, 1), checks.integer("g", g, 0)
    settings = {"kernel": kernel, "bandwidth": bandwidth, "delta": delta}
    last = {"method": method, "g": g, "progress": progress}
    stream = _numbered(chunks)
    first, second = next(stream, None), next(stream, None)
    if first is None:
        raise ValueError("chunks must hold at least one row")
    if second is None:
        coreset = _thinned(first, size, settings | last | {"rng": rng})
    else:
        generator = np.random.default_rng(seed_from(rng))
        if method not in BLIND:
            chosen = resolve(kernel, bandwidth, first.points, generator)
            settings |= {"kernel": chosen, "bandwidth": "median"}
        settings |= {"rng": generator}
        stream = itertools.chain([first, second], stream)
        del first, second  # frees the memory of these chunks as soon as they are halved
        union = _reduced(stream, 2**g * size, method, settings, keep)
        if len(union.rows) < size:
            raise ValueError(
                f"size must be at most the {len(union.rows)} rows that weigh enough; got {size}"
            )
        coreset = _thinned(union, size, settings | last)
    if keep is not None:
        keep(coreset.rows)
    return coreset


def _numbered(chunks: Iterable[NDArray | tuple[NDArray, NDArray]]) -> Iterator[Coreset]:
    """Yield each chunk that has rows as a coreset that keeps all of them."""
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
    """Merge and reduce the stream; return the union of the coresets at its end.

    candidates : no coreset is halved to fewer rows, nor to fewer than LEAST
    """
    least = max(candidates, LEAST)
    settings = settings | {"method": method if method in BLIND else "kh-compress"}
    levels: list[list[Coreset]] = []
    usual = 0  # halvings of a chunk; a short chunk gets as many, so that its rows weigh the same
    for i, chunk in enumerate(stream):
        if not chunk.weights.any():
            continue
        usual = max(usual, halvings_to(len(chunk.rows), least))
        coreset = _halved(chunk, min(usual, halvings_to(len(chunk.rows), 1)), settings)
        for level in itertools.count():
            if level == len(levels):
                levels.append([])
            if len(levels[level]) < FULL:
                levels[level].append(coreset)
                break
            full, levels[level] = _union(levels[level]), [coreset]
            coreset = _halved(full, min(1, halvings_to(len(full.rows), least)), settings)
        if keep is not None and i:  # not for i = 0: the second chunk was read before it was halved
            keep(_union(itertools.chain(*reversed(levels))).rows)
    if not levels:
        raise ValueError("weights must be finite, none of them negative and not all zero")
    # bring all rows to about the same weight: for unequal weights `thin` makes copies of rows
    unions = [_union(level) for level in reversed(levels)]
    heaviest = max(union.weights.mean() for union in unions)
    even = []
    for union in unions:
        halvings = round(math.log2(heaviest / union.weights.mean()))
        even.append(_halved(union, min(halvings, halvings_to(len(union.rows), 1)), settings))
    return _union(even)


def _halved(coreset: Coreset, halvings: int, settings: dict[str, Any]) -> Coreset:
    """Halve a coreset `halvings` times; each halving doubles the weight of the rows left."""
    if not halvings:
        return coreset
    points, weights = coreset.points, coreset.weights
    size = len(points) >> halvings
    # with unequal weights one row may be chosen several times
    repeats = bool(np.ptp(weights) > 0)
    chosen = thin(points, size, weights=weights, unique=not repeats, **settings)
    chosen, times = np.unique(chosen, return_counts=True)
    # the total may be off by up to 2^halvings - 1 rows; in return equal weights stay equal
    share = weights.mean() * 2**halvings
    return Coreset(coreset.rows[chosen], points[chosen], share * times)


def _thinned(coreset: Coreset, size: int, settings: dict[str, Any]) -> Coreset:
    """The final coreset: `size` rows of equal weight."""
    chosen = thin(coreset.points, size, weights=coreset.weights, **settings)
    weights = np.full(size, coreset.weights.sum() / size)
    return Coreset(coreset.rows[chosen], coreset.points[chosen], weights)


def _union(coresets: Iterable[Coreset]) -> Coreset:
    """The union of coresets of successive stretches."""
    return Coreset(*(np.concatenate(parts) for parts in zip(*coresets, strict=True)))
