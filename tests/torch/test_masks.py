"""Masks, padding and layouts of `thinformer_attention`: nothing behind a mask counts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensors import by_layer, equal, everything, exact, padding, qkv, seeded

from thinformer import coreset_size
from thinformer.torch.attend import few, landmarks


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


@pytest.mark.slow
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


@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("correction", [None, "nystrom", "queries"])
def test_a_short_sequence_that_may_be_there_costs_nothing(correction, learning, monkeypatch):
    """Of `min_length` - 1 slots, which a mask may fill, those of the longest coreset are computed.

    The results have all of them.
    """
    slots = []
    for module in (few, landmarks):
        attend = module.scaled_dot_product_attention

        def counted(query, key, *arguments, attend=attend, **options):
            slots.append(key.shape[2])
            return attend(query, key, *arguments, **options)

        monkeypatch.setattr(module, "scaled_dot_product_attention", counted)
    tensors = [x.requires_grad_(learning) for x in qkv(S=300, B=2)]
    options = {"size": 20, "correction": correction, "min_length": 250}
    mask = padding(300, 300, 260)
    by_layer(*tensors, mask=mask, **options)
    compiled = correction is not None and not learning
    assert slots == ([] if compiled else [20])
    got = by_layer(*tensors, mask=mask, weights=True, **options)
    assert got.weights.shape[-1] == got.indices.shape[-1] == 249
    assert (got.indices[..., :20] >= 0).all()
    assert (got.indices[..., 20:] == -1).all()
    assert (got.weights[..., 20:] == 0).all()
    by_layer(*tensors, mask=padding(300, 300, 200), **options)
    assert slots == ([] if compiled else [20, 200])
