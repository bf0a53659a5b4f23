"""`report` against hooks that count what ran, and warnings where nothing is thinned."""

import warnings

import pytest
import torch
from diffusers_stub import Attention, SDPAProcessor
from layers import randomised, tokens
from small_models import ALL, OF_TRANSFORMERS, adapt, bert, encoder, own
from torch import nn
from torchvision_stub import torchvision

pytest.importorskip("transformers")
with torchvision():
    pytest.importorskip("timm")

import transformers

from thinformer.torch import convert, report, revert
from thinformer.torch.attend import layer as attend_layer
from thinformer.torch.layers import attention_modules
from thinformer.torch.report import NOT_RUN
from thinformer.torch.transformers import attention_layers, configure, register

FEW = {"size": 40, "min_length": 0}
NEVER_ROUTED = "it was never routed to thinformer"


class Counted:
    """What ran in each attention module of a model: (queries, keys, kept, share of exact heads)."""

    def __init__(self, model, monkeypatch):
        self.ran, self.stack = {}, []
        for name, module in attention_modules(model).items():
            module.register_forward_pre_hook(self.entering(name), with_kwargs=True)
            module.register_forward_hook(self.leave)
        for name in ("attend_to_few", "attend_to_landmarks"):
            attend_to = getattr(attend_layer, name)
            monkeypatch.setattr(attend_layer, name, self.thinning(attend_to))
        monkeypatch.setattr(attend_layer, "fall_back", self.falling(attend_layer.fall_back))

    def leave(self, *_):
        self.stack.pop()

    def entering(self, name):
        def enter(module, arguments, options):
            self.stack.append(name)
            tensors = [*arguments, *options.values()]
            x = next(x for x in tensors if isinstance(x, torch.Tensor))
            self.ran[name] = (x.shape[1], x.shape[1], x.shape[1], 1.0)

        return enter

    def thinning(self, attend_to):
        def attend(heads, *others):
            output, weights, indices = attend_to(heads, *others)
            kept = int((indices >= 0).sum(-1).max())
            self.ran[self.stack[-1]] = (heads.query.shape[1], heads.key.shape[1], kept, 0.0)
            return output, weights, indices

        return attend

    def falling(self, fall_back):
        def fall(heads, output, above, *others):
            exact = float(above.double().mean())
            self.ran[self.stack[-1]] = (*self.ran[self.stack[-1]][:3], exact)
            return fall_back(heads, output, above, *others)

        return fall


def diffusers():
    model = nn.ModuleDict({"attn": Attention(SDPAProcessor()), "more": Attention(SDPAProcessor())})
    return randomised(model), lambda m: m["more"](m["attn"](tokens()))


