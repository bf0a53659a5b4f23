"""Kernels times labels of the points: `with_labels`, and `gradient_free_stein` by it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from thinformer.kernels.catalogue import WITHOUT_BANDWIDTH, as_kernel, stein
from thinformer.kernels.kernel import MEDIAN, Kernel, Labels
from thinformer.kernels.phi import ENERGY, STEIN
from thinformer.support import checks

WIDE = 10.0  # a range of log ratios that gives a warning


def with_labels(
    kernel: Kernel | str, labels: ArrayLike, *, constant: float = 1.0, squared: float = 0.0
) -> Kernel:
    r"""A kernel of points with labels, ``k(x, x') (squared k(x, x') + constant + <y, y'>)``.

    A coreset under it represents the joint distribution of points x and labels y: sums over the
    points of a function of x, and of such a function times y. Supervised kernel thinning
    (arXiv 2410.13749) has ``constant=1`` for Nadaraya-Watson estimates, and ``constant=0``,
    ``squared=1`` for kernel ridge regression.

    Parameters
    ----------
    kernel : Kernel or str
        k, a kernel of this module or a sum of such kernels, but for `energy`, `pairwise` and
        `of_products`. A name stands for the kernel with the median distance of the points as its
        bandwidth, which `thin`, `mmd` and `compare` compute.
    labels : (n,) or (n, e) array
        The labels of the points that will be thinned, row by row: numbers, or one column for each
        class. No function standardises them; in units of their standard deviation, points and
        labels count alike.
    constant, squared : float
        Finite, not negative.

    Raises
    ------
    TypeError, ValueError
        The labels are not finite real numbers of shape (n,) or (n, e); the kernel is none of those
        above; a parameter is out of its range.

    Notes
    -----
    A kernel value takes O(d + e) time for points (n, d). The CUDA body has no such kernels.
    """
    checks.in_memory("labels", labels)
    values = np.asarray(labels)
    if values.dtype.kind not in "biuf":
        raise TypeError(
            "labels must be numbers, of classes one column of zeros and ones each; "
            f"got dtype {values.dtype}"
        )
    if values.ndim not in (1, 2) or values.shape[-1] == 0:
        raise ValueError(f"labels must have shape (n,) or (n, e); got {values.shape}")
    values = values.reshape(len(values), -1).astype(np.float64)
    checks.finite("labels", bool(np.isfinite(values).all()))
    numbers = [_not_negative("constant", constant), _not_negative("squared", squared)]
    return replace(_positive_definite(kernel), labels=Labels(values, *numbers))


def gradient_free_stein(
    scores: ArrayLike, log_ratio: ArrayLike, bandwidth: ArrayLike | str = 1.0
) -> Kernel:
    r"""The Stein kernel of a density p without gradients of p (arXiv 2207.02636).

    It is :math:`r(x) r(y) k_q(x, y)` with the `stein` kernel :math:`k_q` of another density q near
    p, such as a Gaussian, and :math:`r = q / p`. Its mean embedding under p is zero, so `thin`
    gives points that represent p, and the MMD is a discrepancy to p, as with `stein`. Its unit
    depends on the points: r is divided by its maximum over them.

    Parameters
    ----------
    scores : (n, d) float array
        The scores of q, :math:`\nabla \log q(x)`, of the points that will be thinned, row by row.
    log_ratio : (n,) float array
        :math:`\log q(x) - \log p(x)` of the same points, each up to a constant.
    bandwidth : float, sequence of d floats, or "median"
        See `stein`.

    Raises
    ------
    ValueError
        The log ratios are not n finite numbers; or as in `stein`.

    Warns
    -----
    UserWarning
        Log ratios have a range above 10: few points have nearly all weight.

    Notes
    -----
    q should be wider than p everywhere. Where p has mass and q has little, r is near 0, and points
    there cost nothing: too many of them are chosen, or have large weights from `debias`.
    """
    kernel = stein(scores, bandwidth)
    checks.in_memory("log_ratio", log_ratio)
    ratios = np.asarray(log_ratio, dtype=np.float64)
    if ratios.shape != (len(kernel.companion),):
        raise ValueError(
            f"log_ratio must have one number for each of {len(kernel.companion)} points; "
            f"got shape {ratios.shape}"
        )
    checks.not_empty("log_ratio", ratios, 0, "number")
    checks.finite("log_ratio", bool(np.isfinite(ratios).all()))
    span = float(np.ptp(ratios))
    if span > WIDE:
        warnings.warn(
            f"log_ratio has a range of {span:.3g}: the density of the scores is far from the "
            "other where points are, and few points have nearly all weight; a density that is "
            "nearer, or fewer points in its tails, are better",
            stacklevel=checks.depth(),
        )
    return with_labels(kernel, np.exp(ratios - ratios.max()), constant=0.0)


def _positive_definite(kernel: Any) -> Kernel:
    """Return the kernel that labels may multiply; by name, one that takes the median distance."""
    made = as_kernel(kernel)
    if isinstance(kernel, str) and made.name not in WITHOUT_BANDWIDTH:
        made = replace(made, scale=MEDIAN)
    if made.labels:
        raise ValueError("kernel has labels already; give them all at once, one column each")
    for term in made.summands:
        if term.tag > STEIN or term.tag == ENERGY:
            raise ValueError(
                "kernel must be positive definite and one of thinformer.kernels, no function of "
                f"your own and no Gram matrix; got {term.name}"
            )
    return made


def _not_negative(name: str, value: Any) -> float:
    number = checks.finite_number(name, value)
    if number < 0:
        raise ValueError(f"{name} must not be negative; got {value!r}")
    return number
