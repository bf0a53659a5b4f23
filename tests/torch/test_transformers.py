"""Models of transformers, randomly initialised, with Thinformer attention."""

import json
from functools import partial

import pytest
import torch
from compiling import compiled, graph_breaks
from layers import DRAWN
from torch.utils.checkpoint import checkpoint

pytest.importorskip("transformers")

from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    T5Config,
    T5EncoderModel,
    ViTConfig,
    ViTModel,
    WhisperConfig,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from thinformer import thinformer_attention
from thinformer.attending.settings import VERSION
from thinformer.torch.evaluation.record import through
from thinformer.torch.transformers import attention_layers, configure, register


@pytest.fixture(autouse=True)
def registered():
    """Other files register the same names."""
    register(**DRAWN)
    register("thinformer-all", size=4096, **DRAWN)  # exact, through all of our own code
    register("thinformer-few", size=40, **DRAWN | {"min_length": 0})


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64}  # fmt: skip
NAMES = [f"encoder.layer.{i}.attention.self" for i in range(2)]
TEXT = SMALL | {"vocab_size": 100, "max_position_embeddings": 512}
IMAGE = SMALL | {"image_size": 40, "patch_size": 2}


def make(cls, config, implementation="sdpa"):
    torch.manual_seed(0)
    model = cls(config).eval()
    model.set_attn_implementation(implementation)
    for parameter in model.parameters():
        parameter.requires_grad_(False).mul_(3)  # attention that is not uniform
    return model


def bert(implementation="sdpa", **config):
    return make(BertModel, BertConfig(**TEXT | config), implementation)


