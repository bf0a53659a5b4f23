"""Thinformer as an attention implementation of Hugging Face transformers.

``register()``, then ``AutoModel.from_pretrained(.., attn_implementation="thinformer")``.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

try:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask
except ImportError as error:
    raise ImportError(
        "thinformer.torch.transformers needs transformers, 5 or later: "
        "pip install 'transformers>=5'"
    ) from error

from thinformer.attending.options import (
    Correction,
    Fallback,
    LayerOptions,
    Unsupported,
    given_options,
)
from thinformer.attending.settings import of_layers
from thinformer.torch.attend.arguments import Call, Wanted
from thinformer.torch.attend.layer import checked_attention
from thinformer.torch.attend.masks import OF_TRANSFORMERS
from thinformer.torch.choose.seeds import seed_of_layer
from thinformer.torch.layers import attention_modules, path_of, through_interface
from thinformer.torch.report import note_exact, note_thinned

# arguments of models that do not change the scores; any other argument raises
HARMLESS = {
    "position_ids", "cache_position", "use_cache", "deterministic", "num_items_in_batch",
    "output_hidden_states", "output_router_logits", "return_dict", "encoder_hidden_states",
}  # fmt: skip
# arguments that transformers' own function for SDPA takes, or that its masks hold
OF_SDPA = HARMLESS | {"dropout", "scaling", "position_bias", "sliding_window"}
REGISTERED: set[str] = set()  # the names of implementations that thin


def register(
    name: str = "thinformer",
    *,
    g: int = 2,
    size: int | None = None,
    min_length: int | Literal["auto"] = "auto",
    correction: Correction | None = "queries",
    temperature: float | Literal["auto"] | None = None,
    fallback: Fallback | None = "exact",
    error_threshold: float | None = None,
    seed: int | None = 0,
    unsupported: Unsupported = "raise",
    options: LayerOptions | None = None,
) -> None:
    """Register Thinformer attention, and its masks, with transformers.

    Afterwards ``AutoModel.from_pretrained(.., attn_implementation=name)`` and
    ``model.set_attn_implementation(name)`` work, for encoders: BERT, ViT, DINO, CLIP's vision
    tower, Whisper's encoder. Registering a name again replaces its settings.

    Parameters
    ----------
    name : str
        Several names may be registered, each with its own settings.
    g, size : int
        As in `thinformer.thinformer_attention`.
    min_length : int or "auto"
        Attention over fewer keys stays exact, and so does a sequence with fewer tokens in a batch.
        Attention of a single query, a step of decoding, is exact too. "auto" thins where it was
        measured to be faster: on a CPU, from 2,048 tokens on.
    correction : {"queries", "nystrom", None}
    temperature : float or "auto", optional
        As in `thinformer.thinformer_attention`; ``correction=None`` is the published method.
    fallback : {"exact", None}
    error_threshold : float, optional
        Attention of a head whose estimated error is above it, 0.4 by default, is computed exactly.
    seed : int, optional
        In evaluation, the same input gives the same output: each layer draws from this seed and its
        own weights. In training, or with None, a call draws from torch's default generator.
    unsupported : {"raise", "exact"}
        What the forward pass does with attention that cannot be thinned; see Notes.
    options : LayerOptions, optional
        All of these settings as one object; they are left out then.
        ``options=thinformer.torch.PUBLISHED`` is the method of the paper without any control.

    Notes
    -----
    A text keeps the same keys alone and in a padded batch. `configure` changes the settings of
    single layers, `calibrate` finds them, and `thinformer.torch.report` says what each layer did.

    What cannot be thinned is causal attention of more than one query; a mask that differs by query;
    ``position_bias``, ``softcap``, ``s_aux``, ``sliding_window``, ``cu_seq_lens_q``,
    ``output_attentions`` and every other argument that is not known to be harmless. The forward
    pass raises NotImplementedError and names the layer, or with ``unsupported="exact"`` attends as
    the model does with ``"sdpa"``, or with ``"eager"`` where that cannot be.
    """
    of_model = given_options(
        options, g=g, size=size, min_length=min_length, correction=correction,
        temperature=temperature, fallback=fallback, error_threshold=error_threshold, seed=seed,
        unsupported=unsupported,
    )  # fmt: skip

    REGISTERED.add(name)
    AttentionInterface.register(name, partial(_forward, of_model))
    AttentionMaskInterface.register(name, _mask)


def configure(
    layer: nn.Module,
    settings: str | os.PathLike | Mapping[str, Mapping[str, Any]] | None = None,
    *,
    g: int = 2,
    size: int | None = None,
    min_length: int | Literal["auto"] = "auto",
    correction: Correction | None = "queries",
    temperature: float | Literal["auto"] | None = None,
    fallback: Fallback | None = "exact",
    error_threshold: float | None = None,
    seed: int | None = 0,
    unsupported: Unsupported = "raise",
    exact: bool = False,
    options: LayerOptions | None = None,
) -> None:
    """Give a layer, and all modules in it, settings of its own instead of those of `register`.

    With `settings`, give each attention layer of a model its own settings, from a file.

    Parameters
    ----------
    layer : torch.nn.Module
        For example ``model.encoder.layer[0]``; with `settings` for example ``model``.
    settings : path or dict, optional
        A file that `thinformer tune` or `save_settings` wrote, or the folder with it, or what
        `thinformer.torch.load_settings` returns. It must name every attention layer of the model
        and no other; the other arguments are left out.
    g, size, min_length, correction, temperature, fallback, error_threshold, seed, unsupported
        As in `register`.
    exact : bool
        Leave the layer's attention as it is with ``attn_implementation="sdpa"``, causal or not.
    options : LayerOptions, optional
        All of these settings but `settings` as one object; they are left out then.

    Raises
    ------
    ValueError
        A setting is out of its range, or the settings name other layers than the model has.
    """
    alone = given_options(
        options, g=g, size=size, min_length=min_length, correction=correction,
        temperature=temperature, fallback=fallback, error_threshold=error_threshold, seed=seed,
        unsupported=unsupported, exact=exact,
    )  # fmt: skip
    attending = attention_layers(layer)
    _check_routed(layer, attending)
    if settings is None:
        for module in layer.modules():
            module.thinformer = alone  # type: ignore[assignment]
        return
    each = of_layers(settings, alone, attending)
    for module in layer.modules():  # a module that hides its attention stays exact
        module.thinformer = LayerOptions(exact=True)  # type: ignore[assignment]
    for name, module in attending.items():
        module.thinformer = each[name]  # type: ignore[assignment]


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that attend through transformers' interface, by name."""
    return {name: module for name, module in model.named_modules() if through_interface(module)}


