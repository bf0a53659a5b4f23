"""`two_sample_test`: whether two samples come from one distribution."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.kernels.catalogue import WITHOUT_BANDWIDTH, as_kernel, makes_kernels
from thinformer.kernels.kernel import Kernel
from thinformer.support import checks
from thinformer.support.progress import Progress, Tell, begin, showing
from thinformer.thinning.arguments import (
    MEDIAN_ROWS,
    as_problem,
    as_weights,
    check_compares_any,
    median_distance,
    resolve,
)
from thinformer.thinning.bins import (
    LARGEST,
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
from thinformer.thinning.scales import (
    Standardize,
    belongs_to_columns,
    samples,
    standardized,
    unit_is_free,
)
from thinformer.thinning.two_sample_result import KernelResult, TwoSampleResult

TestMethod = Literal["auto", "exact", "landmarks", "compress"]
METHODS = get_args(TestMethod)
FEW = 2048  # points of both samples of which all kernel values are computed
BINS = 64
SCALE_FREE = (*WITHOUT_BANDWIDTH, "energy")  # a bandwidth changes no p-value
LANDMARKS = 256
FACTORS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)  # of the median distance, as bandwidths
OF_EXPONENTIAL = (1.0, 2.0)  # its values overflow at smaller ones
FEW_DRAWS, SHARE = 200, 0.4  # effective sample sizes below both give a warning


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
        1/4, 1/2, 1 and 2 times the median distance of 1000 points of both samples as bandwidth
        ("exponential" has the last two). In a list, a number is for the kernels that take one.
    standardize
        See `thin`; the scales are those of both samples together. With `features`, "auto" leaves
        the points as they are.
    features : function, optional
        f(points (n + m, d) in float64) -> (n + m, e): the kernel then compares these features, as
        of a neural network. It must not have been trained on these samples: split them before. It
        receives all columns of data frames.
    x_weights : (n,) array, optional
    y_weights : (m,) array, optional
        Weights of the points in the sample, such as importance weights. With any, there are
        equally many bins of both samples, in pairs that are swapped at random (a wild bootstrap).
        The level then holds nearly, for large samples whose weights are not too unlike.
    method : {"auto", "exact", "landmarks", "compress"}
        How the inner products of the bins' mean embeddings are computed.

        - "exact": from all points, which takes quadratic time.
        - "landmarks": on the span of some points drawn from both samples (Nystrom), in linear time.
        - "compress": from a coreset of each bin, by Compress++.
        - "auto": "exact" for up to 2,048 points together, else "landmarks".
    bins : int
        About how many bins there are, of both samples together, 4 to 1024. With as many bins as
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
        There are so few bins or permutations that a p-value can hardly be as small as the level.
        Or few points have nearly all weight of a sample, so that the level may not hold.

    Notes
    -----
    With N = n + m points in b bins, l landmarks and each kernel: "exact" takes N^2 kernel values,
    "landmarks" N l, "compress" about :math:`4^g N b` and those of the thinning. P permutations take
    P b^2 operations and O(P b) memory.

    Where all bins have equally many points, the level holds exactly: a p-value is at most the level
    with at most that probability, for any number of points. Bins may differ by a few points, since
    no point is left out; the level then holds nearly. Bandwidths, scales and landmarks come from
    both samples together, so they do not change this.

    The smaller sample has at least two bins, and the larger one has bins of that size. So there are
    more than `bins` of them where the sizes differ much. If they were more than 1024, as many
    points of the larger sample are drawn as fill these; `sizes` says so.

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
    if bins > LARGEST:
        raise ValueError(f"bins must be at most {LARGEST}; got {bins}")
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
        check_compares_any(each)
    free = "median" if isinstance(bandwidth, str) and bandwidth == "auto" else bandwidth
    # one kernel in the units of the points, or made for their columns, decides for all
    decides = next((each for each in kernels if not unit_is_free(each, free)), kernels[0])
    every = features is not None or any(belongs_to_columns(each, free) for each in kernels)
    if features is not None and isinstance(standardize, str) and standardize == "auto":
        standardize = False
    unit, tables = samples({"x": x, "y": y}, standardize, decides, free, every)
    for name, table in zip("xy", tables, strict=True):
        if len(table.values) < 2:
            raise ValueError(f"{name} must have at least two points; got {len(table.values)}")
        checks.finite(name, bool(np.isfinite(table.values).all()))
    # float32 would make a Gram matrix of landmarks that is not positive definite
    both = np.concatenate([table.values for table in tables], dtype=np.float64)
    both, _ = standardized(both, unit, decides)
    if features is not None:
        both = _featured(both, features)
    return both, len(tables[0].values)


def _featured(points: NDArray, features: Callable) -> NDArray[np.float64]:
    """Return the features of points (n, d), (n, e)."""
    if not callable(features):
        raise TypeError(f"features must be a function of points; got {features!r}")
    given, n = np.asarray(features(points)), len(points)
    if given.ndim != 2 or len(given) != n or not given.size or given.dtype.kind not in "fiu":
        raise ValueError(
            f"features must return numbers of shape ({n}, e); "
            f"got dtype {given.dtype}, shape {given.shape}"
        )
    checks.finite("features", bool(np.isfinite(given).all()))
    return given.astype(np.float64)


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
        effective = 1 / np.square(each).sum()
        if effective < min(FEW_DRAWS, SHARE * each.size):
            warnings.warn(
                f"{name} of {each.size} points are worth {effective:.0f} equal weights; "
                "the test may reject too often",
                stacklevel=checks.depth(),
            )
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
            f"a p-value can hardly be as small as level={level:g} with so few points, bins or "
            f"permutations: the smallest is {least:.3g}",
            stacklevel=checks.depth(),
        )
    return least


def _kernels(
    listed: Sequence[Any], bandwidth: Any, points: NDArray, generator: np.random.Generator
) -> list[tuple[Kernel, float | None]]:
    """Return each kernel of the test, and its bandwidth where it was chosen here."""
    if isinstance(bandwidth, str) and bandwidth not in ("auto", "median"):
        raise ValueError(f"bandwidth must be 'auto', 'median' or positive; got {bandwidth!r}")
    rows = points[np.sort(generator.permutation(len(points))[:MEDIAN_ROWS])]
    if not np.ptp(rows, axis=0).any():  # a median distance needs points that differ
        rows = np.unique(points, axis=0)[:MEDIAN_ROWS]
    by_name = [isinstance(each, str) and each not in SCALE_FREE for each in listed]
    chosen_here = isinstance(bandwidth, str)
    made: list[tuple[Kernel, float | None]] = []
    for each, named in zip(listed, by_name, strict=True):
        if not named and (chosen_here or any(by_name)):
            known = isinstance(each, str)
            own = as_kernel(each) if known else resolve(each, "median", rows, generator)
            made.append((own, None))
        elif chosen_here:
            as_kernel(each)  # an unknown name is an error before the points are looked at
            median = median_distance(rows) if len(rows) > 1 else 1.0  # of which none matters
            several = OF_EXPONENTIAL if each == "exponential" else FACTORS
            lengths = [median * f for f in (several if bandwidth == "auto" else (1.0,))]
            made += [(as_kernel(each, length), length) for length in lengths]
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
    drawn = None
    if method == "landmarks":
        drawn = np.sort(generator.permutation(bins.rows)[:landmarks])
    done = begin(tell, "kernels")
    products = []
    for i, kernel in enumerate(kernels):
        problem = as_problem(points, kernel, tell=tell)
        if drawn is None:
            products.append(products_of_bins(problem, bins))
        else:
            products.append(products_on_landmarks(problem, bins, drawn))
        done((i + 1) / len(kernels))
    return products
