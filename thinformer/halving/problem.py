"""A batch as a list of independent problems, which is all that the bodies know.

The bodies know no batches, heads, or layouts of arrays: row i, column c of a factor's points in
problem p is ``window[first[p] + i * row + c * column]``, in the caller's own memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from thinformer.kernels import Kernel, linear
from thinformer.kernels.kernel import Labels
from thinformer.kernels.phi import (
    ENERGY,
    EXPONENTIAL,
    LINEAR,
    MATERN_3_2,
    MATERN_5_2,
    OF_DISTANCE,
    SOBOLEV,
    STEIN,
    TABLE,
    kind_of,
)
from thinformer.support import checks

SCALE, CONSTANT, DEGREE = range(3)  # columns of a factor's parameters
# columns of a point set's parameters: the weight, and the first coefficient
WEIGHT, FIRST = 0, 3
SQUARED, ADDED = range(2)  # places in the companion of points with labels


class Factor(NamedTuple):
    """One factor of the problems' kernel, phi on one set of points.

    window : (span,) read-only array over the memory of the points of all problems
    first : (problems,) int64, where row 0 of each problem is in the window
    row, column : distances in the window between neighbouring rows and columns
    dim : columns; 0 if the kernel has no such factor
    tag : of phi
    parameters : (problems, 3), each problem's SCALE, CONSTANT and DEGREE
    """

    window: NDArray
    first: NDArray
    row: int
    column: int
    dim: int
    tag: int
    parameters: NDArray


class Products(NamedTuple):
    """Problems whose kernel is the product of two factors, each phi of an inner product."""

    keys: Factor
    values: Factor


class Points(NamedTuple):
    """Problems of points under any kernel, a sum of terms.

    window, first, row, column, dim : as in Factor
    tags : (terms,) int64
    kinds : the kinds of the tags (`kind_of`), increasing, each as a tuple of so many None: Numba's
        type of a tuple has its length, so that loops are compiled for these kinds alone
    scales : (terms, dim)
    parameters : (terms, 10), each term's WEIGHT, CONSTANT, DEGREE and coefficients
    companion : (n, n) Gram matrix, whose row numbers the points are; or a compiled function; or
        (2,) the numbers SQUARED and ADDED of labels, which are the points' last columns; or an
        empty array (0, 0)
    """

    window: NDArray
    first: NDArray
    row: int
    column: int
    dim: int
    tags: NDArray
    kinds: tuple[tuple[None, ...], ...]
    scales: NDArray
    parameters: NDArray
    companion: Any


Problem = Products | Points


def make_factor(points: NDArray, kernel: Kernel) -> Factor:
    """Return the factor `kernel` on points (..., S, dim), whose leading axes are the problems.

    It shares the memory of `points`, which may have any strides. The dtype must be one that the
    bodies compute in.
    """
    window, first, row, column = _rows(points)
    _check_scale(kernel, points.dtype)
    parameters = np.empty((first.size, 3), points.dtype)
    parameters[:] = kernel.scale, kernel.constant, kernel.degree
    return Factor(window, first, row, column, points.shape[-1], kernel.tag, parameters)


def head_factor(tokens: NDArray, kernel: Kernel | None = None) -> Factor:
    """Return the factor on tokens (B, S, H, dim); the heads of all sequences are the problems.

    Without a kernel it is the inner product.
    """
    return make_factor(tokens.transpose(0, 2, 1, 3), linear() if kernel is None else kernel)


def no_factor(other: Factor) -> Factor:
    """Return the second factor of a kernel that has only one, `other`."""
    return other._replace(dim=0, tag=LINEAR)


def make_points(points: NDArray, kernel: Kernel, shift: bool = False) -> Points:
    """Return the problems of points (..., S, dim) under any kernel.

    Parameters
    ----------
    shift : bool
        Multiply a lone exponential kernel by the constant that keeps it from overflowing.

    Raises
    ------
    TypeError, ValueError
        The kernel does not fit the points: other dimensions, points outside its domain, parameters
        or values beyond the range of their dtype.
    """
    dtype, dim = points.dtype, points.shape[-1]
    terms = kernel.summands
    tags = np.array([term.tag for term in terms], np.int64)
    kinds = tuple((None,) * kind for kind in sorted({kind_of(tag) for tag in tags}))
    scales = np.empty((len(terms), dim), dtype)
    parameters = np.zeros((len(terms), FIRST + 7), dtype)
    companion: Any = _nothing(dtype)
    for term, of_term, scale in zip(terms, parameters, scales, strict=True):
        _check_scale(term, dtype)
        if isinstance(term.scale, tuple) and len(term.scale) != dim:
            raise ValueError(
                f"bandwidth must have one number for each of {dim} dimensions; "
                f"got {len(term.scale)}"
            )
        scale[:] = term.scale
        with np.errstate(over="ignore"):
            of_term[:FIRST] = term.weight, term.constant, term.degree
            of_term[FIRST : FIRST + len(term.coefficients)] = term.coefficients
        if not np.isfinite(of_term).all() or of_term[WEIGHT] == 0:
            raise ValueError(f"kernel {term.name} has parameters beyond the range of {dtype}")
        if term.tag == EXPONENTIAL:
            largest = _largest_norm(points, scale)
            if shift and not kernel.terms and not kernel.labels:
                of_term[CONSTANT] = largest
            elif largest > np.log(np.finfo(dtype).max):
                raise ValueError(
                    f"kernel exponential overflows on these points: |x|^2 / bandwidth^2 reaches "
                    f"{largest:.3g}; centre them or take a larger bandwidth"
                )
        if term.tag in (MATERN_3_2, MATERN_5_2, ENERGY) and points.size:
            with np.errstate(over="ignore"):
                span = np.ptp(points.reshape(-1, dim), axis=0) * scale
                too_far = not np.isfinite(np.sum(span**2))
            if too_far:  # infinity times exp(-infinity) is NaN
                raise ValueError(
                    f"kernel {term.name} overflows: squared distances over the squared bandwidth "
                    f"are beyond the range of {dtype}"
                )
        if term.tag == SOBOLEV and points.size and not (points.min() >= 0 and points.max() <= 1):
            raise ValueError(
                f"points must lie in [0, 1] for kernel sobolev; "
                f"got {points.min():.3g} to {points.max():.3g}"
            )
        if term.tag >= STEIN:
            points, companion = _accompany(points, term)
    if kernel.labels:
        points, companion = _labelled(points, kernel.labels)
    window, first, row, column = _rows(points)
    dim = points.shape[-1]  # with a companion, more than the columns that were given
    return Points(window, first, row, column, dim, tags, kinds, scales, parameters, companion)


def make_problem(points: NDArray, kernel: Kernel) -> Problem:
    """Return the problems of points (..., S, dim): Products if the kernel is phi of a product."""
    if kernel.terms or kernel.labels or kernel.tag >= OF_DISTANCE:
        return make_points(points, kernel)
    if isinstance(kernel.scale, tuple):
        make_points(points[..., :0, :], kernel)  # checks that it fits
        points = points * np.array(kernel.scale, points.dtype)
        kernel = replace(kernel, scale=1.0)
    factor = make_factor(points, kernel)
    return Products(factor, no_factor(factor))


def _accompany(points: NDArray, kernel: Kernel) -> tuple[NDArray, Any]:
    """Return the points that a kernel with a companion takes, and the companion."""
    n, companion = points.shape[-2], kernel.companion
    if kernel.tag == STEIN:
        if np.shape(companion) != points.shape:
            raise ValueError(
                f"scores must have the shape of the points {points.shape}; "
                f"got {np.shape(companion)}"
            )
        with np.errstate(over="ignore"):
            scores = companion.astype(points.dtype)
        checks.finite("scores", bool(np.isfinite(scores).all()))
        return np.concatenate([points, scores], axis=-1), _nothing(points.dtype)
    if kernel.tag == TABLE:
        if np.shape(companion) != (n, n) or points.ndim != 2:
            raise ValueError(
                f"kernel precomputed must be a matrix of the {n} points; got {np.shape(companion)}"
            )
        table = np.ascontiguousarray(companion, points.dtype).view()
        table.flags.writeable = False  # one type, so the loops are compiled once
        return np.arange(n, dtype=points.dtype)[:, None], table  # a point is its row's number
    if not hasattr(companion, "py_func"):
        raise TypeError(
            f"kernel must be compiled by numba.njit here (`thin` takes a plain function); "
            f"got {companion!r}"
        )
    check_function(companion, points)
    return points, companion


def _labelled(points: NDArray, labels: Labels) -> tuple[NDArray, NDArray]:
    """Return points (n, d) with their labels as further columns, and the two numbers of labels."""
    if points.shape[:-1] != labels.values.shape[:1]:
        raise ValueError(
            f"labels must have a row for each of the points {points.shape[:-1]}; "
            f"got {len(labels.values)}"
        )
    with np.errstate(over="ignore"):
        values = labels.values.astype(points.dtype)
        numbers = np.array([labels.squared, labels.constant], points.dtype)
    checks.finite("labels", bool(np.isfinite(values).all() and np.isfinite(numbers).all()))
    numbers.flags.writeable = False
    return np.concatenate([points, values], axis=-1), numbers


def check_function(function: Callable, points: NDArray) -> None:
    """Check on a few points that a user's function is symmetric and returns finite numbers."""
    rows = points.reshape(-1, points.shape[-1])
    few = rows[np.linspace(0, len(rows) - 1, min(8, len(rows))).astype(int)]
    K = np.array([[function(x, y) for y in few] for x in few])
    if K.size and (K.dtype.kind not in "biuf" or K.ndim != 2 or not np.isfinite(K).all()):
        raise ValueError("kernel must return finite numbers; on some of the points it does not")
    if K.size:
        checks.symmetric("kernel", K.astype(points.dtype))


