"""What LLVM's loop vectoriser does not find by itself, written in LLVM's intermediate language.

Of a loop nest only the innermost loop is vectorised, so each multiply-add of a matrix product
loads and stores its sum: 14 GFLOP/s in plain Numba (one Zen 4 core, float32). `inner_products`
keeps a block of sums in registers, one vector a row, and reaches 115; BLAS reaches 110 on large
tiles and 75 on one of 32 x 32. The language is the same for every processor: what differs is how
many vectors there are to hold, and how wide they are.

Points lie in panels, PANEL of them side by side: dimension d of a panel's point i is at
d * PANEL + i. So they are loaded as a vector when they are the columns of a product, and one by one
when they are its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

PANEL = 32  # a whole number of blocks

# bytes of a vector, and rows of a block, which are vectors of sums
BYTES, ROWS = (64, 16) if llvmlite.binding.get_host_cpu_features().get("avx512f") else (32, 8)

SIZE, INDEX = ir.IntType(64), ir.IntType(32)


@intrinsic
def inner_products(typing, rows, row, columns, column, dim, out, at):
    """Write <x_i, y_j> for ROWS points x_i and a vector of points y_j.

    rows, row : flat memory, and where x_0 is in it; columns, column : likewise y_0
    dim : positive
    out, at : flat memory, and where the block's first entry goes; its rows are PANEL apart
    """
    vector = _vector(rows)

    def generate(context, builder, signature, arguments):
        x, y, out = (_place(context, builder, signature, arguments, i) for i in (0, 2, 5))

        def products(place: Any) -> Iterator[tuple[Any, Any]]:
            y_d = _load(builder, y, place, vector)
            for i in range(ROWS):
                x_id = builder.load(builder.gep(x, [builder.add(place, SIZE(i))]))
                yield _spread(builder, x_id, vector), y_d

        for i, total in enumerate(_sum(builder, arguments[4], vector, ROWS, products)):
            _store(builder, total, out, SIZE(i * PANEL))
        return context.get_dummy_value()

    int64 = types.int64
    return types.void(rows, int64, columns, int64, int64, out, int64), generate


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

        def products(place: Any) -> Iterator[tuple[Any, Any]]:
            for start in starts:
                x_d = _load(builder, x, builder.add(place, SIZE(start)), vector)
                yield x_d, x_d

        totals = _sum(builder, arguments[2], vector, len(starts), products)
        for start, total in zip(starts, totals, strict=True):
            _store(builder, total, out, SIZE(start))
        return context.get_dummy_value()

    return types.void(panel, types.int64, types.int64, out, types.int64), generate


@intrinsic
def transpose(typing, window, first, step, positions, i, dim, scale, panel, at):
    """Write a vector's worth of points, times a scale, into a panel.

    window, first : flat memory, and where point 0 begins in it; points are `step` apart
    positions, i : which points there are, and the number of the first one wanted
    dim : a multiple of a vector's length
    panel, at : flat memory, and where the first point's first dimension goes

    A square of numbers is transposed in registers: each step interleaves every vector of its upper
    half with one of the lower, and when it has been done log2(length) times rows are columns.
    0.16 ns a number, where copying them one by one takes 0.42.
    """
    vector = _vector(window)
    count = vector.count
    order = ir.VectorType(INDEX, count)

    def generate(context, builder, signature, arguments):
        x, wanted, out = (_place(context, builder, signature, arguments, i) for i in (0, 3, 7))
        step, dim, scale = arguments[2], arguments[5], _spread(builder, arguments[6], vector)
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
                _store(builder, row, out, builder.mul(builder.add(d, SIZE(k)), SIZE(PANEL)))
        return context.get_dummy_value()

    int64 = types.int64
    arguments = window, int64, int64, positions, int64, int64, window.dtype, panel, int64
    return types.void(*arguments), generate


def _sum(
    builder: ir.IRBuilder,
    dim: Any,
    vector: ir.VectorType,
    count: int,
    products: Callable[[Any], Iterator[tuple[Any, Any]]],
) -> list[Any]:
    """Sum over dimensions the products of `count` pairs of vectors, given a dimension's place.

    The sums are variables of the loop, which is what keeps them in registers.
    """
    before = builder.block
    loop, after = builder.append_basic_block("dimensions"), builder.append_basic_block("summed")
    builder.branch(loop)
    builder.position_at_end(loop)
    d, sums = builder.phi(SIZE), [builder.phi(vector) for _ in range(count)]
    fused = ["contract"]
    added = [
        builder.fadd(total, builder.fmul(a, b, flags=fused), flags=fused)
        for total, (a, b) in zip(sums, products(builder.mul(d, SIZE(PANEL))), strict=True)
    ]
    following = builder.add(d, SIZE(1))
    builder.cbranch(builder.icmp_signed("<", following, dim), loop, after)
    starts = [SIZE(0), *[vector(None)] * count]
    for variable, start, next_ in zip([d, *sums], starts, [following, *added], strict=True):
        variable.add_incoming(start, before)
        variable.add_incoming(next_, loop)
    builder.position_at_end(after)
    return added


def _vector(array: Any) -> ir.VectorType:
    """The type of a vector of an array's numbers."""
    number = ir.FloatType() if array.dtype == types.float32 else ir.DoubleType()
    return ir.VectorType(number, BYTES * 8 // array.dtype.bitwidth)


def _place(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any, i: int) -> Any:
    """Where flat memory, argument i, has the element whose number is argument i + 1."""
    memory = context.make_array(signature.args[i])(context, builder, arguments[i])
    return builder.gep(memory.data, [arguments[i + 1]])


def _load(builder: ir.IRBuilder, start: Any, place: Any, vector: ir.VectorType) -> Any:
    pointer = builder.bitcast(builder.gep(start, [place]), vector.as_pointer())
    return builder.load(pointer, align=4)  # arrays of numbers are aligned to no more


def _store(builder: ir.IRBuilder, value: Any, start: Any, place: Any) -> None:
    pointer = builder.bitcast(builder.gep(start, [place]), value.type.as_pointer())
    builder.store(value, pointer, align=4)


def _spread(builder: ir.IRBuilder, number: Any, vector: ir.VectorType) -> Any:
    """A vector of one number."""
    first = builder.insert_element(vector(ir.Undefined), number, INDEX(0))
    everywhere = ir.VectorType(INDEX, vector.count)(None)
    return builder.shuffle_vector(first, vector(ir.Undefined), everywhere)
