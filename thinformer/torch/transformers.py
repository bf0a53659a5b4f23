"""Thinformer as an attention implementation of Hugging Face transformers.

``register()``, then ``AutoModel.from_pretrained(.., attn_implementation="thinformer")``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

try:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask
except ImportError as error:
    raise ImportError(
        "thinformer.torch.transformers needs transformers, 5 or later: "
        "pip install 'thinformer[models]'"
    ) from error

from thinformer.attending.options import MIN_LENGTH, LayerOptions, given_options
from thinformer.attending.settings import of_layers
from thinformer.torch.attend.arguments import Call, Wanted
from thinformer.torch.attend.layer import checked_attention
from thinformer.torch.attend.masks import OF_TRANSFORMERS
from thinformer.torch.convert import names_in

# arguments of models that do not change the scores; any other argument raises
HARMLESS = {
    "position_ids", "cache_position", "use_cache", "deterministic", "num_items_in_batch",
    "output_hidden_states", "output_router_logits", "return_dict", "encoder_hidden_states",
}  # fmt: skip


def register(
    name: str = "thinformer",
    *,
    g: int = 2,
    size: int | None = None,
    min_length: int = MIN_LENGTH,
    correction: str | None = None,
    temperature: float | str | None = None,
    fallback: str | None = None,
    error_threshold: float | None = None,
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
    min_length : int
        Attention over fewer keys stays exact, and so does a sequence with fewer tokens in a batch.
        Attention of a single query, a step of decoding, is exact too.
    correction : {None, "nystrom", "queries"}
    temperature : float or "auto", optional
    fallback : {None, "exact"}
    error_threshold : float, optional
        As in `thinformer.thinformer_attention`.
    options : LayerOptions, optional
        All of these settings as one object; they are left out then.

    Notes
    -----
    A text keeps the same keys alone and in a padded batch. Each layer draws a seed from torch's
    default generator, so ``torch.manual_seed`` before a forward pass makes it reproducible.
    `configure` changes the settings of single layers.

    The forward pass raises NotImplementedError, and names the layer, for causal attention of more
    than one query; for ``position_bias``, ``softcap``, ``s_aux``, ``sliding_window``,
    ``cu_seq_lens_q``, ``output_attentions`` and every other argument that is not known to be
    harmless; and for a mask that differs by query.
    """
    of_model = given_options(
        options, g=g, size=size, min_length=min_length, correction=correction,
        temperature=temperature, fallback=fallback, error_threshold=error_threshold,
    )  # fmt: skip

    def thinformer(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **others: Any,
    ) -> tuple[torch.Tensor, None]:
        layer = getattr(module, "thinformer", of_model)
        return _forward(layer, module, query, key, value, attention_mask, **others)

    AttentionInterface.register(name, thinformer)
    AttentionMaskInterface.register(name, _mask)


def configure(
    layer: nn.Module,
    settings: str | os.PathLike | Mapping[str, Mapping[str, Any]] | None = None,
    *,
    g: int = 2,
    size: int | None = None,
    min_length: int = MIN_LENGTH,
    correction: str | None = None,
    temperature: float | str | None = None,
    fallback: str | None = None,
    error_threshold: float | None = None,
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
        A file that `thinformer tune` wrote, or what `thinformer.torch.load_settings` returns. It
        must name every attention layer of the model and no other; the other arguments are left out.
    g, size, min_length, correction, temperature, fallback, error_threshold
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
        temperature=temperature, fallback=fallback, error_threshold=error_threshold, exact=exact,
    )  # fmt: skip
    if settings is None:
        for module in layer.modules():
            module.thinformer = alone  # type: ignore[assignment]
        return
    attending = attention_layers(layer)
    each = of_layers(settings, alone, attending)
    for module in layer.modules():  # a module that hides its attention stays exact
        module.thinformer = LayerOptions(exact=True)  # type: ignore[assignment]
    for name, module in attending.items():
        module.thinformer = each[name]  # type: ignore[assignment]


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that attend through transformers' interface, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if "ALL_ATTENTION_FUNCTIONS" in names_in(type(module).forward)
    }


def why_exact(
    module: nn.Module,
    queries: int,
    attention_mask: torch.Tensor | None,
    is_causal: bool | None,
    options: Mapping[str, Any],
) -> str | None:
    """Why a call of a module's attention cannot be thinned; None if it can."""
    layer = layer_name(module)
    unknown = [
        name
        for name, option in options.items()
        if name not in HARMLESS and option is not None and option is not False
    ]
    if unknown:
        return f"{layer} attends with {', '.join(unknown)}, which thinformer does not take"
    # transformers' own rule: without a mask, a module that does not say is causal
    causal = is_causal
    if causal is None:
        causal = getattr(module, "is_causal", attention_mask is None)
    if causal and queries > 1:
        return (
            f"{layer} is causal, and thinformer attention is not: its keys stand for all of them, "
            f"whatever their order"
        )
    return None


def layer_name(module: nn.Module) -> str:
    """A module's name in errors; the module does not know its name in the model."""
    index = getattr(module, "layer_idx", None)
    return type(module).__name__ + ("" if index is None else f" (layer {index})")


def _forward(
    layer: LayerOptions,
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
) -> tuple[torch.Tensor, None]:
    """Attend: query (B, H, T, E), key and value (B, H_kv, S, dim) -> (B, T, H, D)."""
    if not layer.exact:
        reason = why_exact(module, query.shape[2], attention_mask, is_causal, options)
        if reason:
            raise NotImplementedError(
                f"{reason}; leave it exact with "
                f"thinformer.torch.transformers.configure(layer, exact=True)"
            )
    if layer.leaves_exact(query.shape[2], key.shape[2]):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
            is_causal=is_causal, **options,
        )  # fmt: skip
    try:
        call = Call(
            scaling, None, attention_mask, enable_gqa=True, layout="bhsd",
            mask_names=OF_TRANSFORMERS,
        )  # fmt: skip
        wanted = Wanted(dropout_p=dropout)
        attended = checked_attention(query, key, value, layer, call, wanted)
    except NotImplementedError as error:
        raise NotImplementedError(f"{layer_name(module)}: {error}") from None
    return attended.output.transpose(1, 2).contiguous(), None


def _mask(
    *, q_length: int, mask_function: Callable, use_vmap: bool = False, **options: Any
) -> torch.Tensor | None:
    """The mask of ``"sdpa"``, for one query, (B, 1, 1, S), where all queries have the same mask."""
    if mask_function is bidirectional_mask_function and not use_vmap:
        q_length = 1
    return sdpa_mask(q_length=q_length, mask_function=mask_function, use_vmap=use_vmap, **options)
