"""`calibrate`: learn on a few inputs which layers of a model are worth thinning."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn

from thinformer.attending.options import LayerOptions
from thinformer.support.table import aligned
from thinformer.torch.layers import attention_modules
from thinformer.torch.report import Last

# a layer with a larger share of exact heads stays exact: it was thinned for nothing there, and
# models with thinned layers are about 1.5 times as fast at 2,048 tokens (`thinformer bench-models`)
MOST_EXACT = 1 / 3
SAFE = 0.5  # of the threshold; a layer whose errors are all below it is thinned without an estimate


class Learnt(NamedTuple):
    """What `calibrate` found about an attention layer.

    Attributes
    ----------
    layer : str
        The module's name in the model.
    calls : int
        Calls that were thinned.
    error, worst : float or None
        The estimated error: the mean and the largest over heads, sequences and calls.
    exact : float or None
        The share of heads whose estimated error was above the threshold.
    decision : str
    """

    layer: str
    calls: int
    error: float | None
    worst: float | None
    exact: float | None
    decision: str


class Calibration(tuple[Learnt, ...]):
    """What `calibrate` found about a model's attention layers; printed as a table."""

    def __str__(self) -> str:
        """Align the columns."""
        header = ("layer", "calls", "error", "worst", "exact heads", "from now on")
        rows = [
            (
                row.layer, str(row.calls), *("-" if x is None else f"{x:.3f}" for x in row[2:4]),
                "-" if row.exact is None else f"{100 * row.exact:.0f}%", row.decision,
            )
            for row in self
        ]  # fmt: skip
        return aligned([header, *rows], left=(0, 5))


def calibrate(model: nn.Module, inputs: Iterable[Any]) -> Calibration:
    """Run a model on a few inputs, and give each attention layer the settings that pay.

    A layer of which more than a third of the heads exceed the error threshold stays exact from then
    on. A layer whose errors all stay below half of it is thinned without an estimate. Others keep
    their settings, and a head that exceeds the threshold is exact.

    Parameters
    ----------
    model : torch.nn.Module
        With "thinformer" as attention implementation of transformers, or after `convert`. It is run
        in evaluation, and its layers' settings are changed in place; where it raises, they are not.
    inputs : iterable
        Each is what the model is called with: a dict of keyword arguments, a tuple of arguments, or
        one argument. Take inputs of the length and kind that the model will get; a few suffice.

    Returns
    -------
    Calibration
        A tuple of `Learnt`, one a layer; ``print`` prints a table.

    Raises
    ------
    ValueError
        There is no input, or no attention layer ran through thinformer.

    Notes
    -----
    `save_settings` saves what was learnt. `thinformer tune` also compares numbers of keys and
    corrections.

    Examples
    --------
    >>> import torch
    >>> from thinformer.torch import calibrate, convert
    >>> layer = torch.nn.TransformerEncoderLayer(32, 2, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 1).eval()
    >>> converted = convert(model, size=32, min_length=256)
    >>> found = calibrate(model, [torch.zeros(1, 300, 32)])
    >>> found[0].layer, found[0].decision
    ('layers.0.self_attn', 'thinned, no estimate')
    """
    given = list(inputs)
    if not given:
        raise ValueError("inputs must hold at least one input of the model; got none")
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the result says which layers are short
            options = {name: last.options for name, last in _called(model, given[0]).items()}
            if not options:
                raise ValueError(
                    f"no attention layer of {type(model).__name__} runs through thinformer: "
                    f"model.set_attn_implementation('thinformer'), or convert(model), comes first"
                )
            estimates = _estimates(model, given, options)
    finally:
        for module, mode in training.items():
            module.training = mode
    learnt = {name: _learnt(name, options[name], estimates[name]) for name in options}
    _give(model, {name: settings for name, (_, settings) in learnt.items()})
    return Calibration(row for row, _ in learnt.values())


def _estimates(
    model: nn.Module, inputs: list[Any], options: Mapping[str, LayerOptions]
) -> dict[str, list[torch.Tensor]]:
    """The error estimates of each layer, one a thinned call; options are as before afterwards."""
    estimates: dict[str, list[torch.Tensor]] = {name: [] for name in options}
    _give(model, {name: replace(each, fallback="exact") for name, each in options.items()})
    try:
        for x in inputs:
            for name, last in _called(model, x).items():
                if name in options and last.error_estimate is not None:
                    estimates[name].append(last.error_estimate)
    finally:
        _give(model, options)
    return estimates


def _give(model: nn.Module, options: Mapping[str, LayerOptions]) -> None:
    """Give layers options of their own."""
    for name, each in options.items():
        model.get_submodule(name).thinformer = each  # type: ignore[assignment]


def _called(model: nn.Module, x: Any) -> dict[str, Last]:
    """Call the model; what each attention layer did, by name, of those that were called."""
    modules = attention_modules(model)
    for module in modules.values():
        module.__dict__.pop("thinformer_last", None)  # of an earlier call
    if isinstance(x, Mapping):
        model(**x)
    elif isinstance(x, tuple):
        model(*x)
    else:
        model(x)
    return {
        name: module.__dict__["thinformer_last"]
        for name, module in modules.items()
        if "thinformer_last" in module.__dict__
    }


def _learnt(
    name: str, options: LayerOptions, estimates: list[torch.Tensor]
) -> tuple[Learnt, LayerOptions]:
    """What is known of a layer, and its options from now on."""
    if options.exact or not estimates:
        why = "exact, as before" if options.exact else "as before: never long enough"
        return Learnt(name, 0, None, None, None, why), options
    errors = torch.cat([each.flatten() for each in estimates]).nan_to_num(torch.inf)
    checked = replace(options, fallback="exact")
    assert checked.threshold is not None
    share = float((errors > checked.threshold).double().mean())
    if share > MOST_EXACT:
        settings, decision = replace(options, exact=True), "exact"
    elif float(errors.max()) <= SAFE * checked.threshold:
        settings = replace(options, fallback=None, error_threshold=None)
        decision = "thinned, no estimate"
    else:
        settings, decision = checked, "thinned, large errors exact"
    mean, worst = float(errors.mean()), float(errors.max())
    return Learnt(name, len(estimates), mean, worst, share, decision), settings
