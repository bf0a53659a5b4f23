"""Landmarks of torch tensors: pivots, draws and attention to them."""

import numpy as np
import pytest
import torch
from tensors import OnCuda

from reference import landmarks as reference_landmarks
from thinformer import (
    ThinformerAttention,
    thinformer_attention,
)
from thinformer.attending.landmarks import (
    CANDIDATES,
    PROPOSALS,
    QUERIES,
    STREAMS,
    number_of_queries,
)
from thinformer.attending.options import CORRECTIONS, KeySelection
from thinformer.cpu.pivots import BLOCK
from thinformer.halving.draws import head_keys, seed_from, unit_numbers
from thinformer.torch.choose import landmarks_on_gpu as landmarks_module
from thinformer.torch.choose import on_cpu
from thinformer.torch.choose.heads import Heads
from thinformer.torch.choose.operators import landmarks
from thinformer.torch.choose.seeds import bits_of_seed


def landmarks_on_gpu(query, key, value, valid=None, *, size, **settings):
    settings = {"scale": 0.5, "correction": "queries", "temperature": None, "min_length": 0,
                "g": 0, "width": size} | settings  # fmt: skip
    scale, width = settings.pop("scale"), settings.pop("width")
    heads = Heads(query, key.as_subclass(OnCuda), value, valid, scale)
    selection = KeySelection(size=size, **settings)
    return on_cpu.landmarks(heads, selection, torch.tensor(bits_of_seed(5)), width)


def test_unit_numbers(torch_on_the_simulator):
    for seed in (0, 2**64 - 1):
        on_gpu = torch.tensor(int(np.uint64(seed).astype(np.int64)))
        for heads, stream, size in ((3, STREAMS + 2, 50), (1, 0, 1), (2, 5, 0)):
            numbers = torch_on_the_simulator.unit_numbers(on_gpu, heads, stream, size)
            expected = unit_numbers(head_keys(seed, heads), stream, size)
            np.testing.assert_array_equal(numbers, expected)


@pytest.mark.parametrize("norm", [0, 1e-160, 1e-3, 1, 30, 1e4, 1e150])
def test_temperatures(norm):
    query, key = np.random.default_rng(0).standard_normal((2, 9, 3))
    expected = reference_landmarks.temperature(3 * query, norm * key, 0.7)
    query, key = (torch.from_numpy(x[None, :, None]) for x in (3 * query, norm * key))
    found = landmarks_module._temperature(query, key, 0.7)
    np.testing.assert_allclose(found, [[expected]], rtol=1e-14)
    assert landmarks_module._temperature(query[:, :0], key, 0.7).tolist() == [[1]]


PIVOTS = {  # L, E, n_out, proposals
    "columns of several tiles, many rounds": (75, 3, 19, 90),
    "more rows than are staged at once": (20, 70, 4, 12),
    "few of them distinct": (40, 2, 11, 88),
    "weights that underflow": (40, 2, 5, 40),
    "too few proposals": (30, 2, 12, 9),
    "one of two": (2, 1, 1, 8),
}


def pivots_problem(case, dtype):
    """Four heads in two sequences, whose heads have the same draws."""
    L, E, n_out, proposals = PIVOTS[case]
    rng = np.random.default_rng(len(case))
    x = rng.standard_normal((4, L, E)) / E**0.25
    if case == "few of them distinct":
        x = x[:, np.arange(L) % 7]
    if case == "weights that underflow":
        x[:, ::2] = 5
        x[:, 1::2] *= 30 / np.linalg.norm(x[:, 1::2], axis=-1, keepdims=True)
    uniforms = rng.random((2, proposals, 2))
    uniforms[:, :2, 0] = 0, 1 - 2**-53
    x = x.astype(dtype)
    return x, np.sum(x**2, axis=2) / 2, n_out, uniforms


def pivots_on_gpu(bridge, x, h, n_out, uniforms, weights):
    factor = np.full((len(x), n_out, x.shape[1]), np.nan)
    rows = np.concatenate([x.swapaxes(1, 2), factor], axis=1)
    rows, h, weights, uniforms = map(torch.from_numpy, (rows.astype(x.dtype), h, weights, uniforms))
    taken = bridge.pivots(rows, x.shape[2], n_out, h, weights, uniforms, block=BLOCK,
                          nugget=np.finfo(x.dtype).eps ** 0.5)  # fmt: skip
    return taken.numpy(), rows[:, rows.shape[1] - n_out :].numpy()


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, np.float64) for case in PIVOTS),
     *((case, np.float32) for case in list(PIVOTS)[:2])],
)  # fmt: skip
def test_pivots(case, dtype, torch_on_the_simulator, poisoned_memory):
    x, h, n_out, uniforms = pivots_problem(case, dtype)
    weights = np.exp(2 * (h - h.max(axis=1, keepdims=True)).astype(float))
    taken, factor = pivots_on_gpu(torch_on_the_simulator, x, h, n_out, uniforms, weights)
    for p in range(4):
        chosen = np.flatnonzero(taken[p])
        others = np.flatnonzero(~taken[p])[: n_out - len(chosen)]
        expected = reference_landmarks.pivots(x[p], n_out, uniforms[p % 2])
        np.testing.assert_array_equal(np.sort([*chosen, *others]), expected)
        assert (len(others) > 0) == (case == "too few proposals")
        # the kernel among the pivots is that of the factor
        F = factor[p, : len(chosen), chosen].astype(float)
        N = np.exp(x[p, chosen] @ x[p, chosen].T - h[p, chosen, None] - h[p, chosen])
        N += np.finfo(dtype).eps ** 0.5 * np.eye(len(chosen))
        np.testing.assert_allclose(F @ F.T, N, atol=1e-12 if dtype == np.float64 else 1e-5)
    if case == "weights that underflow":
        assert (weights == 0).any()
        assert not taken[weights == 0].any()


