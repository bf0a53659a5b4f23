"""Tensors whose values cannot be used: of a trace, of `torch.vmap`, on `meta`, fake."""

import pytest
import torch
from tensors import qkv
from torch import nn
from torch._subclasses import FakeTensorMode

from thinformer import ThinformerAttention, thinformer_attention
from thinformer.torch import KeySelection, LayerOptions, convert, revert

OPTIONS = LayerOptions(KeySelection(size=20, correction=None, min_length=0), fallback=None)
CHOICES = [{}, {"correction": "queries"}, {"temperature": "auto"}]


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, *tensors):
        return thinformer_attention(*tensors, **self.options)


def multihead(exact=False):
    module = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    convert(module, options=LayerOptions(exact=True) if exact else OPTIONS)
    return module


MODELS = {
    **{f"function {options}": (Attention(**options), qkv()) for options in CHOICES},
    "module": (ThinformerAttention(use_torch_spda=True), qkv()),
    "multihead": (multihead(), [torch.randn(2, 300, 8)] * 3),
}
EACH_MODEL = pytest.mark.parametrize(("model", "tensors"), MODELS.values(), ids=MODELS)


@EACH_MODEL
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_says_what_to_use(model, tensors):
    with pytest.raises(NotImplementedError, match=r"cannot be traced .* Use torch\.export\.export"):
        torch.jit.trace(model, tuple(tensors))


class Sdpa(nn.Module):
    def forward(self, query, key, value):
        return nn.functional.scaled_dot_product_attention(query, key, value)


def converted(model):
    convert(model, options=OPTIONS)
    return model


SCRIPTED = {
    "module": ThinformerAttention(),
    "own": converted(Sdpa()),
    "multihead": multihead(),
    "of a model": nn.Sequential(nn.Identity(), converted(nn.TransformerEncoderLayer(8, 2))),
}


@pytest.mark.parametrize("model", SCRIPTED.values(), ids=SCRIPTED)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own
def test_a_script_says_what_to_use(model):
    with pytest.raises(
        NotImplementedError,
        match=r"^(ThinformerAttention|Sdpa|MultiheadAttention): torch\.jit\.script cannot compile "
        r"thinformer attention\. Use torch\.export\.export or torch\.compile$",
    ):
        torch.jit.script(model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_a_reverted_model_is_scripted():
    model, x = converted(Sdpa()), torch.randn(1, 2, 30, 4)
    revert(model)
    torch.testing.assert_close(torch.jit.script(model)(x, x, x), model(x, x, x))


@pytest.mark.slow
@EACH_MODEL
def test_what_it_says_to_use_works(model, tensors):
    with torch.no_grad():
        exported = torch.export.export(model, tuple(tensors)).module()
        torch.manual_seed(0)
        got = exported(*tensors)
        torch.manual_seed(0)
        torch.testing.assert_close(got, model(*tensors))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_exact_layers_are_traced():
    module, x = multihead(exact=True), torch.randn(2, 300, 8)
    torch.testing.assert_close(torch.jit.trace(module, (x, x, x))(x, x, x), module(x, x, x))


@pytest.mark.parametrize("model", [Attention(), ThinformerAttention()])
def test_meta_says_what_works(model):
    tensors = [x.to("meta") for x in qkv()]
    with pytest.raises(NotImplementedError, match="^query is on device meta") as error:
        model(*tensors)
    assert ".cpu()" not in str(error.value)
    for remedy in ("to_empty", "torch.export.export", "FakeTensorMode"):
        assert remedy in str(error.value)


@pytest.mark.parametrize("options", CHOICES)
def test_fake_tensors_give_shapes(options):
    with FakeTensorMode() as mode:
        tensors = [mode.from_tensor(x) for x in qkv()]
        assert thinformer_attention(*tensors, **options).shape == (2, 7, 4, 5)


def test_vmap_cannot_look_at_a_mask():
    query, key, value = (x[None] for x in qkv())
    mask = torch.zeros(1, 2, 1, 1, 300)

    def function(query, key, value, mask):
        return thinformer_attention(query, key, value, attn_mask=mask)

    with pytest.raises(NotImplementedError, match=r"^attn_mask would .* under torch\.vmap: give"):
        torch.vmap(function, randomness="same")(query, key, value, mask)
