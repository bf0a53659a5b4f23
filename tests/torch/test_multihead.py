"""Masks of a converted `torch.nn.MultiheadAttention`: errors name the argument that was given."""

import pytest
import torch
from tensors import padding
from torch import nn

from thinformer.torch import KeySelection, LayerOptions, convert

B, T, S, H = 3, 7, 300, 4
PADDING = padding(S, 300, 150, 20)
OPTIONS = LayerOptions(KeySelection(size=20, correction=None, min_length=0), fallback=None)


def converted():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(32, H, batch_first=True).eval()
    convert(module, options=OPTIONS)
    return module


def attend(module, **masks):
    generator = torch.Generator().manual_seed(1)
    query, key = (torch.randn(B, n, 32, generator=generator) for n in (T, S))
    torch.manual_seed(2)
    return module(query, key, key, need_weights=False, **masks)[0]


def floating(fill):
    return torch.zeros(B, S).masked_fill(PADDING, fill)


def _named(error, message):
    """What cannot be thinned is told of a layer, a wrong argument of the call."""
    layer = "MultiheadAttention: " if error is NotImplementedError else ""
    return message.replace("^", f"^{layer}", 1)


@pytest.mark.parametrize("fill", [-torch.inf, torch.finfo(torch.float32).min])
def test_floating_padding_masks_as_bool_does(fill):
    module = converted()
    got = attend(module, key_padding_mask=floating(fill))
    assert torch.equal(got, attend(module, key_padding_mask=PADDING))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (floating(-1e9), NotImplementedError,
         r"^key_padding_mask is a bias, .* holds -1e\+09, .* 0 where .* and -inf .* or is bool"),
        (floating(1.0), NotImplementedError, r"^key_padding_mask is a bias, .* holds 1, "),
        (floating(torch.nan), NotImplementedError, r"^key_padding_mask is a bias, .* holds nan, "),
        (floating(-torch.inf).requires_grad_(), NotImplementedError,
         r"^key_padding_mask is a bias that learns"),
        (PADDING.long(), TypeError,
         r"^key_padding_mask must be bool, True where a key is padding; got dtype torch.int64"),
        (floating(-torch.inf)[:, :9], ValueError,
         r"^key_padding_mask must have shape \(B, S\) = \(3, 300\); got shape \(3, 9\)"),
        (PADDING[:, :9], ValueError,
         r"^key_padding_mask must have shape \(B, S\) = \(3, 300\); got shape \(3, 9\)"),
    ],
)  # fmt: skip
def test_padding_is_named(mask, error, message):
    with pytest.raises(error, match=_named(error, message)) as raised:
        attend(converted(), key_padding_mask=mask)
    assert "attn_mask" not in str(raised.value)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.full((T, S), -1e9), NotImplementedError,
         r"^attn_mask is a bias, .* holds -1e\+09, .*: key_padding_mask \(B, S\)\. Leave "),
        (torch.ones(T, S).long(), TypeError,
         "^attn_mask must be bool, True where a query may not attend, or floating"),
        (torch.zeros(5, T, S), ValueError,
         r"^attn_mask must have shape \(T, S\) = \(7, 300\) or \(B H, T, S\) = \(12, 7, 300\); "
         r"got shape \(5, 7, 300\)"),
        (torch.zeros(B, 1, 1, S), ValueError, r"^attn_mask must have shape \(T, S\)"),
        (torch.ones(T, S, dtype=torch.bool).tril(), NotImplementedError,
         r"^attn_mask differs by query, .*: key_padding_mask \(B, S\)\. Leave "),
    ],
)  # fmt: skip
def test_the_mask_of_scores_is_named(mask, error, message):
    with pytest.raises(error, match=_named(error, message)):
        attend(converted(), attn_mask=mask)


@pytest.mark.slow
def test_a_graph_cannot_look_at_floating_padding():
    fast = torch.compile(converted(), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="key_padding_mask would have to be looked at"):
        attend(fast, key_padding_mask=floating(-torch.inf))
