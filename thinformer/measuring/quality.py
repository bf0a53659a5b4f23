r"""How close to exact attention, and at what time: Thinformer, its options and its peers.

Errors are :math:`\|output - exact\| / \|exact\|` in the Frobenius norm, mean over layers and heads.
All methods and sizes run in one process, in turn, round after round. Every round has another seed:
errors are means over rounds with their standard error, times are medians. Everything runs on
float32 tensors, without gradients, as in a model.
"""

from __future__ import annotations

import itertools
import os
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import softmax

from thinformer.attending.arguments import softmax_scale
from thinformer.halving.schedule import coreset_size
from thinformer.measuring import attention_peers
from thinformer.measuring.activations import Layers
from thinformer.measuring.attention_peers import PEERS
from thinformer.measuring.demo import relative_error
from thinformer.support.machine import hardware, versions
from thinformer.support.threads import get_num_threads
from thinformer.torch import thinformer_attention

EXACT, PLAIN, BEST = "exact attention", "Thinformer", "best rank"
NYSTROM = f'{PLAIN}, correction="nystrom"'
OPTIONS: dict[str, dict[str, Any]] = {  # what `thinformer_attention` is called with
    PLAIN: {},
    f'{PLAIN}, temperature="auto"': {"temperature": "auto"},
    NYSTROM: {"correction": "nystrom"},
    f'{PLAIN}, correction="queries"': {"correction": "queries"},
}
LONGEST = 0.5  # seconds; a slower call is left out where it takes twice as long as exact attention
LARGEST = 2048  # keys of which the best rank is computed: the time grows as their cube

Case = tuple[str, int]  # method, number of keys kept
# of each layer query, key and value
Tensors = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


class Line(NamedTuple):
    """One method at one size.

    method : one of `PEERS` or `OPTIONS`, or EXACT or BEST
    kept, keys : number of kept keys, and of all keys
    error : mean over layers, heads and rounds
    standard_error : standard error of that mean over rounds; None where nothing is random
    seconds : time for all layers, median over rounds; None for BEST, which is no method
    ratio : `seconds` divided by the time of Thinformer without options at this size, or None
    layers : the error of each layer
    """

    input: str
    method: str
    kept: int
    keys: int
    error: float
    standard_error: float | None
    seconds: float | None
    ratio: float | None
    layers: dict[str, float]


def number_of_keys(layers: Layers) -> int:
    """Return the number of keys, which all layers share."""
    return next(iter(layers.values()))[1].shape[1]


def methods(layers: Layers) -> list[str]:
    """Return the peers that can run on these layers, and Thinformer's options."""
    reasons = attention_peers.left_out(layers)
    return [*(name for name in PEERS if name not in reasons), *OPTIONS]


def chosen_cases(name: str, layers: Layers, sizes: Sequence[int]) -> list[Case]:
    """Return all methods at sizes that a user chose."""
    keys = number_of_keys(layers)
    if max(sizes) > keys:
        raise ValueError(f"--sizes must be at most the keys of {name}, {keys}; got {max(sizes)}")
    return [(method, size) for size in sorted(set(sizes)) for method in methods(layers)]


def usual_cases(
    name: str,
    layers: Layers,
    tell: Callable[[str, float | None], None] = lambda stage, fraction: None,
) -> list[Case]:
    """Return each method at the sizes of all g that drop keys, without those that take very long.

    A method ends before the size at which it takes LONGEST and twice as long as exact attention.
    tell(stage, fraction) receives the progress.
    """
    keys = number_of_keys(layers)
    of_all_g = {coreset_size(keys, g) for g in range(keys.bit_length())}
    sizes = sorted(size for size in of_all_g if size < keys) or [keys]
    tensors, names = _tensors(layers), methods(layers)

    def seconds(method: str, size: int) -> float:
        start = time.perf_counter()
        outputs(method, tensors, size, seed=0)
        return time.perf_counter() - start

    limit = max(LONGEST, 2 * seconds(EXACT, keys))
    found = []
    for i, method in enumerate(names):
        tell(f"{name}, {method}", i / len(names))
        for size in sizes:
            # a first call may compile, so a second one decides
            if seconds(method, size) > limit and seconds(method, size) > limit:
                break
            found.append((method, size))
    return sorted(found, key=lambda case: (case[1], names.index(case[0])))


