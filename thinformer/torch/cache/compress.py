"""Few keys, values and masses for a cache: torch's body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch


@dataclass(frozen=True)
class CacheOptions:
    size: int = 256
    sinks: int = 4
    recent: int = 32
    growth: int = 64
    queries: int = 64


class Cached(NamedTuple):
    """Keys (B, H_kv, n, E), values (B, H_kv, n, D), log masses (B, H_kv, n)."""

    keys: torch.Tensor
    values: torch.Tensor
    log_masses: torch.Tensor


def compress(query, cached, options, scale):
    keys, values, log_masses = cached
    B, H, L, E = query.shape
    H_kv, n = keys.shape[1:3]
    logits = scale * torch.einsum("bhqe,bhke->bhqk", query.reshape(B, H_kv, -1, E).float(), keys.float()) + log_masses[:, :, None]
    P = logits.softmax(-1).sum(2)
    P[..., -options.recent:] = torch.inf
    P = P + 1000 * ((log_masses > -torch.inf).cumsum(-1) <= 4)
    P = P.masked_fill(log_masses == -torch.inf, -1)
    P[..., -options.recent:] = torch.inf
    idx = P.topk(options.size, -1).indices.sort(-1).values
    take = lambda t: t.gather(2, idx[..., None].expand(-1, -1, -1, t.shape[-1]))
    return Cached(take(keys), take(values), log_masses.gather(2, idx))
