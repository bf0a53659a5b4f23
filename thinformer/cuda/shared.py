"""The kernels that halve a bucket with many blocks: its tiles are shared, its decisions are not.

The points of a bucket are cut into spans of a few hundred points. For each span there are two
launches. `collect` computes the kernel values of the span with all points up to its end; a block
takes one panel of the span and a few tiles of rows. Values of pairs that were decided before the
span are added up with their signs, and values of the span with itself are stored. `decide_span`
then decides the span's pairs, one block a bucket, and reads what is stored.

A bucket has its own part of `memory`, `numbers_a_bucket` numbers: the values of a span with itself,
the sums of each block of `collect`, the largest norm of each span's points, and the largest b, or
the variance of adaptive thresholds. All sums are added up in one order, so the result is the same
in every run.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from thinformer.cuda.halve import add_signed, make_add_parts, make_decide
from thinformer.cuda.jit import ALIGNED, cuda, device_function
from thinformer.cuda.tiles import (
    DEPTH,
    LANES,
    LOG2_LANES,
    PAD,
    PANEL,
    PATCH,
    make_largest_in_block,
    make_largest_norm,
)
from thinformer.cuda.values import SQUARE, Variant, make_tabulate, tile_rows

WIDEST = 1024  # points of a span


class Sharing(NamedTuple):
    """How a round's buckets are shared between blocks.

    width : points of a span, a multiple of the panel and of the rows of a tile
    points : of the largest bucket
    tiles : of rows, which a block of `collect` takes for one panel
    """

    width: int
    points: int
    tiles: int


def blocks_up_to(points, tiles, rows):
    """Return how many blocks of `collect` share `points` rows of one panel, in tiles of `rows`."""
    return (points + tiles * rows - 1) // (tiles * rows)


def spans_of(points, width):
    """Return the number of spans of a bucket."""
    return (points + width - 1) // width


blocks_on_gpu, spans_on_gpu = device_function(blocks_up_to), device_function(spans_of)


def numbers_a_bucket(sharing: Sharing, threads: int) -> int:
    """Return how many numbers of memory a bucket needs."""
    width, points, tiles = sharing
    blocks = blocks_up_to(points, tiles, tile_rows(threads))
    return width * width + blocks * width + spans_of(points, width) + 1


@device_function
def place_of(geometry, sequence, problem):
    """Return where a problem's first point is in its window, the strides, and the columns."""
    first, heads, batch, head, row, column, dim = geometry
    return first + sequence * batch + problem % heads * head, row, column, dim


@device_function
def bucket_of(problem, bucket, i, table, left, kept):
    """Return a bucket's points in round i, and where the half that is kept is written.

    `halve` has these lines in its loop over rounds, where it needs fewer registers that way.
    """
    pairs, buckets, length = table[i, 0], table[i, 1], left.shape[1] // 2
    begin, end = bucket * pairs // buckets, (bucket + 1) * pairs // buckets
    before, after = 2 * (length - 2 * pairs), 2 * (length - pairs)  # where a round's points begin
    positions = left[problem, before + 2 * begin : before + 2 * end]
    if i + 1 < table.shape[0]:
        out = left[problem, after + begin : after + end]
    else:
        out = kept[problem, begin:end]
    return positions, out


@device_function
def part_of(memory, number, sharing, rows):
    """Return a bucket's part of the memory: stored values, sums, norms, and the state."""
    width, points, tiles = sharing
    blocks, spans = blocks_on_gpu(points, tiles, rows), spans_on_gpu(points, width)
    stored, sums, norms = width * width, blocks * width, spans
    begin = number * (stored + sums + norms + 1)
    after_sums = begin + stored + sums
    return (
        memory[begin : begin + stored],
        memory[begin + stored : after_sums],
        memory[after_sums : after_sums + norms],
        memory[after_sums + norms : after_sums + norms + 1],
    )


