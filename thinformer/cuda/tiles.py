"""Tiles of kernel values inside a block of threads.

A tile holds k(x, y) for the PANEL points y of a panel and half as many rows x as the block has
threads. Every thread owns a patch of 4 x 4 of its values, in registers, and adds up their inner
products (or squared distances), a few columns of the points at a time. These columns are staged in
shared memory, transposed, so that a thread reads the 4 rows of its patch as one vector and the 4
points as another one: 2 reads for 16 multiply-adds.
"""

from __future__ import annotations

import numpy as np

from thinformer.cuda.jit import cuda, device_function
from thinformer.kernels import phi

PANEL = 32  # points
PATCH = 4  # rows of a thread's patch, and points: a vector of four floats
DEPTH = 32  # columns staged at once
LOG2_LANES = 3
LANES = 1 << LOG2_LANES  # threads that read neighbouring columns of one row: a sector of 32 bytes
STEPS = DEPTH // LANES
PAD = 4  # added to the rows of shared arrays, so that these threads write to different banks

# half precision is read as integers: NumPy has no bfloat16, and Numba compiles CUDA's half
# precision with another compiler
HALF_SCALE = np.float32(2.0**112)  # the difference between the exponents of float16 and float32
HALF_SIGN = np.uint32(0x8000)
HALF_MAGNITUDE = np.uint32(0x7FFF)
HALF_INFINITY = np.uint32(0x7C00)
INFINITY = np.uint32(0x7F800000)
TO_SIGN = np.uint32(16)
TO_FRACTION = np.uint32(13)


sobolev_factor = device_function(phi.sobolev_factor)


def same(number):
    """Return a float32 or float64 as it is."""
    return number


def of_bfloat16(bits):
    """Return a bfloat16 as the float32 whose upper half it is."""
    return np.uint32(np.uint32(bits) << TO_SIGN).view(np.float32)


def of_float16(bits):
    """Return a float16 as a float32, exactly; also subnormal numbers, infinity and NaN."""
    word = np.uint32(bits)
    magnitude = np.uint32(word & HALF_MAGNITUDE)
    fraction = np.uint32(magnitude << TO_FRACTION)
    if magnitude >= HALF_INFINITY:
        number = np.uint32(fraction | INFINITY).view(np.float32)
    else:
        number = fraction.view(np.float32) * HALF_SCALE
    return -number if word & HALF_SIGN else number


@device_function
def add_products(patch, rows, panel, row, point, depth, scales, coefficients, column):
    """Add the products of `depth` staged columns to a patch (PATCH * PATCH,) of inner products."""
    for d in range(depth):
        for i in range(PATCH):
            for j in range(PATCH):
                patch[PATCH * i + j] += rows[d, row + i] * panel[d, point + j]


@device_function
def add_scaled_products(patch, rows, panel, row, point, depth, scales, coefficients, column):
    """Add the products of `depth` staged columns, each times its scale, to a patch."""
    for d in range(depth):
        scale = scales[column + d]
        for i in range(PATCH):
            x = rows[d, row + i] * scale
            for j in range(PATCH):
                patch[PATCH * i + j] += x * (scale * panel[d, point + j])


@device_function
def add_distances(patch, rows, panel, row, point, depth, scales, coefficients, column):
    """Add the squared differences of `depth` staged columns to a patch of squared distances.

    The difference is taken before anything is rounded, so that close points that are far from the
    others keep their digits.
    """
    for d in range(depth):
        scale = scales[column + d]
        for i in range(PATCH):
            for j in range(PATCH):
                difference = scale * (rows[d, row + i] - panel[d, point + j])
                patch[PATCH * i + j] += difference * difference


@device_function
def multiply_sobolev(patch, rows, panel, row, point, depth, scales, coefficients, column):
    """Multiply a patch by the Sobolev kernel's factors of `depth` staged columns."""
    for d in range(depth):
        for i in range(PATCH):
            for j in range(PATCH):
                patch[PATCH * i + j] *= sobolev_factor(
                    rows[d, row + i], panel[d, point + j], coefficients
                )


