"""The only caller of ``numba.njit``: the compiler's options, and the cache on disk.

A function is compiled when it is first called, for the types of that call. No kernel is
``parallel=True``: Numba's threading layers abort on concurrent calls (workqueue) or kill forked
children (omp). Kernels release the GIL and run on the threads of `thinformer.support.threads`.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
from numba.core import event
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.extending import overload

from thinformer.support import compiling
from thinformer.support.checks import CompilerUnavailableError

# the folders with compiled functions, and with the named tuples that these functions take
COMPILED = ("kernels", "halving", "cpu")

# What the compiler may do to floating-point arithmetic. No set assumes that there is no NaN or inf.
STRICT: set[str] = set()  # as written; for the sums that decide swaps, so that a seed reproduces
ELEMENTWISE = {"contract", "nsz"}  # a*b+c may be rounded once
REDUCTION = {"contract", "nsz", "reassoc"}  # sums may run in another order, to vectorise


@functools.cache
def source_hash() -> str:
    """Return eight hex digits that change with any source file in a folder of compiled code."""
    package, digest = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for folder in COMPILED for path in (package / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def why_unavailable() -> str | None:
    """Return why no kernel can be compiled here and what to do about it; None if kernels can."""
    if getattr(numba.config, "DISABLE_JIT", 0):
        return "thinformer needs Numba's compiler: unset NUMBA_DISABLE_JIT"
    return None


def refuse(*arguments: Any) -> Any:
    """Stand in for every kernel where nothing can be compiled."""
    raise CompilerUnavailableError(why_unavailable())


def kernel(function: Callable) -> Any:
    """Compile a function that Python calls; its machine code is cached on disk where possible.

    Where Numba compiles nothing, the call raises: the loops in `thinformer.cpu.simd` have no Python
    form.

    Numba's own cache does not notice a change of a callee in another file, and would run old code
    after an upgrade. Numba names its index file after the function; so the function's name gets the
    hash of all sources that may be compiled into it.
    """
    if why_unavailable():
        return refuse
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": STRICT}
    options["no_cfunc_wrapper"] = True  # no other language calls it
    if os.environ.get("THINFORMER_CACHE") == "0":
        return numba.njit(**options)(function)
    function.__qualname__ += f"_{source_hash()}"
    try:
        compiled = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to cache in is writable
        return numba.njit(**options)(function)
    _name_files_apart(compiled)
    return compiled


def _name_files_apart(compiled: Any) -> None:
    """Give each file of machine code in the cache a name that no other process gives.

    Numba numbers them by the index, which it writes first. Of two processes that compile two
    signatures of a function at once, each would write the same file, and the index of one could
    name the machine code of the other.
    """
    file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    pattern = getattr(file, "_data_name_pattern", "")
    if "{number:d}" in pattern:
        base = pattern.partition("{number:d}")[0]
        file._data_name = lambda number: f"{base}{uuid.uuid4().hex[:16]}.nbc"  # type: ignore


@functools.cache
def uncached(compiled: Any) -> Any:
    """Return the same kernel, compiled without the cache on disk."""
    if compiled is refuse:
        return refuse
    return numba.njit(nogil=True, error_model="numpy", fastmath=STRICT)(compiled.py_func)


# what runs where Python calls such a function: one of the interpreter's own, raises TypeError
RAISES: int = ctypes.cast(ctypes.pythonapi.PyErr_BadArgument, ctypes.c_void_p).value or 0


class _Part(JITCodeLibrary):
    """The code of a function that kernels call, in LLVM's language.

    Numba would optimise it and make machine code of it, with all that it calls, and do so again for
    each of its callers. Only kernels need that.
    """

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return RAISES

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """Do nothing: without machine code there is no place for an environment."""


class _PartCompiler(Compiler):
    def define_pipelines(self) -> Any:
        state = self.state
        state.library = _Part(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()


def options_of_parts(fastmath: set[str]) -> Any:
    """Return the compiler's options for functions that only kernels call."""
    return {
        "error_model": "numpy",
        "fastmath": fastmath,
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
        "pipeline_class": _PartCompiler,
    }


