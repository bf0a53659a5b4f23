"""Settings of layers in a file."""

import json

import pytest

from thinformer.attending.settings import (
    VERSION,
    load_settings,
    load_sizes,
    save_settings,
    save_sizes,
)

LAYERS = {"a": {"size": 64, "correction": "queries"}, "b.0": {"exact": True}, "ü": {"g": 3}}


def written(tmp_path, layers, **others):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"version": VERSION, "layers": layers, **others}))
    return path


def test_round_trip(tmp_path):
    path = tmp_path / "settings.json"
    measured = {name: layer | {"measured": {"error": 0.1}} for name, layer in LAYERS.items()}
    save_settings(path, measured, {"machine": {"cores": "2"}})
    assert load_settings(path) == load_settings(str(path)) == LAYERS
    content = json.loads(path.read_text())
    assert content == {
        "version": VERSION,
        "layers": measured,
        "measured": {"machine": {"cores": "2"}},
    }
    lines = path.read_text().splitlines()
    assert lines[3] == '  "a": {"size": 64, "correction": "queries", "measured": {"error": 0.1}},'


def test_what_people_write(tmp_path):
    layers = {
        "a": {"size": 64, "correction": None, "temperature": None, "min_length": 0},
        "b": {"g": 0, "size": None, "correction": "nystrom", "temperature": 2, "exact": False},
        "c": {"g": 1, "temperature": "auto"},
        "d": {"size": 9, "temperature": 0.5},
        "e": {"size": 9, "fallback": "exact", "error_threshold": 0.2},
    }
    assert load_settings(written(tmp_path, layers)) == layers


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            {"sise": 64},
            "'sise' is unknown; takes g, size, pre_thin, correction, temperature, min_length",
        ),
        ({"size": 64, "g": 2}, "takes g or size; got both"),
        ({"size": "64"}, "size must be an integer of at least 1; got '64'"),
        ({"size": 0}, "size must be an integer of at least 1; got 0"),
        ({"size": True}, "size must be an integer of at least 1; got True"),
        ({"size": 64.5}, "size must be an integer of at least 1; got 64.5"),
        ({"g": -1}, "g must be an integer of at least 0; got -1"),
        ({"g": None}, "g must be an integer of at least 0; got None"),
        (
            {"size": 64, "correction": "fit"},
            "correction must be one of None, 'nystrom', 'que",
        ),
        ({"size": 64, "temperature": "hot"}, "temperature must be None, 'auto' or a number; got '"),
        (
            {"size": 64, "fallback": "no", "error_threshold": 1},
            "fallback must be one of 'exact';",
        ),
        (
            {"size": 64, "fallback": None, "error_threshold": 0.1},
            "error_threshold belongs to a fallback, which is",
        ),
        ({"size": 64, "seed": -1}, "seed must be an integer of at least 0; got -1"),
        ({"size": 64, "unsupported": "no"}, "unsupported must be one of 'raise', 'exact'; got 'n"),
        ({"exact": True, "temperature": "auto"}, "is exact, so temperature has no meaning; leave"),
        ({"g": 2, "correction": "queries", "temperature": 0}, "temperature must be positive and"),
        ({"size": 64, "min_length": -1}, "min_length must be an integer of at least 0; got -1"),
        ({"exact": 1}, "exact must be True or False; got 1"),
        ({"exact": True, "size": 64}, "is exact, so size has no meaning; leave out one of them"),
        ({"exact": False}, 'must have g, size or "exact": true'),
        ({}, 'must have g, size or "exact": true'),
        ({"correction": "queries"}, 'must have g, size or "exact": true'),
        (64, "must be an object of settings; got 64"),
    ],
)
def test_bad_layers(layer, message, tmp_path):
    path = written(tmp_path, {"a.b": {"g": 2}, "c.d": layer})
    with pytest.raises(ValueError) as error:
        load_settings(path)
    assert str(error.value).startswith(f"{path}: c.d: {message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is no settings file: Expecting property name"),
        (b"\xe4", "is no settings file: 'utf-8' codec can't decode"),
        (
            b'{"version": 2, "layers": {"a": {"g": 1}, "a": {"g": 2}}}',
            "is no settings file: 'a' is",
        ),
        (b"[1]", "is no settings file: it has no version"),
        (b'{"layers": {"a": {"g": 1}}}', "is no settings file: it has no version"),
        (b'{"version": 1, "layers": {"a": {"g": 1}}}', "version must be 2; got 1"),
        (b'{"version": 3, "layers": {"a": {"g": 1}}}', "version must be 2; got 3"),
        (b'{"version": "2", "layers": {"a": {"g": 1}}}', "version must be 2; got '2'"),
        (b'{"version": 2, "layer": {}}', "'layer' is unknown; takes version, layers, measured"),
        (b'{"version": 2}', "layers must be an object with settings of layers"),
        (b'{"version": 2, "layers": {}}', "layers must be an object with settings of layers"),
    ],
)
def test_bad_files(content, message, tmp_path):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_settings(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        load_settings(tmp_path / "none.json")


def test_sizes_of_a_cache(tmp_path):
    path = tmp_path / "sizes.json"
    save_sizes(path, [64, 128, 37], {"kl": 0.5})
    assert load_sizes(path) == load_sizes(str(path)) == [64, 128, 37]
    assert json.loads(path.read_text()) == {
        "version": VERSION, "sizes": [64, 128, 37], "measured": {"kl": 0.5},
    }  # fmt: skip
    path.write_text(json.dumps({"version": VERSION, "sizes": [50]}))
    assert load_sizes(path) == [50]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no settings file: Expecting property name"),
        ("[64, 64]", "is no settings file: it has no version"),
        ('{"version": 1, "sizes": [64]}', "version must be 2; got 1"),
        ('{"version": 2, "layers": {"a": {"g": 1}}}', "'layers' is unknown; takes version, sizes"),
        ('{"version": 2}', "sizes must be a list of one number of keys for each layer"),
        ('{"version": 2, "sizes": []}', "sizes must be a list of one number of keys for each"),
        ('{"version": 2, "sizes": 64}', "sizes must be a list of one number of keys for each"),
        ('{"version": 2, "sizes": [64, 0]}', "size of layer 1 must be an integer of at least 1; g"),
        ('{"version": 2, "sizes": ["64"]}', "size of layer 0 must be an integer of at least 1; g"),
    ],
)
def test_bad_files_of_sizes(content, message, tmp_path):
    path = tmp_path / "sizes.json"
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        load_sizes(path)
    assert str(error.value).startswith(f"{path}: {message}")
    path.write_text('{"version": 2, "sizes": [64]}')
    with pytest.raises(ValueError, match="'sizes' is unknown; takes version, layers, measured"):
        load_settings(path)


def test_the_module_takes_those_of_a_layer(tmp_path):
    pytest.importorskip("torch")
    from thinformer import ThinformerAttention

    layers = {
        "a": {"size": 64, "correction": "queries", "temperature": 2, "measured": {"ms": 1}},
        "b": {"size": 64, "temperature": "auto", "fallback": "exact", "error_threshold": 1},
    }
    path = written(tmp_path, layers)
    module, other = (ThinformerAttention(**settings) for settings in load_settings(path).values())
    assert (module.size, module.correction, module.temperature) == (64, "queries", 2)
    assert (other.temperature, other.fallback, other.error_threshold) == ("auto", "exact", 1)
