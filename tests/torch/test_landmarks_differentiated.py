"""Landmarks in torch: gradients, checkpoints, graphs, and calls that need no gradient."""

from itertools import product
from unittest.mock import patch

import pytest
import torch
from compiling import compiled, graph_breaks
from landmark_tensors import corrections, equal, output_of, qkv, weighted
from tensors import by_layer, everything, padding, seeded
from tensors import qkv as make_qkv
from torch._dynamo.testing import EagerAndRecordGraphs
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from thinformer import thinformer_attention
from thinformer.torch.choose import operators
from thinformer.torch.choose.operators import attend_to_landmarks as without_gradient
from thinformer.torch.choose.operators import landmarks

pytestmark = pytest.mark.usefixtures("few_sampled_queries")


@corrections
def test_gradients_ignore_what_is_masked(correction):
    mask, results = padding(200, 200, 90), []
    for number in (0.0, float("nan"), float("inf")):
        tensors = qkv()
        for x in tensors[1:]:
            x[mask] = number
        tensors = [x.requires_grad_() for x in tensors]
        output = seeded(*tensors, key_padding_mask=mask, correction=correction)
        output.square().sum().backward()
        results.append([output, *(x.grad for x in tensors)])
        assert all((x.grad[mask] == 0).all() for x in tensors[1:])
    assert all(map(torch.equal, results[0], results[1]))
    assert all(map(torch.equal, results[0], results[2]))


@pytest.mark.slow
@corrections
@pytest.mark.parametrize(("masked", "weights"), [(True, False), (False, True)])
def test_gradcheck(masked, weights, correction):
    tensors = [x.requires_grad_() for x in qkv(B=1 + masked, T=2, S=7, H=2, H_kv=1, E=2, D=1)]
    options = {"key_padding_mask": padding(7, 7, 5)} if masked else {}

    def forward(*tensors):
        # given, as the default's would be differentiated
        return output_of(*tensors, size=3, enable_gqa=True, correction=correction, temperature=1.3,
                         weights=weights, **options)  # fmt: skip

    assert torch.autograd.gradcheck(forward, tensors)


@corrections
@weighted
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [1.0, 30.0, 1e3])
def test_gradients_are_finite_at_large_norms(norm, dtype, weights, correction):
    tensors = [x * (norm / x.norm(dim=-1, keepdim=True)) for x in qkv(dtype=dtype)]
    tensors = [x.detach().requires_grad_() for x in tensors]
    output = output_of(*tensors, key_padding_mask=padding(200, 200, 90), weights=weights,
                       correction=correction)  # fmt: skip
    output.float().square().mean().backward()
    assert output.isfinite().all()
    assert all(x.grad.isfinite().all() for x in tensors)
    assert all((x.grad != 0).any() for x in tensors[2:])


@corrections
def test_gradients_reach_all_keys_and_values(correction):
    """Landmarks stand for them: not only for those that were kept."""
    tensors = [x.requires_grad_() for x in qkv()]
    seeded(*tensors, size=20, correction=correction).square().sum().backward()
    assert all((x.grad != 0).all() for x in tensors)


@corrections
def test_checkpoint_recomputes_the_same(correction):
    gradients = []
    for recompute in (False, True):
        tensors = [x.requires_grad_() for x in qkv()]
        torch.manual_seed(0)
        options = {"correction": correction, "size": 20}
        if recompute:
            output = checkpoint(thinformer_attention, *tensors, use_reentrant=False, **options)
        else:
            output = thinformer_attention(*tensors, **options)
        torch.rand(3)  # the generator goes on between forward and backward
        output.square().sum().backward()
        gradients.append([x.grad for x in tensors])
    assert all(map(torch.equal, *gradients))


