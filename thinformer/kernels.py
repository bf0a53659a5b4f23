"""Reproducing kernels k(x, y) as functions phi(<x, y>, |x|^2, |y|^2).

Every kernel here is a function of one inner product and two squared norms of the points divided by
the bandwidth, so all of them share one hot loop: a matrix product, then phi for each entry. phi is
a plain Python function of scalars that each body compiles for its own target, and a kernel is
chosen by an integer tag: passing the function itself would defeat Numba's disk cache.

The phi functions hold no number but their arguments: a literal would turn float32 into float64.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, sqrt
from typing import NamedTuple

LINEAR, POLYNOMIAL, EXPONENTIAL, GAUSSIAN, LAPLACE, INVERSE_MULTIQUADRIC = range(6)


class Kernel(NamedTuple):
    """A kernel and its parameters; made by the functions of this module.

    name : how `KERNELS` lists it
    tag : the integer the compiled bodies branch on
    scale : what the points are multiplied by first, 1 / bandwidth up to a constant
    constant, degree : parameters of phi
    """

    name: str
    tag: int
    scale: float = 1.0
    constant: float = 0.0
    degree: float = 1.0


def phi_linear(xy, xx, yy, constant, degree):
    return xy + constant


def phi_polynomial(xy, xx, yy, constant, degree):
    return (xy + constant) ** degree


def phi_exponential(xy, xx, yy, constant, degree):
    # the constant is a shift that keeps exp from overflowing; halving is blind to it
    return exp(xy - constant)


def phi_gaussian(xy, xx, yy, constant, degree):
    return exp(xy + xy - xx - yy)


def phi_laplace(xy, xx, yy, constant, degree):
    # abs: rounding can push the squared distance of close points below zero
    return exp(-sqrt(abs(xx + yy - xy - xy)))


def phi_inverse_multiquadric(xy, xx, yy, constant, degree):
    return constant / sqrt(constant + abs(xx + yy - xy - xy))


def linear(constant: float = 0.0) -> Kernel:
    """<x, y> + constant (scikit-learn: ``linear_kernel``)."""
    return Kernel("linear", LINEAR, constant=constant)


def polynomial(degree: int = 3, constant: float = 1.0, bandwidth: float = 1.0) -> Kernel:
    """(<x, y> / bandwidth^2 + constant)^degree.

    scikit-learn: ``polynomial_kernel(gamma=1 / bandwidth**2, coef0=constant)``.
    """
    return Kernel("polynomial", POLYNOMIAL, 1 / _positive(bandwidth), constant, degree)


def exponential(bandwidth: float = 1.0) -> Kernel:
    """exp(<x, y> / bandwidth^2), the kernel of softmax attention."""
    return Kernel("exponential", EXPONENTIAL, 1 / _positive(bandwidth))


def gaussian(bandwidth: float = 1.0) -> Kernel:
    """exp(-|x - y|^2 / (2 bandwidth^2)).

    scikit-learn: ``rbf_kernel(gamma=1 / (2 * bandwidth**2))``.
    """
    return Kernel("gaussian", GAUSSIAN, 1 / (sqrt(2) * _positive(bandwidth)))


def laplace(bandwidth: float = 1.0) -> Kernel:
    """exp(-|x - y| / bandwidth) with the Euclidean distance.

    scikit-learn: ``gaussian_process.kernels.Matern(length_scale=bandwidth, nu=0.5)``.
    """
    return Kernel("laplace", LAPLACE, 1 / _positive(bandwidth))


def inverse_multiquadric(bandwidth: float = 1.0) -> Kernel:
    """1 / sqrt(1 + |x - y|^2 / bandwidth^2).

    scikit-learn: ``RationalQuadratic(alpha=0.5, length_scale=bandwidth)``.
    """
    return Kernel(
        "inverse_multiquadric", INVERSE_MULTIQUADRIC, 1 / _positive(bandwidth), constant=1.0
    )


KERNELS: dict[str, Callable[[], Kernel]] = {
    "linear": linear,
    "polynomial": polynomial,
    "exponential": exponential,
    "gaussian": gaussian,
    "laplace": laplace,
    "inverse_multiquadric": inverse_multiquadric,
}


def as_kernel(kernel: str | Kernel) -> Kernel:
    """Return a kernel, given one or the name of one with its default parameters."""
    if isinstance(kernel, Kernel):
        return kernel
    if isinstance(kernel, str) and kernel in KERNELS:
        return KERNELS[kernel]()
    raise ValueError(
        f"kernel must be a Kernel or one of {', '.join(sorted(KERNELS))}; got {kernel!r}"
    )


def _positive(bandwidth: float) -> float:
    if not 0 < bandwidth < float("inf"):
        raise ValueError(f"bandwidth must be positive and finite; got {bandwidth!r}")
    return bandwidth
