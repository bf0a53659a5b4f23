"""`thinformer eval-model`: what an encoder of transformers loses and gains by Thinformer attention.

Every input is run by itself, without padding, once with exact attention and once for each setting.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from thinformer.attending.options import LayerOptions
from thinformer.torch.choose.calls import keys_kept
from thinformer.torch.evaluation.metrics import (
    compared,
    cosine_between,
    error_of_heads,
    errors_of_states,
    mean,
    output_of,
)
from thinformer.torch.evaluation.record import through
from thinformer.torch.evaluation.result import Evaluation, Result, label_of
from thinformer.torch.report import report
from thinformer.torch.transformers import configure, register

NAME = "thinformer-eval"


class _Call(NamedTuple):
    """One attention of an exact pass: its keys, and the kept keys and the error when thinned."""

    keys: int
    kept: int
    error: float


class _Run(NamedTuple):
    """A pass over one input: the outputs of the model, and the time."""

    outputs: Any
    seconds: float


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
        The embedding is the mean of the tokens' states, or the state of the first token.
    rounds : int
        Timed passes over all inputs, each with another seed.
    tell : callable
        tell(stage, fraction) receives what is done now, and how much of it, for a progress bar.

    Raises
    ------
    NotImplementedError
        Where an attention cannot be thinned; names it.
    ValueError
        Where nothing would be thinned.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the report says which layers stay exact
        return _evaluate(model, inputs, settings, exact_layers, pooling, rounds, seed, tell)


def _evaluate(
    model: nn.Module,
    inputs: Sequence[dict[str, torch.Tensor]],
    settings: Sequence[dict[str, Any]],
    exact_layers: Sequence[int],
    pooling: str,
    rounds: int,
    seed: int,
    tell: Callable[[str, float | None], None],
) -> Evaluation:
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
        tell(f"layers, {label_of(setting)}", i / len(settings))
        _configure(model, setting, exactly, seed)
        probed.append([_probed(model, x, seed) for x in inputs])
        _check_thinned(probed[-1], setting, [_options(module) for module in attending])
    lengths = [max(call.keys for call in calls) for calls in probed[0]]
    thinned = _thinned(probed)
    inputs, probed = [inputs[i] for i in thinned], [[x[i] for i in thinned] for x in probed]
    exact: list[list[_Run]] = []
    runs: list[list[list[_Run]]] = [[] for _ in settings]
    reports = [""] * len(settings)
    for i in range(rounds):
        tell(f"round {i + 1} of {rounds}", i / rounds)
        exact.append([_run(model, x, "sdpa", seed) for x in inputs])
        for j, setting in enumerate(settings):
            _configure(model, setting, exactly, seed + i)
            runs[j].append([_run(model, x, NAME, seed + i) for x in inputs])
            reports[j] = str(report(model))
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    names = {module: name for name, module in model.named_modules()}
    return Evaluation(
        layers=[names[module] for module in attending],
        lengths=lengths,
        left_out=len(lengths) - len(thinned),
        apart=cosine_between([output_of(run.outputs, pooling) for run in exact[0]]),
        results=[
            _result(setting, calls, exact, of_setting, pooling)._replace(report=of_layers)
            for setting, calls, of_setting, of_layers in zip(
                settings, probed, runs, reports, strict=True
            )
        ],
    )


def _result(
    setting: dict[str, Any],
    probed: list[list[_Call]],
    exact: list[list[_Run]],
    runs: list[list[_Run]],
    pooling: str,
) -> Result:
    """Sum up a setting from the calls of each input, and the exact and thinned runs by round."""
    few = [call for calls in probed for call in calls if call.kept < call.keys]
    metric, values = compared(
        [output_of(run.outputs, pooling) for _ in runs for run in exact[0]],
        [output_of(run.outputs, pooling) for of_round in runs for run in of_round],
    )
    layers = len(probed[0])
    return Result(
        setting,
        keys=mean([call.keys for call in few]),
        kept=mean([call.kept for call in few]),
        seconds=median(sum(run.seconds for run in of_round) for of_round in runs),
        exact_seconds=median(sum(run.seconds for run in of_round) for of_round in exact),
        metric=metric,
        mean=mean(values),
        worst=max(values) if metric == "difference" else min(values),
        attention=[mean([calls[layer].error for calls in probed]) for layer in range(layers)],
        states=errors_of_states(
            [run.outputs for run in exact[0]], [run.outputs for run in runs[0]], layers
        ),
    )


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


def _configure(
    model: nn.Module, setting: dict[str, Any], exactly: list[nn.Module], seed: int
) -> None:
    """Give a model a setting and a seed, except the layers that stay exact."""
    model.set_attn_implementation(NAME)  # type: ignore[operator]
    configure(model, **setting if "settings" in setting else {"seed": seed, **setting})
    for module in exactly:
        configure(module, exact=True)


def _options(module: nn.Module) -> LayerOptions:
    return module.thinformer  # type: ignore[return-value]


def _check_thinned(
    probed: list[list[_Call]], setting: dict[str, Any], of_layers: list[LayerOptions]
) -> None:
    """Raise where a setting thins no call of any input."""
    if any(call.kept < call.keys for calls in probed for call in calls):
        return
    least = [layer.selection.least_length() for layer in of_layers if not layer.exact]
    if not least:
        raise ValueError("nothing would be thinned: all layers are left exact")
    raise ValueError(
        f"nothing would be thinned with {label_of(setting)}: no input has more than "
        f"{max(call.keys for calls in probed for call in calls)} keys, and fewer than "
        f"{min(least)} stay exact; --min-length sets that, --g or --size the keys kept"
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
    """An exact pass in which every attention is also thinned, to count keys and errors."""
    attend: Callable = AttentionInterface()[NAME]
    calls = []

    def probe(module: nn.Module, *arguments: Any, **options: Any) -> tuple[torch.Tensor, None]:
        thinned = attend(module, *arguments, **options)[0]
        exact = sdpa_attention_forward(module, *arguments, **options)
        keys = arguments[1].shape[2]
        calls.append(_Call(keys, _kept(keys, _options(module)), error_of_heads(thinned, exact[0])))
        return exact

    torch.manual_seed(seed)
    through(probe, model, inputs)
    return calls


def _run(model: nn.Module, inputs: dict[str, torch.Tensor], implementation: str, seed: int) -> _Run:
    """A pass over one input with an implementation of attention."""
    model.set_attn_implementation(implementation)  # type: ignore[operator]
    torch.manual_seed(seed)
    with torch.inference_mode():
        start = time.perf_counter()
        outputs = model(**inputs, output_hidden_states=True)
        return _Run(outputs, time.perf_counter() - start)


def _kept(keys: int, layer: LayerOptions) -> int:
    if layer.leaves_exact(keys, keys):
        return keys
    return keys_kept(keys, layer.selection, padded=False)
