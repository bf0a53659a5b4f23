"""Thinning of point sets held as NumPy arrays."""

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


def kernel_halve(
    K: ArrayLike,
    *,
    delta: float = 0.5,
    rng: int | np.random.Generator | None = None,
    draws: Draws | None = None,
    device: str = "auto",
) -> NDArray[np.int64]:
    r"""Keep one of every two consecutive points so that the kept half represents the whole.

    Kernel halving KH(:math:`\delta`) of *Low-Rank Thinning* (arXiv 2502.12063), symmetrized: a
    fair coin decides between the chosen half and the other. With probability at least
    :math:`1 - \delta/2` the kept half is sub-Gaussian with
    :math:`\nu^2 \le \max_i K_{ii} (1/2 + L)^2 / (2 L (S/2)^2)`, :math:`L = \log(2S/\delta)`.

    Parameters
    ----------
    K : (..., S, S) float array
        Symmetric positive semidefinite Gram matrix of S points, or a stack of them.
        float32 and float64 are computed in their own precision, float16 in float32.
    delta : float
        Failure probability, in (0, 1].
    rng : None, int or numpy.random.Generator
        Where the draws come from (SPEC 7): fresh ones, a seed, or a generator, which is advanced
        by one number. The matrices of a stack share their draws.
    draws : Draws, optional
        The draws themselves, of one round of S // 2 pairs in one bucket; `rng` is not used then.
    device : {"auto", "cpu", "cuda"}
        Where it is computed, as in `kh_compress`; on a GPU a matrix is one block's work.

    Returns
    -------
    (..., ceil(S / 2)) int64 array
        Positions kept, increasing. Where S is odd, the last point is carried over. On the GPU where
        K is on one.

    Raises
    ------
    TypeError, ValueError
        K is not a stack of symmetric, finite, non-empty float matrices; delta lies outside
        (0, 1]; the draws have another shape.
    RuntimeError, MemoryError
        There is no GPU, and why; it has too little memory.

    Notes
    -----
    O(S^2) time and O(S) memory a matrix.

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
    device: str = "auto",
) -> NDArray[np.int64]:
    r"""Choose a few points that represent all of them, in near-linear time.

    KH-Compress(g) of *Low-Rank Thinning* (arXiv 2502.12063): kernel halving over a tree of
    buckets. Consecutive points are paired, and one of each pair is kept: an order in which
    neighbours resemble each other, as in a time series or after sorting, helps, and none is needed.

    Parameters
    ----------
    points : (..., S, d) float array
        S points in d dimensions, or a stack of such sets, each thinned by itself.
        float32 and float64 are computed in their own precision, float16 in float32.
    g : int
        Oversampling: :math:`2^g \sqrt n` points are kept, n the largest power of four not
        above S. More points and a smaller error for a time that grows as :math:`4^g`.
    size : int, optional
        The number of points to keep, instead of the one that g gives, chosen from as many as halve
        evenly to it.
    delta : float
        Failure probability of the whole, in (0, 1].
    kernel : str or Kernel
        One of `thinformer.kernels`, or its name for the default bandwidth of 1, in the units of the
        points: standardise them, or give a bandwidth near the distance of typical points. With one
        far too small all points look alike, and the choice is no better than a uniform one.
    rng : None, int or numpy.random.Generator
        Where the draws come from (SPEC 7): fresh ones, a seed, or a generator, which is advanced
        by one number. The sets of a stack share their draws: each gets what it would get alone.
    draws : Draws, optional
        The draws themselves; `rng` is not used then.
    device : {"auto", "cpu", "cuda"}
        Where it is computed. On a GPU, "cuda", for all kernels but `stein` and your own, with the
        same draws; arrays go there and the positions come back. Points that are on a GPU already,
        of CuPy or any library with ``__cuda_array_interface__``, are read there, in place. "auto"
        is the GPU for those, and the CPU otherwise.

    Returns
    -------
    (..., size) int64 array
        Positions kept, increasing. All of them where S <= size. On the GPU where the points are on
        one: an array of CuPy if they are, otherwise of numba.cuda.

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
    settings = plan(S, g, size, delta)
    if resident:
        from thinformer.cuda import arrays  # imports numba.cuda

        given = seed_from(rng) if draws is None else draws
        source = bodies.source_on_gpu(S, settings, given, tuple(stack))
        return arrays.compress_points(points, kernel, settings.schedule, False, source)
    points = checks.computed(points)
    checks.finite("points", is_finite(make_factor(points, linear()), S))
    if device == "cuda":
        points = np.ascontiguousarray(points)
    problem = make_problem(points, function_of_points(kernel))
    if draws is None:
        draws = make_draws(settings.schedule, seed_from(rng))
    index = starting_points(S, settings, draws, tuple(stack))
    kept = bodies.run_schedule(device, problem, settings.schedule, draws, index, tuple(stack))
    return kept.reshape(*stack, settings.schedule.size)
