"""The catalogue: one function a kernel, its formula, and its name in scikit-learn or SciPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import isfunction
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.kernels.kernel import COVARIANCE, MEDIAN, SCALED_MEDIAN, Kernel
from thinformer.kernels.phi import (
    ENERGY,
    EXPONENTIAL,
    GAUSSIAN,
    INVERSE_MULTIQUADRIC,
    LAPLACE,
    LINEAR,
    MATERN_3_2,
    MATERN_5_2,
    OF_PRODUCTS,
    PAIRWISE,
    POLYNOMIAL,
    RATIONAL_QUADRATIC,
    SOBOLEV,
    STEIN,
    TABLE,
)
from thinformer.support import checks


def linear(constant: float = 0.0) -> Kernel:
    """``<x, y> + constant`` (scikit-learn: ``linear_kernel``).

    Parameters
    ----------
    constant : float
        Finite.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """
    return Kernel("linear", LINEAR, constant=checks.finite_number("constant", constant))


def polynomial(degree: int = 3, constant: float = 1.0, bandwidth: ArrayLike = 1.0) -> Kernel:
    """``(<x, y> / bandwidth^2 + constant)^degree``.

    scikit-learn: ``polynomial_kernel(gamma=1 / bandwidth**2, coef0=constant)``.

    Parameters
    ----------
    degree : int
        At least 1.
    constant : float
        Finite.
    bandwidth : float or sequence of d floats
        Positive, in the units of the points: one for all dimensions, or one for each.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """
    degree = checks.integer("degree", degree, 1)
    return Kernel(
        "polynomial",
        POLYNOMIAL,
        _inverse(bandwidth),
        checks.finite_number("constant", constant),
        degree,
    )


def exponential(bandwidth: ArrayLike = 1.0) -> Kernel:
    """``exp(<x, y> / bandwidth^2)``, the kernel of softmax attention.

    Parameters
    ----------
    bandwidth : float or sequence of d floats
        Positive, in the units of the points: one for all dimensions, or one for each.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """
    return Kernel("exponential", EXPONENTIAL, _inverse(bandwidth))


def gaussian(bandwidth: ArrayLike = 1.0) -> Kernel:
    """``exp(-|x - y|^2 / (2 bandwidth^2))``.

    scikit-learn: ``rbf_kernel(gamma=1 / (2 * bandwidth**2))``.

    Parameters
    ----------
    bandwidth : float or sequence of d floats
        Positive, in the units of the points: one for all dimensions, or one for each.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """
    return Kernel("gaussian", GAUSSIAN, _inverse(bandwidth, sqrt(2)))


def laplace(bandwidth: ArrayLike = 1.0) -> Kernel:
    """``exp(-|x - y| / bandwidth)`` with the Euclidean distance.

    scikit-learn: ``gaussian_process.kernels.Matern(length_scale=bandwidth, nu=0.5)``.

    Parameters
    ----------
    bandwidth : float or sequence of d floats
        Positive, in the units of the points: one for all dimensions, or one for each.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """
    return Kernel("laplace", LAPLACE, _inverse(bandwidth))


def inverse_multiquadric(bandwidth: ArrayLike = 1.0) -> Kernel:
    """``1 / sqrt(1 + |x - y|^2 / bandwidth^2)``; "imq" for short.

    scikit-learn: ``RationalQuadratic(alpha=0.5, length_scale=bandwidth)``.

    Parameters
    ----------
    bandwidth : float or sequence of d floats
        Positive, in the units of the points: one for all dimensions, or one for each.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """
    return Kernel("inverse_multiquadric", INVERSE_MULTIQUADRIC, _inverse(bandwidth), constant=1.0)


def matern(bandwidth: ArrayLike = 1.0, nu: float = 1.5) -> Kernel:
    """The Matern kernel of smoothness nu = 1/2, 3/2 or 5/2, with ``r = |x - y| / bandwidth``.

    ``exp(-r)``, ``(1 + sqrt(3) r) exp(-sqrt(3) r)`` or
    ``(1 + sqrt(5) r + 5/3 r^2) exp(-sqrt(5) r)``.
    scikit-learn: ``gaussian_process.kernels.Matern(length_scale=bandwidth, nu=nu)``.

    Parameters
    ----------
    bandwidth : float or sequence of d floats
        Positive, in the units of the points: one for all dimensions, or one for each.
    nu : float
        Smoothness: 0.5, 1.5 or 2.5.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """
    if nu == 0.5:
        return replace(laplace(bandwidth), name="matern")
    if nu == 1.5:
        return Kernel("matern", MATERN_3_2, _inverse(bandwidth, 1 / sqrt(3)), 1.0)
    if nu == 2.5:
        return Kernel("matern", MATERN_5_2, _inverse(bandwidth, 1 / sqrt(5)), 1.0, 1 / 3)
    raise ValueError(f"nu must be 0.5, 1.5 or 2.5; got {nu!r}")


def rational_quadratic(bandwidth: ArrayLike = 1.0, alpha: float = 1.0) -> Kernel:
    """``(1 + |x - y|^2 / (2 alpha bandwidth^2))^-alpha``.

    scikit-learn: ``RationalQuadratic(alpha=alpha, length_scale=bandwidth)``.

    Parameters
    ----------
    bandwidth : float or sequence of d floats
        Positive, in the units of the points: one for all dimensions, or one for each.
    alpha : float
        Positive; the Gaussian kernel is the limit for large alpha.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """
    alpha = checks.positive("alpha", alpha)
    scale = _inverse(bandwidth, sqrt(2 * alpha))
    return Kernel("rational_quadratic", RATIONAL_QUADRATIC, scale, 1.0, alpha)


def energy(bandwidth: ArrayLike = 1.0) -> Kernel:
    """``-|x - y| / bandwidth``, of the energy distance.

    It is conditionally positive definite, which is enough where weights sum to one: the MMD is the
    energy distance, in one dimension ``scipy.stats.energy_distance(x, y)``.

    Parameters
    ----------
    bandwidth : float or sequence of d floats
        Positive, in the units of the points: one for all dimensions, or one for each.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """
    return Kernel("energy", ENERGY, _inverse(bandwidth))


def sobolev(smoothness: int = 1) -> Kernel:
    r"""The periodic Sobolev kernel of smoothness s = 1, 2 or 3 on the unit cube.

    :math:`\prod_j (1 + (-1)^{s-1} (2\pi)^{2s} / (2s)! \; B_{2s}(|x_j - y_j|)) - 1` with the
    Bernoulli polynomial :math:`B_{2s}` (SciPy has its numbers: ``scipy.special.bernoulli``). Its
    mean embedding under the uniform distribution is zero: ``target="mean-zero"`` gives points that
    represent the cube itself. Points must lie in [0, 1].

    Parameters
    ----------
    smoothness : int
        1, 2 or 3.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """
    polynomials = {
        1: (1 / 6, -1.0, 1.0, 0.0, 0.0, 0.0, 0.0),
        2: (-1 / 30, 0.0, 1.0, -2.0, 1.0, 0.0, 0.0),
        3: (1 / 42, 0.0, -1 / 2, 0.0, 5 / 2, -3.0, 1.0),
    }
    if not isinstance(smoothness, int) or smoothness not in polynomials:
        raise ValueError(f"smoothness must be 1, 2 or 3; got {smoothness!r}")
    factor = {1: 2 * np.pi**2, 2: -2 / 3 * np.pi**4, 3: 4 / 45 * np.pi**6}[smoothness]
    coefficients = [factor * c for c in polynomials[smoothness]]
    coefficients[0] += 1
    return Kernel("sobolev", SOBOLEV, coefficients=tuple(map(float, coefficients)))


def stein(scores: ArrayLike, bandwidth: ArrayLike | str = 1.0) -> Kernel:
    r"""The Langevin Stein kernel of the inverse multiquadric, from the points' scores.

    With :math:`q = 1 + |x - y|^2 / \ell^2` and scores :math:`s_x = \nabla \log p(x)` of a density p
    that need not be normalised,
    :math:`q^{-1/2} \langle s_x, s_y \rangle + q^{-3/2} (\langle x - y, s_x - s_y \rangle + d)
    / \ell^2 - 3 q^{-5/2} |x - y|^2 / \ell^4`.
    Its mean embedding under p is zero, so `thin` gives points that represent p, not the points that
    it gets: these may be a biased or unconverged sample of p. The MMD is then the kernel Stein
    discrepancy (KSD).

    With one bandwidth for each dimension j, each product and square of differences is divided by
    its own :math:`\ell_j^2`, as in k(x, y) = :math:`q^{-1/2}`; the scores are not. Scores are in
    inverse units of the points. So columns on unlike scales are best divided by their standard
    deviations u, and their scores multiplied by these. ``standardize="scale"`` in `thin`, `mmd`
    and `compare` does so; the bandwidth is then in units of u.

    Parameters
    ----------
    scores : (n, d) float array
        The scores of the points that will be thinned, row by row.
    bandwidth : float, sequence of d floats, "median", "scaled median" or "covariance"
        The length l, in the units of the points: one for all dimensions, or one for each. A word
        takes it from the points, in functions that have a `bandwidth` too. "median" is
        `thinformer.median_distance`; "scaled median" is this over the root of log(min(n, 1000)).
        "covariance" takes the inverse covariance of the points for all :math:`1 / \ell^2`: points
        and scores are rotated to its eigenvectors, and each has its own l, the standard deviation
        along it.

    Raises
    ------
    ValueError
        The scores are not finite numbers of shape (n, d); the bandwidth is not positive, or it is
        another word.
    """
    checks.in_memory("scores", scores)
    scores = np.asarray(scores, dtype=np.float64)
    checks.shape("scores", scores, 2, "(n, d)")
    checks.finite("scores", bool(np.isfinite(scores).all()))
    if isinstance(bandwidth, str):
        if bandwidth not in (MEDIAN, SCALED_MEDIAN, COVARIANCE):
            raise ValueError(
                "bandwidth must be a positive number, one for each dimension, 'median', "
                f"'scaled median' or 'covariance'; got {bandwidth!r}"
            )
        return Kernel("stein", STEIN, bandwidth, constant=1.0, companion=scores)
    scale = _inverse(bandwidth)
    largest = float(np.max(scale))
    degree = 3 * largest * largest  # a power would raise where this is infinity
    return Kernel("stein", STEIN, scale, constant=1.0, degree=degree, companion=scores)


def pairwise(function: Callable) -> Kernel:
    """Your own kernel: ``function(x, y) -> number``, symmetric, of two points (d,).

    A function that ``@numba.njit`` compiled runs inside the compiled loops, which are compiled anew
    for it in each process (seconds). A plain Python function is called once for every two points,
    which is slow; a warning says so.

    Parameters
    ----------
    function : callable
        Of two (d,) arrays, returning a number; symmetric and positive semidefinite, which is not
        checked.

    Raises
    ------
    TypeError
        The function is not callable.
    """
    if not callable(function):
        raise TypeError(f"function must be callable; got {function!r}")
    return Kernel("pairwise", PAIRWISE, companion=function)


def of_products(phi: Callable) -> Kernel:
    """Your own kernel as ``@numba.njit`` ``phi(<x, y>, |x|^2, |y|^2) -> number``.

    Parameters
    ----------
    phi : function compiled by ``numba.njit``
        Of three numbers, returning one; the kernel must be positive semidefinite, which is not
        checked.

    Raises
    ------
    TypeError
        phi is not compiled by ``numba.njit``.
    """
    checks.compiled("phi", phi)
    return Kernel("of_products", OF_PRODUCTS, companion=phi)


KERNELS: dict[str, Callable[..., Kernel]] = {
    "linear": linear,
    "polynomial": polynomial,
    "exponential": exponential,
    "gaussian": gaussian,
    "laplace": laplace,
    "inverse_multiquadric": inverse_multiquadric,
    "matern": matern,
    "rational_quadratic": rational_quadratic,
    "energy": energy,
    "sobolev": sobolev,
}
SHORT = {"imq": "inverse_multiquadric", "rbf": "gaussian"}
WITHOUT_BANDWIDTH = ("linear", "sobolev")


def as_kernel(kernel: Any, bandwidth: ArrayLike | None = None) -> Kernel:
    """Return a kernel, given a kernel or its name; with a name, a bandwidth may be given too."""
    if isinstance(kernel, Kernel) and kernel.tag in range(TABLE + 1):
        return kernel
    if isinstance(kernel, str) and SHORT.get(kernel, kernel) in KERNELS:
        name = SHORT.get(kernel, kernel)
        if bandwidth is None or name in WITHOUT_BANDWIDTH:
            return KERNELS[name]()
        return KERNELS[name](bandwidth=bandwidth)
    names = ", ".join(sorted(KERNELS))
    hint = f" (call it: {kernel.__name__}())" if makes_kernels(kernel) else ""
    raise ValueError(f"kernel must be a Kernel or one of {names}; got {kernel!r}{hint}")


def makes_kernels(function: Any) -> bool:
    """Return whether this is a function of this package: a call of it returns a kernel."""
    return isfunction(function) and function.__module__.startswith("thinformer.kernels.")


def _inverse(bandwidth: Any, factor: float = 1.0) -> float | tuple[float, ...]:
    """Return 1 / (bandwidth * factor), for one bandwidth or one a dimension."""
    if np.ndim(bandwidth) == 0:
        if isinstance(bandwidth, np.ndarray):
            bandwidth = bandwidth.item()
        return 1 / (checks.positive("bandwidth", bandwidth) * factor)
    bandwidths: NDArray = np.asarray(bandwidth)
    if bandwidths.ndim != 1 or bandwidths.size == 0 or bandwidths.dtype.kind not in "iuf":
        raise ValueError(
            "bandwidth must be a number or a sequence of one a dimension; "
            f"got an array of shape {bandwidths.shape} and dtype {bandwidths.dtype}"
        )
    return tuple(1 / (checks.positive("bandwidth", float(b)) * factor) for b in bandwidths)
