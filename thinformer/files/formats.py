"""The formats of tables: how each is read in chunks, and how chosen rows are written.

`READERS` has one reader for each ending of a file. A reader returns a `Source`. What a source holds
of a row until the row is written is its record: in CSV the text, in Parquet a row of an Arrow
table, elsewhere the row number.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.files.csv import open_delimited
from thinformer.files.messages import not_numbers, reading, shown
from thinformer.files.netcdf import open_netcdf
from thinformer.files.source import (
    STANDARD,
    Chunk,
    Request,
    Source,
    check_finite,
    check_numbered,
    check_repeated,
    check_rows,
    chunk_of,
    default_columns,
    in_memory_source,
    matched,
    optional,
    places,
    row_numbers,
    side_by_side,
    used_columns,
    without_weights,
)
from thinformer.thinning.tables import as_points


def ending(path: Path, option: str) -> str:
    """Return the ending of a file; raise where there is no reader for it."""
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{option} takes a file ending in {', '.join(READERS)}; got {path}")
    return path.suffix.lower()


@contextlib.contextmanager
def open_source(request: Request, kind: str) -> Iterator[Source]:
    """Open a file; `kind` is one of the endings."""
    if request.path != Path(STANDARD):
        if not request.path.exists():
            raise FileNotFoundError(f"{request.path}: there is no such file")
        if request.path.is_dir():
            raise IsADirectoryError(f"{request.path}: is a folder; IN takes a file")
        if request.path.is_file() and not request.path.stat().st_size:
            raise ValueError(f"{request.path}: is empty")
    with contextlib.ExitStack() as stack:
        yield READERS[kind](request, stack)


def _open_parquet(request: Request, stack: contextlib.ExitStack) -> Source:
    """Open a Parquet file; records are rows of Arrow tables."""
    pa = optional("pyarrow", "Parquet")
    pq = optional("pyarrow.parquet", "Parquet")
    path = request.path
    with reading(path, "Parquet"):
        file = stack.enter_context(pq.ParquetFile(path))
    schema = file.schema_arrow
    check_rows(file.metadata.num_rows, path)
    check_repeated(schema.names, path)

    def is_numeric(kind: Any) -> bool:
        types = pa.types
        numeric = (types.is_integer, types.is_floating, types.is_boolean, types.is_decimal)
        return any(test(kind) for test in numeric)

    request = matched(request, schema.names)
    check_numbered(request, schema.names)
    index = _pandas_index(schema)
    numeric = [f.name for f in schema if is_numeric(f.type) and f.name not in index]
    columns = default_columns(request, numeric, path)
    wanted = places(request, columns, schema.names)
    for j in wanted:
        if not is_numeric(schema.field(j).type):
            raise ValueError(not_numbers(path, schema.names[j], schema.field(j).type))
    plain = _takeable(pa, schema)
    progress = [0]

    def chunks() -> Iterator[Chunk]:
        batches = file.iter_batches(batch_size=min(request.rows, file.metadata.num_rows))
        while True:
            with reading(path, "Parquet"):
                batch = next(batches, None)
            if batch is None:
                return
            values = np.empty((batch.num_rows, len(wanted)))
            for k, j in enumerate(wanted):
                cells = batch.column(j).cast(pa.float64(), safe=False)
                values[:, k] = cells.to_numpy(zero_copy_only=False)
            check_finite(values, [schema.names[j] for j in wanted], path, progress[0])
            progress[0] += batch.num_rows
            table = pa.Table.from_batches([batch])
            yield chunk_of(values, len(columns), table if plain == schema else table.cast(plain))

    def write(target: Path, kept: list[tuple[NDArray, Any]], numbered: bool) -> None:
        with contextlib.ExitStack() as stack:
            writer = None
            for rows, held in kept:
                table = held if plain == schema else held.cast(schema)
                if numbered:
                    table = table.add_column(0, "row", pa.array(rows))
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(target, table.schema))
                writer.write_table(table)

    def fraction() -> float | None:
        return progress[0] / file.metadata.num_rows

    unused = [c for c in schema.names if c not in columns and c != request.weights]
    return Source(columns, columns, unused, [], chunks(), fraction, write)


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


def _open_npy(request: Request, stack: contextlib.ExitStack) -> Source:
    """Open a 2-D array, mapped into memory; records are row numbers."""
    path = request.path
    with reading(path, ".npy"):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{path}: holds several arrays; they take a name that ends in .npz")
    if array.ndim != 2 or array.dtype.kind not in "biuf" or not array.shape[1]:
        raise ValueError(
            f"{path}: takes a 2-D array of numbers; got shape {array.shape} of {array.dtype}"
        )
    check_rows(len(array), path)
    names = [str(j) for j in range(array.shape[1])]
    request = matched(request, names)
    columns = default_columns(request, names, path)
    wanted = places(request, columns, names)
    every = wanted == list(range(array.shape[1]))
    points = as_points(array if every else array[:, wanted])
    check_finite(points, [names[j] for j in wanted], path)

    def write(target: Path, kept: list[tuple[NDArray, Any]], numbered: bool) -> None:
        with target.open("wb") as stream:
            np.save(stream, array[row_numbers(kept)])

    unused = [c for c in names if c not in columns and c != request.weights]
    return in_memory_source(points, columns, columns, unused, [], write)


def _open_npz(request: Request, stack: contextlib.ExitStack) -> Source:
    """Open named arrays of one length; records are row numbers."""
    path = request.path
    # opened here: NumPy leaves a broken file open
    with (
        reading(path, ".npz"),
        path.open("rb") as stream,
    ):
        file = np.load(stream, allow_pickle=False)
        arrays = {} if isinstance(file, np.ndarray) else {name: file[name] for name in file.files}
    if isinstance(file, np.ndarray):
        raise ValueError(f"{path}: holds a single array; that takes a name that ends in .npy")
    if not arrays:
        raise ValueError(f"{path}: has no arrays")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{path}: holds {shown(name)}, which is no array")
        if not array.ndim:
            raise ValueError(f"{path}: takes arrays of one length; {shown(name)} is a single value")
    lengths = {name: len(array) for name, array in arrays.items()}
    n = next(iter(lengths.values()))
    for name, length in lengths.items():
        if length != n:
            raise ValueError(
                f"{path}: takes arrays of one length; {shown(next(iter(arrays)))} has {n}, "
                f"{shown(name)} has {length}"
            )
    request = matched(request, list(arrays))
    check_numbered(request, list(arrays))
    check_rows(n, path)
    numeric = [name for name, array in arrays.items() if array.dtype.kind in "biuf" and array.size]
    columns = default_columns(request, numeric, path)
    used = used_columns(request, columns, list(arrays))
    for name in used:
        if name not in numeric:
            raise ValueError(not_numbers(path, name, arrays[name].dtype))
    points, labels = side_by_side({name: arrays[name].reshape(n, -1) for name in used})
    check_finite(points, labels, path)
    labels = without_weights(labels, request)

    def write(target: Path, kept: list[tuple[NDArray, Any]], numbered: bool) -> None:
        rows = row_numbers(kept)
        chosen = {"row": rows} if numbered else {}
        chosen |= {name: array[rows] for name, array in arrays.items()}
        # np.savez takes no array named "file"
        with zipfile.ZipFile(target, "w", allowZip64=True) as archive:
            for name, array in chosen.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)

    unused = [c for c in arrays if c not in used]
    return in_memory_source(points, columns, labels, unused, [], write)


READERS: dict[str, Callable[[Request, contextlib.ExitStack], Source]] = {
    ".csv": open_delimited,
    ".tsv": open_delimited,
    ".parquet": _open_parquet,
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".nc": open_netcdf,
}
