"""Tiles of the product of two factors whose numbers are in half precision, by tensor cores.

A warp computes 16 rows of a tile and all points of the panel. An instruction multiplies 16 rows
with 8 points, 16 columns at a time. The products are exact, and their sums are in float32. Lane
4 g + t of the warp gets the values of rows g and g + 8 of the instruction, with its points 2 t and
2 t + 1. Row g is given the tile's row 2 g, and row g + 8 its row 2 g + 1. So a thread holds both
points of a pair, as in `tiles`, but in a patch of 2 rows and 8 points.

Columns are staged as they are stored, two of a point in a word of 32 bits, point by point.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from thinformer.cuda.jit import SIMULATED, cuda, device_function
from thinformer.cuda.mma import make_mma
from thinformer.cuda.tiles import LANES, LOG2_LANES, PANEL, TO_SIGN, of_bfloat16, of_float16
from thinformer.cuda.values import SQUARE, Variant, tile_rows

WORD = np.uint32
WARP, LOG2_WARP = 32, 5
WARP_ROWS = 16  # of a tile
POINTS = 8  # of a patch
WORDS = 32  # staged at once: 64 columns
STEP = 8  # words of one instruction
# words of a staged row and point: lanes of a warp read from different banks
ROW_WORDS, PANEL_WORDS = WORDS + 2, WORDS + 4
LOWER = np.uint32(0xFFFF)

to_float32 = device_function(of_bfloat16)


def raw(bits, scale):
    """Return the bits of a number, not scaled."""
    return np.uint32(np.uint32(bits) & LOWER)


def scaled_bfloat16(bits, scale):
    """Return the bits of a bfloat16 times a power of two; they are exact in the normal range."""
    number = np.float32(to_float32(bits) * scale)
    return np.uint32(number.view(np.uint32) >> TO_SIGN)


@device_function
def corner():
    """Return the first row and point of this thread's patch in its tile."""
    thread = cuda.threadIdx.x
    # shifts and masks of what is not negative: others would cost registers
    return (thread >> LOG2_WARP) * WARP_ROWS + 2 * ((thread & 31) >> 2), 2 * (thread & 3)


@device_function
def place_in(point, j):
    """Return the point of the panel that is point j of a patch."""
    return point + 8 * (j >> 1) + (j & 1)


@device_function
def words_of(depth):
    """Return how many words an instruction multiplies of `depth` columns."""
    return ((depth + 15) >> 4) << 3


@device_function
def add_signed(part, patch, out, at):
    """Add a patch's decided pair, with its sign, to a thread's part (POINTS,) of the sums."""
    chosen = out[at >> 1]
    for j in range(POINTS):
        step = patch[j] - patch[POINTS + j]
        part[j] += -step if chosen else step


@device_function
def copy_patch(own, row, point, patch):
    """Write a patch (SQUARE,) to the panel's own kernel values (PANEL, PANEL)."""
    for j in range(POINTS):
        own[row, place_in(point, j)] = patch[j]
        own[row + 1, place_in(point, j)] = patch[POINTS + j]


@device_function
def store_patch(stored, width, row, point, patch):
    """Write a patch (SQUARE,) to the stored values of a span (width * width,)."""
    for j in range(POINTS):
        at = row * width + place_in(point, j)
        stored[at] = patch[j]
        stored[at + width] = patch[POINTS + j]


def make_add_parts(threads: int, dtype: type) -> Any:
    """Return the function that adds up the sums' parts, which the threads hold."""
    WARPS, IN_WARP = threads // WARP, WARP // 4  # lanes of a warp that hold the same points
    GROUPS = WARPS * IN_WARP
    ZERO = dtype(0)

    @device_function
    def add_parts(sums, part):
        """Write the sums (PANEL,) of all parts (POINTS,): of each warp, then of all warps."""
        parts = cuda.shared.array((GROUPS, PANEL), dtype)
        of_warps = cuda.shared.array((WARPS, PANEL), dtype)
        thread = cuda.threadIdx.x
        _, point = corner()
        for j in range(POINTS):
            parts[thread >> 2, place_in(point, j)] = part[j]
        cuda.syncthreads()  # the parts and the panel's own values before they are read
        warp, lane, total = thread >> LOG2_WARP, thread & 31, ZERO
        for group in range(IN_WARP):
            total += parts[warp * IN_WARP + group, lane]
        of_warps[warp, lane] = total
        cuda.syncthreads()
        if thread < PANEL:
            total = ZERO
            for i in range(WARPS):
                total += of_warps[i, thread]
            sums[thread] = total

    return add_parts


