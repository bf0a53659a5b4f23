"""`debias`: weights that bring biased points near the density of a Stein kernel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.points import grow
from thinformer.support import checks
from thinformer.support.progress import Progress, begin, showing
from thinformer.thinning.arguments import (
    as_problem,
    check_definite,
    holds_scores,
    resolve,
    warn_if_reversed,
)
from thinformer.thinning.scales import Standardize, samples, standardized

SIZE = 4096  # more shares hardly lower the error of 100 rows that are chosen with the weights


def debias(
    points: Any,
    kernel: Any,
    *,
    size: int | None = None,
    standardize: Standardize = "auto",
    rng: int | np.random.Generator | None = None,
    progress: Progress = None,
) -> NDArray[np.float64]:
    r"""Return weights under which biased points represent the density of a Stein kernel.

    The points may be draws of a chain that has not converged, or of an approximation.

    Parameters
    ----------
    points : (n, d) array, data frame or posterior
        See `thin`.
    kernel : Kernel, str, function or "precomputed"
        A `stein` kernel with the scores of the density; or another one whose mean embedding under
        the distribution is zero, as "sobolev" under that of the unit cube.
    size : int, optional
        The weights are the shares of the points among `size` of them that greedy Stein thinning
        chooses, with repetition. By default n, at most 4096. It should be a multiple of the number
        of rows that will be chosen with these weights, some 40 times as many.
    standardize
        See `thin`.
    rng : None, int or numpy.random.Generator
        Draws the rows for a median bandwidth, where there are more than 1000 (SPEC 7).
    progress
        See `thin`. The stage is "greedy choice", after "kernel matrix" for a function in plain
        Python.

    Returns
    -------
    (n,) float64 array
        Not negative, with a sum of 1; most are 0 where the points are far from the density.

    Raises
    ------
    TypeError, ValueError
        As in `thin` with ``target="mean-zero"``; `size` is no positive integer.

    Warns
    -----
    UserWarning
        As in `thin`.

    Notes
    -----
    O(n size d) time, O(n d) memory. This is the first step of Stein kernel thinning (Li et al.,
    2024, arXiv 2404.12290); the second is `thin` with these weights, under the same kernel with
    ``target="sample"`` or under any other.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import debias
    >>> from thinformer.kernels import stein
    >>> x = np.random.default_rng(0).normal(1.0, 1.5, size=(1000, 2))
    >>> weights = debias(x, stein(-x, "median"))  # for the standard normal
    >>> bool(np.abs(weights @ x).max() < 0.01)
    True
    """
    shown = showing(progress)
    unit, (table,) = samples({"points": points}, standardize, kernel, "median")
    array = table.values
    n = len(array)
    size = min(n, SIZE) if size is None else checks.integer("size", size, 1)
    array, kernel = standardized(array, unit, kernel)
    kernel = resolve(kernel, "median", array, rng)
    check_definite("mean-zero", kernel)
    with shown as tell:
        problem = as_problem(array, kernel, tell=tell)
        if holds_scores(kernel):
            warn_if_reversed(array, kernel.companion, None)
        done = begin(tell, "greedy choice")
        chosen = grow(problem, np.arange(n), size, np.zeros(n), unique=False, done=done)
    return np.bincount(chosen, minlength=n) / size
