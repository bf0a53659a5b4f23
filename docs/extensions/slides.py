"""Slides from the notebooks: one file a lesson, with its pictures and without a library.

A heading of second order begins a slide. In the metadata of a cell, ``slideshow.slide_type`` is as
in Jupyter: "slide" begins one under the same heading, "skip" leaves the cell out. A notebook in
which no cell has it has no slides. Code is not shown, what it printed and drew is.
"""

import json
import re
import struct
from base64 import b64decode
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt
from mathml import mathml
from mdit_py_plugins.dollarmath import dollarmath_plugin

FOLDER = "slides"
TEMPLATE = Template(Path(__file__).with_name("slides.html").read_text(encoding="utf-8"))
WIDE = 2.2  # width over height from which a picture stands below the text, not beside it
LONG = 60  # characters of a printed line from which it does
MARKDOWN = MarkdownIt("commonmark").enable("table")
MARKDOWN.use(dollarmath_plugin, renderer=lambda tex, how: mathml(tex, how["display_mode"]))


@dataclass
class Slide:
    """One slide: its heading in Markdown, its text and what cells have shown, in HTML."""

    heading: str
    text: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    shapes: list[float] = field(default_factory=list)  # width over height, of each picture
    longest: int = 0  # characters of the longest line that was printed

    def html(self):
        """The slide as a section of the page."""
        beside = self.text and self.shapes and max(self.shapes) < WIDE and self.longest < LONG
        parts = [MARKDOWN.render(self.heading)]
        for name, of_part in (("text", self.text), ("shown", self.shown)):
            if of_part:
                parts.append(f'<div class="{name}">{"".join(of_part)}</div>')
        return f'<section class="{"beside" if beside else "wide"}">\n{"".join(parts)}\n</section>'


def kind(cell):
    """What the metadata say of the cell, "" if nothing."""
    return cell["metadata"].get("slideshow", {}).get("slide_type", "")


def joined(lines):
    """Text that may be stored as a list of lines."""
    return lines if isinstance(lines, str) else "".join(lines)


def add_output(slide, output):
    """Add what a cell has printed or drawn."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = joined(data["image/png"]).replace("\n", "")
        width, height = struct.unpack(">II", b64decode(picture[:64])[16:24])
        slide.shapes.append(width / height)
        words = escape("Plot: " + slide.heading.lstrip("# "), quote=True)
        slide.shown.append(f'<img alt="{words}" src="data:image/png;base64,{picture}">')
    elif "text/plain" in data or output.get("name") == "stdout":
        text = joined(output.get("text", data.get("text/plain", "")))
        slide.longest = max(slide.longest, *map(len, text.splitlines()))
        slide.shown.append(f"<pre>{escape(text.rstrip())}</pre>")


def make_slides(notebook):
    """Return the slides of a notebook that was read, a list of `Slide`."""
    slides = []
    for cell in notebook["cells"]:
        if kind(cell) == "skip" or "solution" in cell["metadata"].get("tags", ()):
            continue
        if kind(cell) == "slide" and slides:
            slides.append(Slide(slides[-1].heading))
        if cell["cell_type"] == "code":
            for output in cell["outputs"]:
                add_output(slides[-1], output)
            continue
        for part in re.split(r"^(?=##? )", joined(cell["source"]), flags=re.MULTILINE):
            heading, _, text = part.partition("\n") if part.startswith("#") else ("", "", part)
            if heading:
                slides.append(Slide(heading))
            if text.strip():
                slides[-1].text.append(MARKDOWN.render(text))
    return [slide for slide in slides if slide.text or slide.shown]


def write(app, error):
    """Write the slides of each lesson that has some into the site."""
    if error or app.builder.name != "html":
        return
    folder = Path(app.outdir) / FOLDER
    folder.mkdir(exist_ok=True)
    for path in sorted((Path(app.srcdir) / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if not any(kind(cell) for cell in notebook["cells"]):
            continue
        slides = make_slides(notebook)
        title = slides[0].heading.lstrip("# ")
        lesson = f'<p><a href="../notebooks/{path.stem}.html">The lesson, with its code</a></p>'
        slides[0].text.append(lesson)
        page = TEMPLATE.substitute(
            title=escape(title), slides="\n".join(slide.html() for slide in slides)
        )
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")


def setup(app):
    """Write slides after the pages."""
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
