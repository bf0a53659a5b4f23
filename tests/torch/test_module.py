import copy
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from compiling import compiled
from tensors import drawn, exact
from tensors import qkv as make_qkv

from reference import torch_version
from reference.attention import thinformer_attention
from thinformer import Draws, ThinformerAttention, attention, compress_schedule, make_draws

qkv = partial(make_qkv, H=3)


def seeded(seed=0, **settings):
    return ThinformerAttention(generator=torch.Generator().manual_seed(seed), **settings)


@pytest.mark.parametrize("spda", [False, True])
@pytest.mark.parametrize("settings", [{}, {"g": 0}, {"size": 50, "scale": 0.2},
                                      {"pre_thin": "stride", "g": 1}])  # fmt: skip
def test_as_the_numpy_function(spda, settings):
    query, key, value = qkv()
    output, weights = seeded(use_torch_spda=spda, **settings)(query, key, value)
    expected = attention(*(x.numpy() for x in (query, key, value)), rng=drawn(),
                         return_weights=True, **settings)  # fmt: skip
    np.testing.assert_allclose(output, expected.output, rtol=1e-12, atol=1e-14)
    if spda:
        assert weights is None
    else:
        np.testing.assert_allclose(weights, expected.weights, rtol=1e-12)


def test_references_agree():
    """The two specifications, whole: outputs, weights and indices."""
    query, key, value = qkv()
    schedule = compress_schedule(300, 40)
    draws = make_draws(schedule, 5, heads=3)
    tensors = Draws(*(tuple(map(torch.tensor, part)) for part in draws[:2]),
                    torch.tensor(draws.strata))  # fmt: skip
    got = torch_version.thinformer_attention(query, key, value, 0.3, schedule, tensors)
    expected = thinformer_attention(*(x.numpy() for x in (query, key, value)), 0.3, schedule, draws)
    np.testing.assert_array_equal(got[2], expected[2])
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-12)


@pytest.mark.parametrize("spda", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_size_at_least_S_is_exact(dtype, spda):
    query, key, value = qkv(dtype=dtype)
    output, weights = ThinformerAttention(size=300, use_torch_spda=spda)(query, key, value)
    assert output.dtype == dtype
    torch.testing.assert_close(output, exact(query, key, value))
    assert spda or weights.shape == (2, 3, 7, 300)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_chooses_as_float32(dtype):
    query, key, value = qkv(dtype=dtype)
    output, weights = seeded()(query, key, value)
    same, _ = seeded()(query.float(), key.float(), value.float())
    assert output.dtype == weights.dtype == dtype
    torch.testing.assert_close(output.float(), same, rtol=0.02, atol=0.02)


def test_output_shapes_and_default_interface():
    query, key, value = qkv(S=1024)
    output, weights = ThinformerAttention()(query, key, value)
    assert output.shape == (2, 7, 3, 5)
    assert weights.shape == (2, 3, 7, 128)  # 2^2 sqrt(1024)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 7, dtype=torch.float64))
    positional = ThinformerAttention(1, 0.5, True)
    assert (positional.g, positional.scale, positional.use_torch_spda) == (1, 0.5, True)
    assert "g=1, scale=0.5, use_torch_spda=True" in repr(positional)


def test_reproducible():
    query, key, value = qkv()
    module = ThinformerAttention(g=0)
    torch.manual_seed(1)
    first, _ = module(query, key, value)
    second, _ = module(query, key, value)
    torch.manual_seed(1)
    again, _ = module(query, key, value)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    own = seeded(4, g=0)
    state = torch.get_rng_state()
    own(query, key, value)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator is left alone


@pytest.mark.slow
@pytest.mark.parametrize("spda", [False, True])
def test_gradcheck(spda):
    query, key, value = (x.requires_grad_() for x in qkv(B=1, T=2, S=16, H=2, E=2, D=1))

    def forward(query, key, value):
        return seeded(size=4, use_torch_spda=spda)(query, key, value)[0]

    assert torch.autograd.gradcheck(forward, (query, key, value))


def test_gradients_reach_kept_keys_only():
    query, key, value = (x.requires_grad_() for x in qkv())
    output, _ = seeded()(query, key, value)
    output.sum().backward()
    kept = attention(*(x.detach().numpy() for x in (query, key, value)), rng=drawn(),
                     return_indices=True).indices  # fmt: skip
    reached = (value.grad != 0).any(-1).transpose(1, 2)  # (B, H, S)
    expected = torch.zeros_like(reached).scatter(2, torch.as_tensor(kept), True)
    assert torch.equal(reached, expected)
    assert (query.grad != 0).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("which", ["key", "value"])
@pytest.mark.parametrize("spda", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_not_finite_spoils_its_own_head_only(bad, which, spda, dtype):
    tensors = dict(zip(("query", "key", "value"), qkv(dtype=dtype), strict=True))
    clean, _ = seeded(use_torch_spda=spda)(**tensors)
    for token in range(0, 300, 37):  # kept or not
        broken = dict(tensors, **{which: tensors[which].clone()})
        broken[which][1, token, 2, -1] = bad
        output, weights = seeded(use_torch_spda=spda)(**broken)
        spoiled = torch.zeros(2, 1, 3, 1, dtype=torch.bool)
        spoiled[1, 0, 2] = True
        torch.testing.assert_close(
            output, clean.masked_fill(spoiled, float("nan")), equal_nan=True, rtol=0, atol=0
        )
        assert spda or torch.isnan(weights[1, 2]).all()


def test_not_finite_with_few_columns():
    """Torch's own attention returns zeros where all keys are NaN and values are numbers."""
    query, key, value = qkv(S=16, E=4, D=4)
    key[0, 7, 1, 1] = float("nan")
    output, _ = seeded(use_torch_spda=True)(query, key, value)
    assert torch.isnan(output[0, :, 1]).all()
    assert torch.isnan(output).sum() == output[0, :, 1].numel()


def test_nan_query_spoils_its_own_row_only():
    query, key, value = qkv()
    query[0, 3, 1, 0] = float("nan")
    output, _ = seeded()(query, key, value)
    assert torch.isnan(output[0, 3, 1]).all()
    assert torch.isnan(output).sum() == output.shape[-1]


def test_views_are_read_in_place():
    """Keys that are slices of a packed projection, heads first, or negated lazily."""
    query, key, value = qkv(E=8, D=8)
    expected, _ = seeded()(query, key, value)
    packed = torch.cat([key, value], dim=-1)
    bhsd = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value)]
    negated = torch.complex(torch.zeros_like(key), -key).conj().imag
    assert negated.is_neg()
    for arguments in ((query, packed[..., :8], packed[..., 8:]), bhsd, (query, negated, value)):
        output, _ = seeded()(*arguments)
        torch.testing.assert_close(output, expected)


