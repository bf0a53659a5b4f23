"""Time and memory of a greedy generation with all keys, and with a `ThinnedCache`.

All caches take turns, round after round: other work of the machine slows them alike.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from thinformer.attending.cache import CacheOptions
from thinformer.measuring.cache_quality import FULL, THINNED
from thinformer.support.progress import Tell
from thinformer.support.table import aligned
from thinformer.torch.cache.cached import Cached
from thinformer.torch.evaluation.decoders import Decoder, bytes_of, thinned_layers


class Generation(NamedTuple):
    """A greedy generation, medians over rounds.

    size : None for the full cache
    first : seconds to the first token
    fit : seconds of them in which keys are chosen and fitted
    rate : tokens a second after the first
    bytes : of the tensors of the cache in the end
    """

    method: str
    size: int | None
    first: float
    fit: float
    rate: float
    bytes: int


def generations(
    decoder: Decoder,
    prompt: torch.Tensor,
    sizes: Sequence[int],
    count: int,
    rounds: int,
    tell: Tell,
) -> list[Generation]:
    """Generate `count` tokens after a prompt, with the full cache and with each size."""
    ways = [None, *sizes]
    found: dict[int | None, list[tuple[float, float, float, int]]] = {size: [] for size in ways}
    steps = rounds * len(ways)
    for i in range(rounds):
        # none is always the first
        for k, size in enumerate(ways if i % 2 == 0 else reversed(ways)):
            tell("generations", (i * len(ways) + k) / steps)
            found[size].append(generated(decoder, prompt, size, count))
    return [
        Generation(
            FULL if size is None else THINNED, size,
            *(median(column) for column in zip(*of_size, strict=True)),
        )
        for size, of_size in found.items()
    ]  # fmt: skip


def generated(
    decoder: Decoder, prompt: torch.Tensor, size: int | None, count: int
) -> tuple[float, float, float, int]:
    """Return the seconds to the first token and of the fit, tokens a second, and bytes."""
    fit = [0.0]
    cache = decoder.full_cache() if size is None else decoder.thinned_cache(size=size)
    for layer in thinned_layers(cache):
        layer.choose = _timed(layer.choose, fit)
    start = _now(prompt)
    tokens = decoder.logits(prompt, cache, last=True).argmax(1)
    first, of_prompt = _now(prompt), fit[0]
    for _ in range(count - 1):
        tokens = decoder.logits(tokens, cache, last=True).argmax(1)
    seconds = _now(prompt) - first
    return first - start, of_prompt, (count - 1) / seconds, bytes_of(cache)


def format_generations(found: Sequence[Generation]) -> str:
    """Return a table: a row for each cache."""
    rows = [("cache", "size", "first token", "of it the fit", "tokens a second", "memory")]
    for each in found:
        full = each.size is None
        rows.append((
            each.method, "all" if full else f"{each.size:,}", f"{each.first:.3f} s",
            "" if full else f"{each.fit:.3f} s", f"{each.rate:.2f}", f"{each.bytes / 1e6:.2f} MB",
        ))  # fmt: skip
    return aligned(rows, left={0})


def _timed(choose: Any, spent: list[float]) -> Any:
    """Return the same choice of keys, whose seconds are added to spent[0]."""

    def timed(query: torch.Tensor, cached: Cached, options: CacheOptions, scale: float) -> Cached:
        start = _now(query)
        chosen = choose(query, cached, options, scale)
        spent[0] += _now(query) - start
        return chosen

    return timed


def _now(tensor: torch.Tensor) -> float:
    """The time in seconds when all work on a tensor's device is done."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()
