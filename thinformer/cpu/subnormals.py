"""Subnormal numbers count as zero in the softmax and the corrections, and nowhere else.

Arithmetic on numbers below the normal range (1.2e-38 in float32) is slow on x86: exponentials that
fall there took 2.5 to 5 times as long (an AMD EPYC). Those of peaked attention do, and change no
digit of a sum that has the largest exponential, 1. On other processors nothing is done.
"""

from __future__ import annotations

import platform

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from thinformer.cpu.jit import kernel

ARE_SLOW = platform.machine().lower() in ("x86_64", "amd64")
FLUSH = np.uint32(0x8000)  # results below the normal range become zero; numbers that are read stay


def cleared(size: int, dtype: np.dtype) -> NDArray:
    """Return memory to work in without subnormal numbers, which freed memory may hold.

    Loops compute on whole panels. What they compute at places of the last panel that have no point
    is never used, but takes time.
    """
    return np.zeros(size, dtype)


@intrinsic
def control(typing):
    """Return the register MXCSR, which says how this thread's vector units compute."""

    def generate(context, builder, signature, arguments):
        place = cgutils.alloca_once(builder, ir.IntType(32))
        builder.call(_access(builder, "stmxcsr"), [_bytes(builder, place)])
        return builder.load(place)

    return types.uint32(), generate


@intrinsic
def set_control(typing, state):
    """Set the register MXCSR."""

    def generate(context, builder, signature, arguments):
        place = cgutils.alloca_once_value(builder, arguments[0])
        builder.call(_access(builder, "ldmxcsr"), [_bytes(builder, place)])
        return context.get_dummy_value()

    return types.void(types.uint32), generate


def _access(builder, name):
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}")


def _bytes(builder, place):
    return builder.bitcast(place, ir.IntType(8).as_pointer())


@kernel
def flush():
    """Let subnormal results become zero on this thread; return the state to `restore`."""
    before = control()
    set_control(np.uint32(before | FLUSH))
    return before


@kernel
def restore(before):
    """Return to a state that `flush` returned."""
    set_control(before)
