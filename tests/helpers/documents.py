"""Markdown documents: their code blocks, run as a reader would, and their relative links."""

import contextlib
import io
import re

from checkout import ROOT

BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def blocks(text):
    """(language, code) of each fenced block, in order."""
    for indent, language, code in BLOCK.findall(text):
        yield language, re.sub(f"^{indent}", "", code, flags=re.MULTILINE)


def examples(text, language="python"):
    """The blocks of one language."""
    return [code for found, code in blocks(text) if found == language]


def run(code, names, document):
    """Run one example among the names that earlier ones made."""
    exec(compile(code, document, "exec"), names)


def run_page(text, document, names=None):
    """Run all Python blocks in turn; what each ``text`` block says, and what was printed.

    A dict of names receives those that the blocks make.
    """
    names = {} if names is None else names
    printed, said = io.StringIO(), []
    for language, code in blocks(text):
        if language == "python":
            with contextlib.redirect_stdout(printed):
                run(code, names, document)
        elif language == "text":
            said.append((code, printed.getvalue()))
            printed = io.StringIO()
    return said


def anchors(text):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path):
    """Relative links of a document that lead nowhere."""
    for target, anchor in LINK.findall(BLOCK.sub("", path.read_text())):
        found = path if not target else path.parent / target
        if "notebooks/" in target and path.is_relative_to(ROOT / "docs"):
            found = ROOT / "notebooks" / f"{found.name}.ipynb"  # the build copies them
        missing = not found.exists()
        if missing or (anchor and anchor not in anchors(found.read_text())):
            yield f"{target}#{anchor}" if anchor else target
