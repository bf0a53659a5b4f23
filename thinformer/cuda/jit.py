"""The only importer of ``numba.cuda``, and whether a GPU can be used.

The kernels are written for the package numba-cuda, which provides ``numba.cuda``. Numba's own
module of that name is deprecated and cannot align shared memory. If a successor has another import
name, only this file changes.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from types import CellType, FunctionType
from typing import Any

from numba import config
from numba.core.errors import NumbaError

from thinformer.support.checks import CudaUnavailableError
from thinformer.support.version import version

IMPORT_ERROR: str | None = None
try:
    from numba import cuda
except (ImportError, AttributeError) as error:  # no such module, or one for another Numba
    cuda = None  # type: ignore[assignment]
    IMPORT_ERROR = str(error)

# Numba warns of launches of fewer than 128 blocks. The last rounds of every schedule have few.
if "NUMBA_CUDA_LOW_OCCUPANCY_WARNINGS" not in os.environ:
    # numba-cuda 0.20 has settings of its own
    of_launches: Any = getattr(getattr(cuda, "dispatcher", None), "config", config)
    of_launches.CUDA_LOW_OCCUPANCY_WARNINGS = 0

SIMULATED = bool(getattr(config, "ENABLE_CUDASIM", 0))
# bytes; shared arrays that are read four numbers at a time need it, the simulator takes none
ALIGNED = None if SIMULATED else 16


def device_function(function: Callable) -> Any:
    """Compile a function that kernels call.

    It may be a plain function that the CPU body compiles for itself too.
    """
    return cuda.jit(device=True)(function)


@functools.cache
def user_function(compiled: Any) -> Any:
    """Compile a user's function for kernels; `numba.njit` compiled it for the CPU.

    Functions of `numba.njit` that it calls by their names are compiled for the GPU too.
    """
    function = compiled.py_func
    cells = function.__closure__ or ()
    values = {name: cell.cell_contents for name, cell in zip(
        function.__code__.co_freevars, cells, strict=True)}  # fmt: skip
    names = {**function.__globals__, **values}
    called = {
        name: user_function(names[name])
        for name in (*function.__code__.co_names, *values)
        if hasattr(names.get(name), "py_func")
    }
    if not called:
        return device_function(function)
    closure = tuple(CellType(called.get(name, value)) for name, value in values.items())
    return device_function(
        FunctionType(
            function.__code__, function.__globals__ | called, function.__name__, None, closure
        )
    )


@contextlib.contextmanager
def compiling(name: str) -> Iterator[None]:
    """Raise a TypeError that names an argument where a user's function cannot be compiled."""
    try:
        yield
    except NumbaError as error:
        reason = " ".join(str(error).split())
        raise TypeError(f"{name} cannot be compiled for a GPU: {reason}") from error


def why_unavailable() -> str | None:
    """Return why no kernel can run here and what to do about it; None if kernels can run."""
    if IMPORT_ERROR is not None and importlib.util.find_spec("numba_cuda") is not None:
        return (
            f"numba-cuda {version('numba-cuda')} cannot be imported beside Numba"
            f" {version('numba')} ({IMPORT_ERROR}); Numba 0.66 and later take numba-cuda 0.30.4 and"
            " later"
        )
    if SIMULATED and cuda is not None:
        return None
    if getattr(cuda, "implementation", None) != "NVIDIA":
        return (
            "numba-cuda is not installed: pip install 'numba-cuda[cu13]', or 'numba-cuda[cu12]'"
            " for a driver of CUDA 12"
        )
    try:
        if cuda.is_available() and len(cuda.gpus) > 0:
            return None
        reason = cuda.cuda_error() or "the driver finds no GPU"
    except Exception as error:  # raised by the driver: no GPU, an old driver, no NVVM
        reason = str(error)
    reason = " ".join(reason.split()).rstrip(":. ")
    return f"{reason} (`nvidia-smi` shows the driver and its CUDA version; `numba -s` more)"


def gpu_names() -> list[str]:
    """Return the names of the machine's GPUs."""
    if SIMULATED:
        return ["Numba's simulator"]
    names = [gpu.name for gpu in cuda.gpus]
    return [name.decode() if isinstance(name, bytes) else name for name in names]


def device_of(pointer: int) -> int:
    """Return the number of the GPU whose memory contains an address."""
    if SIMULATED:
        return 0
    driver: Any = cuda.cudadrv.driver
    attribute = driver.binding.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return driver.driver.cuPointerGetAttribute(attribute, driver.binding.CUdeviceptr(pointer))


def check_available(name: str) -> None:
    """Raise CudaUnavailableError, a RuntimeError, for the argument `name` if there is no GPU."""
    reason = why_unavailable()
    if reason is not None:
        raise CudaUnavailableError(f"{name} needs a GPU: {reason}")


__all__ = [
    "ALIGNED",
    "SIMULATED",
    "check_available",
    "compiling",
    "cuda",
    "device_function",
    "device_of",
    "gpu_names",
    "user_function",
    "why_unavailable",
]
