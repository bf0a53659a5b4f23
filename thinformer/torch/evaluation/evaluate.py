"""`thinformer eval-model`: what an encoder of transformers loses and gains by Thinformer attention.

Every input is run by itself, without padding, once with exact attention and once for each setting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from thinformer.attending.options import LayerOptions
from thinformer.torch.choose.calls import keys_kept
from thinformer.torch.evaluation.record import through
from thinformer.torch.transformers import configure, register

NAME = "thinformer-eval"


class Result(NamedTuple):
    """An encoder with one setting, beside exact attention.

    setting : what `thinformer.torch.transformers.configure` was given
    keys, kept : mean number of keys of a thinned layer, and of those kept
    seconds, exact_seconds : median over rounds, of all inputs
    metric : "cosine", "agreement" or "difference", as `compared` says
    mean, worst : of the metric, over inputs and rounds
    attention : error of each layer's attention, mean over heads, of exact inputs to the layer
    states : error of each layer's output where all are thinned; empty where the model gives none
    """

    setting: dict[str, Any]
    keys: float
    kept: float
    seconds: float
    exact_seconds: float
    metric: str
    mean: float
    worst: float
    attention: list[float]
    states: list[float]


class Evaluation(NamedTuple):
    """What `evaluate` measured.

    layers : names of the modules that attend, in the order they are called
    lengths : the most keys that any attention of an input has; of all inputs
    left_out : how many inputs are too short to be thinned; nothing else is of them
    apart : mean cosine between the embeddings of different inputs; None without embeddings
    results : one a setting
    """

    layers: list[str]
    lengths: list[int]
    left_out: int
    apart: float | None
    results: list[Result]


class _Call(NamedTuple):
    """One attention of an exact pass: its keys, and those kept and the error if it is thinned."""

    keys: int
    kept: int
    error: float


def evaluate(
    model: nn.Module,
    inputs: Sequence[dict[str, torch.Tensor]],
    settings: Sequence[dict[str, Any]],
    *,
    exact_layers: Sequence[int] = (),
    pooling: str = "mean",
    rounds: int = 3,
    seed: int = 0,
    tell: Callable[[str, float | None], None] = lambda stage, fraction: None,
) -> Evaluation:
    """Run an encoder on inputs with exact attention and with each setting.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        In evaluation. Its attention implementation is "sdpa" afterwards.
    inputs : sequence of dict
        What the model is called with, one after the other.
    settings : sequence of dict
        Arguments of `thinformer.torch.transformers.configure`, for the model as a whole.
    exact_layers : sequence of int
        Layers that stay exact, counted in the order they are called.
    pooling : {"mean", "first"}
        Which token's state is the embedding, or that of their mean.
    rounds : int
        Timed passes over all inputs, each with a seed of its own.
    tell : callable
        Is told what is done, and the share of it that is, for a progress bar.

    Raises
    ------
    NotImplementedError
        An attention that cannot be thinned; names it.
    ValueError
        Nothing would be thinned.
    """
    register(NAME)
    attending = _attending(model, inputs[0])
    for layer in exact_layers:
        if layer >= len(attending):
            raise ValueError(
                f"there is no layer {layer} to leave exact: {len(attending)} attend, from 0 on"
            )
    exactly = [attending[layer] for layer in exact_layers]
    probed: list[list[list[_Call]]] = []
    for i, setting in enumerate(settings):
        tell(f"layers, {_label(setting)}", i / len(settings))
        _configure(model, setting, exactly)
        probed.append([_probed(model, x, seed) for x in inputs])
        _check_thinned(probed[-1], setting, [_settings(module) for module in attending])
    lengths = [max(call.keys for call in calls) for calls in probed[0]]
    thinned = _thinned(probed)
    inputs, probed = [inputs[i] for i in thinned], [[x[i] for i in thinned] for x in probed]
    exact, outputs = [], [[] for _ in settings]  # type: ignore[var-annotated]
    for i in range(rounds):
        tell(f"round {i + 1} of {rounds}", i / rounds)
        exact.append([_run(model, x, "sdpa", seed) for x in inputs])
        for setting, runs in zip(settings, outputs, strict=True):
            _configure(model, setting, exactly)
            runs.append([_run(model, x, NAME, seed + i) for x in inputs])
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    ends = [_end(output, pooling) for output, _ in exact[0]]
    results = []
    for setting, of_setting, runs in zip(settings, probed, outputs, strict=True):
        few = [call for calls in of_setting for call in calls if call.kept < call.keys]
        metric, values = compared(
            [end for _ in range(rounds) for end in ends],
            [_end(output, pooling) for run in runs for output, _ in run],
        )
        results.append(Result(
            setting,
            keys=_mean([call.keys for call in few]),
            kept=_mean([call.kept for call in few]),
            seconds=_median([sum(seconds for _, seconds in run) for run in runs]),
            exact_seconds=_median([sum(seconds for _, seconds in run) for run in exact]),
            metric=metric,
            mean=_mean(values),
            worst=max(values) if metric == "difference" else min(values),
            attention=[
                _mean([calls[layer].error for calls in of_setting])
                for layer in range(len(attending))
            ],
            states=_errors_of_states(
                [x for x, _ in exact[0]], [x for x, _ in runs[0]], len(attending)
            ),
        ))  # fmt: skip
    names = {module: name for name, module in model.named_modules()}
    return Evaluation(
        layers=[names[module] for module in attending],
        lengths=lengths,
        left_out=len(lengths) - len(thinned),
        apart=_apart(ends),
        results=results,
    )


def compared(exact: list[torch.Tensor], thinned: list[torch.Tensor]) -> tuple[str, list[float]]:
    """Return the end metric of each pair: its name and values.

    "cosine" of embeddings; "agreement", the share of positions whose largest logit is the same; or
    "difference", of a single logit, in absolute value.
    """
    if not exact[0].is_floating_point():
        return "agreement", [_mean((a == b).tolist()) for a, b in zip(exact, thinned, strict=True)]
    if exact[0].numel() == 1:
        return "difference", [float((a - b).abs()) for a, b in zip(exact, thinned, strict=True)]
    return "cosine", [
        float(cosine_similarity(a, b, dim=0)) for a, b in zip(exact, thinned, strict=True)
    ]


def _attending(model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[nn.Module]:
    """The modules that attend, in the order they are called."""
    modules = []

    def record(module: nn.Module, *arguments: Any, **options: Any) -> tuple[torch.Tensor, None]:
        modules.append(module)
        return sdpa_attention_forward(module, *arguments, **options)

    through(record, model, inputs)
    if not modules:
        raise ValueError(
            f"{type(model).__name__} does not attend through transformers' AttentionInterface, so "
            f"nothing would be thinned"
        )
    return modules


def _configure(model: nn.Module, setting: dict[str, Any], exactly: list[nn.Module]) -> None:
    """Give a model a setting, but for layers that stay exact."""
    configure(model, **setting)
    for module in exactly:
        configure(module, exact=True)


def _settings(module: nn.Module) -> LayerOptions:
    return module.thinformer  # type: ignore[return-value]


def _check_thinned(
    probed: list[list[_Call]], setting: dict[str, Any], of_layers: list[LayerOptions]
) -> None:
    """Raise where nothing is thinned; calls of each input."""
    if any(call.kept < call.keys for calls in probed for call in calls):
        return
    least = [layer.selection.min_length for layer in of_layers if not layer.exact]
    if not least:
        raise ValueError("nothing would be thinned: all layers are left exact")
    raise ValueError(
        f"nothing would be thinned with {_label(setting)}: no input has more than "
        f"{max(call.keys for calls in probed for call in calls)} keys, and fewer than "
        f"{min(least)} stay exact (min_length)"
    )


def _thinned(probed: list[list[list[_Call]]]) -> list[int]:
    """The inputs that every setting thins."""
    thinned = [
        i
        for i in range(len(probed[0]))
        if all(any(call.kept < call.keys for call in calls[i]) for calls in probed)
    ]
    if not thinned:
        raise ValueError("no input is thinned by every setting; try one at a time")
    return thinned


def _probed(model: nn.Module, inputs: dict[str, torch.Tensor], seed: int) -> list[_Call]:
    """An exact pass in which every attention is also thinned: what is attended, and the errors."""
    attend: Callable = AttentionInterface()[NAME]
    calls = []

    def probe(module: nn.Module, *arguments: Any, **options: Any) -> tuple[torch.Tensor, None]:
        thinned = attend(module, *arguments, **options)[0]
        exact = sdpa_attention_forward(module, *arguments, **options)
        keys = arguments[1].shape[2]
        calls.append(_Call(keys, _kept(keys, _settings(module)), _of_heads(thinned, exact[0])))
        return exact

    torch.manual_seed(seed)
    through(probe, model, inputs)
    return calls


def _run(
    model: nn.Module, inputs: dict[str, torch.Tensor], implementation: str, seed: int
) -> tuple[Any, float]:
    """A pass with an implementation of attention: its outputs and seconds."""
    model.set_attn_implementation(implementation)  # type: ignore[operator]
    torch.manual_seed(seed)
    with torch.inference_mode():
        start = time.perf_counter()
        outputs = model(**inputs, output_hidden_states=True)
        return outputs, time.perf_counter() - start


def _end(outputs: Any, pooling: str) -> torch.Tensor:
    """What a model is run for: the embedding, the largest logit of each position, or the logit."""
    logits = getattr(outputs, "logits", None)
    if logits is not None:
        return logits.flatten() if logits.shape[-1] == 1 else logits.argmax(-1).flatten()
    states = getattr(outputs, "last_hidden_state", None)
    if states is None:
        raise ValueError(
            f"the model returns {type(outputs).__name__}, which has neither logits nor "
            f"last_hidden_state to compare"
        )
    return states[0, 0] if pooling == "first" else states.flatten(1, -2).mean(1)[0]


def _errors_of_states(exact: list[Any], thinned: list[Any], layers: int) -> list[float]:
    """Errors of the states behind each layer, mean over inputs."""
    states = [
        [getattr(outputs, "hidden_states", None) or () for outputs in x] for x in (exact, thinned)
    ]
    if any(len(of_input) != layers + 1 for of_input in states[0]):
        return []
    return [
        _mean([_error(b[i + 1], a[i + 1]) for a, b in zip(*states, strict=True)])
        for i in range(layers)
    ]


def _apart(ends: list[torch.Tensor]) -> float | None:
    """Mean cosine between different inputs, the measure for cosines between equal ones."""
    if len(ends) < 2 or not ends[0].is_floating_point() or ends[0].numel() == 1:
        return None
    unit = torch.stack(ends)
    unit = unit / unit.norm(dim=1, keepdim=True)
    n = len(unit)
    return float((unit.sum(0).square().sum() - n) / (n * (n - 1)))


def _error(thinned: torch.Tensor, exact: torch.Tensor) -> float:
    return float((thinned - exact).norm() / exact.norm())


def _of_heads(thinned: torch.Tensor, exact: torch.Tensor) -> float:
    """The mean error of heads (B, T, H, D), which is what `thinformer tune` has."""
    return float(((thinned - exact).norm(dim=(1, 3)) / exact.norm(dim=(1, 3))).mean())


def _kept(keys: int, layer: LayerOptions) -> int:
    return keys if layer.exact else keys_kept(keys, layer.selection, padded=False)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _median(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def _label(setting: dict[str, Any]) -> str:
    """A setting in few words, without min_length, which all have."""
    return ", ".join(f"{name} = {value}" for name, value in setting.items() if name != "min_length")


def format_evaluation(evaluation: Evaluation) -> str:
    """The inputs; what each setting costs and gives; the errors of each layer."""
    results, lengths = evaluation.results, evaluation.lengths
    labels = [f"{i}  {_label(result.setting)}" for i, result in enumerate(results, 1)]
    wide = max(len(label) for label in [*labels, "exact"])
    metric = results[0].metric
    worst = "largest" if metric == "difference" else "smallest"
    exact = results[0].exact_seconds
    most = "" if min(lengths) == max(lengths) else f"{min(lengths)} to "
    out = f"; {n} too short to be thinned, left out" if (n := evaluation.left_out) else ""
    lines = [
        f"inputs: {len(lengths)}, of {most}{max(lengths)} keys{out}",
        "",
        f"{'setting':<{wide}}  {'keys kept':>13}  {'time':>8}  {'faster':>7}  {metric:>10}  "
        f"{worst:>8}",
        f"{'exact':<{wide}}  {'all':>13}  {_duration(exact):>8}",
    ]
    for label, result in zip(labels, results, strict=True):
        kept = f"{result.kept:.0f} of {result.keys:.0f}"
        lines.append(
            f"{label:<{wide}}  {kept:>13}  {_duration(result.seconds):>8}  "
            f"{exact / result.seconds:>6.2f}x  {result.mean:>10.4f}  {result.worst:>8.4f}"
        )
    if evaluation.apart is not None:
        lines.append(f"\ncosine between different inputs, exact: {evaluation.apart:.4f}")
    name = max(len(layer) for layer in [*evaluation.layers, "layer"]) + 4
    states = results[0].states
    alone, behind = "attention alone", "all layers thinned"
    width = max(len("0.0000"), -(-len(behind) // len(labels)) - 2)
    span = len(labels) * (width + 2)
    above = f"{'':<{name}}{alone:>{span}}"
    if states:
        above += f"    {behind:>{span}}"
    heads = "".join(f"  {i:>{width}}" for i in range(1, len(results) + 1))
    lines += ["\nrelative error, by setting", above, f"{'layer':<{name}}{heads}"]
    if states:
        lines[-1] += f"    {heads}"
    for i, layer in enumerate(evaluation.layers):
        row = f"{i:>2}  {layer:<{name - 4}}"
        row += "".join(f"  {result.attention[i]:>{width}.4f}" for result in results)
        if states:
            row += "    " + "".join(f"  {result.states[i]:>{width}.4f}" for result in results)
        lines.append(row)
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"
