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

# a layer with a larger share of exact heads stays exact: it was thinned for nothing there, and
# thinning is about 1.5 times as fast as exact attention at 2,048 tokens (`thinformer bench-models`)
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
        in evaluation, and its layers' settings are changed in place.
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
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the result says which layers are short
            options, estimates = _estimates(model, given)
    finally:
        model.train(training)
    modules = attention_modules(model)
    learnt = []
    for name, of_layer in options.items():
        row, settings = _learnt(name, of_layer, estimates[name])
        modules[name].thinformer = settings  # type: ignore[assignment]
        learnt.append(row)
    return Calibration(learnt)


def _estimates(
    model: nn.Module, inputs: list[Any]
) -> tuple[dict[str, LayerOptions], dict[str, list[torch.Tensor]]]:
    """The options of the layers that ran, and their error estimates, one a thinned call."""
    _call(model, inputs[0])  # layers that register() serves say what their options are
    modules = {
        name: module
        for name, module in attention_modules(model).items()
        if "thinformer_last" in module.__dict__
    }
    if not modules:
        raise ValueError(
            f"no attention layer of {type(model).__name__} runs through thinformer: "
            f"model.set_attn_implementation('thinformer'), or convert(model), comes first"
        )
    options = {name: module.__dict__["thinformer_last"].options for name, module in modules.items()}
    estimates: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    for name, module in modules.items():
        module.thinformer = replace(options[name], fallback="exact")
    for x in inputs:
        _call(model, x)
        for name, module in modules.items():
            estimate = module.__dict__["thinformer_last"].error_estimate
            if estimate is not None:
                estimates[name].append(estimate)
    return options, estimates


def _call(model: nn.Module, x: Any) -> None:
    if isinstance(x, Mapping):
        model(**x)
    elif isinstance(x, tuple):
        model(*x)
    else:
        model(x)


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
