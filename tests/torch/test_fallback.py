"""Falling back to exact attention where the estimate of the error is too large."""

import copy
import pickle

import pytest
import torch
from estimates import corrections, equal, estimated
from tensors import exact, padding, qkv, seeded

from thinformer import ThinformerAttention, thinformer_attention


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
