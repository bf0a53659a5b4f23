"""Merge and reduce: thin a point set of many parts, which may arrive in any order, on any machine.

The parts are the leaves (0, 0), (0, 1), ... of a tree, in which each node (level, index) has four
children (level - 1, 4 index), ..., (level - 1, 4 index + 3).

- A part is halved to a coreset. The halving stops before less than max(2^g size, 4096) rows would
  be left.
- When the coresets of all four children are there, they are merged and halved: once up to level
  GROWING, and twice above it. The result is the coreset of their node.
- At the end, all coresets are merged and thinned to `size` rows.

A halving of many rows deals them out to groups of at most about BUCKET rows, so its time is linear.

Before coresets are merged, those of lighter rows are halved until all rows have about the same
weight. The draws of a node follow from (seed, level, index). So the result depends on the parts and
on the seed, and on nothing else.

Each row passes through log4(parts) merges. Up to level GROWING the size of a coreset grows as the
square root of the number of rows that it represents, as in Compress (arXiv 2111.07941). Above it
coresets have 2^GROWING times the rows of the lowest level, and the highest merges dominate the
error of the tree. It is still much below the error of `size` rows, and memory and the time of the
last merges stay bounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.halving.draws import seed_from
from thinformer.kernels import Kernel
from thinformer.thinning.methods import BLIND, Method, halvings_to
from thinformer.thinning.thin import thin
from thinformer.thinning.weights import copies_by_weight

LEAST = 4096  # a coreset has at least so many rows, however small `size` is
BUCKET = 2**13  # rows that are halved together, at most; 2**14 takes twice the time, MMD alike
GROWING = 3  # coresets of higher levels are no larger than those of this one
FULL = 4  # so many coresets of a level are merged into one of the next level

Node = tuple[int, int]  # level and index


class WeightedRows(NamedTuple):
    """Rows with weights, in the order of their parts and of their numbers.

    Attributes
    ----------
    parts : (m,) int64 array
        The part that each row is from.
    rows : (m,) int64 array
        The number of each row: its place in its part, plus the `first_row` of the part.
    points : (m, d) float array
        The rows themselves.
    weights : (m,) float64 array
        The number of rows that each represents, or their total weight.
    """

    parts: NDArray[np.int64]
    rows: NDArray[np.int64]
    points: NDArray
    weights: NDArray[np.float64]


class Settings(NamedTuple):
    """What all coresets of a point set share.

    kernel : Kernel; None for a method that does not look at the points
    """

    size: int
    kernel: Kernel | None
    method: Method
    g: int
    delta: float
    seed: int

    @property
    def least(self) -> int:
        """No coreset is halved to fewer rows."""
        return max(2**self.g * self.size, LEAST)

    def thin(self, coreset: WeightedRows, size: int, method: Method, **more: Any) -> NDArray:
        """Choose rows of a coreset; returns their places in it."""
        kernel = "gaussian" if self.kernel is None else self.kernel
        return thin(
            coreset.points, size, weights=coreset.weights, kernel=kernel, method=method,
            delta=self.delta, **more,
        )  # fmt: skip

    def generator(self, *key: int) -> np.random.Generator:
        """The source of the draws of a node, or of another step."""
        return np.random.default_rng(np.random.SeedSequence(seed_from(self.seed), spawn_key=key))


Nodes = dict[Node, WeightedRows]


def leaf(every: WeightedRows, settings: Settings, part: int) -> WeightedRows:
    """Halve the rows of a part. A part without weight is empty."""
    if not every.weights.any():
        return taken(every, np.empty(0, np.int64), np.empty(0))
    return _fewer(every, len(every.rows), settings, settings.generator(0, part))


def joined(settings: Settings, found: Iterable[tuple[Node, WeightedRows]]) -> Nodes:
    """Put nodes together, and merge four of them wherever all four are there."""
    nodes = dict(found)
    level = 0
    while any(of >= level for of, _ in nodes):
        for index in sorted({i // FULL for of, i in nodes if of == level}):
            four = [(level, FULL * index + i) for i in range(FULL)]
            if all(node in nodes for node in four):
                generator = settings.generator(level + 1, index)
                union = evened([nodes.pop(node) for node in four], settings, generator)
                wanted = 1 if level < GROWING else 2
                nodes[level + 1, index] = _fewer(union, wanted, settings, generator)
        level += 1
    return dict(sorted(nodes.items(), key=lambda item: span(item[0])))


def union_of(coresets: Sequence[WeightedRows]) -> WeightedRows:
    """Return the rows of coresets one behind the other; empty ones may lack columns."""
    filled = [coreset for coreset in coresets if len(coreset.rows)] or coresets[:1]
    return WeightedRows(*(np.concatenate(each) for each in zip(*filled, strict=True)))


def evened(
    coresets: list[WeightedRows], settings: Settings, generator: np.random.Generator
) -> WeightedRows:
    """Return the union, after halvings of the coresets whose rows are lighter than others.

    For unequal weights `thin` makes copies of rows.
    """
    filled = [coreset for coreset in coresets if len(coreset.rows)]
    if not filled:
        return coresets[0]
    means = [coreset.weights.mean() for coreset in filled]
    aim = _aim([len(coreset.rows) for coreset in filled], means, settings.least)
    groups: dict[int, list[WeightedRows]] = {}
    for coreset, mean in zip(filled, means, strict=True):
        groups.setdefault(max(0, round(math.log2(aim / mean))), []).append(coreset)
    even = []
    for halvings, group in sorted(groups.items()):
        union = union_of(group)
        halvings = min(halvings, halvings_to(len(union.rows), 1))
        even.append(_halved(union, halvings, settings, generator))
    union = union_of(even)
    order = np.lexsort((union.rows, union.parts))
    return taken(union, order, union.weights[order])


def _aim(lengths: list[int], means: list[float], least: int) -> float:
    """The largest mean weight to which all can be brought so that at least `least` rows are left.

    A few rows that are very heavy would make all others too few.
    """
    for aim in sorted(means, reverse=True):
        left = sum(n * min(1, mean / aim) for n, mean in zip(lengths, means, strict=True))
        if left >= least:
            return aim
    return min(means)


def _fewer(
    coreset: WeightedRows, most: int, settings: Settings, generator: np.random.Generator
) -> WeightedRows:
    """Halve a coreset at most `most` times, and not to less than the least number of rows."""
    halvings = halvings_to(len(coreset.rows), settings.least)
    if halvings and not coreset.weights.all():  # rows without weight are no rows to halve
        weighing = np.flatnonzero(coreset.weights)
        coreset = taken(coreset, weighing, coreset.weights[weighing])
        halvings = halvings_to(len(weighing), settings.least)
    return _halved(coreset, min(most, halvings), settings, generator)


def _halved(
    coreset: WeightedRows, halvings: int, settings: Settings, generator: np.random.Generator
) -> WeightedRows:
    """Halve a coreset `halvings` times; each halving doubles the weight of the rows left.

    A bucket of many rows would take quadratic time, so they are dealt out to several groups. With
    b groups of m rows each, the error is that of one group divided by sqrt(b).
    """
    if not halvings:
        return coreset
    weights, n = coreset.weights, len(coreset.weights)
    left = n >> halvings
    copies, doublings = np.arange(n), halvings
    if np.ptp(weights):  # a row may be chosen several times
        copies, doublings = copies_by_weight(weights, generator), halvings + 1
    method = settings.method if settings.method in BLIND else "kh-compress"
    groups = -(-2 * left // BUCKET)
    chosen = []
    for first in range(groups):
        places = copies[first::groups]
        group = taken(coreset, places, np.ones(len(places)))
        size = len(places) >> doublings
        chosen.append(places[settings.thin(group, size, method, rng=generator)])
    rows, times = np.unique(np.concatenate(chosen), return_counts=True)
    # the total may be off by up to 2^halvings - 1 rows a group; in return equal weights stay equal
    return taken(coreset, rows, weights.mean() * 2**halvings * times)


def every_row(points: NDArray, weights: NDArray, part: int, first_row: int) -> WeightedRows:
    """All rows of a part."""
    n = len(points)
    return WeightedRows(np.full(n, part), np.arange(first_row, first_row + n), points, weights)


def taken(coreset: WeightedRows, places: NDArray, weights: NDArray) -> WeightedRows:
    """The rows at some places of a coreset, with other weights."""
    parts, rows, points, _ = coreset
    return WeightedRows(parts[places], rows[places], points[places], weights)


def span(node: Node) -> tuple[int, int]:
    """The first part of a node, and the one behind its last."""
    level, index = node
    return index * FULL**level, (index + 1) * FULL**level
