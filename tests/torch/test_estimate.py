"""The estimate of an output's error, against the error."""

import numpy as np
import pytest
import torch
from compiling import compiled, graph_breaks
from estimates import CORRECTIONS, corrections, equal, estimated
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import exact, padding, qkv, sample_at_most, seeded
from torch.utils.checkpoint import checkpoint

from thinformer import ThinformerAttention, coreset_size, thinformer_attention
from thinformer.data import ACTIVATIONS, load_activations
from thinformer.torch.attend.estimate import QUERIES, draw_queries, estimate_error
from thinformer.torch.choose.heads import Heads


def relative(output, expected, asked=None):
    """The error of each head, (B, H), over the queries asked, (B, T)."""
    if asked is not None:
        output, expected = (x.masked_fill(~asked[..., None, None], 0) for x in (output, expected))
    off, norm = ((x.double().square().sum((1, 3))).sqrt() for x in (output - expected, expected))
    return torch.where(off == 0, 0, off / norm)


@st.composite
def batches(draw):
    S, H_kv = draw(st.integers(1, 60)), draw(st.integers(1, 2))
    shape = {
        "B": draw(st.integers(1, 3)), "S": S, "T": draw(st.integers(0, QUERIES) | st.just(S)),
        "H": H_kv * draw(st.integers(1, 2)), "H_kv": H_kv, "E": draw(st.integers(1, 5)),
        "D": draw(st.integers(1, 5)),
    }  # fmt: skip
    lengths = draw(st.lists(st.integers(0, min(S, QUERIES)), min_size=3, max_size=3))
    mask = padding(S, *lengths[: shape["B"]])
    mask = mask[:, np.random.default_rng(S).permutation(S)] if draw(st.booleans()) else mask
    options = {
        "g": draw(st.integers(0, 1)), "size": draw(st.none() | st.integers(1, 30)),
        "correction": draw(st.sampled_from(CORRECTIONS)), "layout": draw(st.sampled_from(
            ["bshd", "bhsd"])), "scale": draw(st.sampled_from([None, 0.3])),
    }  # fmt: skip
    return shape, mask, options


@pytest.mark.slow
@settings(max_examples=settings.default.max_examples // 5)
@given(batches())
def test_of_few_queries_it_is_the_error(batch):
    """All of them were fitted to by "queries"; those behind the mask, where T = S, do not count."""
    shape, mask, options = batch
    tensors = qkv(**shape)
    for x in tensors[1:]:
        x[mask] = float("nan")
    asked = ~mask if shape["T"] == shape["S"] else None
    turned = [x.transpose(1, 2) if options["layout"] == "bhsd" else x for x in tensors]
    got = estimated(*turned, **options, key_padding_mask=mask, enable_gqa=True)
    output = got.output.transpose(1, 2) if options["layout"] == "bhsd" else got.output
    expected = relative(output, exact(*tensors, mask, scale=options["scale"]), asked)
    for b, length in enumerate((~mask).sum(1).tolist()):
        kept = options["size"] or coreset_size(max(length, 1), options["g"])
        if kept >= length:
            assert (got.error_estimate[b] == 0).all()  # to the last digit
            expected[b] = 0
    equal(got.error_estimate, expected)
    assert got.error_estimate.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("correction", "within"), [(None, 0.15), ("nystrom", 1 / 3), ("queries", 1 / 3)]
)
def test_on_activations(correction, within):
    """Of 32 queries of hundreds: what the documentation says of it."""
    of_squares, close, seen = [], 0, 0
    for name in ACTIVATIONS:
        for arrays in load_activations(name).values():
            tensors = [torch.tensor(arrays[role]).float() for role in ("query", "key", "value")]
            got = seeded(*tensors, correction=correction, return_indices=True)
            error = relative(got.output, exact(*tensors))
            for seed in range(10):
                estimate = estimate_error(
                    Heads(*tensors, None, tensors[0].shape[-1] ** -0.5), got.output, got.indices,
                    torch.tensor(seed),
                )  # fmt: skip
                of_squares.append((estimate / error).square().flatten())
                close += int(((estimate / error - 1).abs() <= within).sum())
                seen += estimate.numel()
    assert close > 0.9 * seen
    assert torch.cat(of_squares).mean() == pytest.approx(1, abs=0.06)  # neither high nor low


@pytest.mark.slow
def test_queries_of_a_fit_do_not_flatter_it():
    """Nor any others: of many estimates the mean is the error of all queries, fitted to or not."""
    tensors = qkv(B=1, T=250, S=256, H=2)
    got = seeded(*tensors, correction="queries", size=32, return_indices=True)
    off = (got.output - exact(*tensors)).square().sum(-1)[0]  # 96 are fitted to, and exact
    heads = Heads(*tensors, None, 8**-0.5)
    estimates = torch.stack(
        [estimate_error(heads, got.output, got.indices, torch.tensor(seed)) for seed in range(400)]
    )
    assert (off.max(0)[0] > 3 * off.mean(0)).all()
    error = relative(got.output, exact(*tensors))
    equal(estimates.square().mean(0), error.square(), rtol=0.03, atol=0)