def why_exact(
    module: nn.Module,
    queries: int,
    attention_mask: torch.Tensor | None,
    is_causal: bool | None,
    options: Mapping[str, Any],
) -> str | None:
    """Why a call of a module's attention cannot be thinned; None if it can."""
    unknown = unknown_arguments(options, HARMLESS)
    if unknown:
        return f"it attends with {', '.join(unknown)}, which thinformer does not take"
    if _causal(module, attention_mask, is_causal) and queries > 1:
        return (
            "it is causal, and thinformer attention is not: its keys stand for all of them, "
            "whatever their order"
        )
    return None


def unknown_arguments(options: Mapping[str, Any], known: set[str]) -> list[str]:
    """The names of an attention's arguments that are given and are not known."""
    if known.issuperset(options):  # a sixth of the time of the list
        return []
    return [
        name
        for name, option in options.items()
        if name not in known and option is not None and option is not False
    ]


def _causal(module: nn.Module, mask: torch.Tensor | None, is_causal: bool | None) -> bool:
    """Whether a call is causal, by transformers' own rule."""
    if is_causal is None:  # without a mask, a module that does not say is causal
        return getattr(module, "is_causal", mask is None)
    return is_causal


def _forward(
    of_model: LayerOptions,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend: query (B, H, T, E), key and value (B, H_kv, S, dim) -> (B, T, H, D).

    What stands before a call that stays exact takes some 25 microseconds in a model.
    """
    # getattr costs five times as much where a module has no settings of its own, and device.type,
    # which makes a text, ten times as much as is_cpu
    layer = module.__dict__.get("thinformer", of_model)
    T, S, device = query.shape[2], key.shape[2], "cpu" if query.is_cpu else query.device.type
    short = layer.leaves_exact(T, S, device)
    reason = None if layer.exact else why_exact(module, T, attention_mask, is_causal, options)
    if not (reason or short):
        try:
            call = Call(
                scaling, None, attention_mask, enable_gqa=True, layout="bhsd",
                mask_names=OF_TRANSFORMERS,
            )  # fmt: skip
            wanted = Wanted(dropout_p=dropout, seed=seed_of_layer(module, layer.seed, query.device))
            attended = checked_attention(query, key, value, layer, call, wanted)
        except NotImplementedError as error:
            reason = str(error)
        else:
            note_thinned(module, layer, T, S, attended)
            return attended.output.transpose(1, 2).contiguous(), None
    if reason and layer.unsupported == "raise":
        of_weights = short and unknown_arguments(options, HARMLESS) == ["output_attentions"]
        if not of_weights:  # which are returned, of exact attention
            raise NotImplementedError(f"{path_of(module)}: {reason}. {_remedy(options)}")
    note_exact(module, layer, T, S, device, reason)
    return _as_the_model(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
        is_causal=is_causal, **options,
    )  # fmt: skip


def _remedy(options: Mapping[str, Any]) -> str:
    """What to do about an error of the forward pass."""
    if options.get("output_attentions"):
        return "model.set_attn_implementation('eager') returns the weights"
    return (
        "Leave such layers exact with register(unsupported='exact'), or this one with "
        "thinformer.torch.transformers.configure(layer, exact=True)"
    )


def _as_the_model(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    is_causal: bool | None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend exactly, by SDPA; by the model's own function with arguments that SDPA lacks."""
    unknown = unknown_arguments(options, OF_SDPA)
    if not unknown:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, is_causal=is_causal, **options
        )
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise NotImplementedError(
            f"{path_of(module)}: it attends with {', '.join(unknown)}, for which "
            f"{type(module).__module__} has no eager_attention_forward"
        )
    T, S = query.shape[2], key.shape[2]
    if attention_mask is None and T > 1 and _causal(module, attention_mask, is_causal):
        ones = torch.ones(T, S, dtype=torch.bool, device=key.device)
        attention_mask = ones.tril(S - T)[None, None]
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        hidden = torch.zeros((), dtype=query.dtype, device=query.device)
        attention_mask = hidden.masked_fill(~attention_mask, torch.finfo(query.dtype).min)
    return eager(module, query, key, value, attention_mask, **options)


