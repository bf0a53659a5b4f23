"""`convert` and `revert`: timm, torch.nn and what only looks like them."""

import copy
import io
import json

import pytest
import torch
from compiling import compiled, graph_breaks
from layers import DRAWN, PADDING, randomised, run, tokens
from torch import nn
from torchvision_stub import torchvision

from thinformer import thinformer_attention
from thinformer.attending.settings import VERSION
from thinformer.torch import convert, load_settings, report, revert
from thinformer.torch.convert import _through_sdpa


def vit(pixels=40, **options):
    with torchvision():
        pytest.importorskip("timm")
        from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    return VisionTransformer(img_size=pixels, patch_size=2, embed_dim=32, depth=2, num_heads=2,
                             num_classes=5, **options).eval()  # fmt: skip


def image(pixels=40):
    return torch.randn(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(1))


def encoder(batch_first=True, **options):
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=batch_first, **options)
    nested = batch_first and not options.get("norm_first", False)
    return randomised(nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "class_token": False,
                                           "global_pool": "avg"}])  # fmt: skip
def test_timm(options):
    """1024 tokens or 1025, as 512 and more keys: size >= S equals exact attention."""
    model, x = vit(64, **options), image(64)
    expected = model(x)
    done = convert(model, size=4096, **DRAWN)
    assert done == (["blocks.0.attn", "blocks.1.attn"], {})
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    convert(model, g=1, **DRAWN)
    thinned = run(model, x)
    assert not torch.allclose(thinned, expected, atol=1e-5)
    assert torch.equal(run(model, x), thinned)
    convert(model, **DRAWN | {"min_length": 1100})
    assert torch.equal(model(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("few", [{"size": 50}, {"size": 50, "temperature": "auto"}])
def test_timm_as_the_function(few):
    """What a converted layer computes, by hand."""
    layer = vit().blocks[0].attn
    convert(layer, **few, **DRAWN)
    x = torch.randn(2, 400, 32)
    q, k, v = layer.qkv(x).reshape(2, 400, 3, 2, 16).unbind(2)
    torch.manual_seed(0)
    expected = layer.proj(thinformer_attention(q, k, v, **few).flatten(2))
    torch.testing.assert_close(run(layer, x), expected, rtol=1e-5, atol=1e-6)


def test_timm_masks_are_not_ignored():
    layer = vit().blocks[0].attn
    x = torch.randn(2, 400, 32)
    there = torch.arange(400) < torch.tensor([[400], [300]])
    mask = there[:, None, None].expand(2, 1, 400, 400)
    expected = layer(x, attn_mask=mask)
    convert(layer, size=400, **DRAWN)
    torch.testing.assert_close(layer(x, attn_mask=mask), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(NotImplementedError, match=r"^Attention: is_causal must be False"):
        layer(x, is_causal=True)
    with pytest.raises(NotImplementedError, match=r"^Attention: attn_mask differs by query"):
        layer(x, attn_mask=torch.ones(400, 400, dtype=torch.bool).tril())
    short = x[:, :200]
    torch.testing.assert_close(layer(short, is_causal=True),
                               vit().blocks[0].attn(short, is_causal=True))  # fmt: skip


def test_revert_is_bit_for_bit():
    for model, inputs in ((vit(), image()), (encoder(), tokens())):
        attributes = [(type(m), sorted(m.__dict__)) for m in model.modules()]
        state = copy.deepcopy(model.state_dict())
        before = model(inputs)
        convert(model, g=1, **DRAWN)
        assert list(model.state_dict()) == list(state)
        assert not torch.equal(model(inputs), before)
        convert(model, g=0, **DRAWN)
        revert(model)
        assert torch.equal(model(inputs), before)
        assert all(map(torch.equal, model.state_dict().values(), state.values()))
        assert [(type(m), sorted(m.__dict__)) for m in model.modules()] == attributes
        revert(model)


def test_what_is_left_and_why():
    class OwnAttention(nn.MultiheadAttention):
        pass

    model = nn.ModuleDict({
        "bias": nn.MultiheadAttention(32, 2, add_bias_kv=True),
        "zero": nn.MultiheadAttention(32, 2, add_zero_attn=True),
        "own": OwnAttention(32, 2),
        "decoder": nn.TransformerDecoderLayer(32, 2, 64),
        "linear": nn.Linear(2, 2),
    })  # fmt: skip
    done = convert(model)
    assert done.swapped == ["decoder.multihead_attn"]
    assert set(done.left) == {"bias", "zero", "own", "decoder.self_attn"}
    assert "adds keys of its own" in done.left["bias"]
    assert "adds keys of its own" in done.left["zero"]
    assert "causal" in done.left["decoder.self_attn"]
    assert done.left["own"].endswith("OwnAttention does not call scaled_dot_product_attention")
    layer = vit().blocks[0].attn
    layer.fused_attn = False
    with pytest.warns(UserWarning, match="^convert found no attention to thin in Attention; the m"):
        assert "fused_attn is False" in convert(layer).left[""]
    with pytest.raises(ValueError, match="^g must be"):
        convert(model, g=-1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_encoder_layers_do_not_pass_by_on_the_fast_path(batch_first, grad, norm_first):
    """Without gradients torch's fused encoder never calls the attention module."""
    model = encoder(batch_first, norm_first=norm_first)
    x, there = tokens(), ~PADDING
    if not batch_first:
        x, there = x.transpose(0, 1), there.T
    with torch.set_grad_enabled(grad):
        expected = model(x, src_key_padding_mask=PADDING)
        done = convert(model, size=300, **DRAWN)
        assert done.swapped == ["layers.0.self_attn", "layers.1.self_attn"]
        got = model(x, src_key_padding_mask=PADDING)
        torch.testing.assert_close(got[there], expected[there], rtol=1e-4, atol=1e-5)
        convert(model, size=20, **DRAWN)
        thinned = run(model, x, src_key_padding_mask=PADDING)
        changed = (thinned - expected).abs().amax(-1) > 1e-3
        lengths = (changed if batch_first else changed.T)[:, :10].any(1).tolist()
        assert lengths == [True, True, False]  # ten tokens are too few to thin
        revert(model)
        assert torch.equal(model(x, src_key_padding_mask=PADDING), expected)


def heads(**options):
    return randomised(nn.MultiheadAttention(32, 4, batch_first=True, **options))


@pytest.mark.parametrize("options", [{}, {"kdim": 8, "vdim": 6}, {"bias": False}])
def test_multihead_attention(options):
    """Query of another length, other dimensions, weights of either kind."""
    module = heads(**options)
    key = tokens()[..., : options.get("kdim", 32)]
    value = tokens(seed=2)[..., : options.get("vdim", 32)]
    query = tokens(S=7, seed=3)
    for average in (True, False):
        given = {"key_padding_mask": PADDING, "average_attn_weights": average}
        expected = module(query, key, value, **given)
        convert(module, size=300, **DRAWN)
        for x, y in zip(module(query, key, value, **given), expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)
        assert module(query, key, value, need_weights=False)[1] is None
        convert(module, size=20, **DRAWN)
        _, weights = module(query, key, value, **given)
        assert weights.shape == expected[1].shape
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert (weights[1, ..., PADDING[1]] == 0).all()
        if not average:
            assert ((weights[0] > 0).sum(-1) == 20).all()
        revert(module)


def test_boolean_masks_of_multihead_attention_mean_the_reverse():
    module, x = heads(), tokens()
    masks = {
        "key_padding_mask": PADDING,
        "float": torch.zeros(3, 300).masked_fill(PADDING, -torch.inf),
    }
    expected = module(x, x, x, key_padding_mask=PADDING)[0]
    ignored = PADDING[1].expand(300, 300)
    by_attn_mask = module(x, x, x, attn_mask=ignored)[0]
    convert(module, size=300, **DRAWN)
    for mask in masks.values():
        got = module(x, x, x, key_padding_mask=mask)[0]
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    for mask in (ignored, ignored.expand(12, 300, 300)):
        torch.testing.assert_close(module(x, x, x, attn_mask=mask)[0], by_attn_mask,
                                   rtol=1e-4, atol=1e-5)  # fmt: skip
    causal = torch.ones(300, 300, dtype=torch.bool).triu(1)
    for given in ({"attn_mask": causal}, {"attn_mask": causal, "is_causal": True}):
        with pytest.raises(NotImplementedError, match="differs by query|is_causal must be False"):
            module(x, x, x, **given)


def test_multihead_attention_without_a_batch():
    module, x = heads(), tokens()[1]
    expected = module(x, x, x, key_padding_mask=PADDING[1])
    convert(module, size=300, **DRAWN)
    got = module(x, x, x, key_padding_mask=PADDING[1])
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_dropout_in_training_only():
    module, x = heads(dropout=0.5), tokens()
    convert(module, size=300, **DRAWN)
    evaluated = module(x, x, x)[0]
    assert torch.equal(module(x, x, x)[0], evaluated)
    module.train()
    assert not torch.allclose(module(x, x, x)[0], evaluated)


@pytest.mark.slow
def test_gradients_reach_every_parameter():
    for model, inputs in ((vit(), image()), (encoder().train(), tokens())):
        convert(model, g=1, **DRAWN)
        model(inputs).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


@pytest.mark.slow
@pytest.mark.parametrize("make", [vit, encoder])
def test_converted_models_are_pickled_whole(make):
    """By torch.save, and read where nothing was converted yet; reverted there, too."""
    model, inputs = make(), image() if make is vit else tokens()
    before = model(inputs)
    convert(model, g=1, **DRAWN)
    thinned = run(model, inputs)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    _through_sdpa.cache_clear()
    with torchvision():
        other = torch.load(file, weights_only=False)
    assert torch.equal(run(other, inputs), thinned)
    assert not torch.equal(thinned, before)
    revert(other)
    assert torch.equal(other(inputs), before)
    assert [type(m) for m in other.modules()] == [type(m) for m in make().modules()]


def test_copies_are_converted_and_reverted_by_themselves():
    model = vit()
    before = model(image())
    convert(model, g=1, **DRAWN)
    other = copy.deepcopy(model)
    revert(model)
    assert torch.equal(model(image()), before)
    assert not torch.equal(other(image()), before)
    revert(other)
    assert torch.equal(other(image()), before)


@pytest.mark.slow
@pytest.mark.parametrize("make", [pytest.param(vit, marks=pytest.mark.nightly), encoder])
def test_compile_breaks_no_graph(make):
    model, inputs = make(), image() if make is vit else tokens()
    convert(model, g=1, **DRAWN)
    expected = run(model, inputs)
    fast, counter = compiled(model)
    torch.testing.assert_close(run(fast, inputs), expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1
    assert graph_breaks() == 0


@pytest.mark.slow
def test_a_file_of_settings(tmp_path):
    """Each layer attends as with its settings alone."""
    names = [f"layers.{i}.self_attn" for i in range(2)]
    few = {"size": 40} | DRAWN | {"correction": "nystrom"}
    path = tmp_path / "settings.json"
    layers = {names[0]: {"exact": True}, names[1]: few}
    path.write_text(json.dumps({"version": VERSION, "layers": layers}))
    model, by_hand = encoder(), encoder()
    done = convert(model, path)
    assert done == ([names[1]], {names[0]: "its settings say exact"})
    convert(by_hand.layers[1], **few)
    assert torch.equal(run(model, tokens()), run(by_hand, tokens()))
    assert not torch.allclose(run(model, tokens()), run(encoder(), tokens()), atol=1e-5)
    assert convert(model, settings=load_settings(path)) == done
    revert(model)
    assert torch.equal(run(model, tokens()), run(encoder(), tokens()))


@pytest.mark.parametrize("make", [vit, encoder])
def test_fallback(make):
    """Above the threshold attention is exact; never where it is high."""
    inputs = image() if make is vit else tokens()
    exact, model = make()(inputs), make()
    few = {"size": 40} | DRAWN | {"fallback": "exact"}
    convert(model, **few, error_threshold=0.0)
    torch.testing.assert_close(run(model, inputs), exact, rtol=1e-4, atol=1e-5)
    convert(model, **few, error_threshold=9.0)
    assert not torch.allclose(run(model, inputs), exact, atol=1e-4)


def test_weights_beside_a_fallback_are_exact():
    """A head that falls back has weights of all keys, so the call is exact, and `report` says so.

    Of a call without weights, no head is above a threshold of 9.
    """
    model, x = heads(), tokens()
    exact, exact_weights = model(x, x, x)
    convert(model, size=40, **DRAWN | {"fallback": "exact"}, error_threshold=9.0)
    with pytest.warns(UserWarning, match="^attention stays exact: need_weights=True .*=None"):
        output, weights = model(x, x, x)
    assert torch.equal(output, exact)
    assert torch.equal(weights, exact_weights)
    why = "need_weights=True with a fallback, which has weights of all keys"
    assert report(model) == (("", 300, 300, 300, 1.0, why),)
    thinned, weights = model(x, x, x, need_weights=False)
    assert weights is None
    assert not torch.allclose(thinned, exact, atol=1e-3)
    assert report(model) == (("", 300, 300, 40, 0.0, ""),)
    assert model(x[:, :99], x[:, :99], x[:, :99])[1].shape == (3, 99, 99)  # exact by its length


def test_a_module_that_attends_and_holds_one_that_does():
    """Thinning its own calls would thin those of the inner module twice."""

    class Outer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = heads()

        def forward(self, x):
            x = self.inner(x, x, x, need_weights=False)[0]
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    done = convert(torch.nn.ModuleDict({"outer": Outer()}))
    assert done.swapped == ["outer.inner"]
    assert done.left == {
        "outer": "modules in it attend, and are thinned; its own calls of "
        "scaled_dot_product_attention stay exact"
    }


def test_settings_of_another_model():
    g = {"g": 2}
    with pytest.raises(ValueError) as error:
        convert(encoder(), {f"layers.{i}": g for i in range(5)})
    assert str(error.value) == (
        "settings: the model has no attention layer 'layers.0', 'layers.1', 'layers.2' and 2 more; "
        "it has 'layers.0.self_attn', 'layers.1.self_attn'"
    )
    with pytest.raises(ValueError) as error:
        convert(encoder(), {"layers.1.self_attn": g})
    assert str(error.value) == (
        "settings: has nothing for 'layers.0.self_attn' of the model; "
        '{"exact": true} leaves a layer as it is'
    )
    with pytest.raises(ValueError, match=r"^settings: a: takes g or size; got both"):
        convert(encoder(), {"a": {"g": 2, "size": 3}})
    with pytest.raises(ValueError, match="it has none$"):
        convert(nn.Linear(1, 1), {"a": g})
    with pytest.raises(ValueError, match="^settings are of each layer: size must be left out; got"):
        convert(encoder(), {"a": g}, size=3)
    with pytest.raises(TypeError, match="^settings must be a file's path or a dict of layers; got"):
        convert(encoder(), 3)
