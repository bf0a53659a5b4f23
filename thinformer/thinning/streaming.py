"""Merge and reduce of a stream of points that arrives in chunks.

A chunk is a part of `merging`, numbered in the order of the stream. Memory holds the coresets that
still lack a neighbour.
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.halving.draws import seed_from
from thinformer.support import checks
from thinformer.support.progress import Progress
from thinformer.thinning.arguments import resolve
from thinformer.thinning.distributed import Coresets, settings_of, weights_of_rows
from thinformer.thinning.merging import (
    Nodes,
    Settings,
    WeightedRows,
    every_row,
    joined,
    leaf,
    taken,
    union_of,
)
from thinformer.thinning.methods import BLIND, Method
from thinformer.thinning.thin import thin


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
) -> WeightedRows:
    """Choose `size` rows that represent a stream of points.

    Parameters
    ----------
    chunks : iterable of (rows, d) float arrays, or of pairs (array, its (rows,) weights)
        Of any length; below max(2^g size, 4096) rows none is halved alone.
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
    WeightedRows
        It has `size` rows of equal weight; their parts are the chunks that have rows. For a single
        chunk they are the rows of `thin`, and for others those of `coreset` and `merge`, if `rng`
        is their seed.

    Raises
    ------
    TypeError, ValueError
        As in `thinformer.thin`; or the stream has fewer rows than `size`.

    Notes
    -----
    For c chunks, memory holds two chunks and at most about 6 sqrt(c) max(2^g size, 4096) points, or
    40 log4(c) in place of 6 sqrt(c) if that is less.
    """
    size, g = checks.integer("size", size, 1), checks.integer("g", g, 0)
    stream = _numbered(chunks)
    first, second = next(stream, None), next(stream, None)
    if first is None:
        raise ValueError("chunks must hold at least one row")
    if second is None:
        chosen = thin(
            first.points, size, weights=first.weights, kernel=kernel, bandwidth=bandwidth,
            method=method, g=g, delta=delta, rng=rng, progress=progress,
        )  # fmt: skip
        coreset = taken(first, chosen, np.full(size, first.weights.sum() / size))
    else:
        drawn = seed_from(rng)
        seed = int(rng) if isinstance(rng, numbers.Integral) else drawn
        if method not in BLIND:
            generator = np.random.default_rng(seed_from(seed))
            kernel, bandwidth = resolve(kernel, bandwidth, first.points, generator), None
        settings = settings_of(size, kernel, bandwidth, method, g, delta, seed)
        stream = itertools.chain([first, second], stream)
        del first, second  # frees the memory of these chunks as soon as they are halved
        coreset = Coresets(settings, _reduced(stream, settings, keep)).choose(progress=progress)
    if keep is not None:
        keep(coreset.rows)
    return coreset


def _numbered(chunks: Iterable[NDArray | tuple[NDArray, NDArray]]) -> Iterator[WeightedRows]:
    """Yield all rows of each chunk that has some."""
    start = part = 0
    for chunk in chunks:
        points, weights = chunk if isinstance(chunk, tuple) else (chunk, None)
        if len(points):
            yield every_row(points, weights_of_rows(weights, len(points)), part, start)
            part += 1
        start += len(points)


def _reduced(
    stream: Iterable[WeightedRows],
    settings: Settings,
    keep: Callable[[NDArray[np.int64]], None] | None,
) -> Nodes:
    """Return the coresets of the stream that are left at its end."""
    nodes: Nodes = {}
    for part, chunk in enumerate(stream):
        found = leaf(chunk, settings, part)
        nodes = joined(settings, [*nodes.items(), ((0, part), found)])
        if keep is not None and part:  # not for 0: the second chunk was read before it was halved
            keep(union_of(list(nodes.values())).rows)
    return nodes
