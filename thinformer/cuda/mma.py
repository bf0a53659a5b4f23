"""An instruction of tensor cores, which Numba has no name for.

It is written into the code of a kernel as text. Registers are where the manual of PTX says for
``mma.m16n8k16``; `tensor` explains them.
"""

from __future__ import annotations

import functools
from typing import Any

TEXT = (
    "mma.sync.aligned.m16n8k16.row.col.f32.{of}.{of}.f32"
    " {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"
)


@functools.cache
def make_mma(of: str) -> Any:
    """Return mma(a0, .. a3, b0, b1, c0, .. c3): the 4 sums with the products added.

    `of` is "f16" or "bf16". The a and b are uint32, of two numbers each, the c are float32. All
    threads of a warp must call it together. It needs compute capability 8.0.
    """
    from llvmlite import ir
    from numba import types

    try:
        from numba.cuda import extending
    except ImportError:  # numba-cuda before it had extensions of its own
        from numba import extending  # type: ignore[no-redef]

    number, word = ir.FloatType(), ir.IntType(32)
    called = ir.FunctionType(ir.LiteralStructType([number] * 4), [word] * 6 + [number] * 4)
    instruction = ir.InlineAsm(
        called, TEXT.format(of=of), "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", side_effect=True
    )

    @extending.intrinsic
    def mma(typing, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
        def generate(context, builder, signature, arguments):
            sums = builder.call(instruction, arguments)
            result = ir.Constant(ir.ArrayType(number, 4), ir.Undefined)
            for i in range(4):
                result = builder.insert_value(result, builder.extract_value(sums, i), i)
            return result

        words, numbers = (types.uint32,) * 6, (types.float32,) * 4
        return types.UniTuple(types.float32, 4)(*words, *numbers), generate

    return mma
