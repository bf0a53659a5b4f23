"""The README's examples run as written, and its tables are what is printed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from thinformer import bench_points, demo
from thinformer.attention import attend

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE))


def run(section, blocks):
    """Run the examples of a section one after the other, as a reader would."""
    examples = re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)
    assert len(examples) == blocks
    names = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)
    return names


def printed(section):
    return re.findall(r"```text\n(.*?)```", SECTIONS[section], re.DOTALL)


def test_thin(capsys):
    names = run("Thin a point set", 3)
    assert names["coreset"].shape == (100, 2)
    assert names["chain"].max() == 3
    assert names["draw"].max() < 500
    assert names["rows"].shape == (100,)
    assert capsys.readouterr().out == printed("Thin a point set")[0]
    # the last ones stand for the standard normal, which the points are not a sample of
    stein = names["points"][names["rows"]]
    assert np.abs(stein.mean(axis=0)).max() < 0.1
    assert np.cov(stein.T)[0, 0] == pytest.approx(1, abs=0.15)
    assert np.cov(names["points"].T)[0, 0] > 4


def test_in_place_of_torchs_attention():
    """The function, transformers and convert, each by itself."""
    pytest.importorskip("transformers")
    import torch

    section = SECTIONS["In place of torch's attention"]
    examples = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(examples) == 3
    of_function, of_transformers, of_convert = {}, {}, {}
    exec(examples[0], of_function)
    assert of_function["weights"].shape == (2, 8, 1024, 64)
    assert (of_function["indices"] >= 0).sum(-1).tolist() == [[64, 64], [32, 32]]
    exec(examples[1], of_transformers)
    assert of_transformers["output"].isfinite().all()
    exec(examples[2], of_convert)
    assert of_convert["done"] == (["layers.0.self_attn", "layers.1.self_attn"], {})
    assert type(of_convert["model"].layers[0].self_attn) is torch.nn.MultiheadAttention


def test_attend():
    examples = re.findall(r"```python\n(.*?)```", SECTIONS["Attend to fewer keys"], re.DOTALL)
    assert len(examples) == 2
    names, of_torch = {}, {}
    exec(examples[0], names)
    assert names["output"].shape == (1, 4096, 8, 64)
    assert names["indices"].shape == (1, 8, 256)
    assert names["error"] == pytest.approx(0.006, abs=0.001)
    uniform = np.argsort(np.random.default_rng(0).random((1, 8, 4096)), axis=-1)[..., :256]
    arrays = (names[role] for role in ("query", "key", "value"))
    output, _ = attend(*arrays, uniform, 64**-0.5, False)
    norm = np.linalg.norm
    sampled = norm(output - names["exact"]) / norm(names["exact"])
    assert sampled == pytest.approx(0.19, abs=0.02)
    exec(examples[1], of_torch)
    assert of_torch["output"].shape == (1, 4096, 8, 64)
    assert of_torch["weights"] is None


def test_all_examples_are_run():
    assert README.count("```python") == 8


def test_table_of_the_demo():
    """Errors are reproducible to the digits printed, up to a tie in float32; times are not."""
    (table,) = printed("What to expect")
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
    measured = [bench_points.Quality(**q) for q in stored["qualities"] if q["errors"]]
    expected = {bench_points.readme_line(quality) for quality in measured}
    lines = [x for x in SECTIONS["Thin a point set"].splitlines() if x.startswith("| mix")]
    lines += [x for x in SECTIONS["Thin a point set"].splitlines() if x.startswith("| eight")]
    assert len(lines) >= 8
    assert set(lines) <= expected
    (speed,) = (q for q in stored["qualities"] if q["n"] == 65536)
    ratio = speed["seconds"]["goodpoints"] / speed["seconds"]["thinformer"]
    assert f"goodpoints took {ratio:.0f} times as long" in README


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
