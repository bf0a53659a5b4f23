"""Attention that cannot be thinned raises, and names its layer, or stays exact by choice."""

import pytest
import torch
from layers import PADDING, randomised, tokens
from small_models import Own, made, text
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torchvision_stub import torchvision

pytest.importorskip("transformers")

import transformers

from thinformer.torch import KeySelection, LayerOptions, convert, report
from thinformer.torch.transformers import configure, register

FEW = {"size": 40, "min_length": 0}
LAYER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64, "vocab_size": 100}  # fmt: skip
DECODER = LAYER | {"num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0}
MASKED = torch.ones(1, 1, 300, 300, dtype=torch.bool)
REMEDY = (
    ". Leave such layers exact with register(unsupported='exact'), or this one with "
    "thinformer.torch.transformers.configure(layer, exact=True)"
)


@pytest.fixture(autouse=True)
def registered():
    register("thinformer-raise", **FEW)
    register("thinformer-exact", **FEW, unsupported="exact")


def bert(**options):
    return made(transformers.BertModel, transformers.BertConfig(**LAYER, **options))


def t5():
    return made(
        transformers.T5EncoderModel,
        transformers.T5Config(vocab_size=100, d_model=32, d_kv=16, d_ff=64, num_layers=2,
                              num_heads=2),
    )  # fmt: skip


def decoder(name, **options):
    cls, config = (getattr(transformers, f"{name}{kind}") for kind in ("Model", "Config"))
    return made(cls, config(**DECODER, **options), "eager")  # some have no "sdpa"


# a model, its inputs, the layer that is named, what is said of it, and what attends so without us
KINDS = {
    "causal": (lambda: decoder("Llama"), {}, "layers.0.self_attn (LlamaAttention)",
               "it is causal", "sdpa"),
    "a causal encoder": (lambda: bert(is_decoder=True), {},
                         "encoder.layer.0.attention.self (BertSelfAttention)", "it is causal",
                         "sdpa"),
    "sliding window": (lambda: decoder("Mistral", sliding_window=64), {},
                       "layers.0.self_attn (MistralAttention)", "sliding_window", "sdpa"),
    "position bias": (t5, {}, "encoder.block.0.layer.0.SelfAttention (T5Attention)",
                      "position_bias", "sdpa"),
    "softcap": (lambda: decoder("Gemma2", attn_logit_softcapping=0.5, query_pre_attn_scalar=16), {},
                "layers.0.self_attn (Gemma2Attention)", "softcap", "eager"),
    "s_aux": (lambda: decoder("GptOss", num_local_experts=2, num_experts_per_tok=1), {},
              "layers.0.self_attn (GptOssAttention)", "s_aux", "eager"),
    "mask by query": (bert, {"attention_mask": MASKED.tril(100)},
                      "encoder.layer.0.attention.self (BertSelfAttention)",
                      "attention_mask differs by query", "sdpa"),
    "bias of keys": (bert, {"attention_mask": torch.linspace(-2, 0, 300)[None, None, None]},
                     "encoder.layer.0.attention.self (BertSelfAttention)",
                     "attention_mask is a bias", "sdpa"),
}  # fmt: skip


def run(model, implementation, inputs):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(**inputs).last_hidden_state


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_transformers_raise(kind):
    """Any length of which more than one query attends: a layer that cannot be thinned says so."""
    make, given, layer, reason, _ = KINDS[kind]
    inputs = text(300) | given
    with pytest.raises(NotImplementedError) as error:
        run(make(), "thinformer-raise", inputs)
    message = str(error.value)
    assert message.startswith(f"{layer}: ")
    assert reason in message
    assert message.endswith(REMEDY)


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_transformers_stay_exact(kind):
    make, given, layer, reason, by = KINDS[kind]
    inputs, model = text(300) | given, make()
    expected = run(model, by, inputs)
    torch.testing.assert_close(
        run(model, "thinformer-exact", inputs), expected, rtol=1e-4, atol=1e-4
    )
    rows = report(model)
    assert len(rows) == 2
    assert rows[0].layer == layer.split()[0]
    for row in rows:
        assert row[1:5] == (300, 300, 300, 1.0)
    assert reason in rows[0].why
    model.set_attn_implementation("thinformer-raise")
    configure(model, exact=True)  # what the error recommends
    torch.testing.assert_close(
        run(model, "thinformer-raise", inputs), expected, rtol=1e-4, atol=1e-4
    )


def test_the_other_layers_are_thinned():
    """Of a model with sliding windows in some layers, the layers without."""
    config = transformers.ModernBertConfig(
        **LAYER | {"num_hidden_layers": 4}, cls_token_id=1, sep_token_id=2, pad_token_id=0
    )
    model = made(transformers.ModernBertModel, config)
    exact = run(model, "sdpa", text(300))
    thinned = run(model, "thinformer-exact", text(300))
    assert not torch.allclose(thinned, exact, atol=1e-3)
    assert [row.kept for row in report(model)] == [40, 300, 300, 40]
    assert "sliding_window" in report(model)[1].why


def test_weights_of_attention():
    """Exact layers return those of the model's own attention; others say which has them."""
    model, inputs = bert(), text(300)
    model.set_attn_implementation("eager")
    expected = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation("thinformer-raise")
    with pytest.raises(NotImplementedError, match=r"set_attn_implementation\('eager'\) returns th"):
        model(**inputs, output_attentions=True)
    configure(model, min_length=301)
    assert expected[1].shape == (1, 2, 300, 300)
    for got, wanted in zip(model(**inputs, output_attentions=True).attentions, expected,
                           strict=True):  # fmt: skip
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)
    model.set_attn_implementation("thinformer-exact")
    configure(model, **FEW, unsupported="exact")
    for got, wanted in zip(model(**inputs, output_attentions=True).attentions, expected,
                           strict=True):  # fmt: skip
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


