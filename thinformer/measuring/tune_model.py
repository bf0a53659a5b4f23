"""`thinformer tune` of a whole model: which inputs it is tuned on, and what it gains and loses.

Every second input that is long enough is held out: on those the model is measured as it will be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from thinformer.measuring.tune import Source, Tuned, leave_exact, settings_of
from thinformer.torch.evaluation import record
from thinformer.torch.evaluation.evaluate import evaluate
from thinformer.torch.evaluation.result import Result

Inputs = list[dict[str, torch.Tensor]]
Tell = Callable[[str, float | None], None]


class Split(NamedTuple):
    """A model with the inputs that it is tuned on, and those that are held out.

    tuned_on, held_out : inputs that are long enough; `held_out` is empty where there is one only
    min_length : number of keys below which attention stays exact
    source : the attention of `tuned_on`
    longest : for each layer the largest number of keys of each input that is held out
    """

    model: nn.Module
    tuned_on: Inputs
    held_out: Inputs
    min_length: int
    source: Source
    longest: dict[str, list[int]]


class Own(NamedTuple):
    """The model with the settings chosen, beside the exact model.

    inputs : number of inputs that it was measured on
    held_out : whether it was not tuned on them
    """

    inputs: int
    held_out: bool
    result: Result


def split(model: nn.Module, inputs: Sequence[dict[str, torch.Tensor]], min_length: int) -> Split:
    """Return a model with its inputs, of which every second one is held out.

    Inputs over which no layer could be thinned are left out of both.

    Raises
    ------
    ValueError
        Where the model does not attend through transformers' interface.
    """
    calls, left = record.survey(model, inputs, min_length)
    if not calls:
        raise ValueError(
            f"{type(model).__name__} does not attend through transformers' AttentionInterface, so "
            f"nothing could be thinned"
        )
    long = [i for i in range(len(inputs)) if any(of_inputs[i] for of_inputs in calls.values())]
    tuned_on, held_out = [inputs[i] for i in long[::2]], [inputs[i] for i in long[1::2]]
    source = Source(
        {name: [n for i in long[::2] for n in of_inputs[i]] for name, of_inputs in calls.items()},
        left,
        lambda take: record.record(
            model, tuned_on, [name for name in calls if name not in left], min_length, take
        ),
    )
    longest = {
        name: [max(of_inputs[i], default=0) for i in long[1::2]]
        for name, of_inputs in calls.items()
    }
    return Split(model, tuned_on, held_out, min_length, source, longest)


def checked(
    parts: Split, tuned: Mapping[str, Tuned], target: float, tell: Tell
) -> dict[str, Tuned]:
    """Return the layers, those exact that alone change the model's output by more than `target`."""
    settings = settings_of(parts.source, tuned, parts.min_length)
    effects = record.effects(parts.model, parts.tuned_on, settings, tell)
    return leave_exact(tuned, effects, target)


def measured(
    parts: Split, tuned: Mapping[str, Tuned], pooling: str, rounds: int, tell: Tell
) -> Own | None:
    """Return the model's own time and error; None where the settings leave all layers exact.

    It is measured on the inputs that were held out, if one of them is long enough to be thinned.
    """
    settings = settings_of(parts.source, tuned, parts.min_length)
    sizes = {name: setting["size"] for name, setting in settings.items() if "size" in setting}
    if not sizes:
        return None
    thinned = [
        x
        for i, x in enumerate(parts.held_out)
        if any(parts.longest[name][i] > size for name, size in sizes.items())
    ]
    evaluation = evaluate(
        parts.model, thinned or parts.tuned_on, [{"settings": settings}], pooling=pooling,
        rounds=rounds, tell=lambda stage, fraction: tell("the model", fraction),
    )  # fmt: skip
    number = len(evaluation.lengths) - evaluation.left_out
    return Own(number, bool(thinned), evaluation.results[0])


def format_own(own: Own | None) -> str:
    """Return the model's own time and error in a line."""
    if own is None:
        return "the model: all its layers stay exact, so it is as fast and as exact as before"
    result = own.result
    worst = "largest" if result.metric == "difference" else "smallest"
    inputs = f"{own.inputs} input{'s' if own.inputs > 1 else ''}"
    tuned_on = "not tuned on" if own.held_out else "tuned on, as no other one is long enough"
    faster = result.exact_seconds / result.seconds
    slower = "; not faster than exact, so leave the model as it was" if faster <= 1 else ""
    return (
        f"the model, on {inputs} that it was {tuned_on}: {1e3 * result.seconds:.0f} ms, exact "
        f"{1e3 * result.exact_seconds:.0f} ms ({faster:.2f}x as fast), {result.metric} "
        f"{result.mean:.4f}, {worst} {result.worst:.4f}{slower}"
    )


def figures(own: Own | None) -> dict[str, Any]:
    """Return the model's own time and error for the settings file."""
    if own is None:
        return {}
    result = own.result
    return {
        "model_itself": {
            "inputs": own.inputs, "held_out": own.held_out, "seconds": result.seconds,
            "exact_seconds": result.exact_seconds, "metric": result.metric, "mean": result.mean,
            "worst": result.worst,
        }
    }  # fmt: skip