def value_cost(problem: Points) -> int:
    """Return the cost of a kernel value, in operations of a matrix product: some 64 take 1.3 ns."""
    return len(problem.tags) * (48 + 8 * problem.dim)


def _nothing(dtype: np.dtype) -> NDArray:
    """Return the companion of kernels without one: an empty array, so that the type is the same."""
    nothing = np.empty((0, 0), dtype)
    nothing.flags.writeable = False
    return nothing


def _check_scale(kernel: Kernel, dtype: np.dtype) -> None:
    if isinstance(kernel.scale, str):
        raise ValueError(
            f"kernel {kernel.name} has bandwidth={kernel.scale!r}, which thin, mmd and compare "
            "take from their points; here it must be a number, such as median_distance(points)"
        )
    limits = np.finfo(dtype)
    for scale in np.atleast_1d(kernel.scale):
        if not float(limits.tiny) <= scale <= float(limits.max):
            raise ValueError(
                f"kernel {kernel.name} has a bandwidth beyond the range of {dtype}: "
                f"its inverse is {scale:.3g}"
            )


def _largest_norm(points: NDArray, scale: NDArray) -> float:
    """Return max |x|^2 of the scaled points, computed some rows at a time."""
    rows = points.reshape(-1, points.shape[-1])
    return max(
        (float(np.max(np.sum((rows[i : i + 2**16] * scale) ** 2, axis=1)))
         for i in range(0, len(rows), 2**16)), default=0.0,
    )  # fmt: skip


