"""Which values of a tile each thread holds, in registers, and what it does with them.

A patch is 4 x 4 values, whose inner products each thread adds up (`tiles`); or 2 x 8 values, as
tensor cores return them to the threads of a warp (`tensor`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from thinformer.cuda import tensor
from thinformer.cuda.jit import cuda, device_function
from thinformer.cuda.tiles import DEPTH, LANES, LOG2_LANES, PAD, PANEL, PATCH
from thinformer.cuda.values import Variant, make_tabulate, tile_rows


class Functions(NamedTuple):
    """What a thread does with its patch; the shapes of arguments are below.

    corner() : the first row and point of the patch in its tile
    tabulate : see `values.make_tabulate`
    add_signed(part, patch, out, at), copy_patch(own, row, point, patch),
    store_patch(stored, width, row, point, patch), add_parts(sums, part)
    """

    corner: Any
    tabulate: Any
    add_signed: Any
    copy_patch: Any
    store_patch: Any
    add_parts: Any


class Patches(NamedTuple):
    """The patches of one variant.

    staged : the dtype and the shapes of the shared arrays of rows and panel, and the points of a
        patch, which are the sums that a thread holds
    """

    staged: tuple[type, tuple[int, int], tuple[int, int], int]
    functions: Functions


def make_patches(variant: Variant, threads: int) -> Patches:
    """Return the patches of a variant in blocks of `threads` threads."""
    ROWS = tile_rows(threads)
    if variant.tensor:
        shapes = (ROWS, tensor.ROW_WORDS), (PANEL, tensor.PANEL_WORDS)
        functions = Functions(
            tensor.corner, tensor.make_tabulate(variant, threads), tensor.add_signed,
            tensor.copy_patch, tensor.store_patch, tensor.make_add_parts(threads, variant.dtype),
        )  # fmt: skip
        return Patches((tensor.WORD, *shapes, tensor.POINTS), functions)
    shapes = (DEPTH, ROWS + PAD), (DEPTH, PANEL + PAD)
    functions = Functions(
        corner, make_tabulate(variant, threads), add_signed, copy_patch, store_patch,
        make_add_parts(threads, variant.dtype),
    )  # fmt: skip
    return Patches((variant.dtype, *shapes, PATCH), functions)


@device_function
def corner():
    """Return the first row and point of this thread's patch in its tile."""
    thread = cuda.threadIdx.x
    return PATCH * (thread >> LOG2_LANES), PATCH * (thread & (LANES - 1))


@device_function
def add_signed(part, patch, out, at):
    """Add a patch's decided pairs, each with its sign, to a thread's part (PATCH,) of the sums.

    patch : (SQUARE,), rows from point `at` of the bucket on
    out : (pairs,), whether a pair's second point was chosen
    """
    for i in range(0, PATCH, 2):
        chosen = out[(at + i) // 2]
        for j in range(PATCH):
            step = patch[PATCH * i + j] - patch[PATCH * (i + 1) + j]
            part[j] += -step if chosen else step


@device_function
def copy_patch(own, row, point, patch):
    """Write a patch (SQUARE,) to the panel's own kernel values (PANEL, PANEL), at its corner."""
    for i in range(PATCH):
        for j in range(PATCH):
            own[row + i, point + j] = patch[PATCH * i + j]


@device_function
def store_patch(stored, width, row, point, patch):
    """Write a patch (SQUARE,) to the stored values of a span (width * width,), at its corner."""
    for i in range(PATCH):
        for j in range(PATCH):
            stored[(row + i) * width + point + j] = patch[PATCH * i + j]


def make_add_parts(threads: int, dtype: type) -> Any:
    """Return the function that adds up the sums' parts, which the threads hold."""
    GROUPS = threads // LANES  # the threads of a group hold the same rows and all points
    ZERO = dtype(0)

    @device_function
    def add_parts(sums, part):
        """Write the sums (PANEL,) of all groups' parts, in the order of the groups.

        part : (PATCH,), this thread's part of the sums of its patch's points
        """
        parts = cuda.shared.array((GROUPS, PANEL), dtype)
        thread = cuda.threadIdx.x
        group, point = thread >> LOG2_LANES, PATCH * (thread & (LANES - 1))
        for j in range(PATCH):
            parts[group, point + j] = part[j]
        cuda.syncthreads()  # the parts and the panel's own values before they are read
        if thread < PANEL:
            total = ZERO
            for g in range(GROUPS):
                total += parts[g, thread]
            sums[thread] = total

    return add_parts
