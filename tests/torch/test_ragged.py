"""Batches of sequences of unlike lengths without padding: nested tensors, and cu_seqlens."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensors import equal, everything, seeded

from thinformer import ThinformerAttention

LENGTHS = (300, 0, 64, 300, 1, 17)


def tokens(lengths, heads=4, dim=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, heads, dim, dtype=torch.float64, generator=generator).to(dtype)
        for n in lengths
    ]


def jagged(sequences):
    return torch.nested.nested_tensor_from_jagged(torch.cat(sequences), cumulative(sequences))


def cumulative(sequences):
    return torch.tensor([0, *(len(x) for x in sequences)]).cumsum(0)


lengths = st.lists(st.integers(0, 70), min_size=1, max_size=4)


@pytest.mark.slow
@settings(max_examples=settings.default.max_examples // 2)
@given(lengths.filter(any), lengths, st.sampled_from(["bshd", "bhsd"]), st.sampled_from([1, 2]),
       st.sampled_from([{"g": 0}, {"size": 9}]))  # fmt: skip
@example([0, 5], [0, 0], "bshd", 1, {"g": 0})
def test_nested_batch_is_the_loop(of_keys, of_queries, layout, group, options):
    """Output, weights and positions of every sequence are those that it has alone."""
    of_queries = (of_queries * 4)[: len(of_keys)]
    query, key, value = tokens(of_queries, 2 * group), tokens(of_keys, 2), tokens(of_keys, 2, 3)
    nested = [jagged(x) for x in (query, key, value)]
    if layout == "bhsd":
        nested = [x.transpose(1, 2) for x in nested]
    options |= {"enable_gqa": True}
    got = everything(*nested, **options, layout=layout)
    output = got.output.transpose(1, 2) if layout == "bhsd" else got.output
    assert output.offsets() is nested[0].offsets()
    for b, (q, k, v) in enumerate(zip(query, key, value, strict=True)):
        if len(k) == 0:
            assert (output[b] == 0).all()
            assert (got.indices[b] == -1).all()
            continue
        alone = everything(q[None], k[None], v[None], **options)
        n = alone.indices.shape[-1]
        equal(output[b], alone.output[0])
        equal(got.weights[b, :, : len(q), :n], alone.weights[0])
        assert (got.weights[b, :, len(q) :] == 0).all()
        assert (got.weights[b, ..., n:] == 0).all()
        assert torch.equal(got.indices[b, :, :n], alone.indices[0])


def test_nested_batch_is_the_padded_one():
    """The same keys as in a padded batch with a mask."""
    key, value = tokens(LENGTHS), tokens(LENGTHS, seed=1)
    got = everything(jagged(key), jagged(key), jagged(value), g=1)
    dense = [torch.nn.utils.rnn.pad_sequence(x, batch_first=True) for x in (key, value)]
    mask = torch.arange(300) >= torch.tensor(LENGTHS)[:, None]
    expected = everything(dense[0], *dense, g=1, key_padding_mask=mask)
    assert torch.equal(got.indices, expected.indices)
    equal(got.output.values(), expected.output[~mask])


def test_cu_seqlens():
    """Packed tensors as FlashAttention takes them, int32 offsets; another length of queries."""
    query, key, value = tokens((7, 0, 300)), tokens((64, 300, 20)), tokens((64, 300, 20), seed=1)
    packed = [
        torch.nested.nested_tensor_from_jagged(torch.cat(x), cumulative(x).int())
        for x in (query, key, value)
    ]
    output = seeded(*packed).values()
    expected = [
        seeded(*(x[None] for x in sequence))[0] for sequence in zip(query, key, value, strict=True)
    ]
    equal(output, torch.cat(expected))


def test_nested_keys_and_dense_queries():
    """A set of latents that attends to each of many unlike sequences; and the reverse."""
    latents, key = torch.randn(3, 5, 4, 8, dtype=torch.float64), tokens((64, 300, 20))
    output = seeded(latents, jagged(key), jagged(key))
    for b in range(3):
        equal(output[b], seeded(latents[b : b + 1], key[b][None], key[b][None])[0])
    nested = seeded(jagged(key), latents, latents)
    for b in range(3):
        equal(nested[b], seeded(key[b][None], latents[b : b + 1], latents[b : b + 1])[0])


def test_nested_tensors_with_gaps():
    """As torch.nested.narrow leaves them; what lies in the gaps has no influence."""
    dense = torch.randn(2, 300, 4, 8, dtype=torch.float64)
    dense[0, 290:] = float("nan")
    start, length = torch.tensor([0, 100]), torch.tensor([290, 200])
    gaps = torch.nested.narrow(dense, 1, start, length, layout=torch.jagged)
    output = seeded(gaps, gaps, gaps)
    for b in range(2):
        x = dense[b : b + 1, start[b] : start[b] + length[b]]
        equal(output[b], seeded(x, x, x)[0])


def test_gradients_of_nested_tensors():
    sequences = tokens((64, 0, 20))
    gradients = []
    for nested in (True, False):
        leaves = [x.clone().requires_grad_() for x in sequences]
        if nested:
            x = jagged(leaves)
            seeded(x, x, x, size=8).values().square().sum().backward()
        else:
            for x in leaves[::2]:
                seeded(*[x[None]] * 3, size=8).square().sum().backward()
        gradients.append([x.grad for x in leaves[::2]])
    for got, expected in zip(*gradients, strict=True):
        assert expected.abs().max() > 0
        equal(got, expected)


def test_nested_tensors_that_do_not_fit_raise():
    dense = torch.randn(2, 9, 4, 8, dtype=torch.float64)
    ragged = jagged(tokens((9, 5)))
    of_one_head = jagged([x[:, 0] for x in tokens((9, 5))])
    mask = torch.zeros(2, 9, dtype=torch.bool)
    for tensors, options, message in [
        ((ragged, ragged, dense), {}, "^value must be nested like key"),
        ((ragged, dense, ragged), {}, "^key must be nested like value"),
        ((ragged, ragged, jagged(tokens((8, 6)))), {},
         r"^value must have the lengths of key, \[9, 5\]; got \[8, 6\]"),
        ((ragged, ragged, ragged), {"key_padding_mask": mask}, "^key_padding_mask must be None"),
        ((ragged, ragged, ragged), {"attn_mask": mask[:, None, None]}, "^attn_mask must be None"),
        ((ragged, ragged, ragged), {"layout": "bhsd"}, r"^query must have shape \(B, H, j, dim\)"),
        ((dense, ragged.transpose(1, 2), ragged), {}, r"^key must have shape \(B, j, H, dim\)"),
        ((dense, of_one_head, ragged), {}, r"^key must have shape \(B, j, H, dim\)"),
        ((dense[:1], ragged, ragged), {}, "^query must have shape .* with the B and E of key"),
        ((ragged, jagged(tokens((0, 0))), jagged(tokens((0, 0)))), {}, "at least one token"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            seeded(*tensors, **options)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_that_are_not_taken_raise():
    strided = torch.nested.nested_tensor(tokens((9, 5)), layout=torch.strided)
    with pytest.raises(NotImplementedError, match="^query is a nested tensor of the layout"):
        seeded(strided, strided, strided)
    with pytest.raises(NotImplementedError, match="^query is a nested tensor.* pad it"):
        ThinformerAttention()(*[jagged(tokens((9, 5)))] * 3)
