"""Kernel values of a tile, in the registers of a block's threads.

The walk of `halve` takes kernels of three forms: the product of two factors, each on its own points
(keys and values); a sum of terms on the same points; and the entries of a Gram matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from thinformer.cuda.jit import cuda, device_function
from thinformer.cuda.stein import make_stein
from thinformer.cuda.tiles import (
    LANES,
    LOG2_LANES,
    PATCH,
    add_distances,
    add_products,
    add_scaled_products,
    make_stage,
    make_sum_up,
    multiply_sobolev,
)

SQUARE = PATCH * PATCH
# columns of a term's parameters, and the first coefficient; a factor has its scale in WEIGHT
WEIGHT, CONSTANT, DEGREE, FIRST = range(4)


class Term(NamedTuple):
    """A term of a kernel: phi of inner products, of squared distances, or the Sobolev kernel's."""

    phi: Callable
    of: str  # "products", "distances", "sobolev" or "stein"


class Variant(NamedTuple):
    """What one version of the CUDA kernel is compiled for.

    form : "factors", "terms", "entries" or "function"
    terms : one term a factor, or one a summand
    shifted : whether the first factor's constant is the bucket's largest |x|^2
    load : converts a stored number of the points
    dtype : of all computations
    tensor : whether tensor cores multiply two factors, whose numbers are in half precision
    adaptive : whether to halve with kernel thinning's adaptive thresholds
    function : of two points (dim,), for the form "function"
    """

    form: str
    terms: tuple[Term, ...]
    shifted: bool
    load: Callable
    dtype: type
    tensor: bool = False
    adaptive: bool = False
    function: Any = None


def make_tabulate(variant: Variant, threads: int) -> Any:
    """Return the function that writes a thread's patch of kernel values.

    The function's arguments::

        patch  (SQUARE,), local memory, written
        other  (SQUARE,), local memory to work in
        rows, panel  shared memory to stage columns in
        window, place, other_window, other_place, positions, parameters, scales  as `halve_bucket`
          has them
        tile, begin  the first point of the tile, and of the panel
        factor, other_factor  scale, constant and degree of either factor; twice the same if there
          is one
    """
    if variant.form == "entries":
        return make_entries(variant)
    if variant.form == "function":
        return make_calls(variant)
    stage = make_stage(variant.load, threads)
    if variant.form == "factors":
        return make_factors(variant, stage, threads)
    if variant.terms[0].of == "stein":
        return make_stein(variant.dtype, stage, tile_rows(threads))
    tabulate = nothing
    for i, term in enumerate(variant.terms):
        tabulate = make_next_term(tabulate, i, term, variant.dtype, stage, threads)
    return tabulate


def make_factors(variant: Variant, stage: Any, threads: int) -> Any:
    """Return the function for one factor, or the product of two factors."""
    sum_up = make_sum_up(stage, add_products, tile_rows(threads), variant.dtype(0))
    phi, other_phi = (device_function(variant.terms[i].phi) for i in (0, -1))
    paired = len(variant.terms) > 1

    @device_function
    def tabulate(
        patch, other, rows, panel, window, place, other_window, other_place, positions, tile,
        begin, factor, other_factor, parameters, scales,
    ):  # fmt: skip
        scale, constant, degree = factor
        sum_up(patch, rows, panel, window, place, positions, tile, begin, scale, scales, scales)
        for i in range(SQUARE):
            patch[i] = phi(patch[i], constant, degree)
        if paired:
            scale, constant, degree = other_factor
            sum_up(other, rows, panel, other_window, other_place, positions, tile, begin,
                   scale, scales, scales)  # fmt: skip
            for i in range(SQUARE):
                patch[i] *= other_phi(other[i], constant, degree)

    return tabulate


@device_function
def nothing(
    patch, other, rows, panel, window, place, other_window, other_place, positions, tile, begin,
    factor, other_factor, parameters, scales,
):  # fmt: skip
    """Write the sum of no terms to the patch (SQUARE,): 0."""
    for i in range(SQUARE):
        patch[i] = 0


def make_next_term(
    before: Any, number: int, term: Term, dtype: type, stage: Any, threads: int
) -> Any:
    """Return the function that adds term `number` to the terms that `before` adds up."""
    add = {
        "products": add_scaled_products, "distances": add_distances, "sobolev": multiply_sobolev,
    }[term.of]  # fmt: skip
    sum_up = make_sum_up(stage, add, tile_rows(threads), dtype(term.of == "sobolev"))
    phi, ONE = device_function(term.phi), dtype(1)

    @device_function
    def tabulate(
        patch, other, rows, panel, window, place, other_window, other_place, positions, tile,
        begin, factor, other_factor, parameters, scales,
    ):  # fmt: skip
        before(
            patch, other, rows, panel, window, place, other_window, other_place, positions, tile,
            begin, factor, other_factor, parameters, scales,
        )  # fmt: skip
        sum_up(other, rows, panel, window, place, positions, tile, begin,
               ONE, scales[number], parameters[number, FIRST:])  # fmt: skip
        for i in range(SQUARE):
            value = phi(other[i], parameters[number, CONSTANT], parameters[number, DEGREE])
            patch[i] += parameters[number, WEIGHT] * value

    return tabulate


def make_entries(variant: Variant) -> Any:
    """Return the function for the entries of a Gram matrix; a point is a row and a column of it."""
    load = device_function(variant.load)

    @device_function
    def tabulate(
        patch, other, rows, panel, window, place, other_window, other_place, positions, tile,
        begin, factor, other_factor, parameters, scales,
    ):  # fmt: skip
        start, row_stride, column_stride, _ = place
        last = positions.size - 1
        row = tile + PATCH * (cuda.threadIdx.x >> LOG2_LANES)
        point = begin + PATCH * (cuda.threadIdx.x & (LANES - 1))
        for i in range(PATCH):
            at = start + positions[min(row + i, last)] * row_stride
            for j in range(PATCH):
                entry = window[at + positions[min(point + j, last)] * column_stride]
                patch[PATCH * i + j] = load(entry)

    return tabulate


def make_calls(variant: Variant) -> Any:
    """Return the function that calls a user's function; the columns of a point are neighbours."""
    function, number = variant.function, variant.dtype

    @device_function
    def tabulate(
        patch, other, rows, panel, window, place, other_window, other_place, positions, tile,
        begin, factor, other_factor, parameters, scales,
    ):  # fmt: skip
        start, step, _, dim = place
        last, weight = positions.size - 1, parameters[0, WEIGHT]
        row = tile + PATCH * (cuda.threadIdx.x >> LOG2_LANES)
        point = begin + PATCH * (cuda.threadIdx.x & (LANES - 1))
        for i in range(PATCH):
            x = start + positions[min(row + i, last)] * step
            for j in range(PATCH):
                y = start + positions[min(point + j, last)] * step
                value = function(window[x : x + dim], window[y : y + dim])
                patch[PATCH * i + j] = weight * number(value)

    return tabulate


def tile_rows(threads: int) -> int:
    """Return the rows of a tile."""
    return threads // LANES * PATCH


def phi_sobolev(product, constant, degree):
    """Return the product of the columns' factors minus 1; the constant is 1."""
    return product - constant
