"""Corrections and herding of CUDA tensors: the keys and outputs of the CPU for one generator."""

import numpy as np
import pytest
import torch
from devices import at, placed

from thinformer import ThinformerAttention, thinformer_attention
from thinformer.attending.options import CORRECTIONS


def drawn(T, S, H, E, seed=0):
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal((2, n, H, E))) for n in (T, S, S)]


def both(tensors, mask=None, **options):
    results = []
    for there in (False, True):
        with placed(there) as device:
            if mask is not None:
                options["key_padding_mask"] = mask.to(device)
            results.append(thinformer_attention(
                *(x.to(device) for x in tensors), generator=torch.Generator().manual_seed(1),
                return_indices=True, **options))  # fmt: skip
    return results


WAYS = [*({"correction": correction} for correction in CORRECTIONS), {"temperature": "auto"}]


@pytest.mark.parametrize("way", WAYS)
def test_corrections_and_herding(way):
    tensors = drawn(*at((512, 1024, 4, 32), (9, 16, 2, 4)))
    expected, found = both(tensors, size=at(64, 4), **way)
    assert torch.equal(found.indices.cpu(), expected.indices)
    torch.testing.assert_close(found.output.cpu(), expected.output, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("way", WAYS)
def test_masks(way):
    S = at(500, 14)
    tensors, mask = drawn(S, S, 2, 8), torch.arange(S) >= torch.tensor([[S], [S // 2]])
    for x in tensors:
        x[mask] = torch.nan
    expected, found = both(tensors, mask, size=at(40, 3), **way)
    assert torch.equal(found.indices.cpu(), expected.indices)
    for i, length in enumerate((S, S // 2)):
        torch.testing.assert_close(
            found.output[i, :length].cpu(), expected.output[i, :length], rtol=1e-7, atol=1e-7
        )


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_half_precision(correction):
    """Near exact attention: the error of the CPU's output in single precision, or little more."""
    T, S, H, E = at((256, 1024, 4, 32), (8, 16, 2, 4))
    tensors = [x.to(torch.bfloat16) for x in drawn(T, S, H, E)]
    exact = torch.nn.functional.scaled_dot_product_attention(
        *(x.float().transpose(1, 2) for x in tensors)
    ).transpose(1, 2)
    errors = []
    for there, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        module = ThinformerAttention(size=at(128, 4), correction=correction,
                                     generator=torch.Generator().manual_seed(1))  # fmt: skip
        with placed(there) as device:
            output = module(*(x.to(device, dtype) for x in tensors))[0]
        errors.append(float((output.cpu().float() - exact).norm() / exact.norm()))
    assert errors[1] < 1.2 * errors[0] + 0.02
