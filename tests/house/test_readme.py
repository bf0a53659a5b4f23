"""The README's examples run as written, and its tables are what is printed."""

import json
import re

import numpy as np
import pytest
from checkout import ROOT
from documents import broken_links, examples, run

from thinformer.attending.attention import attend
from thinformer.measuring import demo, points

README = (ROOT / "README.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.DOTALL | re.MULTILINE))


def run_each(section, together=False):
    """The names that each example of a section leaves; of one after the other if together."""
    names, left = {}, []
    for code in examples(SECTIONS[section]):
        names = names if together else {}
        run(code, names, "README.md")
        left.append(names)
    return left


def printed(section):
    return examples(SECTIONS[section], "text")


@pytest.mark.slow
def test_thin(capsys):
    *_, names = run_each("Thin a point set", together=True)
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


@pytest.mark.slow
def test_in_place_of_torchs_attention():
    """The function, transformers and convert, each by itself."""
    pytest.importorskip("transformers")
    import torch

    of_function, of_transformers, of_convert = run_each("In place of torch's attention")
    assert of_function["weights"].shape == (2, 8, 1024, 64)
    assert (of_function["indices"] >= 0).sum(-1).tolist() == [[64, 64], [32, 32]]
    assert of_transformers["output"].isfinite().all()
    assert of_convert["done"] == (["layers.0.self_attn", "layers.1.self_attn"], {})
    assert type(of_convert["model"].layers[0].self_attn) is torch.nn.MultiheadAttention


@pytest.mark.slow
def test_attend():
    names, of_torch = run_each("Attend to fewer keys")
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
    assert corrected == pytest.approx(0.002, abs=5e-4)


def test_all_examples_are_run():
    assert README.count("```python") == 8


@pytest.mark.slow
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
    measured = [points.Quality(**q) for q in stored["qualities"] if q["errors"]]
    expected = {points.readme_line(quality) for quality in measured}
    lines = [x for x in SECTIONS["Thin a point set"].splitlines() if x.startswith("| mix")]
    lines += [x for x in SECTIONS["Thin a point set"].splitlines() if x.startswith("| eight")]
    assert len(lines) >= 8
    assert set(lines) <= expected
    (speed,) = (q for q in stored["qualities"] if q["n"] == 65536)
    ratio = speed["seconds"]["goodpoints"] / speed["seconds"]["thinformer"]
    assert f"goodpoints took {ratio:.0f} times as long" in README


def test_links_lead_somewhere():
    assert list(broken_links(ROOT / "README.md")) == []
