"""`coreset` and `merge`: thin a point set of many parts, on any number of machines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.kernels import Kernel
from thinformer.kernels.catalogue import WITHOUT_BANDWIDTH, as_kernel
from thinformer.support import checks
from thinformer.support.names import few
from thinformer.support.progress import Progress
from thinformer.thinning.arguments import check_finite, holds_scores, resolve
from thinformer.thinning.merging import (
    Node,
    Nodes,
    Settings,
    WeightedRows,
    evened,
    every_row,
    joined,
    leaf,
    span,
    taken,
)
from thinformer.thinning.methods import BLIND, METHODS, Method
from thinformer.thinning.tables import check_in_memory, has_columns, read


@dataclass(frozen=True, repr=False)
class Coresets:
    """Coresets of some parts of a point set, as `coreset` and `merge` return them.

    They can be pickled. They hold NumPy arrays, no file and no lock.

    Attributes
    ----------
    settings : Settings
        `size`, `kernel`, `method`, `g`, `delta` and `seed`; the same for all parts.
    nodes : dict
        By (level, index), the `WeightedRows` of the parts from index * 4^level on, 4^level of them.
    """

    settings: Settings
    nodes: Nodes = field(default_factory=dict)

    def __repr__(self) -> str:
        rows = sum(len(coreset.rows) for coreset in self.nodes.values())
        return f"Coresets(parts {_named(_spans(self.nodes))}: {rows} rows)"

    def choose(
        self, parts: int | Literal["any"] | None = None, *, progress: Progress = None
    ) -> WeightedRows:
        """Choose `size` rows that represent all parts: the last step.

        Parameters
        ----------
        parts : int or "any", optional
            How many parts there are. By default they are the parts up to the largest number that
            is there. "any" takes those that are there and does not look for others.
        progress : None, bool or function
            See `thin`.

        Returns
        -------
        WeightedRows
            `size` rows of equal weight, in the order of parts and rows.

        Raises
        ------
        TypeError, ValueError
            As in `thin`; a part is missing; or the coresets have fewer rows than `size`.

        Notes
        -----
        The time is that of `thin` for the rows of all coresets, at most about
        6 sqrt(parts) max(2^g size, 4096), or 40 log4(parts) in place of 6 sqrt(parts) if that is
        less.
        """
        _check_complete(self.nodes, parts)
        settings = self.settings
        generator = settings.generator(0)
        union = evened(list(self.nodes.values()), settings, generator)
        size = settings.size
        if not len(union.rows):
            raise ValueError("weights must be finite, none of them negative and not all zero")
        if len(union.rows) < size:
            raise ValueError(
                f"size must be at most the {len(union.rows)} rows that weigh enough; got {size}"
            )
        more = {"g": settings.g, "rng": generator, "progress": progress}
        chosen = settings.thin(union, size, settings.method, **more)
        return taken(union, chosen, np.full(size, union.weights.sum() / size))


def coreset(
    points: ArrayLike,
    size: int,
    *,
    part: int,
    first_row: int = 0,
    weights: ArrayLike | None = None,
    kernel: Any = "gaussian",
    bandwidth: Any = None,
    method: Method = "compress++",
    g: int = 4,
    delta: float = 0.5,
    seed: int = 0,
) -> Coresets:
    """Return a coreset of one part of a point set, to be merged with those of the others.

    This is the first of three steps: `coreset` for each part, `merge`, and `Coresets.choose`. The
    parts may be on several machines, and of any length. The chosen rows depend on the parts, their
    numbers and the seed, and not on where and in which order the steps are computed.

    Parameters
    ----------
    points : (rows, d) array of numbers
        The part. It may be empty.
    size : int
        Rows to choose of the whole point set.
    part : int
        The number of the part, from 0 on. All numbers up to the last must be there in the end.
    first_row : int
        The number of the first row. Where the lengths of other parts are not known, leave it 0: the
        result also has the part of each row.
    weights : (rows,) array, optional
        See `thin`. All parts must be in one unit, and are not scaled.
    kernel : str, Kernel or function
        See `thin`. Neither a kernel with labels nor a `stein` kernel nor "precomputed" is possible,
        which belong to the rows of one array.
    bandwidth : float or sequence of d floats
        The bandwidth of a kernel given by name. The same for all parts: compute it once, by
        `median_distance` of a sample of the rows.
    method, g, delta
        See `thin`. `g` is also the oversampling of each coreset, and `delta` the failure
        probability of each halving.
    seed : int
        The source of all random numbers, the same for all parts.

    Returns
    -------
    Coresets
        Of one part. It has max(2^g `size`, 4096) to twice as many rows; those of a shorter part are
        all kept. With unequal weights it may have fewer, since heavy rows are chosen several times.

    Raises
    ------
    TypeError, ValueError
        As in `thin`; the bandwidth is missing or "median"; or the kernel belongs to the rows of one
        array.

    Notes
    -----
    The time is near-linear in the number of rows, as for "kh-compress".

    Each row passes through the halvings of its part and through those of log4(parts) merges. Up to
    level 3 a coreset of level l has about 2^l times the rows of one of level 0, so all these levels
    add about the same to the squared error. For c <= 64 parts the error is therefore about
    sqrt(1 + log4(c)) times that of a single halving to as many rows as the last coreset has. This
    is the reason of Compress (arXiv 2111.07941), whose guarantee is for parts of equal length.
    Coresets of higher levels do not grow, and the highest merges dominate the error of the tree:
    that of halving to 2^3 max(2^g size, 4096) rows, in groups of 8,192. It is small beside the
    error of `size` rows.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import coreset, median_distance, merge
    >>> x = np.random.default_rng(0).normal(size=(30_000, 2))
    >>> bandwidth = median_distance(x[:1000])
    >>> found = [coreset(x[i::3], 20, part=i, bandwidth=bandwidth) for i in range(3)]
    >>> rows = merge(found).choose(parts=3)
    >>> rows.points.shape
    (20, 2)
    >>> bool(np.all(x[3 * rows.rows + rows.parts] == rows.points))
    True
    """
    settings = settings_of(size, kernel, bandwidth, method, g, delta, seed)
    part = checks.integer("part", part, 0)
    first_row = checks.integer("first_row", first_row, 0)
    if has_columns(points):
        raise TypeError(
            "points must be an array (rows, d), so that all parts have the same columns: "
            f"frame[columns].to_numpy(); got {type(points).__name__}"
        )
    check_in_memory(points, "points")
    if np.ma.is_masked(points):
        raise ValueError("points must have no masked entries; drop or fill them")
    array = np.asarray(points)
    checks.shape("points", array, 2, "(rows, d)")
    if len(array):
        array = read(array).values
        check_finite(array)
    every = every_row(array, weights_of_rows(weights, len(array)), part, first_row)
    found = leaf(every, settings, part)
    if found is every:  # not halved: the points are still the caller's memory
        found = every._replace(points=array.copy())
    return Coresets(settings, {(0, part): found})


def merge(coresets: Iterable[Coresets]) -> Coresets:
    """Return the union of coresets of different parts, in which complete neighbours are merged.

    It may be called in any order and for any groups of parts: merge([merge([a, b]), merge([c, d])])
    is the same as merge([d, b, c, a]).

    Parameters
    ----------
    coresets : iterable of Coresets
        At least one.

    Returns
    -------
    Coresets
        Of all parts.

    Raises
    ------
    TypeError, ValueError
        There are none, or something else is among them; two of them differ in `size`, `kernel`,
        `method`, `g`, `delta`, `seed` or the number of columns; or a part is there twice.

    Notes
    -----
    Parts 4 i to 4 i + 3 are merged and halved when all four are there, and so on upwards. So each
    merge halves four coresets of m rows to 2 m rows, and above level 3 to m rows, in linear time.
    What is returned for parts 0 to c - 1 has at most about 6 sqrt(c) max(2^g `size`, 4096) rows, or
    40 log4(c) in place of 6 sqrt(c) if that is less. Parts that are no neighbours are not merged,
    so neighbours should meet early.
    """
    given = list(coresets)
    for each in given:
        if not isinstance(each, Coresets):
            raise TypeError(f"coresets must hold results of coreset or merge; got {each!r}")
    if not given:
        raise ValueError("coresets must hold at least one; got none")
    for each in given[1:]:
        _check_same(given[0], each)
    items = [item for each in given for item in each.nodes.items()]
    _check_once([node for node, _ in items])
    return Coresets(given[0].settings, joined(given[0].settings, items))


def settings_of(
    size: Any, kernel: Any, bandwidth: Any, method: Any, g: Any, delta: Any, seed: Any
) -> Settings:
    """Return the settings that arguments of `coreset` mean."""
    size, g = checks.integer("size", size, 1), checks.integer("g", g, 0)
    checks.choice("method", method, METHODS)
    delta = checks.failure_probability(delta)
    seed = checks.integer("seed", seed, 0)
    if isinstance(kernel, str) and kernel != "precomputed":
        as_kernel(kernel)  # an unknown name is an error also where no kernel is needed
    if method in BLIND:
        return Settings(size, None, method, g, delta, seed)
    if holds_scores(kernel) or getattr(kernel, "labels", None) or _is_word(kernel, "precomputed"):
        name = getattr(kernel, "name", kernel)
        raise ValueError(
            f"kernel {name!r} with scores, labels or a Gram matrix belongs to the rows of one "
            "array; a point set of many parts takes a kernel of points alone"
        )
    named = isinstance(kernel, str) and kernel not in WITHOUT_BANDWIDTH
    unknown = isinstance(getattr(kernel, "scale", None), str)  # a Kernel with a median bandwidth
    if unknown or (named and (bandwidth is None or isinstance(bandwidth, str))):
        got = kernel.scale if unknown else bandwidth
        raise ValueError(
            "bandwidth must be a positive number, or one for each dimension, the same for all "
            f"parts; got {got!r}. Compute it once: median_distance(sample of the rows)"
        )
    chosen = resolve(kernel, "median" if bandwidth is None else bandwidth, np.empty((0, 1)), None)
    return Settings(size, chosen, method, g, delta, seed)


def weights_of_rows(weights: ArrayLike | None, n: int) -> NDArray[np.float64]:
    """Return the weights (n,) of a part as they are; ones for None."""
    if weights is None:
        return np.ones(n)
    checks.in_memory("weights", weights)
    array = np.asarray(weights)
    if array.dtype.kind not in "biuf" or array.shape != (n,):
        raise ValueError(
            f"weights must be numbers of shape ({n},); got dtype {array.dtype}, shape {array.shape}"
        )
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError("weights must be finite, and none of them negative")
    array = array.astype(np.float64)
    with np.errstate(over="ignore"):
        if not np.isfinite(array.sum()):
            raise ValueError("weights must have a finite sum; divide them by the largest")
    return array


def _is_word(value: Any, word: str) -> bool:
    return isinstance(value, str) and value == word


def _check_same(one: Coresets, other: Coresets) -> None:
    """Check that coresets have the same settings and columns."""
    for name, a, b in zip(Settings._fields, one.settings, other.settings, strict=True):
        if _facts(a) != _facts(b):
            raise ValueError(
                f"coresets must have the same {name}; got {a!r} for {_of_parts(one)} and {b!r} for "
                f"{_of_parts(other)}"
            )
    first, second = (
        {each.points.shape[1] for each in coresets.nodes.values() if len(each.rows)}
        for coresets in (one, other)
    )
    if first and second and first != second:
        raise ValueError(
            f"coresets must have the same number of columns; got {min(first)} for "
            f"{_of_parts(one)} and {min(second)} for {_of_parts(other)}"
        )


def _facts(value: Any) -> Any:
    """What makes two settings equal; kernels have no equality of their own."""
    if not isinstance(value, Kernel):
        return value
    kernel = value
    return (
        kernel.name, kernel.tag, kernel.scale, kernel.constant, kernel.degree, kernel.coefficients,
        kernel.weight, tuple(map(_facts, kernel.terms)), kernel.companion,
    )  # fmt: skip


def _spans(nodes: Iterable[Node]) -> list[tuple[int, int]]:
    """The stretches of parts of nodes, increasing; stretches that touch are one."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted(map(span, nodes)):
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, end))
    return spans


