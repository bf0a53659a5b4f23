"""Few keys, values and masses in place of a cache: `reference.cache` for all heads at once."""

from __future__ import annotations

from typing import NamedTuple

import torch

from thinformer.attending.cache import JOINED, LEAST, NUGGET, SINKS, STIFF, CacheOptions
from thinformer.torch.attend.positive import solve_positive


class Cached(NamedTuple):
    """What a layer holds.

    keys, values : (B, H_kv, n, E) and (B, H_kv, n, D) tensors
    log_masses : (B, H_kv, n) float32 tensor
        What is added to the logits of a key: 0 of a token, minus infinity of padding.
    """

    keys: torch.Tensor
    values: torch.Tensor
    log_masses: torch.Tensor


def compress(query: torch.Tensor, held: Cached, options: CacheOptions, scale: float) -> Cached:
    """Keep `options.size` keys for the queries that come next.

    Parameters
    ----------
    query : (B, H, L, E) tensor
        The latest queries.
    held : Cached
        More keys than are kept.
    options : CacheOptions
    scale : float
        Of the softmax.
    """
    (B, H_kv, S, E), early = held.keys.shape, options.size - options.recent
    keys, values, log_masses = (tensor.float() for tensor in held)
    query = query.reshape(B, H_kv, -1, E).float()
    weights = (scale * query @ keys.mT + log_masses[:, :, None]).softmax(-1)
    kept = choose(weights, log_masses, options)
    n = S - options.recent
    number = nearest(keys[:, :, :n], kept[..., :early])
    fitted, masses = fit(
        weights[..., :n], values[:, :, :n], log_masses[..., :n].exp(), kept[..., :early], number
    )
    of_kept = log_masses.gather(-1, kept)
    of_kept[..., :early] += masses.log()
    latest = held.values[:, :, n:]
    return Cached(
        take(held.keys, kept), torch.cat([fitted.to(latest.dtype), latest], dim=2), of_kept
    )


def choose(weights: torch.Tensor, log_masses: torch.Tensor, options: CacheOptions) -> torch.Tensor:
    """Positions (B, H_kv, size) of the keys that are kept, increasing."""
    there = log_masses > -torch.inf
    score = weights.square().sum(2).where(there, -1)
    score = score.masked_fill(there & (there.cumsum(-1) <= SINKS), torch.inf)
    score[..., score.shape[-1] - options.recent :] = torch.inf
    # of equal scores the later key
    order = score.argsort(dim=-1, stable=True)
    return order[..., order.shape[-1] - options.size :].sort(dim=-1).values


def nearest(keys: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The number of the kept key, (B, H_kv, n) below n_out, that is nearest to each key."""
    few = take(keys, kept)
    number = (few.square().sum(-1)[:, :, None] - 2 * keys @ few.mT).argmin(-1)
    return number.scatter(
        -1, kept, torch.arange(kept.shape[-1], device=kept.device).expand_as(kept)
    )


def fit(
    weights: torch.Tensor,
    values: torch.Tensor,
    mass: torch.Tensor,
    kept: torch.Tensor,
    number: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Values (B, H_kv, n_out, D) and relative masses (B, H_kv, n_out), see `reference.cache.fit`.

    The system is solved in float64.
    """
    ones = values.new_ones(*values.shape[:3], 1)
    V1 = torch.cat([values, ones], dim=-1)
    A = weights.gather(-1, kept[:, :, None].expand(-1, -1, weights.shape[2], -1))
    of_kept, own = take(V1, kept), mass.gather(-1, kept)
    there = own > 0
    own = own.where(there, 1)
    to = number[..., None].expand_as(V1)
    joined = torch.zeros_like(of_kept).scatter_add(
        2, to, (mass / own.gather(-1, number))[..., None] * V1
    )
    joined = joined - there[..., None] * of_kept
    Z = of_kept + JOINED * joined
    C = joined[..., -1].clamp(min=STIFF)
    apart = A * C[:, :, None]
    G, r = (apart @ A.mT).double(), (weights @ V1 - A @ Z).double()
    unit = G.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    seen = unit > 0  # the queries attend to some of these keys
    unit = unit.where(seen, 1)
    eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    solved = solve_positive(G / unit + NUGGET * eye, r) / unit
    moved = Z + (apart.mT @ solved.to(Z.dtype))
    masses = moved[..., -1:].maximum(LEAST * Z[..., -1:])
    fitted = (moved[..., :-1] / masses).where(seen, of_kept[..., :-1])
    return fitted, masses.where(seen, 1)[..., 0]


def take(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rows (B, H_kv, n, dim) of tokens at positions (B, H_kv, n)."""
    return tokens.gather(2, positions[..., None].expand(-1, -1, -1, tokens.shape[-1]))