@pytest.mark.slow
@corrections
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked, correction):
    tensors = qkv(dtype=torch.float32, H=4, H_kv=2)
    valid = ~padding(200, 200, 90) if masked else None
    for dtype in (torch.float32, torch.float16):
        arguments = (*(x.to(dtype) for x in tensors), valid, torch.tensor(5), 1, None, 0.3,
                     correction, None, 100)  # fmt: skip
        assert set(torch.library.opcheck(landmarks, arguments).values()) == {"SUCCESS"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "correction", ["queries", pytest.param("nystrom", marks=pytest.mark.nightly)]
)
def test_compile_breaks_no_graph(correction):
    tensors, mask = [x.requires_grad_() for x in qkv()], padding(200, 200, 90)

    def function(*tensors):
        return thinformer_attention(*tensors, g=1, key_padding_mask=mask, correction=correction,
                                    return_weights=True, return_indices=True)  # fmt: skip

    fast, counter = compiled(function)
    results = []
    for each in (function, fast):
        for x in tensors:
            x.grad = None
        torch.manual_seed(0)
        got = each(*tensors)
        got.output.square().sum().backward()
        results.append([*got, *(x.grad for x in tensors)])
    assert counter.frame_count == 1
    assert graph_breaks() == 0
    for got, expected in zip(*results, strict=True):
        equal(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_a_graph_for_inference_calls_the_kernels(masked):
    """One graph for any length, also for one of which all tokens are kept."""
    torch._dynamo.reset()
    recorded = EagerAndRecordGraphs()
    fast = torch.compile(thinformer_attention, fullgraph=True, dynamic=True, backend=recorded)
    for S in (300, 200, 20):
        tensors = qkv(S=S, T=9)
        options = {"size": 64, "correction": "queries"}
        if masked:
            options["key_padding_mask"] = padding(S, S, S // 2)
        results = []
        for function in (thinformer_attention, fast):
            torch.manual_seed(0)
            with torch.no_grad():
                results.append(function(*tensors, **options))
        equal(*results)
    (graph,) = recorded.graphs
    called = {node.target for node in graph.graph.nodes}
    assert torch.ops.thinformer.attend_to_landmarks.default in called


@pytest.mark.slow
@pytest.mark.nightly
def test_compile_takes_changing_lengths_without_compiling_again():
    fast, counter = compiled(thinformer_attention, dynamic=True)
    graphs = []
    for S in (300, 1024, 20, 7):
        tensors = qkv(S=S, T=9)
        results = []
        for each in (fast, thinformer_attention):
            torch.manual_seed(0)
            results.append(each(*tensors, size=20, correction="queries"))
        equal(*results)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[-1]


@corrections
def test_without_gradients_and_in_inference_mode(correction):
    tensors = qkv()
    expected = seeded(*tensors, size=20, correction=correction)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(seeded(*tensors, size=20, correction=correction), expected)


@corrections
@weighted
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", [{"H": 2}, {"H": 6, "H_kv": 2}])
@pytest.mark.parametrize(("T", "lengths"), [(30, None), (30, (200, 130)), (200, (200, 20, 0))])
def test_where_no_gradient_is_asked_for_kernels_compute_all(
    T, lengths, heads, dtype, weights, correction
):
    """Compiled ones, in place of torch's operations; what they compute is the same."""
    tensors = make_qkv(B=len(lengths or (0, 0)), S=200, T=T, E=4, D=3, **heads, dtype=dtype)
    tensors[1][0, 3, 1] = torch.nan
    options = {"size": 20, "min_length": 40, "correction": correction, "weights": weights}
    options["mask"] = padding(200, *lengths) if lengths else None
    with patch.object(operators, "attend_to_landmarks", wraps=without_gradient) as compiled_ones:
        got = by_layer(*tensors, **options)
        assert compiled_ones.call_count == 1
        same = by_layer(*(x.requires_grad_() for x in tensors), **options)
        assert compiled_ones.call_count == 1
    close = {torch.float64: 1e-7, torch.float32: 2e-3, torch.bfloat16: 2e-2}[dtype]
    assert torch.equal(got.indices[1:], same.indices[1:])
    assert got.output.dtype == dtype
    torch.testing.assert_close(got.output, same.output, rtol=close, atol=close, equal_nan=True)
    assert got.output.isnan().any()
    if weights:
        torch.testing.assert_close(got.weights, same.weights, rtol=close, atol=close,
                                   equal_nan=True)  # fmt: skip


@pytest.mark.slow
@corrections
def test_opcheck_of_attention_without_gradient(correction):
    seed = torch.tensor(3)
    for valid, with_weights in product((None, ~padding(200, 200, 130)), (False, True)):
        torch.library.opcheck(
            without_gradient,
            (*qkv(), valid, seed, 2, 20, 0.5, correction, None, 0, with_weights),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_tangents_are_not_lost():
    """Forward-mode derivatives go by torch's operations, though no tensor asks for a gradient."""
    query, key, value = qkv(B=1, H=1)
    tangent = torch.randn_like(query)
    options = {"size": 20, "correction": "nystrom", "temperature": 1.0}

    def output(q):
        return everything(q, key, value, **options).output

    _, got = torch.func.jvp(output, (query,), (tangent,))
    with forward_ad.dual_level():
        same = forward_ad.unpack_dual(output(forward_ad.make_dual(query, tangent))).tangent
    torch.testing.assert_close(got, same)
    step = 1e-5
    there, back = output(query + step * tangent), output(query - step * tangent)
    torch.testing.assert_close(got, (there - back) / (2 * step), rtol=1e-4, atol=1e-6)
