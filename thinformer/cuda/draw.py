"""The kernels that run before halving: they draw random numbers, and measure keys and values.

Their results stay on the GPU, so the CPU does not wait for them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from thinformer.cuda.jit import cuda, device_function
from thinformer.cuda.tiles import make_largest_in_block
from thinformer.halving.draws import GOLDEN, mix

THREADS = 256
MEASURED_ROWS = 256  # rows of a problem that one block measures
INSPECTED_ROWS = 32  # rows of a Gram matrix that one block inspects
WARP = 32

mixed = device_function(mix)
STEP = np.uint64(GOLDEN)
TO_53_BITS = np.uint64(11)
TO_COIN = np.uint64(63)
UNIT = 2.0**-53
HALF = np.int64(2**52)


@device_function
def word(key, stream, position):
    """Return the 64 bits at a position of a head's numbered stream."""
    return mixed(mixed(key + np.uint64(stream)) + np.uint64(position + 1) * STEP)


@device_function
def scaled(bits, size):
    """Return a number in 0 .. size-1: the top 53 bits as a float64 in [0, 1), times the size."""
    return np.int64(np.float64(bits >> TO_53_BITS) * UNIT * size)


@device_function
def on_ring(key, i, length, n_points):
    """Return the position drawn from stratum i, before it wraps around the sequence's end."""
    first, after = i * n_points // length, (i + 1) * n_points // length
    inside = scaled(word(key, 0, i + 1), after - first)
    return scaled(word(key, 0, 0), n_points) + first + inside


@device_function
def row_of(tokens, sequence, i):
    """Return the row in memory of a sequence's i-th token."""
    return tokens[sequence, i] if tokens.shape[0] > 0 else i


@device_function
def points_of(counts, sequence, n_points):
    """Return how many points of a sequence count."""
    return counts[sequence] if counts.shape[0] > 0 else n_points


