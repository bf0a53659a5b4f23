"""Checks of arguments; an error names the argument, what it takes, and what it got."""

from __future__ import annotations

import numbers
import os
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLER_KEYS = "Divide key by a number, multiply scale by it and give a larger temperature"
COMPUTED_IN = {"float16": np.float32, "float32": np.float32, "float64": np.float64}


def float_array(name: str, value: Any) -> NDArray:
    """Return `value` as an array, float16, float32 or float64."""
    in_memory(name, value)
    array = np.asarray(value)
    if array.dtype.name not in COMPUTED_IN:
        hint = " (convert it with .astype(float))" if array.dtype.kind in "biu" else ""
        raise TypeError(
            f"{name} must be float16, float32 or float64; got dtype {array.dtype}{hint}"
        )
    return array


def in_memory(name: str, value: Any) -> None:
    """Raise for an array or a column of Dask, which NumPy would load silently."""
    graph = getattr(value, "__dask_graph__", None)
    if callable(graph) and graph() is not None:  # None of an array of xarray that is in memory
        raise TypeError(
            f"{name} must be in memory; got a Dask {type(value).__name__}. "
            f"{name}.compute() loads it"
        )


def computed(array: NDArray) -> NDArray:
    """Return a float array in the dtype it is computed in; copies float16, foreign byte order."""
    return array.astype(COMPUTED_IN[array.dtype.name], copy=False)


def one_dtype(**dtypes: Any) -> None:
    """Check that the arguments share one dtype."""
    if len(set(dtypes.values())) > 1:
        got = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{', '.join(dtypes)} must have one dtype; got {got}")


def shape(name: str, array: NDArray, ndim: int, axes: str) -> None:
    """Check that an array has at least `ndim` axes, which the error calls `axes`."""
    if array.ndim < ndim:
        hint = f" (one column is {name}[:, None])" if array.ndim == 1 else ""
        raise ValueError(f"{name} must have shape {axes}; got shape {array.shape}{hint}")


def not_empty(name: str, array: NDArray, axis: int, what: str) -> None:
    """Check that an axis has at least one element."""
    if array.shape[axis] == 0:
        raise ValueError(f"{name} must have at least one {what}; got shape {array.shape}")


def finite(name: str, is_finite: bool) -> None:
    """Raise ValueError for an argument that is not finite."""
    if not is_finite:
        raise ValueError(f"{name} must be finite; it holds NaN or infinity")


def symmetric(name: str, matrices: NDArray) -> None:
    """Check that matrices (..., S, S) are symmetric to half of their digits, in blocks of rows."""
    S = matrices.shape[-1]
    rows = max(1, 2**18 // S)
    for place in np.ndindex(*matrices.shape[:-2]):
        matrix = matrices[place]
        largest = max(
            float(np.max(np.abs(matrix[start : start + rows]))) for start in range(0, S, rows)
        )
        tolerance = np.sqrt(np.finfo(matrix.dtype).eps) * largest
        for start in range(0, S, rows):
            block = matrix[start : start + rows]
            off = np.max(np.abs(block - matrix[:, start : start + rows].T))
            if off > tolerance:
                raise ValueError(
                    f"{name} must be symmetric; "
                    f"got entries that differ by {off:.3g} from their mirror"
                )


def integer(name: str, value: Any, least: int) -> int:
    """Return an integer argument that is at least `least`."""
    if not _is_number(value) or not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
    return int(value)


def squared_norms(name: str, vectors: NDArray, remedy: str) -> NDArray:
    """Return the squared norms of vectors (..., E); raise where finite numbers give infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("...e,...e->...", vectors, vectors)
    if (np.isinf(squares) & np.isfinite(vectors).all(axis=-1)).any():
        limit = float(np.finfo(vectors.dtype).max) ** 0.5
        raise ValueError(
            f"{name} must have norms below {limit:.2g}, the root of the largest {vectors.dtype}; "
            f"got a larger one. {remedy}{or_float64(vectors.dtype)}"
        )
    return squares


def or_float64(dtype: np.dtype) -> str:
    """The end of a remedy against numbers out of range."""
    return "" if dtype == np.float64 else ", or give float64"


def temperature_in_range(temperature: float, centred: NDArray, scale: float) -> None:
    """Check that centred keys (..., E) over a temperature have squared norms in their range."""
    squares = squared_norms("key", centred, SMALLER_KEYS)
    finite = np.isfinite(centred).all(axis=-1)  # another check finds keys that are not finite
    largest = float(np.max(squares, initial=1, where=finite))
    limit = np.finfo(centred.dtype).max
    if not scale * largest < float(limit) / 2 * temperature * temperature:
        raise ValueError(
            f"temperature must be larger: keys over it have squared norms beyond the range of"
            f" {centred.dtype}; got {temperature}"
        )


def positive(name: str, value: Any) -> float:
    """Return a positive, finite number."""
    if not _is_number(value) or not 0 < float(value) < float("inf"):
        raise ValueError(f"{name} must be positive and finite; got {value!r}")
    return float(value)


def failure_probability(delta: Any) -> float:
    """Return delta, a number in (0, 1]."""
    if not _is_number(delta) or not 0 < float(delta) <= 1:
        raise ValueError(f"delta must lie in (0, 1]; got {delta!r}")
    return float(delta)


def finite_number(name: str, value: Any) -> float:
    """Return a finite number."""
    if not _is_number(value) or not abs(float(value)) < float("inf"):
        raise ValueError(f"{name} must be finite; got {value!r}")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def compiled(name: str, function: Any) -> None:
    """Check that ``numba.njit`` compiled a function."""
    if not hasattr(function, "py_func"):
        off = os.environ.get("NUMBA_DISABLE_JIT", "0") != "0"
        hint = " (unset NUMBA_DISABLE_JIT, with which numba.njit compiles nothing)" if off else ""
        raise TypeError(f"{name} must be compiled by numba.njit; got {function!r}{hint}")


def boolean(name: str, value: Any) -> bool:
    """Return True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return bool(value)


def choice(name: str, value: Any, allowed: tuple[str | None, ...]) -> str:
    """Return one of the allowed words; errors list None too, which callers handle before."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value


def depth() -> int:
    """The `stacklevel` of a warning that names the first caller outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("thinformer"):
        level, frame = level + 1, frame.f_back
    return level


class CudaUnavailableError(RuntimeError):
    """There is no GPU that can be used; the message says why and what to do."""


class CompilerUnavailableError(RuntimeError):
    """Numba compiles nothing; the message says why and what to do."""
