"""`thinformer_attention`; tests are named after what people complain of in attention libraries."""

import numpy as np
import pytest
import torch
from tensors import drawn, equal, everything, exact, padding, qkv, seeded
from torch.utils.checkpoint import checkpoint

from thinformer import ThinformerAttention, attention, coreset_size, thinformer_attention


def test_as_the_module_and_the_numpy_function():
    query, key, value = qkv()
    got = everything(query, key, value, g=1)
    module = ThinformerAttention(1, generator=torch.Generator().manual_seed(0))
    output, weights = module(query, key, value)
    assert torch.equal(got.output, output)
    assert torch.equal(got.weights, weights)
    expected = attention(*(x.numpy() for x in (query, key, value)), g=1, rng=drawn(),
                         return_indices=True)  # fmt: skip
    assert np.array_equal(got.indices, expected.indices)
    equal(got.output, torch.from_numpy(expected.output))
    equal(seeded(query, key, value, g=1), output)  # by SDPA
    assert seeded(query, key, value, g=1, return_indices=True).weights is None
    assert seeded(query, key, value, g=1, return_weights=True).indices is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [False, True])
def test_size_at_least_S_is_exact(dtype, weights):
    query, key, value = qkv(dtype=dtype, H_kv=2)
    mask = padding(300, 300, 123)
    got = seeded(query, key, value, size=300, key_padding_mask=mask, enable_gqa=True, scale=0.2,
                 return_weights=weights)  # fmt: skip
    output = got.output if weights else got
    expected = exact(query, key, value, attn_mask=~mask[:, None, None], enable_gqa=True, scale=0.2)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key_padding_mask": torch.ones(2, 300)}, TypeError,
         "^key_padding_mask must be bool, True where a key is padding; got dtype torch.float32"),
        ({"key_padding_mask": torch.ones(2, 300, dtype=torch.long)}, TypeError,
         "attention_mask == 0"),
        ({"key_padding_mask": torch.ones(2, 7, dtype=torch.bool)}, ValueError,
         r"^key_padding_mask must have shape \(B, S\) = \(2, 300\); got shape \(2, 7\)"),
        ({"attn_mask": torch.ones(2, 300, dtype=torch.bool)}, ValueError,
         r"^attn_mask must broadcast to \(B, H, T, S\) = \(2, 4, 7, 300\); got shape \(2, 300\)"),
        ({"attn_mask": torch.ones(300, dtype=torch.uint8)}, TypeError, "^attn_mask must be bool"),
        ({"attn_mask": [True]}, TypeError, "^attn_mask must be a torch.Tensor; got list"),
        ({"key_padding_mask": torch.ones(2, 300, dtype=torch.bool, device="meta")}, ValueError,
         "^key_padding_mask must be on the device of key, cpu; got meta"),
        ({"layout": "bhse"}, ValueError, "^layout must be one of 'bshd', 'bhsd'; got 'bhse'"),
        ({"dropout_p": 1.0}, ValueError, r"^dropout_p must lie in \[0, 1\); got 1.0"),
        ({"is_causal": 1}, TypeError, "^is_causal must be True or False; got 1"),
        ({"generator": 3}, TypeError, "^generator must be a torch.Generator or None; got 3"),
        ({"g": -1}, ValueError, "^g must be"),
        ({"size": 0}, ValueError, "^size must be"),
        ({"scale": -1}, ValueError, "^scale must be"),
    ],
)  # fmt: skip
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        thinformer_attention(*qkv(), **options)


def test_layouts_are_not_confused():
    """The same numbers in either layout; an error shows the layout that was read."""
    query, key, value = qkv(H_kv=2)
    expected = everything(query, key, value, enable_gqa=True)
    tensors = [x.transpose(1, 2) for x in (query, key, value)]
    for arguments in (tensors, [x.contiguous() for x in tensors]):
        got = everything(*arguments, layout="bhsd", enable_gqa=True)
        assert torch.equal(got.output.transpose(1, 2), expected.output)
        assert torch.equal(got.weights, expected.weights)
        assert torch.equal(got.indices, expected.indices)
    with pytest.raises(ValueError, match=r"^value must have shape \(B, H, S, D\) with"):
        seeded(tensors[0], tensors[1], value, layout="bhsd")
    with pytest.raises(ValueError, match=r"^query must have the 2 heads of key unless enable_gqa"):
        seeded(query, key, value)


