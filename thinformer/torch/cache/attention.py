"""Attention of a decoder over a thinned cache: an attention implementation of transformers.

Without a `ThinnedCache` it is transformers' own function for SDPA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from thinformer.torch.layers import path_of
from thinformer.torch.transformers import HARMLESS, unknown_arguments

NAME = "thinned_cache"
LAYER = "thinned_layer"  # the argument by which a layer of the cache reaches the attention function
QUERIES = 256  # queries that attend at a time, so that their bias stays small


def register() -> None:
    """Make the implementation and its masks known to transformers."""
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    thinned_layer: Any = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend: query (B, H, T, E), key and value (B, H_kv, S, dim) -> (B, T, H, D).

    thinned_layer : the `ThinnedLayer` that the keys are of, from which `update` gave them
    """
    layer = thinned_layer
    if layer is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
            is_causal=is_causal, **options,
        )  # fmt: skip
    unknown = unknown_arguments({"dropout": dropout or None, **options}, HARMLESS)
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        unknown.append("attention that is not causal")
    if unknown:
        raise NotImplementedError(
            f"{path_of(module)}: ThinnedCache does not take {', '.join(unknown)}"
        )
    if key is not layer.keys or value is not layer.values:
        raise NotImplementedError(
            f"{path_of(module)}: ThinnedCache takes attention to the keys and values that the "
            f"cache holds; this layer makes others of them"
        )
    if torch.is_grad_enabled() and key.requires_grad:
        raise NotImplementedError(
            f"{path_of(module)}: ThinnedCache has no gradient. Run the model under torch.no_grad()"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if layer.log_masses is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal,
            **options,
        )  # fmt: skip
    else:
        output = attend(query, key, value, layer.log_masses, attention_mask, scale)
    layer.attended(query, attention_mask, scale)
    return output, None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    log_masses: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Attend to landmarks and to the tokens behind them: (B, T, H, D).

    Parameters
    ----------
    query : (B, H, T, E) tensor
    key, value : (B, H_kv, n_out + R, E) and (B, H_kv, n_out + R, D) tensors
        Landmarks, then tokens, of which the last T are those of the queries.
    log_masses : (B, H_kv, n_out) tensor
        They are added to the logits of landmarks.
    mask : (B, 1, T, R) bool or float tensor, optional
        Which tokens a query attends to; without one, all that are not later.
    """
    (B, H, T, E), (H_kv, n), n_out = query.shape, key.shape[1:3], log_masses.shape[-1]
    recent = n - n_out
    if mask is None:
        mask = torch.ones(T, recent, dtype=torch.bool, device=key.device).tril(recent - T)
        mask = mask.expand(1, 1, T, recent)
    if mask.shape[-1] != recent:
        raise ValueError(f"the mask is of {mask.shape[-1]} tokens; the cache holds {recent}")
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=key.device).masked_fill(
            ~mask, -torch.inf
        )
    hides = torch.finfo(query.dtype).min / 2
    of_landmarks = log_masses.to(query.dtype)[:, :, None]
    outputs = []
    for start in range(0, T, QUERIES):
        some = query[:, :, start : start + QUERIES]
        t, G = some.shape[2], H // H_kv
        bias = torch.cat(
            [
                of_landmarks.expand(B, H_kv, t, n_out),
                mask[:, :, start : start + t].expand(B, H_kv, t, recent),
            ],
            dim=-1,
        ).clamp(min=hides)  # a query that sees nothing, in padding, gets numbers
        # the queries of a group are more queries of its head
        output = scaled_dot_product_attention(
            some.reshape(B, H_kv, G * t, E), key, value, scale=scale,
            attn_mask=bias if t == 1 else bias.repeat(1, 1, G, 1),
        )  # fmt: skip
        outputs.append(output.reshape(B, H, t, -1).transpose(1, 2))
    return torch.cat(outputs, dim=1)


def padding_of(mask: torch.Tensor) -> torch.Tensor:
    """Return which tokens no query sees, (B, R), of a mask (B, 1, T, R).

    Raises
    ------
    NotImplementedError
        The mask differs by head, or it has numbers besides 0 and those that hide a token.
    """
    if mask.shape[1] != 1:
        raise NotImplementedError("ThinnedCache does not take a mask that differs by head")
    if mask.dtype == torch.bool:
        return ~mask.any(dim=(1, 2))
    hides = mask <= torch.finfo(mask.dtype).min / 2
    if not ((mask == 0) | hides).all():
        raise NotImplementedError("ThinnedCache does not take a mask with numbers besides 0")
    return hides.all(dim=2)[:, 0]
