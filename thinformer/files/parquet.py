"""Parquet: a file, or a folder of files that are parts of one table."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.files.columns import default_columns
from thinformer.files.messages import listed, not_numbers, reading
from thinformer.files.source import (
    CHECKED,
    Chunk,
    Request,
    Source,
    check_alike,
    check_finite,
    check_numbered,
    check_repeated,
    check_rows,
    chunk_of,
    matched,
    optional,
    places,
)
from thinformer.thinning.columns import INDEX, is_index, may_be_index


class _Stored(NamedTuple):
    """A stored table: its schema, its number of rows, and its rows as tables of so many rows."""

    schema: Any
    rows: int
    tables: Callable[[int, Sequence[str] | None], Iterator[Any]]


def open_parquet(request: Request, stack: contextlib.ExitStack) -> Source:
    """Open a Parquet file or a folder of them; records are rows of Arrow tables."""
    pa = optional("pyarrow", "Parquet")
    path = request.path
    with reading(path, "Parquet"):
        stored = _open_folder(pa, path) if path.is_dir() else _open_file(pa, path, stack)
    schema = stored.schema
    check_rows(stored.rows, path)
    fields = [(f.name, str(f.type)) for f in schema]
    check_alike(request, fields)
    request = matched(request, schema.names)
    check_numbered(request, schema.names)
    columns, index = _choose(pa, request, stored)
    wanted = places(request, columns, schema.names)
    check_repeated(schema.names, [schema.names[j] for j in wanted], path)
    for j in wanted:
        if not _is_numeric(pa, schema.field(j).type):
            text = not_numbers(path, schema.names[j], schema.field(j).type)
            raise ValueError(f"{text}{_lists(pa, [schema.field(j)])}")
    written = schema
    if request.chain is not None:
        written = schema.insert(0, pa.field("chain", pa.int64()))
    progress = [0]

    def chunks() -> Iterator[Chunk]:
        tables = stored.tables(min(request.rows, stored.rows), None)
        while True:
            with reading(path, "Parquet"):
                table = next(tables, None)
            if table is None:
                return
            values = _numbers(pa, table, wanted)
            check_finite(values, [schema.names[j] for j in wanted], path, progress[0])
            progress[0] += table.num_rows
            yield chunk_of(values, len(columns), _records(pa, table, request.chain))

    return Source(
        columns=columns,
        labels=columns,
        unused=[c for c in schema.names if c not in columns and c != request.weights],
        notes=[],
        chunks=chunks(),
        fraction=lambda: progress[0] / stored.rows,
        write=functools.partial(_write, pa, written),
        left_out=dict.fromkeys(index, INDEX),
        fields=fields,
    )


class Part(NamedTuple):
    """A row group of a file or of a folder. It can be sent to other processes.

    path : the file or folder
    fragment : the row group, as pyarrow has it
    schema : the schema of the file or folder
    start, rows : the number of its first row in the file or folder, and how many rows it has
    chain : what a column `chain` that is added holds, or None
    """

    path: Path
    fragment: Any
    schema: Any
    start: int
    rows: int
    chain: int | None


def parts_of(path: Path, chain: int | None) -> list[Part]:
    """Return the row groups of a file or folder, in the order of its rows."""
    dataset = optional("pyarrow.dataset", "Parquet").dataset(
        path.resolve(), format="parquet", partitioning="hive" if path.is_dir() else None
    )
    parts: list[Part] = []
    start = 0
    for file in dataset.get_fragments():
        for fragment in file.split_by_row_group():
            rows = sum(group.num_rows for group in fragment.row_groups)
            if rows:
                parts.append(Part(path, fragment, dataset.schema, start, rows, chain))
            start += rows
    return parts


def numbers_of_part(part: Part, columns: Sequence[str]) -> NDArray[np.float64]:
    """Return the columns (rows, columns) of a part, checked."""
    pa = optional("pyarrow", "Parquet")
    with reading(part.path, "Parquet"):
        table = part.fragment.to_table(schema=part.schema, columns=list(columns))
    values = _numbers(pa, table, range(len(columns)))
    check_finite(values, list(columns), part.path, part.start)
    return values


def records_of_part(part: Part, rows: NDArray[np.int64]) -> Any:
    """Return records of a part, by increasing numbers of its rows."""
    pa = optional("pyarrow", "Parquet")
    tables, start = [], 0
    with reading(part.path, "Parquet"):
        for batch in part.fragment.to_batches(schema=part.schema, batch_size=CHECKED):
            end = start + batch.num_rows
            among = rows[np.searchsorted(rows, start) : np.searchsorted(rows, end)]
            table = _records(pa, pa.Table.from_batches([batch]), part.chain)
            tables.append(table.take(among - start))
            start = end
        return pa.concat_tables(tables)


def _numbers(pa: Any, table: Any, places: Sequence[int]) -> NDArray[np.float64]:
    """Columns of a table, by their places."""
    values = np.empty((table.num_rows, len(places)))
    for k, j in enumerate(places):
        values[:, k] = table.column(j).cast(pa.float64(), safe=False).to_numpy()
    return values


def _records(pa: Any, table: Any, chain: int | None) -> Any:
    """A table of which rows can be taken, with a column `chain` if it is to be added."""
    if chain is not None:
        table = table.add_column(0, "chain", pa.array(np.full(table.num_rows, chain)))
    plain = _takeable(pa, table.schema)
    return table if plain == table.schema else table.cast(plain)


def _write(
    pa: Any, schema: Any, target: Path, kept: list[tuple[NDArray, Any]], numbered: bool
) -> None:
    """Write tables with the schema that the file has."""
    with contextlib.ExitStack() as stack:
        writer = None
        for rows, held in kept:
            table = held if held.schema.equals(schema) else held.cast(schema)
            if numbered:
                table = table.add_column(0, "row", pa.array(rows))
            if writer is None:
                pq = optional("pyarrow.parquet", "Parquet")
                writer = stack.enter_context(pq.ParquetWriter(target, table.schema))
            writer.write_table(table)


def _choose(pa: Any, request: Request, stored: _Stored) -> tuple[list[str], list[str]]:
    """The columns of the distance, and those that are an index."""
    numeric = [f.name for f in stored.schema if _is_numeric(pa, f.type)]
    index = [] if request.columns else _index(numeric, stored, request.path)
    try:
        return default_columns(request, numeric, request.path, index), index
    except ValueError as error:
        raise ValueError(f"{error}{_lists(pa, stored.schema)}") from None


def _open_file(pa: Any, path: Path, stack: contextlib.ExitStack) -> _Stored:
    file = stack.enter_context(optional("pyarrow.parquet", "Parquet").ParquetFile(path))

    def tables(rows: int, columns: Sequence[str] | None) -> Iterator[Any]:
        yield from _of_length(pa, file.iter_batches(batch_size=rows, columns=columns), rows)

    return _Stored(file.schema_arrow, file.metadata.num_rows, tables)


def _open_folder(pa: Any, path: Path) -> _Stored:
    """Open the files of a folder in the order of their paths; `chain=1/` gives a column chain."""
    dataset = optional("pyarrow.dataset", "Parquet").dataset(
        path, format="parquet", partitioning="hive"
    )
    if not dataset.files:
        raise ValueError("the folder has no files")

    def tables(rows: int, columns: Sequence[str] | None) -> Iterator[Any]:
        batches = dataset.to_batches(
            columns=columns, batch_size=rows, batch_readahead=1, fragment_readahead=1
        )
        yield from _of_length(pa, batches, rows)

    return _Stored(dataset.schema, dataset.count_rows(), tables)


def _of_length(pa: Any, batches: Iterable[Any], rows: int) -> Iterator[Any]:
    """Yield tables of so many rows, the last one of fewer.

    A batch ends where a file does; with dictionaries also where a row group does.
    """
    held, count = [], 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, rows - count)
            batch = batch.slice(part.num_rows)
            held.append(part)
            count += part.num_rows
            if count == rows:
                yield pa.Table.from_batches(held)
                held, count = [], 0
    if held:
        yield pa.Table.from_batches(held)


def _is_numeric(pa: Any, kind: Any) -> bool:
    types = pa.types
    numeric = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
    return any(test(kind) for test in numeric)


def _lists(pa: Any, fields: Iterable[Any]) -> str:
    """Advice where columns hold lists."""
    lists = [f.name for f in fields if pa.types.is_nested(f.type)]
    if not lists:
        return ""
    return (
        f"; {listed(lists)} holds lists: make a column of each place first, as in "
        "pandas.DataFrame(frame[name].tolist())"
    )


def _index(numeric: list[str], stored: _Stored, path: Path) -> list[str]:
    """The columns that number the rows, and those in which pandas stored its index."""
    index = _pandas_index(stored.schema)
    for name in numeric:
        if may_be_index(name) and name not in index:
            with reading(path, "Parquet"):
                table = next(stored.tables(min(CHECKED, stored.rows), [name]))
            if is_index(name, table.column(0).to_numpy().astype(np.float64)):
                index.append(name)
    return index


def _pandas_index(schema: Any) -> list[str]:
    """The columns in which pandas stored its index."""
    try:
        index = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
        return [c for c in index if isinstance(c, str)]  # a range is no column
    except (KeyError, TypeError, ValueError):
        return []


def _takeable(pa: Any, schema: Any) -> Any:
    """The schema, without types that Arrow cannot take rows of."""
    others = {"string_view": pa.large_string(), "binary_view": pa.large_binary()}
    fields = [f.with_type(others.get(str(f.type), f.type)) for f in schema]
    return pa.schema(fields, schema.metadata)
