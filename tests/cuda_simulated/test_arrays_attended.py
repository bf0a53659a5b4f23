"""`attention` of arrays on a GPU: the keys, outputs and weights of the CPU, and its errors."""

import sys

import numpy as np
import pytest
import torch
from simulator import OnGpu

from thinformer import attention, compress_schedule, make_draws
from thinformer.halving.draws import seed_from
from thinformer.torch import arrays as module

WAYS = {
    "halving": {"size": 3},
    "stride": {"size": 3, "pre_thin": "stride", "delta": 0.1},
    "all keys": {"size": 10},
    "herding": {"size": 3, "temperature": "auto"},
    "nystrom": {"size": 3, "correction": "nystrom"},
    "queries": {"size": 3, "correction": "queries"},
    "a temperature": {"size": 3, "correction": "queries", "temperature": 2.0},
    "all keys, corrected": {"size": 10, "correction": "queries"},
}

pytestmark = pytest.mark.usefixtures("arrays_on_the_simulator", "torch_on_the_simulator")


def arrays(dtype=np.float64, T=5, B=1):
    """Query (B, T, 2, 4), key (B, 10, 2, 4) and value (B, 10, 2, 3)."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((B, n, 2, dim)).astype(dtype)
            for n, dim in ((T, 4), (10, 4), (10, 3))]  # fmt: skip


def on_cpu(array):
    """What a call on a GPU returns, as an array of NumPy."""
    return array.copy_to_host()


def test_a_large_seed():
    """Of 64 bits, which torch has as a negative number."""
    rng = next(rng for rng in range(100) if seed_from(rng) >= 2**63)
    for way in ("halving", "nystrom"):
        options = WAYS[way] | {"rng": rng}
        output = attention(*arrays(), device="cuda", **options).output
        np.testing.assert_allclose(output, attention(*arrays(), **options).output, rtol=1e-9)


@pytest.mark.parametrize("way", ["halving", "herding", "nystrom"])
def test_autocast_of_the_caller(way):
    expected = attention(*arrays(np.float32), **WAYS[way], rng=3).output
    with torch.autocast("cpu", torch.bfloat16):
        output = attention(*map(OnGpu, arrays(np.float32)), **WAYS[way], rng=3).output
    np.testing.assert_allclose(on_cpu(output), expected, rtol=1e-4, atol=1e-5)


def same(found, expected, rtol=1e-9):
    output, weights, indices = found
    np.testing.assert_array_equal(indices, expected.indices)
    np.testing.assert_allclose(output, expected.output, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(weights, expected.weights, rtol=rtol, atol=rtol)
    assert output.dtype == expected.output.dtype
    assert weights.dtype == expected.weights.dtype


@pytest.mark.parametrize("way", WAYS)
def test_as_on_the_cpu(way):
    """Arrays that are on a GPU, and arrays that are copied there."""
    given = arrays(B=2)
    options = WAYS[way] | {"rng": 3, "return_weights": True, "return_indices": True}
    expected = attention(*given, **options)
    same(attention(*given, device="cuda", **options), expected)
    same(map(on_cpu, attention(*map(OnGpu, given), **options)), expected)


def test_given_draws():
    given = arrays()
    draws = make_draws(compress_schedule(10, 3), 7, 2)
    expected = attention(*given, size=3, draws=draws).output
    output, weights, indices = attention(*given, size=3, draws=draws, device="cuda")
    np.testing.assert_allclose(output, expected, rtol=1e-9)
    assert weights is indices is None


@pytest.mark.parametrize("way", ["halving", "herding", "queries"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtypes(way, dtype):
    given = arrays(dtype)
    options = WAYS[way] | {"rng": 3, "return_weights": True, "return_indices": True}
    tolerance = 1e-5 if dtype == np.float32 else 3e-3
    same(attention(*given, device="cuda", **options), attention(*given, **options), tolerance)


@pytest.mark.parametrize("there", [True, False])
def test_layouts(there):
    """Heads first, backwards, every second column, one head for all; the other byte order."""
    query, key, value = arrays()
    first = np.ascontiguousarray(key.transpose(0, 2, 1, 3))
    views = [
        (query[:, ::-1, :, ::-1], first.transpose(0, 2, 1, 3), value),
        (query[..., ::2], key[..., 1::2], value[:, :, ::-1]),
        (query, np.broadcast_to(key[:, :, :1], key.shape), value),
    ]
    if not there:
        views.append([x.astype(x.dtype.newbyteorder()) for x in (query, key, value)])
    for view in views:
        expected = attention(*view, size=3, rng=3).output
        output = attention(
            *map(OnGpu, view) if there else view, size=3, rng=3, device="cuda"
        ).output
        np.testing.assert_allclose(on_cpu(output) if there else output, expected, rtol=1e-9)


@pytest.mark.parametrize("way", ["halving", "herding", "queries"])
def test_nothing_to_compute(way):
    """No sequence; no query."""
    query, key, value = arrays()
    for given in ((query[:0], key[:0], value[:0]), (query[:, :0], key, value)):
        expected = attention(*given, **WAYS[way]).output.shape
        assert attention(*given, **WAYS[way], device="cuda").output.shape == expected
        assert attention(*map(OnGpu, given), **WAYS[way]).output.shape == expected


@pytest.mark.parametrize("way", ["halving", "all keys", "herding", "nystrom"])
@pytest.mark.parametrize(("role", "T"), [(0, 5), (1, 5), (1, 0), (2, 5)])
def test_numbers_that_are_not_finite(role, T, way):
    given = arrays(T=T)
    given[role][0, 3, 1, 2] = -np.inf if T else np.nan
    name = ("query", "key", "value")[role]
    with pytest.raises(ValueError, match=f"^{name} must be finite"):
        attention(*map(OnGpu, given), **WAYS[way])


@pytest.mark.parametrize(
    ("options", "large"),
    [({"temperature": 1e-300}, 1), ({"correction": "queries"}, 1e200)],
)
def test_numbers_that_are_too_large(options, large):
    query, key, value = arrays()
    setting, advice = "a correction", "Give a number as temperature"
    if "temperature" in options:
        setting, advice = "a temperature", "Give another temperature than 1e-300"
    message = f"too large for {setting} in float64; got the largest numbers query .* {advice}, or"
    with pytest.raises(ValueError, match=message):
        attention(OnGpu(query), OnGpu(large * key), OnGpu(value), size=3, **options)


def test_arguments():
    """The errors of the CPU, before anything is computed."""
    query, key, value = arrays()
    for error, message, options in (
        (ValueError, "with a temperature they may not be given", {"temperature": 1, "delta": 0.1}),
        (ValueError, "scale must be in the range of float32; got 1e\\+200", {"scale": 1e200}),
    ):
        with pytest.raises(error, match=message):
            attention(*(OnGpu(x.astype(np.float32)) for x in (query, key, value)), **options)
    with pytest.raises(ValueError, match="must be in one memory; got query, key on a GPU, value"):
        attention(OnGpu(query), OnGpu(key), value)
    with pytest.raises(ValueError, match="query must have shape"):
        attention(OnGpu(query[..., 1:]), OnGpu(key), OnGpu(value))


def test_a_torch_that_has_no_gpu(monkeypatch):
    monkeypatch.setattr(module, "SIMULATED", False)
    with pytest.raises(RuntimeError, match=r"needs a torch that can use it; torch \d.* cannot"):
        attention(*map(OnGpu, arrays()), size=3)


def test_no_memory(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    monkeypatch.setattr(module, "attend_to_kept", full)
    with pytest.raises(MemoryError, match="fewer sequences at once .Tried to allocate 2.00 GiB"):
        attention(*map(OnGpu, arrays()), size=3)


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "thinformer.torch.arrays", None)
    with pytest.raises(ImportError, match="attention on a GPU is torch's; compress_kv chooses"):
        attention(*map(OnGpu, arrays()), size=3)
