"""Attention to landmarks in torch's own operations, with gradients: `attending.landmarks`.

`torch.ops.thinformer.landmarks` chooses the landmarks, the sampled queries and the temperature,
which are not differentiated. Everything computed from them is differentiated.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.autograd import forward_ad
from torch.nn.functional import dropout, pad, scaled_dot_product_attention

from thinformer.attending.landmarks import LEAST, SHARE
from thinformer.attending.options import KeySelection
from thinformer.torch.attend.arguments import Wanted
from thinformer.torch.attend.fitted import fit_groups, fit_pivots, scaled
from thinformer.torch.attend.slots import used_slots, widened
from thinformer.torch.choose import calls
from thinformer.torch.choose.heads import COMPUTED_IN, Heads, grouped


class Landmarks(NamedTuple):
    """The landmarks of all heads, fitted.

    keys : (B, H_kv, n_out, E), of keys minus their mean
    values, masses : (B, H_kv, n_out, D) and (B, H_kv, n_out)
    low, high : (B, H_kv, 1, D), the range of all keys' values
    used : (B, n_out) bool, which slots a sequence uses
    finite : (B, H_kv) bool
    indices : (B, H_kv, n_out) int64
    sampled, known : (B, H_kv, m) int64, the sampled queries, and (B, H_kv, m, D) their exact
        outputs, None without sampled queries
    """

    keys: torch.Tensor
    values: torch.Tensor
    masses: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    used: torch.Tensor
    finite: torch.Tensor
    indices: torch.Tensor
    sampled: torch.Tensor
    known: torch.Tensor | None


def attend_to_landmarks(
    heads: Heads, selection: KeySelection, seed: torch.Tensor, wanted: Wanted
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return output (B, T, H, D), weights (B, H, T, n_out) if wanted, indices (B, H_kv, n_out)."""
    query, key, value, _, scale = heads
    if wanted.dropout_p == 0 and not _differentiated(query, key, value):
        output, of_keys, indices = calls.attend_without_gradient(
            heads, selection, seed, wanted.weights
        )
        return output, of_keys if wanted.weights else None, indices
    few = fit_landmarks(heads, selection, seed)
    used, finite = few.used, few.finite
    empty = ~used.any(1)[:, None, None, None]
    present = used[:, None, None] | empty
    with torch.autocast(query.device.type, enabled=False):
        query = query.transpose(1, 2).to(few.keys.dtype)
        keys, values, masses, low, high, finite = (
            x.repeat_interleave(heads.group, dim=1) if heads.group > 1 else x
            for x in (few.keys, few.values, few.masses, few.low, few.high, finite)
        )
        output, weights = attend_with_masses(query, keys, values, masses, present, scale, wanted)
        if few.known is not None and wanted.dropout_p == 0:
            output = _with_known(output, few.known, few.sampled)
        output = torch.minimum(torch.maximum(output, low), high).masked_fill(empty, 0)
        output = output.masked_fill(~finite[..., None, None], math.nan)
    output = output.transpose(1, 2).to(heads.value.dtype)
    width = calls.keys_kept(heads.key.shape[1], selection, padded=heads.valid is not None)
    indices = widened(few.indices.masked_fill(~used[:, None], -1), width, -1)
    if weights is None or not wanted.weights:
        return output, None, indices
    weights = widened(weights.masked_fill(~used[:, None, None], 0), width, 0)
    weights = weights.masked_fill(~finite[..., None, None], math.nan)
    return output, weights.to(heads.value.dtype), indices


