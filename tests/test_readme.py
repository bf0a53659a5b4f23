"""The README's examples run as written, and its table is what the command prints."""

import re
from pathlib import Path

import numpy as np
import pytest

from thinformer import demo
from thinformer.attention import attend

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example(example):
    names = {}
    exec(example, names)
    if "coreset" in names:
        assert names["coreset"].shape == (1024, 2)
        assert names["kept"].shape == (500,)
        assert names["half"].shape == (50,)
    elif "indices" in names:
        assert names["output"].shape == (1, 4096, 8, 64)
        assert names["indices"].shape == (1, 8, 256)
        assert names["error"] == pytest.approx(0.006, abs=0.001)
        uniform = np.argsort(np.random.default_rng(0).random((1, 8, 4096)), axis=-1)[..., :256]
        arrays = (names[role] for role in ("query", "key", "value"))
        output, _ = attend(*arrays, uniform, 64**-0.5, False)
        norm = np.linalg.norm
        sampled = norm(output - names["exact"]) / norm(names["exact"])
        assert sampled == pytest.approx(0.19, abs=0.02)
    else:
        assert names["output"].shape == (1, 4096, 8, 64)
        assert names["weights"] is None


def test_there_are_examples():
    assert len(EXAMPLES) == 3


def test_table():
    """Errors are reproducible to the digits printed, up to a tie in float32; times are not."""
    (table,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    shown = [line for line in table.splitlines() if " MB" in line]
    printed = [demo.format_line(line) for line in demo.run()]
    assert len(shown) == len(printed) > 15
    for a, b in zip(shown, printed, strict=True):
        assert a[:32] == b[:32]
        if " - " not in a:
            assert float(a[32:41]) == pytest.approx(float(b[32:41]), rel=0.05)
            assert float(a[41:50]) == pytest.approx(float(b[41:50]), rel=0.05)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
