"""Compressed text: `.gz`, `.bz2` and `.xz` by the standard library, `.zst` by pyarrow."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from thinformer.files.source import optional

PACKINGS = (".gz", ".bz2", ".xz", ".zst")


def packing(path: Path) -> str:
    """Return how a file is compressed, as an ending; empty where it is not."""
    return path.suffix.lower() if path.suffix.lower() in PACKINGS else ""


def check_packing(path: Path) -> None:
    """Raise, before the work, where a file cannot be compressed."""
    if packing(path) == ".zst":
        optional("pyarrow", ".zst")


def unpacked(raw: IO[bytes], kind: str) -> Any:
    """Return what a compressed file holds, as a stream."""
    if kind == ".gz":
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if kind == ".bz2":
        return bz2.BZ2File(raw)
    if kind == ".xz":
        return lzma.LZMAFile(raw)
    return optional("pyarrow", ".zst").CompressedInputStream(raw, "zstd") if kind else raw


@contextmanager
def packed(raw: IO[bytes], kind: str) -> Iterator[Any]:
    """Yield a stream; what is written to it is compressed."""
    if kind == ".gz":
        # no name and no time: the same rows give the same bytes
        with gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as stream:
            yield stream
    elif kind == ".bz2":
        with bz2.BZ2File(raw, "wb") as stream:
            yield stream
    elif kind == ".xz":
        with lzma.LZMAFile(raw, "wb") as stream:
            yield stream
    elif kind == ".zst":
        with optional("pyarrow", ".zst").CompressedOutputStream(raw, "zstd") as stream:
            yield stream
    else:
        yield raw
