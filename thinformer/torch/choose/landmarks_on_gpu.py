"""The choice of landmarks among CUDA tensors; `thinformer.attending.landmarks` on the CPU.

Random numbers and pivots come from CUDA kernels; all other operations are torch's. The CPU waits
only for the lengths behind a mask.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from thinformer.attending.landmarks import (
    BALANCE,
    CANDIDATES,
    PROPOSALS,
    STREAMS,
    TWO_RHO,
    number_of_queries,
)
from thinformer.cpu.drawn import FLOOR
from thinformer.cpu.pivots import BLOCK
from thinformer.torch.choose import on_gpu
from thinformer.torch.choose.padding_on_gpu import is_finite, pick, take, unpadded

NEWTON_STEPS = 5  # for all digits of a double


def choose_valid(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    width: int,
    min_length: int,
    *,
    g: int,
    size: int | None,
    group: int,
    **settings: Any,
) -> tuple[torch.Tensor, ...]:
    """Choose landmarks as `attending.landmarks.choose_valid_landmarks`: its arguments and results.

    Raises
    ------
    RuntimeError
        There is a mask, and a CUDA graph is being captured.
    """
    (B, _, H, _), device = key.shape, key.device
    m = number_of_queries(query.shape[1], width) if settings["correction"] == "queries" else 0
    indices = torch.zeros((B, H, width), dtype=torch.int64, device=device)
    sampled = torch.full((B, H, m), -1, device=device)
    finite = torch.ones((B, H), dtype=torch.bool, device=device)
    tau = torch.ones((B, H), dtype=torch.float64, device=device)
    counts, parts = unpadded(
        query, key, value, valid, min_length=min_length, g=g, size=size, group=group
    )
    for some in parts:
        numbers, few, (queries, keys, values) = some.numbers, some.kept, some.arrays
        finite[numbers] = is_finite(keys) & is_finite(values)
        if few == some.tokens.shape[1]:
            indices[numbers, :, :few] = some.tokens[:, None].expand(-1, H, -1)
            continue
        chosen, drawn, tau_of = _choose(queries, keys, n_out=few, **settings)
        indices[numbers, :, :few] = pick(some.tokens, chosen)
        tau[numbers] = tau_of
        drawn = drawn if some.queries is None else pick(some.queries, drawn)
        sampled[numbers, :, : drawn.shape[2]] = drawn
        finite[numbers] &= is_finite(queries)
    return indices, counts, finite, sampled, tau


def _choose(
    query: torch.Tensor,
    key: torch.Tensor,
    *,
    n_out: int,
    correction: str,
    temperature: float | None,
    scale: float,
    seed: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose landmarks among key (B, S, H, E) for query (B, T, H, E), as `choose_landmarks` does.

    Returns indices (B, H, n_out), the sampled queries (B, H, m), and temperatures (B, H).
    """
    (B, T, H, E), S, dtype = query.shape, key.shape[1], key.dtype
    m = number_of_queries(T, n_out) if correction == "queries" else 0
    sampled = _strata(T, m, on_gpu.unit_numbers(seed, H, STREAMS, m + 1)).expand(B, H, m)
    centred = key - key.mean(1, keepdim=True, dtype=torch.float64).to(dtype)
    if temperature is None:
        tau = _temperature(query, centred, scale)
    else:
        tau = torch.full((B, H), temperature, dtype=torch.float64, device=key.device)
    to_x = (math.sqrt(scale) / tau).to(dtype)[..., None, None]
    numbers = on_gpu.unit_numbers(seed, H, STREAMS + 2, 1 if m else 2 * PROPOSALS * n_out)
    if m:
        keys = centred.transpose(1, 2)
        attention = torch.softmax(scale * take(query, sampled) @ keys.mT, -1)
        squares = (keys * to_x).square().sum(-1)
        exponents = _exponents(attention, squares.double())
        return _draw(exponents, n_out, numbers), sampled, tau
    length = min(S, CANDIDATES * n_out)
    candidates = _strata(S, length, on_gpu.unit_numbers(seed, H, STREAMS + 1, length + 1))
    candidates = candidates.expand(B, H, length)
    x = take(centred, candidates) * to_x
    rows = torch.cat([x.mT, x.new_empty((B, H, n_out, length))], dim=2)
    exponents = x.square().sum(-1) / 2
    weights = torch.exp(2 * (exponents.double() - exponents.amax(-1, keepdim=True).double()))
    taken = on_gpu.pivots(
        rows.flatten(0, 1), E, n_out, exponents.flatten(0, 1), weights.flatten(0, 1),
        numbers.unflatten(1, (-1, 2)), block=BLOCK, nugget=math.sqrt(torch.finfo(dtype).eps),
    )  # fmt: skip
    # the pivots, filled up with the first of the other candidates
    chosen = torch.argsort((~taken).byte(), dim=1, stable=True)[:, :n_out].sort(1).values
    chosen = candidates.gather(-1, chosen.unflatten(0, (B, H)))
    return chosen, sampled, tau


