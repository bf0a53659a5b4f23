"""`KeySelection` and `LayerOptions`: checked where they are made, and taken by every function."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensors import qkv
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from thinformer import ThinformerAttention, thinformer_attention
from thinformer.attending.options import (
    LAYER_NAMES,
    NEVER,
    PUBLISHED,
    SELECTION_NAMES,
    given_options,
    layer_options,
)
from thinformer.attending.settings import load_settings, save_settings
from thinformer.halving.plan import plan
from thinformer.torch import KeySelection, LayerOptions, convert, revert

OPTIONS = LayerOptions(
    KeySelection(size=20, correction="queries", min_length=10), fallback=None, seed=None
)
KEYWORDS = {
    "size": 20, "correction": "queries", "min_length": 10, "fallback": None, "seed": None
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"g": -1}, "g must be an integer of at least 0; got -1"),
        ({"g": True}, "g must be an integer of at least 0; got True"),
        ({"size": 0}, "size must be an integer of at least 1; got 0"),
        ({"pre_thin": "odd"}, "pre_thin must be one of 'even', 'stride'; got 'odd'"),
        ({"correction": "nyström"}, "correction must be one of None, 'nystrom', 'queries'; got 'n"),
        ({"temperature": "warm"}, "temperature must be None, 'auto' or a number; got 'warm'"),
        ({"temperature": 0}, "temperature must be positive and finite; got 0"),
        ({"min_length": 1.5}, "min_length must be an integer of at least 0; got 1.5"),
        ({"min_length": "short"}, "min_length must be 'auto' or an integer; got 'short'"),
        (
            {"pre_thin": "stride", "correction": "queries"},
            "pre_thin must be 'even' with a correction, which does not thin; got 'stride'",
        ),
        (
            {"pre_thin": "stride", "correction": None, "temperature": "auto"},
            "pre_thin must be 'even' with a temperature, which does not thin; got 'stride'",
        ),
    ],
)
def test_bad_selections(fields, message):
    with pytest.raises(ValueError) as error:
        KeySelection(**fields)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"selection": 64}, TypeError, "selection must be a KeySelection; got int"),
        ({"exact": 1}, TypeError, "exact must be True or False; got 1"),
        ({"fallback": "none"}, ValueError, "fallback must be one of 'exact'; got 'none'"),
        (
            {"fallback": None, "error_threshold": 0.1},
            ValueError,
            "error_threshold belongs to a fallback, which is",
        ),
        ({"error_threshold": "0.1"}, ValueError, "error_threshold must be finite"),
        ({"error_threshold": float("nan")}, ValueError, "error_threshold must be finite; got nan"),
        ({"seed": -1}, ValueError, "seed must be an integer of at least 0; got -1"),
        ({"seed": True}, ValueError, "seed must be an integer of at least 0; got True"),
        ({"seed": 2**63}, ValueError, "seed must be below 2^63, the range of int64; got 92233720"),
        ({"unsupported": "warn"}, ValueError, "unsupported must be one of 'raise', 'exact'; got"),
        ({"unsupported": None}, ValueError, "unsupported must be one of 'raise', 'exact'; got N"),
        (
            {"fallback": "exact", "error_threshold": -1},
            ValueError,
            "error_threshold must not be negative; got -1",
        ),
    ],
)
def test_bad_layers(fields, error, message):
    with pytest.raises(error) as raised:
        LayerOptions(**fields)
    assert str(raised.value).startswith(message)


def test_options_do_not_change():
    for options in (OPTIONS, OPTIONS.selection):
        with pytest.raises(dataclasses.FrozenInstanceError):
            options.size = 3
    assert KeySelection(g=np.int64(3)).g == 3
    assert type(KeySelection(size=np.int64(3)).size) is int


@pytest.mark.parametrize(
    ("correction", "temperature", "method", "tau"),
    [
        (None, None, "halving", None),
        (None, "auto", "herding", None),
        (None, 2, "herding", 2.0),
        ("nystrom", None, "nystrom", None),
        ("queries", "auto", "queries", None),
        ("queries", 3.0, "queries", 3.0),
    ],
)
def test_method(correction, temperature, method, tau):
    selection = KeySelection(correction=correction, temperature=temperature)
    assert (selection.method, selection.tau) == (method, tau)


@pytest.mark.parametrize("tokens", [9, 10, 300])
def test_the_plan_of_a_selection(tokens):
    """A sequence of fewer tokens than min_length keeps them all."""
    planned = OPTIONS.selection.plan(tokens)
    assert planned == plan(tokens, 2, 9 if tokens == 9 else 20, 0.5)
    assert planned.schedule.size == min(tokens, 20)


def test_settings_by_name_and_back(tmp_path):
    """Every field is a setting of a file and a keyword, whatever fields there are."""
    settings = OPTIONS.settings()
    assert set(settings) == {*SELECTION_NAMES, *LAYER_NAMES}
    assert layer_options(**settings) == OPTIONS
    written = {name: value for name, value in settings.items() if name not in ("g", "exact")}
    save_settings(tmp_path / "settings.json", {"a": written}, {})
    assert layer_options(**load_settings(tmp_path / "settings.json")["a"]) == OPTIONS


def test_either_the_object_or_keywords():
    assert given_options(OPTIONS, g=2, size=None) is OPTIONS
    assert given_options(None, **KEYWORDS) == OPTIONS
    with pytest.raises(ValueError, match=r"^options has all settings: size must be left out; got"):
        given_options(OPTIONS, g=2, size=20)
    with pytest.raises(TypeError, match=r"^options must be a LayerOptions; got KeySelection$"):
        given_options(OPTIONS.selection)
    assert given_options(OPTIONS, PUBLISHED, correction=None, fallback=None) is OPTIONS
    assert given_options(None, PUBLISHED, size=9).settings() == PUBLISHED.settings() | {"size": 9}
    with pytest.raises(ValueError, match=r"^options has all settings: correction must be left ou"):
        given_options(OPTIONS, PUBLISHED, correction="queries")


def test_defaults_and_the_published_method():
    """Options of a layer are for models, the published ones for the paper."""
    assert LayerOptions().settings() == {
        "g": 2, "size": None, "pre_thin": "even", "correction": "queries", "temperature": None,
        "min_length": "auto", "fallback": "exact", "error_threshold": None, "exact": False,
        "seed": 0, "unsupported": "raise",
    }  # fmt: skip
    assert PUBLISHED.settings() == LayerOptions().settings() | {
        "correction": None, "min_length": 0, "fallback": None, "seed": None
    }  # fmt: skip
    assert (LayerOptions().threshold, PUBLISHED.threshold) == (0.4, None)
    module = ThinformerAttention(options=LayerOptions())
    module.fallback = None  # without naming the threshold, which is the fallback's
    assert module.options == replace(LayerOptions(), fallback=None)
    assert ThinformerAttention().options == PUBLISHED
    for options in (LayerOptions(), PUBLISHED, OPTIONS):
        assert ThinformerAttention(options=options).options is options


@pytest.mark.parametrize(
    ("fields", "device", "tokens"),
    [
        ({}, "cpu", 2048),  # 128 of 2,048 tokens
        ({"g": 0}, "cpu", 2048),
        ({"g": 3}, "cpu", 4096),  # 512 of 4,096 tokens are an eighth
        ({"g": 4}, "cpu", 16_384),
        ({"size": 1}, "cpu", 2048),
        ({"size": 256}, "cpu", 2048),
        ({"size": 257}, "cpu", 2056),
        ({"size": 300, "g": 4}, "cpu", 2400),
        ({}, "cuda", NEVER),
        ({"size": 1}, "cuda", NEVER),
        ({}, "mps", NEVER),
        ({"min_length": 0}, "cpu", 0),
        ({"min_length": 300}, "cuda", 300),
        ({"min_length": 300, "size": 400}, "cpu", 300),
    ],
)
def test_least_length(fields, device, tokens):
    """From how many tokens on a sequence is thinned; `on` makes it a number."""
    selection = KeySelection(**fields)
    assert selection.least_length(device) == tokens
    assert selection.on(device) == KeySelection(**fields | {"min_length": tokens})
    layer = LayerOptions(selection)
    assert not layer.leaves_exact(tokens, tokens, device)
    assert layer.leaves_exact(tokens, tokens - 1, device) or tokens == 0
    few_queries = fields.get("min_length", "auto") == "auto"
    assert layer.leaves_exact(max(tokens - 1, 2), tokens, device) == few_queries
    assert layer.leaves_exact(1, tokens, device)


def test_a_huge_g_is_never_reached():
    assert KeySelection(g=10**9).least_length() == (8 << 25) ** 2


def test_the_module_takes_the_object():
    tensors = [x.float() for x in qkv()]
    results = []
    for module in (
        ThinformerAttention(size=20, correction="queries"),
        ThinformerAttention(options=OPTIONS),
    ):
        torch.manual_seed(0)
        results.append(module(*tensors))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"^options has all settings: size must be left out"):
        ThinformerAttention(size=20, options=OPTIONS)


@pytest.mark.parametrize(
    "options",
    [
        LayerOptions(KeySelection(size=20, min_length=0), fallback=None, exact=True),
        LayerOptions(KeySelection(size=20, correction=None, min_length=301), fallback=None),
        LayerOptions(KeySelection(correction="nystrom", min_length=301), fallback=None),
    ],
)
def test_a_module_that_stays_exact(options):
    query, key, value = qkv()
    output, weights = ThinformerAttention(options=options)(query, key, value)
    expected = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    torch.testing.assert_close(output, expected.transpose(1, 2))
    assert weights.shape[-1] == key.shape[1]


def test_settings_of_a_module_are_read_and_replaced_by_name():
    module = ThinformerAttention(g=1)
    module.size = 64
    assert (module.g, module.size, module.options.selection.size) == (1, 64, 64)
    assert module.min_length == 0  # without the object, any length is thinned
    with pytest.raises(ValueError, match=r"^size must be an integer of at least 1; got -1$"):
        module.size = -1
    assert module.size == 64


def test_convert_takes_the_object():
    results = []
    for arguments in (KEYWORDS, {"options": OPTIONS}):
        torch.manual_seed(0)
        model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        assert convert(model, **arguments).swapped == [""]
        assert model.thinformer == OPTIONS
        x = torch.randn(2, 40, 8)
        torch.manual_seed(1)
        results.append(model(x, x, x)[0])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"^settings are of each layer: size must be left out"):
        convert(model, {"": {"g": 2}}, options=OPTIONS)
    revert(model)


def test_transformers_take_the_object():
    pytest.importorskip("transformers")
    from thinformer.torch.transformers import configure, register

    module = nn.Linear(2, 2)
    with pytest.warns(UserWarning, match="^Linear has no layer that attends through transformers"):
        configure(module, options=OPTIONS)
    assert module.thinformer is OPTIONS
    register("thinformer-of-options", options=OPTIONS)
    for function in (register, lambda **settings: configure(module, **settings)):
        with pytest.raises(ValueError, match=r"^options has all settings: g must be left out"):
            function(g=3, options=OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"g": 1}, {"size": 20, "correction": "queries"}])
def test_options_are_made_inside_a_compiled_graph(settings):
    """The function makes its object in the graph; a frozen dataclass breaks none."""

    def attend(query, key, value):
        return thinformer_attention(query, key, value, **settings)

    tensors = [x.float() for x in qkv()]
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    results = []
    for function in (attend, compiled):
        torch.manual_seed(0)
        results.append(function(*tensors))
    torch.testing.assert_close(*results)


@pytest.mark.slow
def test_options_are_made_inside_an_exported_graph():
    class Model(nn.Module):
        def forward(self, query, key, value):
            return thinformer_attention(query, key, value, size=20)

    tensors = tuple(x.float() for x in qkv())
    tokens = torch.export.Dim("tokens", min=30)
    shapes = {"query": None, "key": {1: tokens}, "value": {1: tokens}}
    program = torch.export.export(Model(), tensors, dynamic_shapes=shapes)
    results = []
    for model in (Model(), program.module()):
        torch.manual_seed(0)
        results.append(model(*tensors))
    torch.testing.assert_close(*results)
