"""Formulas as MathML, made when the documentation is built: pages need no script and no network."""

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

# TeX that docutils does not know, or reads otherwise: an argument is one digit, and log has a space
SPELLINGS = (
    (re.compile(r"\\dots(?![A-Za-z])"), r"\\ldots"),
    (re.compile(r"\\([bB]igg?)(?=[(\[]|\\(?:[{]|langle|lvert|lVert))"), r"\\\1l"),
    (re.compile(r"\\([bB]igg?)(?=[)\]]|\\(?:[}]|rangle|rvert|rVert))"), r"\\\1r"),
    (re.compile(r"\\[bB]igg?(?![A-Za-z])"), ""),
    (re.compile(r"\\([dt]?frac)\s*(\d)\s*(\d)"), r"\\\1{\2}{\3}"),
    (
        re.compile(r"(\\log(?![A-Za-z])(?:_\w)?)\s*(?=[A-Za-z\d]|\\[A-Za-z])(?!\\left|\\[bB]ig)"),
        r"\1\\,",
    ),
)
# two digits where TeX takes one: docutils takes both, without a word
UNCLEAR = re.compile(r"(?:[_^]|\\sqrt|\\[dt]?binom)\s*\d\d")
# a delimiter without \left or \right, which stand at the ends of a row, keeps its size
DELIMITER = re.compile(
    r'(<mrow>\s*)?<mo((?: class="mathopen")?)>([‖⟨⟩⌊⌋⌈⌉{}])</mo>(?=(\s*</mrow>)?)'
)


def mathml(tex, block=False):
    """Return a formula as MathML.

    Parameters
    ----------
    tex : str
        Without the dollar signs.
    block : bool
        Whether it stands on lines of its own.

    Raises
    ------
    ValueError
        If a command is not known, or an argument of two digits has no braces.
    """
    if UNCLEAR.search(tex):
        raise ValueError(
            f"two digits in the formula {tex.strip()!r} need braces around the argument"
        )
    for pattern, replacement in SPELLINGS:
        tex = pattern.sub(replacement, tex)
    try:
        found = tex2mathml(tex.strip(), as_block=block)
    except MathError as error:
        raise ValueError(f"no MathML for the formula {tex.strip()!r}: {error}") from error

    def of_one_size(match):
        row, attributes, delimiter, end = match.groups(default="")
        if "\\left" in tex and (row or end):
            return match[0]
        return f'{row}<mo{attributes} stretchy="false">{delimiter}</mo>'

    return DELIMITER.sub(of_one_size, found)


def write(translator, node, tag, block):
    """Add the formula to the page; one that cannot be read is a warning, which ends a build."""
    try:
        translator.body.append(f'<{tag} class="math">{mathml(node.astext(), block)}</{tag}>')
    except ValueError as error:
        logging.getLogger(__name__).warning("%s", error, location=node)
    raise nodes.SkipNode


def setup(app):
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(lambda page, node: write(page, node, "span", False), None),
        block_renderers=(lambda page, node: write(page, node, "div", True), None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
