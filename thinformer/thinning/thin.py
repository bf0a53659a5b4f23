"""`thin`: it checks the arguments, builds a `Task` and calls the method."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.halving.draws import seed_from
from thinformer.support import checks
from thinformer.support.progress import Progress, Tell, showing
from thinformer.thinning import sizes
from thinformer.thinning.arguments import Target, as_weights, check_finite, unequal_weights
from thinformer.thinning.methods import BLIND, Method, blind_rows, choose_rows
from thinformer.thinning.options import ThinOptions, task_of
from thinformer.thinning.quadrature import CONSTRAINTS, Constraint, best_weights
from thinformer.thinning.scales import Standardize, samples
from thinformer.thinning.task import Task


class Keywords(TypedDict, total=False):
    """The keywords of `thin` on which the type of its result does not depend."""

    ess: float | None
    kernel: Any
    bandwidth: Any
    standardize: Standardize
    method: Method
    g: int
    delta: float
    refine: bool
    unique: bool
    weights: ArrayLike | None
    target: Target
    rng: int | np.random.Generator | None
    device: bodies.Device
    progress: Progress


@overload
def thin(
    points: Any,
    size: int | Literal["auto"],
    *,
    return_weights: Literal[False] = False,
    **keywords: Unpack[Keywords],
) -> NDArray[np.int64]: ...
@overload
def thin(
    points: Any,
    size: int | Literal["auto"],
    *,
    return_weights: Literal[True] | Constraint,
    **keywords: Unpack[Keywords],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]: ...
@overload
def thin(
    points: Any,
    size: int | Literal["auto"],
    *,
    return_weights: bool | Constraint = False,
    **keywords: Unpack[Keywords],
) -> NDArray[np.int64] | tuple[NDArray[np.int64], NDArray[np.float64]]: ...
def thin(
    points: Any,
    size: int | Literal["auto"],
    *,
    ess: float | None = None,
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
    return_weights: bool | Constraint = False,
    rng: int | np.random.Generator | None = None,
    device: bodies.Device = "auto",
    progress: Progress = None,
) -> NDArray[np.int64] | tuple[NDArray[np.int64], NDArray[np.float64]]:
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
        Arrays on a GPU, of CuPy or of any library with ``__cuda_array_interface__``, stay there.
    size : int or "auto"
        Rows to choose, from 1 to n. "auto" chooses as few rows as are worth `ess` independent
        draws: their squared MMD is at most the expected one of so many draws. It thins to several
        sizes and measures each, see `error_curve`; the size is the smallest to 5 %. Quantiles may
        need more rows.
    ess : float, optional
        For "auto", the effective sample size of the points: thinning then adds no more error than
        the points have themselves. By default it is estimated for draws in a sampler's order (a
        posterior, a dict of draws, a frame with a column of a sampler), from their autocorrelation,
        as the smallest over the columns. Other rows count as independent: it is n. Weights multiply
        it by :math:`1 / (n \sum_i w_i^2)`.
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
        - "greedy": each row in turn is the one that makes the MMD of the rows so far smallest. With
          a `stein` kernel this is Stein thinning (Riabiz et al., 2022), in O(n `size` d) time; for
          ``target="sample"`` it is kernel herding, and quadratic in n.
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
        equally weighted, unless `return_weights` says otherwise.
    target : {"auto", "sample", "mean-zero"}
        What the rows represent: the points ("sample"), or the distribution under which the mean of
        k(x, .) is zero. For a `stein` kernel this is the density whose scores it has. "auto" is
        "mean-zero" for a `stein` kernel, and "sample" for all others. "mean-zero" takes the methods
        "compress++" and "kernel-thinning" with ``refine=True``, and "greedy"; `weights` have no
        part in it.
    return_weights : False, True, "simplex" or "affine"
        Also return weights of the chosen rows, fitted under this constraint as by `fit_weights`;
        True is "simplex". The rows stay the same. With m = `size` this takes O(n m d + m^3) time
        besides, with any method.
    rng : None, int or numpy.random.Generator
        The source of all random numbers (SPEC 7): None for fresh ones, a seed, or a generator,
        which is advanced by one number.
    device : {"auto", "cpu", "cuda"}
        Where to compute; "auto" is the GPU for points on one, and the CPU for all others. A GPU,
        "cuda", computes all methods with the same draws, under all kernels but those with labels.
        Your own function must be compiled by ``numba.njit`` and make no arrays, or it is plain
        Python, which runs on the CPU.
    progress : None, bool or function
        What is written of a call that takes long, on standard error.

        - None: one line in a terminal or a notebook, once a process, if kernels are compiled for
          longer than two seconds.
        - True: a bar with the stage and the part of it that is done, of tqdm if it is installed.
        - False: nothing.
        - A function is called with the stage and a fraction, as in progress("halving", 0.25), on
          the thread that calls `thin`. An exception that it raises ends the call. The line about
          compilation is written as with None.

        The stages of a method are among "kernel matrix" (of a function in plain Python), "halving",
        "KT-SPLIT", "mean embedding" (what rows and weights are compared with), "KT-SWAP", "greedy
        choice" and "weights". Where there are several blocks or sizes, a stage says of which:
        "block 1 of 2: halving", "64 rows: halving".

    Returns
    -------
    rows : (size,) int64 array
        Row numbers in increasing order; with ``unique=False`` a number may be there twice. If the
        points are on a GPU, so are rows and weights: arrays of CuPy for points of CuPy, otherwise
        of numba.cuda.
    weights : (size,) float64 array
        Of these rows, with a sum of 1; only with `return_weights`, else `rows` alone is returned.

    Raises
    ------
    TypeError, ValueError
        The points are not finite numbers of shape (n, d); another argument is out of its range or
        contradicts the others; with "auto", no coreset is worth `ess` independent draws.
    RuntimeError, NotImplementedError, MemoryError
        On a GPU: there is none, and why; the kernel cannot be computed there; points that are
        there already take neither `standardize` nor `bandwidth="covariance"`; too little memory.

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
    shown = showing(progress)
    constraint = _constraint(return_weights)
    options = ThinOptions(
        kernel, bandwidth, standardize, method, g, delta, refine, unique, weights, target, device
    ).checked(points)
    with bodies.reading(points):
        rows, of_rows = _chosen(points, size, options, ess, rng, shown, constraint)
    rows = bodies.beside(points, rows)
    return rows if of_rows is None else (rows, bodies.beside(points, of_rows))


def _chosen(
    points: Any,
    size: int | Literal["auto"],
    options: ThinOptions,
    ess: float | None,
    rng: int | np.random.Generator | None,
    shown: AbstractContextManager[Tell],
    constraint: Constraint | None,
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """The rows that are chosen, and with a constraint their weights."""
    method, weights = options.method, options.weights
    if isinstance(size, str):
        if size != "auto":
            raise ValueError(f"size must be an integer or 'auto'; got {size!r}")
        with shown as tell:
            task, draws = sizes.prepared(points, options, ess, rng, tell)
            return _with_weights(task, sizes.smallest(task, options, draws), constraint)
    if ess is not None:
        raise ValueError(f"ess is for size='auto'; got ess={ess!r} with size={size!r}")
    every = method in BLIND and constraint is None
    unit, (table,) = samples(
        {"points": points}, options.standardize, options.kernel, options.bandwidth, every,
        there=True,
    )  # fmt: skip
    array = table.values
    n = array.shape[0]
    size = checks.integer("size", size, 1)
    if size > n:
        raise ValueError(f"size must be at most the {n} points there are; got {size}")
    share = unequal_weights(weights, n)
    generator = np.random.default_rng(seed_from(rng))
    blind = method in BLIND or (size == n and options.unique)  # the kernel does not change the rows
    if blind:
        check_finite(array)
        rows = blind_rows(n, size, method, share, options.unique, generator)
        if constraint is None:
            return rows, None
    with shown as tell:
        task = task_of(array, size, options, unit, share, generator, tell)
        if not blind:
            rows = choose_rows(task, method, options.g)
        return _with_weights(task, rows, constraint)


def _constraint(return_weights: bool | Constraint) -> Constraint | None:
    """The constraint that `return_weights` asks for."""
    if isinstance(return_weights, bool):
        return "simplex" if return_weights else None
    if return_weights not in CONSTRAINTS:
        raise ValueError(
            f"return_weights must be True, False or one of {', '.join(map(repr, CONSTRAINTS))}; "
            f"got {return_weights!r}"
        )
    return return_weights


def _with_weights(
    task: Task, rows: NDArray, constraint: Constraint | None
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """The rows, and with a constraint their weights."""
    if constraint is None:
        return rows, None
    share = as_weights(task.weights, task.n)
    return rows, best_weights(task.problem, rows, share, task.target, constraint, task.tell)
