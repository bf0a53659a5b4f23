"""The keys, values and masses of landmarks, in torch's own operations, with gradients.

The definitions are those of `reference.landmarks`. Which landmark a key belongs to, and the nugget,
are choices: they are not differentiated.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from thinformer.attending.landmarks import BALANCE, BOUND, HELD_OUT, NUGGETS
from thinformer.cpu.groups import FLOOR, NEAR, TIE
from thinformer.cpu.ridge import FLAT, LEAST_MASS
from thinformer.cpu.simd import PANEL
from thinformer.torch.attend.positive import solve_positive


class Tokens(NamedTuple):
    """The tokens of all heads.

    x : (B, H, S, E), scaled keys minus their mean, 0 where there is no token
    to_x : (B, H, 1, 1), what keys are multiplied with
    V1 : (B, H, S, D + 1), values and masses of 1, 0 where there is no token
    valid : (B, S) bool
    """

    x: torch.Tensor
    to_x: torch.Tensor
    V1: torch.Tensor
    valid: torch.Tensor


class Fitted(NamedTuple):
    """Landmarks: keys (B, H, n_out, E), values and masses (B, H, n_out, D + 1), masses last.

    known : (B, H, m, D + 1), the exact outputs of the sampled queries, or None
    """

    keys: torch.Tensor
    values: torch.Tensor
    known: torch.Tensor | None


def scaled(
    key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor, tau: torch.Tensor, scale: float
) -> Tokens:
    """Centre and scale keys (B, H, S, E), 0 where they are not valid, (B, S); tau is (B, H)."""
    tokens = valid[:, None, :, None].to(key.dtype)
    length = tokens.sum(2, keepdim=True).clamp(min=1)
    to_x = math.sqrt(scale) / tau[..., None, None]
    x = (key - key.sum(2, keepdim=True) / length) * tokens * to_x
    V1 = torch.cat([value, tokens.expand(*value.shape[:3], 1)], dim=-1)
    return Tokens(x, to_x, V1, valid)


def fit_pivots(tokens: Tokens, indices: torch.Tensor, used: torch.Tensor) -> Fitted:
    """Fit pivots (B, H, n_out), of which a sequence uses some (B, n_out), by Nystrom's formula."""
    x, to_x, V1, valid = tokens
    limits = torch.finfo(x.dtype)
    h = x.square().sum(-1).masked_fill(~valid[:, None], -1e30) / 2
    top, few, h_few = h.amax(-1, keepdim=True), take(x, indices), h.gather(-1, indices)
    # no exponent is above 0 but by rounding
    N = torch.exp((few @ few.mT - h_few[..., None] - h_few[..., None, :]).clamp(max=0))
    right = torch.exp((few @ x.mT - h_few[..., None] - top[..., None]).clamp(max=0)) @ V1
    unit = torch.eye(N.shape[-1], dtype=torch.float64, device=N.device)
    both = used[:, None, :, None] & used[:, None, None]
    N = torch.where(both, N.double() + math.sqrt(limits.eps) * unit, unit)
    right = right.double().masked_fill(~used[:, None, :, None], 0)
    largest = 0.9 * math.log(limits.max)
    solved = solve_positive(N, right)
    fitted = solved * torch.exp((top - h_few).double().clamp(max=largest))[..., None]
    whole = (used.sum(-1) >= valid.sum(-1))[:, None, None, None]
    values = torch.where(whole, take(V1, indices), _bounded(fitted, V1))
    return Fitted(few / to_x, values.masked_fill(~used[:, None, :, None], 0), None)


def fit_groups(
    tokens: Tokens,
    query: torch.Tensor,
    indices: torch.Tensor,
    used: torch.Tensor,
    sampled: torch.Tensor,
    scale: float,
) -> Fitted:
    """Merge the keys around landmarks, and correct the sums by sampled queries.

    Parameters
    ----------
    tokens : Tokens
    query : (B, H, T, E) tensor
    indices, used : (B, H, n_out) and (B, n_out) tensors
        The landmarks, and which of these slots a sequence uses.
    sampled : (B, H, m) tensor
        The sampled queries, -1 for none.
    """
    x, to_x, V1, valid = tokens
    queries = scale / to_x * take(query, sampled.clamp(min=0))
    logits = (queries @ x.mT).masked_fill(~valid[:, None, None], -torch.inf)
    top, total = logits.amax(-1, keepdim=True), logits.logsumexp(-1, keepdim=True)
    absent = sampled[..., None] < 0
    P = torch.exp(logits - total).masked_fill(absent, 0).nan_to_num(0)  # NaN without a token
    known = P @ V1
    weight = _weights(P, x.square().sum(-1), valid)
    group = nearest_landmarks(tokens, indices, used)
    n_out = indices.shape[-1]
    sums, total_weight = _sums(V1, group, n_out), _sums(weight[..., None], group, n_out)
    keys = _sums(weight[..., None] * x, group, n_out)
    keys = keys / total_weight.clamp(min=torch.finfo(x.dtype).tiny)
    of_few = torch.exp(torch.minimum(queries @ keys.mT, top) - total)
    of_few = of_few.masked_fill(absent | ~used[:, None, None], 0).nan_to_num(0)
    apart = of_few * (sums[..., -1] - 1).clamp(min=0)[..., None, :]
    moved = _correction(
        of_few.double(), apart.double(), known.double(), sums.double(), sampled >= 0
    )
    return Fitted(keys / to_x, _bounded(sums.double() + moved, V1), known)


