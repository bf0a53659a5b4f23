"""The notebooks run, each from a fresh kernel, and print what is stored in them."""

import base64
import re

import pytest
from checkout import ROOT

from thinformer.support import compiling

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def read(path):
    return nbformat.read(path, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_measured(cell):
    """Whether it prints times, which differ from run to run."""
    return "measured" in cell.metadata.get("tags", [])


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def images(cell):
    data = [output.get("data", {}) for output in cell.outputs]
    return [entry["image/png"] for entry in data if "image/png" in entry]


def complains(output):
    """Whether it is an error or a warning, and not word of kernels that a cold cache lacks."""
    return output.get("name") == "stderr" and compiling.WORDS not in output.text


def assert_same(stored, found):
    """Equal words; numbers up to 5 % or a last digit: float32 ties may fall otherwise."""
    assert NUMBER.sub("#", stored).split() == NUMBER.sub("#", found).split()
    for a, b in zip(NUMBER.findall(stored), NUMBER.findall(found), strict=True):
        decimals = len(a.partition(".")[2].partition("e")[0])
        last_digit = 1.01 * 10.0**-decimals if decimals and "e" not in a else 0.0
        assert float(a) == pytest.approx(float(b), rel=0.05, abs=last_digit), (a, b)


def test_what_differs_is_seen():
    assert_same("MMD 0.0271 of 64", "MMD 0.0272 of 64")
    for other in ("MMD 0.0371 of 64", "MMD 0.0271 of 32", "mmd 0.0271 of 64"):
        with pytest.raises(AssertionError):
            assert_same("MMD 0.0271 of 64", other)


def test_all_twelve_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, 13)]
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 4e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_as_it_was_run(path):
    """From the first cell to the last, without errors or warnings, with plots that show."""
    notebook = read(path)
    assert [cell.execution_count for cell in code(notebook)] == [
        i + 1 for i in range(len(code(notebook)))
    ]
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert all(output.get("name") != "stderr" for output in outputs)
    plots = [plot for cell in code(notebook) for plot in images(cell)]
    assert len(plots) >= 1
    assert all(len(base64.b64decode(plot)) > 5000 for plot in plots)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_has_what_a_lesson_has(path):
    """What the reader will know, three exercises, and their solutions, collapsed, at the end."""
    notebook = read(path)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert "At the end you will know" in notebook.cells[0].source
    exercises = re.search(r"## Exercises\n\n(1\. .*?)\n\n", text, re.DOTALL).group(1)
    assert re.findall(r"^(\d)\. ", exercises, re.MULTILINE) == ["1", "2", "3"]
    solutions = notebook.cells[-3:]
    for number, cell in enumerate(solutions, 1):
        assert cell.metadata.jupyter == {"source_hidden": True, "outputs_hidden": True}
        assert cell.source.startswith(f"# {number}.")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path, monkeypatch):
    monkeypatch.delenv("NUMBA_ENABLE_CUDASIM", raising=False)
    stored = read(path)
    notebook = read(path)
    for cell in code(notebook):
        cell.outputs = []
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    ).execute()
    for before, after in zip(code(stored), code(notebook), strict=True):
        assert len(images(before)) == len(images(after))
        assert not any(complains(output) for output in after.outputs)
        if not is_measured(before):
            assert_same(printed(before), printed(after))
