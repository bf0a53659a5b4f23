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

from thinformer.cuda.halve import make_decide
from thinformer.cuda.jit import ALIGNED, cuda, device_function
from thinformer.cuda.patches import make_patches
from thinformer.cuda.tiles import PANEL, make_largest_in_block, make_largest_norm
from thinformer.cuda.values import SQUARE, Variant, tile_rows

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
        sequence = sequences[problem // geometry[1]]
        if sequence < 0 or span * width >= positions.size:  # the same for all threads of the block
            return
        end = min((span + 1) * width, positions.size)
        place = place_of(geometry, sequence, problem)
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
    ROWS, shifted = tile_rows(threads), variant.shifted
    largest_of = make_largest_of(threads, variant.dtype)
    collect_panel = make_collect_panel(variant, threads)

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
        first = block * tiles * ROWS
        end = min(begin + in_span + PANEL, positions.size)
        sequence = sequences[problem // geometry[1]]
        # the same for all threads of the block
        if sequence < 0 or begin + in_span >= positions.size or first >= end:
            return
        own = parameters[min(problem, parameters.shape[0] - 1)]
        stored, sums, norms, _ = part_of(memory, number, sharing, ROWS)
        constant = own[0, 1]
        if shifted:
            constant = largest_of(norms, spans_on_gpu(positions.size, width))
        at = block * width + in_span
        collect_panel(
            window, place_of(geometry, sequence, problem), other_window,
            place_of(other_geometry, sequence, problem), own, scales, constant, positions, out,
            (begin, in_span, first, min(end, first + tiles * ROWS)), width, stored,
            sums[at : at + PANEL],
        )  # fmt: skip

    return cuda.jit(collect)


def make_largest_of(threads: int, dtype: type) -> Any:
    """Return the function that finds the largest norm of a bucket's spans."""
    largest_in_block = make_largest_in_block(threads, dtype)
    ZERO = dtype(0)

    @device_function
    def largest_of(norms, spans):
        """Return the largest of the norms to all threads."""
        largest = ZERO
        for span in range(cuda.threadIdx.x, spans, threads):
            largest = max(largest, norms[span])
        return largest_in_block(largest)

    return largest_of


def make_collect_panel(variant: Variant, threads: int) -> Any:
    """Return the function that computes some rows of kernel values of one panel."""
    dtype, ZERO, ROWS = variant.dtype, variant.dtype(0), tile_rows(threads)
    patches = make_patches(variant, threads)
    STAGED, STAGED_ROWS, STAGED_PANEL, POINTS = patches.staged
    corner, tabulate, add_signed, _, store_patch, add_parts = patches.functions

    @device_function
    def collect_panel(
        window, place, other_window, other_place, parameters, scales, constant, positions, out,
        which, width, stored, sums,
    ):  # fmt: skip
        """Store the span's values with itself, and write the sums (PANEL,) over pairs before it.

        which : the span's first point, where the panel is in the span, the first row, and the end
            of the rows
        """
        begin, in_span, first, end = which
        rows = cuda.shared.array(STAGED_ROWS, STAGED, ALIGNED)
        panel = cuda.shared.array(STAGED_PANEL, STAGED, ALIGNED)
        patch = cuda.local.array(SQUARE, dtype)
        other = cuda.local.array(SQUARE, dtype)
        part = cuda.local.array(POINTS, dtype)  # this thread's part of the sums
        row, point = corner()
        last = parameters.shape[0] - 1
        factor = parameters[0, 0], constant, parameters[0, 2]
        other_factor = parameters[last, 0], parameters[last, 1], parameters[last, 2]
        for j in range(POINTS):
            part[j] = ZERO
        for tile in range(first, end, ROWS):
            tabulate(
                patch, other, rows, panel, window, place, other_window, other_place,
                positions, tile, begin + in_span, factor, other_factor, parameters, scales,
            )  # fmt: skip
            at = tile + row
            if at < begin:
                add_signed(part, patch, out, at)
            elif at < end:
                store_patch(stored, width, at - begin, in_span + point, patch)
        if first < begin:
            add_parts(sums, part)

    return collect_panel


@device_function
def add_blocks(sums, sums_of_blocks, zero, points, width, blocks):
    """Write the sums over all pairs before a span, in the order of the blocks."""
    for point in range(cuda.threadIdx.x, points, cuda.blockDim.x):
        total = zero
        for block in range(blocks):
            total += sums_of_blocks[block * width + point]
        sums[point] = total


@device_function
def load_panel(own, stored, width, first):
    """Read a panel's kernel values with itself (PANEL, PANEL)."""
    for entry in range(cuda.threadIdx.x, PANEL * PANEL, cuda.blockDim.x):
        row, point = entry // PANEL, entry % PANEL
        own[row, point] = stored[(first + row) * width + first + point]


@device_function
def signed_sum(stored, width, row, point, chosen, zero):
    """Return the sum over the pairs of a full panel from `row` on, for a later point.

    chosen : (pairs,), whether a pair's second point was chosen
    """
    total = zero
    for pair in range(PANEL // 2):  # of constant length: many reads at once
        at = (row + 2 * pair) * width + point
        step = stored[at] - stored[at + width]
        total += -step if chosen[pair] else step
    return total


@functools.cache
def make_decide_span(variant: Variant, threads: int) -> Any:
    """Return the kernel that decides the pairs of one span; a block takes a bucket.

    Its arguments are those of `make_collect`. The block that decides the last pairs of its bucket
    writes the positions that are kept.
    """
    ROWS, dtype = tile_rows(threads), variant.dtype
    ZERO = dtype(0)
    decide = make_decide(dtype, variant.adaptive)

    def decide_span(
        window, geometry, other_window, other_geometry, parameters, scales, sequences,
        table, factors, i, sharing, begin, draws, left, kept, memory,
    ):  # fmt: skip
        width, _, tiles = sharing
        pairs, buckets, coins = table[i, 0], table[i, 1], table[i, 2]
        number, thread = cuda.blockIdx.x, cuda.threadIdx.x
        problem, bucket = number // buckets, number % buckets
        positions, out = bucket_of(problem, bucket, i, table, left, kept)
        # the same for all threads of the block
        if sequences[problem // geometry[1]] < 0 or begin >= positions.size:
            return
        end = min(begin + width, positions.size)
        stored, sums_of_blocks, _, state_before = part_of(memory, number, sharing, ROWS)
        at = left.shape[1] // 2 - 2 * pairs + bucket * pairs // buckets
        uniforms = draws[problem, at : at + out.size]
        factor = factors[i, out.size - pairs // buckets]

        sums = cuda.shared.array(WIDEST, dtype)  # of all pairs before, for each point of the span
        own = cuda.shared.array((PANEL, PANEL), dtype)
        blocks = blocks_on_gpu(begin, tiles, ROWS)
        add_blocks(sums, sums_of_blocks, ZERO, end - begin, width, blocks)
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
                    stored, width, panel - begin, point - begin, out[panel // 2 : after // 2],
                    ZERO,
                )  # fmt: skip
        if thread == 0:
            state_before[0] = state
        if end == positions.size:
            coin = draws[problem, coins + bucket] != ZERO
            for pair in range(thread, out.size, threads):
                swap = out[pair] != 0
                out[pair] = positions[2 * pair + (1 if swap != coin else 0)]

    return cuda.jit(decide_span)