def _check_routed(layer: nn.Module, attending: Mapping[str, nn.Module]) -> None:
    """Warn where the settings of a layer or model have no effect."""
    if not attending:
        warnings.warn(
            f"{type(layer).__name__} has no layer that attends through transformers' "
            f"AttentionInterface: its attention stays exact",
            stacklevel=3,
        )
        return
    others = [name for name in attention_modules(layer) if name not in attending]
    if others:
        warnings.warn(
            f"{type(layer).__name__} also attends without transformers' AttentionInterface, "
            f"exactly: {', '.join(others[:3])}{', ...' if others[3:] else ''}",
            stacklevel=3,
        )
    module = next(iter(attending.values()))
    used = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if used is not None and used not in REGISTERED:
        warnings.warn(
            f"{type(layer).__name__} attends by {used!r}, so its settings have no effect before "
            f"register() and model.set_attn_implementation('thinformer')",
            stacklevel=3,
        )


def _mask(
    *, q_length: int, mask_function: Callable, use_vmap: bool = False, **options: Any
) -> torch.Tensor | None:
    """The mask of ``"sdpa"``, for one query, (B, 1, 1, S), where all queries have the same mask."""
    if mask_function is bidirectional_mask_function and not use_vmap:
        q_length = 1
    return sdpa_mask(q_length=q_length, mask_function=mask_function, use_vmap=use_vmap, **options)
