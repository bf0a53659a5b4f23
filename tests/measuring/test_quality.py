"""The quality benchmark: its errors, its files and what it refuses; its times are not asserted."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from checkout import ROOT

from thinformer import attention
from thinformer.commands.main import main
from thinformer.measuring import demo, quality

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


def test_lines(tiny):
    layers = quality.load([tiny])["tiny"]
    assert list(layers) == ["layer2", "layer10"]
    lines = quality.measure("tiny", layers, [16, 32], rounds=2)
    methods = [*quality.METHODS, quality.BEST]
    assert [(line.method, line.kept) for line in lines] == [
        (quality.EXACT, TOKENS), *((m, 16) for m in methods), *((m, 32) for m in methods),
    ]  # fmt: skip
    found = {(line.method, line.kept): line for line in lines}
    exact = [attention(*layer, size=TOKENS).output for layer in layers.values()]
    for method, options in quality.OPTIONS.items():
        rounds = [
            errors_of(
                [attention(*layer, size=32, rng=seed, **options).output
                 for layer in layers.values()],
                exact,
            )
            for seed in (0, 1)
        ]  # fmt: skip
        line = found[method, 32]
        assert line.error == pytest.approx(np.mean(rounds), rel=1e-4)
        means = np.mean(rounds, axis=1)
        assert line.standard_error == pytest.approx(abs(means[0] - means[1]) / 2, rel=1e-2)
        assert line.layers["layer10"] == pytest.approx(np.mean(rounds, axis=0)[2:].mean(), rel=1e-4)
        assert line.ratio == line.seconds / found[quality.PLAIN, 32].seconds
    uniform = [
        demo.relative_error(demo.uniform(list(layers.values()), 16, seed), exact) for seed in (0, 1)
    ]
    assert found["uniform sampling", 16].error == pytest.approx(np.mean(uniform), rel=1e-6)
    assert found[quality.EXACT, TOKENS].error == 0
    assert found[quality.EXACT, TOKENS].standard_error is None
    best = found[quality.BEST, 32]
    assert (best.standard_error, best.seconds, best.ratio) == (None, None, None)


def test_all_keys_are_exact(tiny):
    lines = quality.measure("tiny", quality.load([tiny])["tiny"], [TOKENS], rounds=2)
    assert lines[1].error < 1e-6  # uniform sampling has them in another order
    for line in lines[2:-1]:
        assert (line.error, line.standard_error) == (0, 0), line.method
    assert lines[-1].error < 1e-12


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


def test_evenly_spaced_keys_are_evenly_spaced(monkeypatch):
    seen = []
    monkeypatch.setattr(quality, "attend", lambda q, k, v, indices, *rest: (seen.append(indices),))
    layer = [np.zeros((2, 10, 3, 4), np.float32)] * 3
    quality._evenly_spaced({"layer0": layer, "layer1": layer}, 4, seed=0)
    for indices in seen:
        assert indices.shape == (2, 3, 4)
        assert set(np.diff(indices).ravel()) == {2, 3}
        assert (indices.min() >= 0, indices.max() < 10) == (True, True)
    assert len(np.unique(seen)) > 4  # another start for every head


def test_sizes():
    packaged = quality.packaged()
    chosen = [quality.choose_sizes(n, layers, [], several=False) for n, layers in packaged.items()]
    assert chosen == [[64], [128], [128]]
    plotted = quality.choose_sizes("vision", packaged["vision"], [], several=True)
    assert plotted == [32, 64, 128, 256, 512, 1024]
    assert quality.choose_sizes("text", packaged["text"], [64, 8, 64], several=True) == [8, 64]
    assert packaged["text"]["layer5"][2].dtype == np.float32


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
    assert len(stored["lines"]) == 1 + 2 * (len(quality.METHODS) + 1)
    assert "tiny: 96 keys, 2 layers; exact attention" in printed
    assert printed.index("8 of 96 keys") < printed.index("16 of 96 keys")
    for line in stored["lines"][1:]:
        assert f"  {line['method']:<32}  {line['error']:>7.4f}" in printed
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


@pytest.mark.slow
def test_torch_is_not_needed(tiny):
    code = (
        "import sys; sys.modules['torch'] = None; from thinformer.commands.main import main; "
        f"sys.exit(main(['bench', '--quality', {str(tiny)!r}, '--rounds', '2']))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "32 of 96 keys" in result.stdout


def test_the_page_shows_the_stored_run():
    stored = json.loads((ROOT / "docs" / "benchmarks" / "quality.json").read_text())
    page = (ROOT / "docs" / "choose.md").read_text()
    for name, kept in (("text", 64), ("vision", 128), ("audio", 128)):
        (row,) = re.findall(rf"^\| {name}, {kept} of \d+ \|(.*)\|$", page, re.MULTILINE)
        lines = {line["method"]: line for line in stored["lines"]
                 if (line["input"], line["kept"]) == (name, kept)}  # fmt: skip
        shown = [float(cell) for cell in row.split("|")]
        few = [lines[method] for method in (*quality.METHODS, quality.BEST)]
        assert shown[:7] == pytest.approx([line["error"] for line in few], abs=6e-4)
        assert shown[7:] == pytest.approx([line["ratio"] for line in few[3:6]], abs=6e-3)
