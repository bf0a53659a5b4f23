"""Examples of the README and of the first pages run as written; tables are what was printed."""

import json
import re

import numpy as np
import pytest
from checkout import ROOT
from documents import broken_links, examples, run, run_page

from thinformer.attending.softmax import attend
from thinformer.measuring import demo, points, quality

README = (ROOT / "README.md").read_text()
WORDS = " ".join(README.split())
POINTS = (ROOT / "docs" / "howto" / "points.md").read_text()
ATTENTION = (ROOT / "docs" / "howto" / "attention.md").read_text()
SECTION = r"^## (.*?)\n(.*?)(?=^## |\Z)"
SECTIONS = {
    heading: text
    for page in (ATTENTION, README)
    for heading, text in re.findall(SECTION, page, re.DOTALL | re.MULTILINE)
}


def run_each(text):
    """The names that each example of a text leaves."""
    left = []
    for code in examples(text):
        names = {}
        run(code, names, "example")
        left.append(names)
    return left


def test_the_readme_is_short():
    """Two hundred lines that fit a terminal, but for the test command, which is one line."""
    lines = README.splitlines()
    assert len(lines) <= 200
    assert [x for x in lines if len(x) > 100 and not x.startswith("python3 -m venv")] == []


@pytest.mark.slow
def test_thin(capsys):
    (names,) = run_each(SECTIONS["Thin a point set"])
    assert names["coreset"].shape == (100, 2)
    (said,) = examples(SECTIONS["Thin a point set"], "text")
    assert capsys.readouterr().out == said


@pytest.mark.slow
def test_thin_a_point_set():
    names = {}
    said = run_page(POINTS, "points.md", names)
    assert len(said) == 3
    assert all(printed == text for text, printed in said)
    assert names["coreset"].shape == (100, 2)
    assert dict(names["few"]["posterior"].sizes) == {"chain": 1, "draw": 50, "school": 8}
    assert names["few"]["posterior"]["source_chain"].max() == 3
    assert names["few"]["posterior"]["source_draw"].max() < 500
    assert names["rows"].shape == (100,)
    # the last ones stand for the standard normal, which the points are not a sample of
    stein = names["points"][names["rows"]]
    assert np.abs(stein.mean(axis=0)).max() < 0.1
    assert np.cov(stein.T)[0, 0] == pytest.approx(1, abs=0.15)
    assert np.cov(names["points"].T)[0, 0] > 4


@pytest.mark.slow
def test_in_place_of_torchs_attention():
    (of_function,) = run_each(SECTIONS["In place of torch's attention"])
    assert of_function["weights"].shape == (2, 8, 1024, 64)
    assert (of_function["indices"] >= 0).sum(-1).tolist() == [[64, 64], [32, 32]]


def test_swap_a_models_attention():
    """Models of transformers and convert, each by itself."""
    pytest.importorskip("transformers")
    import torch

    of_transformers, of_convert = run_each(SECTIONS["Swap a model's attention"])
    assert of_transformers["output"].isfinite().all()
    assert of_convert["done"] == (["layers.0.self_attn", "layers.1.self_attn"], {})
    assert type(of_convert["model"].layers[0].self_attn) is torch.nn.MultiheadAttention


@pytest.mark.slow
def test_attend():
    (names,) = run_each(SECTIONS["On NumPy arrays"])
    (of_torch,) = run_each(SECTIONS["In torch: the module"])
    assert names["output"].shape == (1, 4096, 8, 64)
    assert names["indices"].shape == (1, 8, 256)
    assert names["error"] == pytest.approx(0.006, abs=0.001)
    uniform = np.argsort(np.random.default_rng(0).random((1, 8, 4096)), axis=-1)[..., :256]
    arrays = (names[role] for role in ("query", "key", "value"))
    output, _ = attend(*arrays, uniform, 64**-0.5, False)
    norm = np.linalg.norm
    sampled = norm(output - names["exact"]) / norm(names["exact"])
    assert sampled == pytest.approx(0.19, abs=0.02)
    assert of_torch["output"].shape == (1, 4096, 8, 64)
    assert of_torch["weights"].shape == (1, 8, 4096, 256)
    sums = of_torch["weights"].sum(-1)
    np.testing.assert_allclose(sums.detach().numpy(), 1, atol=1e-4)
    corrected = norm(names["corrected"] - names["exact"]) / norm(names["exact"])
    assert 0 < corrected < 4e-5  # 1.0e-5 and 1.3e-5 on two processors: sums differ in order


def test_all_examples_are_run():
    assert README.count("```python") == 3
    assert POINTS.count("```python") == 6
    assert ATTENTION.count("```python") == 3


