"""Attention to landmarks in torch's own operations, with gradients: `attending.landmarks`.

`torch.ops.thinformer.landmarks` chooses the landmarks, the sampled queries and the temperature,
which are not differentiated. Everything computed from them is differentiated.
"""

from __future__ import annotations

import math

import torch
from torch.autograd import forward_ad
from torch.nn.functional import dropout, pad, scaled_dot_product_attention

from thinformer.attending.landmarks import BALANCE, BOUND, LEAST, NUGGET, SHARE
from thinformer.attending.options import KeySelection
from thinformer.torch.attend.arguments import Wanted
from thinformer.torch.choose import calls
from thinformer.torch.choose.heads import COMPUTED_IN, Heads, grouped


def attend_to_landmarks(
    heads: Heads, selection: KeySelection, seed: torch.Tensor, wanted: Wanted
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Return output (B, T, H, D), weights (B, H, T, n_out) if wanted, indices (B, H_kv, n_out)."""
    query, key, value, valid, scale = heads
    if valid is None and wanted.dropout_p == 0 and not _differentiated(query, key, value):
        output, of_keys, indices = calls.attend_without_gradient(
            heads, selection, seed, wanted.weights
        )
        return output, of_keys if wanted.weights else None, indices
    indices, counts, finite, sampled, summed, tau = calls.choose_landmarks(heads, selection, seed)
    wide, group = COMPUTED_IN[value.dtype], heads.group
    used = torch.arange(indices.shape[-1], device=indices.device) < counts[:, None]
    with torch.autocast(query.device.type, enabled=False):
        queries = grouped(query, key.shape[2]).transpose(1, 2).to(wide)
        key, value = (x.transpose(1, 2).to(wide) for x in (key, value))  # (B, H_kv, S, dim)
        if valid is None:
            valid = key.new_ones((len(key), key.shape[2]), dtype=torch.bool)
        hidden = ~valid[:, None, :, None] | ~finite[:, :, None, None]
        key, value = key.masked_fill(hidden, 0), value.masked_fill(hidden, 0)
        values, masses, known = fit(
            queries, key, value, valid, indices, used, sampled, summed, tau.to(wide), scale
        )
        low = value.masked_fill(hidden, math.inf).amin(2, keepdim=True)
        high = value.masked_fill(hidden, -math.inf).amax(2, keepdim=True)
        few = _take(key, indices)
        query = query.transpose(1, 2).to(wide)
        if group > 1:
            few, values, masses, low, high, finite = (
                x.repeat_interleave(group, dim=1) for x in (few, values, masses, low, high, finite)
            )
        present = used[:, None, None] | (counts == 0)[:, None, None, None]
        output, weights = _attend(query, few, values, masses, present, scale, wanted)
        if known is not None and wanted.dropout_p == 0:
            output = _with_known(output, known, sampled)
        empty = (counts == 0)[:, None, None, None]
        output = torch.minimum(torch.maximum(output, low), high).masked_fill(empty, 0)
        output = output.masked_fill(~finite[..., None, None], math.nan)
    output = output.transpose(1, 2).to(heads.value.dtype)
    indices = indices.masked_fill(~used[:, None], -1)
    if weights is None or not wanted.weights:
        return output, None, indices
    weights = weights.masked_fill(~used[:, None, None], 0)
    weights = weights.masked_fill(~finite[..., None, None], math.nan)
    return output, weights.to(heads.value.dtype), indices


def _differentiated(*tensors: torch.Tensor) -> bool:
    """Whether torch must see each operation: for a gradient, a GPU, `torch.vmap` or a graph."""
    if forward_ad._current_level >= 0 or any(x.is_cuda for x in tensors):
        return True
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def fit(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor,
    indices: torch.Tensor,
    used: torch.Tensor,
    sampled: torch.Tensor,
    summed: torch.Tensor,
    tau: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Fit the values and masses of landmarks.

    Parameters
    ----------
    query : (B, H, T, E) tensor
    key, value : (B, H, S, dim) tensors
        0 where they are not valid, (B, S).
    indices, used : (B, H, n_out) and (B, n_out) tensors
        The landmarks, and which of these slots a sequence uses.
    sampled, summed : (B, H, m) and (B, H, L) tensors
        The sampled queries, and the keys that the exponential term is summed over; -1 for none.
    tau : (B, H) tensor
        The temperatures.

    Returns
    -------
    values : (B, H, n_out, D) tensor
    masses : (B, H, n_out) tensor
        A sequence whose tokens are all landmarks has its own values, and masses of 1.
    known : (B, H, m, D) tensor or None
        The exact outputs of the sampled queries.
    """
    limits = torch.finfo(key.dtype)
    tokens = valid[:, None, :, None].to(key.dtype)  # (B, 1, S, 1)
    length = tokens.sum(2, keepdim=True).clamp(min=1)
    outside = ~valid[:, None, None]
    x = (
        (key - key.sum(2, keepdim=True) / length)
        * tokens
        * (math.sqrt(scale) / tau[..., None, None])
    )
    squares = x.square().sum(-1).masked_fill(outside[:, :, 0], -torch.inf)
    V1 = torch.cat([value, tokens.expand(*value.shape[:3], 1)], dim=-1)
    few = _take(x, indices)
    if sampled.shape[-1]:
        logits = scale * _take(query, sampled.clamp(min=0)) @ key.mT
        P = torch.softmax(logits.masked_fill(outside, -torch.inf), -1)
        P = P.masked_fill(sampled[..., None] < 0, 0).nan_to_num(0)  # of sequences without a token
        shift, h = _balance(P, squares)
    else:
        h = squares.clamp(min=-1e30) / 2
    top = h.masked_fill(outside[:, :, 0], -1e30).amax(-1, keepdim=True)
    h_few = h.gather(-1, indices)
    # no exponent is above 0 but by rounding
    N = torch.exp((few @ few.mT - h_few[..., None] - h_few[..., None, :]).clamp(max=0))
    some, nugget, known = x, math.sqrt(limits.eps), None
    values = V1
    if sampled.shape[-1]:
        some, values, nugget = _take(x, summed.clamp(min=0)), _of_some(V1, summed, length), NUGGET
    right = torch.exp((few @ some.mT - h_few[..., None] - top[..., None]).clamp(max=0)) @ values
    if sampled.shape[-1]:
        f = P.gather(-1, indices[:, :, None].expand(-1, -1, P.shape[2], -1))
        f = f * torch.exp(shift - h_few)[:, :, None]
        N = N + f.mT @ f
        outputs = P @ V1
        known = outputs[..., :-1]
        right = right + f.mT @ (torch.exp(shift - top)[..., None] * outputs)
    unit = torch.eye(N.shape[-1], dtype=torch.float64, device=N.device)
    both = used[:, None, :, None] & used[:, None, None]
    N = torch.where(both, N.double() + nugget * unit, unit)
    right = right.double().masked_fill(~used[:, None, :, None], 0)
    largest = 0.9 * math.log(limits.max)
    solved, _ = torch.linalg.solve_ex(N, right)
    fitted = solved * torch.exp((top - h_few).double().clamp(max=largest))[..., None]
    bound = BOUND * V1.detach().abs().amax((2, 3), keepdim=True).double()
    fitted = torch.minimum(torch.maximum(fitted, -bound), bound).to(key.dtype)
    whole = (used.sum(-1) >= valid.sum(-1))[:, None, None, None]
    fitted = torch.where(whole, _take(V1, indices), fitted).masked_fill(~used[:, None, :, None], 0)
    return fitted[..., :-1], fitted[..., -1], known


def _balance(P: torch.Tensor, squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The exponent (B, H, 1) that balances both terms of the kernel, and h (B, H, S).

    P (B, H, m, S) are the weights of sampled queries, squares (B, H, S) those of the scaled keys; h
    is half the logarithm of the kernel's diagonal.
    """
    importance = P.square().sum(2).clamp(min=torch.finfo(P.dtype).tiny ** 0.5)
    total = importance.sum(-1)
    shift = (squares.logsumexp(-1) - math.log(BALANCE) - total.log()) / 2
    shift = shift.nan_to_num(neginf=0)[..., None]
    # far below any square, where its own would have no gradient
    floor = squares.clamp(min=-1e30)
    return shift, torch.logaddexp(importance.log() + 2 * shift, floor) / 2


def _of_some(V1: torch.Tensor, summed: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Values and masses of the summed keys, shifted and scaled to the mean and number of all keys.

    V1 (B, H, S, D + 1) is 0 where there is no token; the result is 0 where summed is -1.
    """
    there = (summed >= 0)[..., None]
    count = there.sum(2, keepdim=True).clamp(min=1)
    few = _take(V1, summed.clamp(min=0)).masked_fill(~there, 0)
    apart = V1.sum(2, keepdim=True) / length - few.sum(2, keepdim=True) / count
    return ((few + apart) * (length / count)).masked_fill(~there, 0)


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


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    values: torch.Tensor,
    masses: torch.Tensor,
    present: torch.Tensor,
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
        e = torch.softmax((scale * query @ key.mT).masked_fill(~present, -torch.inf), -1)
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


def _take(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Tokens (B, H, S, dim) at positions (B, H, n)."""
    return tokens.gather(2, indices[..., None].expand(-1, -1, -1, tokens.shape[-1]))
