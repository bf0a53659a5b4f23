"""Several files of the same columns, read one after the other as one table."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from thinformer.files.columns import is_of_a_sampler, without_constants
from thinformer.files.formats import open_source
from thinformer.files.source import Chunk, Request, Source, optional, title


@contextlib.contextmanager
def open_sources(requests: Sequence[Request], kind: str) -> Iterator[Source]:
    """Open one file or several; several get a column `chain`, 1, 2, ..., unless they have one.

    Rows are draws in a sampler's order where a column is of a sampler, and in several files.
    """
    if len(requests) == 1:
        with open_source(requests[0], kind) as source:
            draws = source.draws or any(map(is_of_a_sampler, source.unused))
            yield without_constants(source._replace(draws=draws), requests[0])
    else:
        source = _joined(requests, kind)
        yield without_constants(source._replace(draws=True), requests[0])


def has_chain(fields: Sequence[tuple[str, str]]) -> bool:
    """Whether one of the columns has the name that a column of chains would have."""
    return "chain" in [name.strip().strip("._").lower() for name, _ in fields]


def _joined(requests: Sequence[Request], kind: str) -> Source:
    """The rows of all files; which columns are used, and how rows are written, as in the first."""
    with open_source(requests[0], kind) as source:
        like = title(requests[0].path), source.fields
        columns = source.columns
        added = not has_chain(source.fields)
    each = [
        request._replace(columns=columns, like=like, chain=number if added else None)
        for number, request in enumerate(requests, 1)
    ]
    for request in each[1:]:  # before the work, whether they are alike
        with open_source(request, kind):
            pass
    with open_source(requests[0]._replace(chain=each[0].chain), kind) as source:
        first = source
    skipped: Counter[str] = Counter()
    share = [0.0]

    def read() -> Iterator[Chunk]:
        for number, request in enumerate(each):
            with open_source(request, kind) as source:
                for chunk in source.chunks:
                    share[0] = (number + (source.fraction() or 0)) / len(each)
                    yield chunk
                skipped.update(source.skipped)

    notes = [*first.notes]
    if added:
        notes.append(f"column chain added: 1 to {len(each)}, one for each file")
    return first._replace(
        notes=notes,
        chunks=_regrouped(read(), requests[0].rows),
        fraction=lambda: share[0],
        skipped=skipped,
    )


def _regrouped(chunks: Iterator[Chunk], rows: int) -> Iterator[Chunk]:
    """The same rows, so many at once."""
    parts: list[Chunk] = []
    count = 0
    for chunk in chunks:
        rest = chunk
        while len(rest.points):
            part, rest = _split(rest, rows - count)
            parts.append(part)
            count += len(part.points)
            if count == rows:
                yield _together(parts)
                parts, count = [], 0
    if parts:
        yield _together(parts)


def _split(chunk: Chunk, rows: int) -> tuple[Chunk, Chunk]:
    """The first rows, and the others."""
    n = len(chunk.points)
    if rows >= n:
        return chunk, Chunk(chunk.points[:0], None, None)
    points, weights, records = chunk
    first, second = slice(rows), slice(rows, None)
    return (
        Chunk(points[first], None if weights is None else weights[first],
              records.take(np.arange(rows))),
        Chunk(points[second], None if weights is None else weights[second],
              records.take(np.arange(rows, n))),
    )  # fmt: skip


def _together(parts: list[Chunk]) -> Chunk:
    """One chunk of several."""
    if len(parts) == 1:
        return parts[0]
    points, weights, records = zip(*parts, strict=True)
    texts = isinstance(records[0], np.ndarray)
    return Chunk(
        np.concatenate(points),
        None if weights[0] is None else np.concatenate(weights),
        np.concatenate(records) if texts else optional("pyarrow", "Parquet").concat_tables(records),
    )