def _named(spans: list[tuple[int, int]]) -> str:
    """Stretches of parts as words."""
    return few([f"{a}" if b == a + 1 else f"{a} to {b - 1}" for a, b in spans])


def _of_parts(coresets: Coresets) -> str:
    return f"parts {_named(_spans(coresets.nodes))}"


def _check_once(nodes: list[Node]) -> None:
    """Check that no part is there twice."""
    end = 0
    for start, behind in sorted(map(span, nodes)):
        if start < end:
            twice = [(start, min(end, behind))]
            raise ValueError(f"coresets must hold each part once; part {_named(twice)} came twice")
        end = max(end, behind)


def _check_complete(nodes: Nodes, parts: Any) -> None:
    """Check that all parts are there that `parts` asks for."""
    if _is_word(parts, "any"):
        return
    spans = _spans(nodes)
    last = spans[-1][1]
    try:
        n = last if parts is None else checks.integer("parts", parts, 1)
    except ValueError:
        raise ValueError(
            f"parts must be None, the number of parts or 'any'; got {parts!r}"
        ) from None
    if last > n:
        raise ValueError(f"parts must be more than the largest number of a part; got {n}, "
                         f"and part {last - 1} is there")  # fmt: skip
    missing, end = [], 0
    for start, behind in [*spans, (n, n)]:
        if start > end:
            missing.append((end, start))
        end = behind
    if missing:
        raise ValueError(
            f"coresets must hold parts 0 to {n - 1}; part {_named(missing)} is missing "
            "(parts='any' does without)"
        )
