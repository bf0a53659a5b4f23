"""A batch as a list of independent problems, which is all that the bodies know.

Batches, heads, strides and layouts end here: row i, column c of a factor's points in problem p is
``window[first[p] + i * row + c * column]``, a place in the caller's own memory.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from thinformer.kernels import LINEAR, Kernel

SCALE, CONSTANT, DEGREE = range(3)  # columns of a factor's parameters


class Factor(NamedTuple):
    """One factor of the problems' kernel, phi on one set of points.

    window : (span,) read-only array over the memory of the points of all problems
    first : (problems,) int64, where row 0 of each problem is in the window
    row, column : distances in the window between neighbouring rows and columns
    dim : columns; 0 where the kernel has no such factor
    tag : which phi
    parameters : (problems, 3), each problem's SCALE, CONSTANT and DEGREE
    """

    window: NDArray
    first: NDArray
    row: int
    column: int
    dim: int
    tag: int
    parameters: NDArray


def make_factor(points: NDArray, kernel: Kernel) -> Factor:
    """Return the factor `kernel` on points (..., S, dim), whose leading axes are the problems.

    Memory is shared with `points` whatever its strides; a dtype that the bodies compute in is
    assumed.
    """
    window, offset, strides = _window(points)
    first = np.full(points.shape[:-2], offset, np.int64)
    for axis, stride in enumerate(strides[:-2]):
        steps = np.arange(points.shape[axis], dtype=np.int64) * stride
        first += steps.reshape(-1, *(1,) * (first.ndim - 1 - axis))
    limits = np.finfo(points.dtype)
    if not float(limits.tiny) <= kernel.scale <= float(limits.max):
        raise ValueError(
            f"kernel {kernel.name} has a bandwidth beyond the range of {points.dtype}: "
            f"its inverse is {kernel.scale:.3g}"
        )
    parameters = np.empty((first.size, 3), points.dtype)
    parameters[:] = kernel.scale, kernel.constant, kernel.degree
    return Factor(
        window, first.ravel(), strides[-2], strides[-1], points.shape[-1], kernel.tag, parameters
    )


def no_factor(other: Factor) -> Factor:
    """Return the factor that is missing where the kernel is `other` alone."""
    return other._replace(dim=0, tag=LINEAR)


def _window(array: NDArray) -> tuple[NDArray, int, list[int]]:
    """A flat read-only view of an array's memory, its first element's place, and its strides.

    The bodies see one type of array whatever the layout, so they are compiled once a dtype.
    """
    itemsize = array.itemsize
    if not array.flags.aligned or any(stride % itemsize for stride in array.strides):
        array = array.copy()
    strides = [stride // itemsize for stride in array.strides]
    reach = [(n - 1) * stride for n, stride in zip(array.shape, strides, strict=True)]
    lowest = array[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in strides)]
    span = 1 + sum(abs(r) for r in reach) if math.prod(array.shape) else 0
    window = as_strided(lowest, (span,), (itemsize,), writeable=False)
    return window, -sum(min(r, 0) for r in reach), strides