def inner(fastmath: set[str]) -> Callable[[Callable], Any]:
    """Compile a function that kernels call."""
    return numba.njit(**options_of_parts(fastmath))


def bind(function: Callable, fastmath: set[str], **names: Any) -> Any:
    """Compile a plain function for kernels, and give some of its global names other values.

    The formulas of `thinformer.kernels` call ``exp``; here it becomes the package's own.
    """
    assert isinstance(function, FunctionType)
    bound = FunctionType(function.__code__, function.__globals__ | names, function.__name__)
    return inner(fastmath)(bound)


def by_kind(functions: dict[type, Callable]) -> Callable:
    """Return a function for kernels that calls one of several, by its first argument's class."""

    def choose(*arguments):
        raise NotImplementedError("exists in compiled code only")

    @overload(choose, jit_options=options_of_parts(STRICT), strict=False)
    def _(*arguments):
        return functions[arguments[0].instance_class].py_func

    return choose


def by_tag(functions: dict[int, Callable]) -> Callable:
    """Return a function of (`Points`, term, ...) for kernels that calls one of several.

    The functions are named by the first tag of a kind of kernels. Only those of the kinds that the
    points have are compiled.
    """

    def choose(problem, term, *arguments):
        raise NotImplementedError("exists in compiled code only")

    @overload(choose, jit_options=options_of_parts(STRICT), strict=False)
    def _(problem, term, *arguments):
        least, *others = (len(kind) for kind in problem.types[problem.fields.index("kinds")])
        chosen = functions[least]
        for first in others:
            chosen = _from_tag(first, functions[first], chosen)
        return chosen.py_func

    return choose


def _from_tag(first: int, function: Callable, below: Callable) -> Any:
    @inner(STRICT)
    def one_of_two(problem, term, *arguments):
        if problem.tags[term] >= first:
            function(problem, term, *arguments)
        else:
            below(problem, term, *arguments)

    return one_of_two


def if_labelled(function: Callable) -> Callable:
    """Return a function of (`Points`, ...) for kernels that calls another if points have labels.

    These points have a companion of one axis. For all others nothing is compiled.
    """

    def choose(problem, *arguments):
        raise NotImplementedError("exists in compiled code only")

    def nothing(problem, *arguments):
        pass

    @overload(choose, jit_options=options_of_parts(STRICT), strict=False)
    def _(problem, *arguments):
        companion = problem.types[problem.fields.index("companion")]
        return function.py_func if getattr(companion, "ndim", 0) == 1 else nothing

    return choose


@functools.cache
def from_products(phi: Callable) -> Callable:
    """Compile a function of two points that calls phi(<x, y>, |x|^2, |y|^2).

    Python calls it too, as it calls any user's function: to check it on a few points.
    """

    @numba.njit(error_model="numpy", fastmath=STRICT)
    def of_points(x, y):
        product = x_norm = y_norm = x.dtype.type(0)
        for i in range(x.size):
            product += x[i] * y[i]
            x_norm += x[i] * x[i]
            y_norm += y[i] * y[i]
        return phi(product, x_norm, y_norm)

    return of_points


def by_dtype(float32: Callable, float64: Callable) -> Callable:
    """Return a function for kernels that calls one of two, by the dtype of its argument."""

    def choose(x):
        raise NotImplementedError("exists in compiled code only")

    @overload(choose, jit_options=options_of_parts(ELEMENTWISE))
    def _(x):
        return float32 if x == numba.float32 else float64

    return choose


class _Listener(event.Listener):
    """Says when a kernel of this package is compiled. Loading it from the disk is no event.

    A kernel's compilation compiles the functions that it calls; only the outermost is told.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.ours = False

    def on_start(self, event: Any) -> None:
        if self.depth == 0:
            function = getattr(event.data["dispatcher"], "py_func", None)
            self.ours = str(getattr(function, "__module__", "")).startswith("thinformer.")
            if self.ours:
                compiling.begin()
        self.depth += 1

    def on_end(self, event: Any) -> None:
        self.depth -= 1
        if self.depth == 0 and self.ours:
            compiling.end()


event.register("numba:compile", _Listener())
