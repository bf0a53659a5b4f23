"""Recorded activations: how they are coded, and what is said where vision is not installed."""

import json
import shutil

import numpy as np
import pytest
from activation_codes import coded
from checkout import ROOT

from thinformer import data
from thinformer.commands.main import main
from thinformer.measuring import activations, demo, validate

FILES = ROOT / "thinformer" / "data" / "activations"
SENTENCE = (
    "the activations of vision are not installed (NOTICE says why); a checkout of the repository"
    " has them: set THINFORMER_ACTIVATIONS to its folder thinformer/data/activations"
)


@pytest.fixture
def as_installed(tmp_path, monkeypatch):
    """The data of the package as the wheel has them."""
    for name in ("vectors.npz", "activations/text.npz", "activations/audio.npz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / "thinformer" / "data" / name, tmp_path / name)
    monkeypatch.setattr(data, "HERE", tmp_path)
    monkeypatch.delenv("THINFORMER_ACTIVATIONS")


def channels(dtype=np.float16):
    """Plain, with an outlier, far from 0, tiny, large: (1, 500, 1, 5)."""
    array = np.random.default_rng(0).standard_normal((1, 500, 1, 5))
    array[0, 3, 0, 1] = 40
    array *= [1, 0.5, 0.1, 1e-3, 1000]
    array[..., 2] += 7
    return array.astype(dtype)


def test_codes_are_within_a_hundredth_of_the_deviation(tmp_path, monkeypatch):
    """In each channel, also where one of 500 entries is an outlier."""
    heads = np.array([4])
    arrays = {"layer2_query": channels(), "layer2_key": channels()[:, ::-1], "layer2_heads": heads}
    stored = coded(arrays)
    assert stored["layer2_query"].dtype == np.int8
    assert stored["layer2_heads"] is heads
    (tmp_path / "activations").mkdir()
    np.savez(tmp_path / "activations" / "text.npz", **stored)
    monkeypatch.setattr(data, "HERE", tmp_path)
    layers = data.load_activations("text")
    assert {layer: list(roles) for layer, roles in layers.items()} == {"layer2": ["query", "key"]}
    for role, array in layers["layer2"].items():
        exact = arrays[f"layer2_{role}"].astype(float)
        assert (array.shape, array.dtype) == (exact.shape, np.float16)
        off = np.sqrt(np.mean((array - exact) ** 2, axis=(0, 1))) / exact.std(axis=(0, 1))
        assert off.max() < 0.013  # 1 / 32 / sqrt(12), and what float16 leaves far from 0
        assert off[:, [0, 1, 3, 4]].max() < 0.0095


@pytest.mark.parametrize("name", data.ACTIVATIONS)
def test_what_is_recorded(name):
    """Three layers of float16, tokens first; those of the wheel take a byte a number."""
    layers = data.load_activations(name)
    shape = {"text": (1, 512, 3, 32), "vision": (1, 1370, 2, 64), "audio": (1, 1500, 1, 64)}[name]
    assert len(layers) == 3
    for roles in layers.values():
        assert list(roles) == ["query", "key", "value"]
        assert {array.shape for array in roles.values()} == {shape}
        assert {array.dtype.name for array in roles.values()} == {"float16"}
    numbers = 9 * np.prod(shape)
    assert (FILES / f"{name}.npz").stat().st_size < (2 if name == "vision" else 1) * numbers


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match="name must be one of text, vision, audio; got 'sound'"):
        data.load_activations("sound")


@pytest.mark.usefixtures("as_installed")
def test_what_is_not_installed_raises(monkeypatch):
    assert data.installed_activations() == ("text", "audio")
    with pytest.raises(FileNotFoundError) as error:
        data.load_activations("vision")
    assert str(error.value) == SENTENCE == data.left_out()
    monkeypatch.setenv("THINFORMER_ACTIVATIONS", str(FILES))  # the remedy
    assert data.installed_activations() == data.ACTIVATIONS
    assert data.left_out() == ""
    assert len(data.load_activations("vision")) == 3


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
@pytest.mark.usefixtures("as_installed")
def test_commands_work_without_it_and_say_so(tmp_path, monkeypatch, capsys):
    """Once each; and not where the input is a file."""
    monkeypatch.setattr(demo, "SEEDS", range(1))
    assert main(["demo", "--plot", str(tmp_path / "demo.png")]) == 0
    printed = said(capsys)
    assert printed.count(SENTENCE) == 1
    assert ("text g = 2" in printed, "vision g = 2" in printed) == (True, False)

    figures = tmp_path / "figures.json"
    options = ["--quality", "--sizes", "16", "--rounds", "2", "--json", str(figures)]
    assert main(["bench", *options]) == 0
    assert said(capsys).count(SENTENCE) == 1
    inputs = {line["input"] for line in json.loads(figures.read_text())["lines"]}
    assert inputs == {"text", "audio"}

    few = [vector for vector in data.load_vectors() if "activations" in vector[0]]
    assert len(few) == 18  # those of vision are recorded, and left out
    monkeypatch.setattr(validate, "load_vectors", lambda: few)
    monkeypatch.setattr(validate.importlib.util, "find_spec", lambda name: None)
    assert main(["validate"]) == 0
    printed = said(capsys)
    assert printed.count(SENTENCE) == 1
    assert "PASS: 4 of 4 rows agree" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("as_installed")
def test_nothing_is_said_of_a_file_of_ones_own(tmp_path, capsys):
    rng = np.random.default_rng(0)
    arrays = {f"layer0_{role}": rng.standard_normal((1, 64, 1, 4)) for role in
              ("query", "key", "value")}  # fmt: skip
    np.savez(tmp_path / "own.npz", **arrays)
    path = str(tmp_path / "own.npz")
    assert main(["bench", "--quality", path, "--sizes", "16", "--rounds", "2"]) == 0
    assert "not installed" not in said(capsys)


def test_all_is_measured_where_all_is_there():
    assert list(activations.load([])) == list(data.ACTIVATIONS)
