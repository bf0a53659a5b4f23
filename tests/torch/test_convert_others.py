"""`convert` on attention of diffusers and of tabpfn, which are stood in for."""

import importlib
import pickle
import sys

import pytest
import tabpfn_stub
import torch
from diffusers_stub import Attention, MatmulProcessor, SDPAProcessor, importable
from layers import DRAWN, PADDING, randomised, run, tokens
from torch import nn

from thinformer import thinformer_attention
from thinformer.torch import convert


def diffusion(processor):
    return randomised(nn.ModuleDict({"attn": Attention(processor)}))


def test_diffusers_masks_of_minus_ten_thousand_are_masks():
    """Queries of one length, padded keys of another; a real bias raises."""
    model = diffusion(SDPAProcessor())
    x, mask = tokens(S=50), torch.zeros(3, 1, 1, 300).masked_fill(PADDING[:, None, None], -10_000.0)
    expected = model["attn"](x, tokens(), mask)
    assert convert(model, size=300, **DRAWN) == (["attn"], {})
    for dtype in (torch.float32, torch.bfloat16):  # where it is 9984
        got = model.to(dtype)["attn"](x.to(dtype), tokens().to(dtype), mask.to(dtype))
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=tolerance)
    convert(model.float(), size=20, **DRAWN)
    assert not torch.allclose(run(model["attn"], x, tokens(), mask), expected, atol=0.01)
    with pytest.raises(NotImplementedError, match="^Attention: attn_mask is a bias"):
        model["attn"](x, tokens(), mask / 2)


def test_diffusers_processors_that_pass_by_are_named():
    """Before and after the conversion: set_attn_processor may follow it."""
    model, x = diffusion(MatmulProcessor()), tokens()
    expected = model["attn"](x)
    with pytest.warns(UserWarning, match="^convert found no attention to thin in ModuleDict; attn"):
        done = convert(model)
    assert done.swapped == []
    assert done.left["attn"] == "MatmulProcessor does not call scaled_dot_product_attention"
    assert torch.equal(model["attn"](x), expected)
    model["attn"].processor = SDPAProcessor()
    convert(model)
    model["attn"].processor = MatmulProcessor()
    with pytest.raises(NotImplementedError, match="^Attention: it attends without scaled_d"):
        model["attn"](x)


def test_diffusers_models_are_pickled_whole():
    model, x = diffusion(SDPAProcessor()), tokens()
    convert(model, g=0, **DRAWN)
    with importable():
        other = pickle.loads(pickle.dumps(model))
    assert torch.equal(run(other["attn"], x), run(model["attn"], x))


def test_tabpfn(monkeypatch):
    """Rows of tables: taken from 256 keys on, as many heads of keys as there are."""
    adapter = tabpfn_stub.adapter(monkeypatch)
    attend = tabpfn_stub.scaled_dot_product_attention
    query, key, value = (
        tokens(40).unflatten(-1, (4, 8)),
        *tokens().unflatten(-1, (2, 2, 8)).unbind(2),
    )
    exact = attend(query, key, value)
    adapter.register(size=300, **DRAWN)
    torch.testing.assert_close(attend(query, key, value), exact)
    adapter.register(g=1, **DRAWN)
    expected = run(thinformer_attention, query, key, value, g=1, enable_gqa=True)
    assert torch.equal(run(attend, query, key, value), expected)
    assert not torch.allclose(expected, exact, atol=1e-3)
    few = {"size": 50, "temperature": 0.7}
    adapter.register(**few, **DRAWN)
    expected = run(thinformer_attention, query, key, value, **few, enable_gqa=True)
    assert torch.equal(run(attend, query, key, value), expected)
    adapter.register(g=0, **DRAWN | {"fallback": "exact"}, error_threshold=0)
    torch.testing.assert_close(attend(query, key, value), exact)
    short = query, key[:, :255], value[:, :255]
    one = query[:, :1], key, value
    taken = [attend(*tensors) for tensors in (short, one)]
    backend = tabpfn_stub.BACKENDS["thinformer"]
    assert not backend.is_preferred(tabpfn_stub.Spec(40, 300, torch.float32, torch.device("mps")))
    assert not backend.is_preferred(tabpfn_stub.Spec(40, None, torch.float32, query.device))
    adapter.unregister()
    assert tabpfn_stub.BACKENDS == {}
    for got, tensors in zip(taken, (short, one), strict=True):
        assert torch.equal(got, attend(*tensors))


def test_tabpfn_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tabpfn", None)
    monkeypatch.delitem(sys.modules, "thinformer.torch.tabpfn", raising=False)
    with pytest.raises(ImportError, match="^thinformer.torch.tabpfn needs tabpfn .*: pip install"):
        importlib.import_module("thinformer.torch.tabpfn")
