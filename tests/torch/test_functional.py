"""`thinformer_attention`; tests are named after what people complain of in attention libraries."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from compiling import compiled, graph_breaks
from hypothesis import given
from hypothesis import strategies as st
from tensors import drawn, equal, everything, exact, padding, qkv, seeded
from torch.utils.checkpoint import checkpoint

from thinformer import ThinformerAttention, attention, coreset_size, thinformer_attention
from thinformer.halving.plan import plan
from thinformer.torch.choose.operators import keys_kept, select


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


@st.composite
def batches(draw):
    S = draw(st.integers(1, 90))
    B, H_kv = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    shape = {
        "B": B, "T": draw(st.integers(0, 3)), "S": S, "H": H_kv * draw(st.integers(1, 2)),
        "H_kv": H_kv, "E": draw(st.integers(1, 5)), "D": draw(st.integers(1, 5)),
        "dtype": draw(st.sampled_from([torch.float32, torch.float64])),
    }  # fmt: skip
    kind = draw(st.sampled_from(["left", "right", "holes"]))
    some = st.sampled_from(draw(st.lists(st.integers(0, S), min_size=1, max_size=3)))
    lengths = draw(st.lists(some, min_size=B, max_size=B))  # often equal
    mask = padding(S, *lengths)
    if kind == "left":
        mask = mask.flip(1)
    elif kind == "holes":
        rng = np.random.default_rng(S)
        mask = torch.stack([row[torch.from_numpy(rng.permutation(S))] for row in mask])
    given = {"g": draw(st.integers(0, 2)), "size": draw(st.none() | st.integers(1, 30))}
    return shape, mask, given, draw(st.sampled_from(["bshd", "bhsd"])), draw(st.booleans())


@given(batches())
def test_padded_batch_is_the_ragged_loop(batch):
    """Each sequence of a padded batch: the keys and output it has alone, whatever the padding."""
    shape, mask, given, layout, as_attn_mask = batch
    query, key, value = qkv(**shape)
    key[mask], value[mask] = float("nan"), float("inf")
    masks = {"key_padding_mask": mask}
    if as_attn_mask:
        masks = {"attn_mask": torch.zeros(mask.shape).masked_fill(mask, -torch.inf)[:, None, None]}
    tensors = [x.transpose(1, 2) if layout == "bhsd" else x for x in (query, key, value)]
    got = everything(*tensors, **given, **masks, layout=layout, enable_gqa=True)
    output = got.output.transpose(1, 2) if layout == "bhsd" else got.output
    by_sdpa = seeded(*tensors, **given, **masks, layout=layout, enable_gqa=True)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if shape["dtype"] == torch.float32 else {}
    equal(by_sdpa, got.output, **tolerance)
    for b, there in enumerate(~mask):
        if not there.any():
            assert (output[b] == 0).all()
            assert (got.weights[b] == 0).all()
            assert (got.indices[b] == -1).all()
            continue
        alone = everything(query[b : b + 1], key[b : b + 1, there], value[b : b + 1, there],
                           **given, enable_gqa=True)  # fmt: skip
        n = alone.indices.shape[-1]
        assert torch.equal(got.indices[b, :, :n], there.nonzero()[:, 0][alone.indices[0]])
        assert (got.indices[b, :, n:] == -1).all()
        equal(output[b], alone.output[0], **tolerance)
        equal(got.weights[b, ..., :n], alone.weights[0], **tolerance)
        assert (got.weights[b, ..., n:] == 0).all()


def test_padding_does_not_change_the_size_a_length_earns():
    query, key, value = qkv(B=3, S=1024)
    got = everything(query, key, value, g=0, key_padding_mask=padding(1024, 1024, 300, 7))
    assert (got.indices >= 0).sum(-1)[:, 0].tolist() == [32, 16, 2]
    assert [coreset_size(n, 0) for n in (1024, 300, 7)] == [32, 16, 2]


def test_pad_tokens_are_not_folded_into_the_kept_keys():
    """Nor do they scale the kernel: huge values behind the mask choose the same keys."""
    query, key, value = qkv()
    mask = padding(300, 300, 150).flip(1)
    expected = everything(query, key, value, key_padding_mask=mask)
    key[mask] *= 1e6
    value[mask] *= 1e6
    got = everything(query, key, value, key_padding_mask=mask)
    assert torch.equal(got.indices, expected.indices)
    assert torch.equal(got.output, expected.output)
    assert not mask[1][got.indices[1][got.indices[1] >= 0]].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("weights", [False, True])
def test_nan_behind_a_mask_contaminates_nothing(bad, weights):
    """Neither output nor gradients; one sequence is masked entirely."""
    mask = padding(300, 300, 150, 0)
    clean, broken = [], []
    for tensors, number in ((clean, 0.0), (broken, bad)):
        tensors.extend(qkv(B=3))
        for x in tensors[1:]:
            x[mask] = number
        for x in tensors:
            x.requires_grad_()
        got = seeded(*tensors, key_padding_mask=mask, return_weights=weights)
        (got.output if weights else got).square().sum().backward()
        tensors.append(got.output if weights else got)
    for x, y in zip(clean[:3], broken[:3], strict=True):
        assert torch.equal(x.grad, y.grad)
    assert torch.equal(clean[3], broken[3])
    assert (broken[3][2] == 0).all()
    assert broken[0].grad[2].isfinite().all()
    assert (broken[1].grad[mask] == 0).all()


def test_nan_that_counts_is_not_hidden():
    """It spoils the output of its head, and of all query heads that share it, and nothing else."""
    query, key, value = qkv(H_kv=2)
    key[1, 5, 1, 0] = float("nan")
    mask = padding(300, 300, 150)
    output = seeded(query, key, value, enable_gqa=True, key_padding_mask=mask)
    spoiled = torch.zeros(2, 7, 4, 5, dtype=torch.bool)
    spoiled[1, :, 2:] = True
    assert torch.equal(torch.isnan(output), spoiled)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_fully_masked_rows_are_zeros_not_nan(dtype):
    query, key, value = qkv(dtype=dtype)
    got = everything(query, key, value, key_padding_mask=padding(300, 300, 0))
    assert (got.output[1] == 0).all()
    assert (got.weights[1] == 0).all()
    assert got.output[0].isfinite().all()


def test_key_padding_mask_is_not_applied_to_queries():
    """T != S, and T = S: every query of a padded sequence has an output."""
    for T in (3, 300, 500):
        query, key, value = qkv(T=T)
        output = seeded(query, key, value, size=300, key_padding_mask=padding(300, 300, 20))
        equal(output, exact(query, key, value, attn_mask=~padding(300, 300, 20)[:, None, None]))


def test_masks_of_every_form_and_stride_say_the_same():
    query, key, value = qkv()
    mask = padding(300, 300, 150)
    expected = seeded(query, key, value, key_padding_mask=mask)
    there = ~mask[:, None, None]
    additive = torch.zeros(there.shape).masked_fill(~there, -torch.inf)
    least = torch.zeros(there.shape, dtype=torch.float16).masked_fill(
        ~there, torch.finfo(torch.float16).min
    )
    odd = torch.cat([~there, there, there], dim=-1)[..., 300:600]  # 900 and 1 apart
    given = (there, there.expand(2, 4, 7, 300), there.repeat(1, 4, 7, 1), additive, least, odd)
    for attn_mask in given:
        assert torch.equal(seeded(query, key, value, attn_mask=attn_mask), expected)
    both = {"key_padding_mask": padding(300, 300, 200), "attn_mask": ~padding(300, 250)}
    of_both = seeded(query, key, value, **both)
    assert torch.equal(of_both, seeded(query, key, value, key_padding_mask=padding(300, 250, 200)))
    nothing = torch.ones(1, 1, dtype=torch.bool)
    assert torch.equal(seeded(query, key, value, attn_mask=nothing), seeded(query, key, value))


QUERIES = torch.ones(7, 300, dtype=torch.bool).tril()
HEADS = torch.ones(4, 1, 300, dtype=torch.bool)
HEADS[2, 0, 5] = False


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"is_causal": True}, "^is_causal must be False"),
        ({"attn_mask": QUERIES}, "^attn_mask differs by query"),
        ({"attn_mask": torch.zeros(7, 300).masked_fill(~QUERIES, -torch.inf)}, "differs by query"),
        ({"attn_mask": HEADS}, "^attn_mask differs by head"),
        ({"attn_mask": torch.full((1, 300), 0.5)}, "^attn_mask is a bias"),
        ({"attn_mask": torch.full((1, 300), -1e4)}, "^attn_mask is a bias"),
        ({"attn_mask": torch.full((1, 300), float("nan"))}, "^attn_mask is a bias"),
        ({"attn_mask": torch.zeros(1, 300, requires_grad=True)}, "^attn_mask is a bias"),
    ],
)
def test_masks_are_never_silently_ignored(options, message):
    with pytest.raises(NotImplementedError, match=message) as error:
        seeded(*qkv(), **options)
    assert "attn_mask" not in options or "key_padding_mask (B, S)" in str(error.value)


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
    assert seeded(query[:, :0], key, value, attn_mask=QUERIES[:0]).shape == (2, 0, 4, 5)
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


@pytest.mark.parametrize("weights", [False, True])
def test_gradcheck(weights):
    tensors = [x.requires_grad_() for x in qkv(T=2, S=12, H=2, E=3, D=2, H_kv=1)]

    def forward(*tensors):
        got = seeded(*tensors, size=4, enable_gqa=True, key_padding_mask=padding(12, 12, 5),
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


@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked):
    _, key, value = qkv(dtype=torch.float32)
    valid = ~padding(300, 300, 150) if masked else None
    for tensors in ((key, value), (key.half(), value.half())):
        arguments = (*tensors, valid, torch.tensor(5), 1, None, 0.3, "even", 160)
        assert set(torch.library.opcheck(select, arguments).values()) == {"SUCCESS"}


def test_shapes_are_as_planned():
    for pre_thin in ("even", "stride"):
        for g in (0, 1, 3):
            for S in range(1, 600):
                for size in (None, 1, 20, 300):
                    planned = plan(S, g, size, 0.5, pre_thin).schedule.size
                    assert keys_kept(S, g, size, pre_thin, 0, False) == planned
    assert keys_kept(300, 2, None, "even", 300, True) == 299
    assert keys_kept(300, 2, None, "even", 300, False) == 64
    assert keys_kept(300, 10**9, None, "even", 0, False) == 300


def test_compile_breaks_no_graph():
    query, key, value = qkv()
    mask = padding(300, 300, 150)

    def function(query, key, value, mask):
        return thinformer_attention(query, key, value, g=1, key_padding_mask=mask,
                                    attn_mask=~mask[:, None, None], return_weights=True,
                                    return_indices=True)  # fmt: skip

    fast, counter = compiled(function)
    torch.manual_seed(0)
    expected = function(query, key, value, mask)
    torch.manual_seed(0)
    got = fast(query, key, value, mask)
    assert all(map(torch.equal, got, expected))
    assert counter.frame_count == 1
    assert graph_breaks() == 0


def test_compiled_gradients():
    query, key, value = qkv()
    gradients = []
    for function in (thinformer_attention, compiled(thinformer_attention)[0]):
        tensors = [x.clone().requires_grad_() for x in (query, key, value)]
        torch.manual_seed(0)
        function(*tensors).square().sum().backward()
        gradients.append([x.grad for x in tensors])
    for got, expected in zip(*gradients, strict=True):
        equal(got, expected)


def test_compile_takes_changing_lengths_without_compiling_again():
    """Across powers of four, the size, and where nothing is thinned; padded and not."""
    for masked, options in ((False, {}), (True, {"size": 100})):
        fast, counter = compiled(thinformer_attention, dynamic=True)
        graphs = []
        for S in (300, 700, 1023, 1024, 4100, 101, 99, 64, 17, 2):
            tensors = qkv(S=S)
            if masked:
                options["key_padding_mask"] = padding(S, S, S // 2)
            torch.manual_seed(S)
            expected = thinformer_attention(*tensors, **options)
            torch.manual_seed(S)
            equal(fast(*tensors, **options), expected)
            graphs.append(counter.frame_count)
        assert graphs[0] == graphs[-1]


def test_compile_does_not_guess_about_masks():
    fast, _ = compiled(thinformer_attention)
    with pytest.raises(Exception, match="cannot be under torch.compile: give it as bool"):
        fast(*qkv(), attn_mask=torch.ones(7, 300, dtype=torch.bool))


def test_export_with_a_dynamic_length():
    class Model(torch.nn.Module):
        def forward(self, query, key, value):
            return thinformer_attention(query, key, value, g=1)

    S = torch.export.Dim("S", min=2, max=100_000)
    shapes = ({1: torch.export.Dim("T")}, {1: S}, {1: S})
    exported = torch.export.export(Model(), tuple(qkv()), dynamic_shapes=shapes).module()
    for length in (700, 20, 5000):
        tensors = qkv(S=length, T=9)
        torch.manual_seed(0)
        expected = thinformer_attention(*tensors, g=1)
        torch.manual_seed(0)
        equal(exported(*tensors), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap():
    tensors = [torch.stack([a, b, c]) for a, b, c in zip(*(qkv(seed=i) for i in range(3)),
                                                         strict=True)]  # fmt: skip
    masks = torch.stack([padding(300, 300, n) for n in (10, 200, 0)])

    def function(query, key, value, mask):
        return thinformer_attention(query, key, value, key_padding_mask=mask)

    torch.manual_seed(0)
    got = torch.vmap(function, randomness="same")(*tensors, masks)
    for i in range(3):
        torch.manual_seed(0)
        equal(got[i], function(*(x[i] for x in tensors), masks[i]))


STEP = """
import sys
import torch
from thinformer import thinformer_attention

rank, store, result = int(sys.argv[1]), *sys.argv[2:]
torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 24))
query, key, value = model(torch.randn(2, 300, 4, 8)[rank : rank + 1]).chunk(3, dim=-1)
torch.manual_seed(1)
thinformer_attention(query, key, value).square().mean().backward()
torch.save(model.module.weight.grad, result)
torch.distributed.destroy_process_group()
"""


def test_two_processes_train_as_one(tmp_path):
    """Gradients of two sequences in two processes of DDP, and of both in one."""
    store, results = f"file://{tmp_path / 'store'}", [tmp_path / "0", tmp_path / "1"]
    processes = [
        subprocess.Popen([sys.executable, "-c", STEP, str(rank), store, str(result)])
        for rank, result in enumerate(results)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    of_two = [torch.load(result) for result in results]
    torch.manual_seed(0)
    project = torch.nn.Linear(8, 24)
    query, key, value = project(torch.randn(2, 300, 4, 8)).chunk(3, dim=-1)
    torch.manual_seed(1)
    thinformer_attention(query, key, value).square().mean().backward()
    assert torch.equal(*of_two)
    equal(of_two[0], project.weight.grad, rtol=1e-4, atol=1e-7)
