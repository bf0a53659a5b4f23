"""Slides from the notebooks, and the archive with which they run where no clone is."""

import base64
import importlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from checkout import ROOT

pytest.importorskip("myst_nb")
PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x04\0\0\0\x01\0").decode() + "A" * 64
DECKS = ("01_kernel_halving_by_hand", "02_thinning_point_sets", "03_thinformer_attention")


@pytest.fixture
def extension(monkeypatch):
    """An extension of the documentation by its name."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    return importlib.import_module


def cell(source, kind="", outputs=None):
    metadata = {"slideshow": {"slide_type": kind}} if kind else {}
    one = {"metadata": metadata, "source": source, "cell_type": "markdown"}
    return one if outputs is None else {**one, "cell_type": "code", "outputs": outputs}


def test_cells_become_slides(extension):
    """By headings and by what the metadata say; code and solutions are not shown."""
    printed = {"output_type": "stream", "name": "stdout", "text": ["a < b\n", "c\n"]}
    drawn = {"output_type": "display_data", "data": {"image/png": PICTURE, "text/plain": "Figure"}}
    solution = cell("solved = 1", outputs=[printed])
    solution["metadata"] = {"tags": ["solution"]}
    notebook = {
        "cells": [
            cell("# 1. A lesson\n\nAims", "slide"),
            cell("How to run it.", "skip"),
            cell("## First\n\n$a_i$ and *this*."),
            cell("code = 1", outputs=[printed]),
            cell("More.\n\n## Second\n\nWords."),
            cell("## Third", outputs=[drawn]),
            cell("Under the same heading.", "slide"),
            solution,
        ]
    }
    slides = extension("slides").make_slides(notebook)
    assert [slide.heading for slide in slides] == [
        "# 1. A lesson", "## First", "## Second", "## Second",
    ]  # fmt: skip
    title, first, second, last = (slide.html() for slide in slides)
    assert "<h1>1. A lesson</h1>" in title
    assert "How to run it" not in title
    assert "<msub>" in first
    assert "<em>this</em>" in first
    assert "<pre>a &lt; b\nc</pre>" in first
    assert "code = 1" not in first
    assert f'<img alt="Plot: Second" src="data:image/png;base64,{PICTURE}">' in second
    assert slides[2].shapes == [1024 / 256]
    assert 'class="wide"' in second
    assert "Under the same heading." in last
    assert "solved" not in last


def test_small_pictures_stand_beside_the_text(extension):
    Slide = extension("slides").Slide
    for shapes, longest, name in (
        ([1.5], 20, "beside"), ([3.0], 20, "wide"), ([1.5], 80, "wide"), ([], 20, "wide"),
    ):  # fmt: skip
        slide = Slide("## H", ["<p>t</p>"], ["<pre>x</pre>"], shapes, longest)
        assert f'<section class="{name}">' in slide.html()


def test_which_lessons_have_slides(extension):
    """The page that offers them names the same; none of their slides is without a heading."""
    slides = extension("slides")
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        if any(slides.kind(one) for one in notebook["cells"]):
            found[path.stem] = slides.make_slides(notebook)
    assert tuple(found) == DECKS
    offered = re.findall(r'href="slides/(\w+)\.html"', (ROOT / "docs" / "lessons.md").read_text())
    assert tuple(offered) == DECKS
    for deck in found.values():
        assert len(deck) > 10
        assert all(re.match("##? ", slide.heading) for slide in deck)
        assert sum(len(slide.shapes) for slide in deck) >= 3


@pytest.fixture
def unpacked(extension, tmp_path):
    """The folder of the archive, away from the checkout."""
    archive = extension("archive")
    archive.write(tmp_path / "notebooks.zip")
    with zipfile.ZipFile(tmp_path / "notebooks.zip") as file:
        file.extractall(tmp_path)
    return tmp_path / archive.NAME


def test_the_archive_has_what_notebooks_read(unpacked):
    """The modules of the specification, the style and the recording, where notebooks look."""
    notebooks = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.name for path in (unpacked / "notebooks").glob("*.ipynb")} == notebooks
    assert (unpacked / "notebooks" / "style.mplstyle").exists()
    for path in (unpacked / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code = "".join("".join(one["source"]) + "\n" for one in cells if one["cell_type"] == "code")
        for module in re.findall(r"^\s*(?:from|import) reference\.(\w+)", code, re.MULTILINE):
            assert (unpacked / "reference" / f"{module}.py").exists(), (path.name, module)
        for read in re.findall(r"\"(\.\./[\w/.]+)\"", code):
            assert (unpacked / "notebooks" / read).exists(), (path.name, read)
    assert not list(unpacked.rglob("vision.npz"))
    assert (unpacked / "thinformer/data/activations/decoder.npz").exists()
    # nothing in it can be taken for the package
    assert not list((unpacked / "thinformer").rglob("*.py"))


def test_the_archive_is_the_same_each_time(extension, tmp_path):
    archive = extension("archive")
    for name in ("a.zip", "b.zip"):
        archive.write(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.slow
def test_a_notebook_runs_from_the_archive(unpacked):
    """With the package as it is installed: the checkout is not on the path of the kernel."""
    pytest.importorskip("ipykernel")
    (path,) = (unpacked / "notebooks").glob("01_*.ipynb")
    code = (
        "import nbclient, nbformat, pathlib, sys\n"
        f"path = pathlib.Path({str(path)!r})\n"
        "notebook = nbformat.read(path, as_version=4)\n"
        "del notebook.cells[22:]\n"  # plots of many runs, which take most of the time
        "notebook.cells.append(nbformat.v4.new_code_cell("
        "'import reference, thinformer; print(reference.__file__, thinformer.__file__)'))\n"
        "nbclient.NotebookClient(notebook, timeout=300, kernel_name='python3',"
        " resources={'metadata': {'path': str(path.parent)}}).execute()\n"
        "print(notebook.cells[-1].outputs[0].text)\n"
    )
    path = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    elsewhere = os.pathsep.join(entry for entry in path if Path(entry).resolve() != ROOT)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=unpacked.parent,
        env={**os.environ, "PYTHONPATH": elsewhere},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reference, package = done.stdout.split()
    assert Path(reference).is_relative_to(unpacked)
    assert not Path(package).is_relative_to(unpacked)
