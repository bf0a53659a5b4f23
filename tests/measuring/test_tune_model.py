"""`thinformer tune` of a model: what it is tuned on, what is held out, and its own last line."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from small_encoders import TEXT, WORDS, saved, tokenizer
from transformers import BertConfig, BertModel

from thinformer.attending.settings import load_settings
from thinformer.commands.main import main
from thinformer.measuring import tune, tune_model
from thinformer.torch.evaluation.result import Result

pytestmark = pytest.mark.slow

NAMES = [f"encoder.layer.{i}.attention.self" for i in (0, 1)]
NONE = {"correction": None, "temperature": None, "min_length": 256, "fallback": None}


@pytest.fixture(autouse=True)
def _timed(monkeypatch):
    """A key costs a millisecond."""

    def interleaved(layer, arguments, settings, *others):
        errors, seconds = real(layer, arguments, settings, *others)
        for i, (size, _) in enumerate(settings):
            seconds[i] = (300 if size is None else size) / 1e3
        return errors, seconds

    real = tune.interleaved
    monkeypatch.setattr(tune, "interleaved", interleaved)


@pytest.fixture
def model(tmp_path):
    return saved(tmp_path / "bert", BertModel, BertConfig(**TEXT), tokenizer())


def texts(tmp_path, *lengths):
    words = np.random.default_rng(0).choice(WORDS, (len(lengths), 300))
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(" ".join(row[:n]) for row, n in zip(words, lengths, strict=True)))
    return path


def tokens(*lengths):
    return [{"input_ids": torch.arange(n)[None] % 50} for n in lengths]


def command(tmp_path, path, target=9):
    output = tmp_path / "settings.json"
    options = ["--rounds", "1", "--sizes", "40", "--correction", "none"]
    return [
        "tune", str(tmp_path / "bert"), "--text", str(path), *options,
        "--error-target", str(target), "--output", str(output),
    ], output  # fmt: skip


def test_every_second_input_that_is_long_enough_is_held_out(model):
    inputs = tokens(300, 20, 280, 290, 256, 30, 270)
    parts = tune_model.split(model, inputs, 256)
    assert [x["input_ids"].shape[1] for x in parts.tuned_on] == [300, 290, 270]
    assert [x["input_ids"].shape[1] for x in parts.held_out] == [280, 256]
    assert parts.source.calls == {name: [300, 290, 270] for name in NAMES}
    assert parts.longest == {name: [280, 256] for name in NAMES}
    taken = []
    parts.source.replay(lambda name, query, key, *others: taken.append((name, key.shape[2])))
    assert taken == [(name, n) for n in (300, 290, 270) for name in NAMES]


@pytest.mark.usefixtures("model")
def test_models(tmp_path, capsys):
    """Layers under their names; the last line has the figures of eval-model on what is left."""
    path = texts(tmp_path, 300, 20, 280, 290)
    arguments, output = command(tmp_path, path)
    assert main(arguments) == 0
    assert load_settings(output) == {name: {"size": 40, **NONE} for name in NAMES}
    printed = capsys.readouterr().out
    assert f"\nmodel: {arguments[1]}, BertModel; tuned on 2 of 4 inputs\n" in printed
    assert f"\n{NAMES[1]}: 290 to 300 keys\n" in printed
    measured = json.loads(output.read_text())["measured"]
    assert measured["class"] == "BertModel"
    own = measured["model_itself"]
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(path.read_text().splitlines()[2])
    figures = []
    of_model = ["eval-model", arguments[1], "--text", str(held_out), "--rounds", "1", "--json"]
    for setting in (["--settings", str(output)], ["--size", "40", "--min-length", "256"]):
        assert main([*of_model, str(tmp_path / "x.json"), *setting]) == 0
        [result] = json.loads((tmp_path / "x.json").read_text())["results"]
        figures.append(result)
    assert figures[0]["setting"] == {"settings": str(output)}
    for name in ("metric", "mean", "worst"):
        assert own[name] == figures[0][name]
    assert (own["inputs"], own["held_out"]) == (1, True)
    last = printed.splitlines()[-1]
    assert last.startswith("the model, on 1 input that it was not tuned on: ")
    assert f", cosine {own['mean']:.4f}, smallest {own['worst']:.4f}" in last
    assert "settings = " not in capsys.readouterr().err
    assert main([*of_model, "x", "--settings", str(output), "--exact", "0"]) == 2
    assert "--exact does not go with --settings" in capsys.readouterr().err
    output.write_text(output.read_text().replace("encoder.layer.1", "encoder.layer.2"))
    assert main([*of_model, str(tmp_path / "x.json"), "--settings", str(output)]) == 2
    found = capsys.readouterr().err
    assert f"the model has no attention layer '{NAMES[1].replace('1', '2')}'; it has" in found
    assert main([*arguments[:2], "x", *arguments[2:]]) == 2
    assert "takes one model with its inputs" in capsys.readouterr().err


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("lengths", [(300,), (20, 300, 30)])
def test_a_single_input_is_checked_on_itself_and_it_says_so(tmp_path, capsys, lengths):
    arguments, output = command(tmp_path, texts(tmp_path, *lengths))
    assert main(arguments) == 0
    assert json.loads(output.read_text())["measured"]["model_itself"]["held_out"] is False
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .startswith("the model, on 1 input that it was tuned on, as no other one is long enough: ")
    )


@pytest.mark.usefixtures("model")
def test_layers_that_change_the_output_by_more_than_the_target_stay_exact(
    tmp_path, capsys, monkeypatch
):
    """No setting's error is above the target, only what one layer does to the output."""
    monkeypatch.setattr(tune_model.record, "effects", lambda *_: {NAMES[0]: 9.1, NAMES[1]: 8.9})
    arguments, output = command(tmp_path, texts(tmp_path, 300, 280))
    assert main(arguments) == 0
    assert load_settings(output) == {NAMES[0]: {"exact": True}, NAMES[1]: {"size": 40, **NONE}}
    printed = capsys.readouterr().out
    assert "stays exact: thinned alone, it changes the model's output by 9.1000\n" in printed
    assert "1 of 2 layers thinned.\n" in printed


