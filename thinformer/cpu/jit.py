"""The only caller of ``numba.njit``: our flag sets, the disk cache, and the fallback without one.

Nothing is compiled before it is first called, no signature is given, and no kernel is
``parallel=True``: Numba's threading layers abort on concurrent calls (workqueue) or kill forked
children (omp). Kernels release the GIL and run from the threads of `thinformer.support.threads`.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
from numba.extending import overload

# the folders whose functions are compiled, and whose named tuples are types of compiled code
COMPILED = ("kernels", "halving", "cpu")

# What the compiler may do to floating-point arithmetic. None assumes the absence of NaN or inf.
STRICT: set[str] = set()  # as written: the sums that decide swaps, or a seed does not reproduce
ELEMENTWISE = {"contract", "nsz"}  # a*b+c may be rounded once
REDUCTION = {"contract", "nsz", "reassoc"}  # sums may run in another order, to vectorise


@functools.cache
def source_hash() -> str:
    """Eight hex digits that change with any source file in a folder of compiled code."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for folder in COMPILED for path in (package / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def kernel(function: Callable) -> Any:
    """Compile a function that Python calls; its machine code is cached on disk where possible.

    Numba's own cache does not see that a callee in another file has changed, and would run the old
    code after an upgrade. Its index file is named after the function, so the name carries a hash
    of those sources.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": STRICT}
    if os.environ.get("THINFORMER_CACHE") == "0":
        return numba.njit(**options)(function)
    function.__qualname__ += f"_{source_hash()}"
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to cache in is writable
        return numba.njit(**options)(function)


@functools.cache
def uncached(compiled: Any) -> Any:
    """The same kernel, whose machine code is not stored."""
    return numba.njit(nogil=True, error_model="numpy", fastmath=STRICT)(compiled.py_func)


def inner(fastmath: set[str]) -> Callable[[Callable], Any]:
    """Compile a function that kernels call."""
    return numba.njit(error_model="numpy", fastmath=fastmath)


def bind(function: Callable, fastmath: set[str], **names: Any) -> Any:
    """Compile a plain function for kernels, with some of its global names bound anew.

    So `thinformer.kernels` says ``exp``, and each target binds its own.
    """
    assert isinstance(function, FunctionType)
    bound = FunctionType(function.__code__, function.__globals__ | names, function.__name__)
    return inner(fastmath)(bound)


def by_kind(functions: dict[type, Callable]) -> Callable:
    """Return a function for kernels that is one of several by its first argument's class."""
    return _by_first_type(lambda first: functions[first.instance_class])


def by_array(of_array: Callable, of_other: Callable) -> Callable:
    """Return a function for kernels that is one or the other by whether it gets an array first."""
    return _by_first_type(lambda t: of_array if isinstance(t, numba.types.Array) else of_other)


def _by_first_type(select: Callable[[Any], Callable]) -> Callable:
    def choose(*arguments):
        raise NotImplementedError("exists in compiled code only")

    @overload(choose)
    def _(*arguments):
        function = select(arguments[0])

        def chosen(*arguments):
            return function(*arguments)

        return chosen

    return choose


@functools.cache
def from_products(phi: Callable) -> Callable:
    """Compile a function of two points from one of their inner product and squared norms."""

    @inner(STRICT)
    def of_points(x, y):
        product = x_norm = y_norm = x.dtype.type(0)
        for i in range(x.size):
            product += x[i] * y[i]
            x_norm += x[i] * x[i]
            y_norm += y[i] * y[i]
        return phi(product, x_norm, y_norm)

    return of_points


def by_dtype(float32: Callable, float64: Callable) -> Callable:
    """Return a function for kernels that is one or the other by the type of its argument."""

    def choose(x):
        raise NotImplementedError("exists in compiled code only")

    @overload(choose, jit_options={"fastmath": ELEMENTWISE})
    def _(x):
        return float32 if x == numba.float32 else float64

    return choose
