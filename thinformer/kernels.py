"""Reproducing kernels k(x, y): `gaussian`, `laplace`, `inverse_multiquadric`, `linear`,
`polynomial`, `exponential`, each with its formula and its name in scikit-learn.

Inside, a kernel is a function phi of <x, y> or of |x - y|^2. Points are divided by the bandwidth
first, so all kernels share one hot loop: a matrix product, or squared distances, then phi for each
entry. phi is a plain Python function of scalars that each body compiles for its own target, and a
kernel is chosen by an integer tag: passing the function itself would defeat Numba's disk cache.

The phi functions hold no number but their arguments: a literal would turn float32 into float64.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, sqrt
from typing import Any, NamedTuple

from thinformer import _checks

LINEAR, POLYNOMIAL, EXPONENTIAL, GAUSSIAN, LAPLACE, INVERSE_MULTIQUADRIC = range(6)
OF_DISTANCE = GAUSSIAN  # from this tag on, phi is a function of the squared distance


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


def phi_linear(product, constant, degree):
    return product + constant


def phi_polynomial(product, constant, degree):
    return (product + constant) ** degree


def phi_exponential(product, constant, degree):
    # the constant is a shift that keeps exp from overflowing; halving is blind to it
    return exp(product - constant)


def phi_gaussian(distance, constant, degree):
    return exp(-distance)


def phi_laplace(distance, constant, degree):
    return exp(-sqrt(distance))


def phi_inverse_multiquadric(distance, constant, degree):
    return constant / sqrt(constant + distance)


def linear(constant: float = 0.0) -> Kernel:
    """<x, y> + constant (scikit-learn: ``linear_kernel``)."""
    return Kernel("linear", LINEAR, constant=_checks.finite_number("constant", constant))


def polynomial(degree: int = 3, constant: float = 1.0, bandwidth: float = 1.0) -> Kernel:
    """(<x, y> / bandwidth^2 + constant)^degree.

    scikit-learn: ``polynomial_kernel(gamma=1 / bandwidth**2, coef0=constant)``.
    """
    degree = _checks.integer("degree", degree, 1)
    return Kernel(
        "polynomial",
        POLYNOMIAL,
        _inverse(bandwidth),
        _checks.finite_number("constant", constant),
        degree,
    )


def exponential(bandwidth: float = 1.0) -> Kernel:
    """exp(<x, y> / bandwidth^2), the kernel of softmax attention."""
    return Kernel("exponential", EXPONENTIAL, _inverse(bandwidth))


def gaussian(bandwidth: float = 1.0) -> Kernel:
    """exp(-|x - y|^2 / (2 bandwidth^2)).

    scikit-learn: ``rbf_kernel(gamma=1 / (2 * bandwidth**2))``.
    """
    return Kernel("gaussian", GAUSSIAN, _inverse(bandwidth) / sqrt(2))


def laplace(bandwidth: float = 1.0) -> Kernel:
    """exp(-|x - y| / bandwidth) with the Euclidean distance.

    scikit-learn: ``gaussian_process.kernels.Matern(length_scale=bandwidth, nu=0.5)``.
    """
    return Kernel("laplace", LAPLACE, _inverse(bandwidth))


def inverse_multiquadric(bandwidth: float = 1.0) -> Kernel:
    """1 / sqrt(1 + |x - y|^2 / bandwidth^2).

    scikit-learn: ``RationalQuadratic(alpha=0.5, length_scale=bandwidth)``.
    """
    return Kernel("inverse_multiquadric", INVERSE_MULTIQUADRIC, _inverse(bandwidth), constant=1.0)


KERNELS: dict[str, Callable[[], Kernel]] = {
    "linear": linear,
    "polynomial": polynomial,
    "exponential": exponential,
    "gaussian": gaussian,
    "laplace": laplace,
    "inverse_multiquadric": inverse_multiquadric,
}


def as_kernel(kernel: Any) -> Kernel:
    """Return a kernel, given one or the name of one with its default parameters."""
    if isinstance(kernel, Kernel) and kernel.name in KERNELS:
        return kernel
    if isinstance(kernel, str) and kernel in KERNELS:
        return KERNELS[kernel]()
    names = ", ".join(sorted(KERNELS))
    hint = f" (call it: {kernel.__name__}())" if kernel in KERNELS.values() else ""
    raise ValueError(f"kernel must be a Kernel or one of {names}; got {kernel!r}{hint}")


def _inverse(bandwidth: float) -> float:
    return 1 / _checks.positive("bandwidth", bandwidth)
