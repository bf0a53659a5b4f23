"""CUDA tensors: the keys and outputs of the CPU for the same generator."""

import pytest
import torch
from devices import FLOAT32_TOLERANCE, at, placed, torch_device
from problems import Attention, reference_numpy, smallest_margin

from thinformer import ThinformerAttention, compress_schedule, make_draws, thinformer_attention
from thinformer.halving.draws import seed_from

DTYPES = ("bfloat16", "float16", "float32", "float64")
THERE = torch_device()


def drawn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=generator(seed)).to(dtype)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def both(query, key, value, seed=1, **options):
    """What is computed of tensors on the CPU, in double precision, and of the same on the GPU."""
    mask = options.pop("key_padding_mask", None)
    results = []
    for there in (False, True):
        with placed(there) as device:
            tensors = [x.to(device) if there else x.double() for x in (query, key, value)]
            if mask is not None:
                options["key_padding_mask"] = mask.to(device)
            results.append(thinformer_attention(
                *tensors, generator=generator(seed), return_weights=True, return_indices=True,
                **options))  # fmt: skip
    return results


def check(expected, found, tolerance):
    assert torch.equal(found.indices.cpu(), expected.indices.cpu())
    for one, other in ((found.output, expected.output), (found.weights, expected.weights)):
        torch.testing.assert_close(one.cpu().double(), other.cpu(), rtol=tolerance, atol=tolerance)


TOLERANCE = {"bfloat16": 3e-2, "float16": 4e-3, "float32": 1e-4, "float64": 1e-10}


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes(dtype):
    """Seeds whose decisions no rounding turns."""
    S, size, H = at((256, 32, 4), (12, 3, 1))
    key, value = (drawn(2, S, H, 8, seed=i).to(getattr(torch, dtype)) for i in (1, 2))
    query = drawn(2, 5, H, 8, seed=3).to(key.dtype)
    schedule = compress_schedule(S, size)
    for seed in range(100):
        word = int(torch.empty((), dtype=torch.int64).random_(generator=generator(seed)))
        draws = make_draws(schedule, seed_from(word), H)
        arrays = Attention(key.double().numpy(), value.double().numpy())
        if smallest_margin(reference_numpy(arrays, schedule, draws)[1]) > FLOAT32_TOLERANCE:
            break
    else:
        pytest.fail("no seed with such margins")
    check(*both(query, key, value, seed, size=size), TOLERANCE[dtype])


def test_layouts():
    """Heads first in memory, every second column, and one head for all."""
    S, size = at((700, 60), (10, 3))
    query, key, value = (
        drawn(at(2, 1), 3, S, 16, seed=i).transpose(1, 2)[..., ::2] for i in range(3)
    )
    check(*both(query, key, value, size=size), 1e-10)
    key, value = (x[:, :, :1].expand(-1, -1, 3, -1) for x in (key, value))
    check(*both(query, key, value, size=size), 1e-10)


def test_groups_of_query_heads():
    B, S, size = at((2, 700, 60), (1, 12, 3))
    query, key, value = drawn(B, 5, 8, 4), drawn(B, S, 2, 4, seed=1), drawn(B, S, 2, 6, seed=2)
    check(*both(query, key, value, size=size, enable_gqa=True), 1e-10)


def test_masks():
    """Sequences of several lengths; padding in front and within; none that counts."""
    S, size = at((600, 50), (16, 4))
    lengths = torch.tensor([S, S // 2, 0, S - 3, S // 2, 2])
    mask = torch.arange(S) >= lengths[:, None]
    mask[4] = mask[4].flip(0)
    mask[3] = torch.arange(S) % 7 == 3
    query, key, value = (drawn(6, S, 2, 4, seed=i) for i in range(3))
    key[mask], value[mask] = torch.nan, torch.inf
    check(*both(query, key, value, size=size, key_padding_mask=mask), 1e-10)


def test_a_module():
    """With oversampling, without weights: torch's own attention over the keys that were kept."""
    S = at(4096, 16)
    query, key, value = (drawn(1, S, 2, 16, seed=i) for i in range(3))
    outputs = []
    for there in (False, True):
        module = ThinformerAttention(1, use_torch_spda=True, generator=generator(4))
        with placed(there) as device:
            output, _ = module(*(x.to(device) for x in (query, key, value)))
        outputs.append(output.cpu())
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)


def test_gradients():
    S, size = at((512, 64), (16, 4))
    gradients = []
    for there in (False, True):
        with placed(there) as device:
            tensors = [drawn(1, S, 2, 4, seed=i).to(device).requires_grad_() for i in range(3)]
            output = thinformer_attention(*tensors, size=size, generator=generator(5))
        of = torch.autograd.grad(output.square().sum(), tensors)
        gradients.append([x.cpu() for x in of])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_head_that_is_not_finite_is_nan():
    S, size = at((300, 30), (16, 4))
    query, key, value = (drawn(1, S, 2, 4, seed=i) for i in range(3))
    key[0, 7, 1, 1] = torch.nan
    tensors = [x.to(THERE) for x in (query, key, value)]
    output = thinformer_attention(*tensors, size=size, generator=generator(6)).cpu()
    assert output[:, :, 0].isfinite().all()
    assert output[:, :, 1].isnan().all()
