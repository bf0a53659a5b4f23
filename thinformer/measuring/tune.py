"""`thinformer tune`: for each attention layer, the settings that no other beats in error and time.

Settings are exact attention, and every number of keys with each correction, with herded keys, and
with neither. They are measured as a model runs them: our attention on tensors beside
`scaled_dot_product_attention`, in turn on the same tensors of a layer.
`thinformer.measuring.tune_model` has what needs a whole model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from thinformer.attending.options import layer_options
from thinformer.attending.settings import WAYS
from thinformer.halving.schedule import coreset_size
from thinformer.measuring.activations import load_file
from thinformer.torch.attend.arguments import Call, Wanted
from thinformer.torch.attend.layer import checked_attention

MIN_LENGTH = 256  # keys below which a layer stays exact, unless the command says otherwise
FASTER = 1.03  # by which exact attention must be slower; less is noise

# take(layer, query, key, value, mask, scale): what a layer's attention is called with
Take = Callable[
    [str, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float | None], None
]


class Setting(NamedTuple):
    """A number of keys, and a name in WAYS; size = None is exact attention."""

    size: int | None
    way: str = "none"


EXACT = Setting(None)


class Source(NamedTuple):
    """Attention layers and what they attend to.

    calls : for each layer the number of keys of each attention; empty where it stays exact
    left : for each layer that stays exact the reason
    replay : replay(take) calls `take` for each attention, in any order; query (B, H, T, E), key and
        value (B, H_kv, S, dim)
    """

    calls: dict[str, list[int]]
    left: dict[str, str]
    replay: Callable[[Take], None]


class Tuned(NamedTuple):
    """A layer, with the errors and time of its settings.

    keys : number of keys of each attention
    settings : the measured settings; the last is EXACT
    errors : error of each setting, of the concatenated heads; mean over rounds and attentions
    worst : error of the head whose error is the largest, for each setting; the same mean
    seconds : time of each setting for all attentions, median over rounds
    front : places of the settings that no other beats in error and time, the fastest first
    chosen : place of the setting that is chosen; None without a target
    reason : why the chosen setting is EXACT
    """

    keys: list[int]
    settings: list[Setting]
    errors: list[float]
    worst: list[float]
    seconds: list[float]
    front: list[int]
    chosen: int | None
    reason: str = ""

    @property
    def place(self) -> int:
        """Place of the setting that the layer has: the chosen one, without a target EXACT."""
        return len(self.settings) - 1 if self.chosen is None else self.chosen


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
                query, key, value = (torch.from_numpy(x).transpose(1, 2) for x in arrays)
                take(layer, query, key, value, None, None)

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
    """Measure the settings of each layer, and choose the fastest whose error is small enough.

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
        Where no layer has more keys than a size, a layer returns only 0, or no layer can be tuned.
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

    def take(layer: str, *arguments: Any) -> None:
        done = sum(map(len, errors.values()))
        of_all, times = interleaved(layer, arguments, settings[layer], rounds, lambda fraction: (
            tell(layer, (done + fraction) / total)
        ))  # fmt: skip
        errors[layer].append(of_all.mean(axis=1))
        seconds[layer].append(times)

    with torch.inference_mode():
        source.replay(take)
    return {
        layer: _concluded(
            calls[layer], settings[layer], np.mean(errors[layer], axis=0),
            np.median(np.sum(seconds[layer], axis=0), axis=1), target,
        )
        for layer in calls
    }  # fmt: skip


def interleaved(
    layer: str,
    arguments: Sequence[Any],
    settings: Sequence[Setting],
    rounds: int,
    tell: Callable[[float], None] = lambda fraction: None,
) -> tuple[NDArray, NDArray]:
    """Return errors (settings, rounds, 2) and seconds (settings, rounds) of one attention.

    The errors are that of the concatenated heads, and the largest one of a head. All settings run
    in turn. An untimed round comes first, because functions are compiled or loaded at first use.
    """
    exact = attended(EXACT, *arguments)
    if not exact.any():
        raise ValueError(f"{layer}: all that it gives is 0, which no error can be relative to")
    errors = np.empty((len(settings), rounds, 2))
    seconds = np.empty((len(settings), rounds))
    tell(0.0)
    for setting in settings:
        attended(setting, *arguments)
    for seed in range(rounds):
        tell(seed / rounds)
        for i, setting in enumerate(settings):
            torch.manual_seed(seed)
            start = time.perf_counter()
            output = attended(setting, *arguments)
            seconds[i, seed] = time.perf_counter() - start
            errors[i, seed] = errors_of(output, exact)
    return errors, seconds