def measure(
    name: str,
    layers: Layers,
    cases: Sequence[Case],
    rounds: int,
    tell: Callable[[str, float | None], None] = lambda stage, fraction: None,
) -> list[Line]:
    """Return the lines of an input: exact attention, the cases, and BEST after those of each size.

    It takes at least 2 rounds. tell(stage, fraction) receives the progress.
    """
    keys, tensors = number_of_keys(layers), _tensors(layers)
    exact = outputs(EXACT, tensors, keys, seed=0)
    cases = [(EXACT, keys), *cases]
    errors, seconds = interleaved(
        cases, tensors, exact, rounds, lambda fraction: tell(name, fraction)
    )
    medians = dict(zip(cases, np.median(seconds, axis=1).tolist(), strict=True))

    def line(method: str, size: int, of_rounds: NDArray, median: float | None) -> Line:
        means = of_rounds.mean(axis=1)
        is_method = method not in (EXACT, BEST)
        plain = medians.get((PLAIN, size))
        return Line(
            name, method, size, keys, float(means.mean()),
            float(means.std(ddof=1) / np.sqrt(rounds)) if is_method else None,
            median,
            median / plain if is_method and median and plain else None,
            dict(zip(layers, of_rounds.mean(axis=0).tolist(), strict=True)),
        )  # fmt: skip

    lines = [line(*case, errors[i], medians[case]) for i, case in enumerate(cases)]
    if keys > LARGEST:
        return lines
    tell(f"{name}, best rank", None)
    sizes = list(dict.fromkeys(size for _, size in cases[1:]))
    floors = np.array([_best_rank(layer, sizes) for layer in layers.values()])
    for i, size in enumerate(sizes):
        last = max(place for place, each in enumerate(lines[1:], 1) if each.kept == size)
        lines.insert(last + 1, line(BEST, size, floors[None, :, i], None))
    return lines


def interleaved(
    cases: Sequence[Case],
    tensors: Tensors,
    exact: list[torch.Tensor],
    rounds: int,
    tell: Callable[[float], None] = lambda fraction: None,
) -> tuple[NDArray, NDArray]:
    """Return errors (cases, rounds, layers) and seconds (cases, rounds) of cases, run in turn.

    Every round has another seed. An untimed round comes first, because functions are compiled or
    loaded at first use. tell(fraction) receives the progress before each round.
    """
    errors = np.empty((len(cases), rounds, len(exact)))
    seconds = np.empty((len(cases), rounds))
    tell(0.0)
    for method, size in cases:
        outputs(method, tensors, size, seed=0)
        if method == "Performer":  # a model draws its projection once, before it is called
            for seed, (_, key, _) in itertools.product(range(rounds), tensors):
                attention_peers.random_features(key.shape[3], size, seed)
    for seed in range(rounds):
        tell(seed / rounds)
        for i, (method, size) in enumerate(cases):
            start = time.perf_counter()
            found = outputs(method, tensors, size, seed)
            seconds[i, seed] = time.perf_counter() - start
            errors[i, seed] = [
                relative_error([a.numpy()], [b.numpy()]) for a, b in zip(found, exact, strict=True)
            ]
    return errors, seconds


@torch.no_grad()
def outputs(method: str, tensors: Tensors, size: int, seed: int) -> list[torch.Tensor]:
    """Return the outputs of all layers by a method."""
    if method == EXACT:
        return [attention_peers.exact(*layer) for layer in tensors]
    if method in PEERS:
        return [PEERS[method](*layer, size, seed) for layer in tensors]
    generator = torch.Generator().manual_seed(seed)
    options = OPTIONS[method]
    return [
        thinformer_attention(*layer, size=size, generator=generator, **options) for layer in tensors
    ]


def machine_with_load() -> dict[str, str]:
    """The machine, with the threads in use and the load at this moment."""
    found = hardware() | {"threads": str(get_num_threads()), "python": platform.python_version()}
    if hasattr(os, "getloadavg"):
        found["load"] = f"{os.getloadavg()[0]:.1f}"
    return found | versions("thinformer", "numpy", "numba", "scipy", "torch")


def _tensors(layers: Layers) -> Tensors:
    of_layers = (map(torch.from_numpy, layer) for layer in layers.values())
    return [(query, key, value) for query, key, value in of_layers]


def _best_rank(layer: list[NDArray], sizes: list[int]) -> list[float]:
    """For each rank, the mean error over heads with the nearest matrix of that rank as attention.

    Of attention's matrix P that is P V V^T, with the leading right singular vectors V of P, which
    are eigenvectors of P^T P; in float64.
    """
    S, E = layer[1].shape[1::2]
    q, k, v = (x.astype(np.float64).transpose(0, 2, 1, 3).reshape(-1, *x.shape[1::2])
               for x in layer)  # fmt: skip
    errors = []
    for head in range(len(k)):
        P = softmax(softmax_scale(None, E) * q[head] @ k[head].T, axis=1)
        vectors = eigh(P.T @ P, subset_by_index=(S - max(sizes), S - 1))[1][:, ::-1]
        rows, columns, exact = P @ vectors, vectors.T @ v[head], P @ v[head]
        errors.append([
            np.linalg.norm(rows[:, :r] @ columns[:r] - exact) / np.linalg.norm(exact)
            for r in sizes
        ])  # fmt: skip
    return np.mean(errors, axis=0).tolist()
