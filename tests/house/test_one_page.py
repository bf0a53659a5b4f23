"""The algorithm on one page: the stored picture and handout are what the script draws."""

import importlib.util
import re
from xml.etree import ElementTree

import pytest
from checkout import ROOT

DOCS = ROOT / "docs"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("one_page", DOCS / "one_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stored():
    return (DOCS / "one_page.svg").read_text(encoding="utf-8")


def test_the_picture_is_what_the_script_draws(script, stored):
    assert script.to_svg(script.draw()) == stored, "run python -m docs.one_page"


def test_the_handout_is_made_from_the_picture(script, stored):
    assert script.digest(stored).encode() in (DOCS / "one_page.pdf").read_bytes()
    assert script.digest(stored + " ").encode() not in (DOCS / "one_page.pdf").read_bytes()


def test_the_picture_says_what_the_specification_computes(stored):
    """The numbers of the first notebook, and a tree that halves 64 points three times."""
    page = ElementTree.fromstring(stored)
    words = [text.text for text in page.iter(f"{SVG}text")]
    said = [words_ for words_ in words if words_.startswith("U a")]
    assert said == ["U a = 0.12, α = 0.64: swap", "U a = 7.54, α = 0.10",
                    "U a = −2.70, α = −0.77: swap"]  # fmt: skip
    assert any("768 kernel values" in words_ for words_ in words)
    green = [dot for dot in page.iter(f"{SVG}circle") if dot.get("stroke") == "#009E73"]
    rows = {y: [dot.get("fill") for dot in green if dot.get("cy") == y]
            for y in {dot.get("cy") for dot in green}}  # fmt: skip
    found = sorted((len(fills), fills.count("#009E73")) for fills in rows.values())
    assert found == [(8, 8), (16, 8), (32, 16), (64, 32)]
    first = page.find(f"{SVG}rect")
    assert (first.get("width"), first.get("height"), first.get("fill")) == (
        "800",
        "1131",
        "#FFFFFF",
    )


def test_no_line_of_text_leaves_the_page(script):
    pytest.importorskip("matplotlib")
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    for kind, points, style in script.draw().shapes:
        if kind == "text":
            words, size, _, weight, anchor = style
            font = FontProperties(family="DejaVu Sans", weight=weight)
            wide = TextPath((0, 0), words, size=size, prop=font).get_extents().x1
            share = {"start": 0, "middle": 0.5, "end": 1}[anchor]
            left = points[0, 0] - share * wide
            assert left >= script.LEFT - 1, words
            assert left + wide <= script.RIGHT + 1, words


@pytest.mark.slow
def test_the_script_writes_the_handout(script, tmp_path):
    pytest.importorskip("matplotlib")
    script.write_pdf(script.draw(), tmp_path / "page.pdf", "where it comes from")
    written = (tmp_path / "page.pdf").read_bytes()
    assert b"where it comes from" in written
    (box,) = re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", written)
    assert [round(float(side) / 72 * 25.4) for side in box] == [210, 297]
