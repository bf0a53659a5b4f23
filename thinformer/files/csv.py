"""CSV: reading in chunks, and writing chosen records as they stood, byte for byte."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.files.messages import listed, shown
from thinformer.files.source import (
    STANDARD,
    Chunk,
    Request,
    Source,
    check_numbered,
    chunk_of,
    matched,
    places,
    title,
)

DELIMITERS = {".csv": ",", ".tsv": "\t"}
MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none")
BLOCK = 8192  # records whose fields are held at once
LONGEST = 2**31 - 1  # characters of a field, what a C long holds everywhere
BYTE_ORDER_MARK = "\ufeff"


class _Form(NamedTuple):
    """A CSV file: its name in errors, its delimiter, the start of a comment, and its columns."""

    name: str
    delimiter: str
    comment: str | None
    columns: list[str]


class _Block(NamedTuple):
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


def open_delimited(request: Request, stack: contextlib.ExitStack) -> Source:
    """Open text with a header row; a record is its raw text."""
    name = title(request.path)
    standard = request.path == Path(STANDARD)
    binary = _standard_input() if standard else stack.enter_context(request.path.open("rb"))
    total = 0 if standard else os.fstat(binary.fileno()).st_size
    # bytes that are not UTF-8 become surrogates, and are written back as they were
    text = io.TextIOWrapper(binary, encoding="utf-8", errors="surrogateescape", newline="")
    stack.callback(text.detach)
    stack.callback(csv.field_size_limit, csv.field_size_limit(LONGEST))
    source = _lines(text, name)
    top = next(source, "")
    mark = BYTE_ORDER_MARK if top.startswith(BYTE_ORDER_MARK) else ""
    lines = itertools.chain([top.removeprefix(mark)] if top else [], source)
    form, header, line = _header(lines, _Form(name, request.delimiter, request.comment, []))
    request = matched(request, form.columns)
    check_numbered(request, form.columns)
    first = _block(lines, line, min(BLOCK, request.rows), form)
    if not first.raws:
        raise ValueError(f"{name}: has a header and no rows")
    columns = _numeric(first, form, request) if request.columns is None else request.columns
    try:
        wanted = places(request, columns, form.columns)
    except ValueError as error:
        raise ValueError(f"{error}{_hint(form.columns[0], form)}") from None

    def chunks() -> Iterator[Chunk]:
        block = first
        while block.raws:
            raws: list[str] = []
            parts = []
            while block.raws:
                raws += block.raws
                parts.append(_values(block, wanted, form))
                if len(raws) == request.rows:
                    break
                block = _block(lines, block.lines, min(BLOCK, request.rows - len(raws)), form)
            yield chunk_of(np.concatenate(parts), len(columns), np.array(raws, object))
            if block.raws:
                block = _block(lines, block.lines, min(BLOCK, request.rows), form)

    def write(path: Path, kept: list[tuple[NDArray, Any]], numbered: bool) -> None:
        with _output(path) as stream:
            stream.write(_bytes(mark))
            stream.write(_bytes(f"row{form.delimiter}{header}" if numbered else header))
            for rows, records in kept:
                if numbered:
                    pairs = zip(rows.tolist(), records, strict=True)
                    records = [f"{row}{form.delimiter}{record}" for row, record in pairs]
                stream.write(_bytes("".join(records)))

    def fraction() -> float | None:
        return binary.tell() / total if total else None

    unused = [c for c in form.columns if c not in columns and c != request.weights]
    return Source(columns, columns, unused, [], chunks(), fraction, write)


def _standard_input() -> IO[bytes]:
    if sys.stdin is None or sys.stdin.closed:
        raise OSError(
            "standard input: is closed; IN takes a file, or - where something is piped in"
        )
    return sys.stdin.buffer


def _lines(text: IO[str], name: str) -> Iterator[str]:
    try:
        yield from iter(text.readline, "")  # a file itself would be closed with the generator
    except OSError as error:
        raise OSError(f"{name}: cannot be read: {error.strerror or error}") from None


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _output(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, or standard output."""
    if path == Path(STANDARD):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with path.open("wb") as stream:
            yield stream


def _header(lines: Iterator[str], form: _Form) -> tuple[_Form, str, int]:
    """The form, the header's text, and the lines read; raises where the text has another form."""
    name, delimiter = form.name, form.delimiter
    header = _parsed(lines, [], 0, 1, form)
    if not header.raws or not header.fields:
        raise ValueError(f"{name}: is empty; it takes a header row and rows below it")
    text, names = header.raws[0], header.fields[0]
    if text.startswith(("\udcff\udcfe", "\udcfe\udcff")) or "\0" in text:
        raise ValueError(f"{name}: is no UTF-8 text (UTF-16, or a binary file?)")
    others = [c for c in (";", "\t", ",", "|") if c != delimiter and c in names[0]]
    if len(names) == 1 and others:
        raise ValueError(
            f"{name}: the header has one column, {shown(names[0])}; "
            f"say --delimiter {others[0]!r} if that is what separates the columns"
            f"{_hint(text, form)}"
        )
    repeated = sorted({c for c in names if names.count(c) > 1})
    if repeated:
        raise ValueError(f"{name}: the header has columns twice: {listed(repeated)}")
    with contextlib.suppress(_NotANumberError):
        numbers = _floats(names)
        # a header 0,1,2,... is what frames without names are written with
        if not np.isnan(numbers).any() and (numbers % 1 != 0).any():
            raise ValueError(f"{name}: the first row is numbers; it takes a header row of names")
    return form._replace(columns=names), text, header.lines


def _hint(text: str, form: _Form) -> str:
    """Advice where a line that was read as a record looks like a comment."""
    if form.comment is None and text.startswith("#"):
        return "; if lines that begin with # are comments, say --comment '#'"
    return ""