def test_empty():
    query, key, value = qkv()
    assert ThinformerAttention()(query[:, :0], key, value)[0].shape == (2, 0, 3, 5)
    assert ThinformerAttention()(query[:0], key[:0], value[:0])[0].shape == (0, 7, 3, 5)


def test_copies_and_pickles():
    module = ThinformerAttention(g=0, size=20)
    query, key, value = qkv()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.manual_seed(0)
        expected, _ = module(query, key, value)
        torch.manual_seed(0)
        torch.testing.assert_close(other(query, key, value)[0], expected)
    assert not module.state_dict()


def test_under_no_grad_and_inference_mode():
    query, key, value = qkv()
    expected, _ = seeded()(query, key, value)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output, _ = seeded()(*(x.clone() for x in (query, key, value)))
        torch.testing.assert_close(output, expected)


def test_autocast_leaves_the_weights_path_alone():
    query, key, value = qkv(dtype=torch.float32)
    expected, _ = seeded()(query, key, value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, weights = seeded()(query, key, value)
    assert output.dtype == weights.dtype == torch.float32
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_other_default_device():
    query, key, value = qkv()
    module = seeded()
    with torch.device("meta"):
        output, _ = module(query, key, value)
    torch.testing.assert_close(output, seeded()(query, key, value)[0])


def test_tensors_are_read_in_place():
    from thinformer.torch.choose.on_cpu import _array

    key = qkv()[1]
    for tensor in (key, key.transpose(1, 2), key[:, ::2], key.float()):
        assert np.shares_memory(_array(tensor), tensor.numpy())


@pytest.mark.slow
def test_reference_is_differentiable():
    query, key, value = (x.requires_grad_() for x in qkv(B=1, T=2, S=12, H=2, E=1, D=1))
    schedule = compress_schedule(12, 3)
    draws = make_draws(schedule, 0, heads=2)
    draws = Draws(*(tuple(map(torch.tensor, part)) for part in draws[:2]),
                  torch.tensor(draws.strata))  # fmt: skip

    def forward(*tensors):
        return torch_version.thinformer_attention(*tensors, 0.5, schedule, draws)[0]

    assert torch.autograd.gradcheck(forward, (query, key, value))


@pytest.mark.slow
def test_compile_breaks_no_graph():
    query, key, value = qkv()
    for spda in (False, True):
        module = ThinformerAttention(g=0, use_torch_spda=spda)
        fast, counter = compiled(module)
        torch.manual_seed(0)
        output, _ = fast(query, key, value)
        torch.manual_seed(0)
        torch.testing.assert_close(output, module(query, key, value)[0])
        assert counter.frame_count == 1