@pytest.mark.slow
def test_table_of_the_demo():
    """Errors are reproducible to the digits printed, up to a tie in float32; times are not."""
    table = (ROOT / "docs" / "benchmarks" / "demo.txt").read_text()
    shown = [line for line in table.splitlines() if " MB" in line]
    lines = [demo.format_line(line) for line in demo.run()]
    assert len(shown) == len(lines) > 15
    for a, b in zip(shown, lines, strict=True):
        assert a[:32] == b[:32]
        if " - " not in a:
            assert float(a[32:41]) == pytest.approx(float(b[32:41]), rel=0.05)
            assert float(a[41:50]) == pytest.approx(float(b[41:50]), rel=0.05)


def test_table_beside_goodpoints():
    """Every line of the table is a stored figure."""
    stored = json.loads((ROOT / "docs" / "benchmarks" / "points.json").read_text())
    measured = [points.Quality(**q) for q in stored["qualities"] if q["errors"]]
    expected = {points.readme_line(quality) for quality in measured}
    lines = [x for x in POINTS.splitlines() if x.startswith("| mix")]
    lines += [x for x in POINTS.splitlines() if x.startswith("| eight")]
    assert len(lines) >= 8
    assert set(lines) <= expected
    (speed,) = (q for q in stored["qualities"] if q["n"] == 65536)
    ratio = speed["seconds"]["goodpoints"] / speed["seconds"]["thinformer"]
    assert f"goodpoints took {ratio:.0f} times as long" in POINTS


def test_figures_beside_goodpoints():
    """What the README says in a sentence of 4,096 and 16,384 points."""
    stored = json.loads((ROOT / "docs" / "benchmarks" / "points.json").read_text())["qualities"]
    measured = [q for q in stored if q["n"] in (4096, 16384)]
    times = [q["seconds"]["goodpoints"] / q["seconds"]["thinformer"] for q in measured]
    assert f"[{min(times):.0f} to {max(times):.0f} times as long]" in WORDS
    for line in measured:
        ours, theirs = (np.mean(line["errors"][name]) for name in ("thinformer", "goodpoints"))
        assert ours < theirs


def test_tables_of_quality_and_speed():
    """Every figure of the README's two tables is stored."""
    folder = ROOT / "docs" / "benchmarks"
    stored = json.loads((folder / "quality.json").read_text())
    lines = stored["lines"]
    methods = ["uniform sampling", *quality.OPTIONS]
    for name, kept in (("text", 64), ("vision", 128), ("audio", 128),
                       ("vision5477", 256)):  # fmt: skip
        (row,) = re.findall(rf"^\| {name}, {kept} of \d+ \|(.*)\|$", README, re.MULTILINE)
        errors = {line["method"]: line["error"] for line in lines
                  if (line["input"], line["kept"]) == (name, kept)}  # fmt: skip
        shown = [float(cell) for cell in row.split("|")]
        assert shown == pytest.approx([errors[method] for method in methods], abs=6e-4)
    shown = (("text", 64), ("vision", 128), ("audio", 128))
    corrected = [line for line in lines if line["method"] in methods[3:]]
    ratios = [x["ratio"] for x in corrected if (x["input"], x["kept"]) in shown]
    assert f"takes {min(ratios):.1f} to {max(ratios):.1f} times as long" in WORDS
    at_equal_time = [
        x["ratio"] for x in stored["equal_time"]
        if (x["input"], x["method"], x["other"], x["bound"])
        == ("vision5477", methods[-1], "evenly spaced", "")
    ]  # fmt: skip
    assert f"has {min(at_equal_time):.2f} to {max(at_equal_time):.2f} of the error" in WORDS
    uniform = {
        (x["input"], x["kept"]): x["error"] for x in lines if x["method"] == "uniform sampling"
    }
    for line in corrected:
        assert line["error"] < uniform[line["input"], line["kept"]]
    results = json.loads((folder / "cpu.json").read_text())["results"]
    table = SECTIONS["Quality and speed"].splitlines()
    assert len(results) == 5
    for result in results:
        kept, ratio = result["kept"], result["ratios"]["exact / Thinformer"]
        cells = f"| {kept:,} of {result['dims'][2]:,} | {ratio:.1f} |"
        assert sum(line.endswith(cells) for line in table) == 1


def test_divergence_of_a_decoder():
    printed = (ROOT / "docs" / "benchmarks" / "decoders.txt").read_text()
    [(_, ours), *others] = re.findall(r"^ 256  (\D+?) +(0\.\d+) ", printed, re.MULTILINE)
    assert len(others) == 4
    assert f"diverge by {ours} nats" in WORDS
    assert f"sampling, by {min(kl for _, kl in others)}." in WORDS


def test_links_lead_somewhere():
    assert list(broken_links(ROOT / "README.md")) == []
