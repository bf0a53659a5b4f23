"""Rows of blocks by their numbers: those drawn at random, and those of a coreset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.dask.blocks import Blocks
from thinformer.dask.estimates import Drawn
from thinformer.thinning.columns import Table
from thinformer.thinning.discrepancy import check_rows


class Taken(NamedTuple):
    """Rows of blocks.

    table : the rows, in the order of their numbers as they were given
    weights : (rows,) their weights over the mean weight of all rows, of blocks that have weights;
        else ones
    """

    table: Table
    weights: NDArray[np.float64]


def drawn_rows(n: int, sample: int, seed: int, which: int) -> Drawn:
    """Draw rows of n without replacement; all of them if `sample` is no less.

    The rows are increasing. They depend on n, `sample`, `seed` and `which`, and not on the blocks.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(which,)))
    m = min(n, sample)
    rows = generator.choice(n, m, replace=False) if m < n else np.arange(n)
    order = np.argsort(rows)
    return Drawn(rows[order], np.ones(m), n, np.argsort(order))


def numbers_of(given: Any, name: str, lengths: Sequence[int], pairs: bool) -> NDArray | None:
    """The rows that a coreset has, as numbers; None where it has points of its own.

    pairs : whether rows are pairs of a partition and a row in it
    """
    array = np.asarray(given)
    if array.dtype.kind not in "iu" or not array.size:
        return None
    n = sum(lengths)
    if not pairs:
        if array.ndim != 1:
            return None
        check_rows(name, array, n)
        return array.astype(np.int64)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(
            f"{name} must hold pairs (partition, row), as thin returns them for blocks of unknown "
            f"length; got shape {array.shape}"
        )
    parts, places = array.astype(np.int64).T
    if parts.min() < 0 or parts.max() >= len(lengths):
        raise ValueError(
            f"{name} must hold partitions from 0 to {len(lengths) - 1}; got {parts.min()} to "
            f"{parts.max()}"
        )
    wrong = (places < 0) | (places >= np.asarray(lengths)[parts])
    if wrong.any():
        part, place = parts[wrong][0], places[wrong][0]
        raise ValueError(
            f"{name} must hold rows of its partitions; got row {place} of partition {part}, which "
            f"has {lengths[part]} rows"
        )
    return np.concatenate([[0], np.cumsum(lengths)])[parts] + places


def take(
    blocks: Blocks, lengths: Sequence[int], rows: ArrayLike, every: bool, name: str = "x"
) -> Taken:
    """Compute the rows of some numbers, and nothing else of the blocks.

    every : whether a frame's columns of a sampler are kept
    """
    from dask import compute, delayed

    numbers = np.asarray(rows)
    order = np.argsort(numbers, kind="stable")
    ends = np.cumsum(lengths)
    cuts = np.searchsorted(numbers[order], ends)
    tasks, start = [], 0
    for part, cut in enumerate(cuts.tolist()):
        if cut > start:
            places = numbers[order[start:cut]] - (ends[part] - lengths[part])
            tasks.append(delayed(_taken)(blocks.values[part], blocks.weights[part], places))
        start = cut
    weighted = blocks.weights[0] is not None
    totals = [delayed(_total)(each) for each in blocks.weights] if weighted else []
    found, sums = compute(tasks, totals)
    table = blocks.table([points for points, _ in found], every, name)
    back = np.argsort(order)
    table = table._replace(values=table.values[back])
    if not weighted:
        return Taken(table, np.ones(numbers.size))
    mean = sum(sums) / sum(lengths)
    if not 0 < mean < np.inf:
        raise ValueError("weights must be finite, none of them negative and not all zero")
    return Taken(table, np.concatenate([shares for _, shares in found])[back] / mean)


def _taken(block: Any, weights: Any, places: NDArray) -> tuple[Any, Any]:
    """Rows of a block, and their weights."""
    points = block.iloc[places] if hasattr(block, "iloc") else np.asarray(block)[places]
    return points, None if weights is None else np.asarray(weights, np.float64)[places]


def _total(weights: Any) -> float:
    """The sum of the weights of a block."""
    array = np.asarray(weights, np.float64)
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError("weights must be finite, and none of them negative")
    return float(array.sum())
