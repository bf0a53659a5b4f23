"""Loops in LLVM's intermediate language, which its vectoriser does not find by itself.

The vectoriser takes only the innermost loop of a nest, so each multiply-add of a matrix product
loads and stores its sum: 14 GFLOP/s in plain Numba (one Zen 4 core, float32). `inner_products`
keeps a block of sums in registers: with one vector a row, 113 GFLOP/s on 32 x 32 entries of 64
dimensions. BLAS reaches 97 to 108 GFLOP/s in such a call. But BLAS needs separate layouts for rows
and columns, computes all blocks, and may start threads of its own. The code is the same for all
processors; only the number and the width of vectors differ.

Points lie in panels, PANEL of them side by side: dimension d of a panel's point i is at
d * PANEL + i. A product loads its columns as vectors, and its rows one number at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

PANEL = 32  # a whole number of blocks

# bytes of a vector, and rows of a block, which are two vectors of sums
BYTES, ROWS = (64, 8) if llvmlite.binding.get_host_cpu_features().get("avx512f") else (32, 4)
WIDTH = 2 * BYTES  # of a row of a block


@register_jitable
def padded_size(points):
    """Return the points of the whole panels that hold so many; in Python and in compiled code."""
    return -(-points // PANEL) * PANEL


SIZE, INDEX = ir.IntType(64), ir.IntType(32)


@intrinsic
def inner_products(typing, rows, row, columns, column, dim, added, out, at):
    """Write <x_i, y_j> for ROWS points x_i and two vectors of points y_j.

    Two vectors a row: a dimension takes ROWS + 2 loads for 2 ROWS multiply-adds. With one vector
    and twice the rows, it takes 2 ROWS + 1 loads, and these are what a processor with two loads a
    cycle waits for: 64 to 88 GFLOP/s instead of 102 (64 dimensions, one Zen 3 core, AVX2).

    rows, row : flat memory, and where x_0 is in it
    columns, column : flat memory, and where y_0 is in it
    dim : positive
    added : whether the products are added to what is there
    out, at : flat memory, and where the block's first entry goes; its rows are PANEL apart
    """
    vector = _vector(rows)
    starts = 0, vector.count

    def generate(context, builder, signature, arguments):
        x, y, out = (_place(context, builder, signature, arguments, i) for i in (0, 2, 6))

        def add(d: Any, sums: list[Any]) -> list[Any]:
            place = builder.mul(d, SIZE(PANEL))
            y_d = [_load(builder, y, builder.add(place, SIZE(c)), vector) for c in starts]
            x_d = [builder.load(builder.gep(x, [builder.add(place, SIZE(i))])) for i in range(ROWS)]
            spread = [_spread(builder, x_id, vector) for x_id in x_d]
            products = itertools.product(spread, y_d)
            return [
                _multiply_add(builder, a, b, total)
                for (a, b), total in zip(products, sums, strict=True)
            ]

        places = [SIZE(i * PANEL + c) for i in range(ROWS) for c in starts]
        sums = [
            builder.select(arguments[5], _load(builder, out, place, vector), vector(None))
            for place in places
        ]
        for place, total in zip(places, _fold(builder, arguments[4], sums, add), strict=True):
            _store(builder, total, out, place)
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(rows, int64, columns, int64, int64, types.boolean, out, int64), generate


@intrinsic
def squared_norms(typing, panel, at, dim, out, to):
    """Write |x|^2 for the points x of a panel.

    panel, at : flat memory, and where the panel is in it
    dim : positive
    out, to : flat memory, and where the norms go
    """
    vector = _vector(panel)
    starts = range(0, PANEL, vector.count)

    def generate(context, builder, signature, arguments):
        x, out = (_place(context, builder, signature, arguments, i) for i in (0, 3))

        def add(d: Any, sums: list[Any]) -> list[Any]:
            place = builder.mul(d, SIZE(PANEL))
            x_d = [_load(builder, x, builder.add(place, SIZE(s)), vector) for s in starts]
            return [_multiply_add(builder, a, a, total) for a, total in zip(x_d, sums, strict=True)]

        totals = _fold(builder, arguments[2], [vector(None)] * len(starts), add)
        for start, total in zip(starts, totals, strict=True):
            _store(builder, total, out, SIZE(start))
        return context.get_dummy_value()

    return types.void(panel, types.int64, types.int64, out, types.int64), generate


@intrinsic
def raise_to_magnitudes(typing, out, window, first, step, positions, i, count):
    """Raise each lane of a vector to the largest magnitude in that lane over some points.

    out : (lanes,), magnitudes, updated
    window, first : flat memory, and where point 0 begins in it; points are `step` apart
    positions, i, count : positions of points, the first one to take, and how many to take

    Magnitudes are compared as integers, by their bits, so NaN is above infinity.
    """
    vector = _vector(window)
    bits = ir.VectorType(ir.IntType(window.dtype.bitwidth), vector.count)
    without_sign = ir.Constant(bits, [2 ** (window.dtype.bitwidth - 1) - 1] * vector.count)

    def generate(context, builder, signature, arguments):
        x, wanted = (_place(context, builder, signature, arguments, i) for i in (1, 4))
        out = context.make_array(signature.args[0])(context, builder, arguments[0]).data

        def raise_to(i: Any, largest: list[Any]) -> list[Any]:
            place = builder.mul(arguments[3], builder.load(builder.gep(wanted, [i])))
            magnitude = builder.and_(_load(builder, x, place, bits), without_sign)
            above = builder.icmp_unsigned(">", magnitude, largest[0])
            return [builder.select(above, magnitude, largest[0])]

        (largest,) = _fold(builder, arguments[6], [_load(builder, out, SIZE(0), bits)], raise_to)
        _store(builder, largest, out, SIZE(0))
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(out, window, int64, int64, positions, int64, int64), generate


@intrinsic
def transpose(typing, window, first, step, positions, i, dim, scale, out, at, apart):
    """Write as many points as a vector has lanes side by side, times a scale.

    window, first : flat memory, and where point 0 begins in it; points are `step` apart
    positions, i : positions of points, and the first one to take
    dim : a multiple of a vector's length
    out, at : flat memory, and where the first point's first dimension goes; dimensions are `apart`

    A square of numbers is transposed in registers. Each step interleaves every vector of the
    square's upper half with one of the lower half; after log2(length) steps rows are columns. A
    number takes 0.16 ns; copied one by one, it takes 0.42 ns.
    """
    vector = _vector(window)
    count = vector.count
    order = ir.VectorType(INDEX, count)

    def generate(context, builder, signature, arguments):
        x, wanted, out = (_place(context, builder, signature, arguments, i) for i in (0, 3, 7))
        step, dim, apart = arguments[2], arguments[5], arguments[9]
        scale = _spread(builder, arguments[6], vector)
        offsets = [
            builder.mul(step, builder.load(builder.gep(wanted, [SIZE(k)]))) for k in range(count)
        ]
        interleaved = [
            ir.Constant(order, [j for k in range(half, half + count // 2) for j in (k, k + count)])
            for half in (0, count // 2)
        ]
        with cgutils.for_range_slice(builder, SIZE(0), dim, SIZE(count)) as (d, _):
            rows = [
                builder.fmul(_load(builder, x, builder.add(offset, d), vector), scale)
                for offset in offsets
            ]
            for _ in range(count.bit_length() - 1):
                pairs = zip(rows[: count // 2], rows[count // 2 :], strict=True)
                rows = [
                    builder.shuffle_vector(a, b, part) for a, b in pairs for part in interleaved
                ]
            for k, row in enumerate(rows):
                _store(builder, row, out, builder.mul(builder.add(d, SIZE(k)), apart))
        return context.get_dummy_value()

    int64 = types.int64
    where = window, int64, int64, positions, int64
    return types.void(*where, int64, window.dtype, out, int64, int64), generate


def _fold(
    builder: ir.IRBuilder, times: Any, start: list[Any], step: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Replace values by step(i, values) for i = 0 .. times-1, at least once; return the last ones.

    The values are variables of the loop, which keeps them in registers.
    """
    before = builder.block
    loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    i, values = builder.phi(SIZE), [builder.phi(value.type) for value in start]
    changed = step(i, values)
    following = builder.add(i, SIZE(1))
    builder.cbranch(builder.icmp_signed("<", following, times), loop, after)
    for variable, first, next_ in zip(
        [i, *values], [SIZE(0), *start], [following, *changed], strict=True
    ):
        variable.add_incoming(first, before)
        variable.add_incoming(next_, builder.block)
    builder.position_at_end(after)
    return changed