def text(*lengths, S=400, side="right"):
    """Tokens and attention mask of a padded batch, garbage in the padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 100, (len(lengths), S), generator=generator)
    mask = (torch.arange(S) < torch.tensor(lengths)[:, None]).long()
    if side == "left":
        mask = mask.flip(1)
    return {"input_ids": ids, "attention_mask": mask}


def run(model, seed=0, **inputs):
    torch.manual_seed(seed)
    return model(**inputs).last_hidden_state


ENCODERS = {
    "bert": lambda: (bert(), text(400, 400)),
    "vit": lambda: (make(ViTModel, ViTConfig(**IMAGE | {"image_size": 64})),
                    {"pixel_values": torch.ones(1, 3, 64, 64)}),
    "dinov2": lambda: (make(Dinov2Model, Dinov2Config(**IMAGE)),
                       {"pixel_values": torch.ones(1, 3, 40, 40)}),
    "clip vision": lambda: (make(CLIPVisionModel, CLIPVisionConfig(**IMAGE)),
                            {"pixel_values": torch.ones(1, 3, 40, 40)}),
    "whisper": lambda: (
        make(WhisperEncoder, WhisperConfig(
            d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
            num_mel_bins=8, max_source_positions=400)),
        {"input_features": torch.ones(1, 8, 800)},
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name):
    model, inputs = ENCODERS[name]()
    inputs = {key: x * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
              if x.is_floating_point() else x for key, x in inputs.items()}  # fmt: skip
    expected = run(model, **inputs)
    model.set_attn_implementation("thinformer-all")
    torch.testing.assert_close(run(model, **inputs), expected, rtol=1e-5, atol=1e-5)
    model.set_attn_implementation("thinformer")
    thinned = run(model, **inputs)
    assert not torch.allclose(thinned, expected, atol=1e-4)
    assert torch.equal(run(model, **inputs), thinned)  # by the seed
    assert not torch.equal(run(model, seed=1, **inputs), thinned)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_lost_on_the_way(side):
    """Without a mask function of our own transformers makes no mask, and says nothing."""
    inputs = text(400, 270, side=side)
    there = inputs["attention_mask"].bool()
    model = bert()
    expected = run(model, **inputs)
    model.set_attn_implementation("thinformer-all")
    torch.testing.assert_close(run(model, **inputs)[there], expected[there], rtol=1e-5, atol=1e-5)
    inputs["input_ids"][~there] = 7
    torch.testing.assert_close(run(model, **inputs)[there], expected[there], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["thinformer", "thinformer-few"])
def test_a_text_alone_and_padded_in_a_batch(implementation):
    """The same keys, so the same embedding: thinned, and too short to be."""
    model = bert(implementation)
    inputs = text(400, 300, 120)
    batch = run(model, **inputs)
    for b, length in enumerate((400, 300, 120)):
        alone = run(model, **{key: x[b : b + 1, :length] for key, x in inputs.items()})
        torch.testing.assert_close(batch[b, :length], alone[0], rtol=1e-5, atol=1e-5)
    exact = run(bert(), **inputs)
    short = torch.allclose(batch[2, :120], exact[2, :120], atol=1e-5)
    assert short == (implementation == "thinformer")
    assert not torch.allclose(batch[1, :300], exact[1, :300], atol=1e-4)


def test_short_sequences_stay_exact():
    inputs = text(255, 200, S=255)
    assert torch.equal(run(bert("thinformer"), **inputs), run(bert(), **inputs))


CAUSAL = {
    "encoder.layers.0.self_attn (CLIPAttention)": lambda: make(
        CLIPTextModel,
        CLIPTextConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, **TEXT), "thinformer"),
    "encoder.layer.0.attention.self (BertSelfAttention)":
        lambda: bert("thinformer", is_decoder=True),
    "layers.0.self_attn (LlamaAttention)":
        lambda: make(LlamaModel, LlamaConfig(**TEXT), "thinformer"),
}  # fmt: skip


REMEDY = (
    ". Leave such layers exact with register(unsupported='exact'), or this one with "
    "thinformer.torch.transformers.configure(layer, exact=True)"
)


@pytest.mark.parametrize("layer", CAUSAL)
@pytest.mark.parametrize("length", [12, 400])
def test_causal_models_raise_and_name_the_layer(layer, length):
    with pytest.raises(NotImplementedError) as error:
        CAUSAL[layer]()(**text(length, length // 2, S=length))
    assert str(error.value).startswith(f"{layer}: it is causal, and ")
    assert str(error.value).endswith(REMEDY)


def test_steps_of_decoding_stay_exact():
    config = LlamaConfig(**TEXT, num_key_value_heads=1)
    model = make(LlamaModel, config)
    ids = text(300, S=300)["input_ids"]
    outputs = []
    for implementation in ("sdpa", "thinformer"):
        model.set_attn_implementation("sdpa")
        cache = DynamicCache(config=config)
        model(input_ids=ids, cache=cache)
        model.set_attn_implementation(implementation)
        outputs.append(run(model, input_ids=ids[:, :1], cache=cache))
    assert torch.equal(*outputs)


def test_chunks_of_decoding_are_causal_and_raise():
    """Several queries over a longer cache, where top-left and bottom-right masks differ."""
    config = LlamaConfig(**TEXT, num_key_value_heads=1)
    model = make(LlamaModel, config)
    ids, cache = text(300, S=300)["input_ids"], DynamicCache(config=config)
    model(input_ids=ids, cache=cache)
    model.set_attn_implementation("thinformer")
    with pytest.raises(NotImplementedError, match=r"^layers\.0\.self_attn \(LlamaAtt.*\): it is c"):
        model(input_ids=ids[:, :5], cache=cache)


def test_position_bias_raises():
    config = T5Config(vocab_size=100, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    model = make(T5EncoderModel, config, "thinformer")
    with pytest.raises(NotImplementedError, match=r"SelfAttention \(T5Attention\): .* position_b"):
        model(**text(400))


def test_sliding_windows_raise():
    model = make(MistralModel, MistralConfig(**TEXT, sliding_window=64, num_key_value_heads=1),
                 "thinformer")  # fmt: skip
    with pytest.raises(NotImplementedError, match=r"^layers\.0\.self_attn \(Mistral.*sliding_w"):
        model(**text(400))


@pytest.mark.parametrize("option", ["softcap", "s_aux", "cu_seq_lens_q", "never_heard_of"])
def test_arguments_are_never_swallowed(option):
    with pytest.raises(NotImplementedError, match=rf"^{NAMES[0]} \(BertSelf.*\): .* {option}"):
        bert("thinformer")(**text(400), **{option: torch.tensor(2)})


def test_masks_by_query_raise_and_name_the_layer():
    inputs = text(400)
    inputs["attention_mask"] = torch.ones(1, 1, 400, 400, dtype=torch.bool).tril()
    message = rf"^{NAMES[0]} \(Bert.*\): attention_mask differs by query.*: attention_mask \(B, S\)"
    with pytest.raises(NotImplementedError, match=message):
        bert("thinformer")(**inputs)


@pytest.mark.slow
def test_layers_of_their_own():
    inputs = text(400)
    model = bert("thinformer")
    for layer in model.encoder.layer:
        configure(layer, exact=True)
    assert torch.equal(run(model, **inputs), run(bert(), **inputs))
    configure(model.encoder.layer[1], g=0, **DRAWN)
    assert not torch.allclose(run(model, **inputs), run(bert(), **inputs), atol=1e-4)
    configure(model.encoder.layer[1], size=400, **DRAWN)
    torch.testing.assert_close(run(model, **inputs), run(bert(), **inputs), rtol=1e-5, atol=1e-5)
    decoder = CAUSAL["layers.0.self_attn (LlamaAttention)"]()
    configure(decoder, exact=True)
    sdpa = make(LlamaModel, LlamaConfig(**TEXT))
    assert torch.equal(run(decoder, **inputs), run(sdpa, **inputs))


@pytest.mark.slow
@pytest.mark.parametrize(
    "few",
    [{"size": 40} | DRAWN | {"correction": "queries"},
     {"size": 40, "temperature": "auto"} | DRAWN,
     {"size": 40} | DRAWN | {"fallback": "exact", "error_threshold": 9.0}],
)  # fmt: skip
def test_a_file_of_settings(tmp_path, few):
    """Each layer attends as with its settings alone, in padded batches too."""
    inputs, exact = text(400, 300), run(bert(), **text(400, 300))
    path = tmp_path / "settings.json"
    for i in (0, 1):
        layers = {NAMES[i]: {"exact": True}, NAMES[1 - i]: few}
        path.write_text(json.dumps({"version": VERSION, "layers": layers}))
        model, by_hand = bert("thinformer"), bert("thinformer")
        configure(model, path)
        configure(by_hand.encoder.layer[i], exact=True)
        configure(by_hand.encoder.layer[1 - i], **few)
        assert torch.equal(run(model, **inputs), run(by_hand, **inputs))
        assert not torch.allclose(run(model, **inputs), exact, atol=1e-4)
    configure(model, settings={name: {"exact": True} for name in NAMES})
    assert torch.equal(run(model, **inputs), exact)


def test_herded_keys():
    """Those of the function, of one layer."""
    register("thinformer-herded", size=40, temperature="auto", **DRAWN)
    models = [bert(name) for name in ("sdpa", "thinformer-herded", "thinformer")]
    configure(models[1].encoder.layer[0], exact=True)
    configure(models[2].encoder.layer[0], exact=True)
    calls, inputs = [], text(400, 300)
    for model in models:
        model.encoder.layer[1].attention.self.register_forward_hook(
            lambda module, arguments, output: calls.append((arguments[0], output[0]))
        )
        run(model, **inputs)
    hidden, (exact, herded, thinned) = calls[0][0], [output for _, output in calls]
    layer = models[0].encoder.layer[1].attention.self
    torch.manual_seed(0)
    expected = thinformer_attention(
        *(x(hidden).unflatten(-1, (2, 16)) for x in (layer.query, layer.key, layer.value)),
        size=40, temperature="auto", key_padding_mask=inputs["attention_mask"] == 0,
    ).flatten(2)  # fmt: skip
    torch.testing.assert_close(herded, expected)
    assert not torch.allclose(herded, thinned, atol=1e-3)
    assert not torch.allclose(herded, exact, atol=1e-3)


@pytest.mark.slow
def test_fallback():
    """Beyond the threshold attention is exact, but for nothing is it not."""
    few, inputs = {"size": 40} | DRAWN | {"fallback": "exact"}, text(400, 300)
    model, exact = bert("thinformer"), run(bert(), **inputs)
    configure(model, **few, error_threshold=0.0)
    torch.testing.assert_close(run(model, **inputs)[0], exact[0], rtol=1e-5, atol=1e-5)
    configure(model, exact=True)
    configure(model.encoder.layer[1], **few, error_threshold=9.0)
    thinned = run(model, **inputs)
    configure(model.encoder.layer[1], size=40, **DRAWN)
    assert torch.equal(run(model, **inputs), thinned)


@pytest.mark.slow
def test_a_size_is_kept_for_any_length():
    """Of no more tokens all are kept."""
    model = bert("thinformer")
    configure(model, {name: {"size": 300, **DRAWN} for name in NAMES})
    short, long = text(300, S=300), text(301, S=301)
    torch.testing.assert_close(run(model, **short), run(bert(), **short), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(run(model, **long), run(bert(), **long), atol=1e-5)


def test_settings_of_another_model():
    with pytest.raises(ValueError, match=rf"^settings: has nothing for '{NAMES[1]}' of the model"):
        configure(bert("thinformer"), {NAMES[0]: {"g": 2}})
    with pytest.raises(ValueError, match=r"no attention layer 'layer0'; it has 'encoder\.layer\.0"):
        configure(bert("thinformer"), {"layer0": {"g": 2}})
    with pytest.raises(ValueError, match="^settings are of each layer: exact must be left out"):
        configure(bert("thinformer"), {"layer0": {"g": 2}}, exact=True)


def test_what_settings_do_not_name_is_exact():
    """A module that attends, and does not look like it."""

    class Hidden(BertSelfAttention):
        def forward(self, *arguments, **options):
            return super().forward(*arguments, **options)

    model, by_hand = bert("thinformer"), bert("thinformer")
    model.encoder.layer[1].attention.self.__class__ = Hidden
    with pytest.warns(UserWarning, match="^BertModel also attends .* encoder.layer.1.attention$"):
        configure(model, {NAMES[0]: {"size": 40, **DRAWN}})
    configure(by_hand.encoder.layer[0], size=40, **DRAWN)
    configure(by_hand.encoder.layer[1], exact=True)
    assert torch.equal(run(model, **text(400)), run(by_hand, **text(400)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_attention_layers_are_those_that_are_called(name):
    model, inputs = ENCODERS[name]()
    called = []
    through(lambda module, *a, **o: called.append(module) or sdpa(module, *a, **o), model, inputs)
    assert called == list(attention_layers(model).values())


def test_bad_settings():
    with pytest.raises(ValueError, match="^g must be an integer of at least 0; got -1"):
        register(g=-1)
    with pytest.raises(ValueError, match="^min_length must be an integer of at least 0; got 1.5"):
        configure(torch.nn.Linear(1, 1), min_length=1.5)


def test_dropout_reaches_the_attention_weights():
    model = bert("thinformer", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.5)
    evaluated = run(model, **text(400))
    assert not torch.allclose(run(model.train(), **text(400)), evaluated, atol=1e-3)


@pytest.mark.slow
def test_training_with_dropout_and_checkpointing():
    gradients = []
    for recompute in (False, True):
        model = bert("thinformer").train()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        if recompute:
            for layer in model.encoder.layer:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        run(model, **text(400, 300)).square().mean().backward()
        gradients.append(model.embeddings.word_embeddings.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", pytest.param("vit", marks=pytest.mark.nightly)])
def test_compile_breaks_no_graph(name):
    model, inputs = ENCODERS[name]()
    if name == "bert":
        inputs = text(400, 300)
    model.set_attn_implementation("thinformer")
    expected = run(model, **inputs)
    fast, counter = compiled(model)
    torch.testing.assert_close(run(fast, **inputs), expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1
    assert graph_breaks() == 0
