"""`thinformer tune` of a decoder: how many keys each layer of a `ThinnedCache` keeps.

Some layers lose little with few keys, others much. A layer's effect is the divergence of the next
tokens from those with the full cache, where that layer alone is thinned, to half of the mean size.
Sizes are in proportion to a power of the effects, and as many keys together as with equal sizes. Of
a few powers the best is taken; with the power 0 all sizes are equal.

Every second text is held out: on those the sizes are measured beside equal ones.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch

from thinformer.attending.cache import CacheOptions
from thinformer.measuring.cache_quality import compared, prefilled
from thinformer.support.progress import Tell
from thinformer.support.table import aligned
from thinformer.torch.cache.thinned import ThinnedLayer
from thinformer.torch.evaluation.decoders import Decoder, thinned_layers

POWERS = (0.0, 0.25, 0.5)
LEAST = 48  # keys of a layer, unless the mean is less
GAIN = 0.97  # of the divergence with equal sizes; more than this is noise
FLAT = 1e-6  # of the largest effect; smaller ones are rounding


class Tuned(NamedTuple):
    """The sizes of a decoder's layers, and what they lose beside equal sizes.

    layers : numbers of the layers that can be thinned, of `all_layers` layers
    effects : for each of them, the divergence where it alone is thinned to half of the mean size
    sizes : for each of them, the number of keys
    size : their mean
    tuned_on : number of texts
    held_out : number of texts that the last two are measured on; 0 where they are those tuned on
    kl, equal_kl : divergence with these sizes, and with the mean size in each layer
    """

    layers: list[int]
    all_layers: int
    effects: list[float]
    sizes: list[int]
    size: int
    tuned_on: int
    held_out: int
    kl: float
    equal_kl: float

    @property
    def gains(self) -> bool:
        """Whether the sizes lose less than equal ones."""
        return self.kl < GAIN * self.equal_kl

    def of_model(self) -> list[int]:
        """Return a size for each layer of the model; equal ones where nothing is gained."""
        sizes = [self.size] * self.all_layers  # of no meaning for layers with a window of their own
        if self.gains:
            for layer, size in zip(self.layers, self.sizes, strict=True):
                sizes[layer] = size
        return sizes


def tune(
    decoder: Decoder,
    texts: Sequence[tuple[str, torch.Tensor]],
    size: int,
    prompt: int,
    read: int,
    tell: Tell,
) -> Tuned:
    """Choose the sizes on every second text, a name and its tokens, and measure them on the others.

    Raises
    ------
    ValueError
        Where a prompt has no more tokens than `size`.
    """
    if size >= prompt:
        raise ValueError(f"--size must be less than the tokens of a prompt, {prompt}; got {size}")
    of_model = decoder.thinned_cache().layers
    layers = [i for i, layer in enumerate(of_model) if isinstance(layer, ThinnedLayer)]
    tuned_on, held_out = texts[::2], texts[1::2]
    number, measured_on = len(layers), held_out or tuned_on
    total = len(tuned_on) * (number + len(POWERS)) + len(measured_on) * 2
    done = itertools.count()

    def averages(stage: str, some: Sequence[Any], settings: Sequence[Any]) -> list[float]:
        """The divergence of each setting, mean over texts."""
        found = [
            divergences(decoder, tokens, settings, prompt, read, partial(begin, f"{stage}: {name}"))
            for name, tokens in some
        ]
        return [mean(column) for column in zip(*found, strict=True)]

    def begin(stage: str) -> None:
        tell(stage, next(done) / total)

    half = max(size // 2, min(LEAST, size))
    alone = [[prompt] * i + [half] + [prompt] * (number - 1 - i) for i in range(number)]
    effects = averages("one layer at a time", tuned_on, alone)
    candidates = [allocated(effects, power, size, prompt) for power in POWERS]
    losses = averages("sizes together", tuned_on, candidates)
    sizes = candidates[losses.index(min(losses))]
    kl, equal_kl = averages("beside equal sizes", measured_on, [sizes, [size] * number])
    texts_of = len(tuned_on), len(held_out)
    return Tuned(layers, len(of_model), effects, sizes, size, *texts_of, kl, equal_kl)


def divergences(
    decoder: Decoder,
    tokens: torch.Tensor,
    settings: Sequence[Sequence[int]],
    prompt: int,
    read: int,
    begin: Callable[[], None],
) -> list[float]:
    """Return how far the next tokens are from those with the full cache, for sizes by layer.

    begin : is called before each of the settings
    """
    cache = prefilled(decoder, tokens[:prompt])
    follows, targets = tokens[prompt : prompt + read], tokens[prompt + 1 : prompt + read + 1]
    all_keys = [prompt] * len(thinned_layers(cache))
    exact = decoder.logits(follows, with_sizes(cache, all_keys, read)).log_softmax(1)
    found = []
    for sizes in settings:
        begin()
        few = with_sizes(cache, sizes, read)
        kl, *_ = compared(exact, decoder.logits(follows, few), targets)
        if not math.isfinite(kl):
            raise ValueError(f"the model's predictions with sizes {list(sizes)} are not finite")
        found.append(max(0.0, kl))  # rounding may be below zero
    return found


def with_sizes(cache: Any, sizes: Sequence[int], room: int) -> Any:
    """Return a copy of a prefilled cache with a number of keys for each layer that can be thinned.

    room : number of tokens that the copy takes without being compressed again
    """
    cache = copy.deepcopy(cache)
    for layer, size in zip(thinned_layers(cache), sizes, strict=True):
        layer.options = replace(CacheOptions(), size=size, growth=room + 1)
        layer.compress()
    return cache


def allocated(effects: Sequence[float], power: float, size: int, most: int) -> list[int]:
    """Return sizes in proportion to effects ** power, whose mean is `size`.

    No size is below LEAST, if `size` is not, or above `most`.
    """
    largest, least = max(effects), min(LEAST, size)
    if largest <= 0:
        return [size] * len(effects)
    weights = np.maximum(np.array(effects) / largest, FLAT) ** power
    total = size * len(effects)
    low, high = 0.0, total / weights.min()
    for _ in range(100):  # the factor for which the sum of the sizes is the total
        middle = (low + high) / 2
        if np.clip(middle * weights, least, most).sum() < total:
            low = middle
        else:
            high = middle
    real = np.clip(high * weights, least, most)
    sizes = np.floor(real).astype(int)
    largest_rests = np.argsort(sizes - real, kind="stable")
    sizes[largest_rests[: total - sizes.sum()]] += 1
    return sizes.tolist()


def format_tuned(tuned: Tuned) -> str:
    """Return a table, a row for each layer that can be thinned, and what is gained in a line."""
    rows = [
        (f"{layer}", f"{effect:.5f}", f"{size}")
        for layer, effect, size in zip(tuned.layers, tuned.effects, tuned.sizes, strict=True)
    ]
    table = aligned([("layer", "KL of it alone", "keys"), *rows], left=())
    return f"{table}\n\n{format_gain(tuned)}"


def format_gain(tuned: Tuned) -> str:
    """Return the divergences with the sizes chosen and with equal ones in a line."""
    number = tuned.held_out or tuned.tuned_on
    which = "not tuned on" if tuned.held_out else "tuned on, as there is no other one"
    line = (
        f"KL on {number} text{'s' if number > 1 else ''} that it was {which}: {tuned.kl:.4f}; with "
        f"{tuned.size} keys in each layer {tuned.equal_kl:.4f}"
    )
    if tuned.gains:
        return f"{line} ({1 - tuned.kl / tuned.equal_kl:.0%} less)"
    return f"{line}; nothing is gained, so keep equal sizes"


def figures(tuned: Tuned) -> dict[str, Any]:
    """Return what was measured, for the settings file."""
    own = tuned._asdict()
    del own["sizes"]
    return own | {"effects": [float(f"{effect:.4g}") for effect in tuned.effects]}
