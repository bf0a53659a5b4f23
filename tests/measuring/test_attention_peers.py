"""Peers of thinned attention: each against what it says, written out."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from thinformer.measuring import attention_peers
from thinformer.measuring.attention_peers import PACKAGES, PEERS

B, T, S, H, E, D = 2, 7, 30, 3, 4, 5


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    shapes = (B, T, H, E), (B, S, H, E), (B, S, H, D)
    return [torch.from_numpy(rng.standard_normal(shape)) for shape in shapes]


def attended(query, key, value, counts=None):
    """Softmax attention of one head; `counts` are weights of the keys."""
    logits = query @ key.T / np.sqrt(E)
    return softmax(logits + (0 if counts is None else np.log(counts)), axis=1) @ value


def heads(tensors):
    for b in range(B):
        for h in range(H):
            yield b, h, *(tensor[b, :, h].numpy() for tensor in tensors)


@pytest.mark.parametrize("name", [name for name in PEERS if name not in PACKAGES])
def test_all_keys_are_exact_attention(name, tensors):
    found = PEERS[name](*tensors, S, 0)
    assert found.shape == (B, T, H, D)
    for b, h, query, key, value in heads(tensors):
        assert found[b, :, h].numpy() == pytest.approx(attended(query, key, value))


@pytest.mark.parametrize("size", [6, 7])
def test_keys_at_equal_distances(size, tensors):
    seen = set()
    for seed in range(20):
        places = np.arange(S)[attention_peers._at_equal_distances(S, size, seed)]
        assert len(places) == size
        assert set(np.diff(places)) <= {S // size, -(-S // size)}
        assert (places[0] <= S // size, places[-1] < S) == (True, True)
        seen.add(tuple(places))
        found = PEERS["evenly spaced"](*tensors, size, seed)
        for b, h, query, key, value in heads(tensors):
            expected = attended(query, key[places], value[places])
            assert found[b, :, h].numpy() == pytest.approx(expected)
    assert len(seen) > 3  # starts are random


def test_uniform_keys_are_some_of_all(tensors):
    """Constant queries weigh all keys alike, so outputs are means of `size` values."""
    query, key, _ = tensors
    value = (2.0 ** torch.arange(S, dtype=torch.float64)).expand(B, H, 1, S).permute(0, 3, 1, 2)
    outputs = [PEERS["uniform sampling"](0 * query, key, value, 8, seed) for seed in range(3)]
    sums = {round(8 * float(x[0, 0, 0, 0])) for x in outputs}
    assert {number.bit_count() for number in sums} == {8}  # 8 different keys
    assert len(sums) == 3


@pytest.mark.parametrize("size", [6, 7])
def test_pools_are_means_of_neighbours(size, tensors):
    edges = np.arange(size + 1) * S // size
    counts = np.diff(edges)
    assert set(counts) <= {S // size, -(-S // size)}
    found = PEERS["pooled neighbours"](*tensors, size, 0)
    for b, h, query, key, value in heads(tensors):
        means = [np.add.reduceat(x, edges[:-1]) / counts[:, None] for x in (key, value)]
        assert found[b, :, h].numpy() == pytest.approx(attended(query, *means, counts))


@pytest.mark.parametrize("size", [6, 7])
def test_groups_are_weighted_means_around_centres(size, tensors):
    places = np.arange(S)[attention_peers._at_equal_distances(S, size, 1)]
    found = PEERS["merged keys"](*tensors, size, 1)
    for b, h, query, key, value in heads(tensors):
        unit = key / np.linalg.norm(key, axis=1, keepdims=True)
        group = np.argmax(unit @ unit[places].T, axis=1)
        assert set(group) == set(range(size))
        means = [[x[group == i].mean(axis=0) for i in range(size)] for x in (key, value)]
        expected = attended(query, *map(np.array, means), np.bincount(group))
        assert found[b, :, h].numpy() == pytest.approx(expected)


def test_a_centre_that_no_key_joins_has_no_weight(tensors):
    """Equal keys join the first of equal centres."""
    query, key, value = tensors
    key = key[:, :1].expand(-1, S, -1, -1)
    found = PEERS["merged keys"](query, key, value, 6, 0)
    means = value.mean(dim=1)
    assert found.numpy() == pytest.approx(means[:, None].expand(B, T, H, D).numpy())


def test_performer_nears_exact_attention():
    """Where logits are small; elsewhere what its package adds to all features is in the way."""
    pytest.importorskip("performer_pytorch", reason="an optional peer", exc_type=ImportError)
    rng = np.random.default_rng(0)
    query, key, value = (torch.from_numpy(rng.standard_normal((1, 40, 2, 8))).float()
                         for _ in range(3))  # fmt: skip
    query, key = 0.2 * query, 0.2 * key
    few, many = (
        (PEERS["Performer"](query, key, value, size, 0)
         - attention_peers.exact(query, key, value)).norm()
        for size in (16, 4096)
    )  # fmt: skip
    assert many < 0.4 * few
    features = attention_peers.random_features
    assert features(8, 16, 0) is features(8, 16, 0)  # drawn once
    assert not torch.equal(features(8, 16, 0).projection_matrix,
                           features(8, 16, 1).projection_matrix)  # fmt: skip


@pytest.mark.parametrize("spare", [0, 1])
def test_nystromformer_is_exact_where_tokens_repeat(spare):
    """Landmarks are means of neighbours, which are alike; a spare one is padding."""
    pytest.importorskip("nystrom_attention", reason="an optional peer", exc_type=ImportError)
    rng = np.random.default_rng(0)
    distinct = torch.from_numpy(rng.standard_normal((1, 10, 2, 16))).float()
    query = key = 3 * distinct.repeat_interleave(4, dim=1)[:, spare:]
    value = torch.from_numpy(rng.standard_normal((1, 40 - spare, 2, 16))).float()
    found = PEERS["Nystromformer"](query, key, value, 10, 0)
    assert found.shape == value.shape
    exact = attention_peers.exact(query, key, value)
    assert float((found - exact).norm() / exact.norm()) < (0.02 if spare == 0 else 0.3)


def test_what_is_left_out(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(attention_peers.importlib, "import_module", missing)
    alike = np.zeros((1, 9, 2, 4), np.float32)
    assert attention_peers.left_out({"layer0": [alike] * 3}) == {
        "Performer": "Performer is left out (No module named 'performer_pytorch'):"
        " pip install performer-pytorch",
        "Nystromformer": "Nystromformer is left out (No module named 'nystrom_attention'):"
        " pip install nystrom-attention",
    }
    monkeypatch.setattr(attention_peers.importlib, "import_module", lambda name: None)
    assert attention_peers.left_out({"layer0": [alike] * 3}) == {}
    layers = {"layer0": [alike, alike, alike[..., :3]]}
    assert attention_peers.left_out(layers) == {
        "Nystromformer": "Nystromformer is left out: it takes queries, keys and values of one shape"
    }
