"""Attention over a sequence in shards, in one process that holds all of them.

All functions take one head. Each shard keeps few of its own keys, with draws of its own. All
queries attend to the kept keys of all shards. A kept key, or landmark, of a shard has a mass: how
many keys of the shard it stands for. So shards of unlike lengths count rightly.
"""

import numpy as np

from reference.attention import select
from reference.landmarks import Landmarks, landmark_attention, weighted_attention


def thin_shard(key, value, scale, schedule, uniforms, coins, strata):
    """Keys that KH-Compress keeps of a shard; each stands for S / n_out keys. See `select`."""
    kept, _ = select(key, value, scale, schedule, uniforms, coins, strata)
    masses = np.full(len(kept), len(key) / len(kept), key.dtype)
    return Landmarks(kept, key[kept], masses[:, None] * value[kept], masses)


def fit_shard(queries, key, value, scale, n_out, correction, draws):
    """Landmarks of a shard, fitted to the sums over its own keys. See `landmark_attention`.

    queries : (m, E), a sample of the queries of all shards, for "queries"

    Shards are centred by different means, so the mean is added to the keys again.
    """
    if n_out == len(key):
        return Landmarks(np.arange(n_out), key, value, np.ones(n_out, key.dtype))
    *_, landmarks = landmark_attention(queries, key, value, scale, n_out, correction, draws)
    return landmarks._replace(keys=landmarks.keys + key.mean(axis=0))


def sharded_attention(query, values, shards, scale):
    """Output (T, D) of queries (T, E) of any shard.

    values : list of the values (S_r, D) of each shard
    shards : list of `Landmarks`, one of each shard
    """
    positions, *parts = (np.concatenate(part) for part in zip(*shards, strict=True))
    low, high = (bound([bound(v, axis=0) for v in values], axis=0) for bound in (np.min, np.max))
    return weighted_attention(query, Landmarks(positions, *parts), scale, low, high)[0]
