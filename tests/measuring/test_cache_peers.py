"""Peers of `ThinnedCache`: the keys that each keeps, against what it says, written out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from scipy.special import softmax

from thinformer.attending.cache import CacheOptions
from thinformer.measuring.cache_peers import PEERS
from thinformer.torch.cache.cached import Cached

B, H, H_kv, L, n, E, D = 2, 6, 2, 40, 120, 8, 5
SIZE, SINKS, RECENT, SCALE = 60, 4, 16, 0.7


@pytest.fixture
def problem():
    """Queries and a cache; the first number of a value is the place of its key."""
    rng = np.random.default_rng(0)
    query, keys, values = (
        torch.from_numpy(2 * rng.standard_normal(shape))
        for shape in ((B, H, L, E), (B, H_kv, n, E), (B, H_kv, n, D))
    )
    values[..., 0] = torch.arange(n)
    keys[:, :, -32:] *= 4  # whether a query attends to later keys matters
    return query, Cached(keys + 1, values, torch.zeros(B, H_kv, n))


def kept(name, problem, seed=0):
    """The places (B, H_kv, SIZE) that a method keeps; keys are those of their values."""
    query, cached = problem
    options = replace(CacheOptions(size=SIZE, recent=RECENT), **PEERS[name].options)
    chosen = PEERS[name].make(seed)(query, cached, options, SCALE)
    places = chosen.values[..., 0].long()
    of_places = places[..., None].expand(-1, -1, -1, E)
    assert torch.equal(chosen.keys, cached.keys.gather(2, of_places))
    assert torch.equal(chosen.log_masses, torch.zeros(B, H_kv, SIZE))
    return places.numpy()


def largest(scores, count):
    return set(np.argsort(scores)[::-1][:count])


@pytest.mark.parametrize("name", PEERS)
def test_sinks_and_recent_tokens_are_there_in_order(name, problem):
    for head in kept(name, problem).reshape(-1, SIZE):
        assert (np.diff(head) > 0).all()
        recent = 32 if name == "SnapKV" else RECENT
        assert list(head[-recent:]) == list(range(n - recent, n))
        if name != "SnapKV":
            assert list(head[:SINKS]) == list(range(SINKS))


def test_window(problem):
    expected = [*range(SINKS), *range(n - SIZE + SINKS, n)]
    assert (kept("window", problem) == expected).all()


def test_snapkv(problem):
    """Attention of 32 queries to all keys that are not later, summed, then the largest of seven."""
    (query, cached), places = problem, kept("SnapKV", problem)
    for b in range(B):
        for head in range(H_kv):
            sums = np.zeros(n)
            for h in range(3 * head, 3 * head + 3):
                for i in range(n - 32, n):
                    one = query[b, h, i - (n - L)].numpy()
                    sums[: i + 1] += softmax(SCALE * cached.keys[b, head, : i + 1].numpy() @ one)
            before = sums[: n - 32]
            pooled = [before[max(0, i - 3) : i + 4].max() for i in range(n - 32)]
            # ties of neighbours that share a maximum may be cut anywhere
            threshold = sorted(pooled)[::-1][SIZE - 32 - 1]
            chosen = places[b, head, : SIZE - 32]
            assert set(np.flatnonzero(pooled > threshold * (1 + 1e-5))) <= set(chosen)
            assert (np.take(pooled, chosen) >= threshold * (1 - 1e-5)).all()


def test_keydiff(problem):
    (_, cached), places = problem, kept("KeyDiff", problem)
    for b in range(B):
        for head in range(H_kv):
            keys = cached.keys[b, head].numpy()
            keys /= np.linalg.norm(keys, axis=1, keepdims=True)
            mean = keys.mean(0)
            unlike = -(keys @ mean) / np.linalg.norm(mean)
            middle = unlike[SINKS : n - RECENT]
            expected = {SINKS + i for i in largest(middle, SIZE - SINKS - RECENT)}
            assert set(places[b, head, SINKS : SIZE - RECENT]) == expected


def test_uniform_sampling(problem):
    """Every key between is drawn equally often, heads and seeds differ, and a seed repeats."""
    first = kept("uniform sampling", problem)
    assert (first == kept("uniform sampling", problem)).all()
    assert len({tuple(head) for head in first.reshape(-1, SIZE)}) == B * H_kv
    counts = np.zeros(n)
    for seed in range(200):
        np.add.at(counts, kept("uniform sampling", problem, seed).ravel(), 1)
    draws, p = 200 * B * H_kv, (SIZE - SINKS - RECENT) / (n - SINKS - RECENT)
    between = counts[SINKS : n - RECENT]
    assert between.sum() == draws * (SIZE - SINKS - RECENT)
    assert np.abs(between - draws * p).max() < 5 * np.sqrt(draws * p * (1 - p))


def test_a_layer_draws_after_another(problem):
    """A seed is of a text; its layers do not all keep the same places."""
    query, cached = problem
    choose = PEERS["uniform sampling"].make(0)
    options = CacheOptions(size=SIZE, recent=RECENT)
    layers = [choose(query, cached, options, SCALE).values[..., 0] for _ in range(2)]
    assert not torch.equal(*layers)
