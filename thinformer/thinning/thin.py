"""`thin`: it checks the arguments, builds a `Task` and calls the method."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.halving.draws import seed_from
from thinformer.kernels.catalogue import as_kernel
from thinformer.support import checks
from thinformer.thinning.arguments import (
    Target,
    as_problem,
    as_weights,
    check_definite,
    check_finite,
    holds_scores,
    resolve,
    target_of,
    warn_if_reversed,
)
from thinformer.thinning.methods import (
    BLIND,
    METHODS,
    ON_GPU,
    SWAPPED,
    Method,
    choose_rows,
    random_rows,
    standard_rows,
)
from thinformer.thinning.scales import Standardize, samples, standardized
from thinformer.thinning.task import Task
from thinformer.thinning.weights import repeats_to_nearest_free


def thin(
    points: Any,
    size: int,
    *,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Standardize = "auto",
    method: Method = "compress++",
    g: int = 4,
    delta: float = 0.5,
    refine: bool = True,
    unique: bool = True,
    weights: ArrayLike | None = None,
    target: Target = "auto",
    rng: int | np.random.Generator | None = None,
    device: bodies.Device = "auto",
) -> NDArray[np.int64]:
    r"""Choose `size` rows of a point set that represent all n.

    The error is the maximum mean discrepancy (MMD) between the rows and the point set. With a
    `stein` kernel the rows represent the density of its scores instead.

    Parameters
    ----------
    points : (n, d) array, pandas or polars frame, xarray or ArviZ posterior, dict of draws
        float32 is computed in float32, float64 and integers in float64. A memory-mapped array is
        read in place. The rows of a posterior are its draws, chain after chain; its columns are
        the elements of its variables. `take_draws` makes a posterior of the chosen rows. A dict
        has arrays (chain, draw, ...), or (n, ...) if one of them is 1-D. Columns that have names
        and are of a sampler (``lp__``, ``chain``, ``draw``, ...), an index or constant are left out
        of the distance, with a warning, unless the kernel or bandwidth is made for each column.
    size : int
        Rows to choose, from 1 to n.
    kernel : str, Kernel, function or "precomputed"
        The name of a kernel; a kernel made by `thinformer.kernels`; or your own function k(x, y),
        compiled by ``numba.njit`` or in plain Python, which is slow. With "precomputed", `points`
        is the symmetric (n, n) Gram matrix.
    bandwidth : float, sequence of d floats, or "median"
        The bandwidth of a kernel given by name, in the units of the columns after `standardize`:
        one for all dimensions or one for each. "median" is `median_distance`, with 1000 rows drawn
        from `rng`.
    standardize : {"auto", "scale", "whiten", False}
        The unit of the columns. "scale" divides each by a robust standard deviation, the distance
        between its quartiles over 1.349. "whiten" makes the covariance the identity. False takes
        the columns as they are. "auto" scales the columns of a frame or a posterior, and takes an
        array as it is, with a warning if standard deviations differ by a factor above 10. It is
        False with a bandwidth that is given, with a `Kernel` or function of yours, and with
        "sobolev" and "precomputed". A `stein` kernel takes columns as they are, with that warning;
        with "scale" or "whiten" its scores are transformed like the columns, and its bandwidth has
        their units.
    method : str
        - "compress++": Compress++ (arXiv 2111.07941): kernel halving over a tree of buckets to
          :math:`2^g` times `size` rows, then kernel thinning of these. Near-linear in n.
        - "kernel-thinning": KT-SPLIT with adaptive thresholds, then KT-SWAP (arXiv 2105.05842).
          Usually a smaller error; quadratic in n.
        - "kh-compress": KH-Compress (arXiv 2502.12063), without swaps. Near-linear in n.
        - "halving": kernel halving of all points, repeated. Quadratic in n.
        - "standard": evenly spaced rows, the last row included.
        - "random": rows drawn uniformly, or in proportion to the weights.
    g : int
        Oversampling of "compress++". A larger g gives a smaller error; the time grows as
        :math:`4^g`.
    delta : float
        Failure probability of the halvings, in (0, 1].
    refine : bool
        End "compress++" and "kernel-thinning" with KT-SWAP: each chosen row in turn is replaced by
        the row that makes the MMD smallest, in up to eight passes. If False, the result is one of
        the coresets of KT-SPLIT, drawn at random, as the guarantees for unbiased thinning require.
    unique : bool
        Choose no row twice.
    weights : (n,) array, optional
        The weights of the points in the sample that the rows represent. The chosen rows are
        equally weighted.
    target : {"auto", "sample", "mean-zero"}
        What the rows represent: the points ("sample"), or the distribution under which the mean of
        k(x, .) is zero. For a `stein` kernel this is the density whose scores it has. "auto" is
        "mean-zero" for a `stein` kernel, and "sample" for all others. "mean-zero" takes the methods
        "compress++" and "kernel-thinning" with ``refine=True``; `weights` have no part in it.
    rng : None, int or numpy.random.Generator
        The source of all random numbers (SPEC 7): None for fresh ones, a seed, or a generator,
        which is advanced by one number.
    device : {"auto", "cpu", "cuda"}
        Where to compute; "auto" is the CPU. A GPU, "cuda", computes the methods "kh-compress" and
        "halving" with the same draws, under all kernels except `stein` and your own functions.

    Returns
    -------
    (size,) int64 array
        Row numbers, increasing.

    Raises
    ------
    TypeError, ValueError
        The points are not finite numbers of shape (n, d); another argument is out of its range or
        contradicts the others.
    RuntimeError, NotImplementedError, MemoryError
        On a GPU: there is none, and why; the method or the kernel cannot be computed there, or
        the points are there already; too little memory.

    Warns
    -----
    UserWarning
        Columns are left out of the distance, or on unlike scales; a kernel is plain Python; scores
        seem to have the wrong sign.

    Notes
    -----
    The tree of "compress++" leaves c = :math:`2^g` size rows. The number of kernel values is

    - in the tree about :math:`2 c^2 \log_2(n / c)`;
    - in KT-SPLIT :math:`c^2`;
    - in KT-SWAP at most 181 c `size` for its target, and at most 2 c `size` in each pass.

    Two things go beyond the papers. KT-SWAP makes up to eight passes. In "compress++" its target is
    not the c rows that the tree leaves but the rows before some of the halvings, 90 to 181 times
    `size`. Where c would be above 16,384, the rows are divided into blocks with a smaller c, each
    block is thinned to its share of `size`, and the time is linear in n.

    Halvings start from `size` times a power of two rows, evenly spaced. In "kernel-thinning",
    "kh-compress" and "halving" they start from all n rows, and up to half of the rows are left
    out. In "kernel-thinning" KT-SWAP compensates: it compares with all rows and may choose any.

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
    device = _check_options(method, target, kernel, refine, device)
    unit, (table,) = samples({"points": points}, standardize, kernel, bandwidth, method in BLIND)
    array = table.values
    n = len(array)
    size = checks.integer("size", size, 1)
    if size > n:
        raise ValueError(f"size must be at most the {n} points there are; got {size}")
    target = target_of(target, kernel)
    g, delta = checks.integer("g", g, 0), checks.failure_probability(delta)
    refine, unique = checks.boolean("refine", refine), checks.boolean("unique", unique)
    generator = np.random.default_rng(seed_from(rng))
    share = None if weights is None else as_weights(weights, n)
    if share is not None and np.ptp(share) == 0:
        share = None
    if isinstance(kernel, str) and kernel != "precomputed":
        as_kernel(kernel)
    if method in BLIND or (size == n and unique):  # the kernel changes nothing
        check_finite(array)
        if size == n and unique:
            return np.arange(n)
        if method == "standard":
            rows = standard_rows(n, size, share)
        else:
            rows = random_rows(n, size, share, unique, generator)
    else:
        array, kernel = standardized(array, unit, kernel)
        resolved = resolve(kernel, bandwidth, array, generator)
        check_definite(target, resolved)
        if device == "cuda":
            array = np.ascontiguousarray(array)
        problem = as_problem(array, resolved, shift=True)
        if holds_scores(resolved):
            warn_if_reversed(array, resolved.companion, share)
        task = Task(problem, n, size, share, delta, refine, unique, target, generator, device)
        rows = choose_rows(task, method, g)
    rows = np.sort(rows)
    return repeats_to_nearest_free(rows, n, share) if unique else rows


def _check_options(
    method: Method, target: Target, kernel: Any, refine: bool, device: bodies.Device
) -> Literal["cpu", "cuda"]:
    """Check the options that depend on each other; return "cpu" or "cuda"."""
    checks.choice("method", method, METHODS)
    represents = target_of(target, kernel)
    device = bodies.choose(device)
    if device == "cuda" and method not in ON_GPU:
        raise NotImplementedError(
            f'device="cuda" computes method {" or ".join(map(repr, ON_GPU))}; got {method!r}'
        )
    blind = target == "auto" and method in BLIND  # which has no target
    if represents == "mean-zero" and not (refine and method in SWAPPED) and not blind:
        wanted = (
            f"target='mean-zero' takes refine=True and method {' or '.join(map(repr, SWAPPED))}; "
            f"got refine={refine!r}, method={method!r}"
        )
        if target == "auto":
            wanted = f"kernel stein has target='mean-zero' unless you say target='sample'. {wanted}"
        raise ValueError(wanted)
    return device
