"""`thinformer tune`: its errors, its choice, its file; times are put in, not measured."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinformer import attention
from thinformer.attending.settings import load_settings
from thinformer.commands.main import main
from thinformer.measuring import tune

TOKENS, HEADS, DIM = 256, 2, 16
COST = {"none": 1, "herding": 1.5, "nystrom": 2, "queries": 3}  # of a key


def layer(kind, tokens=TOKENS, seed=0):
    """Query, key and value of attention that any keys, no few keys, or few fitted ones can give."""
    rng = np.random.default_rng(seed)
    shape = (1, tokens, HEADS, DIM)
    query, key, value = rng.standard_normal((3, *shape))
    if kind == "alike":  # all tokens are
        key, value = (np.broadcast_to(x[:, :1], shape) for x in (key, value))
    elif kind == "peaked":  # every token looks at itself
        key = 40 * key / np.linalg.norm(key, axis=-1, keepdims=True)
        query = key
    elif kind == "clusters":  # of eight tokens, as many as chance makes
        which = rng.choice(8, tokens, p=np.arange(1, 9) / 36)
        key, value = key[:, which], value[:, which]
    return query, key, value


def saved(path, *kinds, **options):
    roles = ("query", "key", "value")
    np.savez(path, **{
        f"{kind}_{role}": array for kind in kinds
        for role, array in zip(roles, layer(kind, **options), strict=True)
    })  # fmt: skip
    return path


@pytest.fixture
def _timed(monkeypatch):
    """A key costs a millisecond, a corrected one more."""

    def interleaved(cases, *arguments):
        errors, seconds = real(cases, *arguments)
        for i, (size, way) in enumerate(cases):
            seconds[i] = (TOKENS if size is None else size * COST[way]) / 1e3
        return errors, seconds

    real = tune.interleaved
    monkeypatch.setattr(tune, "interleaved", interleaved)


def beaten(i, errors, times):
    return any(
        e <= errors[i] and t <= times[i] and (e, t) != (errors[i], times[i])
        for e, t in zip(errors, times, strict=True)
    )


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_pareto(points):
    """Those on it no point beats, and the others one does."""
    errors, times = [e / 2 for e, _ in points], [t / 2 for _, t in points]
    front = tune.pareto(errors, times)
    assert sorted(front) == [i for i in range(len(points)) if not beaten(i, errors, times)]
    assert [times[i] for i in front] == sorted(times[i] for i in front)


@pytest.mark.slow
@pytest.mark.usefixtures("_timed")
def test_the_right_settings_are_chosen(tmp_path, capsys):
    path, output = tmp_path / "layers.npz", tmp_path / "settings.json"
    saved(path, "alike", "peaked", "clusters")
    assert main(["tune", str(path), "--error-target", "0.05", "--output", str(output)]) == 0
    assert load_settings(output) == {
        "alike": {"size": 16},
        "peaked": {"exact": True},
        "clusters": {"size": 16, "correction": "nystrom"},
    }
    content = json.loads(output.read_text())
    assert content["measured"]["activations"] == [str(path)]
    assert content["measured"]["error_target"] == 0.05
    measured = content["layers"]["clusters"]["measured"]
    assert measured["error"] < 0.05
    assert (measured["keys"], measured["ms"], measured["exact_ms"]) == (TOKENS, 32, TOKENS)
    printed = capsys.readouterr().out
    alike, peaked, clusters = printed.split("\n\n")[1:4]
    assert alike.splitlines()[:3] == [
        f"alike: {TOKENS} keys",
        "    keys kept  correction  error       time",
        "  *        16  none        0.0000      16.00 ms",
    ]
    assert peaked.splitlines()[-1] == "  *       all  -           0.0000     256.00 ms"
    assert [row[:3] for row in peaked.splitlines()[2:]].count("  *") == 1
    assert f"  *        16  nystrom     {measured['error']:.4f}      32.00 ms" in clusters
    assert "at most 0.05. 2 of 3 layers thinned: 304.00 ms, exact 768.00 ms" in printed
    assert printed.endswith(f"settings: {output}\n")


def errors_of(outputs, exact):
    norms = [np.sqrt(np.sum(x**2, axis=(1, 3))) for x in (outputs - exact, exact)]
    return np.mean(norms[0] / norms[1])


@pytest.mark.usefixtures("_timed")
def test_errors_are_means_of_heads_rounds_and_inputs(tmp_path):
    """Of two inputs of different lengths, of which the shorter has few keys more than the size."""
    options = {"seed": 1, "tokens": 100}
    paths = [tmp_path / "a.npz", tmp_path / "b.npz"]
    saved(paths[0], "clusters")
    saved(paths[1], "clusters", **options)
    source = tune.from_files(paths, min_length=0)
    assert source.calls == {"clusters": [TOKENS, 100]}
    found = tune.tune(source, [99, 120], ["queries"], target=0.5, rounds=2)["clusters"]
    assert found.settings == [(99, "queries"), (120, "queries"), tune.EXACT]
    inputs = [[x.astype(np.float32) for x in layer("clusters")],
              [x.astype(np.float32) for x in layer("clusters", **options)]]  # fmt: skip
    exact = [attention(*x, size=x[1].shape[1]).output for x in inputs]
    for i, size in enumerate((99, 120)):
        expected = np.mean([
            errors_of(attention(*x, size=size, correction="queries", rng=seed).output, e)
            for x, e in zip(inputs, exact, strict=True) for seed in (0, 1)
        ])  # fmt: skip
        assert found.errors[i] == pytest.approx(expected, rel=1e-4)
    assert found.errors[2] == 0
    assert found.seconds == pytest.approx([2 * 0.297, 2 * 0.36, 2 * 0.256])
    assert found.front == [2]  # exact is faster
    assert found.chosen == 2


@pytest.mark.usefixtures("_timed")
def test_layers_too_short_stay_exact(tmp_path, capsys):
    path, output = tmp_path / "layers.npz", tmp_path / "settings.json"
    short = dict(np.load(saved(tmp_path / "short.npz", "alike", tokens=255)))
    np.savez(path, **short, **np.load(saved(tmp_path / "long.npz", "peaked", tokens=300)))
    command = ["tune", str(path), "--rounds", "1", "--sizes", "10,250", "--correction", "none"]
    assert main(command) == 0  # fronts alone
    printed = capsys.readouterr().out
    assert "alike: exact; never attends over 256 or more keys\n" in printed
    assert "peaked: 300 keys" in printed
    assert "  *  " not in printed
    command += ["--output", str(output), "--error-target", "9"]
    assert main(command) == 0
    assert load_settings(output) == {"alike": {"exact": True}, "peaked": {"size": 10}}
    assert main([*command, "--min-length", "9"]) == 0
    few = {"size": 10, "min_length": 9}
    assert load_settings(output) == {"alike": few, "peaked": few}


def test_sizes_are_those_of_all_g():
    found = tune.candidates(512, [], ["none", "nystrom"])
    assert [size for size, _ in found] == [16, 16, 32, 32, 64, 64, 128, 128, 256, 256, None]
    assert [name for _, name in found[:2]] == ["none", "nystrom"]
    assert tune.candidates(64, [128, 8, 8, 64], ["none"]) == [(8, "none"), tune.EXACT]


@pytest.mark.usefixtures("_timed")
def test_herding_is_a_temperature_in_the_file(tmp_path, capsys):
    path, output = saved(tmp_path / "layers.npz", "clusters"), tmp_path / "settings.json"
    command = ["tune", str(path), "--sizes", "40", "--correction", "herding"]
    assert main([*command, "--error-target", "9", "--output", str(output)]) == 0
    assert load_settings(output) == {"clusters": {"size": 40, "temperature": "auto"}}
    arrays = [x.astype(np.float32) for x in layer("clusters")]
    exact = attention(*arrays, size=TOKENS).output
    outputs = [attention(*arrays, size=40, temperature="auto", rng=i).output for i in range(5)]
    mean = np.mean([errors_of(output, exact) for output in outputs])
    assert f"  *        40  herding     {mean:.4f}      60.00 ms" in capsys.readouterr().out


def error(capsys, *arguments):
    assert main(["tune", *map(str, arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    return printed.err.removeprefix("thinformer tune: ").strip()


def test_errors_are_one_line(tmp_path, capsys):
    a, b, zero = (tmp_path / f"{name}.npz" for name in ("a", "b", "zero"))
    saved(a, "alike", "peaked")
    saved(b, "alike")
    query, key, value = layer("alike")
    np.savez(zero, x_query=query, x_key=key, x_value=value * [[0], [1]])
    nowhere = tmp_path / "nowhere" / "x.json"
    for arguments, message in [
        ((a, "--output", "x"), "--output takes --error-target: without it no setting is chosen"),
        ((a, "--error-target", 0), "--error-target must be positive and finite; got 0.0"),
        ((a, "--error-target", 1, "--output", nowhere), f"{nowhere}: there is no folder"),
        ((a, "--sizes", "x"), "--sizes must be integers, as in 1,2; got x"),
        ((a, "--sizes", "16,256"), "--sizes must be less than the keys, 256; got 256"),
        ((a, "--correction", "fit"), "--correction must be one of 'none', 'herding', 'nystr"),
        ((a, "--rounds", 0), "--rounds must be an integer of at least 1; got 0"),
        ((a, "--min-length", -1), "--min-length must be an integer of at least 0; got -1"),
        ((a, "--min-length", 257), "there is no layer to tune; alike: never attends over 257"),
        ((a, "--max-length", 5), "--max-length is for --text"),
        ((a, b), f"{b}: must have the layers of {a}, which is of the same model; peaked is in one"),
        ((zero,), "x: all that a head gives is 0, which no error can be relative to"),
        (("bert",), "bert: is no .npz of activations; a model takes --text, --image or --audio"),
        ((tmp_path / "none.npz",), f"[Errno 2] No such file or directory: '{tmp_path}/none.npz'"),
    ]:  # fmt: skip
        assert error(capsys, *arguments).startswith(message)


@pytest.mark.slow
def test_torch_is_not_needed(tmp_path):
    path = saved(tmp_path / "layers.npz", "alike")
    arguments = ["tune", str(path), "--sizes", "16", "--correction", "none", "--rounds", "1"]
    code = (
        "import sys; sys.modules['torch'] = None; from thinformer.commands.main import main; "
        f"sys.exit(main({arguments!r}))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert "alike: 256 keys" in result.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("_timed")
def test_models(tmp_path, capsys):
    """Its layers under their names, tuned on what they attend to; eval-model takes the file."""
    pytest.importorskip("transformers")
    from small_encoders import TEXT, WORDS, tokenizer
    from small_encoders import saved as saved_model
    from transformers import BertConfig, BertModel

    saved_model(tmp_path / "bert", BertModel, BertConfig(**TEXT), tokenizer())
    texts, output = tmp_path / "texts.txt", tmp_path / "settings.json"
    words = np.random.default_rng(0).choice(WORDS, (3, 300))
    lines = [" ".join(row[:n]) for row, n in zip(words, (300, 20, 280), strict=True)]
    texts.write_text("\n".join(lines))
    model = [str(tmp_path / "bert"), "--text", str(texts), "--rounds", "1"]
    options = ["--sizes", "40", "--correction", "none", "--error-target", "9"]
    assert main(["tune", *model, *options, "--output", str(output)]) == 0
    names = [f"encoder.layer.{i}.attention.self" for i in (0, 1)]
    assert load_settings(output) == {name: {"size": 40} for name in names}
    printed = capsys.readouterr().out
    assert f"\nmodel: {model[0]}, BertModel\n" in printed
    assert f"\n{names[1]}: 280 to 300 keys\n" in printed
    assert json.loads(output.read_text())["measured"]["class"] == "BertModel"
    figures = []
    for arguments in (["--settings", str(output)], ["--size", "40"]):
        assert main(["eval-model", *model, *arguments, "--json", str(tmp_path / "x.json")]) == 0
        [result] = json.loads((tmp_path / "x.json").read_text())["results"]
        figures.append(result)
    assert figures[0]["setting"] == {"settings": str(output)}
    for name in ("keys", "kept", "attention", "states", "mean"):
        assert figures[0][name] == figures[1][name]
    assert f"settings = {output}" in capsys.readouterr().out
    assert main(["eval-model", *model, "--settings", str(output), "--exact", "0"]) == 2
    assert "--exact does not go with --settings" in capsys.readouterr().err
    output.write_text(output.read_text().replace("encoder.layer.1", "encoder.layer.2"))
    assert main(["eval-model", *model, "--settings", str(output)]) == 2
    found = capsys.readouterr().err
    assert f"the model has no attention layer '{names[1].replace('1', '2')}'; it has" in found
    assert error(capsys, model[0], "x", *model[1:]).startswith("takes one model with its inputs")
