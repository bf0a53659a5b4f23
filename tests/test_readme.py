"""The README's examples run as written, and its table is what the command prints."""

import re
from pathlib import Path

import pytest

from thinformer import demo

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
    assert len(shown) == len(printed)
    for a, b in zip(shown, printed, strict=True):
        assert a[:32] == b[:32]
        if " - " not in a:
            assert float(a[32:41]) == pytest.approx(float(b[32:41]), rel=0.05)
            assert float(a[41:50]) == pytest.approx(float(b[41:50]), rel=0.05)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
