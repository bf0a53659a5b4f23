"""The arguments of attention on arrays: shapes, the softmax scale, finite entries, their range."""

from __future__ import annotations

import math
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from thinformer.attending.options import KeySelection
from thinformer.cpu.run import is_finite
from thinformer.halving.problem import head_factor
from thinformer.support import checks


def softmax_scale(scale: float | None, dim: int) -> float:
    """Return the softmax scale, 1 / sqrt(dim) unless given."""
    return 1 / math.sqrt(dim) if scale is None else checks.positive("scale", scale)


def check_shapes(
    key: tuple[int, ...], value: tuple[int, ...], query: tuple[int, ...] | None = None
) -> None:
    """Check the shapes of key (B, S, H, E), value (B, S, H, D) and query (B, T, H, E)."""
    if len(key) != 4:
        raise ValueError(f"key must have shape (B, S, H, E); got shape {key}")
    if len(value) != 4 or value[:3] != key[:3]:
        raise ValueError(
            f"value must have shape (B, S, H, D) with the B, S and H of key {key}; "
            f"got shape {value}"
        )
    for name, shape in (("key", key), ("value", value)):
        if shape[1] == 0 or shape[3] == 0:
            raise ValueError(f"{name} must have at least one token and column; got shape {shape}")
    if query is not None and (len(query) != 4 or (query[0], *query[2:]) != (key[0], *key[2:])):
        raise ValueError(
            f"query must have shape (B, T, H, E) with the B, H and E of key {key}; "
            f"got shape {query}"
        )


def check_finite(**arrays: NDArray) -> None:
    """Check that arguments are finite, and name one that is not."""
    for name, array in arrays.items():
        checks.finite(name, is_finite(head_factor(array), array.shape[1]))


def check_logits(query: NDArray, key: NDArray, scale: float) -> None:
    """Check that norms and logits are in the range of their dtype."""
    remedy = "Divide it by a number, and multiply scale by that number"
    largest = [
        float(checks.squared_norms(name, array, remedy).max())
        for name, array in (("query", query), ("key", key))
    ]
    bound = scale * (largest[0] * largest[1]) ** 0.5
    if not bound < float(np.finfo(key.dtype).max) / 4:
        raise ValueError(
            f"scale must keep the logits in the range of {key.dtype}; got {scale:.3g}, with which "
            f"they may be {bound:.2g}"
        )


def raise_overflow(
    query: NDArray, key: NDArray, value: NDArray, selection: KeySelection
) -> NoReturn:
    """Raise the error of finite arguments that a correction cannot take; name one too large."""
    with np.errstate(over="ignore", invalid="ignore"):
        centred = key - key.mean(axis=1, keepdims=True)
    checks.squared_norms("key", np.nan_to_num(centred), checks.SMALLER_KEYS)
    checks.squared_norms("query", query, "Give a number as temperature")
    largest = {
        name: float(np.abs(array).max())
        for name, array in (("query", query), ("key", key), ("value", value))
    }
    raise too_large(selection, value.dtype, **largest)


def too_large(selection: KeySelection, dtype: np.dtype, **largest: float) -> ValueError:
    """The error where finite arguments give an output that is not; they have these numbers."""
    got = ", ".join(f"{name} {number:.2g}" for name, number in largest.items())
    setting = "a correction" if selection.correction else "a temperature"
    give = "Give a number as temperature"
    if selection.tau is not None:
        give = f"Give another temperature than {selection.tau:g}"
    return ValueError(
        f"query, key, value and scale are too large for {setting} in {dtype}; got the largest "
        f"numbers {got}. {give}, or divide value by a number and multiply the output by it"
        f"{checks.or_float64(dtype)}"
    )
