"""CSV: reading in chunks, and writing chosen records as they stood, byte for byte."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from thinformer.files.cells import numeric_columns, values_of
from thinformer.files.columns import default_columns
from thinformer.files.header import Top, read_top
from thinformer.files.messages import writing
from thinformer.files.packing import packed, packing, unpacked
from thinformer.files.records import Form, next_block
from thinformer.files.sampler import WARMUP, Marks
from thinformer.files.source import (
    STANDARD,
    Chunk,
    Request,
    Source,
    check_alike,
    check_numbered,
    check_repeated,
    chunk_of,
    matched,
    places,
    title,
)
from thinformer.thinning.columns import INDEX

DELIMITERS = {".csv": ",", ".tsv": "\t"}
BLOCK = 8192  # records whose fields are held at once
LONGEST = 2**31 - 1  # characters of a field, what a C long holds everywhere


def open_delimited(request: Request, stack: contextlib.ExitStack) -> Source:
    """Open text; a record is its raw text."""
    name = title(request.path)
    lines, fraction = _open(request, stack)
    top = read_top(
        lines, Form(name, request.delimiter, request.comment, [], None, False, Marks(), Counter())
    )
    form, lines = top.form, top.lines
    fields = [(column, "") for column in form.columns]
    check_alike(request, fields)
    request = matched(request, form.columns)
    if top.header:
        check_numbered(request, form.columns)
    first = next_block(lines, top.line, min(BLOCK, request.rows), form)
    if not first.raws:
        raise ValueError(f"{name}: {_why_empty(form)}")
    numeric, index = numeric_columns(first, form, request) if request.columns is None else ([], [])
    columns = default_columns(request, numeric, request.path, index)
    wanted = places(request, columns, form.columns)
    check_repeated(form.columns, [form.columns[j] for j in wanted], request.path, "the header ")
    added = "" if request.chain is None else f"{request.chain}{form.delimiter}"

    def chunks() -> Iterator[Chunk]:
        block = first
        while block.raws:
            raws: list[str] = []
            parts = []
            while block.raws:
                raws += block.raws
                parts.append(values_of(block, wanted, form))
                if len(raws) == request.rows:
                    break
                block = next_block(lines, block.lines, min(BLOCK, request.rows - len(raws)), form)
            if request.like is not None and not raws[-1].endswith(("\r", "\n")):
                raws[-1] += "\n"  # more files follow
            records = [added + raw for raw in raws] if added else raws
            yield chunk_of(np.concatenate(parts), len(columns), np.array(records, object))
            if block.raws:
                block = next_block(lines, block.lines, min(BLOCK, request.rows), form)

    return Source(
        columns=columns,
        labels=columns,
        unused=[c for c in form.columns if c not in columns and c != request.weights],
        notes=[*top.notes, *form.marks.notes()],
        chunks=chunks(),
        fraction=fraction,
        write=_writer(top, request),
        left_out=dict.fromkeys(index, INDEX),
        skipped=form.skipped,
        fields=fields,
    )


def _open(
    request: Request, stack: contextlib.ExitStack
) -> tuple[Iterator[str], Callable[[], float | None]]:
    """The lines of a file or of standard input, and a function that says what share was read."""
    standard = request.path == Path(STANDARD)
    raw = _standard_input() if standard else stack.enter_context(request.path.open("rb"))
    total = 0 if standard else os.fstat(raw.fileno()).st_size
    # bytes that are not UTF-8 become surrogates, and are written back as they were
    text = io.TextIOWrapper(
        raw if standard else unpacked(raw, packing(request.path)),
        encoding="utf-8", errors="surrogateescape", newline="",
    )  # fmt: skip
    stack.callback(text.detach)
    stack.callback(csv.field_size_limit, csv.field_size_limit(LONGEST))

    def fraction() -> float | None:
        return raw.tell() / total if total else None

    return _lines(text, title(request.path)), fraction


def _standard_input() -> IO[bytes]:
    if sys.stdin is None or sys.stdin.closed:
        raise OSError(
            "standard input: is closed; IN takes a file, or - where something is piped in"
        )
    return sys.stdin.buffer


def _lines(text: IO[str], name: str) -> Iterator[str]:
    with writing(name, "read"):
        yield from iter(text.readline, "")  # a file itself would be closed with the generator


def _why_empty(form: Form) -> str:
    if form.skipped[WARMUP]:
        return (
            f"all of its {form.skipped[WARMUP]} rows are warm-up, as a comment says save_warmup = 1"
            f" and {form.marks.end()}; without the first comment they are rows"
        )
    return "has a header and no rows"


def _writer(top: Top, request: Request) -> Callable[[Path, list[tuple[NDArray, Any]], bool], None]:
    """The function that writes the header and chosen records."""
    delimiter = top.form.delimiter

    def write(path: Path, kept: list[tuple[NDArray, Any]], numbered: bool) -> None:
        added = ["row"] * numbered + ["chain"] * (request.chain is not None)
        with _output(path, request.packing) as stream:
            if top.header:
                header = delimiter.join([*added, top.header])
                stream.write(_bytes(top.lead + header))
            for rows, records in kept:
                if numbered:
                    pairs = zip(rows.tolist(), records, strict=True)
                    records = [f"{row}{delimiter}{record}" for row, record in pairs]
                stream.write(_bytes("".join(records)))

    return write


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@contextlib.contextmanager
def _output(path: Path, kind: str) -> Iterator[Any]:
    """A file to write, which may be compressed, or standard output."""
    if path == Path(STANDARD):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with path.open("wb") as stream, packed(stream, kind) as compressed:
            yield compressed
