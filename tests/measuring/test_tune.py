"""`thinformer tune` of layers: its errors, its choice, its file; times are put in, not measured."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thinformer.attending.settings import load_settings
from thinformer.commands.main import main
from thinformer.measuring import tune
from thinformer.torch import thinformer_attention

TOKENS, HEADS, DIM = 256, 2, 16
COST = {"none": 1, "herding": 1.5, "nystrom": 2, "queries": 3}  # of a key
NONE = {"correction": None, "temperature": None, "min_length": 256, "fallback": None}


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

    def interleaved(layer, arguments, settings, *others):
        errors, seconds = real(layer, arguments, settings, *others)
        for i, (size, way) in enumerate(settings):
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
        "alike": {"size": 16, **NONE},
        "peaked": {"exact": True},
        "clusters": {"size": 32, **NONE, "correction": "nystrom"},
    }
    content = json.loads(output.read_text())
    assert content["measured"]["activations"] == [str(path)]
    assert content["measured"]["error_target"] == 0.05
    measured = content["layers"]["clusters"]["measured"]
    assert measured["error"] < 0.05
    assert (measured["keys"], measured["ms"], measured["exact_ms"]) == (TOKENS, 64, TOKENS)
    printed = capsys.readouterr().out
    alike, peaked, clusters = printed.split("\n\n")[1:4]
    assert alike.splitlines()[:3] == [
        f"alike: {TOKENS} keys",
        "    keys kept  correction  error   worst head       time",
        "  *        16  none        0.0000      0.0000      16.00 ms",
    ]
    assert peaked.splitlines()[-2:] == [
        "  *       all  -           0.0000      0.0000     256.00 ms",
        "stays exact: no setting has an error of at most 0.05",
    ]
    assert [row[:3] for row in peaked.splitlines()[2:]].count("  *") == 1
    errors = f"{measured['error']:.4f}      {measured['worst_head']:.4f}"
    assert f"  *        32  nystrom     {errors}      64.00 ms" in clusters
    assert "at most 0.05. 2 of 3 layers thinned.\n" in printed
    assert "\nattention alone, of these layers: 336.00 ms, exact 768.00 ms.\n" in printed
    assert printed.endswith(f"settings: {output}\n")


def on_tensors(arrays, seed, **options):
    """Output (B, T, H, D) of the public function on tensors."""
    torch.manual_seed(seed)
    return thinformer_attention(*map(torch.tensor, arrays), **options).double().numpy()


def errors_of(output, exact):
    """Errors of all heads as one vector a query, and of the worst head."""
    of_heads = [
        np.linalg.norm(output[:, :, h] - exact[:, :, h]) / np.linalg.norm(exact[:, :, h])
        for h in range(HEADS)
    ]
    return [np.linalg.norm(output - exact) / np.linalg.norm(exact), max(of_heads)]


@pytest.mark.usefixtures("_timed")
def test_errors_are_of_concatenated_heads_on_tensors(tmp_path):
    """Mean over rounds and two inputs, of which the shorter has few keys more than the size."""
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
    exact = [on_tensors(x, 0, size=x[1].shape[1]) for x in inputs]
    for i, size in enumerate((99, 120)):
        error, worst = np.mean([
            errors_of(on_tensors(x, seed, size=size, correction="queries"), e)
            for x, e in zip(inputs, exact, strict=True) for seed in (0, 1)
        ], axis=0)  # fmt: skip
        assert found.errors[i] == pytest.approx(error, rel=1e-3)
        assert found.worst[i] == pytest.approx(worst, rel=1e-3)
    assert found.errors[2] == found.worst[2] == 0
    assert found.seconds == pytest.approx([2 * 0.297, 2 * 0.36, 2 * 0.256])
    assert found.front == [2]  # exact is faster
    assert found.chosen == 2
    assert found.reason == (
        "the fastest of error at most 0.5 takes 594.00 ms, exact attention 512.00 ms"
    )


def test_a_large_head_that_is_wrong_is_not_hidden_by_right_ones():
    """Nor is the layer judged by a head that gives little, or 0."""
    exact = torch.ones(1, 50, 4, 8)
    exact[:, :, 1:] = 0.01
    output = exact.clone()
    output[:, :, 0] = 0
    error, worst = tune.errors_of(output, exact)
    assert error == pytest.approx(1, rel=1e-3)  # the mean over heads is 1 / 4
    assert worst == 1
    exact[:, :, 3], output[:, :, 0], output[:, :, 3] = 0, 1, 0
    assert tune.errors_of(output, exact) == (0, 0)
    output[:, :, 2] = -0.01
    error, worst = tune.errors_of(output, exact)
    assert error == pytest.approx(0.02, rel=1e-3)
    assert worst == 2


@pytest.mark.parametrize("mask", [False, True])
def test_exact_attention_is_timed_as_sdpa(monkeypatch, mask):
    """On the same tensors, once a round; thinned, the public function with that scale and mask."""
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, H, 300, 16, generator=generator) for H in (4, 2))
    value = torch.randn(1, 2, 300, 6, generator=generator)
    given = torch.ones(1, 1, 1, 300, dtype=torch.bool) if mask else None
    calls = []

    def sdpa(*arguments, **options):
        calls.append((arguments, options))
        return real(*arguments, **options)

    real = tune.scaled_dot_product_attention
    monkeypatch.setattr(tune, "scaled_dot_product_attention", sdpa)
    setting = tune.Setting(64, "queries")
    arguments = (query, key, value, given, 0.5)
    errors, _ = tune.interleaved("x", arguments, [setting, tune.EXACT], rounds=3)
    assert len(calls) == 1 + 1 + 3  # what is compared with, the untimed round, three rounds
    for found, options in calls:
        assert all(a is b for a, b in zip(found, (query, key, value, given), strict=True))
        assert options == {"scale": 0.5, "enable_gqa": True}
    exact = real(query, key, value, scale=0.5, enable_gqa=True).transpose(1, 2)
    for seed in range(3):
        torch.manual_seed(seed)
        output = thinformer_attention(
            query, key, value, size=64, correction="queries", attn_mask=given, scale=0.5,
            enable_gqa=True, layout="bhsd",
        )  # fmt: skip
        expected = tune.errors_of(output.transpose(1, 2), exact)
        np.testing.assert_allclose(errors[0, seed], expected, rtol=1e-4)
    assert not errors[1].any()


def concluded(seconds, errors, target=0.3):
    settings = [tune.Setting(16), tune.Setting(32), tune.EXACT]
    pairs = np.array([[e, 2 * e] for e in errors])
    return tune._concluded([300], settings, pairs, np.array(seconds), target)


def test_a_layer_is_thinned_only_where_it_is_faster_by_more_than_noise():
    assert concluded([0.5, 0.9, 1.0], [0.4, 0.2, 0]).chosen == 1
    assert concluded([0.5, 0.9, 1.0], [0.3, 0.2, 0]).chosen == 0
    assert concluded([0.9, 0.5, 1.0], [0.3, 0.2, 0]).chosen == 1
    assert concluded([0.5, 0.97, 1.0], [0.4, 0.2, 0]).chosen == 1
    near = concluded([0.5, 0.98, 1.0], [0.4, 0.2, 0])
    assert near.chosen == near.place == 2
    assert near.reason.endswith("at most 0.3 takes 980.00 ms, exact attention 1000.00 ms")
    far = concluded([0.5, 0.9, 1.0], [0.4, 0.31, 0])
    assert (far.chosen, far.reason) == (2, "no setting has an error of at most 0.3")
    without = concluded([0.5, 0.9, 1.0], [0.4, 0.2, 0], target=None)
    assert (without.chosen, without.place, without.reason) == (None, 2, "")


def test_layers_that_change_the_output_stay_exact():
    tuned = {name: concluded([0.5, 0.9, 1.0], [0.4, 0.2, 0]) for name in "abc"}
    tuned["c"] = concluded([0.5, 0.9, 1.0], [0.4, 0.4, 0])
    found = tune.leave_exact(tuned, {"a": 0.3, "b": 0.31}, 0.3)
    assert [layer.chosen for layer in found.values()] == [1, 2, 2]
    assert found["b"].reason == "thinned alone, it changes the model's output by 0.3100"
    assert (found["a"], found["c"]) == (tuned["a"], tuned["c"])


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
    assert load_settings(output) == {"alike": {"exact": True}, "peaked": {"size": 10, **NONE}}
    assert main([*command, "--min-length", "9"]) == 0
    few = {"size": 10, **NONE, "min_length": 9}
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
    assert load_settings(output) == {"clusters": {"size": 40, **NONE, "temperature": "auto"}}
    arrays = [x.astype(np.float32) for x in layer("clusters")]
    exact = on_tensors(arrays, 0, size=TOKENS)
    outputs = [on_tensors(arrays, i, size=40, temperature="auto") for i in range(5)]
    error, worst = np.mean([errors_of(output, exact) for output in outputs], axis=0)
    row = f"  *        40  herding     {error:.4f}  {worst:>10.4f}      60.00 ms"
    assert row in capsys.readouterr().out


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
    np.savez(zero, x_query=query, x_key=key, x_value=0 * value)
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
        ((zero,), "x: all that it gives is 0, which no error can be relative to"),
        (("bert",), "bert: is no .npz of activations; a model takes --text, --image or --audio"),
        ((tmp_path / "none.npz",), f"[Errno 2] No such file or directory: '{tmp_path}/none.npz'"),
    ]:  # fmt: skip
        assert error(capsys, *arguments).startswith(message)


@pytest.mark.slow
def test_without_torch_it_says_what_to_install(tmp_path):
    path = saved(tmp_path / "layers.npz", "alike")
    code = (
        "import sys; sys.modules['torch'] = None; from thinformer.commands.main import main; "
        f"sys.exit(main(['tune', {str(path)!r}]))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 2
    assert result.stderr == (
        "thinformer tune: tune needs torch, which is not installed: pip install torch\n"
    )
