"""`report`: what each attention layer of a model did in the last forward pass, and why."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import nn

from thinformer.attending.options import NEVER, LayerOptions
from thinformer.support.table import aligned
from thinformer.torch.attend.layer import Estimated
from thinformer.torch.layers import attention_modules

NOT_RUN = "has not run yet, or ran in a compiled graph"


class Last(NamedTuple):
    """What a layer did in its last call; made at every call, so it is a tuple and has no texts.

    Attributes
    ----------
    queries, keys : int
        Tokens.
    kept : int or int64 tensor without axes
        The most keys that a sequence keeps.
    options : LayerOptions
    device : str
        A type of device.
    exact : bool
    why : str or None
        Why an exact call could not be thinned; None where its options leave it exact.
    error_estimate : (B, H) tensor or None
        A head whose estimate is above the options' threshold was exact.
    """

    queries: int
    keys: int
    kept: int | torch.Tensor
    options: LayerOptions
    device: str
    exact: bool
    why: str | None = None
    error_estimate: torch.Tensor | None = None


class Row(NamedTuple):
    """An attention layer in a `Report`.

    Attributes
    ----------
    layer : str
        The module's name in the model.
    queries, keys, kept : int or None
        Tokens of the last call, and the keys that each query attends to where they were thinned;
        None where the layer was not called.
    exact : float or None
        The share of heads that were exact: 0 where all were thinned, 1 for an exact layer.
    why : str
        Why heads were exact, or what is known instead.
    """

    layer: str
    queries: int | None
    keys: int | None
    kept: int | None
    exact: float | None
    why: str


class Report(tuple[Row, ...]):
    """The rows of a model's attention layers; printed as a table."""

    def __str__(self) -> str:
        """Align the columns."""
        header = ("layer", "queries", "keys", "kept", "thinned", "why exact")
        return aligned([header, *map(_cells, self)], left=(0, 5))


def report(model: nn.Module) -> Report:
    """Return what each attention layer of a model did in its last forward pass.

    Parameters
    ----------
    model : torch.nn.Module
        With `thinformer.torch.transformers.register`, `convert`, or neither: a layer that attends
        by another way has a row too.

    Returns
    -------
    Report
        A tuple of `Row`, one a layer, in the order of the model. ``print(report(model))`` prints a
        table.

    Notes
    -----
    A module that is called several times in a pass, as the shared layer of ALBERT, reports its last
    call. Compiled graphs record nothing. Reading the rows of a model on a GPU waits for it.

    Examples
    --------
    >>> import torch
    >>> from thinformer.torch import KeySelection, LayerOptions, convert, report
    >>> attention = torch.nn.MultiheadAttention(32, 4, batch_first=True).eval()
    >>> model = torch.nn.ModuleDict({"attention": attention})
    >>> converted = convert(model, options=LayerOptions(KeySelection(size=32, min_length=512)))
    >>> x = torch.randn(1, 600, 32, generator=torch.Generator().manual_seed(0))
    >>> output, _ = model["attention"](x, x, x, need_weights=False)
    >>> print(report(model))
    layer      queries  keys  kept  thinned  why exact
    attention      600   600    32     100%
    """
    return Report(_row(name, module) for name, module in attention_modules(model).items())


def note_thinned(
    module: nn.Module, layer: LayerOptions, queries: int, keys: int, attended: Estimated
) -> None:
    """Keep that the keys of a layer's call were thinned, for `report`."""
    if torch.compiler.is_compiling():
        return
    kept = keys if attended.indices is None else (attended.indices >= 0).sum(-1).amax()
    estimate = attended.error_estimate
    if torch._C._functorch.peek_interpreter_stack() is not None:
        kept, estimate = keys, None  # which would outlive torch.vmap
    device = attended.output.device.type
    module.__dict__["thinformer_last"] = Last(
        queries, keys, kept, layer, device, exact=False, error_estimate=estimate
    )


def note_exact(
    module: nn.Module, layer: LayerOptions, queries: int, keys: int, device: str, why: str | None
) -> None:
    """Keep that a layer's call was exact; warn at its first call if "auto" leaves it exact."""
    if torch.compiler.is_compiling():
        return
    recorded = module.__dict__  # as an attribute it costs nn.Module's own look-ups, twice as much
    if "thinformer_last" not in recorded and why is None:
        _warn_of_auto(module, layer, queries, keys, device)
    recorded["thinformer_last"] = Last(queries, keys, keys, layer, device, True, why)


def _warn_of_auto(
    module: nn.Module, layer: LayerOptions, queries: int, keys: int, device: str
) -> None:
    """Warn at a layer's first call, if "auto" leaves it exact."""
    if layer.exact or queries == 1 or layer.selection.min_length != "auto":
        return
    # one text for all layers, which Python prints once
    warnings.warn(
        f"{type(module).__name__} attends to {keys} keys, exactly: "
        f"{_why_short(layer, queries, device)}. "
        f"thinformer.torch.report(model) lists what each layer did",
        stacklevel=3,
    )


def _why_short(layer: LayerOptions, queries: int, device: str) -> str:
    """Why a call that `LayerOptions.leaves_exact` is exact."""
    if layer.exact:
        return "its settings say exact"
    if queries == 1:
        return "a single query"
    least = layer.selection.least_length(device)
    if layer.selection.min_length != "auto":
        return f"fewer than min_length = {least} tokens"
    if least == NEVER:
        return f"min_length='auto' thins nothing on {device}, where no speed was measured"
    return f"fewer than {least} tokens, below which min_length='auto' does not thin"


def _row(name: str, module: nn.Module) -> Row:
    last = module.__dict__.get("thinformer_last")
    if last is None:
        return Row(name, None, None, None, None, _why_not(module))
    if last.exact:
        why = last.why or _why_short(last.options, last.queries, last.device)
        return Row(name, last.queries, last.keys, int(last.kept), 1.0, why)
    exact, why, threshold = 0.0, "", last.options.threshold
    if threshold is not None and last.error_estimate is not None:
        exact = float((~(last.error_estimate <= threshold)).double().mean())
        if exact:
            worst = float(last.error_estimate.nan_to_num(torch.inf).max())
            why = f"estimated error up to {worst:.2g}, above {threshold:g}"
    return Row(name, last.queries, last.keys, int(last.kept), exact, why)


def _why_not(module: nn.Module) -> str:
    """Why a layer has nothing to report."""
    options = getattr(module, "thinformer", None)
    if isinstance(options, LayerOptions):
        return "its settings say exact" if options.exact else NOT_RUN
    return "it was never routed to thinformer"


def _cells(row: Row) -> tuple[str, ...]:
    numbers = ("-" if each is None else str(each) for each in row[1:4])
    thinned = "-" if row.exact is None else f"{100 * (1 - row.exact):.0f}%"
    return (row.layer, *numbers, thinned, row.why)