def attended(
    setting: Setting,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Return the output (B, T, H, D) of a layer, computed as in a model of transformers."""
    if setting.size is None:
        output = scaled_dot_product_attention(
            query, key, value, mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
    else:
        call = Call(scale, None, mask, enable_gqa=True, layout="bhsd")
        layer = layer_options(**settings_of_one(setting, min_length=0))
        output = checked_attention(query, key, value, layer, call, Wanted()).output
    return output.transpose(1, 2).contiguous()


def errors_of(output: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """Return the error of the concatenated heads (B, T, H, D), and the largest one of a head."""
    off, norm = (x.norm(dim=(1, 3)).norm(dim=0) for x in (output - exact, exact))  # (H,)
    of_each = torch.where(norm > 0, off / norm, 0)  # a head that gives 0 gives it in any case
    return float(off.norm() / norm.norm()), float(of_each.max())


def _concluded(
    keys: list[int],
    settings: list[Setting],
    errors: NDArray,
    seconds: NDArray,
    target: float | None,
) -> Tuned:
    """A layer with its front, and the setting chosen; errors (settings, 2), seconds (settings,)."""
    of_heads, worst = errors.T.tolist()
    front = pareto(of_heads, seconds.tolist())
    tuned = Tuned(keys, settings, of_heads, worst, seconds.tolist(), front, None)
    if target is None:
        return tuned
    exact = len(settings) - 1
    near = [i for i in range(exact) if of_heads[i] <= target]
    if not near:
        return tuned._replace(chosen=exact, reason=f"no setting has an error of at most {target:g}")
    fastest = min(near, key=lambda i: (seconds[i], of_heads[i]))
    if seconds[fastest] * FASTER > seconds[exact]:
        return tuned._replace(
            chosen=exact,
            reason=f"the fastest of error at most {target:g} takes "
            f"{1e3 * seconds[fastest]:.2f} ms, exact attention {1e3 * seconds[exact]:.2f} ms",
        )
    return tuned._replace(chosen=fastest)


def leave_exact(
    tuned: Mapping[str, Tuned], effects: Mapping[str, float], target: float
) -> dict[str, Tuned]:
    """Return the layers, those exact that by themselves change the model's output too much."""
    return {
        name: layer._replace(
            chosen=len(layer.settings) - 1,
            reason=f"thinned alone, it changes the model's output by {effects[name]:.4f}",
        )
        if effects.get(name, 0.0) > target
        else layer
        for name, layer in tuned.items()
    }


def format_layer(layer: str, tuned: Tuned) -> str:
    """Return the front of a layer, with a mark at the chosen setting."""
    least, most = min(tuned.keys), max(tuned.keys)
    rows = [
        f"{layer}: {'' if least == most else f'{least} to '}{most} keys",
        f"{'keys kept':>13}  {'correction':<10}  error   worst head       time",
    ]
    for i in tuned.front:
        size, way = tuned.settings[i]
        kept, name = ("all", "-") if size is None else (str(size), way)
        mark = "  *" if i == tuned.chosen else "   "
        rows.append(
            f"{mark}{kept:>10}  {name:<10}  {tuned.errors[i]:.4f}  {tuned.worst[i]:>10.4f}  "
            f"{1e3 * tuned.seconds[i]:>9.2f} ms"
        )
    if tuned.reason:
        rows.append(f"stays exact: {tuned.reason}")
    return "\n".join(rows)


def format_total(source: Source, tuned: Mapping[str, Tuned]) -> str:
    """Return how many layers are thinned."""
    few = sum(layer.settings[layer.place] != EXACT for layer in tuned.values())
    return f"{few} of {len(source.calls)} layers thinned"


def format_time(tuned: Mapping[str, Tuned]) -> str:
    """Return the time of the attention of all layers that were measured, which is no model's."""
    before = 1e3 * sum(layer.seconds[-1] for layer in tuned.values())
    after = 1e3 * sum(layer.seconds[layer.place] for layer in tuned.values())
    return f"attention alone, of these layers: {after:.2f} ms, exact {before:.2f} ms"


NOTES = """\
error: ||output - exact|| / ||exact|| of a layer's concatenated heads, mean over inputs and rounds,
each with another seed; worst head: the largest one of a head alone.
time: of the layer's attention for all inputs, as a model runs it, including the choice of keys;
median over rounds, in which all settings run in turn, and scaled_dot_product_attention as the exact
one. Settings that another one beats in error and time are left out."""


def settings_of(
    source: Source, tuned: Mapping[str, Tuned], min_length: int
) -> dict[str, dict[str, Any]]:
    """Return the chosen settings, as `thinformer.attending.settings.save_settings` takes them."""
    return {
        layer: _entry(tuned[layer], min_length) if keys else {"exact": True}
        for layer, keys in source.calls.items()
    }


def settings_of_one(setting: Setting, min_length: int) -> dict[str, Any]:
    """Return all that a setting says, so that no default of a settings file matters."""
    if setting.size is None:
        return {"exact": True}
    plain = {"size": setting.size, "correction": None, "temperature": None}
    return plain | WAYS[setting.way] | {"min_length": min_length, "fallback": None}


def _entry(tuned: Tuned, min_length: int) -> dict[str, Any]:
    """The chosen setting of a layer, with its measured errors and times."""
    i = tuned.place
    return settings_of_one(tuned.settings[i], min_length) | {
        "measured": {
            "keys": max(tuned.keys),
            "error": _short(tuned.errors[i]),
            "worst_head": _short(tuned.worst[i]),
            "ms": _short(1e3 * tuned.seconds[i]),
            "exact_ms": _short(1e3 * tuned.seconds[-1]),
        }
    }


def _short(number: float) -> float:
    """A number to four digits."""
    return float(f"{number:.4g}")
