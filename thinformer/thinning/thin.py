"""Thinning a point set to any number of its rows: kernel thinning, Compress++ and simpler ways."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.cpu.run import is_finite
from thinformer.halving.draws import seed_from
from thinformer.halving.problem import make_factor
from thinformer.kernels import linear
from thinformer.kernels.catalogue import as_kernel
from thinformer.kernels.phi import ENERGY
from thinformer.support import checks
from thinformer.thinning.arguments import TARGETS, as_problem, resolve
from thinformer.thinning.methods import (
    BLIND,
    METHODS,
    ON_GPU,
    SWAPPED,
    choose_rows,
    random_rows,
    standard_rows,
)
from thinformer.thinning.tables import as_points
from thinformer.thinning.task import Task
from thinformer.thinning.weights import as_weights, without_repeats


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
    device = _check_options(method, target, refine, device)
    g, delta = checks.integer("g", g, 0), checks.failure_probability(delta)
    refine, unique = checks.boolean("refine", refine), checks.boolean("unique", unique)
    generator = np.random.default_rng(seed_from(rng))
    share = None if weights is None else as_weights(weights, n)
    if share is not None and np.ptp(share) == 0:
        share = None
    if isinstance(kernel, str) and kernel != "precomputed":
        as_kernel(kernel)
    if method in BLIND or (size == n and unique):  # whatever the kernel
        checks.finite("points", is_finite(make_factor(array, linear()), n))
        if size == n and unique:
            return np.arange(n)
        if method == "standard":
            rows = standard_rows(n, size, share)
        else:
            rows = random_rows(n, size, share, unique, generator)
    else:
        resolved = resolve(kernel, bandwidth, array, generator)
        if target == "mean-zero" and any(term.tag == ENERGY for term in resolved.summands):
            raise ValueError("target='mean-zero' takes a positive definite kernel; energy is not")
        if device == "cuda":
            array = np.ascontiguousarray(array)
        problem = as_problem(array, resolved, shift=True)
        task = Task(problem, n, size, share, delta, refine, unique, target, generator, device)
        rows = choose_rows(task, method, g)
    rows = np.sort(rows)
    return without_repeats(rows, n, share) if unique else rows


def _check_options(method: str, target: str, refine: bool, device: str) -> str:
    """Check options that depend on one another; return "cpu" or "cuda"."""
    checks.choice("method", method, METHODS)
    checks.choice("target", target, TARGETS)
    device = bodies.choose(device)
    if device == "cuda" and method not in ON_GPU:
        raise NotImplementedError(
            f'device="cuda" computes method {" or ".join(map(repr, ON_GPU))}; got {method!r}'
        )
    if target == "mean-zero" and not (refine and method in SWAPPED):
        raise ValueError(
            f"target='mean-zero' takes refine=True and method {' or '.join(map(repr, SWAPPED))}; "
            f"got refine={refine!r}, method={method!r}"
        )
    return device
