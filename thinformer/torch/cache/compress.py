"""Few keys, values and masses in place of a cache: `reference.cache` for all heads at once."""

from __future__ import annotations

import torch
from torch.nn.functional import max_pool1d, pad

from thinformer.attending.cache import (
    ASKED,
    ASKING,
    BEHIND,
    FOLDED,
    JOINED,
    LEAST,
    NUGGET,
    RATIO,
    ROUNDS,
    SINKS,
    STIFF,
    CacheOptions,
)
from thinformer.torch.attend.positive import solve_positive
from thinformer.torch.cache.cached import Cached


def compress(query: torch.Tensor, held: Cached, options: CacheOptions, scale: float) -> Cached:
    """Keep `options.size` keys for the queries that come next.

    Parameters
    ----------
    query : (B, H, L, E) tensor
        The latest queries; NaN where there is none, in padding.
    held : Cached
        More keys than are kept.
    options : CacheOptions
    scale : float
        Of the softmax.
    """
    (B, H_kv, S, E), H, early = held.keys.shape, query.shape[1], options.size - options.recent
    n = S - options.recent
    dtype = torch.promote_types(held.keys.dtype, torch.float32)
    keys, values, log_masses = (tensor.to(dtype) for tensor in held)
    query = query.reshape(B, H_kv, H // H_kv * query.shape[2], E).to(dtype)
    asks = ~query[..., :1].isnan()
    logits = scale * query.nan_to_num(0) @ keys.mT + log_masses[:, :, None]
    # NaN where a sequence is all padding
    weights = logits.softmax(-1)[..., :n].nan_to_num(0) * asks
    keys, values, log_masses = keys[:, :, :n], values[:, :, :n], log_masses[..., :n]
    m = asks.sum((2, 3))
    there = log_masses > -torch.inf
    asked_for = most_asked(weights.unflatten(2, (H // H_kv, -1)), there)
    kept, asked = choose(weights, values, there, asked_for, early, m)
    number = nearest(keys, kept, asked)
    fitted, masses = fit(weights, values, log_masses, kept, number, m)
    limit = torch.finfo(held.values.dtype).max
    fitted = fitted.clamp(-limit, limit)
    of_kept = log_masses.gather(-1, kept) + masses.log()
    latest = Cached(held.keys[:, :, n:], held.values[:, :, n:], held.log_masses[..., n:])
    return Cached(
        torch.cat([take(held.keys, kept), latest.keys], dim=2),
        torch.cat([fitted.to(latest.values.dtype), latest.values], dim=2),
        torch.cat([of_kept.to(latest.log_masses.dtype), latest.log_masses], dim=-1),
    )


def most_asked(weights: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """How much the very latest queries attend to each key or to one before it, (B, H_kv, n).

    weights : (B, H_kv, G, L, n)
    """
    total = weights[:, :, :, -ASKING:].sum((2, 3))
    return max_pool1d(pad(total, (BEHIND, 0)), BEHIND + 1, stride=1).where(there, -1)


def choose(
    weights: torch.Tensor,
    values: torch.Tensor,
    there: torch.Tensor,
    asked_for: torch.Tensor,
    number: int,
    m: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions (B, H_kv, number) of the keys kept, increasing, and which are asked for.

    weights : (B, H_kv, m, n), of the latest queries; values : (B, H_kv, n, D)
    there : (B, H_kv, n), False in padding; asked_for : (B, H_kv, n), see `most_asked`
    m : (B, H_kv), the number of queries
    """
    kept = (~there).byte().argsort(dim=-1, stable=True)[..., :SINKS]
    asked = best(asked_for.scatter(-1, kept, -2), (number - SINKS) // ASKED)
    kept = torch.cat([kept, asked], dim=-1)
    target = weights @ folded(values, there)
    squares = weights.square().sum(2)
    damped = squares + squares.sum(-1, keepdim=True) / there.sum(-1, keepdim=True).clamp(min=1)
    damped = damped.where(damped > 0, 1)
    for i in range(ROUNDS):
        A = columns(weights, kept)
        left = target - A @ ridge(A, target, A.new_ones(kept.shape), m)
        score = (weights.mT @ left).square().sum(-1) / damped
        score = score.where(there, -1).scatter(-1, kept, -2)
        more = best(score, (number - kept.shape[-1]) // (ROUNDS - i))
        kept = torch.cat([kept, more], dim=-1)
    kept = kept.sort(dim=-1).values
    return kept, torch.zeros_like(there).scatter(-1, asked, True).gather(-1, kept)


def best(score: torch.Tensor, number: int) -> torch.Tensor:
    """Positions (B, H_kv, number) of the largest scores; of equal scores the later key."""
    return score.argsort(dim=-1, stable=True)[..., score.shape[-1] - number :]


def folded(values: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Values with columns added in groups, with changing signs, and a column of masses.

    They are divided by their mean norm, so that a mass counts as much as a value.
    """
    groups = values.split(FOLDED, dim=-1)
    few = groups[0].clone()
    for i, group in enumerate(groups[1:], 1):
        few[..., : group.shape[-1]] += (-1) ** i * group
    norms = values.double().norm(dim=-1) * there
    norm = norms.sum(-1) / there.sum(-1).clamp(min=1)
    few = (few / norm.where(norm > 0, 1)[..., None, None]).to(values.dtype)
    masses = (norm > 0)[..., None, None].to(few.dtype).expand(*few.shape[:3], 1)
    return torch.cat([few, masses], dim=-1)


def ridge(
    A: torch.Tensor, target: torch.Tensor, variance: torch.Tensor, m: torch.Tensor
) -> torch.Tensor:
    """X that minimises |A X - target|^2 + nu sum_s |X_s|^2 / variance_s, see `reference.cache`.

    m : (B, H_kv), the number of queries. The system is solved in float64.
    """
    root = variance.sqrt()
    scaled = A * root[:, :, None]
    gram = (scaled.mT @ scaled).double()
    nugget = NUGGET * gram.diagonal(dim1=-2, dim2=-1).sum(-1) / m
    nugget = nugget.where(nugget > 0, 1)  # where no query attends to these keys
    gram.diagonal(dim1=-2, dim2=-1).add_(nugget[..., None])
    solved = solve_positive(gram, (scaled.mT @ target).double())
    return root[..., None] * solved.to(A.dtype)


def columns(weights: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The columns (B, H_kv, m, n) of weights at positions (B, H_kv, n)."""
    return weights.gather(-1, kept[:, :, None].expand(-1, -1, weights.shape[2], -1))


def nearest(keys: torch.Tensor, kept: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """The number (B, H_kv, n) of the kept key that each key joins: the nearest not asked for."""
    few, own = take(keys, kept), torch.arange(kept.shape[-1], device=kept.device)
    squares = few.square().sum(-1).masked_fill(asked, torch.inf)
    number = (squares[:, :, None] - 2 * keys @ few.mT).argmin(-1)
    return number.scatter(-1, kept, own.expand_as(kept))


def fit(
    weights: torch.Tensor,
    values: torch.Tensor,
    log_masses: torch.Tensor,
    kept: torch.Tensor,
    number: torch.Tensor,
    m: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (B, H_kv, n_out, D) and relative masses (B, H_kv, n_out), see `reference.cache.fit`.

    weights : (B, H_kv, m, n); values : (B, H_kv, n, D); log_masses, number : (B, H_kv, n)
    kept : (B, H_kv, n_out); m : (B, H_kv), the number of queries
    """
    V1 = torch.cat([values, values.new_ones(*values.shape[:3], 1)], dim=-1)
    A, of_kept, own = columns(weights, kept), take(V1, kept), log_masses.gather(-1, kept)
    # relative to the largest of all where the kept key is padding
    own = own.where(own > -torch.inf, log_masses.amax(-1, keepdim=True))
    relative = (log_masses - own.gather(-1, number)).clamp(max=RATIO).exp()
    relative = relative.where(log_masses > -torch.inf, 0).scatter(-1, kept, 0)
    to = number[..., None].expand_as(V1)
    joined = torch.zeros_like(of_kept).scatter_add(2, to, relative[..., None] * V1)
    start = of_kept + JOINED * joined
    variance = joined[..., -1].clamp(min=STIFF)
    moved = start + ridge(A, weights @ V1 - A @ start, variance, m)
    masses = moved[..., -1:].maximum(LEAST * start[..., -1:])
    return moved[..., :-1] / masses, masses[..., 0]


def take(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rows (B, H_kv, n, dim) of tokens at positions (B, H_kv, n)."""
    return tokens.gather(2, positions[..., None].expand(-1, -1, -1, tokens.shape[-1]))