def make_stage(convert: Any, threads: int) -> Any:
    """Return the function that stages columns of points in words of two."""
    convert = device_function(convert)
    AT_ONCE = threads // LANES

    @device_function
    def stage(out, rows, window, place, positions, first, column, depth, scale):
        """Write out[r, w]: columns ``column + 2 w`` and the next of the point positions[first + r].

        Columns from `depth` on are zero. Rows after the last position repeat the last point.
        """
        start, row_stride, column_stride, _ = place
        lane, last = cuda.threadIdx.x & (LANES - 1), positions.size - 1
        for r in range(cuda.threadIdx.x >> LOG2_LANES, rows, AT_ONCE):
            at = start + positions[min(first + r, last)] * row_stride + column * column_stride
            # as many words as are multiplied
            for word in range(lane, words_of(depth), LANES):
                low, high, d = WORD(0), WORD(0), 2 * word
                if d < depth:
                    low = convert(window[at + d * column_stride], scale)
                if d + 1 < depth:
                    high = convert(window[at + (d + 1) * column_stride], scale)
                out[r, word] = WORD(WORD(high << TO_SIGN) | low)

    return stage


def make_multiply(load: Any) -> Any:
    """Return the function that adds the products of `words` staged words to a thread's patch."""
    if SIMULATED:
        return make_simulated_multiply(load)
    mma = make_mma("bf16" if load is of_bfloat16 else "f16")

    @device_function
    def multiply(patch, rows, panel, row, words):
        lane = cuda.threadIdx.x & 31
        group, t = lane >> 2, lane & 3
        for first in range(0, words, STEP):
            word = first + t
            a0, a1 = rows[row, word], rows[row + 1, word]
            a2, a3 = rows[row, word + 4], rows[row + 1, word + 4]
            for n in range(0, POINTS, 2):
                b0, b1 = panel[4 * n + group, word], panel[4 * n + group, word + 4]
                patch[n], patch[n + 1], patch[POINTS + n], patch[POINTS + n + 1] = mma(
                    a0, a1, a2, a3, b0, b1,
                    patch[n], patch[n + 1], patch[POINTS + n], patch[POINTS + n + 1],
                )  # fmt: skip

    return multiply


def make_simulated_multiply(load: Any) -> Any:
    """Return `multiply` for the simulator, where a thread computes its own patch."""

    def multiply(patch, rows, panel, row, words):
        _, point = corner()
        for j in range(POINTS):
            y = panel[place_in(point, j), :words]
            for i in range(2):
                x = rows[row + i, :words]
                patch[POINTS * i + j] += np.sum(numbers(x) * numbers(y), dtype=np.float32)

    def numbers(words):
        halves = np.concatenate([words & LOWER, words >> TO_SIGN])
        if load is of_float16:
            return halves.astype(np.uint16).view(np.float16).astype(np.float32)
        return (halves << TO_SIGN).view(np.float32)

    return multiply


def make_sum_up(convert: Any, load: Any, threads: int) -> Any:
    """Return the function that computes a patch of inner products of one factor."""
    stage, multiply = make_stage(convert, threads), make_multiply(load)
    ROWS, ZERO = tile_rows(threads), np.float32(0)

    @device_function
    def sum_up(patch, rows, panel, window, place, positions, tile, begin, scale):
        """Write a thread's patch of a tile: rows from point `tile` on, a panel from `begin` on."""
        row, _ = corner()
        dim = place[3]
        for i in range(SQUARE):
            patch[i] = ZERO
        for column in range(0, dim, 2 * WORDS):
            depth = min(2 * WORDS, dim - column)
            stage(rows, ROWS, window, place, positions, tile, column, depth, scale)
            stage(panel, PANEL, window, place, positions, begin, column, depth, scale)
            cuda.syncthreads()  # staged before it is read
            multiply(patch, rows, panel, row, words_of(depth))
            cuda.syncthreads()  # read before it is staged anew

    return sum_up


def make_tabulate(variant: Variant, threads: int) -> Any:
    """Return the function that writes a thread's patch of kernel values; see `values`.

    The keys' scale is applied to their products. That of the values is a power of two. It is
    applied to the values themselves if they are bfloat16, as their products may overflow; and to
    the products of float16, where it could lose digits of small values.
    """
    load = variant.load
    before = load is of_bfloat16
    sum_up = make_sum_up(raw, load, threads)
    sum_up_values = make_sum_up(scaled_bfloat16 if before else raw, load, threads)
    phi, other_phi = (device_function(term.phi) for term in variant.terms)
    ONE = variant.dtype(1)

    @device_function
    def tabulate(
        patch, other, rows, panel, window, place, other_window, other_place, positions, tile,
        begin, factor, other_factor, parameters, scales,
    ):  # fmt: skip
        scale, constant, degree = factor
        sum_up(patch, rows, panel, window, place, positions, tile, begin, ONE)
        for i in range(SQUARE):
            patch[i] = phi(patch[i] * (scale * scale), constant, degree)
        scale, constant, degree = other_factor
        sum_up_values(other, rows, panel, other_window, other_place, positions, tile, begin, scale)
        after = ONE if before else scale * scale
        for i in range(SQUARE):
            patch[i] *= other_phi(other[i] * after, constant, degree)

    return tabulate