def _block(lines: Iterator[str], line: int, limit: int, form: _Form) -> _Block:
    """The next records, in at most `limit` lines; blank lines are no records."""
    delimiters = len(form.columns) - 1
    while block := list(itertools.islice(lines, limit)):
        if '"' in "".join(block) or (form.comment and any(map(_is_comment(form), block))):
            plain = False
        elif delimiters:
            plain = all(text.count(form.delimiter) == delimiters for text in block)
        else:
            plain = all(text.strip("\r\n") for text in block)
        if plain:
            return _Block(block, None, range(line + 1, line + 1 + len(block)), line + len(block))
        parsed = _parsed(lines, block, line, len(block), form)
        records = zip(parsed.fields or [], parsed.starts, parsed.raws, strict=True)
        for fields, start, raw in records:
            if len(fields) != len(form.columns):
                raise ValueError(
                    f"{form.name}: line {start} has {len(fields)} fields; the header has "
                    f"{len(form.columns)}{_hint(form.columns[0], form) or _hint(raw, form)}"
                )
        if parsed.raws:
            return parsed
        line = parsed.lines
    return _Block([], [], [], line)


def _is_comment(form: _Form) -> Callable[[str], bool]:
    comment = form.comment
    return lambda text: bool(comment) and text.startswith(comment or "")


def _parsed(lines: Iterator[str], block: list[str], line: int, least: int, form: _Form) -> _Block:
    """The records of the next `least` lines, and of the lines that the last record needs.

    Lines of the block come first. There is at least one record, unless the lines end. Comments are
    only between records.
    """
    taken: list[str] = []
    skipped = 0
    is_comment = _is_comment(form)

    def tee() -> Iterator[str]:
        nonlocal skipped
        for text in itertools.chain(block, lines):
            if not taken and is_comment(text):
                skipped += 1
                continue
            taken.append(text)
            yield text

    reader = csv.reader(tee(), delimiter=form.delimiter, strict=True)
    raws: list[str] = []
    records, starts = [], []
    while reader.line_num + skipped < least or not raws:
        before = reader.line_num
        try:
            fields = next(reader, None)
        except csv.Error as error:
            start = line + before + skipped + 1
            hint = _hint("".join(taken), form)
            raise ValueError(f"{form.name}: line {start} is not CSV: {error}{hint}") from None
        start = line + before + skipped + 1
        if fields is None:
            break
        if fields:
            raws.append("".join(taken))
            records.append(fields)
            starts.append(start)
        taken.clear()
    return _Block(raws, records, starts, line + reader.line_num + skipped)


class _NotANumberError(ValueError):
    """A cell is no number; args[0] is its place."""


def _floats(cells: Sequence[str]) -> NDArray[np.float64]:
    """The numbers in cells, NaN where a value is missing."""
    if "_" not in "".join(cells):  # float takes 1_000
        with contextlib.suppress(ValueError):
            return np.fromiter(map(float, cells), np.float64, len(cells))
    values = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        if cell.strip().lower() not in MISSING:
            if "_" in cell:
                raise _NotANumberError(i)
            try:
                values[i] = float(cell)
            except ValueError:
                raise _NotANumberError(i) from None
    return values


def _values(block: _Block, wanted: list[int], form: _Form) -> NDArray[np.float64]:
    """The wanted columns of a block: (records, columns)."""
    if block.fields is None:
        # if a cell is no number, the code below finds and names it
        with contextlib.suppress(ValueError):
            values = np.loadtxt(
                block.raws, delimiter=form.delimiter, usecols=wanted, comments=None, ndmin=2
            )
            if len(values) == len(block.raws) and np.isfinite(values).all():
                return values
    fields = _fields(block, form)
    values = np.empty((len(fields), len(wanted)))
    for k, j in enumerate(wanted):
        cells = [record[j] for record in fields]
        try:
            values[:, k] = _floats(cells)
            at = np.flatnonzero(~np.isfinite(values[:, k]))
            place = int(at[0]) if at.size else None
        except _NotANumberError as error:
            place = error.args[0]
        if place is not None:
            what = "nothing" if not cells[place].strip() else shown(cells[place])
            raise ValueError(
                f"{form.name}: line {block.starts[place]}, column {shown(form.columns[j])} holds "
                f"{what}; columns that are computed with take finite numbers (--columns says which)"
            )
    return values


def _fields(block: _Block, form: _Form) -> list[list[str]]:
    if block.fields is not None:
        return block.fields
    return list(csv.reader(block.raws, delimiter=form.delimiter))


def _numeric(first: _Block, form: _Form, request: Request) -> list[str]:
    """The columns that hold numbers in the first records; a nameless column is an index."""
    fields = _fields(first, form)
    columns = []
    for j, column in enumerate(form.columns):
        if not column or column == request.weights:
            continue
        cells = [record[j] for record in fields]
        try:
            if not np.isnan(_floats(cells)).all():
                columns.append(column)
        except _NotANumberError as error:
            if 2 * sum(map(_is_number, cells)) > len(cells):  # a slip, not a column of text
                place = error.args[0]
                raise ValueError(
                    f"{form.name}: line {first.starts[place]}, column {shown(column)} holds "
                    f"{shown(cells[place])}, but most of the column is numbers; correct the cell, "
                    f"or say with --columns what to compute with{_hint(first.raws[place], form)}"
                ) from None
    if not columns:
        held = ", ".join(map(shown, fields[0][:3]))
        raise ValueError(
            f"{form.name}: has no column of numbers; line {first.starts[0]} holds {held}"
            f"{_hint(form.columns[0], form)}"
        )
    return columns


def _is_number(cell: str) -> bool:
    try:
        return not np.isnan(_floats([cell])[0])
    except _NotANumberError:
        return False