def _rows(points: NDArray) -> tuple[NDArray, NDArray, int, int]:
    """Return a window on the points, the place of each problem's row 0, and both strides."""
    window, offset, strides = _window(points)
    first = np.full(points.shape[:-2], offset, np.int64)
    for axis, stride in enumerate(strides[:-2]):
        steps = np.arange(points.shape[axis], dtype=np.int64) * stride
        first += steps.reshape(-1, *(1,) * (first.ndim - 1 - axis))
    return window, first.ravel(), strides[-2], strides[-1]


def _window(array: NDArray) -> tuple[NDArray, int, list[int]]:
    """Return a flat read-only view of an array's memory, the first element's place, and strides.

    The bodies see one type of array whatever the layout, so they are compiled once a dtype.
    """
    itemsize = array.itemsize
    if not array.flags.aligned or any(stride % itemsize for stride in array.strides):
        array = array.copy()
    strides = [stride // itemsize for stride in array.strides]
    dense = array.transpose(sorted(range(array.ndim), key=strides.__getitem__, reverse=True))
    if dense.flags.c_contiguous and array.size:
        window = dense.reshape(-1).view()  # `as_strided` below takes 20 microseconds
        window.flags.writeable = False
        return window, 0, strides
    reach = [(n - 1) * stride for n, stride in zip(array.shape, strides, strict=True)]
    lowest = array[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in strides)]
    span = 1 + sum(abs(r) for r in reach) if math.prod(array.shape) else 0
    window = as_strided(lowest, (span,), (itemsize,), writeable=False)
    return window, -sum(min(r, 0) for r in reach), strides
