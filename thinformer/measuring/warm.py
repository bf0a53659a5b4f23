"""All kernels that a usual call compiles, compiled once, for images and for tests in CI."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.arrays import attention
from thinformer.attending.causal import causal_attention
from thinformer.thinning.comparison import compare
from thinformer.thinning.thin import thin
from thinformer.thinning.two_sample import two_sample_test

DTYPES = ("float32", "float64")
KINDS = ("gaussian", "linear", "sobolev")  # loops are compiled for a kind of kernels at a time
CORRECTIONS = {
    "": None,
    ' with correction="nystrom"': "nystrom",
    ' with correction="queries"': "queries",
}


def warm() -> Iterator[tuple[str, float]]:
    """Make each usual call once, on little data; yield its name and the seconds that it took."""
    for name, call in _calls().items():
        start = time.perf_counter()
        call()
        yield name, time.perf_counter() - start


def _calls() -> dict[str, Callable[[], None]]:
    calls: dict[str, Callable[[], None]] = {}
    for dtype in DTYPES:
        calls[f"thin, {dtype}"] = partial(_thin, dtype)
        calls[f"two_sample_test, {dtype}"] = partial(_test, dtype)
    for words, correction in CORRECTIONS.items():
        for dtype in DTYPES:
            calls[f"attention{words}, {dtype}"] = partial(_attend, dtype, correction)
        if importlib.util.find_spec("torch"):
            calls[f"attention{words}, torch"] = partial(_attend_on_tensors, correction)
    for dtype in DTYPES:
        calls[f"causal_attention and compress_cache, {dtype}"] = partial(_attend_causally, dtype)
    return calls


def _thin(dtype: str) -> None:
    points = np.random.default_rng(0).uniform(size=(1024, 2)).astype(dtype)
    for kernel in KINDS:
        compare(points, {"few": thin(points, 32, kernel=kernel, rng=0)}, kernel=kernel)


def _test(dtype: str) -> None:
    x, y = np.random.default_rng(0).uniform(size=(2, 128, 2)).astype(dtype)
    for kernel in KINDS:
        two_sample_test(x, y, kernel=kernel, rng=0)


def _attend(dtype: str, correction: Any) -> None:
    attention(*_tokens(dtype), size=32, correction=correction, rng=0)


def _attend_on_tensors(correction: Any) -> None:
    import torch

    from thinformer.torch import thinformer_attention

    query, key, value = (torch.from_numpy(array) for array in _tokens("float32"))
    thinformer_attention(query, key, value, size=32, correction=correction)


def _attend_causally(dtype: str) -> None:
    query, key, value = _tokens(dtype)
    causal_attention(query, key, value, 64, block=128, recent=16)


def _tokens(dtype: str) -> NDArray:
    return np.random.default_rng(0).normal(size=(3, 1, 256, 2, 64)).astype(dtype)
