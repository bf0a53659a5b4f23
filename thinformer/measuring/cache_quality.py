"""What a decoder predicts with few keys of a prompt: beside all keys, for each method and size.

A prompt is read once, with all its keys. For each method and size, a copy of the cache is
compressed, and what follows in the text is read on with it in one pass, as it stands there
(teacher-forced). The keys of what is read on are all kept.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any, NamedTuple

import torch

from thinformer.attending.cache import CacheOptions
from thinformer.measuring.cache_peers import PEERS
from thinformer.support.progress import Tell
from thinformer.support.table import aligned
from thinformer.torch.evaluation.decoders import Decoder, thinned_layers

FULL, THINNED = "full cache", "ThinnedCache"
METHODS = (THINNED, *PEERS)
PROMPT, READ = 2048, 128  # tokens, by default


class Lengths(NamedTuple):
    """Numbers of tokens: of a prompt, and of what is read on.

    usual : False where the texts are too short for the default
    """

    prompt: int
    read: int
    usual: bool


def lengths_of(
    texts: Sequence[tuple[str, torch.Tensor]], prompt: int | None, read: int | None
) -> Lengths:
    """Return the numbers of tokens that were asked for, or those that all texts have.

    Raises
    ------
    ValueError
        Where a text is too short; the last token that is predicted is read too.
    """
    name, shortest = min(((name, len(tokens)) for name, tokens in texts), key=lambda x: x[1])
    usual_prompt = min(PROMPT, 3 * shortest // 4)
    prompt_ = usual_prompt if prompt is None else prompt
    read_ = max(1, min(READ, shortest - prompt_ - 1)) if read is None else read
    if prompt_ < 1 or prompt_ + read_ + 1 > shortest:
        raise ValueError(
            f"{name}: has {shortest:,} tokens that the model takes, and --prompt {prompt_} with "
            f"--read {read_} needs {prompt_ + read_ + 1:,}"
        )
    usual = (prompt is not None or prompt_ == PROMPT) and (read is not None or read_ == READ)
    return Lengths(prompt_, read_, usual)


class Reading(NamedTuple):
    """A text that is read on with a compressed cache.

    kl : mean Kullback-Leibler divergence, in nats, of the distributions of the next token from
        those with the full cache
    agreement : how often the most likely token is the same
    log_likelihood : of the tokens that follow, in nats a token
    difference : of it to that with the full cache
    """

    text: str
    method: str
    size: int
    kl: float
    agreement: float
    log_likelihood: float
    difference: float


def readings(
    decoder: Decoder,
    texts: Sequence[tuple[str, torch.Tensor]],
    sizes: Sequence[int],
    prompt: int,
    read: int,
    seed: int,
    tell: Tell,
) -> list[Reading]:
    """Read each text, a name and at least prompt + read + 1 tokens, for each size and method."""
    found = []
    steps = len(sizes) * len(METHODS) + 1
    for i, (name, tokens) in enumerate(texts):
        tell(name, i / len(texts))
        cache = prefilled(decoder, tokens[:prompt])
        follows, targets = tokens[prompt : prompt + read], tokens[prompt + 1 : prompt + read + 1]
        exact = decoder.logits(follows, copy.deepcopy(cache)).log_softmax(1)
        for k, (size, method) in enumerate(itertools.product(sizes, METHODS), 1):
            tell(name, (i + k / steps) / len(texts))
            few = compressed(cache, method, size, seed + i, room=read)
            of_few = compared(exact, decoder.logits(follows, few), targets)
            found.append(Reading(name, method, size, *of_few))
    return found


def compared(
    exact: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor
) -> tuple[float, float, float, float]:
    """Return the divergence, the agreement, the log-likelihood and its difference.

    exact, logits : (R, V) logarithms of probabilities with all keys, and logits with few
    targets : (R,) the tokens that follow
    """
    thinned = logits.log_softmax(1)
    # of a token that is impossible, 0 * (-inf - -inf) would be NaN
    terms = torch.where(exact == -torch.inf, 0, exact.exp() * (exact - thinned))
    agreement = (exact.argmax(1) == thinned.argmax(1)).double().mean()
    likelihoods = [each.gather(1, targets[:, None]).double().mean() for each in (exact, thinned)]
    return (
        float(terms.sum(1, dtype=torch.float64).mean()), float(agreement),
        float(likelihoods[1]), float(likelihoods[1] - likelihoods[0]),
    )  # fmt: skip


def prefilled(decoder: Decoder, prompt: torch.Tensor, can_crop: bool = False) -> Any:
    """Return a `ThinnedCache` of a prompt, with all its keys and its latest queries.

    can_crop : whether its latest tokens can be taken back, where layers have a window of their own
    """
    # the prompt does not reach this growth, so nothing is compressed
    cache = decoder.thinned_cache(growth=len(prompt))
    if can_crop:
        cache.activate_past_recording()
    decoder.logits(prompt, cache, last=True)
    return cache


def compressed(cache: Any, method: str, size: int, seed: int, room: int) -> Any:
    """Return a copy of a prefilled cache with `size` keys.

    room : number of tokens that the copy takes without being compressed again
    """
    cache = copy.deepcopy(cache)
    peer = PEERS.get(method)
    choose = None if peer is None else peer.make(seed)
    own = {} if peer is None else peer.options
    for layer in thinned_layers(cache):
        layer.options = replace(CacheOptions(), size=size, growth=room + 1, **own)
        layer.choose = choose or layer.choose
        if layer.keys.shape[-2] > size:
            layer.compress()
    return cache


class Average(NamedTuple):
    """The mean of a method's readings of a size over texts."""

    method: str
    size: int
    kl: float
    agreement: float
    difference: float


def averages(lines: Sequence[Reading]) -> list[Average]:
    """Average readings over texts, in the order of sizes and methods."""
    found = []
    for size, method in dict.fromkeys((line.size, line.method) for line in lines):
        some = [line for line in lines if (line.size, line.method) == (size, method)]
        columns = zip(*((line.kl, line.agreement, line.difference) for line in some), strict=True)
        found.append(Average(method, size, *map(mean, columns)))
    return found


def format_averages(lines: Sequence[Reading]) -> str:
    """Return a table: a row for each size and method."""
    rows = [("size", "method", "KL", "agreement", "log-likelihood")]
    for size in dict.fromkeys(line.size for line in lines):
        rows += [
            (f"{size:,}", each.method, f"{each.kl:.4f}", f"{each.agreement:.3f}",
             f"{each.difference:+.4f}")
            for each in averages(lines) if each.size == size
        ]  # fmt: skip
    return aligned(rows, left={1})


def format_texts(lines: Sequence[Reading]) -> str:
    """Return a table: a row for each text, for each size ThinnedCache and the best other method."""
    sizes = dict.fromkeys(line.size for line in lines)
    rows = [["text", *(cell for size in sizes for cell in (f"{size:,}", "best other", ""))]]
    for text in dict.fromkeys(line.text for line in lines):
        row = [text]
        for size in sizes:
            some = [line for line in lines if (line.text, line.size) == (text, size)]
            [own] = (line.kl for line in some if line.method == THINNED)
            best = min((line for line in some if line.method != THINNED), key=lambda x: x.kl)
            row += [f"{own:.4f}", f"{best.kl:.4f}", best.method]
        rows.append(row)
    return aligned(rows, left={0, *range(3, len(rows[0]), 3)})
