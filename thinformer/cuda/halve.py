"""The kernel that halves buckets; a block of threads halves one bucket.

The steps are those of the CPU body. For the points x of a panel, the walk's inner products
<psi, k(x, .)> = sum_j eta_j (k(x_2j, x) - k(x_2j+1, x)) are summed over all pairs decided before
the panel, a tile of kernel values at a time. Then the panel's own pairs are decided in turn. A
kernel value lives in the registers of one thread only; the panel's own tile is in shared memory. So
a block's memory does not depend on the size of its bucket, and a bucket may have any size.

A comment at each ``syncthreads`` says which writes it separates from which reads.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from thinformer.cuda.jit import ALIGNED, cuda, device_function
from thinformer.cuda.patches import make_patches
from thinformer.cuda.tiles import PANEL, make_largest_norm
from thinformer.cuda.values import SQUARE, Variant, tile_rows
from thinformer.halving import steps

pair_distance = device_function(steps.pair_distance)
simple_threshold = device_function(steps.simple_threshold)
adaptive_threshold = device_function(steps.adaptive_threshold)
next_variance = device_function(steps.next_variance)
swaps = device_function(steps.swaps)


class Geometry(NamedTuple):
    """Where a factor's points are in its window.

    Column c < dim of row i of problem p is at
    ``first + sequences[p // heads] * batch + p % heads * head + i * row + c * column``.
    """

    first: int
    heads: int
    batch: int
    head: int
    row: int
    column: int
    dim: int


@functools.cache
def make_kernel(variant: Variant, threads: int) -> Any:
    """Return the kernel that halves all buckets of some rounds, for blocks of `threads` threads.

    `threads` is a multiple of 32. The kernel's arguments::

        problems: window, other_window  (span,) the numbers of either factor
                  geometry, other_geometry  see `Geometry`; a kernel of one factor ignores the other
                  parameters  (problems, factors or terms, ...), or (1, ...) for all problems; see
                    `values`
                  scales  (terms, dim), columns are multiplied by them
                  sequences  (problems / heads,) int64; -1 to leave its problems alone
        rounds:   table  (rounds, 3) int64: pairs, buckets, and where the round's coins are
                  factors  (rounds, 2), the thresholds' factor in buckets of pairs // buckets pairs,
                    and in buckets of one pair more
                  first_round, last_round  this launch runs first_round .. last_round-1
                  share  blocks a problem; they take its buckets in turn
        draws:    draws  (problems, ...), the uniforms of all rounds, then the coins
        points:   left  (problems, 2 * length) int64, the positions left before each round
                  kept  (problems, size) int64, the positions left after the last round
    """
    halve_bucket = make_halve_bucket(variant, threads)
    ZERO = variant.dtype(0)

    def halve(
        window, geometry, other_window, other_geometry, parameters, scales, sequences,
        table, factors, first_round, last_round, share, draws, left, kept,
    ):  # fmt: skip
        problem, first_bucket = cuda.blockIdx.x // share, cuda.blockIdx.x % share
        first, heads, batch, head, row, column, dim = geometry
        sequence = sequences[problem // heads]
        if sequence < 0:
            return
        start = first + sequence * batch + problem % heads * head
        first, heads, batch, head, other_row, other_column, other_dim = other_geometry
        other_start = first + sequence * batch + problem % heads * head
        own = parameters[min(problem, parameters.shape[0] - 1)]
        length = left.shape[1] // 2
        for i in range(first_round, last_round):
            pairs, buckets, coins = table[i, 0], table[i, 1], table[i, 2]
            before = 2 * (length - 2 * pairs)  # where the points before this round are
            for bucket in range(first_bucket, buckets, share):
                begin = bucket * pairs // buckets
                end = (bucket + 1) * pairs // buckets
                positions = left[problem, before + 2 * begin : before + 2 * end]
                if i + 1 < table.shape[0]:
                    after = 2 * (length - pairs)
                    out = left[problem, after + begin : after + end]
                else:
                    out = kept[problem, begin:end]
                at = length - 2 * pairs + begin
                halve_bucket(
                    window, (start, row, column, dim),
                    other_window, (other_start, other_row, other_column, other_dim),
                    own, scales, positions,
                    factors[i, end - begin - pairs // buckets],
                    draws[problem, at : at + end - begin],
                    draws[problem, coins + bucket] != ZERO, out,
                )  # fmt: skip
            cuda.syncthreads()  # the points of this round before the next one reads them

    return cuda.jit(halve)


def make_halve_bucket(variant: Variant, threads: int) -> Any:
    """Return the function that halves one bucket.

    The function's arguments::

        window, other_window  as the kernel has them
        place, other_place  where the problem's first point is in its window, the strides of rows
          and columns, and the number of columns
        parameters, scales  of the problem
        positions  (2 * pairs,) int64, the bucket's points
        factor  of the thresholds
        uniforms  (pairs,)
        coin  whether to keep the other half
        out  (pairs,) int64, written: the positions kept; until the end, whether a pair's second
          point was chosen
    """
    ROWS = tile_rows(threads)
    dtype, shifted = variant.dtype, variant.shifted
    ZERO = dtype(0)
    patches = make_patches(variant, threads)
    STAGED, STAGED_ROWS, STAGED_PANEL, POINTS = patches.staged
    corner, tabulate, add_signed, copy_patch, _, add_parts = patches.functions
    largest_norm = make_largest_norm(variant.load, threads, dtype)
    decide = make_decide(dtype, variant.adaptive)

    @device_function
    def halve_bucket(
        window, place, other_window, other_place, parameters, scales,
        positions, factor, uniforms, coin, out,
    ):  # fmt: skip
        """Write the positions that a bucket keeps to `out`, (pairs,)."""
        rows = cuda.shared.array(STAGED_ROWS, STAGED, ALIGNED)
        panel = cuda.shared.array(STAGED_PANEL, STAGED, ALIGNED)
        own = cuda.shared.array((PANEL, PANEL), dtype)  # the panel's kernel values with itself
        sums = cuda.shared.array(PANEL, dtype)
        patch = cuda.local.array(SQUARE, dtype)
        other = cuda.local.array(SQUARE, dtype)
        part = cuda.local.array(POINTS, dtype)  # this thread's part of the sums

        thread = cuda.threadIdx.x
        row, point = corner()
        scale, constant, degree = parameters[0, 0], parameters[0, 1], parameters[0, 2]
        last = parameters.shape[0] - 1
        other_factor = parameters[last, 0], parameters[last, 1], parameters[last, 2]
        if shifted:
            constant = largest_norm(window, place, positions, scale)
        state, points = ZERO, positions.size

        for begin in range(0, points, PANEL):
            end = min(begin + PANEL, points)
            for j in range(POINTS):
                part[j] = ZERO
            for tile in range(0, end, ROWS):
                tabulate(
                    patch, other, rows, panel, window, place, other_window, other_place,
                    positions, tile, begin, (scale, constant, degree), other_factor, parameters,
                    scales,
                )  # fmt: skip
                at = tile + row
                if at < begin:
                    add_signed(part, patch, out, at)
                elif at < end:
                    copy_patch(own, at - begin, point, patch)
            add_parts(sums, part)
            state = decide(own, sums, begin, end, state, factor, uniforms, out)
            cuda.syncthreads()  # all is read before the next panel; `out` is written
        for pair in range(thread, points // 2, threads):
            swap = out[pair] != 0
            out[pair] = positions[2 * pair + (1 if swap != coin else 0)]

    return halve_bucket


def make_decide(dtype: type, adaptive: bool) -> Any:
    """Return the function that decides the pairs of a panel, with either kind of thresholds."""
    PAIRS = PANEL // 2

    @device_function
    def decide(own, sums, begin, end, state, factor, uniforms, out):
        """Write whether the pairs of points begin .. end-1 are swapped to `out`; return the state.

        own, sums : (PANEL, PANEL) and (PANEL,), the panel's kernel values with itself and the sums
            over all pairs before it, the latter updated
        state : of the pairs before, the largest b; or the variance of adaptive thresholds
        uniforms, out : (pairs,), of the bucket
        """
        distance = cuda.shared.array(PAIRS, dtype)
        uniform = cuda.shared.array(PAIRS, dtype)
        thread, pairs = cuda.threadIdx.x, (end - begin) // 2
        if thread < pairs:
            i, j = 2 * thread, 2 * thread + 1
            distance[thread] = pair_distance(own[i, i], own[i, j], own[j, i], own[j, j])
            uniform[thread] = uniforms[begin // 2 + thread]
        for pair in range(pairs):
            # the sums of this pair are final: the pair before added to them
            cuda.syncthreads()
            i, j = 2 * pair, 2 * pair + 1
            b = distance[pair]
            if adaptive:
                a = adaptive_threshold(b, state, factor)
                state = next_variance(state, b, a)
            else:
                state = max(state, b)
                a = simple_threshold(b, state, factor)
            # every thread takes the decision; KH's first pair keeps its first point
            drawn = adaptive or begin + pair > 0
            swap = drawn and swaps(uniform[pair], a, sums[i] - sums[j])
            # only sums of later pairs change, so none is read at the same time
            if j < thread and thread < PANEL:
                step = own[i, thread] - own[j, thread]
                sums[thread] += -step if swap else step
            if thread == 0:
                out[begin // 2 + pair] = swap
        return state

    return decide


def threads_for(largest_bucket: int, dtype: type) -> int:
    """Return the number of threads of a block.

    More threads have larger tiles; twice the bytes would not fit the 48 KB of shared memory.
    """
    most = 1024 // np.dtype(dtype).itemsize
    return min(most, 64 if largest_bucket <= 64 else 128 if largest_bucket <= 256 else 256)
