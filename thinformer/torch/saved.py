"""`save_settings`: the settings of a model's layers in a file beside the model."""

from __future__ import annotations

import os

from torch import nn

from thinformer.attending import settings
from thinformer.attending.options import LayerOptions
from thinformer.torch.layers import attention_modules, through_interface


def save_settings(model: nn.Module, path: str | os.PathLike) -> None:
    """Save the settings of a model's attention layers.

    Parameters
    ----------
    model : torch.nn.Module
        After `calibrate`, `thinformer.torch.transformers.configure` or `convert`, by which layers
        have settings of their own; or after `register` and a forward pass.
    path : str or path
        A file, or the folder that the model is saved to, which gets a thinformer.json.

    Raises
    ------
    ValueError
        The model has no settings to save, or some of its layers have none.

    Notes
    -----
    ``configure(model, path)`` restores the settings of a model of transformers, and
    ``convert(model, path)`` those of other models.

    Examples
    --------
    >>> import tempfile
    >>> import torch
    >>> from thinformer.torch import convert, load_settings, save_settings
    >>> layer = torch.nn.TransformerEncoderLayer(64, 4, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 1).eval()
    >>> converted = convert(model, size=64, min_length=512)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_settings(model, folder)
    ...     load_settings(folder)
    {'layers.0.self_attn': {'size': 64, 'min_length': 512}}
    """
    layers = _options(model)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} has no settings to save: convert(model), or "
            f"thinformer.torch.transformers.configure(model), gives its layers some"
        )
    settings.save_settings(
        path, {name: settings.entry_of(options) for name, options in layers.items()}, {}
    )


def _options(model: nn.Module) -> dict[str, LayerOptions]:
    """The options of a model's attention layers by name: their own, or those of the last call."""
    found: dict[str, LayerOptions] = {}
    missing = []
    for name, module in attention_modules(model).items():
        last = module.__dict__.get("thinformer_last")
        options = getattr(module, "thinformer", None if last is None else last.options)
        if isinstance(options, LayerOptions):
            found[name] = options
        elif through_interface(module):  # which a file must name
            missing.append(name)
    if found and missing:
        raise ValueError(
            f"{type(model).__name__} has no settings of {missing[0]!r}, which has not run: "
            f"thinformer.torch.transformers.configure(model) gives all layers some"
        )
    return found