EVERY = ALL | {"diffusers": diffusers}
SETTINGS = {
    "thinned": FEW | {"fallback": None},
    "some heads fall back": FEW | {"error_threshold": 0.7},
    "all heads fall back": FEW | {"error_threshold": 0.0, "correction": "nystrom"},
    "too short": {"size": 40, "min_length": 1000},
    "fewer tokens than are kept": {"size": 400, "min_length": 0},
    "published": FEW | {"correction": None, "fallback": None},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", EVERY)
def test_rows_are_what_ran(name, settings, monkeypatch):
    model, call = EVERY[name]()
    if name in OF_TRANSFORMERS:
        adapt(name, model, **SETTINGS[settings])
    else:
        assert len(convert(model, **SETTINGS[settings]).swapped) == 2
    assert [row[1:] for row in report(model)] == [(None, None, None, None, NOT_RUN)] * 2
    counted = Counted(model, monkeypatch)
    call(model)
    rows = report(model)
    assert {row.layer: row[1:5] for row in rows} == counted.ran
    assert all((row.exact == 0) == (row.why == "") for row in rows)
    expected = {"thinned": {0.0}, "all heads fall back": {1.0}, "too short": {1.0},
                "published": {0.0}}  # fmt: skip
    if settings in expected:
        assert {row.exact for row in rows} == expected[settings]
    if settings == "too short":
        assert {row.why for row in rows} == {"fewer than min_length = 1000 tokens"}


def test_layers_with_settings_of_their_own(monkeypatch):
    model, call = bert()
    adapt("bert", model, **FEW, fallback=None)
    configure(model.encoder.layer[1], exact=True)
    counted = Counted(model, monkeypatch)
    call(model)
    rows = report(model)
    assert {row.layer: row[1:5] for row in rows} == counted.ran
    assert [row.exact for row in rows] == [0.0, 1.0]
    assert rows[1].why == "its settings say exact"


def test_layers_that_convert_leaves_exact():
    first, second = own()[0], own()[0]
    convert(first, {"0": {"exact": True}, "1": FEW})
    first(tokens())
    assert [row[3:] for row in report(first)] == [
        (None, None, "its settings say exact"), (40, *report(first)[1][4:])
    ]  # fmt: skip
    second(tokens())
    assert [row.why for row in report(second)] == [NEVER_ROUTED] * 2


def test_the_last_pass_counts():
    """Of several, of which one has a single query; revert forgets it."""
    model, call = encoder()
    convert(model, **FEW, fallback=None)
    call(model)
    assert [row[1:5] for row in report(model)] == [(300, 300, 40, 0.0)] * 2
    model(tokens(S=1))
    assert [row[1:] for row in report(model)] == [(1, 1, 1, 1.0, "a single query")] * 2
    model(tokens(S=100)[:1])
    assert [row[1:5] for row in report(model)] == [(100, 100, 40, 0.0)] * 2
    revert(model)
    assert [row[1:] for row in report(model)] == [(*[None] * 4, NEVER_ROUTED)] * 2


def test_printed():
    model, call = encoder()
    convert(model, **FEW, fallback=None)
    assert str(report(model)).splitlines()[1].split()[:5] == ["layers.0.self_attn", *"----"]
    call(model)
    assert str(report(model)).splitlines() == [
        "layer               queries  keys  kept  thinned  why exact",
        "layers.0.self_attn      300   300    40     100%",
        "layers.1.self_attn      300   300    40     100%",
    ]
    convert(model, size=40, min_length=301)
    call(model)
    assert str(report(model)).splitlines()[2] == (
        "layers.1.self_attn      300   300   300       0%  fewer than min_length = 301 tokens"
    )


def test_a_compiled_graph_records_nothing():
    model, call = encoder()
    convert(model, **FEW, fallback=None)
    with torch.no_grad():
        call(torch.compile(model, backend="eager", fullgraph=True))
    assert [row.why for row in report(model)] == [NOT_RUN] * 2


def warned(function):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        function()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", ["bert", "vit", "encoder", "own"])
def test_what_auto_leaves_exact_warns_once_a_model(name):
    """Its layers, of one class, are two; a second pass, and a single query, say nothing."""
    model, call = ALL[name]()
    adapt(name, model)
    [message] = warned(lambda: call(model))
    keys = "325" if name == "vit" else "300"
    assert f" attends to {keys} keys, exactly: fewer than 2048 tokens, below which" in message
    assert warned(lambda: call(model)) == []
    model, call = ALL[name]()
    adapt(name, model, min_length=2048)  # who gives a number knows
    assert warned(lambda: call(model)) == []


def test_convert_that_finds_nothing_warns():
    [message] = warned(lambda: convert(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
    assert message == (
        "convert found no attention to thin in Sequential; it has no attention module"
    )
    model = nn.ModuleDict({"a": nn.MultiheadAttention(32, 2, add_zero_attn=True)})
    [message] = warned(lambda: convert(model))
    assert message.startswith("convert found no attention to thin in ModuleDict; a: it adds keys o")
    assert warned(lambda: convert(model, {})) == []


def test_configure_of_a_model_on_another_implementation_warns():
    model, _ = bert()
    [message] = warned(lambda: configure(model, g=1))
    assert message == (
        "BertModel attends by 'sdpa', so its settings have no effect before register() and "
        "model.set_attn_implementation('thinformer')"
    )
    register("thinformer-of-report")
    model.set_attn_implementation("thinformer-of-report")
    assert warned(lambda: configure(model, g=1)) == []
    assert warned(lambda: configure(model.encoder.layer[0], g=1)) == []


def test_configure_of_a_model_that_attends_in_two_ways_warns():
    register("thinformer-of-report")
    config = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    siglip = transformers.SiglipVisionModel(config)  # its head is torch's
    siglip.set_attn_implementation("thinformer-of-report")
    [message] = warned(lambda: configure(siglip, g=1))
    assert message == (
        "SiglipVisionModel also attends without transformers' AttentionInterface, exactly: "
        "head.attention"
    )
    assert warned(lambda: configure(siglip.encoder, g=1)) == []
    with torch.device("meta"):
        mixed = transformers.Mask2FormerModel(transformers.Mask2FormerConfig())
    [message] = [m for m in warned(lambda: configure(mixed, g=1)) if "also attends" in m]
    others = attention_modules(mixed).keys() - attention_layers(mixed).keys()
    assert len(others) > 3
    assert message.endswith(", ...")
    named = message.removesuffix(", ...").split("exactly: ")[1].split(", ")
    assert set(named) < others


# model classes that attend by themselves, and the class of their attention
BY_THEMSELVES = {
    "BarkModel": "BarkSelfAttention",
    "BigBirdModel": "BigBirdBlockSparseAttention",
    "BlipModel": "BlipAttention BlipTextSelfAttention",
    "BloomModel": "BloomAttention",
    "BrosModel": "BrosSelfAttention",
    "CanineModel": "CanineSelfAttention",
    "ClvpModelForConditionalGeneration": "ClvpSelfAttention",
    "ConvBertModel": "ConvBertSelfAttention",
    "CpmAntModel": "CpmAntAttention",
    "DebertaModel": "DisentangledSelfAttention",
    "DebertaV2Model": "DisentangledSelfAttention",
    "FalconModel": "FalconAttention",
    "FastSpeech2ConformerModel": "FastSpeech2ConformerAttention",
    "FlaubertModel": "MultiHeadAttention",
    "FlavaModel": "FlavaSelfAttention",
    "FSMTModel": "Attention",
    "FunnelModel": "FunnelRelMultiheadAttention",
    "GPTNeoXJapaneseModel": "GPTNeoXJapaneseAttention",
    "GroupViTModel": "GroupViTAssignAttention GroupViTAttention",
    "IBertModel": "IBertSelfAttention",
    "ImageGPTModel": "ImageGPTAttention",
    "LEDModel": "LEDDecoderAttention LEDEncoderSelfAttention",
    "LiltModel": "LiltSelfAttention",
    "LongformerModel": "LongformerSelfAttention",
    "LukeModel": "LukeSelfAttention",
    "LxmertModel": "LxmertAttention",
    "MegatronBertModel": "MegatronBertSelfAttention",
    "MgpstrForSceneTextRecognition": "MgpstrA3Module MgpstrAttention",
    "MobileViTModel": "MobileViTSelfAttention",
    "MobileViTV2Model": "MobileViTV2LinearSelfAttention",
    "MPNetModel": "MPNetSelfAttention",
    "MptModel": "MptAttention",
    "MraModel": "MraSelfAttention",
    "MvpModel": "MvpAttention",
    "NystromformerModel": "NystromformerSelfAttention",
    "OpenAIGPTModel": "Attention",
    "PerceiverModel": "PerceiverSelfAttention",
    "ProphetNetModel": "ProphetNetAttention ProphetNetNgramSelfAttention",
    "RemBertModel": "RemBertSelfAttention",
    "RoFormerModel": "RoFormerSelfAttention",
    "RwkvModel": "RwkvSelfAttention",
    "SamVisionModel": "SamVisionSdpaAttention",
    "SegGptModel": "SegGptAttention",
    "SEWDModel": "DisentangledSelfAttention",
    "SpeechT5Model": "SpeechT5Attention",
    "SqueezeBertModel": "SqueezeBertSelfAttention",
    "SwiftFormerModel": "SwiftFormerEfficientAdditiveAttention",
    "TapasModel": "TapasSelfAttention",
    "TimesformerModel": "TimesformerSelfAttention",
    "TvpModel": "TvpAttention",
    "ViltModel": "ViltSelfAttention",
    "VisualBertModel": "VisualBertSelfAttention",
    "VitDetModel": "VitDetAttention",
    "VitsModel": "VitsAttention",
    "WavLMModel": "WavLMAttention",
    "XGLMModel": "XGLMAttention",
    "XLMModel": "MultiHeadAttention",
    "XLNetModel": "XLNetRelativeAttention",
    "YosoModel": "YosoSelfAttention",
}
DEPTH = {"num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2,
         "encoder_layers": 1, "decoder_layers": 1}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_models_without_the_interface_warn_and_are_listed(name):
    """Of each, as it is by default with few layers; on the device "meta" nothing is computed."""
    cls = getattr(transformers, name)
    defaults = cls.config_class().to_dict()
    config = cls.config_class(**{key: DEPTH[key] for key in DEPTH if key in defaults})
    with torch.device("meta"):
        model = cls(config)
    assert attention_layers(model) == {}
    [message] = [m for m in warned(lambda: configure(model, g=1)) if "AttentionInterface" in m]
    assert message == (
        f"{name} has no layer that attends through transformers' AttentionInterface: its "
        f"attention stays exact"
    )
    for module in model.modules():
        del module.thinformer
    rows = report(model)
    classes = {type(model.get_submodule(row.layer)).__name__ for row in rows}
    assert classes == set(BY_THEMSELVES[name].split())
    assert {row[1:] for row in rows} == {(None, None, None, None, NEVER_ROUTED)}


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_models_with_the_interface_are_listed_as_they_are(name):
    model, call = ALL[name]()
    call(model)
    assert [row.layer for row in report(model)] == list(attention_layers(model))
    assert {row.why for row in report(model)} == {NEVER_ROUTED}
