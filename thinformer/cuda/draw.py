"""What a GPU does before it halves: draws its random numbers, and measures keys and values.

What the kernels find stays on the GPU, so that nothing waits for it.
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
MEASURED_ROWS = 256  # of a problem, for each block
INSPECTED_ROWS = 32  # of a Gram matrix, for each block
WARP = 32

mixed = device_function(mix)
STEP = np.uint64(GOLDEN)
TO_53_BITS = np.uint64(11)
TO_COIN = np.uint64(63)
UNIT = 2.0**-53
HALF = np.int64(2**52)


@device_function
def word(key, stream, position):
    """The 64 bits at a position of a head's numbered stream."""
    return mixed(mixed(key + np.uint64(stream)) + np.uint64(position + 1) * STEP)


@device_function
def scaled(bits, size):
    """Uniform in 0 .. size-1: the top 53 bits as a float64 in [0, 1), times the size."""
    return np.int64(np.float64(bits >> TO_53_BITS) * UNIT * size)


@device_function
def on_ring(key, i, length, n_points):
    """The position taken from stratum i, before it is wrapped around the sequence's end."""
    first, after = i * n_points // length, (i + 1) * n_points // length
    inside = scaled(word(key, 0, i + 1), after - first)
    return scaled(word(key, 0, 0), n_points) + first + inside


@device_function
def row_of(tokens, sequence, i):
    """Where in memory a sequence's i-th token is."""
    return tokens[sequence, i] if tokens.shape[0] > 0 else i


@functools.cache
def make_draw(dtype: type) -> Any:
    """Return the kernel that draws all that a schedule needs from a seed, as `make_draws` does.

    A block a problem. Its arguments: seed (1,) int64; how many heads have draws of their own; the
    number of heads; sequences and tokens; the table of rounds; n_points, of each sequence; whether
    positions are every n-th, or one of each stratum; and what it writes: left (problems, 2 *
    length), of which the first `length` are the starting points, draws (problems, ...), the
    uniforms of all rounds and then the coins, and largest and finite (problems,), from which
    `measure` begins.

    Heads of the same sequence are neighbouring problems: sequences (problems / heads,) int64 says
    which sequence of the memory each is of, and tokens (sequences, tokens) int64 which of its rows
    there are. It has no rows where these are all of them.
    """
    SCALE, ZERO = dtype(2.0**-52), dtype(0)

    def draw(
        seed, draw_heads, heads, sequences, tokens, table, n_points, strided, left, draws, largest,
        finite,
    ):  # fmt: skip
        problem, thread = cuda.blockIdx.x, cuda.threadIdx.x
        sequence = sequences[problem // heads]
        if thread == 0:
            largest[problem], finite[problem] = ZERO, True
        key = mixed(mixed(np.uint64(seed[0])) + np.uint64(problem % draw_heads))
        length = left.shape[1] // 2
        for i in range(table.shape[0]):
            pairs, buckets, coins = table[i, 0], table[i, 1], table[i, 2]
            at = length - 2 * pairs
            for pair in range(thread, pairs, cuda.blockDim.x):
                bits = word(key, 2 * i + 1, pair) >> TO_53_BITS
                # a multiple of 2^-52 in [-1, 1): no digit is lost before the one rounding
                draws[problem, at + pair] = dtype(np.int64(bits) - HALF) * SCALE
            for bucket in range(thread, buckets, cuda.blockDim.x):
                draws[problem, coins + bucket] = dtype(word(key, 2 * i + 2, bucket) >> TO_COIN)
        if strided or length == n_points:
            stride = n_points // length
            for i in range(thread, length, cuda.blockDim.x):
                left[problem, i] = row_of(tokens, sequence, i * stride)
            return
        # positions on the ring increase, so those that wrap are the last: they come first
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

    A thread a number. Its arguments: seed (1,) int64, the stream, and what it writes, numbers
    (heads, any) float64.
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
    """Return the kernel that measures keys and values, which `load` converts.

    `parts` blocks a problem. Its arguments: the keys' window and geometry, the values', sequences
    and tokens as in `make_draw`, n_points, the length, parts, left (problems, 2 * length) with the
    starting points; and what it writes, from what `draw` left there: largest (problems,), the
    largest magnitude among the values at the starting points, and finite (problems,) bool, whether
    all keys and values are. A factor of no columns is not looked at.
    """
    load = device_function(load)
    largest_in_block = make_largest_in_block(threads, dtype)
    LARGEST = np.finfo(dtype).max
    ZERO = dtype(0)
    WARPS = threads // WARP

    @device_function
    def all_finite(window, geometry, problem, sequence, tokens, n_points, warp, step):
        """Whether the numbers that this thread looks at are finite; a warp takes whole rows."""
        first, heads, batch, head, row, column, dim = geometry
        start = first + sequence * batch + problem % heads * head
        finite = True
        for i in range(warp, n_points, step):
            place = start + row_of(tokens, sequence, i) * row
            for c in range(cuda.threadIdx.x % WARP, dim, WARP):
                if not abs(load(window[place + c * column])) <= LARGEST:
                    finite = False
        return finite

    def measure(keys, key_geometry, values, value_geometry, sequences, tokens, n_points, length,
                parts, left, largest, finite):  # fmt: skip
        # of one axis: a grid's others have no more than 65,535 blocks
        problem, thread = cuda.blockIdx.x // parts, cuda.threadIdx.x
        warp, step = cuda.blockIdx.x % parts * WARPS + thread // WARP, parts * WARPS
        first, heads, batch, head, row, column, dim = value_geometry
        sequence = sequences[problem // heads]
        # several threads may write it: the same
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
    """Return the kernel that turns what was measured into the attention kernel's parameters.

    A thread a problem. Its arguments: the scale of the keys, largest (problems,), and what it
    writes, parameters (problems, 2, 3) as in `halve.make_kernel`.
    """
    LIMIT = np.finfo(dtype).maxexp - 2
    ZERO, ONE = dtype(0), dtype(1)

    def scale(key_scale, largest, parameters):
        problem = cuda.grid(1)
        if problem < largest.size:
            vmax = largest[problem]
            # a power of two, which is exact and to which halving is blind, brings vmax below 1 and
            # its square in range
            exponent = min(max(math.frexp(vmax)[1], -LIMIT), LIMIT)
            power = dtype(math.ldexp(ONE, -exponent))
            parameters[problem, 0, 0], parameters[problem, 0, 1] = key_scale, ZERO
            parameters[problem, 0, 2] = parameters[problem, 1, 2] = ONE
            parameters[problem, 1, 0] = power
            parameters[problem, 1, 1] = (vmax * power) * (vmax * power)

    return cuda.jit(scale)


@functools.cache
def make_inspect(load: Callable, dtype: type, threads: int) -> Any:
    """Return the kernel that looks at Gram matrices, whose entries `load` converts.

    `parts` blocks a matrix. Its arguments: window and geometry, n rows, parts, and what it writes:
    largest (problems,), the largest magnitude of an entry, from zeros, off (problems,), the largest
    difference of an entry from its mirror, from zeros, and finite (problems,) bool, from True.
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