class ThreeAxes(nn.Module):
    """Attends with the heads among the sequences, as SAM of timm does."""

    def forward(self, x):
        return scaled_dot_product_attention(x, x, x)


def calls_of_torch():
    bias = torch.linspace(-2, 0, 300).expand(300, 300)
    return {
        "is_causal": (Own(), {"is_causal": True}, "is_causal must be False"),
        "mask by query": (Own(), {"attn_mask": MASKED.tril(100)}, "attn_mask differs by query"),
        "bias": (Own(), {"attn_mask": bias}, "attn_mask is a bias"),
        "three axes": (ThreeAxes(), {}, "it attends with tensors of 3 axes, and thinformer takes"),
        "causal heads": (nn.MultiheadAttention(32, 2, batch_first=True),
                         {"attn_mask": ~MASKED[0, 0].tril(), "is_causal": True,
                          "need_weights": False}, "is_causal must be False"),
    }  # fmt: skip


class Holding(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.block = nn.ModuleDict({"attends": module})

    def forward(self, x, **options):
        module = self.block["attends"]
        if isinstance(module, nn.MultiheadAttention):
            return module(x, x, x, **options)[0]
        return module(x, **options)


@pytest.mark.parametrize("kind", calls_of_torch())
def test_converted_modules(kind):
    module, options, reason = calls_of_torch()[kind]
    model, x = randomised(Holding(module)), tokens()
    expected = model(x, **options)
    assert convert(model, **FEW).swapped == ["block.attends"]
    with pytest.raises(NotImplementedError) as error:
        model(x, **options)
    message = str(error.value)
    assert message.startswith(f"block.attends ({type(module).__name__.removeprefix('Thinned')}): ")
    assert reason in message
    assert message.endswith("Leave such layers exact with convert(model, unsupported='exact')")
    convert(model, **FEW, unsupported="exact")
    assert torch.equal(model(x, **options), expected)
    [row] = report(model)
    assert (row.layer, row.exact) == ("block.attends", 1.0)
    assert reason in row.why


def test_a_mask_of_keys_is_not_unsupported():
    model = randomised(Holding(Own()))
    convert(model, size=300, min_length=0, correction=None, fallback=None)
    mask = ~PADDING[:, None, None]
    thinned = model(tokens(), attn_mask=mask)
    exact = randomised(Holding(Own()))(tokens(), attn_mask=mask)
    torch.testing.assert_close(thinned, exact, rtol=1e-4, atol=1e-5)
    assert report(model)[0].exact == 0.0


@pytest.mark.parametrize("unsupported", ["raise", "exact"])
@pytest.mark.parametrize("name", ["beit", "sam"])
def test_blocks_of_timm_with_relative_positions_are_left(name, unsupported):
    """Their bias is a parameter, which is known before any call."""
    with torchvision():
        pytest.importorskip("timm")
        from timm.models import beit, vision_transformer_sam

    torch.manual_seed(0)
    if name == "beit":
        block, x = beit.Block(32, 2, init_values=0.1, window_size=(16, 16)), tokens(257)
    else:
        block = vision_transformer_sam.Block(32, 2, use_rel_pos=True, input_size=(16, 16))
        x = tokens(256).unflatten(1, (16, 16))
    block = randomised(block)
    expected = block(x)
    with pytest.warns(UserWarning, match="^convert found no attention to thin in Block; attn: it"):
        done = convert(block, options=LayerOptions(KeySelection(**FEW), unsupported=unsupported))
    assert done.swapped == []
    assert "it adds a relative position bias" in done.left["attn"]
    assert torch.equal(block(x), expected)
    [row] = report(block)
    assert (row.layer, row.exact) == ("attn", None)
