"""Sums of kernel values over point sets, and swaps of points that make the MMD smaller.

Values are computed in the points' dtype, four are added up in it, and these sums in float64. The
order of a sum depends on the numbers of points alone.

`embed` and `square` walk over tiles, as `halve` does. In `swap` one point meets all candidates: a
thread has candidates of its own, and computes their values one by one (`pairs`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from thinformer.cuda.jit import ALIGNED, cuda, device_function
from thinformer.cuda.pairs import make_value
from thinformer.cuda.tiles import DEPTH, LANES, LOG2_LANES, PAD, PANEL, PATCH
from thinformer.cuda.values import SQUARE, Variant, make_tabulate, tile_rows

THREADS = 256  # of a block where a thread has points of its own


@functools.cache
def make_embed(variant: Variant, threads: int) -> Any:
    """Return the kernel that writes parts of sum_j w_j k(x, y_j), for blocks of `threads` threads.

    A block adds up `length` of the points y_j for a panel of points x. The kernel's arguments::

        window, place  see `pairs.make_value`
        parameters, scales  of the kernel
        positions  (32 * panels + m,) int64, the points x in whole panels, then the points y_j
        weights  (m in whole tiles,) in the points' dtype, 0 where there is no point
        panels, length  `length` is a multiple of a tile's rows
        out  (parts, 32 * panels) float64, written
    """
    walk = make_walk(variant, threads)
    add_groups = make_add_groups(threads)
    ROWS = tile_rows(threads)

    def embed(window, place, parameters, scales, positions, weights, panels, length, out):
        sums = cuda.shared.array(PANEL, np.float64)
        part = cuda.local.array(PATCH, np.float64)
        number, begin = cuda.blockIdx.x // panels, cuda.blockIdx.x % panels * PANEL
        for j in range(PATCH):
            part[j] = 0
        first = number * length
        for tile in range(first, min(first + length, weights.size), ROWS):
            # no row is among the panel's own points: all count once
            walk(part, window, place, parameters, scales, positions, weights, tile,
                 PANEL * panels, begin, -1, weights.size)  # fmt: skip
        add_groups(sums, part)
        if cuda.threadIdx.x < PANEL:
            out[number, begin + cuda.threadIdx.x] = sums[cuda.threadIdx.x]

    return cuda.jit(embed)


@functools.cache
def make_square(variant: Variant, threads: int) -> Any:
    """Return the kernel that writes parts of sum_ij w_i w_j k(x_i, x_j), for several sets.

    A block has a panel of points and `length` of the points up to its end; pairs of a panel with
    earlier points count twice, by symmetry. The kernel's arguments::

        window, place, parameters, scales  as in `make_embed`
        sets  (sets, n) int64
        weights  (n in whole tiles,) in the points' dtype, 0 where there is no point
        panels, length  `length` is a multiple of a tile's rows
        out  (sets, parts, panels) float64, written
    """
    walk = make_walk(variant, threads)
    add_groups = make_add_groups(threads)
    ROWS = tile_rows(threads)

    def square(window, place, parameters, scales, sets, weights, panels, length, out):
        sums = cuda.shared.array(PANEL, np.float64)
        part = cuda.local.array(PATCH, np.float64)
        begin, rest = cuda.blockIdx.x % panels * PANEL, cuda.blockIdx.x // panels
        number, chosen = rest % out.shape[1], rest // out.shape[1]
        positions = sets[chosen]
        end = min(begin + PANEL, positions.size)
        for j in range(PATCH):
            part[j] = 0
        first = number * length
        for tile in range(first, min(first + length, end), ROWS):
            walk(part, window, place, parameters, scales, positions, weights, tile, 0, begin,
                 begin, end)  # fmt: skip
        add_groups(sums, part)
        cuda.syncthreads()  # all sums before one thread reads them
        if cuda.threadIdx.x == 0:
            total = 0.0
            for c in range(end - begin):
                total += weights[begin + c] * sums[c]
            out[chosen, number, begin // PANEL] = total

    return cuda.jit(square)


def make_walk(variant: Variant, threads: int) -> Any:
    """Return the function that adds a tile's weighted values to a thread's sums.

    The function's arguments::

        part  (PATCH,) float64, this thread's part of the sums of its patch's points; added to
        window, place, parameters, scales, weights  as the kernels have them
        positions  the points
        tile, offset  the tile's first row, and where row 0 is in `positions`
        begin  where the panel is in `positions`
        doubled, end  rows before `doubled` count twice, rows from `end` on do not count
    """
    ROW_PITCH, PANEL_PITCH = tile_rows(threads) + PAD, PANEL + PAD
    dtype = variant.dtype
    ZERO = dtype(0)
    tabulate = make_tabulate(variant, threads)

    @device_function
    def walk(part, window, place, parameters, scales, positions, weights, tile, offset, begin,
             doubled, end):  # fmt: skip
        rows = cuda.shared.array((DEPTH, ROW_PITCH), dtype, ALIGNED)
        panel = cuda.shared.array((DEPTH, PANEL_PITCH), dtype, ALIGNED)
        patch = cuda.local.array(SQUARE, dtype)
        other = cuda.local.array(SQUARE, dtype)
        none = ZERO, ZERO, ZERO  # the parameters of factors
        tabulate(patch, other, rows, panel, window, place, window, place, positions, offset + tile,
                 begin, none, none, parameters, scales)  # fmt: skip
        row = tile + PATCH * (cuda.threadIdx.x >> LOG2_LANES)
        if row < end:
            for j in range(PATCH):
                total = ZERO
                for i in range(PATCH):
                    total += weights[row + i] * patch[PATCH * i + j]
                part[j] += 2 * total if row < doubled else total

    return walk


def make_add_groups(threads: int) -> Any:
    """Return the function that adds up what the threads of a block hold for a panel's points."""
    GROUPS = threads // LANES  # the threads of a group hold the same rows and all points

    @device_function
    def add_groups(sums, part):
        """Write the sums (PANEL,) of all groups' parts (PATCH,), in the order of the groups."""
        parts = cuda.shared.array((GROUPS, PANEL), np.float64)
        thread = cuda.threadIdx.x
        group, point = thread >> LOG2_LANES, PATCH * (thread & (LANES - 1))
        for j in range(PATCH):
            parts[group, point + j] = part[j]
        cuda.syncthreads()  # the parts before they are read
        if thread < PANEL:
            total = 0.0
            for g in range(GROUPS):
                total += parts[g, thread]
            sums[thread] = total

    return add_groups