def test_grouped_heads_are_thinned_once_a_key_value_head():
    query, key, value = qkv(H=6, H_kv=2)
    mask = padding(300, 300, 200)
    got = everything(query, key, value, enable_gqa=True, key_padding_mask=mask)
    assert got.indices.shape == (2, 2, 64)
    assert got.weights.shape == (2, 6, 7, 64)
    for h in range(6):
        rows = got.indices[:, h // 3]
        assert (rows >= 0).sum() == 64 + 32
        k, v = (x[:, :, h // 3].gather(1, rows.clamp(min=0)[..., None].expand(-1, -1, x.shape[-1]))
                for x in (key, value))  # fmt: skip
        by_hand = exact(query[:, :, h, None], k[:, :, None], v[:, :, None],
                        attn_mask=(rows >= 0)[:, None, None])  # fmt: skip
        equal(got.output[:, :, h], by_hand[:, :, 0])


def test_head_counts_that_do_not_divide_raise():
    with pytest.raises(ValueError, match="^query must have a multiple of the 3 heads"):
        seeded(*qkv(H_kv=3), enable_gqa=True)


@pytest.mark.parametrize("S", [1, 2, 3, 17, 63, 65, 1000, 1025])
def test_any_length_not_only_multiples_of_a_bucket(S):
    for g in (0, 2):
        got = everything(*qkv(S=S), g=g)
        assert got.indices.shape[-1] == coreset_size(S, g)
        assert (got.indices.diff(dim=-1) > 0).all()


@pytest.mark.parametrize("kinds", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_duplicate_keys_are_not_nan(kinds, dtype):
    """Thresholds of pairs at distance 0 are 0."""
    query, key, value = (x[:, :1].expand_as(x).clone() for x in qkv(dtype=dtype))
    key[:, ::3] += kinds - 1
    got = seeded(query, key, value, g=0)
    equal(got, value[:, :1].expand_as(got), rtol=1e-3, atol=1e-3)  # the mean of equal values


def test_empty():
    query, key, value = qkv()
    mask = padding(300, 300, 100)
    assert seeded(query[:, :0], key, value, key_padding_mask=mask).shape == (2, 0, 4, 5)
    assert seeded(
        query[:, :0], key, value, attn_mask=torch.ones(0, 300, dtype=torch.bool)
    ).shape == (2, 0, 4, 5)
    got = everything(query[:0], key[:0], value[:0], key_padding_mask=mask[:0])
    assert got.output.shape == (0, 7, 4, 5)
    assert got.indices.shape == (0, 4, 64)


def test_weights_are_returned():
    query, key, value = qkv()
    got = everything(query, key, value)
    equal(got.weights.sum(-1), torch.ones(2, 4, 7, dtype=torch.float64))
    rows = got.indices[..., None].expand(-1, -1, -1, 5)
    equal(got.output.transpose(1, 2), got.weights @ value.transpose(1, 2).gather(2, rows))


def test_dropout_drops_weights_and_keeps_the_mean():
    query, key, value = qkv(B=1, T=2000, H=1, H_kv=1)
    plain = everything(query, key, value)
    for weights in (False, True):
        torch.manual_seed(0)
        got = seeded(query, key, value, dropout_p=0.5, return_weights=weights)
        output = got.output if weights else got
        assert not torch.allclose(output, plain.output)
        equal(output.mean(1), plain.output.mean(1), rtol=0, atol=0.03)
        if weights:
            assert torch.equal(got.weights, plain.weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_chooses_in_float32(dtype):
    query, key, value = qkv(dtype=dtype)
    mask = padding(300, 300, 100)
    got = everything(query, key, value, key_padding_mask=mask)
    same = everything(query.float(), key.float(), value.float(), key_padding_mask=mask)
    assert got.output.dtype == got.weights.dtype == dtype
    assert torch.equal(got.indices, same.indices)
    equal(got.output.float(), same.output, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("norm", [1.0, 1e3])
@pytest.mark.parametrize("weights", [False, True])
def test_float16_with_large_norms_and_masks_has_finite_gradients(norm, weights):
    query, key, value = qkv(dtype=torch.float16)
    tensors = [x * (norm / x.norm(dim=-1, keepdim=True)) for x in (query, key, value)]
    tensors = [x.detach().requires_grad_() for x in tensors]
    got = seeded(*tensors, key_padding_mask=padding(300, 300, 100), return_weights=weights)
    output = got.output if weights else got
    output.float().square().mean().backward()
    assert output.isfinite().all()
    assert all(x.grad.isfinite().all() for x in tensors)


def test_autocast_takes_what_sdpa_takes():
    """Rotary embeddings leave query and key in float32 beside a value in bfloat16."""
    query, key, value = qkv(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = seeded(query, key, value.bfloat16())
        whole = seeded(query, key, value)
    expected = seeded(*(x.bfloat16() for x in (query, key, value)))
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, expected)
    equal(whole.float(), seeded(query, key, value), rtol=0.02, atol=0.02)
    with pytest.raises(TypeError, match="must have one dtype; got .*value torch.bfloat16"):
        seeded(query, key, value.bfloat16())


@pytest.mark.slow
@pytest.mark.parametrize("weights", [False, True])
def test_gradcheck(weights):
    tensors = [x.requires_grad_() for x in qkv(T=2, S=8, H=2, E=2, D=1, H_kv=1)]

    def forward(*tensors):
        got = seeded(*tensors, size=3, enable_gqa=True, key_padding_mask=padding(8, 8, 5),
                     return_weights=weights)  # fmt: skip
        return got.output if weights else got

    assert torch.autograd.gradcheck(forward, tensors)


def test_gradients_reach_kept_keys_only():
    query, key, value = (x.requires_grad_() for x in qkv())
    got = seeded(query, key, value, key_padding_mask=padding(300, 300, 100), return_indices=True)
    got.output.sum().backward()
    for b in range(2):
        for h in range(4):
            reached = (value.grad[b, :, h] != 0).any(-1).nonzero()[:, 0]
            kept = got.indices[b, h][got.indices[b, h] >= 0]
            assert torch.equal(reached, kept)


def test_checkpoint_recomputes_the_same_choice():
    """With torch's own generator, whose state it restores."""
    gradients = []
    for recompute in (False, True):
        query, key, value = (x.requires_grad_() for x in qkv())
        torch.manual_seed(0)
        if recompute:
            output = checkpoint(thinformer_attention, query, key, value, use_reentrant=False)
        else:
            output = thinformer_attention(query, key, value)
        torch.rand(3)  # the generator goes on between forward and backward
        output.square().sum().backward()
        gradients.append([x.grad for x in (query, key, value)])
    assert all(map(torch.equal, *gradients))