@pytest.mark.parametrize("T", [8, 31, 32, 33, 100, 1000])
def test_queries_are_one_of_each_stratum(T):
    """Of a sequence's own queries: those it has alone, wherever they stand in a padded batch."""
    asked = torch.rand(3, T, generator=torch.Generator().manual_seed(0)) < torch.tensor(
        [[1.0], [0.4], [0.0]]
    )
    rows = torch.arange(T)
    drawn = [
        draw_queries(B, n, 2, mask, torch.tensor(1))
        for B, n, mask in ((3, T, asked), *((1, int(there.sum()), None) for there in asked[:2]))
    ]  # fmt: skip
    positions, counted = drawn[0]
    for b in range(2):
        alone, counted_alone = drawn[1 + b]
        there, few = rows[asked[b]], counted[b]
        assert torch.equal(few, counted_alone[0])
        assert torch.equal(positions[b][:, few], there[alone[0]][:, few])
        n = len(there)
        assert few.sum() == min(n, QUERIES)
        for head in alone[0]:
            at = head[few].sort()[0]
            gaps = torch.cat([at, at[:1] + n]).diff()
            assert (gaps > 0).all()
            assert gaps.max() <= 2 * -(-n // QUERIES)
            assert n < 1000 or len(gaps.unique()) > 10  # anywhere in its stratum
    assert not counted[2].any()


def test_all_queries_are_as_likely():
    seen = torch.zeros(75)
    for seed in range(40):
        positions, _ = draw_queries(1, 75, 100, None, torch.tensor(seed))
        seen += positions.flatten().bincount(minlength=75)
    mean = 40 * 100 * QUERIES / 75
    assert (seen - mean).abs().max() < 4.5 * mean**0.5


@pytest.mark.slow
@corrections
def test_reproducible_and_beside_the_output(correction):
    tensors = [x.requires_grad_() for x in qkv(T=100)]
    options = {"size": 20, "correction": correction}
    got, again = (estimated(*tensors, **options) for _ in range(2))
    assert torch.equal(got.error_estimate, again.error_estimate)
    assert torch.equal(got.output, seeded(*tensors, **options))
    assert not got.error_estimate.requires_grad
    assert got.weights is got.indices is None
    whole = estimated(*tensors, **options, return_weights=True, return_indices=True)
    assert whole._fields == ("output", "weights", "indices", "error_estimate")
    assert whole.weights.shape == (2, 4, 100, 20)
    assert whole.indices.shape == (2, 4, 20)
    other = seeded(*tensors, **options, return_error_estimate=True, seed=1)
    assert not torch.equal(other.error_estimate, got.error_estimate)


@corrections
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision(dtype, correction, monkeypatch):
    """Estimates are float32, those of the output as it was rounded; autocast changes nothing."""
    sample_at_most(5, monkeypatch)
    tensors, options = qkv(dtype=dtype), {"size": 20, "correction": correction}
    got = estimated(*tensors, **options)
    assert got.error_estimate.dtype == torch.float32
    wide = [x.double() for x in tensors]
    equal(got.error_estimate, relative(got.output, exact(*wide)).float(), rtol=1e-4, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = estimated(*tensors, **options)
    expected = relative(cast.output, exact(*wide)).float()
    equal(cast.error_estimate, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_what_is_not_finite(which):
    """NaN for the heads it is in, and of no others; an infinite estimate for an exact 0."""
    names = ("query", "key", "value")
    tensors = dict(zip(names, qkv(H_kv=2), strict=True))
    clean = estimated(**tensors, enable_gqa=True).error_estimate
    tensors[which][1, 5, 1, 0] = float("nan")
    got = estimated(**tensors, enable_gqa=True).error_estimate
    spoiled = torch.zeros(2, 4, dtype=torch.bool)
    spoiled[1, {"query": [1]}.get(which, [2, 3])] = True
    equal(got, clean.masked_fill(spoiled, float("nan")), equal_nan=True)


def test_nothing_to_be_wrong_about():
    query, key, value = qkv()
    assert (estimated(query, key, value, size=300).error_estimate == 0).all()
    assert (estimated(query, key, 0 * value).error_estimate == 0).all()
    masked = estimated(query, key, value, key_padding_mask=padding(300, 0, 300)).error_estimate
    assert (masked[0] == 0).all()
    assert (masked[1] > 0).all()
    output = torch.ones_like(query[..., :1]).expand(-1, -1, -1, 5)
    indices = torch.zeros(2, 4, 1, dtype=torch.int64)
    heads = Heads(query, key, 0 * value, None, 1.0)
    off = estimate_error(heads, output, indices, torch.tensor(0))
    assert (off == torch.inf).all()


@pytest.mark.parametrize("axis", ["B", "T", "H"])
@corrections
def test_empty(axis, correction):
    tensors = qkv(**{axis: 0})
    B, T, H, _ = tensors[0].shape
    got = estimated(*tensors, correction=correction, fallback="exact", error_threshold=0)
    assert got.output.shape == (B, T, H, 5)
    assert torch.equal(got.error_estimate, torch.zeros(B, H, dtype=torch.float64))


def jagged(sequences):
    return torch.nested.nested_tensor(sequences, layout=torch.jagged)


@pytest.mark.slow
def test_nested():
    """A sequence's is that which it has alone, and its queries are its own."""
    query, key, value = (
        [qkv(B=1, T=n, S=n, seed=n)[i][0] for n in (100, 20, 300)] for i in range(3)
    )
    query[1] = query[1][:7]
    nested = [*map(jagged, (query, key, value))]
    threshold = float(estimated(*nested, size=10).error_estimate.median())
    options = {"size": 10, "fallback": "exact", "error_threshold": threshold}
    got = estimated(*nested, **options)
    for b in range(3):
        alone = estimated(query[b][None], key[b][None], value[b][None], **options)
        equal(got.error_estimate[b], alone.error_estimate[0])
        equal(got.output[b], alone.output[0])
    assert (got.error_estimate > threshold).sum() == 6


@pytest.mark.slow
@corrections
def test_checkpoint_recomputes_the_same(correction):
    module = ThinformerAttention(size=20, correction=correction, fallback="exact",
                                 error_threshold=1.2)  # fmt: skip
    gradients, estimates = [], []
    for recompute in (False, True):
        tensors = [x.requires_grad_() for x in qkv(T=100)]
        torch.manual_seed(0)
        if recompute:
            output, _ = checkpoint(module, *tensors, use_reentrant=False)
        else:
            output, _ = module(*tensors)
        estimates.append(module.last_error_estimate)
        torch.rand(3)  # the generator goes on between forward and backward
        output.square().sum().backward()
        gradients.append([x.grad for x in tensors])
    assert all(map(torch.equal, *gradients))
    assert torch.equal(*estimates)
    assert torch.equal(module.last_error_estimate, estimates[0])


@pytest.mark.slow
@pytest.mark.parametrize("correction", [None, "queries"])
def test_compile_breaks_no_graph(correction):
    module = ThinformerAttention(size=20, correction=correction, estimate_error=True)
    tensors = qkv(T=100)
    fast, counter = compiled(module)
    for _ in range(2):
        torch.manual_seed(0)
        output, _ = fast(*tensors)
        got = module.last_error_estimate
        torch.manual_seed(0)
        equal(output, module(*tensors)[0])
        equal(got, module.last_error_estimate)
        tensors[2] = tensors[2] + 1
    assert counter.frame_count == 1
    assert graph_breaks() == 0


@pytest.mark.slow
@pytest.mark.nightly
def test_compile_takes_changing_lengths_without_compiling_again():
    fast, counter = compiled(thinformer_attention, dynamic=True)
    graphs = []
    for S in (300, 20, 7):
        tensors = qkv(S=S, T=9)
        results = []
        for each in (fast, thinformer_attention):
            torch.manual_seed(0)
            results.append(each(*tensors, return_error_estimate=True))
        equal(results[0].error_estimate, results[1].error_estimate)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[-1]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap():
    tensors = [torch.stack(x) for x in zip(*(qkv(T=100, seed=i) for i in range(3)), strict=True)]
    masks = torch.stack([padding(300, 300, n) for n in (10, 200, 0)])

    def function(*tensors):
        return thinformer_attention(*tensors[:3], key_padding_mask=tensors[3],
                                    return_error_estimate=True).error_estimate  # fmt: skip

    torch.manual_seed(0)
    got = torch.vmap(function, randomness="same")(*tensors, masks)
    for i in range(3):
        torch.manual_seed(0)
        equal(got[i], function(*(x[i] for x in tensors), masks[i]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fallback": "sdpa", "error_threshold": 1}, ValueError,
         "^fallback must be one of 'exact'; got 'sdpa'"),
        ({"fallback": True, "error_threshold": 1}, ValueError, "^fallback must be one of"),
        ({"error_threshold": 0.1}, ValueError,
         "^error_threshold belongs to a fallback, which is None; got 0.1"),
        ({"fallback": "exact", "error_threshold": -0.1}, ValueError,
         "^error_threshold must not be negative; got -0.1"),
        ({"fallback": "exact", "error_threshold": float("nan")}, ValueError,
         "^error_threshold must be finite; got nan"),
        ({"fallback": "exact", "error_threshold": "0.1"}, ValueError,
         "^error_threshold must be finite"),
    ],
)  # fmt: skip
def test_bad_arguments(options, error, message):
    """(A fallback without a threshold has one of 0.4: tests/attending/test_options.py.)"""
    with pytest.raises(error, match=message):
        thinformer_attention(*qkv(), **options)
    with pytest.raises(error, match=message):
        ThinformerAttention(**options)
