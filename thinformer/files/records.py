"""Records of CSV, block by block: with comments, repeated headers and warm-up left out."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from thinformer.files.sampler import HEADERS, WARMUP, Marks

BYTE_ORDER_MARK = "\ufeff"
COMMENT = "#"  # what comments begin with that are recognised


class Form(NamedTuple):
    """A CSV file.

    name : its name in errors
    delimiter : what separates columns
    comment : what comments begin with, or None
    columns : names of the columns; empty until the header is read
    header : text of the header, without the end of its line; None if a row may look the same
    text_first : whether the first column is text, so that a row may begin like a comment
    marks : what the comments so far say
    skipped : what was read so far and is no row, and how often
    """

    name: str
    delimiter: str
    comment: str | None
    columns: list[str]
    header: str | None
    text_first: bool
    marks: Marks
    skipped: Counter[str]


class Block(NamedTuple):
    """Successive records.

    raws : the text of each record
    fields : the fields of each record; None where nothing is quoted, so that a split will do
    starts : the line at which each record begins
    lines : number of lines read so far
    """

    raws: list[str]
    fields: list[list[str]] | None
    starts: Sequence[int]
    lines: int


def fields_of(block: Block, form: Form) -> list[list[str]]:
    """Return the fields of each record."""
    if block.fields is not None:
        return block.fields
    return list(csv.reader(block.raws, delimiter=form.delimiter))


def hint(text: str, form: Form) -> str:
    """Return advice where a line that was read as a record looks like a comment."""
    if form.comment is None and text.startswith(COMMENT):
        return "; if lines that begin with # are comments, say --comment '#'"
    return ""


def next_block(lines: Iterator[str], line: int, limit: int, form: Form) -> Block:
    """Return the next records, in at most `limit` lines; blank lines are no records."""
    delimiters = len(form.columns) - 1
    while block := list(itertools.islice(lines, limit)):
        text = "".join(block)
        if (
            '"' in text
            or (form.header is not None and form.header in text)
            or (form.comment and any(x.startswith(form.comment) for x in block))
        ):
            plain = False
        elif delimiters:
            plain = all(text.count(form.delimiter) == delimiters for text in block)
        else:
            plain = all(text.strip("\r\n") for text in block)
        if plain and (warmup := form.marks.skip(len(block))):
            form.skipped[WARMUP] += warmup
            line += warmup
            block = block[warmup:]
            if not block:
                continue
        if plain:
            return Block(block, None, range(line + 1, line + 1 + len(block)), line + len(block))
        parsed = parsed_block(lines, block, line, len(block), form)
        if parsed.raws:
            return parsed
        line = parsed.lines
    return Block([], [], [], line)


def parsed_block(
    lines: Iterator[str], block: list[str], line: int, least: int, form: Form
) -> Block:
    """Return the records of the next `least` lines, and of the lines that the last record needs.

    Lines of the block come first. At least one record is read, unless the lines end. Comments are
    only between records.
    """
    taken: list[str] = []
    skipped = 0

    def tee() -> Iterator[str]:
        nonlocal skipped
        for text in itertools.chain(block, lines):
            if not taken and form.comment and text.startswith(form.comment):
                skipped += 1
                _read_comment(text, line + reader.line_num + skipped, form)
                continue
            taken.append(text)
            yield text

    reader = csv.reader(tee(), delimiter=form.delimiter, strict=True)
    raws: list[str] = []
    records, starts = [], []
    some = False
    while reader.line_num + skipped < least or not some:
        before = reader.line_num
        try:
            fields = next(reader, None)
        except csv.Error as error:
            start = line + before + skipped + 1
            advice = hint("".join(taken), form)
            raise ValueError(f"{form.name}: line {start} is not CSV: {error}{advice}") from None
        start = line + before + skipped + 1
        if fields is None:
            break
        raw = "".join(taken)
        if fields:
            some = True
            if _is_row(raw, fields, start, form):
                raws.append(raw)
                records.append(fields)
                starts.append(start)
        taken.clear()
    return Block(raws, records, starts, line + reader.line_num + skipped)


def _is_row(raw: str, fields: list[str], line: int, form: Form) -> bool:
    """Whether a record below the header is a row; counts it if not."""
    if not form.columns:
        return True
    if is_header(raw, form):
        form.skipped[HEADERS] += 1
        return False
    if len(fields) != len(form.columns):
        raise ValueError(
            f"{form.name}: line {line} has {len(fields)} fields; the header has "
            f"{len(form.columns)}{hint(raw, form)}"
        )
    if form.marks.skip(1):
        form.skipped[WARMUP] += 1
        return False
    return True


def is_header(raw: str, form: Form) -> bool:
    """Whether a line is the header once more, as where files were joined."""
    text = raw.removeprefix(BYTE_ORDER_MARK).rstrip("\r\n")
    return form.header is not None and text == form.header


def _read_comment(text: str, line: int, form: Form) -> None:
    """Take in what a comment says; raise where it may be a row."""
    comment = form.comment or ""
    if not form.columns:
        form.marks.read(text.removeprefix(comment))
        return
    if is_header(text, form):
        form.skipped[HEADERS] += 1
        return
    if form.text_first and text.count(form.delimiter) == len(form.columns) - 1:
        raise ValueError(
            f"{form.name}: line {line} begins with {comment} and has as many fields as the header;"
            f" say --comment '{comment}' if it is a comment, or quote its first cell if it is a row"
        )
    form.marks.read(text.removeprefix(comment))