@functools.cache
def make_draw(dtype: type) -> Any:
    """Return the kernel that draws what a schedule needs from a seed, as `make_draws` does.

    A block draws for one problem. The kernel's arguments::

        seed  (1,) int64
        draw_heads  how many heads have draws of their own
        heads  of a sequence; they are neighbouring problems
        sequences  (problems / heads,) int64, which sequence of the memory the heads belong to; -1
          to leave them alone
        tokens  (sequences, any) int64, the rows of each sequence that count; (0, 0) if all do
        counts  (sequences,) int64, how many rows of each sequence count; (0,) if `n_points` do
        table  (rounds, 3), as in `halve.make_kernel`
        n_points  of each sequence
        strided  whether to take every n-th position, or one of each stratum
        left  (problems, 2 * length) int64; its first `length` columns are written, the starting
          points
        draws  (problems, ...), written: the uniforms of all rounds, then the coins
        largest, finite  (problems,), written: 0 and True, from which `measure` begins
    """
    SCALE, ZERO = dtype(2.0**-52), dtype(0)

    def draw(
        seed, draw_heads, heads, sequences, tokens, counts, table, n_points, strided, left, draws,
        largest, finite,
    ):  # fmt: skip
        problem, thread = cuda.blockIdx.x, cuda.threadIdx.x
        sequence = sequences[problem // heads]
        if sequence < 0:
            return
        n_points = points_of(counts, sequence, n_points)
        if thread == 0:
            largest[problem], finite[problem] = ZERO, True
        key = mixed(mixed(np.uint64(seed[0])) + np.uint64(problem % draw_heads))
        length = left.shape[1] // 2
        for i in range(table.shape[0]):
            pairs, buckets, coins = table[i, 0], table[i, 1], table[i, 2]
            at = length - 2 * pairs
            for pair in range(thread, pairs, cuda.blockDim.x):
                bits = word(key, 2 * i + 1, pair) >> TO_53_BITS
                # a multiple of 2^-52 in [-1, 1): the conversion is the only rounding
                draws[problem, at + pair] = dtype(np.int64(bits) - HALF) * SCALE
            for bucket in range(thread, buckets, cuda.blockDim.x):
                draws[problem, coins + bucket] = dtype(word(key, 2 * i + 2, bucket) >> TO_COIN)
        if strided or length == n_points:
            stride = n_points // length
            for i in range(thread, length, cuda.blockDim.x):
                left[problem, i] = row_of(tokens, sequence, i * stride)
            return
        # positions on the ring increase: the last ones wrap around, and are written first
        straight, end = 0, length
        while straight < end:
            middle = (straight + end) // 2
            if on_ring(key, middle, length, n_points) < n_points:
                straight = middle + 1
            else:
                end = middle
        for i in range(thread, length, cuda.blockDim.x):
            position = on_ring(key, i, length, n_points)
            if i < straight:
                left[problem, i + length - straight] = row_of(tokens, sequence, position)
            else:
                left[problem, i - straight] = row_of(tokens, sequence, position - n_points)

    return cuda.jit(draw)


@functools.cache
def make_units() -> Any:
    """Return the kernel that writes numbers in [0, 1) of a numbered stream of every head.

    A thread writes one number. The kernel's arguments: seed (1,) int64; stream, its number; numbers
    (heads, any) float64, written.
    """

    def units(seed, stream, numbers):
        i = cuda.grid(1)
        if i < numbers.size:
            head, position = i // numbers.shape[1], i % numbers.shape[1]
            key = mixed(mixed(np.uint64(seed[0])) + np.uint64(head))
            bits = word(key, stream, position) >> TO_53_BITS
            numbers[head, position] = np.float64(bits) * UNIT

    return cuda.jit(units)


@functools.cache
def make_measure(load: Callable, dtype: type, threads: int) -> Any:
    """Return the kernel that measures keys and values; `load` converts their numbers.

    `parts` blocks measure one problem. A factor without columns is skipped. The kernel's
    arguments::

        keys, key_geometry, values, value_geometry  windows and `halve.Geometry`
        sequences, tokens, counts, n_points  as in `make_draw`
        length, parts  starting points and blocks of a problem
        left  (problems, 2 * length), the starting points in its first columns
        largest  (problems,), raised to the largest magnitude of the values at starting points
        finite  (problems,) bool, set to False where a key or value is not finite
    """
    load = device_function(load)
    largest_in_block = make_largest_in_block(threads, dtype)
    LARGEST = np.finfo(dtype).max
    ZERO = dtype(0)
    WARPS = threads // WARP

    @device_function
    def all_finite(window, geometry, problem, sequence, tokens, n_points, warp, step):
        """Return whether this thread's numbers are finite; a warp takes whole rows."""
        first, heads, batch, head, row, column, dim = geometry
        start = first + sequence * batch + problem % heads * head
        finite = True
        for i in range(warp, n_points, step):
            place = start + row_of(tokens, sequence, i) * row
            for c in range(cuda.threadIdx.x % WARP, dim, WARP):
                if not abs(load(window[place + c * column])) <= LARGEST:
                    finite = False
        return finite

    def measure(keys, key_geometry, values, value_geometry, sequences, tokens, counts, n_points,
                length, parts, left, largest, finite):  # fmt: skip
        # the grid has one axis, as its others take 65,535 blocks at most
        problem, thread = cuda.blockIdx.x // parts, cuda.threadIdx.x
        warp, step = cuda.blockIdx.x % parts * WARPS + thread // WARP, parts * WARPS
        first, heads, batch, head, row, column, dim = value_geometry
        sequence = sequences[problem // heads]
        if sequence < 0:
            return
        n_points = points_of(counts, sequence, n_points)
        # several threads may write, all of them the same
        if not all_finite(keys, key_geometry, problem, sequence, tokens, n_points, warp, step):
            finite[problem] = False
        if not all_finite(values, value_geometry, problem, sequence, tokens, n_points, warp, step):
            finite[problem] = False
        start = first + sequence * batch + problem % heads * head
        found = ZERO
        for i in range(warp, length, step):
            place = start + left[problem, i] * row
            for c in range(thread % WARP, dim, WARP):
                found = max(found, abs(load(values[place + c * column])))
        found = largest_in_block(found)
        if thread == 0:
            cuda.atomic.max(largest, problem, found)

    return cuda.jit(measure)


@functools.cache
def make_scale(dtype: type) -> Any:
    """Return the kernel that computes the attention kernel's parameters from what was measured.

    A thread computes those of one problem. The kernel's arguments: key_scale; largest (problems,);
    parameters (problems, 2, 3), written, as in `halve.make_kernel`.
    """
    LIMIT = np.finfo(dtype).maxexp - 2
    ZERO, ONE = dtype(0), dtype(1)

    def scale(key_scale, largest, parameters):
        problem = cuda.grid(1)
        if problem < largest.size:
            vmax = largest[problem]
            # a power of two brings vmax below 1 and its square in range; to multiply by it is
            # exact, and does not change what halving keeps
            exponent = min(max(math.frexp(vmax)[1], -LIMIT), LIMIT)
            power = dtype(math.ldexp(ONE, -exponent))
            parameters[problem, 0, 0], parameters[problem, 0, 1] = key_scale, ZERO
            parameters[problem, 0, 2] = parameters[problem, 1, 2] = ONE
            parameters[problem, 1, 0] = power
            parameters[problem, 1, 1] = (vmax * power) * (vmax * power)

    return cuda.jit(scale)


@functools.cache
def make_inspect(load: Callable, dtype: type, threads: int) -> Any:
    """Return the kernel that inspects Gram matrices; `load` converts their entries.

    `parts` blocks inspect one matrix. The kernel's arguments::

        window, geometry  the matrices
        n, parts  rows, and blocks of a matrix
        largest  (problems,) zeros, raised to the largest magnitude of an entry
        off  (problems,) zeros, raised to the largest difference of an entry from its mirror
        finite  (problems,) bool, True, set to False where an entry is not finite
    """
    load = device_function(load)
    largest_in_block = make_largest_in_block(threads, dtype)
    largest_difference = make_largest_in_block(threads, dtype)
    LARGEST = np.finfo(dtype).max
    ZERO = dtype(0)

    def inspect(window, geometry, n, parts, largest, off, finite):
        problem, thread = cuda.blockIdx.x // parts, cuda.threadIdx.x
        first, heads, batch, head, row, column, _ = geometry
        start = first + problem // heads * batch + problem % heads * head
        found, difference = ZERO, ZERO
        for i in range(cuda.blockIdx.x % parts, n, parts):
            for j in range(thread, i + 1, threads):
                entry = load(window[start + i * row + j * column])
                mirror = load(window[start + j * row + i * column])
                if not (abs(entry) <= LARGEST and abs(mirror) <= LARGEST):
                    finite[problem] = False
                found = max(found, max(abs(entry), abs(mirror)))
                difference = max(difference, abs(entry - mirror))
        found = largest_in_block(found)
        difference = largest_difference(difference)
        if thread == 0:
            cuda.atomic.max(largest, problem, found)
            cuda.atomic.max(off, problem, difference)

    return cuda.jit(inspect)
