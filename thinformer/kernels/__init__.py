"""Reproducing kernels k(x, y), each with its formula and its name in scikit-learn or SciPy.

`thinformer.thin` takes a kernel, or its name. ``a + b`` and ``2.5 * a`` are kernels too; `pairwise`
and `of_products` make a kernel from a function of your own.

- `catalogue`: a function for each kernel, which returns a `Kernel`.
- `labels`: kernels times labels of the points.
- `kernel`: the class `Kernel`.
- `phi`: the formulas, which each body compiles for its own target.
"""

from thinformer.kernels.catalogue import (
    energy,
    exponential,
    gaussian,
    inverse_multiquadric,
    laplace,
    linear,
    matern,
    of_products,
    pairwise,
    polynomial,
    rational_quadratic,
    sobolev,
    stein,
)
from thinformer.kernels.kernel import Kernel
from thinformer.kernels.labels import gradient_free_stein, with_labels

__all__ = [
    "Kernel",
    "energy",
    "exponential",
    "gaussian",
    "gradient_free_stein",
    "inverse_multiquadric",
    "laplace",
    "linear",
    "matern",
    "of_products",
    "pairwise",
    "polynomial",
    "rational_quadratic",
    "sobolev",
    "stein",
    "with_labels",
]
