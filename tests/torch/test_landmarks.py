"""Landmarks in torch: what NumPy computes, for the same seed, with masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from landmark_tensors import corrections, equal, output_of, qkv, weighted
from tensors import everything, exact, padding, sample_at_most, seeded

from thinformer import ThinformerAttention, attention, coreset_size, thinformer_attention
from thinformer.attending.options import CORRECTIONS
from thinformer.data import load_activations
from thinformer.torch.choose import seeds

pytestmark = pytest.mark.usefixtures("few_sampled_queries")


def by_numpy(tensors, **options):
    seed = int(seeds.draw_seed(torch.Generator().manual_seed(0), torch.device("cpu")))
    return attention(*(x.numpy() for x in tensors), rng=seed, return_weights=True,
                     return_indices=True, **options)  # fmt: skip


def check_as_numpy(tensors, **options):
    got, expected = everything(*tensors, **options), by_numpy(tensors, **options)
    tolerance = {"rtol": 2e-3, "atol": 2e-3} if tensors[0].dtype == torch.float32 else {}
    assert np.array_equal(got.indices, expected.indices)
    equal(got.output, torch.from_numpy(expected.output), **tolerance)
    equal(got.weights, torch.from_numpy(expected.weights), **tolerance)
    equal(seeded(*tensors, **options), got.output, **tolerance)  # by SDPA


@corrections
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_as_numpy_on_activations(dtype, correction):
    layer = load_activations("vision")["layer3"]
    tensors = [torch.from_numpy(layer[role][:, :300]).to(dtype)
               for role in ("query", "key", "value")]  # fmt: skip
    check_as_numpy(tensors, size=48, correction=correction)


@settings(max_examples=settings.default.max_examples // 2)
@given(st.data())
def test_as_numpy(data):
    S = data.draw(st.integers(2, 80))
    shape = {name: data.draw(st.integers(1, most))
             for name, most in (("B", 2), ("T", 90), ("H", 3), ("E", 9), ("D", 9))}  # fmt: skip
    tensors = qkv(S=S, **shape, seed=data.draw(st.integers(0, 2**32)))
    if data.draw(st.booleans()):  # few distinct keys
        tensors[1] = tensors[1].round()
    check_as_numpy(
        tensors, size=data.draw(st.integers(1, S - 1)), correction=data.draw(
            st.sampled_from(CORRECTIONS)), temperature=data.draw(st.sampled_from([None, 1.5])),
        scale=data.draw(st.sampled_from([None, 0.2])),
    )  # fmt: skip


@corrections
def test_sampled_are_some_of_many_queries(correction):
    """More of them than are sampled, which T = S or not says how to number."""
    check_as_numpy(qkv(T=200), size=20, correction=correction)
    check_as_numpy(qkv(T=300), size=20, correction=correction)


@corrections
@weighted
@pytest.mark.parametrize("side", ["left", "right", "holes"])
@pytest.mark.parametrize("T", [7, 200])
def test_padded_is_alone(T, side, weights, correction):
    """Whatever stands behind the mask; queries there are not sampled where T = S."""
    query, key, value = qkv(B=3, T=T)
    mask = padding(200, 200, 50, 130)
    mask = mask.flip(1) if side == "left" else mask
    if side == "holes":
        mask = mask[:, torch.from_numpy(np.random.default_rng(0).permutation(200))]
    for x in (query, key, value) if T == 200 else (key, value):
        x[mask] = float("nan")
    options = {"g": 1, "correction": correction}
    got = everything(query, key, value, key_padding_mask=mask, **options)
    output = output_of(query, key, value, key_padding_mask=mask, weights=weights, **options)
    for b, there in enumerate(~mask):
        few = there if T == 200 else slice(None)
        alone = everything(query[b : b + 1, few], key[b : b + 1, there], value[b : b + 1, there],
                           **options)  # fmt: skip
        n = alone.indices.shape[-1]
        assert n == coreset_size(int(there.sum()), 1)
        assert torch.equal(got.indices[b, :, :n], there.nonzero()[:, 0][alone.indices[0]])
        assert (got.indices[b, :, n:] == -1).all()
        equal(output[b, few], alone.output[0])
        equal(got.weights[b, :, few, :n], alone.weights[0])
        assert (got.weights[b, :, few, n:] == 0).all()


@pytest.mark.slow
@corrections
@weighted
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_masked_entirely_gives_zeros(dtype, weights, correction):
    tensors = [x.requires_grad_() for x in qkv(dtype=dtype)]
    mask = padding(200, 200, 0)
    output = output_of(*tensors, key_padding_mask=mask, weights=weights, correction=correction)
    output.float().square().sum().backward()
    assert (output[1] == 0).all()
    assert (output[0] != 0).any()
    assert all(x.grad.isfinite().all() for x in tensors)
    assert all((x.grad[1] == 0).all() for x in tensors)
    assert (
        everything(*tensors, key_padding_mask=mask, correction=correction).weights[1] == 0
    ).all()


@corrections
@weighted
def test_short_sequences_are_exact(weights, correction):
    query, key, value = qkv(B=4)
    mask = padding(200, 64, 20, 1, 150)
    output = output_of(query, key, value, key_padding_mask=mask, weights=weights, size=64,
                       correction=correction)  # fmt: skip
    expected = exact(query, key, value, attn_mask=~mask[:, None, None])
    equal(output[:3], expected[:3], rtol=1e-12, atol=1e-12)
    difference = (output[3] - expected[3]).abs().max()
    assert 1e-9 < difference < 0.5


@corrections
@weighted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_size_at_least_S_is_exact(dtype, weights, correction):
    tensors = qkv(dtype=dtype)
    output = output_of(*tensors, weights=weights, size=200, correction=correction, scale=0.3)
    torch.testing.assert_close(output, exact(*tensors, scale=0.3))


@corrections
@weighted
def test_slots_that_are_left_over_have_no_part(weights, correction):
    """Though what stands there has by far the largest logit."""
    query, key, value = qkv()
    query, key, mask = query.abs() + 1, key - 300, padding(200, 200, 50).flip(1)
    output = output_of(query, key, value, key_padding_mask=mask, g=1, weights=weights,
                       correction=correction)  # fmt: skip
    alone = seeded(query[1:], key[1:, 150:], value[1:, 150:], g=1, correction=correction)
    equal(output[1:], alone)


@corrections
@weighted
@pytest.mark.parametrize(("bad", "temperature"), [("nan", None), ("inf", 1.0)])
def test_nan_spoils_its_heads_only(bad, temperature, weights, correction):
    query, key, value = qkv(H=4, H_kv=2)
    key[1, 5, 1, 0] = float(bad)
    output = output_of(
        query, key, value, weights=weights, enable_gqa=True, correction=correction,
        temperature=temperature,
    )  # fmt: skip
    spoiled = torch.zeros(2, 7, 4, 3, dtype=torch.bool)
    spoiled[1, :, 2:] = True
    assert torch.equal(output.isnan(), spoiled)


@corrections
@pytest.mark.parametrize("T", [7, 200])
@pytest.mark.parametrize("masked", [False, True])
def test_grouped_heads_share_landmarks_of_all_their_queries(masked, T, correction, monkeypatch):
    """Those of a group are as if one head had all its queries, token by token."""
    sample_at_most(128, monkeypatch)
    query, key, value = qkv(T=T, H=6, H_kv=2)
    mask = {"key_padding_mask": padding(200, 200, 120)} if masked else {}
    options = {"size": 20, "correction": correction} | mask
    got = everything(query, key, value, enable_gqa=True, **options)
    assert got.indices.shape == (2, 2, 20)
    assert got.weights.shape == (2, 6, T, 20)
    if masked and T == 200:
        for b, there in enumerate(~mask["key_padding_mask"]):
            alone = everything(*(x[b : b + 1, there] for x in (query, key, value)), size=20,
                               correction=correction, enable_gqa=True)  # fmt: skip
            equal(got.output[b, there], alone.output[0])
        return
    together = query.unflatten(2, (2, 3)).transpose(2, 3).flatten(1, 2)
    same = everything(together, key, value, **options)
    assert torch.equal(got.indices, same.indices)
    as_one = same.output.unflatten(1, (T, 3)).transpose(2, 3).flatten(2, 3)
    equal(got.output, as_one)
    there = ~mask["key_padding_mask"][:, None, None] if masked else None
    expected = exact(query, key, value, enable_gqa=True, attn_mask=there)
    difference = (got.output - expected).norm() / expected.norm()
    assert difference < {"queries": 0.45, "nystrom": 0.8}[correction]


@corrections
def test_layouts(correction):
    tensors = qkv()
    expected = everything(*tensors, size=20, correction=correction)
    turned = [x.transpose(1, 2) for x in tensors]
    got = everything(*turned, size=20, correction=correction, layout="bhsd")
    equal(got.output.transpose(1, 2), expected.output)
    assert torch.equal(got.indices, expected.indices)


@corrections
def test_what_is_returned(correction):
    tensors = qkv(seed=1)
    got = everything(*tensors, size=20, correction=correction)
    assert got.output.shape == (2, 7, 2, 3)
    assert got.weights.shape == (2, 2, 7, 20)
    assert got.indices.shape == (2, 2, 20)
    equal(got.weights.sum(-1), torch.ones(2, 2, 7, dtype=torch.float64))
    one = seeded(*tensors, size=20, correction=correction, return_indices=True)
    assert one.weights is None
    assert torch.equal(one.indices, got.indices)
    assert seeded(*tensors, size=20, correction=correction, return_weights=True).indices is None


@corrections
@pytest.mark.parametrize("axis", ["B", "T", "H"])
def test_empty(axis, correction):
    tensors = qkv(**{axis: 0})
    got = everything(*tensors, size=20, correction=correction)
    (B, T, H, _), zero = tensors[0].shape, tensors[2].new_zeros(0)
    assert got.output.shape == (B, T, H, 3)
    assert got.weights.shape == (B, H, T, 20)
    assert got.indices.shape == (B, H, 20)
    equal(seeded(*tensors, size=20, correction=correction).flatten(), zero)


@corrections
def test_dropout_drops_landmarks_and_keeps_the_mean(correction):
    query, key, value = qkv(B=1, H=1)
    query = query[:, :1].expand(-1, 4000, -1, -1)
    plain = everything(query, key, value, size=60, correction=correction)
    for weights in (False, True):
        torch.manual_seed(0)
        got = seeded(query, key, value, size=60, correction=correction, dropout_p=0.2,
                     return_weights=weights)  # fmt: skip
        output = got.output if weights else got
        assert not torch.allclose(output, plain.output)
        equal(output.mean(1), plain.output.mean(1), rtol=0, atol=0.05)
        if weights:
            equal(got.weights, plain.weights)


@corrections
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, correction):
    tensors = qkv(dtype=dtype)
    options = {"size": 20, "correction": correction, "key_padding_mask": padding(200, 200, 90)}
    got, wide = (everything(*x, **options) for x in (tensors, [x.float() for x in tensors]))
    assert got.output.dtype == got.weights.dtype == dtype
    assert torch.equal(got.indices, wide.indices)
    assert torch.equal(got.output, wide.output.to(dtype))
    assert torch.equal(got.weights, wide.weights.to(dtype))


@corrections
def test_autocast(correction):
    tensors = qkv(dtype=torch.float32)
    options = {"size": 20, "correction": correction}
    expected = seeded(*tensors, **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = seeded(*tensors, **options)
        mixed = seeded(*tensors[:2], tensors[2].bfloat16(), **options)
    assert torch.equal(whole, expected)  # no product in bfloat16
    assert torch.equal(mixed, seeded(*(x.bfloat16() for x in tensors), **options))


@corrections
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_are_finite_at_any_norm(dtype, correction):
    query, key, value = qkv(dtype=dtype)
    for norm in (1e4, 1e9, 1e18):
        output = seeded(norm * query, norm * key, value, size=20, correction=correction)
        assert (output >= value.amin(1, keepdim=True)).all()
        assert (output <= value.amax(1, keepdim=True)).all()


@corrections
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("factors", [(1e200, 1), (1, 1e200), (1e-200, 1e200)])
def test_squares_beyond_the_range_are_nan(factors, learning, masked, correction):
    """Of keys and of queries; the other heads stay."""
    tensors = qkv(B=2, T=9, S=60)
    mask = padding(60, 60, 40) if masked else None
    options = {"size": 12, "correction": correction, "key_padding_mask": mask}
    expected = seeded(*tensors, **options)
    for x, factor in zip(tensors, factors, strict=False):
        x[:, :, 1] *= factor
    found = seeded(*(x.requires_grad_(learning) for x in tensors), **options).detach()
    assert found[:, :, 1].isnan().all()
    others = [h for h in range(tensors[0].shape[2]) if h != 1]
    torch.testing.assert_close(found[:, :, others], expected[:, :, others])


@corrections
def test_module(correction):
    tensors = qkv()
    expected = everything(*tensors, size=20, correction=correction, temperature=1.5)
    for by_sdpa in (False, True):
        module = ThinformerAttention(
            size=20, correction=correction, temperature=1.5, use_torch_spda=by_sdpa,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        output, weights = module(*tensors)
        equal(output, expected.output)
        assert (weights is None) == by_sdpa
    assert f"correction={correction!r}, temperature=1.5" in repr(module)
    assert "correction=None, temperature=None" in repr(ThinformerAttention())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction": "wildcat"}, "^correction must be one of None, 'nystrom', 'queries'; got"),
        ({"correction": "queries", "temperature": "warm"}, "^temperature must be None, 'auto' or"),
        ({"correction": "queries", "temperature": 0}, "^temperature must be positive and finite"),
        ({"correction": "queries", "temperature": float("nan")}, "^temperature must be positive"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        thinformer_attention(*qkv(), **options)
    with pytest.raises(ValueError, match=message):
        ThinformerAttention(**options)


def test_the_module_has_no_pre_thin_beside_a_correction():
    with pytest.raises(ValueError, match="^pre_thin must be 'even' with a correction"):
        ThinformerAttention(pre_thin="stride", correction="queries")


def test_all_keys_are_not_fitted_to_themselves(monkeypatch):
    """Exact attention takes no solution for as many unknowns as there are keys."""
    monkeypatch.setattr("thinformer.torch.attend.layer.attend_to_landmarks", None)
    query, key, value = torch.randn(3, 1, 40, 2, 4).unbind()
    got = thinformer_attention(query, key, value, size=40, correction="queries")
    exact = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (query, key, value))
    )
    torch.testing.assert_close(got, exact.transpose(1, 2))
    with pytest.raises(TypeError):
        thinformer_attention(query, key, value, size=39, correction="queries")
