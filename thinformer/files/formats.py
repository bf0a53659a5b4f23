"""The formats of tables: how each is read in chunks, and how chosen rows are written.

`READERS` has one reader for each ending of a file. A reader returns a `Source`. What a source holds
of a row until the row is written is its record: in CSV the text, in Parquet a row of an Arrow
table, elsewhere the row number.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.files.columns import default_columns
from thinformer.files.csv import DELIMITERS, open_delimited
from thinformer.files.messages import listed, not_numbers, reading, shown
from thinformer.files.netcdf import open_netcdf
from thinformer.files.packing import PACKINGS, packing
from thinformer.files.parquet import open_parquet
from thinformer.files.source import (
    STANDARD,
    Request,
    Source,
    check_finite,
    check_numbered,
    check_rows,
    in_memory_source,
    matched,
    places,
    row_numbers,
    side_by_side,
    used_columns,
    without_weights,
)
from thinformer.thinning.columns import INDEX, is_index
from thinformer.thinning.tables import as_points


def ending(path: Path, option: str) -> str:
    """Return the format of a file, an ending; raise where there is no reader for it."""
    last = path.suffix.lower()
    if packing(path) and Path(path.stem).suffix.lower() in DELIMITERS:
        return Path(path.stem).suffix.lower()
    if option == "IN" and path.is_dir() and last not in READERS:
        return ".parquet"
    if last not in READERS:
        raise ValueError(
            f"{option} takes a file ending in {', '.join(READERS)}; got {path} "
            f"(text may be compressed: .csv{', .csv'.join(PACKINGS)})"
        )
    return last


@contextlib.contextmanager
def open_source(request: Request, kind: str) -> Iterator[Source]:
    """Open a file; `kind` is one of the endings."""
    if request.path != Path(STANDARD):
        if not request.path.exists():
            raise FileNotFoundError(f"{request.path}: there is no such file")
        if request.path.is_dir() and kind != ".parquet":
            raise IsADirectoryError(f"{request.path}: is a folder; IN takes a file")
        if request.path.is_file() and not request.path.stat().st_size:
            raise ValueError(f"{request.path}: is empty")
    with contextlib.ExitStack() as stack:
        yield READERS[kind](request, stack)


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
    request = matched(request, list(arrays))
    check_numbered(request, list(arrays))
    copied = _copied(arrays, request, path)
    arrays = {name: array for name, array in arrays.items() if name not in copied}
    n = len(next(iter(arrays.values())))
    check_rows(n, path)
    numeric = [name for name, array in arrays.items() if array.dtype.kind in "biuf" and array.size]
    flat = [name for name in numeric if arrays[name].ndim == 1]
    index = [name for name in flat if is_index(name, arrays[name].astype(np.float64))]
    columns = default_columns(request, numeric, path, index)
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
        chosen |= {name: array[rows] for name, array in arrays.items()} | copied
        # np.savez takes no array named "file"
        with zipfile.ZipFile(target, "w", allowZip64=True) as archive:
            for name, array in chosen.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)

    unused = [c for c in arrays if c not in used]
    notes = [f"arrays copied as they are, not thinned: {listed(list(copied))}"] if copied else []
    source = in_memory_source(points, columns, labels, unused, notes, write)
    return source._replace(left_out=dict.fromkeys(index, INDEX))


def _copied(arrays: dict[str, NDArray], request: Request, path: Path) -> dict[str, NDArray]:
    """The arrays of other lengths than those of --columns; without --columns there may be none."""
    first = next(iter(arrays))
    if request.columns is not None:
        first = used_columns(request, request.columns, list(arrays))[0]
    copied = {}
    for name, array in arrays.items():
        if not array.ndim:
            what = f"{shown(name)} is a single value"
        elif not arrays[first].ndim or len(array) == len(arrays[first]):
            continue
        else:
            what = f"{shown(first)} has {len(arrays[first])}, {shown(name)} has {len(array)}"
        if request.columns is None:
            raise ValueError(
                f"{path}: takes arrays of one length; {what}; where --columns says what to thin, "
                "arrays of other lengths are copied as they are"
            )
        if name in (*request.columns, request.weights):
            raise ValueError(f"{path}: takes arrays of one length; {what}")
        copied[name] = array
    return copied


READERS: dict[str, Callable[[Request, contextlib.ExitStack], Source]] = {
    ".csv": open_delimited,
    ".tsv": open_delimited,
    ".parquet": open_parquet,
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".nc": open_netcdf,
}
