"""What the checks of arguments must know of points and Gram matrices that are on a GPU.

Of points they look at few: those with the least and the largest number of each column, and those of
the largest norm in units of a bandwidth. So the checks of `thinformer.halving.problem` find in them
the range of all points.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.cuda import draw, sums
from thinformer.cuda.halve import Geometry
from thinformer.cuda.jit import cuda, device_function
from thinformer.support import checks

PARTS = 64  # blocks that share a column, at most


@functools.cache
def make_extremes(load: Callable, dtype: type, threads: int) -> Any:
    """Return the kernel that finds extreme points; `load` converts their numbers.

    The blocks of a column find its least and largest number. Further blocks find the largest norm,
    for each row of `scales`. The kernel's arguments::

        window, geometry  of the points, see `halve.Geometry`; all problems count
        problems, n_points, parts  points of a problem, and blocks for a column
        scales  (norms, dim), columns are multiplied by them
        values  (dim + norms, 2, parts) float64, written: the negative of what is largest
        places  (dim + norms, 2, parts) int64, written: where the point begins in the window
        finite  (1,) bool, set to False where a number is not finite
    """
    load = device_function(load)
    best_of_block = sums.make_best_of_block(threads)
    LARGEST = np.finfo(dtype).max
    ZERO = dtype(0)

    def extremes(window, geometry, problems, n_points, parts, scales, values, places, finite):
        first, heads, batch, head, row, column, dim = geometry
        which, part = cuda.blockIdx.x // parts, cuda.blockIdx.x % parts
        least, most, low, high = np.inf, np.inf, np.int64(first), np.int64(first)
        for i in range(part * threads + cuda.threadIdx.x, problems * n_points, parts * threads):
            problem, point = i // n_points, i % n_points
            at = first + problem // heads * batch + problem % heads * head + point * row
            found = ZERO
            if which < dim:
                found = load(window[at + which * column])
            else:
                for d in range(dim):
                    x = load(window[at + d * column]) * scales[which - dim, d]
                    found += x * x
            if which < dim and not abs(found) <= LARGEST:
                finite[0] = False
            if found < least:
                least, low = np.float64(found), at
            if -found < most:
                most, high = np.float64(-found), at
        # of equal ones any: their numbers are the same
        least, low = best_of_block(least, low, -1)
        most, high = best_of_block(most, high, -1)
        if cuda.threadIdx.x == 0:
            values[which, 0, part], places[which, 0, part] = least, low
            values[which, 1, part], places[which, 1, part] = most, high

    return cuda.jit(extremes)


def gathered(
    window: Any, place: tuple[int, int, int, int], load: Callable, dtype: type, rows: NDArray
) -> NDArray:
    """Return rows (m,) of the points at a place in a window, (m, dim), in the CPU's memory."""
    m, dim = rows.size, place[3]
    out = cuda.device_array(m * dim, dtype)
    blocks = max(1, -(-dim * m // sums.THREADS))
    index = cuda.to_device(np.ascontiguousarray(rows))
    sums.make_gather(load)[blocks, sums.THREADS](window, place, index, out, (0, dim, 1, dim))
    return out.copy_to_host().reshape(m, dim)


def find(
    window: Any,
    geometry: Geometry,
    problems: int,
    n_points: int,
    load: Callable,
    scales: NDArray,
) -> tuple[NDArray, bool]:
    """Return extreme points (m, dim) of all problems, and whether all numbers are finite.

    `scales` (norms, dim) has a row for each norm whose largest value counts.
    """
    dtype: Any = scales.dtype.type
    threads = sums.THREADS
    kinds = geometry.dim + len(scales)
    parts = min(PARTS, max(1, -(-problems * n_points // threads)))
    values = cuda.device_array((kinds, 2, parts), np.float64)
    places = cuda.device_array((kinds, 2, parts), np.int64)
    finite = cuda.to_device(np.ones(1, np.bool_))
    padded = scales if len(scales) else np.zeros((1, geometry.dim), dtype)
    make_extremes(load, dtype, threads)[kinds * parts, threads](
        window, geometry, problems, n_points, parts, cuda.to_device(padded), values, places, finite
    )
    best = values.copy_to_host().argmin(axis=2)[..., None]
    chosen = np.take_along_axis(places.copy_to_host(), best, axis=2)
    at = 0, 1, geometry.column, geometry.dim
    rows = gathered(window, at, load, dtype, np.unique(chosen))
    return rows, bool(finite.copy_to_host()[0])


def inspected(
    window: Any, geometry: Geometry, problems: int, n: int, load: Callable, dtype: Any
) -> tuple[Any, Any, Any]:
    """Return three arrays on the GPU, of matrices (n, n): what `draw.make_inspect` writes."""
    largest, off = (cuda.to_device(np.zeros(problems, dtype)) for _ in range(2))
    finite = cuda.to_device(np.ones(problems, np.bool_))
    parts, threads = -(-n // draw.INSPECTED_ROWS), draw.THREADS
    inspect = draw.make_inspect(load, dtype, threads)
    inspect[problems * parts, threads](window, geometry, n, parts, largest, off, finite)
    return largest, off, finite


def check_matrices(name: str, largest: Any, off: Any, finite: Any) -> None:
    """Check that inspected matrices are finite and symmetric."""
    checks.finite(name, bool(finite.copy_to_host().all()))
    bounds, differences = largest.copy_to_host(), off.copy_to_host()
    if (differences > np.sqrt(np.finfo(bounds.dtype).eps) * bounds).any():
        raise ValueError(
            f"{name} must be symmetric; got entries that differ by {differences.max():.3g} from"
            " their mirror"
        )
