"""`torch.nn.MultiheadAttention` over few keys, which `convert` swaps in."""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn.functional import linear

from thinformer.attending.options import LayerOptions
from thinformer.torch.attend.arguments import Call, Wanted
from thinformer.torch.attend.layer import checked_attention
from thinformer.torch.attend.masks import (
    OF_MULTIHEAD,
    padding_of_multihead,
    scores_of_multihead,
)
from thinformer.torch.choose.seeds import seed_of_layer
from thinformer.torch.layers import REMEDY, no_script, path_of
from thinformer.torch.report import note_exact, note_thinned

WEIGHTS = "need_weights=True with a fallback, which has weights of all keys"
NO_WEIGHTS = "need_weights=False thins it, and so does convert(model, fallback=None)"


class ThinnedMultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention with the same parameters, thinned as its options say."""

    thinformer: LayerOptions
    __prepare_scriptable__ = no_script

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend as nn.MultiheadAttention does; weights of dropped keys are 0.

        With a fallback, a call that wants the weights is exact: a head that falls back has weights
        of all keys.
        """
        layer, tokens = self.thinformer, int(query.dim() == 3 and self.batch_first)
        T, S, device = query.shape[tokens], key.shape[tokens], query.device.type
        short, reason = layer.leaves_exact(T, S, device), None
        if need_weights and layer.fallback is not None and not short:
            reason = WEIGHTS
            if not torch.compiler.is_compiling():
                warnings.warn(f"attention stays exact: {WEIGHTS}. {NO_WEIGHTS}", stacklevel=2)
        elif not short:
            try:
                return self._thinned(
                    query, key, value, key_padding_mask, need_weights, attn_mask,
                    average_attn_weights, is_causal,
                )  # fmt: skip
            except NotImplementedError as error:
                if layer.unsupported == "raise":
                    raise NotImplementedError(f"{path_of(self)}: {error}. {REMEDY}") from None
                reason = str(error)
        note_exact(self, layer, T, S, device, reason)
        return super().forward(
            query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights,
            is_causal,
        )  # fmt: skip

    def _thinned(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None,
        need_weights: bool,
        attn_mask: torch.Tensor | None,
        average_attn_weights: bool,
        is_causal: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend to few keys; raises NotImplementedError for what cannot be thinned."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x[None] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        query, key, value = self._projected(query, key, value)
        (B, T, H, _), S = query.shape, key.shape[1]
        if key_padding_mask is not None:
            key_padding_mask = padding_of_multihead(key_padding_mask, (B, H, T, S))
        if attn_mask is not None:
            attn_mask = scores_of_multihead(attn_mask, (B, H, T, S))
        call = Call(
            key_padding_mask=key_padding_mask, attn_mask=attn_mask, is_causal=is_causal,
            mask_names=OF_MULTIHEAD,
        )  # fmt: skip
        wanted = Wanted(
            need_weights, dropout_p=self.dropout if self.training else 0.0,
            seed=seed_of_layer(self, self.thinformer.seed, query.device),
        )  # fmt: skip
        attended = checked_attention(query, key, value, self.thinformer, call, wanted)
        note_thinned(self, self.thinformer, T, S, attended)
        output, weights = self.out_proj(attended.output.flatten(-2)), None
        if attended.weights is not None and attended.indices is not None:
            places = attended.indices.clamp(min=0)[:, :, None].expand_as(attended.weights)
            weights = attended.weights.new_zeros((B, H, T, S))
            weights = weights.scatter_add(-1, places, attended.weights)
            weights = weights.mean(dim=1) if average_attn_weights else weights
        if not batched:
            return output[0], None if weights is None else weights[0]
        return output if self.batch_first else output.transpose(0, 1), weights

    def _projected(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
        """Query, key and value (B, T or S, H, E)."""
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return [
            linear(x, weight, bias).unflatten(-1, (self.num_heads, self.head_dim))
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        ]