def _multiply_add(builder: ir.IRBuilder, a: Any, b: Any, total: Any) -> Any:
    """Return total + a b, rounded once if the processor can do so."""
    fused = ["contract"]
    return builder.fadd(total, builder.fmul(a, b, flags=fused), flags=fused)


def _vector(array: Any) -> ir.VectorType:
    """Return the type of a vector of an array's numbers."""
    number = ir.FloatType() if array.dtype == types.float32 else ir.DoubleType()
    return ir.VectorType(number, BYTES * 8 // array.dtype.bitwidth)


def _place(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any, i: int) -> Any:
    """Return the address in flat memory, argument i, of the element that argument i + 1 numbers."""
    memory = context.make_array(signature.args[i])(context, builder, arguments[i])
    return builder.gep(memory.data, [arguments[i + 1]])


def _load(builder: ir.IRBuilder, start: Any, place: Any, vector: ir.VectorType) -> Any:
    pointer = builder.bitcast(builder.gep(start, [place]), vector.as_pointer())
    return builder.load(pointer, align=4)  # bytes; an array of numbers has no other alignment


def _store(builder: ir.IRBuilder, value: Any, start: Any, place: Any) -> None:
    pointer = builder.bitcast(builder.gep(start, [place]), value.type.as_pointer())
    builder.store(value, pointer, align=4)


def _spread(builder: ir.IRBuilder, number: Any, vector: ir.VectorType) -> Any:
    """Return a vector with one number in all lanes."""
    first = builder.insert_element(vector(ir.Undefined), number, INDEX(0))
    everywhere = ir.VectorType(INDEX, vector.count)(None)
    return builder.shuffle_vector(first, vector(ir.Undefined), everywhere)