@pytest.mark.parametrize("weight", [0, np.nan])
def test_no_pivots_where_there_is_no_diagonal(weight, torch_on_the_simulator):
    x, h, n_out, uniforms = pivots_problem("one of two", np.float64)
    taken, _ = pivots_on_gpu(torch_on_the_simulator, x, h, n_out, uniforms, h * weight)
    assert not taken.any()


@pytest.mark.parametrize("spread", [0, 0.3, 2, 10, 1000])
def test_landmarks_drawn(spread):
    """Some of them surely, by exponents that are alike, or far apart."""
    rng = np.random.default_rng(1)
    h, numbers = spread * rng.standard_normal((3, 4, 30)), rng.random((4, 1))
    numbers[:2] = [[0], [1 - 2**-53]]
    for n_out in (1, 2, 9, 29):
        found = landmarks_module._draw(torch.from_numpy(h), n_out, torch.from_numpy(numbers))
        expected = [
            [reference_landmarks.draw_landmarks(*head, n_out, u) for head, (u,) in
             zip(of_sequence[:, None], numbers, strict=True)]
            for of_sequence in h
        ]  # fmt: skip
        np.testing.assert_array_equal(found, expected)
    found = landmarks_module._draw(torch.full((1, 4, 30), torch.nan), 9, torch.from_numpy(numbers))
    assert (found.diff() > 0).all()
    assert 0 <= found.min() <= found.max() < 30


