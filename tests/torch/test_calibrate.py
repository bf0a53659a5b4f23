"""`calibrate` learns which layers to thin, and `save_settings` keeps it in a file."""

import json

import pytest
import torch

from thinformer.attending.options import KeySelection, LayerOptions
from thinformer.torch import calibrate, convert, load_settings, report, save_settings

SELECTION = KeySelection(size=8, min_length=256)
OPTIONS = LayerOptions(SELECTION)
FLAT, ONE_PEAKED, PEAKED = "layers.0", "layers.1", "layers.2"


class Beside(torch.nn.Module):
    """Layers of 4 heads that all see the input; the last one only if it is long."""

    def __init__(self, peaked=(0, 1, 4)):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(
            torch.nn.MultiheadAttention(32, 4, batch_first=True) for _ in peaked
        )
        for layer, heads in zip(self.layers, peaked, strict=True):
            queries = layer.in_proj_weight.data[:32].view(4, 8, 32)
            queries[heads:] = 0  # uniform attention, which a correction fits
            queries[:heads] *= 3000  # nearly a single key

    def forward(self, x):
        if x.shape[1] > 1000:
            raise OSError("too long")
        used = self.layers if x.shape[1] > 280 else self.layers[:2]
        return torch.stack([layer(x, x, x, need_weights=False)[0] for layer in used])


@pytest.fixture
def model():
    return Beside().eval()


def tokens(length=300):
    return torch.randn(2, length, 32, generator=torch.Generator().manual_seed(1))


def options_of(model):
    return [layer.thinformer for layer in model.layers]


def test_layers_get_what_pays(model):
    convert(model, options=OPTIONS)
    state = torch.random.get_rng_state()
    found = calibrate(model, [tokens(), (tokens(310),), {"x": tokens(320)}])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [(row.layer, row.calls, row.exact, row.decision) for row in found] == [
        (FLAT, 3, 0.0, "thinned, no estimate"),
        (ONE_PEAKED, 3, 0.25, "thinned, large errors exact"),
        (PEAKED, 3, 1.0, "exact"),
    ]
    assert found[0].worst <= 0.2  # half of the threshold
    assert found[1].error < 0.4 < found[1].worst
    assert options_of(model) == [
        LayerOptions(SELECTION, fallback=None), OPTIONS, LayerOptions(SELECTION, exact=True)
    ]  # fmt: skip
    model(tokens())
    assert [row.exact for row in report(model)] == [0.0, 0.25, 1.0]
    assert str(found).splitlines()[3].split() == [
        PEAKED, "3", f"{found[2].error:.3f}", f"{found[2].worst:.3f}", "100%", "exact"
    ]  # fmt: skip


def test_without_a_fallback_errors_are_estimated_too(model):
    convert(model, options=LayerOptions(SELECTION, fallback=None))
    assert [row.decision for row in calibrate(model, [tokens()])] == [
        "thinned, no estimate", "thinned, large errors exact", "exact"
    ]  # fmt: skip
    assert options_of(model)[1] == OPTIONS


def test_only_calls_of_these_inputs_count(model):
    """The last layer ran before, and does not run now; a short input is not thinned."""
    convert(model, options=OPTIONS)
    model(tokens())
    found = calibrate(model, [tokens(270), tokens(270), tokens(99)])
    assert [(row.layer, row.calls) for row in found] == [(FLAT, 2), (ONE_PEAKED, 2)]
    assert options_of(model)[2] == OPTIONS
    assert next(row.decision for row in calibrate(model, [tokens(99)])) == (
        "as before: never long enough"
    )


def test_modes_are_as_before(model):
    convert(model, options=OPTIONS)
    model.train()
    model.layers[1].eval()
    calibrate(model, [tokens()])
    assert [module.training for module in (model, *model.layers)] == [True, True, False, True]


def test_nothing_is_changed_where_a_model_raises(model):
    convert(model, options=LayerOptions(SELECTION, fallback=None))
    before = options_of(model)
    with pytest.raises(OSError, match="too long"):
        calibrate(model, [tokens(), tokens(1001)])
    assert options_of(model) == before
    assert not model.training


def test_bad_arguments(model):
    with pytest.raises(ValueError, match="^inputs must hold at least one input of the model"):
        calibrate(model, [])
    with pytest.raises(ValueError, match="^no attention layer of Beside runs through thinformer"):
        calibrate(model, [tokens()])
    with pytest.raises(ValueError, match=r"^Beside has no settings to save: convert\(model\), or "):
        save_settings(model, "settings.json")


def test_settings_survive(model, tmp_path):
    convert(model, options=OPTIONS)
    calibrate(model, [tokens()])
    expected = model(tokens())
    save_settings(model, tmp_path)  # a folder
    assert json.loads((tmp_path / "thinformer.json").read_text())["layers"] == {
        FLAT: {"size": 8, "min_length": 256, "fallback": None},
        ONE_PEAKED: {"size": 8, "min_length": 256},
        PEAKED: {"exact": True},
    }
    assert load_settings(tmp_path) == load_settings(tmp_path / "thinformer.json")
    again = Beside().eval()
    assert convert(again, tmp_path).left == {PEAKED: "its settings say exact"}
    assert torch.equal(again(tokens()), expected)
    save_settings(again, tmp_path / "once more.json")  # a layer that is not swapped is in it
    assert load_settings(tmp_path / "once more.json") == load_settings(tmp_path)


def test_settings_of_a_model_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    from thinformer.torch.transformers import configure, register

    register("thinformer-calibrated", options=OPTIONS)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=32, attn_implementation="thinformer-calibrated",
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    ids = torch.arange(300)[None] % 50
    calibrate(model, [ids, {"input_ids": ids}])
    names = [f"encoder.layer.{i}.attention.self" for i in (0, 1)]
    model.save_pretrained(tmp_path)
    save_settings(model, tmp_path)
    assert list(load_settings(tmp_path)) == names
    again = transformers.BertModel.from_pretrained(
        tmp_path, attn_implementation="thinformer-calibrated"
    ).eval()
    configure(again, tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).last_hidden_state, model(ids).last_hidden_state)
    del model.encoder.layer[1].attention.self.thinformer  # one that has not run either
    del model.encoder.layer[1].attention.self.__dict__["thinformer_last"]
    with pytest.raises(ValueError, match=rf"^BertModel has no settings of '{names[1]}', which has"):
        save_settings(model, tmp_path)