def fit_landmarks(heads: Heads, selection: KeySelection, seed: torch.Tensor) -> Landmarks:
    """Choose landmarks, and fit their values and masses, in torch's own operations."""
    query, key, value, valid, scale = heads
    indices, counts, finite, sampled, tau = calls.choose_landmarks(heads, selection, seed)
    if valid is not None:
        indices = used_slots(indices, counts)
        if sampled.shape[-1]:
            sampled = used_slots(sampled, (sampled >= 0).sum(-1))
    wide = COMPUTED_IN[value.dtype]
    used = torch.arange(indices.shape[-1], device=indices.device) < counts[:, None]
    with torch.autocast(query.device.type, enabled=False):
        queries = grouped(query, key.shape[2]).transpose(1, 2).to(wide)
        key, value = (x.transpose(1, 2).to(wide) for x in (key, value))  # (B, H_kv, S, dim)
        if valid is None:
            valid = key.new_ones((len(key), key.shape[2]), dtype=torch.bool)
        hidden = ~valid[:, None, :, None] | ~finite[:, :, None, None]
        key, value = key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)
        tokens = scaled(key, value, valid, tau.to(wide), scale)
        finite = finite & _in_range(tokens.x, tau)
        if sampled.shape[-1]:
            fitted = fit_groups(tokens, queries, indices, used, sampled, scale)
        else:
            fitted = fit_pivots(tokens, indices, used)
        low = value.masked_fill(hidden, math.inf).amin(2, keepdim=True)
        high = value.masked_fill(hidden, -math.inf).amax(2, keepdim=True)
    known = None if fitted.known is None else fitted.known[..., :-1]
    values, masses = fitted.values[..., :-1], fitted.values[..., -1]
    return Landmarks(fitted.keys, values, masses, low, high, used, finite, indices, sampled, known)


def _in_range(x: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
    """Return which heads (B, H) have temperatures and scaled keys (B, H, S, E) with squares."""
    return tau.isfinite() & x.detach().square().sum(-1).isfinite().all(-1)


def _differentiated(*tensors: torch.Tensor) -> bool:
    """Whether torch must see each operation: for a gradient, a GPU, or `torch.vmap`."""
    if forward_ad._current_level >= 0 or any(x.is_cuda for x in tensors):
        return True
    if torch.compiler.is_compiling():  # `torch.func.grad` inside a graph shows in no tensor
        return torch.is_grad_enabled()
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _with_known(output: torch.Tensor, known: torch.Tensor, sampled: torch.Tensor) -> torch.Tensor:
    """Replace the rows of sampled queries in output (B, H, T, D) by known (B, H_kv, m, D)."""
    if output.numel() == 0:
        return output
    by_group = output.unflatten(1, (sampled.shape[1], -1)).transpose(2, 3)  # (B, H_kv, T, group, D)
    rows = by_group.flatten(2, 3)
    place = sampled.where(sampled >= 0, rows.shape[2])[..., None].expand_as(known)
    # one more row takes what has no query
    rows = pad(rows, (0, 0, 0, 1)).scatter(2, place, known)[:, :, :-1]
    return rows.unflatten(2, by_group.shape[2:4]).transpose(2, 3).flatten(1, 2)


def attend_with_masses(
    query: torch.Tensor,
    key: torch.Tensor,
    values: torch.Tensor,
    masses: torch.Tensor,
    present: torch.Tensor | None,
    scale: float,
    wanted: Wanted,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weighted softmax attention: (B, H, T, D), and weights that sum to 1 if asked for.

    Masses and their magnitudes are two more columns of the values, so one softmax gives numerator,
    denominator and the floor of the denominator. A mass may be negative, so its logarithm could not
    be added to the logits.
    """
    sums = torch.stack([masses, masses.abs()], dim=-1)
    if wanted.weights or wanted.dropout_p > 0:
        logits = scale * query @ key.mT
        if present is not None:
            logits = logits.masked_fill(~present, -torch.inf)
        e = torch.softmax(logits, -1)
        total, magnitude = (e @ sums).split(1, dim=-1)
        weights = e / _floored(total, magnitude)
        dropped = dropout(weights, wanted.dropout_p) if wanted.dropout_p else weights
        return dropped @ values, weights * masses[..., None, :]
    D = values.shape[-1]
    width = max(query.shape[-1], D + 2)  # flash attention takes one width
    query, key, values = (
        pad(x, (0, width - x.shape[-1])) for x in (query, key, torch.cat([values, sums], dim=-1))
    )
    attended = scaled_dot_product_attention(query, key, values, present, scale=scale)
    total, magnitude = attended[..., D : D + 1], attended[..., D + 1 : D + 2]
    return attended[..., :D] / _floored(total, magnitude), None


def _floored(total: torch.Tensor, magnitude: torch.Tensor) -> torch.Tensor:
    least = (SHARE * magnitude).clamp(min=LEAST)
    return torch.maximum(total, least)
