"""The examples of the documentation run, and its links lead somewhere."""

import configparser
import importlib
import inspect
import json
import re
import shlex

import documents
import numpy as np
import pytest
from checkout import ROOT

import thinformer
from thinformer.commands import main
from thinformer.measuring import peers
from thinformer.measuring.points import mean_and_error

PAGES = sorted((ROOT / "docs").rglob("*.md"))


def name(path):
    return str(path.relative_to(ROOT))


def test_where_other_packages_are_ahead():
    """What the page on benchmarks says of them is what was measured."""
    words = " ".join((ROOT / "docs" / "benchmarks.md").read_text().split())
    stored = json.loads((ROOT / "docs" / "benchmarks" / "peers.json").read_text())
    for measure, swept in (("MMD", "coreax, herding, 8 sweeps"),
                           ("KSD", "coreax, Stein thinning, plain, 8 sweeps")):  # fmt: skip
        lines = [peers.Line(**line) for line in stored[measure]]
        assert {line.method for line in lines} == set(peers.METHODS[measure])
        for n in {line.n for line in lines}:
            measured = {line.method: line for line in lines if line.n == n and line.errors}
            found = {method: mean_and_error(line.errors) for method, line in measured.items()}
            (fast, _), (ours, off) = (
                found.pop(f"thinformer, {method}") for method in ("compress++", "kernel-thinning")
            )
            theirs, of_theirs = found.pop(swept)
            assert ours < theirs + 2 * np.hypot(off, of_theirs)
            assert measured["thinformer, compress++"].seconds < measured[swept].seconds
            assert ours < fast < min(error for error, _ in found.values())
            if n == 4096:
                assert f"{theirs:.4f} ± {of_theirs:.4f} beside its {ours:.4f} ± {off:.4f}" in words
                assert f"{fast:.4f}" in words
            if measure == "MMD":
                assert found["coreax, RPCholesky"][0] > found["random rows"][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=name(path), marks=[pytest.mark.nightly] * (path.name == "kernel.md"))
        for path in PAGES
        if path.name != "points.md"  # which test_readme.py runs; kernel.md compiles the same again
    ],
)
def test_examples(path):
    """They print what the page says they do."""
    pytest.importorskip("transformers")
    text = path.read_text()
    if path.name == "cuda.md":  # has none
        assert not documents.examples(text)
    for said, printed in documents.run_page(text, path.name):
        assert printed.endswith(said)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands(path, monkeypatch):
    """Commands of the package parse, and the extras that are installed exist."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    text = path.read_text()
    for extras in re.findall(r"install [^`\n]*\.\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(setup["options.extras_require"])
    called = []
    for command in main.COMMANDS:
        monkeypatch.setattr(command, "run", lambda arguments: called.append(arguments) or 0)
    lines = "".join(documents.examples(text, "sh")).splitlines()
    ours = [line for line in lines if line.startswith("thinformer ")]
    for line in ours:
        assert main.main(shlex.split(line)[1:]) == 0
    assert len(called) == len(ours)
    of_checkout = [line for line in lines if line.startswith("tests/")]
    for line in of_checkout:
        assert (ROOT / line.split()[0]).exists()
    for line in set(lines) - set(ours) - set(of_checkout):
        assert re.match(r"(python3 -m venv|(\.venv/bin/)?pip install|\.venv/bin/python$)", line), (
            line
        )


@pytest.mark.parametrize(
    "path",
    [
        *PAGES,
        *ROOT.glob("*.md"),
        ROOT / "reference/README.md",
        ROOT / "notebooks/README.md",
    ],
    ids=name,
)
def test_links_lead_somewhere(path):
    assert list(documents.broken_links(path)) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A heading\n\n[a](#a-heading) [b](#none) [c](page.md) [d](none.md)\n")
    assert list(documents.broken_links(page)) == ["#none", "none.md"]


def test_the_map_names_what_is_there():
    """Functions, modules and tests of the page from paper to code."""
    text = (ROOT / "docs" / "map.md").read_text()
    names = re.findall(r"`((?:reference|thinformer)\.[\w.]+)`", text)
    assert len(names) > 25
    for dotted in names:
        head, _, last = dotted.rpartition(".")
        try:
            importlib.import_module(dotted)
        except ImportError:
            assert hasattr(importlib.import_module(head), last), dotted
    tests = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
    assert len(tests) > 8
    assert all((ROOT / path).exists() for path in tests)


def test_migration_names_arguments_that_are_there():
    """Arguments of this package in the tables, against the signatures."""
    text = (ROOT / "docs" / "migration.md").read_text()
    section = text[text.index("### `compress.compresspp_kt`") : text.index("### Others")]
    ours = [line.split("|")[2] for line in section.splitlines() if line.startswith("| ")]
    arguments = {a for cell in ours for a in re.findall(r"`(\w+)(?:=[^`]*)?`", cell)} - {"thin"}
    assert len(arguments) > 8
    assert arguments <= set(inspect.signature(thinformer.thin).parameters)


def rows(text):
    """The cells of each row of the tables of a page, without heads and rules."""
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        for line in table.splitlines()[2:]:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def found(dotted):
    """What a dotted name leads to: a module's function or class."""
    module, _, last = dotted.rpartition(".")
    return getattr(importlib.import_module(module), last)


def test_symbols_have_the_names_that_the_glossary_says():
    """Each name is a word of the code where the page says it is."""
    text = (ROOT / "docs" / "glossary.md").read_text()
    symbols = list(rows(text[text.index("## Symbols") :]))
    assert len(symbols) > 35
    for symbol, names, where, what, _ in symbols:
        source = inspect.getsource(found(where.strip("`")))
        for word in re.findall(r"`(\w+)`", names):
            assert re.search(rf"\b{word}\b", source), (symbol, word, where)
        assert what


def as_printed(number, text):
    """Whether a text has a number that is rounded to this one."""
    half_a_digit = 0.5 * 10.0 ** -len(number.partition(".")[2]) + 1e-9
    printed = re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+", text)
    return any(abs(float(other.replace(",", "")) - float(number)) <= half_a_digit
               for other in printed)  # fmt: skip


def test_figures_of_open_questions_are_those_that_are_stored():
    """Each figure is in the file that the page names; each question says the same three things."""
    text = (ROOT / "docs" / "open-questions.md").read_text()
    questions = text.split("\n## ")[1:]
    assert len(questions) == 12
    for number, question in enumerate(questions, 1):
        assert question.startswith(f"{number}. ")
        assert re.findall(r"^- \*\*(.*?)\*\*", question, re.MULTILINE) == [
            "Proved.", "Open.", "To begin.",
        ]  # fmt: skip
        figures = list(rows(question))
        assert figures
        for what, values, _, stored in figures:
            path = ROOT / stored.strip("`")
            content = path.read_text()
            for value in re.findall(r"[\d.]*\d", values):
                assert as_printed(value, content), (what, value, stored)
    assert not as_printed("0.0117", "0.0118 and 0.01")
    assert as_printed(".889", "0.8889 +- 0.0096")
