"""`two_sample_test`: whether two samples come from one distribution."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.kernels.catalogue import WITHOUT_BANDWIDTH, as_kernel, makes_kernels
from thinformer.kernels.kernel import Kernel
from thinformer.kernels.phi import STEIN
from thinformer.support import checks
from thinformer.support.progress import Progress, Tell, begin, showing
from thinformer.support.table import aligned
from thinformer.thinning.arguments import (
    MEDIAN_ROWS,
    as_problem,
    as_weights,
    median_distance,
    resolve,
)
from thinformer.thinning.bins import (
    Bins,
    bins_of,
    compressed,
    paired_bins_of,
    products_of_bins,
    products_on_landmarks,
)
from thinformer.thinning.permutation import (
    in_deviations,
    permuted_weights,
    pvalue,
    squared_distances,
    swapped_weights,
)
from thinformer.thinning.scales import Standardize, samples, standardized

TestMethod = Literal["auto", "exact", "landmarks", "compress"]
METHODS = get_args(TestMethod)
FEW = 2048  # points of both samples of which all kernel values are computed
BINS = 64
SCALE_FREE = (*WITHOUT_BANDWIDTH, "energy")  # a bandwidth changes no p-value
LANDMARKS = 256
FACTORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)  # of the median distance, as bandwidths


class KernelResult(NamedTuple):
    """What a two-sample test found under one kernel.

    Attributes
    ----------
    name : str
        The kernel.
    bandwidth : float or None
        Its bandwidth, where the test chose it.
    mmd2 : float
        The squared MMD between the distributions, estimated from points in different bins. It has
        no bias, so it may be negative.
    statistic : float
        It, minus its mean over the permutations, in its standard deviations.
    pvalue : float
        That of the test with this kernel alone.
    """

    name: str
    bandwidth: float | None
    mmd2: float
    statistic: float
    pvalue: float


class TwoSampleResult(NamedTuple):
    """The result of `two_sample_test`; it prints as a table.

    Attributes
    ----------
    statistic : float
        The largest of the kernels' statistics.
    pvalue : float
        The share of the permutations, the samples as they are among them, whose statistic is not
        smaller.
    level : float
        The argument.
    kernels : tuple of KernelResult
    method : str
        "exact", "landmarks" or "compress".
    sizes : (int, int)
        Points of x and of y that were used.
    bins : (int, int)
        Bins of x and of y.
    permutations : int
    least : float
        The smallest p-value that so few bins and permutations can have.
    """

    statistic: float
    pvalue: float
    level: float
    kernels: tuple[KernelResult, ...]
    method: str
    sizes: tuple[int, int]
    bins: tuple[int, int]
    permutations: int
    least: float

    @property
    def reject(self) -> bool:
        """Whether the samples are too different for one distribution: pvalue <= level."""
        return self.pvalue <= self.level

    def __str__(self) -> str:
        different = "differ" if self.reject else "may be equal"
        if self.least > self.level:
            different = f"may be equal, or differ: no p-value can be below {self.least:.3g}"
        cells = [("kernel", "bandwidth", "MMD^2", "deviations", "p-value")]
        for each in self.kernels:
            bandwidth = "-" if each.bandwidth is None else f"{each.bandwidth:.4g}"
            cells.append(
                (each.name, bandwidth, f"{each.mmd2:.2e}", f"{each.statistic:.2f}",
                 f"{each.pvalue:.3g}")
            )  # fmt: skip
        return (
            f"p-value {self.pvalue:.3g}, level {self.level:g}: the distributions {different}\n"
            f"{self.sizes[0]:,} and {self.sizes[1]:,} points in {self.bins[0]} and {self.bins[1]} "
            f"bins, {self.permutations} permutations, method {self.method}\n{aligned(cells, (0,))}"
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def two_sample_test(
    x: Any,
    y: Any,
    *,
    kernel: Any = "gaussian",
    bandwidth: Any = "auto",
    standardize: Standardize = "auto",
    features: Callable[[NDArray], ArrayLike] | None = None,
    x_weights: ArrayLike | None = None,
    y_weights: ArrayLike | None = None,
    method: TestMethod = "auto",
    bins: int = BINS,
    landmarks: int = LANDMARKS,
    g: int = 2,
    permutations: int = 999,
    level: float = 0.05,
    rng: int | np.random.Generator | None = None,
    progress: Progress = None,
) -> TwoSampleResult:
    r"""Test whether two samples come from one distribution, by their MMD, in near-linear time.

    The points of each sample go into bins, in random order. Under the null hypothesis bins of x and
    of y are exchangeable. So the MMD between the samples is compared with that after random
    exchanges of bins (Compress Then Test, arXiv 2301.05974), and no point is read again for them.

    Parameters
    ----------
    x : (n, d) array, data frame or posterior
    y : (m, d) likewise
        Independent points, at least two of each. Columns that have names in both are the same, in
        any order. Draws of a Markov chain are not independent: thin them to every k-th draw first,
        or the test rejects too often.
    kernel : str, Kernel, function, or a list of them
        See `thin`; no "precomputed" and no `stein` kernel. With a list, the test looks at the
        kernel under which the samples differ most.
    bandwidth : "auto", float, sequence of d floats, or "median"
        "auto" is, for each kernel that is given by name, a list of six kernels: with 1/16, 1/8,
        1/4, 1/2, 1 and 2 times the median distance of 1000 points of both samples as bandwidth.
    standardize
        See `thin`; the scales are those of both samples together.
    features : function, optional
        f(points (n + m, d) in float64) -> (n + m, e): the kernel then compares these features, as of a neural
        network. It must not have been trained on these samples: split them before.
    x_weights : (n,) array, optional
    y_weights : (m,) array, optional
        Weights of the points in the sample. With any, there are equally many bins of both samples,
        in pairs that are swapped at random (a wild bootstrap): the level then holds for large bins.
    method : {"auto", "exact", "landmarks", "compress"}
        How the inner products of the bins' mean embeddings are computed.

        - "exact": from all points, which takes quadratic time.
        - "landmarks": on the span of some points drawn from both samples (Nystrom), in linear time.
        - "compress": from a coreset of each bin, by Compress++.
        - "auto": "exact" for up to 2,048 points together, else "landmarks".
    bins : int
        About how many bins there are, of both samples together, at least 4. With as many bins as
        points and "exact", this is the usual permutation test of single points.
    landmarks : int
        For "landmarks".
    g : int
        Of "compress": a bin of b points is thinned to :math:`2^g \sqrt b`, as in the paper. Bins of
        at most :math:`4^g` points stay as they are, which is then "exact".
    permutations : int
        The smallest p-value is 1 / (permutations + 1).
    level : float
        For `TwoSampleResult.reject`, in (0, 1).
    rng : None, int or numpy.random.Generator
        The source of all random numbers (SPEC 7).
    progress
        See `thin`. The stage is "kernels".

    Returns
    -------
    TwoSampleResult
        With `statistic` and `pvalue`, as the tests of SciPy return them.

    Raises
    ------
    TypeError, ValueError
        As in `thin`; or a sample has fewer than two points, or another argument is out of its
        range.

    Warns
    -----
    UserWarning
        There are so few bins or permutations that no p-value can be as small as the level.

    Notes
    -----
    With N = n + m points in b bins, l landmarks and each kernel: "exact" takes N^2 kernel values,
    "landmarks" N l, "compress" about :math:`4^g N b` and those of the thinning. The permutations
    take b^2 operations each.

    The level holds for any number of points: a p-value is at most the level with at most that
    probability, exactly where all bins have equally many points. Others have one point more or
    less. Bandwidths, scales and landmarks come from both samples together, so they do not change
    this. Where one sample has more than some 500 times as many points as the other, a part of it is
    drawn; `sizes` says so. The fewer bins the smaller sample has, the more there are in all: it has
    at least two, and all are of one size.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import two_sample_test
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(500, 2)), rng.normal(size=(600, 2)) * [1, 1.5]
    >>> two_sample_test(x, y, rng=0).pvalue
    0.001
    """
    shown = showing(progress)
    way = checks.choice("method", method, METHODS)
    permutations = checks.integer("permutations", permutations, 1)
    bins, landmarks = checks.integer("bins", bins, 4), checks.integer("landmarks", landmarks, 2)
    g = checks.integer("g", g, 0)
    if not 0 < checks.finite_number("level", level) < 1:
        raise ValueError(f"level must be between 0 and 1; got {level!r}")
    generator = np.random.default_rng(rng)
    listed = kernel if isinstance(kernel, (list, tuple)) else [kernel]
    both, n = _points(x, y, standardize, listed, bandwidth, features)
    weighted = x_weights is not None or y_weights is not None
    shares = (x_weights, y_weights) if weighted else None
    binned, weights = _binned(n, len(both) - n, shares, bins, permutations, generator)
    least = _least_pvalue(binned, weighted, permutations, level)
    if way == "auto":
        way = "exact" if binned.rows.size <= FEW else "landmarks"
    kernels = _kernels(listed, bandwidth, both, generator)
    with shown as tell:
        products = _products(both, [k for k, _ in kernels], binned, way, landmarks, g, generator,
                             tell)  # fmt: skip
    squared = squared_distances(products, weights)
    statistics = in_deviations(squared)
    largest = statistics.max(axis=0)
    found = tuple(
        KernelResult(each.name, length, float(distances[0]), float(row[0]), pvalue(row))
        for (each, length), distances, row in zip(kernels, squared, statistics, strict=True)
    )
    of_x = int(binned.starts[binned.of_x])
    return TwoSampleResult(
        float(largest[0]), pvalue(largest), float(level), found, way,
        (of_x, binned.rows.size - of_x), (binned.of_x, binned.lengths.size - binned.of_x),
        permutations, least,
    )  # fmt: skip


def _points(
    x: Any, y: Any, standardize: Standardize, kernels: Sequence[Any], bandwidth: Any,
    features: Callable | None,
) -> tuple[NDArray, int]:  # fmt: skip
    """Return the points of both samples, and the number of those of x."""
    if not kernels or any(makes_kernels(each) for each in kernels):
        raise ValueError(f"kernel must be a kernel, its name or a list of them; got {kernels!r}")
    for each in kernels:
        of_points = isinstance(each, str) and each == "precomputed"
        if of_points or (isinstance(each, Kernel) and (each.tag == STEIN or each.labels)):
            raise ValueError(f"kernel must compare any two points here; got {each!r}")
    free = "median" if isinstance(bandwidth, str) and bandwidth == "auto" else bandwidth
    unit, tables = samples({"x": x, "y": y}, standardize, kernels[0], free)
    for name, table in zip("xy", tables, strict=True):
        if len(table.values) < 2:
            raise ValueError(f"{name} must have at least two points; got {len(table.values)}")
        checks.finite(name, bool(np.isfinite(table.values).all()))
    # float32 would make a Gram matrix of landmarks that is not positive definite
    both = np.concatenate([table.values for table in tables], dtype=np.float64)
    both, _ = standardized(both, unit, kernels[0])
    if features is not None:
        given, count = np.asarray(features(both)), len(both)
        if given.ndim != 2 or len(given) != count or given.dtype.kind not in "fiu":
            raise ValueError(
                f"features must return numbers of shape ({count}, e); "
                f"got dtype {given.dtype}, shape {given.shape}"
            )
        both = given.astype(np.float64)
        checks.finite("features", bool(np.isfinite(both).all()))
    return both, len(tables[0].values)


def _binned(
    n: int, m: int, shares: tuple[ArrayLike | None, ArrayLike | None] | None, bins: int,
    permutations: int, generator: np.random.Generator,
) -> tuple[Bins, NDArray]:  # fmt: skip
    """Return bins, and their weights in the difference of the samples, permutation by permutation.

    shares : the weights of x and of y where there are any
    """
    if shares is None:
        binned = bins_of(n, m, bins, generator)
        return binned, permuted_weights(binned.lengths, binned.of_x, permutations, generator)
    given = as_weights(shares[0], n, "x_weights"), as_weights(shares[1], m, "y_weights")
    for name, each in zip(("x_weights", "y_weights"), given, strict=True):
        if np.count_nonzero(each) < 2:
            raise ValueError(f"{name} must be above 0 for at least two points")
    binned = paired_bins_of(given, bins, generator)
    return binned, swapped_weights(binned.of_x, permutations, generator)


def _least_pvalue(binned: Bins, weighted: bool, permutations: int, level: float) -> float:
    """Return the smallest p-value that there can be, and warn where it is above the level."""
    of_x, of_y = binned.of_x, binned.lengths.size - binned.of_x
    # where as many bins are of x as of y, an exchange of all of them changes nothing
    exchanges = (
        2 ** (of_x - 1) if weighted else math.comb(of_x + of_y, of_x) // (1 + (of_x == of_y))
    )
    least = max(1 / (permutations + 1), 1 / exchanges)
    if least > level:
        warnings.warn(
            f"no p-value can be as small as level={level:g} with so few points, bins or "
            f"permutations; the smallest is {least:.3g}",
            stacklevel=checks.depth(),
        )
    return least


def _kernels(
    listed: Sequence[Any], bandwidth: Any, points: NDArray, generator: np.random.Generator
) -> list[tuple[Kernel, float | None]]:
    """Return each kernel of the test, and its bandwidth where it was chosen here."""
    alike = not np.ptp(points, axis=0).any()  # no bandwidth matters
    rows = points[np.sort(generator.permutation(len(points))[:MEDIAN_ROWS])]
    made: list[tuple[Kernel, float | None]] = []
    for each in listed:
        named = isinstance(each, str) and each not in SCALE_FREE
        if isinstance(bandwidth, str) and bandwidth in ("auto", "median"):
            if not named:
                made.append((resolve(each, "median", rows, generator), None))
                continue
            as_kernel(each)
            median = 1.0 if alike else median_distance(rows)
            factors = FACTORS if bandwidth == "auto" else (1.0,)
            made += [(as_kernel(each, median * f), median * f) for f in factors]
        else:
            made.append((resolve(each, bandwidth, rows, generator), None))
    return made


def _products(
    points: NDArray, kernels: Sequence[Kernel], bins: Bins, method: str, landmarks: int, g: int,
    generator: np.random.Generator, tell: Tell,
) -> list[NDArray]:  # fmt: skip
    """Return the inner products of bins, (bins, bins), under each kernel."""
    if method == "compress":
        # one coreset serves all kernels, if it is that of their sum
        together = sum(kernels[1:], kernels[0])
        bins = compressed(points, together, bins, g, generator)
    drawn = np.sort(generator.permutation(bins.rows)[:landmarks])
    done = begin(tell, "kernels")
    products = []
    for i, kernel in enumerate(kernels):
        problem = as_problem(points, kernel, tell=tell)
        if method == "landmarks":
            products.append(products_on_landmarks(problem, bins, drawn))
        else:
            products.append(products_of_bins(problem, bins))
        done((i + 1) / len(kernels))
    return products
