"""Points of other libraries that are on a GPU already, under a kernel: they are not copied.

Only a Stein kernel takes a copy, in which the scores stand behind the points.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from thinformer.cuda import arrays, extremes, run, sums, tiles
from thinformer.cuda.arrays import OnGpu
from thinformer.cuda.halve import Geometry
from thinformer.cuda.jit import cuda
from thinformer.cuda.points import PointsOnGpu
from thinformer.halving.problem import make_factor, make_points
from thinformer.kernels import Kernel, linear
from thinformer.kernels.phi import STEIN, TABLE
from thinformer.support import checks


def place(points: OnGpu, kernel: Kernel, shift: bool) -> PointsOnGpu:
    """Return points (n, dim) on the current GPU under a kernel, checked as on the CPU.

    `shift` is that of `thinformer.halving.problem.make_points`.

    Raises
    ------
    NotImplementedError
        The GPU cannot compute the kernel.
    TypeError, ValueError
        The points are not finite, or the kernel does not fit them.
    """
    if kernel.labels:
        raise NotImplementedError(
            f"points on a GPU take kernels without labels; got {kernel.name} with labels"
        )
    if kernel.tag == TABLE:
        return of_matrix(points)
    if kernel.tag == STEIN:
        return with_scores(points, kernel)
    few = arrays.few_of(points, kernel)
    load = run.LOAD[points.dtype.name]
    variant, _, parameters, scales = run.describe(make_points(few, kernel, shift), load)
    called = variant.form == "function"
    if called and (points.strides[1] != 1 or points.dtype != points.computed_in):
        raise NotImplementedError(
            f"{points.name} on a GPU must be float32 or float64 for a function of your own, with"
            " the numbers of a row side by side; make them contiguous"
        )
    columns = 0 if called else points.shape[1]
    on_gpu = *arrays.window(points), columns, *map(cuda.to_device, (parameters, scales))
    return PointsOnGpu(variant, *on_gpu)


def of_matrix(matrix: OnGpu) -> PointsOnGpu:
    """Return the points of a Gram matrix (n, n)."""
    n, dtype = matrix.shape[0], matrix.computed_in
    if matrix.shape != (n, n):
        raise ValueError(
            f"points must be a Gram matrix (n, n) for kernel='precomputed'; got {matrix.shape}"
        )
    load = run.LOAD[matrix.dtype.name]
    found = extremes.inspected(*arrays.window(matrix), 1, n, load, dtype)
    extremes.check_matrices(matrix.name, *found)
    factor = make_factor(np.empty((0, n), dtype), linear())
    variant, _, parameters, scales = run.describe(factor, load)
    on_gpu = *arrays.window(matrix), 0, *map(cuda.to_device, (parameters, scales))
    return PointsOnGpu(variant, *on_gpu)


def with_scores(points: OnGpu, kernel: Kernel) -> PointsOnGpu:
    """Return a copy of points (n, dim) with their scores, under a Stein kernel."""
    (n, dim), dtype = points.shape, points.computed_in
    if np.shape(kernel.companion) != points.shape:
        raise ValueError(
            f"scores must have the shape of the points {points.shape}; "
            f"got {np.shape(kernel.companion)}"
        )
    with np.errstate(over="ignore"):
        scores = kernel.companion.astype(dtype)
    checks.finite("scores", bool(np.isfinite(scores).all()))
    few = arrays.few_of(points, kernel)
    described = make_points(few, replace(kernel, companion=np.zeros_like(few)))
    variant, _, parameters, scales = run.describe(described)
    with run.out_of_memory(n * (2 * dim * np.dtype(dtype).itemsize + 8)):
        both, every = cuda.device_array(n * 2 * dim, dtype), cuda.to_device(np.arange(n))
        window, geometry = arrays.window(points)
        own = geometry.first, *geometry[4:]
        behind = cuda.to_device(np.ascontiguousarray(scores).ravel())
        load, of_scores = run.LOAD[points.dtype.name], (0, dim, 1, dim)
        for source, at, loaded, first in (
            (window, own, load, 0), (behind, of_scores, tiles.same, dim),
        ):  # fmt: skip
            gather = sums.make_gather(loaded)[-(-n * dim // sums.THREADS), sums.THREADS]
            gather(source, at, every, both, (first, 2 * dim, 1, dim))
        on_gpu = tuple(map(cuda.to_device, (parameters, scales)))
    where = Geometry(0, 1, 0, 0, 2 * dim, 1, dim)
    return PointsOnGpu(variant, both, where, 2 * dim, *on_gpu)


def rows_of(points: OnGpu, rows: NDArray) -> NDArray:
    """Return some rows of points (n, dim), in the CPU's memory and the dtype of computations."""
    with arrays.readable(points):
        window, geometry = arrays.window(points)
        own = geometry.first, *geometry[4:]
        load = run.LOAD[points.dtype.name]
        return extremes.gathered(window, own, load, points.computed_in, rows)


def to_cpu(array: Any) -> NDArray:
    """Return a copy of an array of any library and dtype, in the CPU's memory."""
    interface = array.__cuda_array_interface__
    dtype, shape = np.dtype(interface["typestr"]), tuple(interface["shape"])
    if 0 in shape:
        return np.empty(shape, dtype)
    there = arrays.described("array", array, dtype)
    with arrays.readable(there):
        whole, first = arrays.flat(there)
        copied = whole.copy_to_host().view(dtype)
    strides = [stride * dtype.itemsize for stride in there.strides]
    return as_strided(copied[first:], shape, strides).copy()


def beside(owner: Any, array: NDArray) -> Any:
    """Return an array on the GPU of another one, for its library."""
    with arrays.readable(arrays.described("points", owner, np.dtype(np.int8))):
        return arrays.like(owner, cuda.to_device(np.ascontiguousarray(array)))