@functools.cache
def make_norms(variant: Variant, threads: int) -> Any:
    """Return the kernel that writes the largest squared norm of each span; a block takes a span.

    Its arguments are those of `make_collect`; `begin` is not read.
    """
    ROWS = tile_rows(threads)
    largest_norm = make_largest_norm(variant.load, threads, variant.dtype)

    def norms(
        window, geometry, other_window, other_geometry, parameters, scales, sequences,
        table, factors, i, sharing, begin, draws, left, kept, memory,
    ):  # fmt: skip
        width, points, _ = sharing
        spans = spans_on_gpu(points, width)
        number, span = cuda.blockIdx.x // spans, cuda.blockIdx.x % spans
        problem, bucket = number // table[i, 1], number % table[i, 1]
        positions, _ = bucket_of(problem, bucket, i, table, left, kept)
        if span * width >= positions.size:  # the same for all threads of the block
            return
        end = min((span + 1) * width, positions.size)
        place = place_of(geometry, sequences[problem // geometry[1]], problem)
        own = parameters[min(problem, parameters.shape[0] - 1)]
        largest = largest_norm(window, place, positions[span * width : end], own[0, 0])
        if cuda.threadIdx.x == 0:
            part_of(memory, number, sharing, ROWS)[2][span] = largest

    return cuda.jit(norms)


@functools.cache
def make_collect(variant: Variant, threads: int) -> Any:
    """Return the kernel that computes the kernel values of one span of all buckets of a round.

    The grid has, for each bucket of all problems, a block for each panel of the span and for each
    `sharing.tiles` tiles of rows up to the span's end. The kernel's arguments::

        window .. factors, draws, left, kept  as in `halve.make_kernel`
        i  the round
        sharing  see `Sharing`
        begin  the first point of the span
        memory  (problems * buckets * numbers_a_bucket,), written
    """
    ROWS = tile_rows(threads)
    ROW_PITCH, PANEL_PITCH = ROWS + PAD, PANEL + PAD
    dtype, shifted = variant.dtype, variant.shifted
    ZERO = dtype(0)
    tabulate = make_tabulate(variant, threads)
    add_parts = make_add_parts(threads, dtype)
    largest_in_block = make_largest_in_block(threads, dtype)

    @device_function
    def largest_of(norms, spans):
        """Return the largest norm of a bucket's spans to all threads."""
        largest = ZERO
        for span in range(cuda.threadIdx.x, spans, threads):
            largest = max(largest, norms[span])
        return largest_in_block(largest)

    def collect(
        window, geometry, other_window, other_geometry, parameters, scales, sequences,
        table, factors, i, sharing, begin, draws, left, kept, memory,
    ):  # fmt: skip
        width, points, tiles = sharing
        blocks = blocks_on_gpu(min(begin + width, points), tiles, ROWS)
        # blocks side by side read the same rows
        in_span = cuda.blockIdx.x % (width // PANEL) * PANEL
        block = cuda.blockIdx.x // (width // PANEL) % blocks
        number = cuda.blockIdx.x // (width // PANEL) // blocks
        problem, bucket = number // table[i, 1], number % table[i, 1]
        positions, out = bucket_of(problem, bucket, i, table, left, kept)
        first, panel_begin = block * tiles * ROWS, begin + in_span
        end = min(panel_begin + PANEL, positions.size)
        # the same for all threads of the block
        if panel_begin >= positions.size or first >= end:
            return
        sequence = sequences[problem // geometry[1]]
        place = place_of(geometry, sequence, problem)
        other_place = place_of(other_geometry, sequence, problem)
        own = parameters[min(problem, parameters.shape[0] - 1)]
        stored, sums, norms, _ = part_of(memory, number, sharing, ROWS)

        rows = cuda.shared.array((DEPTH, ROW_PITCH), dtype, ALIGNED)
        panel = cuda.shared.array((DEPTH, PANEL_PITCH), dtype, ALIGNED)
        patch = cuda.local.array(SQUARE, dtype)
        other = cuda.local.array(SQUARE, dtype)
        part = cuda.local.array(PATCH, dtype)  # this thread's part of the sums
        row = PATCH * (cuda.threadIdx.x >> LOG2_LANES)
        point = PATCH * (cuda.threadIdx.x & (LANES - 1))
        constant, last = own[0, 1], own.shape[0] - 1
        if shifted:
            constant = largest_of(norms, spans_on_gpu(positions.size, width))
        for j in range(PATCH):
            part[j] = ZERO
        for tile in range(first, min(end, first + tiles * ROWS), ROWS):
            tabulate(
                patch, other, rows, panel, window, place, other_window, other_place,
                positions, tile, panel_begin, (own[0, 0], constant, own[0, 2]),
                (own[last, 0], own[last, 1], own[last, 2]), own, scales,
            )  # fmt: skip
            at = tile + row
            if at < begin:
                add_signed(part, patch, out, at)
            elif at < end:
                store_patch(stored, width, at - begin, in_span + point, patch)
        if first < begin:
            first_sum = block * width + in_span
            add_parts(sums[first_sum : first_sum + PANEL], part)

    return cuda.jit(collect)


@device_function
def store_patch(stored, width, row, point, patch):
    """Write a patch (SQUARE,) to the stored values of a span (width * width,), at its corner."""
    for i in range(PATCH):
        for j in range(PATCH):
            stored[(row + i) * width + point + j] = patch[PATCH * i + j]


@functools.cache
def make_decide_span(variant: Variant, threads: int) -> Any:
    """Return the kernel that decides the pairs of one span; a block takes a bucket.

    Its arguments are those of `make_collect`. The block that decides the last pairs of its bucket
    writes the positions that are kept.
    """
    ROWS, dtype = tile_rows(threads), variant.dtype
    ZERO = dtype(0)
    decide = make_decide(dtype, variant.adaptive)

    @device_function
    def add_blocks(sums, sums_of_blocks, points, width, blocks):
        """Write the sums over all pairs before a span, in the order of the blocks."""
        for point in range(cuda.threadIdx.x, points, threads):
            total = ZERO
            for block in range(blocks):
                total += sums_of_blocks[block * width + point]
            sums[point] = total

    @device_function
    def load_panel(own, stored, width, first):
        """Read a panel's kernel values with itself (PANEL, PANEL)."""
        for entry in range(cuda.threadIdx.x, PANEL * PANEL, threads):
            row, point = entry // PANEL, entry % PANEL
            own[row, point] = stored[(first + row) * width + first + point]

    @device_function
    def signed_sum(stored, width, row, point, chosen):
        """Return the sum over the pairs of a full panel from `row` on, for a later point.

        chosen : (pairs,), whether a pair's second point was chosen
        """
        total = ZERO
        for pair in range(PANEL // 2):  # of constant length: many reads at once
            at = (row + 2 * pair) * width + point
            step = stored[at] - stored[at + width]
            total += -step if chosen[pair] else step
        return total

    def decide_span(
        window, geometry, other_window, other_geometry, parameters, scales, sequences,
        table, factors, i, sharing, begin, draws, left, kept, memory,
    ):  # fmt: skip
        width, points, tiles = sharing
        pairs, buckets, coins = table[i, 0], table[i, 1], table[i, 2]
        number, thread = cuda.blockIdx.x, cuda.threadIdx.x
        problem, bucket = number // buckets, number % buckets
        positions, out = bucket_of(problem, bucket, i, table, left, kept)
        if begin >= positions.size:  # the same for all threads of the block
            return
        end = min(begin + width, positions.size)
        stored, sums_of_blocks, _, state_before = part_of(memory, number, sharing, ROWS)
        at = left.shape[1] // 2 - 2 * pairs + bucket * pairs // buckets
        uniforms = draws[problem, at : at + out.size]
        factor = factors[i, out.size - pairs // buckets]

        sums = cuda.shared.array(WIDEST, dtype)  # of all pairs before, for each point of the span
        own = cuda.shared.array((PANEL, PANEL), dtype)
        add_blocks(sums, sums_of_blocks, end - begin, width, blocks_on_gpu(begin, tiles, ROWS))
        state = state_before[0] if begin > 0 else ZERO
        for panel in range(begin, end, PANEL):
            after = min(panel + PANEL, end)
            load_panel(own, stored, width, panel - begin)
            cuda.syncthreads()  # the panel's values and the sums before they are read
            of_panel = sums[panel - begin : panel - begin + PANEL]
            state = decide(own, of_panel, panel, after, state, factor, uniforms, out)
            cuda.syncthreads()  # all is read before the next panel; `out` is written
            for point in range(after + thread, end, threads):
                sums[point - begin] += signed_sum(
                    stored, width, panel - begin, point - begin, out[panel // 2 : after // 2]
                )
        if thread == 0:
            state_before[0] = state
        if end == positions.size:
            coin = draws[problem, coins + bucket] != ZERO
            for pair in range(thread, out.size, threads):
                swap = out[pair] != 0
                out[pair] = positions[2 * pair + (1 if swap != coin else 0)]

    return cuda.jit(decide_span)
