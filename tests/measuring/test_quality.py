"""The quality benchmark: its errors, its files and what it refuses; its times are not asserted."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from checkout import ROOT
from torch.nn.functional import scaled_dot_product_attention

from thinformer.commands import bench
from thinformer.commands.main import main
from thinformer.measuring import activations, attention_peers, quality
from thinformer.torch import thinformer_attention

TOKENS, HEADS, DIM = 96, 2, 8
NAMES = [f"layer{number}_{role}" for number in (2, 10) for role in ("query", "key", "value")]


def arrays(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((1, TOKENS, HEADS, DIM)).astype(dtype) for name in NAMES}


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.npz"
    np.savez(path, **arrays(np.float64), layer2_heads=np.arange(2))
    return path


def errors_of(outputs, exact):
    """Of each head, written out."""
    return [
        np.sqrt(np.sum((a[0, :, h] - b[0, :, h]) ** 2) / np.sum(b[0, :, h] ** 2))
        for a, b in zip(outputs, exact, strict=True)
        for h in range(HEADS)
    ]


def exact_outputs(layers):
    heads_first = [[torch.from_numpy(x).transpose(1, 2) for x in each] for each in layers.values()]
    return [scaled_dot_product_attention(*each).transpose(1, 2).numpy() for each in heads_first]


def test_lines(tiny):
    layers = activations.load([tiny])["tiny"]
    assert list(layers) == ["layer2", "layer10"]
    cases = quality.chosen_cases("tiny", layers, [32, 16, 32])
    lines = quality.measure("tiny", layers, cases, rounds=2)
    methods = [*quality.methods(layers), quality.BEST]
    assert [(line.method, line.kept) for line in lines] == [
        (quality.EXACT, TOKENS), *((m, 16) for m in methods), *((m, 32) for m in methods),
    ]  # fmt: skip
    found = {(line.method, line.kept): line for line in lines}
    exact = exact_outputs(layers)
    for method in quality.OPTIONS:
        # thinned in sequence from one generator, as a model thins its layers
        rounds = []
        for seed in (0, 1):
            generator = torch.Generator().manual_seed(seed)
            outputs = [
                thinformer_attention(
                    *map(torch.from_numpy, layer), size=32, generator=generator,
                    **quality.OPTIONS[method],
                ).numpy()
                for layer in layers.values()
            ]  # fmt: skip
            rounds.append(errors_of(outputs, exact))
        line = found[method, 32]
        assert line.error == pytest.approx(np.mean(rounds), rel=1e-4)
        means = np.mean(rounds, axis=1)
        assert line.standard_error == pytest.approx(abs(means[0] - means[1]) / 2, rel=1e-2)
        assert line.layers["layer10"] == pytest.approx(np.mean(rounds, axis=0)[2:].mean(), rel=1e-4)
        assert line.ratio == line.seconds / found[quality.PLAIN, 32].seconds
    for method in ("uniform sampling", "merged keys"):
        peer = attention_peers.PEERS[method]
        rounds = [
            errors_of([peer(*map(torch.from_numpy, layer), 16, seed).numpy()
                       for layer in layers.values()], exact)
            for seed in (0, 1)
        ]  # fmt: skip
        assert found[method, 16].error == pytest.approx(np.mean(rounds), rel=1e-4)
    assert found[quality.EXACT, TOKENS].error == 0
    assert found[quality.EXACT, TOKENS].standard_error is None
    best = found[quality.BEST, 32]
    assert (best.standard_error, best.seconds, best.ratio) == (None, None, None)


def test_all_keys_are_exact(tiny):
    layers = activations.load([tiny])["tiny"]
    cases = [(m, n) for m, n in quality.chosen_cases("tiny", layers, [TOKENS])
             if m not in attention_peers.PACKAGES]  # fmt: skip
    for line in quality.measure("tiny", layers, cases, rounds=2)[1:-1]:
        assert line.error < 1e-6, line.method  # their keys are in another order


def test_no_best_rank_of_many_keys(tiny, monkeypatch):
    layers = activations.load([tiny])["tiny"]
    monkeypatch.setattr(quality, "LARGEST", TOKENS - 1)
    lines = quality.measure("tiny", layers, [("evenly spaced", 16)], rounds=2)
    assert [line.method for line in lines] == [quality.EXACT, "evenly spaced"]
    assert lines[1].ratio is None  # no time of Thinformer's to divide by


def test_a_method_ends_where_it_takes_long(tiny, monkeypatch):
    """In turns of a clock: exact attention takes 1 s, "nystrom" 1.5 s and at 32 keys 2.5 s."""
    layers = activations.load([tiny])["tiny"]
    clock = [0.0]
    called = []

    def outputs(method, tensors, size, seed):
        slow = method == quality.NYSTROM
        clock[0] += 1.0 if not slow else 2.5 if size == 32 else 1.5
        # the first call of a method compiles
        clock[0] += 100 * (method not in {name for name, _ in called} and method != quality.EXACT)
        called.append((method, size))

    monkeypatch.setattr(quality, "outputs", outputs)
    monkeypatch.setattr(quality.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(quality, "methods", lambda layers: ["evenly spaced", quality.NYSTROM])
    cases = quality.usual_cases("tiny", layers)
    assert [size for method, size in cases if method == "evenly spaced"] == [8, 16, 32, 64]
    assert [size for method, size in cases if method == quality.NYSTROM] == [8, 16]
    assert cases == sorted(cases, key=lambda case: case[1])
    assert (quality.NYSTROM, 64) not in called


def test_best_rank_is_that_of_singular_values():
    query, key, value = (array.astype(np.float64) for array in list(arrays().values())[:3])
    expected = []
    for h in range(HEADS):
        logits = query[0, :, h] @ key[0, :, h].T / np.sqrt(DIM)
        P = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        left, values, right = np.linalg.svd(P)
        few = left[:, :5] * values[:5] @ right[:5] @ value[0, :, h]
        expected.append(np.linalg.norm(few - P @ value[0, :, h]))
        expected[-1] /= np.linalg.norm(P @ value[0, :, h])
    found = quality._best_rank([query, key, value], [2, 5])
    assert found[1] == pytest.approx(np.mean(expected), rel=1e-8)
    assert found[0] > found[1]


def test_sizes(monkeypatch):
    monkeypatch.setattr(quality, "LONGEST", 1e9)  # no method is left out
    monkeypatch.setattr(quality, "outputs", lambda *arguments, **options: [])
    usual = {name: quality.usual_cases(name, layers)
             for name, layers in activations.load([]).items()}  # fmt: skip
    sizes = {name: [n for method, n in cases if method == quality.PLAIN]
             for name, cases in usual.items()}  # fmt: skip
    few = [32, 64, 128, 256, 512, 1024]
    assert sizes == {"text": [16, 32, 64, 128, 256], "vision": few, "audio": few}


def test_recorded_activations_beside_files(tiny):
    inputs = activations.load([Path("text"), tiny])
    assert list(inputs) == ["text", "tiny"]
    assert inputs["text"]["layer5"][2].dtype == np.float32
    assert quality.number_of_keys(inputs["text"]) == 512


@pytest.mark.slow
def test_command(tiny, tmp_path, capsys):
    figures, picture = tmp_path / "figures.json", tmp_path / "figures.png"
    arguments = ["bench", "--quality", str(tiny), "--sizes", "16,8", "--rounds", "2",
                 "--json", str(figures), "--plot", str(picture)]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    stored = json.loads(figures.read_text())
    assert stored["rounds"] == 2
    assert stored["machine"]["numpy"] == np.__version__
    methods = quality.methods(activations.load([tiny])["tiny"])
    assert len(stored["lines"]) == 1 + 2 * (len(methods) + 1)
    assert len(stored["equal_time"]) == 2 * len(methods) * (len(methods) - 1)
    assert "tiny: 96 keys, 2 layers; exact attention" in printed
    assert printed.index("8 of 96 keys") < printed.index("16 of 96 keys")
    for line in stored["lines"][1:]:
        assert f"  {line['method']:<32}  {line['error']:>7.4f}" in printed
    assert printed.count("tiny: error at equal time, divided by that of") == 1
    reasons = attention_peers.left_out({})
    assert all(f"{name} is left out" in printed for name in reasons)
    assert picture.read_bytes().startswith(b"\x89PNG")


def change(**changed):
    content = arrays() | changed
    return {name: array for name, array in content.items() if array is not None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (change(layer2_value=None), "has no layer2_value"),
        (change(extra=np.zeros(3)), "takes arrays named as in layer0_query; got 'extra'"),
        ({"layer0_heads": np.zeros(3)}, "has no arrays named as in layer0_query"),
        (change(layer2_key=np.zeros((TOKENS, 2, 8))), "layer2: key must have shape (B, S, H, E)"),
        (
            change(layer2_value=np.zeros((1, 5, 2, 8))),
            "layer2: value must have shape (B, S, H, D) with the B, S and H of key (1, 96, 2, 8)",
        ),
        (
            {name: array[:, : 90 if "10" in name else None] for name, array in arrays().items()},
            "layer2 has (1, 96, 2), layer10 (1, 90, 2)",
        ),
        (change(layer2_key=np.full((1, 96, 2, 8), np.nan)), "layer2_key holds NaN, infinity"),
        (change(layer2_key=np.full((1, 96, 2, 8), 1e300)), "or more than float32 can hold"),
        (change(layer2_key=np.ones((1, 96, 2, 8), int)), "layer2_key must be of floats; got int64"),
    ],
)
def test_files_that_are_refused(content, message, tmp_path, capsys):
    path = tmp_path / "bad.npz"
    np.savez(path, **content)
    assert main(["bench", "--quality", str(path)]) == 2
    found = capsys.readouterr().err
    assert found.startswith(f"thinformer bench: {path}: ")
    assert message in found
    assert found.count("\n") == 1


def test_what_is_no_npz(tiny, tmp_path, capsys):
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("layer0_query\n")
    (tmp_path / "cut.npz").write_bytes(tiny.read_bytes()[:3000])
    for name, message in [
        ("array.npy", "holds a single array"),
        ("text.npz", "cannot be read as .npz"),
        ("cut.npz", "cannot be read as .npz"),
        ("missing.npz", "No such file or directory"),
    ]:
        assert main(["bench", "--quality", str(tmp_path / name)]) == 2
        found = capsys.readouterr().err
        assert message in found
        assert name in found
        assert found.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quality", "--sizes", "600"], "--sizes must be at most the keys of text, 512; got 600"),
        (["--quality", "--sizes", "0"], "--sizes must be an integer of at least 1; got 0"),
        (["--quality", "--sizes", "a"], "--sizes must be integers, as in 1,2; got a"),
        (["--quality", "--rounds", "1"], "--rounds must be an integer of at least 2; got 1"),
        (["--quality", "--g", "3"], "--g does not go with --quality"),
        (["--quality", "--device", "cuda"], "--device does not go with --quality"),
        (["--quality", "--plot", "x.txt"], "--plot takes a file ending in .png"),
        (["--quality", "--json", "/nowhere/x.json"], "there is no folder /nowhere"),
        (["--sizes", "64"], "--sizes belongs to --quality"),
    ],
)
def test_options_that_are_refused(arguments, message, capsys):
    assert main(["bench", *arguments]) == 2
    found = capsys.readouterr().err
    assert message in found
    assert found.count("\n") == 1


def test_two_files_of_one_name(tiny, capsys):
    assert main(["bench", "--quality", str(tiny), str(tiny)]) == 2
    assert "another file has this name" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--quality"]])
def test_torch_is_needed(arguments, monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", *arguments]) == 2
    assert capsys.readouterr().err == "thinformer bench: bench needs torch: pip install torch\n"


def test_the_page_shows_the_stored_run():
    stored = json.loads((ROOT / "docs" / "benchmarks" / "quality.json").read_text())
    page = (ROOT / "docs" / "choose.md").read_text()
    for name, kept in (("text", 64), ("vision", 128), ("audio", 128)):
        (row,) = re.findall(rf"^\| {name}, {kept} of \d+ \|(.*)\|$", page, re.MULTILINE)
        lines = {line["method"]: line for line in stored["lines"]
                 if (line["input"], line["kept"]) == (name, kept)}  # fmt: skip
        shown = [float(cell) for cell in row.split("|")]
        methods = ("uniform sampling", "evenly spaced", *quality.OPTIONS, quality.BEST)
        few = [lines[method] for method in methods]
        assert shown[:7] == pytest.approx([line["error"] for line in few], abs=6e-4)
        assert shown[7:] == pytest.approx([line["ratio"] for line in few[3:6]], abs=6e-3)