@pytest.mark.usefixtures("model")
def test_a_model_that_stays_exact_has_no_figures(tmp_path, capsys):
    arguments, output = command(tmp_path, texts(tmp_path, 300, 280), target=1e-6)
    assert main(arguments) == 0
    assert load_settings(output) == {name: {"exact": True} for name in NAMES}
    assert "model_itself" not in json.loads(output.read_text())["measured"]
    printed = capsys.readouterr().out
    assert printed.count("stays exact: no setting has an error of at most 1e-06\n") == 2
    assert printed.splitlines()[-1] == (
        "the model: all its layers stay exact, so it is as fast and as exact as before"
    )


def test_held_out_inputs_that_no_setting_thins_are_not_measured(model):
    """They would be exact: the model is measured where it is thinned, and it says on what."""
    parts = tune_model.split(model, tokens(300, 280), 256)
    tuned = tune.tune(parts.source, [290], ["none"], target=9, rounds=1)
    own = tune_model.measured(parts, tuned, "mean", 1, lambda *_: None)
    assert (own.inputs, own.held_out) == (1, False)
    parts = tune_model.split(model, tokens(300, 280, 300, 300), 256)
    own = tune_model.measured(parts, tuned, "mean", 1, lambda *_: None)
    assert (own.inputs, own.held_out) == (1, True)


def test_the_last_line():
    result = Result({}, 300, 40, 0.5, 0.8, "cosine", 0.99, 0.98, [], [])
    line = "the model, on 3 inputs that it was not tuned on: 500 ms, exact 800 ms (1.60x as fast), "
    assert tune_model.format_own(tune_model.Own(3, True, result)) == (
        f"{line}cosine 0.9900, smallest 0.9800"
    )
    slow = result._replace(seconds=0.8, metric="difference", mean=0.1, worst=0.2)
    assert tune_model.format_own(tune_model.Own(3, True, slow)).endswith(
        ": 800 ms, exact 800 ms (1.00x as fast), difference 0.1000, largest 0.2000; not faster "
        "than exact, so leave the model as it was"
    )