def _exponents(attention: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Return half the logarithm of the kernel's diagonal before scaling, (B, H, S) float64.

    attention : (B, H, m, S), the weights that sampled queries give to keys
    squares : (B, H, S), the squared norms of scaled keys
    """
    # the importance of a key without weight is not 0, whose logarithm could not be added
    least = torch.finfo(attention.dtype).tiny ** 0.5
    importance = attention.square().sum(2).clamp(min=least).double()
    ratio = BALANCE * importance.sum(-1, keepdim=True)
    twice_t = squares.logsumexp(-1, keepdim=True) - ratio.log()
    return torch.logaddexp(importance.log() + twice_t, squares) / 2


def _draw(exponents: torch.Tensor, n_out: int, numbers: torch.Tensor) -> torch.Tensor:
    """Draw landmarks (B, H, n_out) by systematic sampling, of exponents (B, H, S), numbers (H, 1).

    Key j has the probability p_j = min(1, c w_j), where c makes their sum n_out. The k keys of
    largest weight have p_j = 1, for the smallest k that leaves no other p_j above 1.
    """
    S = exponents.shape[-1]
    weight = torch.exp(exponents - exponents.amax(-1, keepdim=True)).clamp(min=FLOOR)
    ordered = weight.sort(-1).values
    rest = ordered.cumsum(-1).flip(-1)[..., :n_out]  # the sum without the k largest, k < n_out
    factors = torch.arange(n_out, 0, -1, device=weight.device) / rest
    above = ordered.flip(-1)[..., :n_out] * factors > 1  # True for the first k only
    factor = factors.gather(-1, above.sum(-1, keepdim=True).clamp(max=n_out - 1))
    total = (weight * factor).clamp(max=1).cumsum(-1)
    tooth = torch.arange(n_out, device=weight.device)
    found = torch.searchsorted(total, (tooth + numbers).expand(len(total), -1, -1).contiguous(),
                               right=True)  # fmt: skip
    # each key once; rounding may have lost the last one
    return (found - tooth).cummax(-1).values.clamp(max=S - n_out) + tooth


def _strata(n_points: int, length: int, uniforms: torch.Tensor) -> torch.Tensor:
    """Return positions (heads, length), as `thinformer.cpu.run.stratified`."""
    if length == n_points:
        return torch.arange(n_points, device=uniforms.device).expand(len(uniforms), -1)
    start = (uniforms[:, :1] * n_points).long()
    bounds = torch.arange(length + 1, device=uniforms.device) * n_points // max(length, 1)
    inside = (uniforms[:, 1:] * bounds.diff()).long()
    return ((start + bounds[:-1] + inside) % n_points).sort(1).values


def _temperature(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """Return WildCat's temperature (B, H) of centred keys; 1 where all queries or all keys are 0.

    Lambert's W of y solves w + log w = log y; Newton's steps start from log(1 + y).
    """
    if query.shape[1] == 0:
        return key.new_ones((len(key), key.shape[2]), dtype=torch.float64)
    q, k = (x.square().sum(-1).amax(1).sqrt().double() for x in (query, key))
    b = math.log(key.shape[1]) / (scale * q * k) + 2
    y = b / TWO_RHO
    w = y.log1p()
    for _ in range(NEWTON_STEPS):
        w = w * (1 + y.log() - w.log()) / (1 + w)
    tau = (k / q * b / (2 * w)).sqrt()
    return tau.where((q > 0) & (k > 0), 1.0)
