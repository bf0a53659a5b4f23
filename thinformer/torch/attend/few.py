"""Attention to the few keys that halving or herding keeps, all of equal weight."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import dropout, scaled_dot_product_attention

from thinformer.attending.options import KeySelection
from thinformer.torch.attend.arguments import Wanted
from thinformer.torch.attend.slots import used_slots, widened
from thinformer.torch.choose.calls import choose_keys
from thinformer.torch.choose.heads import COMPUTED_IN, Heads


def attend_to_few(
    heads: Heads, selection: KeySelection, seed: torch.Tensor, wanted: Wanted
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return output (B, T, H, D), weights (B, H, T, n_out) if wanted, indices (B, H_kv, n_out)."""
    of_all, counts, finite = choose_keys(heads, selection, seed)
    if heads.valid is None:
        return attend_to_kept(heads, of_all, counts, finite, wanted)
    few, width = used_slots(of_all, counts), of_all.shape[-1]
    output, weights, indices = attend_to_kept(heads, few, counts, finite, wanted)
    weights = None if weights is None else widened(weights, width, 0)
    return output, weights, widened(indices, width, -1)


def attend_to_kept(
    heads: Heads,
    indices: torch.Tensor,
    counts: torch.Tensor,
    finite: torch.Tensor,
    wanted: Wanted,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Attend to keys at indices (B, H_kv, n_out), of which the first counts (B,) are meant.

    The output of heads that are not finite, (B, H_kv) bool, is NaN. Returns what `attend_to_few`
    does.
    """
    query, key, value, valid, scale = heads
    key, value = _gather(key, indices), _gather(value, indices)
    used = slots = None
    if valid is not None:
        slot = torch.arange(indices.shape[-1], device=indices.device)
        used = slot < counts[:, None]
        slots = (slot < counts.clamp(min=1)[:, None])[:, None, None]  # of none, one key of zeros
        key, value = (x.masked_fill(~used[:, None, :, None], 0) for x in (key, value))
        indices = indices.masked_fill(~used[:, None], -1)
    # NaN may have stood where no key was kept; one in each key and value makes the output NaN, also
    # where torch's attention gives no weight to keys of NaN
    key, value = (x.masked_fill(~finite[:, :, None, None], math.nan) for x in (key, value))
    query = query.transpose(1, 2)
    if (group := heads.group) > 1:
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    if not wanted.weights:
        output = scaled_dot_product_attention(
            query, key, value, slots, dropout_p=wanted.dropout_p, scale=scale
        )
        return output.transpose(1, 2), None, indices
    # half precision would round logits to a few hundredths; autocast would bring it back
    wide = COMPUTED_IN[value.dtype]
    with torch.autocast(query.device.type, enabled=False):
        logits = query.to(wide) @ (key.to(wide) * scale).mT
        if slots is not None:
            logits = logits.masked_fill(~slots, -torch.inf)
        weights = torch.softmax(logits, dim=-1)
        dropped = dropout(weights, wanted.dropout_p) if wanted.dropout_p else weights
        output = (dropped @ value.to(wide)).to(value.dtype)
    weights = weights.to(value.dtype)
    if used is not None:
        weights = weights.masked_fill(~used[:, None, None], 0)
    return output.transpose(1, 2), weights, indices


def _gather(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Tokens (B, S, H, dim) at positions (B, H, n_out), as (B, H, n_out, dim)."""
    sequence, head = (
        torch.arange(n, device=indices.device).reshape(shape)
        for n, shape in ((indices.shape[0], (-1, 1, 1)), (indices.shape[1], (1, -1, 1)))
    )
    return tokens[sequence, indices, head]  # in half the time of torch.gather
