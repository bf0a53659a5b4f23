"""Herding of torch tensors: the kernel, the halvings before it, and padding."""

import numpy as np
import pytest
import torch
from tensors import NoValues, OnCuda, forbidden, padding, qkv

from reference import herding as reference
from thinformer.attending.options import KeySelection
from thinformer.torch.choose import on_cpu
from thinformer.torch.choose.heads import Heads
from thinformer.torch.choose.operators import herd
from thinformer.torch.choose.seeds import bits_of_seed


def both(tensors, valid=None, *, size, temperature=None, min_length=0, scale=0.5):
    """(positions, how many count, finite heads) of the CPU and of the kernels."""
    expected = herd(*tensors, valid, torch.tensor(5), 0, size, scale, temperature, min_length)
    given = "auto" if temperature is None else temperature
    selection = KeySelection(size=size, correction=None, min_length=min_length, temperature=given)
    query, key, value = tensors
    heads = Heads(query, key.as_subclass(OnCuda), value, valid, scale)
    kept, seed = expected[0].shape[-1], torch.tensor(bits_of_seed(5))
    found = on_cpu.herd(heads, selection, seed, kept)
    return expected, [x.as_subclass(torch.Tensor) for x in found]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("n", "size"), [(1, 1), (20, 1), (40, 7), (70, 33), (9, 8)])
def test_the_kernel(n, size, dtype, torch_on_the_simulator, poisoned_memory):
    """Of two problems, as the specification; integers, so that sums are exact in any order."""
    x = np.random.default_rng(n).integers(-2, 3, (2, n, 2))
    gram = np.array([2 ** (y @ y.T + 8) for y in x]) * n  # the mean is a whole number
    places = torch_on_the_simulator.herd(torch.from_numpy(gram).to(dtype), size)
    for p in range(2):
        np.testing.assert_array_equal(places[p].sort().values, reference.herd(gram[p], size))


def test_no_number_is_the_least(torch_on_the_simulator):
    gram = torch.full((2, 4, 4), torch.nan)
    gram[1] = torch.eye(4)
    places = torch_on_the_simulator.herd(gram, 3)
    assert ((places >= 0) & (places < 4)).all()
    np.testing.assert_array_equal(places[1].sort().values, reference.herd(np.eye(4), 3))
    assert torch_on_the_simulator.herd(gram[:0], 3).shape == (0, 3)


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize(
    ("S", "T", "H_kv", "size"), [(40, 9, 2, 5), (11, 3, 1, 1), (12, 0, 2, 6), (7, 4, 2, 7)]
)
def test_keys(S, T, H_kv, size, temperature, torch_on_the_simulator):
    """Groups of heads, halvings or none before herding, no query, and nothing to choose."""
    query, key, value = qkv(B=2, T=T, S=S, H=2, E=4, D=3, H_kv=H_kv)
    tensors = 0.1 * query, key + 3, 1e150 * value
    for expected, found in zip(*both(tensors, size=size, temperature=temperature), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("place", [2, 6, 9])
def test_a_value_that_no_halving_sees(place, torch_on_the_simulator):
    """The largest value is that of all keys, also where halvings start from the others."""
    query, key, value = qkv(B=1, T=5, S=40, H=2, E=4, D=3)
    value[:, place] *= 20
    (expected, *_), (found, *_) = both((query, key, value), size=5)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("H_kv", "temperature"), [(2, None), (1, 0.7)])
@pytest.mark.parametrize("min_length", [0, 12])
def test_padding(H_kv, temperature, min_length, torch_on_the_simulator):
    """Each sequence keeps what it keeps on the CPU, NaN behind the mask included; none, of none."""
    lengths = [20, 9, 0, 17]
    query, key, value = qkv(B=4, T=20, S=20, H=2, E=4, D=3, H_kv=H_kv)
    hidden = padding(20, *lengths)
    hidden[1] = hidden[1].flip(0)
    for x in (query, key, value):
        x[hidden] = torch.nan
    tensors = 0.1 * query, key, value
    options = {"size": 4, "temperature": temperature, "min_length": min_length}
    expected, found = both(tensors, ~hidden, **options)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("role", [0, 1, 2])
def test_a_head_that_is_not_finite_leaves_the_others(role, torch_on_the_simulator):
    tensors = qkv(B=2, T=3, S=20, H=2, E=4, D=3)
    tensors[role][1, 2, 1, 2] = torch.inf
    expected, found = both(tensors, size=4)
    assert found[2].tolist() == expected[2].tolist() == [[True, True], [True, False]]
    assert ((found[0] >= 0) & (found[0] < 20)).all()
    assert torch.equal(found[0][expected[2]], expected[0][expected[2]])


def test_a_temperature_that_is_too_small(torch_on_the_simulator):
    """Nothing waits for an error: the head is not finite, so its output will be NaN."""
    tensors = qkv(B=1, T=3, S=20, H=2, E=4, D=3)
    query, key, value = tensors
    heads = Heads(query, key.as_subclass(OnCuda), value, None, 0.5)
    selection = KeySelection(size=4, correction=None, temperature=1e-300, min_length=0)
    places, _, finite = on_cpu.herd(heads, selection, torch.tensor(5), 4)
    assert not finite.any()
    assert ((places >= 0) & (places < 20)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, torch_on_the_simulator):
    tensors = [x.to(dtype) for x in qkv(B=1, T=5, S=40, H=2, E=4, D=3)]
    for expected, found in zip(*both(tensors, size=5), strict=True):
        assert torch.equal(found, expected)


def test_nothing_waits(torch_on_the_simulator, monkeypatch):
    """Without padding no operation looks at a value, so that a CUDA graph can capture it."""
    query, key, value = qkv(B=1, T=3, S=20, H=2, E=4, D=3)
    heads = Heads(query, key.as_subclass(OnCuda), value, None, 0.5)
    selection = KeySelection(size=3, correction=None, temperature="auto", min_length=0)
    seed = torch.tensor(bits_of_seed(5))
    expected = on_cpu.herd(heads, selection, seed, 3)  # copies the tables
    for name in ("item", "tolist", "__bool__", "__int__", "__index__", "nonzero", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    monkeypatch.setattr(torch, "from_numpy", forbidden)
    with NoValues():
        found = on_cpu.herd(heads, selection, seed, 3)
    monkeypatch.undo()
    assert all(map(torch.equal, found, expected))
