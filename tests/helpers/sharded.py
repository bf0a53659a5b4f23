"""Shards of a sequence, and what the rank of each returns as specified."""

import numpy as np
import torch
from specified_landmarks import draws_of

from reference import sharded
from reference.compress import stratified_thin
from thinformer import make_draws
from thinformer.attending.landmarks import number_of_queries
from thinformer.halving.draws import seed_from
from thinformer.torch import KeySelection
from thinformer.torch.choose.heads import grouped
from thinformer.torch.choose.seeds import seed_of_rank
from thinformer.torch.distributed import OF_QUERIES


def shards_of(T, S, H=2, H_kv=None, E=8, D=5, B=2, dtype=torch.float64, seed=0):
    """Query (B, T_r, H, E), key and value of each rank; shards differ in what they hold."""
    generator = torch.Generator().manual_seed(seed)
    shards = []
    for rank, (t, s) in enumerate(zip(T, S, strict=True)):
        shapes = (B, t, H, E), (B, s, H_kv or H, E), (B, s, H_kv or H, D)
        tensors = [torch.randn(x, dtype=torch.float64, generator=generator) for x in shapes]
        shards.append([(x + 0.2 * rank).to(dtype) for x in tensors])
    return shards


def sample(shards, kept, seed):
    """The queries of all shards that a fit takes, (B, m, H, E)."""
    lengths = [query.shape[1] for query, *_ in shards]
    group = shards[0][0].shape[2] // shards[0][1].shape[2]
    m = min(sum(lengths), -(-number_of_queries(sum(lengths) * group, max(kept)) // group))
    ends = np.cumsum([0, *lengths]) * m // sum(lengths)
    parts = []
    for rank, (query, *_) in enumerate(shards):
        n = ends[rank + 1] - ends[rank]
        uniforms = np.random.default_rng([seed, rank, OF_QUERIES]).random(n + 1)
        parts.append(query[:, stratified_thin(lengths[rank], n, uniforms)] if n else query[:, :0])
    return torch.cat(parts, dim=1)


def specified(shards, g=2, size=None, scale=None, correction=None, seed=0, enable_gqa=False):
    """The output of each rank, by one process that holds all shards."""
    H, (B, _, H_kv, E) = shards[0][0].shape[2], shards[0][1].shape
    scale = scale or E**-0.5
    schedules = [
        KeySelection(g, size, correction=correction, min_length=0).plan(key.shape[1]).schedule
        for _, key, _ in shards
    ]
    seeds = [seed_from(int(seed_of_rank(seed, r, torch.device("cpu")))) for r in range(len(shards))]
    if correction == "queries":
        queries = [sample(shards, [schedule.size for schedule in schedules], seed)] * len(shards)
    else:
        queries = [query for query, *_ in shards]
    queries = [grouped(x, H_kv).numpy() for x in queries]
    outputs = [np.empty((*query.shape[:3], shards[0][2].shape[-1])) for query, *_ in shards]
    for b in range(B):
        for h in range(H_kv):
            few, values = [], []
            for rank, (_, key, value) in enumerate(shards):
                k, v = key[b, :, h].numpy(), value[b, :, h].numpy()
                schedule, S = schedules[rank], key.shape[1]
                if correction is None:
                    draws = make_draws(schedule, seeds[rank], heads=H_kv)
                    kept = sharded.thin_shard(
                        k, v, scale, schedule, [u[h] for u in draws.uniforms],
                        [c[h] for c in draws.coins], draws.strata[h],
                    )  # fmt: skip
                else:
                    some = queries[rank][b, :, h]
                    draws = draws_of(seeds[rank], H_kv, len(some), S, schedule.size, correction)
                    kept = sharded.fit_shard(some, k, v, scale, schedule.size, correction, draws[h])
                few.append(kept)
                values.append(v)
            for output, (query, *_) in zip(outputs, shards, strict=True):
                for head in range(h * (H // H_kv), (h + 1) * (H // H_kv)):
                    output[b, :, head] = sharded.sharded_attention(
                        query[b, :, head].numpy(), values, few, scale
                    )
    return [torch.from_numpy(output).to(shards[0][2].dtype) for output in outputs]
