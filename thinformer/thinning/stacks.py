"""`kernel_halve` and `kh_compress`: the paper's two algorithms, on one problem or a stack."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.cpu.run import function_of_points, is_finite, starting_points
from thinformer.halving.draws import Draws, make_draws, seed_from
from thinformer.halving.plan import check_draws, drawn_numbers, plan
from thinformer.halving.problem import make_factor, make_problem
from thinformer.halving.schedule import Round, Schedule
from thinformer.kernels import Kernel, linear
from thinformer.kernels.catalogue import as_kernel
from thinformer.support import checks
from thinformer.thinning.arguments import check_finite


def kernel_halve(
    K: ArrayLike,
    *,
    delta: float = 0.5,
    rng: int | np.random.Generator | None = None,
    draws: Draws | None = None,
    device: bodies.Device = "auto",
) -> NDArray[np.int64]:
    r"""Keep one of every two consecutive points so that the kept half represents all S points.

    This is kernel halving KH(:math:`\delta`) of *Low-Rank Thinning* (arXiv 2502.12063),
    symmetrized: a fair coin decides whether the chosen half or the other half is kept. With
    probability at least :math:`1 - \delta/2` the kept half is sub-Gaussian with
    :math:`\nu^2 \le \max_i K_{ii} (1/2 + L)^2 / (2 L (S/2)^2)`, :math:`L = \log(2S/\delta)`.

    Parameters
    ----------
    K : (..., S, S) float array
        Symmetric positive semidefinite Gram matrix of S points, or a stack of such matrices.
        float32 and float64 are computed in their own precision, float16 in float32.
    delta : float
        Failure probability, in (0, 1].
    rng : None, int or numpy.random.Generator
        The source of the draws (SPEC 7): None for fresh ones, a seed, or a generator, which is
        advanced by one number. The matrices of a stack share their draws.
    draws : Draws, optional
        The draws themselves, for one round of S // 2 pairs in one bucket; `rng` is then not used.
    device : {"auto", "cpu", "cuda"}
        Where to compute, as in `kh_compress`. On a GPU one block of threads halves one matrix.

    Returns
    -------
    (..., ceil(S / 2)) int64 array
        Positions of the kept points, increasing. If S is odd, the last point is kept too. If K is
        on a GPU, so is the result.

    Raises
    ------
    TypeError, ValueError
        K is not a stack of symmetric, finite, non-empty float matrices; delta lies outside
        (0, 1]; the draws have another shape.
    RuntimeError, MemoryError
        On a GPU: there is none, and why; too little memory.

    Notes
    -----
    O(S^2) time and O(S) memory for each matrix.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import kernel_halve
    >>> x = np.linspace(-1, 1, 8)
    >>> kept = kernel_halve(np.exp(-np.subtract.outer(x, x) ** 2), rng=0)
    >>> kept // 2  # one of each pair
    array([0, 1, 2, 3])
    """
    device = bodies.choose(device, K=K)
    resident = bodies.on_gpu(K)
    K = bodies.float_array("K", K)
    checks.shape("K", K, 2, "(..., S, S)")
    *stack, S, columns = K.shape
    if columns != S:
        raise ValueError(f"K must have shape (..., S, S); got shape {K.shape}")
    checks.not_empty("K", K, -1, "point")
    delta = checks.failure_probability(delta)
    pairs = S // 2
    schedule = Schedule(2 * pairs, pairs, (Round(pairs, 1, delta),))
    if draws is None:
        draws = make_draws(schedule, seed_from(rng))
    if resident:
        from thinformer.cuda import arrays  # imports numba.cuda

        check_draws(schedule, draws)
        return arrays.halve_gram(K, schedule, drawn_numbers(schedule, draws, tuple(stack)))
    K = checks.computed(K)
    if device == "cuda":
        K = np.ascontiguousarray(K)
    gram = make_factor(K, linear())
    checks.finite("K", is_finite(gram, S))
    checks.symmetric("K", K)
    kept = bodies.halve_gram(device, gram, schedule, draws, tuple(stack)).reshape(*stack, pairs)
    if S % 2:
        last = np.full((*stack, 1), S - 1)
        kept = np.concatenate([kept, last], axis=-1)
    return kept


def kh_compress(
    points: ArrayLike,
    *,
    g: int = 2,
    size: int | None = None,
    delta: float = 0.5,
    kernel: str | Kernel = "gaussian",
    rng: int | np.random.Generator | None = None,
    draws: Draws | None = None,
    device: bodies.Device = "auto",
) -> NDArray[np.int64]:
    r"""Choose a small subset of points that represents all S points, in near-linear time.

    This is KH-Compress(g) of *Low-Rank Thinning* (arXiv 2502.12063): kernel halving over a tree of
    buckets. Consecutive points form a pair, and one point of each pair is kept. No order of the
    points is required, but an order in which neighbours are similar, as in a time series or after
    sorting, reduces the error.

    Parameters
    ----------
    points : (..., S, d) float array
        S points in d dimensions, or a stack of such sets, each thinned by itself.
        float32 and float64 are computed in their own precision, float16 in float32.
    g : int
        Oversampling: :math:`2^g \sqrt n` points are kept, where n is the largest power of four not
        above S. A larger g keeps more points with a smaller error; the time grows as :math:`4^g`.
    size : int, optional
        The number of points to keep; g is then not used. Halving starts from `size` times a power
        of two points, the largest such number not above S.
    delta : float
        Failure probability of the whole, in (0, 1].
    kernel : str or Kernel
        A kernel made by `thinformer.kernels`, or the name of one, with bandwidth 1 in the units of
        the points: standardise them, or give a bandwidth near the typical distance between points.
        With a bandwidth that is far too small, all points look equally distant and the choice is
        no better than a uniform one.
    rng : None, int or numpy.random.Generator
        The source of the draws (SPEC 7): None for fresh ones, a seed, or a generator, which is
        advanced by one number. The sets of a stack share their draws: the result for each set does
        not depend on the rest of the stack.
    draws : Draws, optional
        The draws themselves; `rng` is then not used.
    device : {"auto", "cpu", "cuda"}
        Where to compute. A GPU, "cuda", computes all kernels except those with labels, with the
        same draws; the points are copied there and the positions are copied back. Points that are
        on a GPU already, in an array of CuPy or of any library with ``__cuda_array_interface__``,
        are read in place, and take no `stein` kernel and no function. "auto" is the GPU for such
        points, and the CPU otherwise.

    Returns
    -------
    (..., size) int64 array
        Positions of the kept points, increasing; all positions where S <= size. If the points are
        on a GPU, so is the result: an array of CuPy for points of CuPy, otherwise of numba.cuda.

    Raises
    ------
    TypeError, ValueError
        The points are not a finite float array of at least one point; another argument is out
        of its range; the draws have another shape.
    RuntimeError, NotImplementedError, MemoryError
        On a GPU: there is none, and why; the kernel cannot be computed there; too little memory.

    Notes
    -----
    About :math:`2 r n_{out}^2` kernel values, :math:`r = \log_2(S / n_{out})`, and O(S) memory
    for positions.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import kh_compress
    >>> x = np.random.default_rng(0).normal(size=(4096, 2))
    >>> kh_compress(x, g=0, rng=0).shape
    (64,)
    """
    device = bodies.choose(device, points=points)
    resident = bodies.on_gpu(points)
    points = bodies.float_array("points", points)
    checks.shape("points", points, 2, "(..., S, d)")
    *stack, S, _ = points.shape
    checks.not_empty("points", points, -2, "point")
    checks.not_empty("points", points, -1, "dimension")
    kernel = as_kernel(kernel)
    planned = plan(S, g, size, delta)
    if resident:
        from thinformer.cuda import arrays  # imports numba.cuda

        given = seed_from(rng) if draws is None else draws
        source = bodies.source_on_gpu(S, planned, given, tuple(stack))
        return arrays.compress_points(points, kernel, planned.schedule, False, source)
    points = checks.computed(points)
    check_finite(points)
    if device == "cuda":
        points = np.ascontiguousarray(points)
    problem = make_problem(points, function_of_points(kernel))
    if draws is None:
        draws = make_draws(planned.schedule, seed_from(rng))
    index = starting_points(S, planned, draws, tuple(stack))
    kept = bodies.run_schedule(device, problem, planned.schedule, draws, index, tuple(stack))
    return kept.reshape(*stack, planned.schedule.size)
