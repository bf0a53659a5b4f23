"""The top of a CSV file: comments, and the header, which may be a comment or missing."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from thinformer.files.cells import is_number
from thinformer.files.messages import shown
from thinformer.files.records import BYTE_ORDER_MARK, COMMENT, Block, Form, hint, parsed_block

SEPARATORS = (";", "\t", ",", "|")
# how compressed files begin, read as text
COMPRESSED = {"\x1f\udc8b": ".gz", "BZh91AY": ".bz2", "\udcfd7zXZ": ".xz", "(\udcb5/\udcfd": ".zst"}


class Top(NamedTuple):
    """What stands before the rows.

    form : the file, with the names of its columns
    lead : what is written before the names: a byte order mark, what a comment begins with
    header : the names as they stand, with the end of the line; empty where there are none
    lines : the lines that follow
    line : the number of lines read
    notes : notes for the user
    """

    form: Form
    lead: str
    header: str
    lines: Iterator[str]
    line: int
    notes: list[str]


def read_top(lines: Iterator[str], form: Form) -> Top:
    """Read up to the first row; raise where the text has another form.

    Where the first line begins with #, all lines that do are comments. The header is a comment with
    as many names as the first record has fields, one of which is a number. Otherwise it is the
    first record, unless this is all numbers.
    """
    first = next(lines, "")
    _check_text(first, form)
    mark = BYTE_ORDER_MARK if first.startswith(BYTE_ORDER_MARK) else ""
    lines = itertools.chain([first.removeprefix(mark)] if first else [], lines)
    stated = form.comment
    form, comments, lines, line = _comments(lines, form)
    one, two, lines = _peek(lines, line, form)
    if not one.raws or not one.fields:
        only = " but for comments" if comments else ""
        raise ValueError(f"{form.name}: is empty{only}; it takes a header row and rows below it")
    lead, header, names, row, notes = "", one.raws[0], one.fields[0], two, []
    if found := _header_in(comments, names, form):
        lead, header, names = found
        row = one
    elif all(map(is_number, names)) and not _are_places(names, two):
        header, names, row = "", [str(j) for j in range(len(names))], one
        notes = [f"no header: columns are named by their places, 0 to {len(names) - 1}"]
    else:
        _check_delimiter(names, header, two, form)
        line = parsed_block(lines, [], line, 1, form).lines
    first_cell = row.fields[0][0] if row.fields else "0"
    form = form._replace(
        columns=names,
        header=None if all(map(is_number, names)) else (lead + header).rstrip("\r\n"),
        text_first=stated is None and not is_number(first_cell),
    )
    return Top(form, mark + lead, header, lines, line, notes)


def _check_text(first: str, form: Form) -> None:
    """Raise where the first line is no text."""
    for start, kind in COMPRESSED.items():
        if first.startswith(start):
            ending = Path(form.name).suffix
            advice = f"its name must end in {ending}{kind}" if ending else "unpack it first"
            raise ValueError(f"{form.name}: is compressed; {advice}")
    if first.startswith(("\udcff\udcfe", "\udcfe\udcff")) or "\0" in first:
        raise ValueError(f"{form.name}: is no UTF-8 text (UTF-16, or a binary file?)")


def _comments(lines: Iterator[str], form: Form) -> tuple[Form, list[str], Iterator[str], int]:
    """The form, with what comments begin with; those at the top; the lines below, and their place.

    In a header as `#,x,y` the first column has the name #.
    """
    comments: list[str] = []
    line = 0
    for text in lines:
        named = form.delimiter != " " and text.startswith(COMMENT + form.delimiter)
        if form.comment is None and text.startswith(COMMENT) and not named:
            form = form._replace(comment=COMMENT)
        if form.comment and text.startswith(form.comment):
            comments.append(text)
            form.marks.read(text.removeprefix(form.comment))
        elif text.strip("\r\n"):
            return form, comments, itertools.chain([text], lines), line
        line += 1
    return form, comments, lines, line


def _peek(lines: Iterator[str], line: int, form: Form) -> tuple[Block, Block, Iterator[str]]:
    """The next two records, and all the lines."""
    seen: list[str] = []

    def recorded() -> Iterator[str]:
        for text in lines:
            seen.append(text)
            yield text

    one = parsed_block(recorded(), [], line, 1, form)
    two = parsed_block(recorded(), [], one.lines, 1, form)
    return one, two, itertools.chain(seen, lines)


def _header_in(
    comments: list[str], cells: list[str], form: Form
) -> tuple[str, str, list[str]] | None:
    """The mark of the comment that is the header, the rest of it, and its names."""
    if not any(map(is_number, cells)):
        return None
    for comment in reversed(comments):
        header = comment.removeprefix(form.comment or "").lstrip(" ")
        names = next(csv.reader([header], delimiter=form.delimiter), [])
        if len(names) == len(cells) and any(names) and not any(map(is_number, names)):
            return comment[: len(comment) - len(header)], header, names
    return None


def _are_places(names: list[str], row: Block) -> bool:
    """Whether numbers are names: 0, 1, 2, ... is what frames without names are written with."""
    if names != [str(j) for j in range(len(names))]:
        return False
    # a column of counts may begin with 0
    return len(names) > 1 or not row.fields or not row.fields[0][0].strip().isdigit()


def _check_delimiter(names: list[str], header: str, row: Block, form: Form) -> None:
    """Raise where a header of one column has another character that separates columns."""
    if len(names) > 1:
        return
    others = [c for c in SEPARATORS if c != form.delimiter and c in names[0]]
    parts = row.fields[0][0].split(" ") if row.fields else []
    if len(parts) > 1 and all(map(is_number, parts)):
        others.append(" ")
    if others:
        raise ValueError(
            f"{form.name}: the header has one column, {shown(names[0])}; "
            f"say --delimiter {others[0]!r} if that is what separates the columns"
            f"{hint(header, form)}"
        )
