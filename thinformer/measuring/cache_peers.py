"""Other choices of the keys that a cache keeps, beside `ThinnedCache`'s, at equal size.

Each is a function as `ThinnedLayer.choose`: of the latest queries (B, H, L, E), all keys and values
of a prompt (B, H_kv, n, ..), the options and the softmax's scale. It returns `options.size` keys of
these with their values, in order. None of these methods changes a key, a value or a mass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cosine_similarity, max_pool1d, normalize

from thinformer.attending.cache import SINKS, CacheOptions
from thinformer.torch.cache.cached import Cached
from thinformer.torch.cache.thinned import Choose

SNAPKV_QUERIES = 32  # SnapKV's observation window, which is also the number of recent tokens
SNAPKV_POOL = 7


class Method(NamedTuple):
    """A choice of keys.

    make : gives the choice for a seed, the same for all layers of a text
    options : fields of `CacheOptions` that the method has values of its own for
    """

    make: Callable[[int], Choose]
    options: dict[str, Any]


def window(query: torch.Tensor, cached: Cached, options: CacheOptions, scale: float) -> Cached:
    """Keep the sinks and the latest tokens (StreamingLLM)."""
    B, H_kv, n = cached.keys.shape[:3]
    latest = torch.arange(n - options.size + SINKS, n)
    places = torch.cat([torch.arange(SINKS), latest]).to(cached.keys.device)
    return _take(cached, places.expand(B, H_kv, -1))


def snapkv(query: torch.Tensor, cached: Cached, options: CacheOptions, scale: float) -> Cached:
    """Keep the keys that the latest queries attend to most, and their neighbours.

    The attention weights are summed over the queries and over a group's heads, and each place gets
    the largest sum among itself and its neighbours. There are no sinks but those found like this.
    """
    keys, recent = cached.keys.float(), options.recent
    query = query[:, :, -SNAPKV_QUERIES:].float()
    B, H, L, E = query.shape
    H_kv, n = keys.shape[1:3]
    logits = scale * query.view(B, H_kv, H // H_kv, L, E) @ keys[:, :, None].transpose(3, 4)
    later = torch.ones(L, n, dtype=torch.bool, device=keys.device).triu(n - L + 1)
    weights = logits.masked_fill(later, -torch.inf).softmax(4).sum((2, 3))
    before = weights[..., : n - recent]
    pooled = max_pool1d(before, SNAPKV_POOL, stride=1, padding=SNAPKV_POOL // 2)
    weights = torch.cat([pooled, weights[..., n - recent :]], 2)
    return _largest(weights, cached, options, sinks=0)


def keydiff(query: torch.Tensor, cached: Cached, options: CacheOptions, scale: float) -> Cached:
    """Keep the keys that are least like the mean of the normalised keys, by cosine."""
    keys = cached.keys.float()
    mean = normalize(keys, dim=3).mean(2, keepdim=True)
    return _largest(-cosine_similarity(keys, mean, dim=3), cached, options, SINKS)


def uniform(seed: int) -> Choose:
    """Return a choice of keys drawn uniformly, for each layer and head anew."""
    generator = torch.Generator().manual_seed(seed)

    def choose(query: torch.Tensor, cached: Cached, options: CacheOptions, scale: float) -> Cached:
        scores = torch.rand(cached.keys.shape[:3], generator=generator)
        return _largest(scores.to(cached.keys.device), cached, options, SINKS)

    return choose


PEERS = {
    "window": Method(lambda seed: window, {}),
    "SnapKV": Method(lambda seed: snapkv, {"recent": SNAPKV_QUERIES}),
    "KeyDiff": Method(lambda seed: keydiff, {}),
    "uniform sampling": Method(uniform, {}),
}


def _largest(scores: torch.Tensor, cached: Cached, options: CacheOptions, sinks: int) -> Cached:
    """Keep the sinks, the recent tokens, and the keys of the largest scores (B, H_kv, n)."""
    scores = scores.clone()
    scores[..., :sinks] = torch.inf
    scores[..., scores.shape[2] - options.recent :] = torch.inf
    return _take(cached, scores.topk(options.size, dim=2).indices.sort(2).values)


def _take(cached: Cached, places: torch.Tensor) -> Cached:
    """Keep the places (B, H_kv, size) of each head."""

    def rows(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.gather(2, places[..., None].expand(*places.shape, tensor.shape[3]))

    return Cached(rows(cached.keys), rows(cached.values), cached.log_masses.gather(2, places))
