"""Sphinx builds the documentation from this folder: sphinx-build -W docs build/docs."""

import json
import shutil
import sys
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

from thinformer import __version__
from thinformer.measuring import models, peers, points, speed

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "extensions"))

project = "thinformer"
author = "The thinformer developers"
copyright = author
release = version = __version__

extensions = [
    "archive",  # this one and the next two are in extensions/
    "mathml",
    "slides",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["benchmarks/*", "**.ipynb_checkpoints"]
nitpicky = True
# types in docstrings are prose: "(n, d) array"; only names of the package must lead somewhere. What
# stands in single backticks is found by importing it, and need not have a page (py:obj)
nitpick_ignore_regex = [("py:.*", r"(?!thinformer\.).*"), ("py:obj", ".*")]
default_role = "autolink"

myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # they are stored as they ran; the tests run them
nb_code_prompt_show = nb_code_prompt_hide = "Solution"  # of the cells that are hidden

autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "none"
autodoc_mock_imports = ["tabpfn"]  # no test installs it
autosummary_generate = False
maximum_signature_line_length = 80
napoleon_custom_sections = [("Shape", "params_style")]
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_math_renderer = "mathml"
html_theme = "furo"
html_title = "thinformer"
html_static_path = ["_static"]
html_css_files = ["extra.css"]
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def copy_notebooks(app):
    """Bring the notebooks beside the pages, where Sphinx can find them."""
    shutil.copytree(
        HERE.parent / "notebooks",
        HERE / "notebooks",
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns(".*", "*.md", "*.mplstyle"),
    )


def speed_table(stored):
    """Medians by shape, a row a candidate."""
    results = [speed.Result(**{k: v for k, v in r.items() if k != "ratios"}) for r in stored]
    rows = [["keys kept", *(str(result.kept) for result in results)]]
    for name in results[0].seconds:
        times = (result.seconds.get(name) for result in results)
        rows.append([name, *("" if time is None else f"{1e3 * time:.1f}" for time in times)])
    return [["", *(speed.NAMES[result.shape] for result in results)], *rows]


def cost_table(stored):
    """Times of thinning by number of points, a row a method."""
    sizes = sorted({int(n) for cost in stored for n in cost["seconds"]})
    rows = [["method", "fit", *(f"n = {n:,}" for n in sizes)]]
    for cost in stored:
        cells = (cost["seconds"].get(str(n)) for n in sizes)
        times = ["" if cell is None else f"{1e3 * cell:.1f}" for cell in cells]
        rows.append([cost["method"], f"$n^{{{cost['exponent']:.2f}}}$", *times])
    return rows


def quality_table(stored):
    """MMD and time of both packages, a row a setting."""
    head = "| sample | n | method | MMD | of goodpoints | times as long |"
    rows = [[cell.strip() for cell in head.strip("|").split("|")]]
    for quality in stored:
        if len(quality["errors"]) == 2:
            line = points.readme_line(points.Quality(**quality))
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def peers_table(stored):
    """Error, time and memory beside other packages, a row a method and number of points."""
    lines = [peers.Line(**line) for line in stored]
    return [peers.head(lines[0].measure), *map(peers.cells, lines)]


def models_table(stored):
    """Times of whole models, a row a model and length."""
    return [list(models.HEAD), *(models.cells(models.Row(**row)) for row in stored)]


def pays_table(stored):
    """From how many tokens on thinning pays, a row a model."""
    rows = [[models.NAMES[shape], models.length(tokens)] for shape, tokens in stored.items()]
    return [["model", "thinned attention is faster"], *rows]


TABLES = {
    "results": speed_table,
    "costs": cost_table,
    "qualities": quality_table,
    "MMD": peers_table,
    "KSD": peers_table,
    "models": models_table,
    "pays_from": pays_table,
}


class Stored(SphinxDirective):
    """A table of stored figures: ``{stored} cpu.json results``."""

    required_arguments = 2

    def run(self):
        """The machine and the table."""
        file, part = self.arguments
        path = HERE / "benchmarks" / file
        self.env.note_dependency(str(path))
        stored = json.loads(path.read_text())
        machine = ", ".join(f"{name} {value}" for name, value in stored["machine"].items())
        head, *rows = TABLES[part](stored[part])
        lines = [head, ["---"] * len(head), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        return self.parse_text_to_nodes(f"*{machine}*\n\n{table}\n")


def setup(app):
    """Register what is above."""
    app.add_directive("stored", Stored)
    app.connect("builder-inited", copy_notebooks)