def nearest_landmarks(tokens: Tokens, indices: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    """The number of each key's landmark, (B, H, S), by positions among the valid tokens."""
    x, _, _, valid = tokens
    with torch.no_grad():
        (B, H, S, _), n_out = x.shape, indices.shape[-1]
        place = (valid.cumsum(-1) - 1).clamp(min=0)[:, None].expand(B, H, S)
        own = place.gather(-1, indices).masked_fill(~used[:, None], S)
        block = place // PANEL * PANEL
        # the number of landmarks before each position
        ahead = own.new_zeros((B, H, S + 2)).scatter_add(-1, own + 1, torch.ones_like(own))
        ahead = ahead.cumsum(-1)
        before, after = (ahead.gather(-1, (block + end).clamp(max=S)) for end in (0, PANEL))
        number, few = torch.arange(n_out, device=x.device), take(x, indices)
        near = (number >= before[..., None] - NEAR) & (number < after[..., None] + NEAR)
        squares = few.square().sum(-1) * (1 + TIE * number.to(x.dtype))
        distances = squares[:, :, None] - 2 * (x @ few.mT)
        distances = distances.masked_fill(~(near & used[:, None, None]), torch.inf)
        # one more key takes what has no landmark
        nearest = pad(distances.argmin(-1), (0, 1))
        slot = indices.masked_fill(~used[:, None], S)
        return nearest.scatter(-1, slot, number.expand_as(slot))[..., :-1]


def _weights(P: torch.Tensor, squares: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The weights (B, H, S) of keys in the mean of a group: their importances, the largest is 1.

    P (B, H, m, S) are the weights of sampled queries, squares (B, H, S) those of the scaled keys.
    """
    outside = ~valid[:, None]
    squares = squares.masked_fill(outside, -torch.inf)
    importance = P.square().sum(2).clamp(min=torch.finfo(P.dtype).tiny ** 0.5)
    total = importance.masked_fill(outside, 0).sum(-1, keepdim=True)
    factor = squares.logsumexp(-1, keepdim=True) - math.log(BALANCE) - total.log()
    # far below any square, where its own would have no gradient
    floor = squares.clamp(min=-1e30)
    twice_h = torch.logaddexp(importance.log() + factor.nan_to_num(0, 0, 0), floor)
    top = twice_h.masked_fill(outside, -1e30).amax(-1, keepdim=True)
    return torch.exp(twice_h - top).clamp(min=FLOOR, max=1).masked_fill(outside, 0)


def _sums(of_keys: torch.Tensor, group: torch.Tensor, n_out: int) -> torch.Tensor:
    """Sum rows (B, H, S, dim) by group: (B, H, n_out, dim)."""
    (B, H, _, dim), to = of_keys.shape, group[..., None].expand_as(of_keys)
    return of_keys.new_zeros((B, H, n_out, dim)).scatter_add(2, to, of_keys)


def _correction(
    P: torch.Tensor,
    apart: torch.Tensor,
    known: torch.Tensor,
    sums: torch.Tensor,
    there: torch.Tensor,
) -> torch.Tensor:
    """What is added to the sums (B, H, n_out, D + 1), see `reference.landmarks.correct`.

    P, apart : (B, H, m, n_out), the weights of landmarks, and these times (keys of a group - 1)
    known : (B, H, m, D + 1), exact outputs and masses
    there : (B, H, m), which sampled queries there are
    """
    G, r = apart @ P.mT, known - P @ sums
    unit = G.diagonal(dim1=-2, dim2=-1).sum(-1) / there.sum(-1).clamp(min=1)
    number = sums[..., -1].detach()
    flat = (number - 1).clamp(min=0).sum(-1) / number.sum(-1).clamp(min=1).square()
    unit = torch.maximum(unit, FLAT * flat)
    unit = unit.where(unit > 0, 1)[..., None, None]  # where every group is one key nothing moves
    G, eye = G / unit, torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    nugget = _best_nugget(G.detach(), r.detach(), known.detach(), eye, there)
    solved = solve_positive(G + nugget * eye, r)
    return apart.mT @ solved / unit


def _best_nugget(
    G: torch.Tensor, r: torch.Tensor, known: torch.Tensor, eye: torch.Tensor, there: torch.Tensor
) -> torch.Tensor:
    """The nugget (B, H, 1, 1) whose fit to the other queries predicts the held-out ones best."""
    number = torch.arange(G.shape[-1], device=G.device)
    held = there & (number % HELD_OUT == HELD_OUT - 1)
    fitted = ~held[..., None]
    G_fitted, r_fitted = G * fitted * fitted.mT, r * fitted
    nuggets = torch.tensor(NUGGETS, dtype=G.dtype, device=G.device)
    errors = []
    for nugget in NUGGETS:
        solved = solve_positive(G_fitted + nugget * eye, r_fitted)
        predicted = known - r + G @ (solved * fitted)
        mass = predicted[..., -1:].clamp(min=LEAST_MASS)
        apart = (predicted[..., :-1] / mass - known[..., :-1]) * held[..., None]
        errors.append(apart.square().sum((-2, -1)))
    return nuggets[torch.stack(errors).argmin(0)][..., None, None]


def _bounded(fitted: torch.Tensor, V1: torch.Tensor) -> torch.Tensor:
    """Clip values and masses, in float64, to a multiple of the largest value, in V1's dtype."""
    bound = BOUND * V1.detach().abs().amax((2, 3), keepdim=True).double()
    return torch.minimum(torch.maximum(fitted, -bound), bound).to(V1.dtype)


def take(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Tokens (B, H, S, dim) at positions (B, H, n)."""
    return tokens.gather(2, indices[..., None].expand(-1, -1, -1, tokens.shape[-1]))