def specified_landmarks(query, key, value, n_out, correction, temperature, scale):
    """Positions (B, H, n_out) by the specification, of the draws of seed 5."""
    (B, T, H, _), S = query.shape, key.shape[1]
    m, keys = number_of_queries(T, n_out), head_keys(seed_from(5), H)
    sizes = (m, 0) if correction == "queries" else (0, min(S, CANDIDATES * n_out))
    strata = [unit_numbers(keys, STREAMS + i, size + 1) for i, size in enumerate(sizes)]
    if correction == "queries":
        uniforms = unit_numbers(keys, STREAMS + 2, 1)[:, 0]
    else:
        uniforms = unit_numbers(keys, STREAMS + 2, 2 * PROPOSALS * n_out).reshape(H, -1, 2)
    draws = [reference_landmarks.LandmarkDraws(*x) for x in zip(*strata, uniforms, strict=True)]
    return [
        [reference_landmarks.landmark_attention(
            query[b, :, h], key[b, :, h], value[b, :, h], scale, n_out, correction, draws[h],
            temperature)[2].positions for h in range(H)]
        for b in range(B)
    ]  # fmt: skip


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize(
    ("dtype", "shape", "temperature"),
    [("float64", (40, 33, 3, 4), None), ("float32", (40, 33, 3, 4), None),
     ("float64", (QUERIES + 20, 9, 2, 1), 1.4), ("float32", (1, 50, 1, 8), None)],
)  # fmt: skip
def test_landmarks(correction, dtype, shape, temperature, torch_on_the_simulator, poisoned_memory,
                   monkeypatch):  # fmt: skip
    """Those of the specification, from tensors of any strides; a CUDA graph can be captured."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    (T, S, E, n_out), rng = shape, np.random.default_rng(1)
    query, key, value = (
        rng.standard_normal((2, 2, n, E)).astype(dtype).swapaxes(1, 2) for n in (T, S, S)
    )
    expected = specified_landmarks(query, key, value, n_out, correction, temperature, 0.7)
    indices, counts, finite, sampled, tau = landmarks_on_gpu(
        *map(torch.from_numpy, (query, key, value)), size=n_out, scale=0.7, correction=correction,
        temperature=temperature,
    )  # fmt: skip
    np.testing.assert_array_equal(indices, expected)
    assert counts.tolist() == [n_out, n_out]
    assert finite.all()
    m = number_of_queries(T, n_out) if correction == "queries" else 0
    assert sampled.shape == (2, 2, m)
    assert torch.equal(sampled, sampled[:1].expand(2, 2, m))
    if m == T:
        assert torch.equal(sampled[0, 0], torch.arange(T))
    of_head = key[1, :, 1] - key[1, :, 1].mean(axis=0)
    default = reference_landmarks.temperature(query[1, :, 1], of_head, 0.7)
    np.testing.assert_allclose(tau[1, 1], temperature or default, rtol=1e-6)


@pytest.mark.parametrize("case", ["a query a token", "other queries"])
def test_landmarks_with_padding(case, torch_on_the_simulator, poisoned_memory):
    """As on the CPU: queries of groups, sequences that keep all, heads with NaN, no token."""
    generator = torch.Generator().manual_seed(0)
    of = {"generator": generator, "dtype": torch.float64}
    key, value = torch.randn((2, 7, 26, 2, 3), **of)
    query = torch.randn((7, 26 if case == "a query a token" else 5, 4, 3), **of)
    lengths = torch.tensor([26, 11, 0, 22, 11, 2, 9])
    valid = torch.arange(26) < lengths[:, None]
    valid[4] = valid[4].flip(0)  # padding in front
    valid[3] = torch.arange(26) % 6 != 3  # and within
    key[~valid], value[~valid] = torch.nan, torch.inf
    if case == "a query a token":
        query[~valid] = torch.nan
    key[1, 4, 1] = value[5, 0, 0, 1] = torch.nan
    query[0, 3, 0, 0] = torch.nan  # of the first head's group
    for correction, g, size, min_length in (("queries", 0, 3, 0), ("nystrom", 1, None, 10)):
        tensors, settings = (query, key, value, valid), (g, size, 0.6, correction, None, min_length)
        expected = landmarks(*tensors, torch.tensor(5), *settings)
        found = landmarks_on_gpu(*tensors, size=size, g=g, scale=0.6, correction=correction,
                                 width=expected[0].shape[-1], min_length=min_length)  # fmt: skip
        good = expected[2]
        assert torch.equal(found[2], good)
        if correction == "queries":
            some = [good[i].tolist() for i in (0, 1, 5)]
            assert some == [[False, True], [True, False], [False, True]]
        assert torch.equal(found[1], expected[1])
        # a head that is not finite has some
        indices, of_cpu = (x.where(good[..., None], 0) for x in (found[0], expected[0]))
        assert torch.equal(indices, of_cpu)
        assert ((found[0] >= 0) & (found[0] < 26)).all()
        assert torch.equal(found[3], expected[3])
        torch.testing.assert_close(found[4][good], expected[4][good], rtol=1e-13, atol=0)
        for x, y in zip(found, expected, strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)


@pytest.mark.parametrize("axis", range(3))
def test_landmarks_of_nothing(axis, torch_on_the_simulator):
    """No sequence, no query, no head."""
    shape = [2, 6, 2]
    shape[axis] = 0
    B, T, H = shape
    query, key = torch.zeros(B, T, H, 3), torch.ones(B, 9, H, 3)
    found = landmarks_on_gpu(query, key, key, size=2)
    assert [tuple(x.shape) for x in found] == [
        (B, H, 2),
        (B,),
        (B, H),
        (B, H, T),
        (B, H),
    ]
    assert (found[4] == 1).all()


def test_landmarks_in_half_precision(torch_on_the_simulator):
    """Widened first, and with autocast too."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float16, torch.bfloat16):
        tensors = torch.randn((3, 1, 20, 2, 3), generator=generator).to(dtype)
        expected = landmarks_on_gpu(*tensors.float(), size=4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = landmarks_on_gpu(*tensors, size=4)
        assert all(map(torch.equal, found, expected))


def test_attention_to_landmarks(torch_on_the_simulator, monkeypatch):
    """What is made of the choice is torch's: the same output, weights and gradients."""
    generator = torch.Generator().manual_seed(0)
    tensors = [x.requires_grad_() for x in
               torch.randn((3, 2, 20, 2, 3), generator=generator, dtype=torch.float64)]  # fmt: skip
    options = {"size": 5, "correction": "queries", "return_weights": True, "return_indices": True,
               "key_padding_mask": torch.arange(20) >= torch.tensor([[20], [14]])}  # fmt: skip
    of_choice, results, calls = on_cpu.landmarks, [], []

    def on_gpu(heads, selection, seed, kept):
        calls.append(heads.valid)
        heads = heads._replace(key=heads.key.as_subclass(OnCuda))
        found = of_choice(heads, selection, torch.tensor(bits_of_seed(int(seed))), kept)
        return tuple(x.as_subclass(torch.Tensor) for x in found)

    for choose in (of_choice, on_gpu):
        monkeypatch.setattr(on_cpu, "landmarks", choose)
        got = thinformer_attention(*tensors, generator=torch.Generator().manual_seed(3), **options)
        gradients = torch.autograd.grad(got.output.square().sum(), tensors)
        results.append([*got, *gradients])
    assert len(calls) == 1
    assert torch.equal(results[0][2], results[1][2])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    module = ThinformerAttention(size=5, correction="queries")
    assert module(*tensors)[0].shape == tensors[0].shape
    assert calls[1] is None
