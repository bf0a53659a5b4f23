"""`thinformer tune`: for each attention layer, the settings that no other beats in error and time.

Settings are exact attention, and every number of keys with each correction, with herded keys, and
with neither. They are measured on the NumPy path, in turn on the same activations of a layer, as in
`thinformer.measuring.quality`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.attending.attention import attention
from thinformer.attending.settings import WAYS
from thinformer.halving.schedule import coreset_size
from thinformer.measuring.quality import interleaved, load_file

MIN_LENGTH = 256  # keys, below which attention is not measured

Take = Callable[[str, NDArray, NDArray, NDArray], None]


class Setting(NamedTuple):
    """A number of keys, and a name in WAYS; size = None is exact attention."""

    size: int | None
    way: str = "none"


EXACT = Setting(None)


class Source(NamedTuple):
    """Attention layers and what they attend to.

    calls : for each layer the number of keys of each attention; empty where it stays exact
    left : for each layer that stays exact the reason
    replay : replay(take) calls take(layer, query, key, value) for each attention, in any order
    """

    calls: dict[str, list[int]]
    left: dict[str, str]
    replay: Callable[[Take], None]


class Tuned(NamedTuple):
    """A layer, with the error and time of its settings.

    keys : number of keys of each attention
    settings : the measured settings; the last is EXACT
    errors : error of each setting, mean over heads, rounds and attentions
    seconds : time of each setting for all attentions, median over rounds
    front : places of the settings that no other beats in both, the fastest first
    chosen : place of the fastest whose error is at most the target; None without a target
    """

    keys: list[int]
    settings: list[Setting]
    errors: list[float]
    seconds: list[float]
    front: list[int]
    chosen: int | None


def pareto(errors: Sequence[float], times: Sequence[float]) -> list[int]:
    """Return the positions of points that no other beats, by time, then error.

    A point beats another if it is no worse in error and time, and better in one of them. In
    O(n log n).
    """
    front: list[int] = []
    for i in sorted(range(len(errors)), key=lambda i: (times[i], errors[i])):
        last = front[-1] if front else None
        same = last is not None and (errors[i], times[i]) == (errors[last], times[last])
        if last is None or errors[i] < errors[last] or same:
            front.append(i)
    return front


def from_files(paths: Sequence[Path], min_length: int = MIN_LENGTH) -> Source:
    """Return the activations of one model, in files that have the same layers.

    Raises
    ------
    ValueError
        Where a file holds no activations, or has other layers than the first.
    """
    files = [load_file(path) for path in paths]
    for path, layers in zip(paths, files, strict=True):
        unlike = sorted(set(layers) ^ set(files[0]))
        if unlike:
            raise ValueError(
                f"{path}: must have the layers of {paths[0]}, which is of the same model; "
                f"{unlike[0]} is in one of them only"
            )

    def long_enough(layer: str) -> list[list[NDArray]]:
        return [file[layer] for file in files if file[layer][1].shape[1] >= min_length]

    def replay(take: Take) -> None:
        for layer in files[0]:
            for arrays in long_enough(layer):
                take(layer, *arrays)

    calls = {layer: [key.shape[1] for _, key, _ in long_enough(layer)] for layer in files[0]}
    short = f"never attends over {min_length} or more keys"
    return Source(calls, {layer: short for layer, keys in calls.items() if not keys}, replay)


def candidates(keys: int, sizes: Sequence[int], ways: Iterable[str]) -> list[Setting]:
    """Return the settings to measure: the sizes given, or those of all g, and exact attention."""
    sizes = sizes or [coreset_size(keys, g) for g in range(keys.bit_length())]
    fewer = sorted({size for size in sizes if size < keys})
    return [*(Setting(size, way) for size in fewer for way in ways), EXACT]


def tune(
    source: Source,
    sizes: Sequence[int] = (),
    ways: Sequence[str] = tuple(WAYS),
    *,
    target: float | None = None,
    rounds: int = 5,
    tell: Callable[[str, float | None], None] = lambda stage, fraction: None,
) -> dict[str, Tuned]:
    """Measure the settings of each layer.

    Parameters
    ----------
    source : Source
    sizes : sequence of int
        Numbers of keys; without any, those of all g.
    ways : sequence of str
        Names in WAYS.
    target : float, optional
        The largest error that is good enough.
    rounds : int
        Each round has another seed.
    tell : callable
        tell(stage, fraction) receives what is done now, and how much of it, for a progress bar.

    Raises
    ------
    ValueError
        Where no layer has more keys than a size, a head returns only 0, or no layer can be tuned.
    """
    calls = {layer: keys for layer, keys in source.calls.items() if keys}
    if not calls:
        name, reason = next(iter(source.left.items()))
        raise ValueError(f"there is no layer to tune; {name}: {reason}")
    most = max(map(max, calls.values()))
    if sizes and max(sizes) >= most:
        raise ValueError(f"--sizes must be less than the keys, {most}; got {max(sizes)}")
    settings = {layer: candidates(max(keys), sizes, ways) for layer, keys in calls.items()}
    errors: dict[str, list[NDArray]] = {layer: [] for layer in settings}
    seconds: dict[str, list[NDArray]] = {layer: [] for layer in settings}
    total = sum(map(len, calls.values()))

    def take(layer: str, *arrays: NDArray) -> None:
        done = sum(map(len, errors.values()))
        of_all, times = _measured(layer, arrays, settings[layer], rounds, lambda fraction: tell(
            layer, (done + fraction) / total
        ))  # fmt: skip
        errors[layer].append(of_all)
        seconds[layer].append(times)

    source.replay(take)
    return {
        layer: _concluded(
            calls[layer], settings[layer], np.mean(errors[layer], axis=0),
            np.median(np.sum(seconds[layer], axis=0), axis=1), target,
        )
        for layer in calls
    }  # fmt: skip


def _measured(
    layer: str,
    arrays: Sequence[NDArray],
    settings: list[Setting],
    rounds: int,
    tell: Callable[[float], None],
) -> tuple[NDArray, NDArray]:
    """Errors (settings,) and seconds (settings, rounds) on one attention."""
    query, key, value = arrays

    def outputs_of(setting: Setting, seed: int) -> list[NDArray]:
        size = key.shape[1] if setting.size is None else setting.size
        return [attention(query, key, value, size=size, rng=seed, **WAYS[setting.way]).output]

    exact = outputs_of(EXACT, 0)
    if not exact[0].any(axis=(1, 3)).all():
        raise ValueError(f"{layer}: all that a head gives is 0, which no error can be relative to")
    errors, seconds = interleaved(settings, outputs_of, exact, rounds, tell)
    return errors.mean(axis=(1, 2)), seconds


def _concluded(
    keys: list[int],
    settings: list[Setting],
    errors: NDArray,
    seconds: NDArray,
    target: float | None,
) -> Tuned:
    front = pareto(errors.tolist(), seconds.tolist())
    chosen = None
    if target is not None:
        chosen = next((i for i in front if errors[i] <= target), settings.index(EXACT))
    return Tuned(keys, settings, errors.tolist(), seconds.tolist(), front, chosen)


def format_layer(layer: str, tuned: Tuned) -> str:
    """Return the front of a layer, with a mark at the chosen setting."""
    least, most = min(tuned.keys), max(tuned.keys)
    rows = [
        f"{layer}: {'' if least == most else f'{least} to '}{most} keys",
        f"{'keys kept':>13}  {'correction':<10}  error       time",
    ]
    for i in tuned.front:
        size, way = tuned.settings[i]
        kept, name = ("all", "-") if size is None else (str(size), way)
        mark = "  *" if i == tuned.chosen else "   "
        time = f"{1e3 * tuned.seconds[i]:>9.2f} ms"
        rows.append(f"{mark}{kept:>10}  {name:<10}  {tuned.errors[i]:.4f}  {time}")
    return "\n".join(rows)


def format_total(source: Source, tuned: Mapping[str, Tuned]) -> str:
    """Return how many layers are thinned, and the time of all layers that were measured."""
    chosen = [(layer, layer.chosen) for layer in tuned.values() if layer.chosen is not None]
    few = sum(layer.settings[i] != EXACT for layer, i in chosen)
    before = 1e3 * sum(layer.seconds[-1] for layer, _ in chosen)
    after = 1e3 * sum(layer.seconds[i] for layer, i in chosen)
    return f"{few} of {len(source.calls)} layers thinned: {after:.2f} ms, exact {before:.2f} ms"


NOTES = """\
error: ||output - exact|| / ||exact||, mean over heads, inputs and rounds, each with another seed.
time: of the layer for all inputs, including the choice of keys, on the NumPy path; median over
rounds, in which all settings run in turn. Settings that another one beats in both are left out."""


def settings_of(
    source: Source, tuned: Mapping[str, Tuned], min_length: int
) -> dict[str, dict[str, Any]]:
    """Return the chosen settings, as `thinformer.attending.settings.save_settings` takes them."""
    return {
        layer: _entry(tuned[layer], min_length) if keys else {"exact": True}
        for layer, keys in source.calls.items()
    }


def _entry(tuned: Tuned, min_length: int) -> dict[str, Any]:
    """The chosen setting of a layer, with its measured error and time."""
    i = len(tuned.settings) - 1 if tuned.chosen is None else tuned.chosen
    size, way = tuned.settings[i]
    entry: dict[str, Any] = {"exact": True} if size is None else {"size": size, **WAYS[way]}
    if size is not None and min_length != MIN_LENGTH:
        entry["min_length"] = min_length
    entry["measured"] = {
        "keys": max(tuned.keys),
        "error": _short(tuned.errors[i]),
        "ms": _short(1e3 * tuned.seconds[i]),
        "exact_ms": _short(1e3 * tuned.seconds[-1]),
    }
    return entry


def _short(number: float) -> float:
    """A number to four digits."""
    return float(f"{number:.4g}")
