"""Falling back to exact attention where the estimate of the error is too large."""

import copy
import pickle

import pytest
import torch
from compiling import compiled, graph_breaks
from estimates import corrections, equal, estimated
from tensors import exact, padding, qkv, seeded

from thinformer import ThinformerAttention, thinformer_attention
from thinformer.torch.attend.fallback import fall_back
from thinformer.torch.choose.heads import Heads


@pytest.mark.slow
@corrections
@pytest.mark.parametrize("masked", [False, True])
def test_falls_back_by_head_and_sequence(masked, correction):
    """Exact attention above the threshold and what was there below; gradients are those of each."""
    mask = padding(300, 300, 130) if masked else None
    tensors = qkv(H=4, H_kv=2)
    if masked:
        for x in tensors[1:]:
            x[mask] = float("nan")
    tensors = [x.requires_grad_() for x in tensors]
    options = {"size": 20, "correction": correction, "key_padding_mask": mask, "enable_gqa": True}
    plain = estimated(*tensors, **options)
    threshold = float(plain.error_estimate.median())
    above = plain.error_estimate > threshold
    assert above.sum() == 4
    expected = torch.where(above[:, None, :, None], exact(*tensors, mask), plain.output)
    output = seeded(*tensors, **options, fallback="exact", error_threshold=threshold)
    equal(output, expected)
    kept = ~above[:, None, :, None].expand_as(output)
    assert torch.equal(output[kept], plain.output[kept])
    for got, wanted in zip(*(torch.autograd.grad(x.square().sum(), tensors)
                             for x in (output, expected)), strict=True):  # fmt: skip
        equal(got, wanted)
    both = estimated(*tensors, **options, fallback="exact", error_threshold=threshold)
    assert torch.equal(both.error_estimate, plain.error_estimate)  # of what was replaced
    turned = [x.transpose(1, 2) for x in tensors]
    got = seeded(*turned, **options, layout="bhsd", fallback="exact", error_threshold=threshold)
    equal(got.transpose(1, 2), output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_falls_back_in_half_precision(dtype):
    tensors = qkv(dtype=dtype)
    output = seeded(*tensors, fallback="exact", error_threshold=0)
    assert output.dtype == dtype
    torch.testing.assert_close(output, exact(*tensors))
    wide = qkv(dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        got = seeded(*wide, fallback="exact", error_threshold=0)
    torch.testing.assert_close(got.float(), exact(*wide), rtol=0.02, atol=0.02)


def test_falls_back_where_the_estimate_is_nan():
    """An infinite value spoils its column, and not its head; so does exact attention."""
    query, key, value = qkv()
    value[1, 5, 2, 0] = float("inf")
    output = seeded(query, key, value, fallback="exact", error_threshold=1e9)
    plain = seeded(query, key, value)
    assert plain[1, :, 2].isnan().all()
    equal(output[1, :, 2], exact(query, key, value)[1, :, 2])
    assert output[1, :, 2, 1:].isfinite().all()
    plain[1, :, 2] = output[1, :, 2]
    assert torch.equal(output, plain)


@corrections
def test_module(correction):
    """What it keeps is of its last pass, and neither a parameter nor a buffer."""
    tensors, other = qkv(T=100), qkv(B=1, T=9, H=2, seed=1)
    expected = estimated(*tensors, correction=correction, size=20).error_estimate

    def make(**options):
        return ThinformerAttention(size=20, correction=correction, **options,
                                   generator=torch.Generator().manual_seed(0))  # fmt: skip

    module = make(estimate_error=True)
    assert module.last_error_estimate is None
    _, weights = module(*tensors)
    assert weights.shape == (2, 4, 100, 20)
    equal(module.last_error_estimate, expected)
    assert not module.state_dict()
    with torch.inference_mode():
        module(*other)
    assert module.last_error_estimate.shape == (1, 2)
    module.estimate_error = False
    module(*other)
    assert module.last_error_estimate is None

    module = make(fallback="exact", error_threshold=0.0)
    output, weights = module(*tensors)
    equal(output, exact(*tensors))
    assert weights is None
    equal(module.last_error_estimate, expected)
    shown = "estimate_error=False, fallback='exact', error_threshold=0.0"
    assert shown in repr(module)


@pytest.mark.slow
def test_module_copies_and_pickles():
    module = ThinformerAttention(fallback="exact", error_threshold=0.5)
    tensors = [x.requires_grad_() for x in qkv()]
    for mode in (torch.enable_grad, torch.inference_mode):
        with mode():
            module(*tensors)
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            torch.manual_seed(0)
            expected, _ = module(*tensors)
            torch.manual_seed(0)
            assert torch.equal(other(*tensors)[0], expected)
            assert torch.equal(other.last_error_estimate, module.last_error_estimate)


def in_float(**shape):
    return [x.requires_grad_() for x in qkv(T=40, S=60, H=4, H_kv=2, **shape)]


def graph(mask, seed, dropout_p):
    """Attention with exact heads as a graph has it, and which heads are above."""
    above = torch.tensor([[True, True, True, False], [False, True, False, False]])
    valid = None if mask is None else ~mask

    def attend(query, key, value, output):
        heads = Heads(query, key, value, valid, 0.3)
        return fall_back(heads, output, above, torch.tensor(seed), dropout_p)

    return attend, above


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.float16, 0.02), (torch.bfloat16, 0.1)],
)
def test_the_operator_of_a_graph_is_what_runs_without_one(masked, dtype, tolerance):
    """Outputs and gradients, of grouped heads some of which fall back, in every precision."""
    mask = padding(60, 60, 25) if masked else None
    attend, above = graph(mask, seed=3, dropout_p=0.0)
    fast, _ = compiled(attend)
    results = []
    for function in (attend, fast):
        tensors = in_float(dtype=dtype)
        if masked:
            with torch.no_grad():
                for x in tensors[1:]:
                    x[mask] = float("nan")
        output = torch.ones(2, 40, 4, 5, dtype=dtype, requires_grad=True)
        got = function(*tensors, output)
        assert got.dtype == dtype
        got.float().square().sum().backward()
        results.append([got.detach(), *(x.grad for x in (*tensors, output))])
    for got, expected in zip(*reversed(results), strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    below = ~above[:, None, :, None].expand_as(results[1][0])
    assert (results[1][0][below] == 1).all()
    assert (results[1][4] == 2 * below.to(dtype)).all()  # no gradient of what was replaced


def test_the_operators_gradient_is_its_derivative():
    """By finite differences; with dropout, of the weights that are dropped for that seed."""
    query, key, value = qkv(B=2, T=2, S=4, H=4, H_kv=2, E=2, D=1)
    _, above = graph(None, 3, 0.0)
    valid = ~padding(4, 4, 3)
    for dropout_p in (0.0, 0.4):

        def attend(query, key, value, dropout_p=dropout_p):
            return torch.ops.thinformer.fall_back(
                query, key, value, valid, 0.7, above, torch.tensor(5), dropout_p
            )

        tensors = [x.requires_grad_() for x in (query, key, value)]
        assert torch.autograd.gradcheck(attend, tensors)
    arguments = (*tensors, valid, 0.7, above, torch.tensor(5), 0.4)
    checked = torch.library.opcheck(torch.ops.thinformer.fall_back, arguments)
    assert set(checked.values()) == {"SUCCESS"}


def test_the_operators_dropout():
    """A share of weights is dropped, the others are divided by what is left; others by seed."""
    tensors = [x.detach() for x in in_float()]
    tensors[2] = torch.eye(60, dtype=torch.float64)[None, :, None].expand(2, -1, 2, -1)
    outputs = {}
    for seed, dropout_p in ((3, 0.0), (3, 0.25), (4, 0.25)):
        attend, above = graph(padding(60, 60, 25), seed, dropout_p)
        fast, _ = compiled(attend)
        with torch.no_grad():
            outputs[seed, dropout_p] = fast(*tensors, torch.zeros(2, 40, 4, 60).double())
    weights, dropped, other = (x.transpose(1, 2)[above] for x in outputs.values())
    kept = dropped > 0
    equal(dropped[kept], weights[kept] / 0.75)
    there = weights > 0
    assert there[-1].sum() == 40 * 25
    assert kept[there].double().mean() == pytest.approx(0.75, abs=0.02)
    assert not torch.equal(dropped, other)
    assert not torch.equal(kept[0], kept[1])  # heads have masks of their own


@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@corrections
@pytest.mark.usefixtures("few_sampled_queries")
def test_dropout_is_no_error(dropout_p, correction):
    """The estimate is of the output without it; gradients flow through what is left."""
    tensors = [x.requires_grad_() for x in qkv(T=100)]
    options = {"size": 20, "correction": correction}
    plain = estimated(*tensors, **options)
    threshold = float(plain.error_estimate.median())
    options |= {"fallback": "exact", "error_threshold": threshold, "dropout_p": dropout_p}
    torch.manual_seed(0)
    got = estimated(*tensors, **options)
    equal(got.error_estimate, plain.error_estimate)
    assert torch.allclose(got.output, estimated(*tensors, **options).output) == (dropout_p == 0)
    got.output.square().sum().backward()
    assert all(x.grad.isfinite().all() and x.grad.abs().max() > 0 for x in tensors)


@pytest.mark.slow
def test_a_fallback_in_a_graph():
    """Nothing breaks it, and the same heads fall back."""
    tensors, options = qkv(H_kv=2), {"fallback": "exact", "error_threshold": 1.3}
    options["enable_gqa"] = True
    fast, counter = compiled(thinformer_attention)
    results = []
    for each in (fast, thinformer_attention):
        torch.manual_seed(0)
        results.append(each(*tensors, **options))
    equal(*results)
    assert counter.frame_count == 1
    assert graph_breaks() == 0
    assert not torch.equal(results[1], seeded(*tensors, enable_gqa=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"return_weights": True},
            "^return_weights must be False with a fallback: exact attention",
        ),
        ({"return_indices": True}, "^return_indices must be False with a fallback"),
    ],
)
def test_what_a_fallback_does_not_go_with(options, message):
    with pytest.raises(ValueError, match=message):
        thinformer_attention(*qkv(), fallback="exact", error_threshold=0.1, **options)
    with pytest.raises(TypeError, match="^estimate_error must be True or False; got 16"):
        ThinformerAttention(estimate_error=16)