@functools.cache
def make_add_up() -> Any:
    """Return the kernel that adds up parts (parts, n) to out (any,); a thread has one column."""

    def add_up(parts, out):
        i = cuda.grid(1)
        if i < out.size:
            total = 0.0
            for part in range(parts.shape[0]):
                total += parts[part, i]
            out[i] = total

    return cuda.jit(add_up)


@functools.cache
def make_diagonal(variant: Variant) -> Any:
    """Return the kernel that writes k(x, x); a thread has one point.

    The kernel's arguments: window, place, parameters, scales as in `make_embed`; at (n,) int64, the
    points; out (n,) float64, written.
    """
    value = make_value(variant)

    def diagonal(window, place, parameters, scales, at, out):
        i = cuda.grid(1)
        if i < at.size:
            out[i] = value(window, place, at[i], at[i], parameters, scales)

    return cuda.jit(diagonal)


@functools.cache
def make_gram(variant: Variant) -> Any:
    """Return the kernel that writes a Gram matrix; a thread has one entry.

    The kernel's arguments: window, place, parameters, scales as in `make_embed`; rows (s,) int64;
    out (s, s) float64, written.
    """
    value = make_value(variant)

    def gram(window, place, parameters, scales, rows, out):
        i = cuda.grid(1)
        if i < out.size:
            x, y = rows[i // rows.size], rows[i % rows.size]
            out[i // rows.size, i % rows.size] = value(window, place, x, y, parameters, scales)

    return cuda.jit(gram)


@functools.cache
def make_gather(load: Callable) -> Any:
    """Return the kernel that copies points; a thread has one number. `load` converts numbers.

    The kernel's arguments: window, place; index (n,) int64, the points; out (span,), written; to, a
    place in it, whose columns are copied.
    """
    load = device_function(load)

    def gather(window, place, index, out, to):
        i, n = cuda.grid(1), index.size
        start, row, step, _ = place
        begin, apart, across, columns = to
        if i < n * columns:
            column, point = i // n, i % n
            number = load(window[start + index[point] * row + column * step])
            out[begin + point * apart + column * across] = number

    return cuda.jit(gather)


@device_function
def precedes(value, place, other, at, old):
    """Whether a candidate is better than another: less, or else the present one, or the first."""
    return value < other or (value == other and (place == old or (at != old and place < at)))


def make_best_of_block(threads: int) -> Any:
    """Return the function that finds the best candidate among those of a block's threads."""

    @device_function
    def best_of_block(value, place, old):
        """Return the best value and its place to all threads; `old` wins among equals."""
        values = cuda.shared.array(threads, np.float64)
        places = cuda.shared.array(threads, np.int64)
        thread = cuda.threadIdx.x
        cuda.syncthreads()  # what the call before left is read
        values[thread], places[thread] = value, place
        others = threads // 2
        while others > 0:
            cuda.syncthreads()  # the step before wrote what is read
            if thread < others:
                far = thread + others
                if precedes(values[far], places[far], values[thread], places[thread], old):
                    values[thread], places[thread] = values[far], places[far]
            others //= 2
        cuda.syncthreads()  # the best before it is read
        return values[0], places[0]

    return best_of_block


@functools.cache
def make_swap(variant: Variant, threads: int) -> Any:
    """Return the kernel that replaces points of a coreset by the candidates of least MMD.

    `thinformer.cpu.sums.swap` has the formula. Each block has candidates of its own, in all
    launches. A launch takes the steps first .. last-1 of the `size` + 1 steps of a pass. Step i
    carries out the exchange of point i - 1, which the step before decided, and finds the best
    candidate of every block for point i. So with several blocks a launch is one step; one block
    can take all steps in one launch.

    The kernel's arguments::

        window, place, parameters, scales  as in `make_embed`
        index  (n,) int64, the candidates as rows of the window
        potential  (n,) float64, as on the CPU; updated
        leaving  (n,) in the points' dtype, to work in
        taken  (n,) int8, whether a candidate is in the coreset; 0 where it may be there twice
        coreset  (size,) int64, places in `index`; updated
        factor  2 / size
        unique  whether a candidate may be taken only once
        first, last  of this launch
        values, places  (2, blocks), to work in: what the blocks found in this step and the last
        olds  (2,) int64, to work in: the points of these steps
        changes  (1,) int64, to which the number of changes is added
    """
    value = make_value(variant)
    best_of_block = make_best_of_block(threads)

    def swap(window, place, parameters, scales, index, potential, leaving, taken, coreset, factor,
             unique, first, last, values, places, olds, changes):  # fmt: skip
        block, blocks = cuda.blockIdx.x, cuda.gridDim.x
        own, step = block * threads + cuda.threadIdx.x, blocks * threads
        size, n = coreset.size, index.size
        for i in range(first, last):
            if i > 0:
                cuda.syncthreads()  # what one block found, in a launch of several steps
                old, turn = olds[(i - 1) % 2], (i - 1) % 2
                least, new = np.inf, old
                for b in range(cuda.threadIdx.x, blocks, threads):
                    if precedes(values[turn, b], places[turn, b], least, new, old):
                        least, new = values[turn, b], places[turn, b]
                least, new = best_of_block(least, new, old)
                if new != old:
                    for y in range(own, n, step):
                        coming = value(window, place, index[new], index[y], parameters, scales)
                        potential[y] += factor * (np.float64(coming) - np.float64(leaving[y]))
                        if y == old:
                            taken[y] -= unique
                        if y == new:
                            taken[y] += unique
                    if own == 0:
                        coreset[i - 1] = new
                        changes[0] += 1
            if i < size:
                old = coreset[i]
                least, new = np.inf, old
                for y in range(own, n, step):
                    goes = value(window, place, index[old], index[y], parameters, scales)
                    leaving[y] = goes
                    left = potential[y] - factor * np.float64(goes)
                    if (taken[y] == 0 or y == old) and precedes(left, y, least, new, old):
                        least, new = left, y
                least, new = best_of_block(least, new, old)
                if cuda.threadIdx.x == 0:
                    values[i % 2, block], places[i % 2, block] = least, new
                    if block == 0:
                        olds[i % 2] = old

    return cuda.jit(swap)