def make_stage(load, threads):
    """Return the function that stages columns of points; `load` converts their numbers."""
    load = device_function(load)
    AT_ONCE = threads // LANES

    @device_function
    def stage(out, rows, window, place, positions, first, column, depth, scale):
        """Write out[d, r] = scale * (column `column + d` of the point at positions[first + r]).

        Rows after the last position repeat the last point, whose values exist under any kernel.
        Neighbouring threads take LANES columns of one row, then of the next row: reads are of whole
        sectors, and with LANES * PAD = 32 banks no two threads of a warp write to the same bank.
        """
        start, row_stride, column_stride, _ = place
        lane, last = cuda.threadIdx.x & (LANES - 1), positions.size - 1
        for r in range(cuda.threadIdx.x >> LOG2_LANES, rows, AT_ONCE):
            at = start + positions[min(first + r, last)] * row_stride + column * column_stride
            for step in range(STEPS):  # of constant length: unrolled, in few registers
                d = lane + LANES * step
                if d < depth:
                    out[d, r] = load(window[at + d * column_stride]) * scale

    return stage


def make_sum_up(stage, add, tile_rows, first):
    """Return the function that computes a patch: `first`, then `add` for each column of points."""

    @device_function
    def sum_up(
        patch, rows, panel, window, place, positions, tile, begin, scale, scales, coefficients
    ):
        """Write a thread's patch of a tile: rows from point `tile` on, a panel from `begin` on.

        patch : (PATCH * PATCH,), local memory
        rows, panel : shared arrays to stage the columns of both in
        scale : all columns are multiplied by it, in staging
        scales : (dim,), the factor that `add` multiplies each column by
        """
        row = PATCH * (cuda.threadIdx.x >> LOG2_LANES)
        point = PATCH * (cuda.threadIdx.x & (LANES - 1))
        dim = place[3]
        for i in range(PATCH * PATCH):
            patch[i] = first
        for column in range(0, dim, DEPTH):
            depth = min(DEPTH, dim - column)
            stage(rows, tile_rows, window, place, positions, tile, column, depth, scale)
            stage(panel, PANEL, window, place, positions, begin, column, depth, scale)
            cuda.syncthreads()  # staged before it is read
            add(patch, rows, panel, row, point, depth, scales, coefficients, column)
            cuda.syncthreads()  # read before it is staged anew

    return sum_up


def make_largest_in_block(threads, dtype):
    """Return the function that finds the largest number among the threads of a block."""

    @device_function
    def largest_in_block(number):
        """Return the largest number to all threads; a barrier must come before the next call."""
        shared = cuda.shared.array(threads, dtype)
        thread = cuda.threadIdx.x
        shared[thread] = number
        others = threads // 2
        while others > 0:
            cuda.syncthreads()  # the step before wrote what is read
            if thread < others:
                shared[thread] = max(shared[thread], shared[thread + others])
            others //= 2
        cuda.syncthreads()
        return shared[0]

    return largest_in_block


def make_largest_norm(load, threads, dtype):
    """Return the function that finds the largest squared norm of a bucket's points."""
    load = device_function(load)
    largest_in_block = make_largest_in_block(threads, dtype)
    ZERO = dtype(0)
    AT_ONCE = threads // LANES

    @device_function
    def largest_norm(window, place, positions, scale):
        """Return max |scale * x|^2 of the points to all threads; LANES threads share a row."""
        parts = cuda.shared.array(threads, dtype)
        start, row_stride, column_stride, dim = place
        thread = cuda.threadIdx.x
        lane = thread & (LANES - 1)
        largest = ZERO
        for first in range(0, positions.size, AT_ONCE):
            r = first + (thread >> LOG2_LANES)
            part = ZERO
            if r < positions.size:
                at = start + positions[r] * row_stride
                for d in range(lane, dim, LANES):
                    x = load(window[at + d * column_stride]) * scale
                    part += x * x
            parts[thread] = part
            cuda.syncthreads()  # all parts of a row before they are added
            if lane == 0:
                norm = ZERO
                for i in range(LANES):
                    norm += parts[thread + i]
                largest = max(largest, norm)
            cuda.syncthreads()  # read before they are written anew
        return largest_in_block(largest)

    return largest_norm
