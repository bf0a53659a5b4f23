"""Errors about files, and the names and cells in them, as users read them: on one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SHOWN = 60  # characters of a cell or a name that an error shows


def shown(text: Any) -> str:
    """Return a cell or a name as errors show it."""
    short = str(text)[:SHOWN]
    return repr(short) + ("..." if len(str(text)) > SHOWN else "")


def listed(names: Sequence[str], most: int = 30) -> str:
    """Return the first names, and how many more there are, as errors show them."""
    return ", ".join(map(shown, names[:most])) + (
        f" and {len(names) - most} more" if len(names) > most else ""
    )


def not_numbers(path: Path, column: str, kind: Any) -> str:
    """Return the error about a column that does not hold numbers."""
    kind = str(kind)[:SHOWN]
    return f"{path}: column {shown(column)} is of {kind}; --columns and --weights take numbers"


@contextlib.contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a library raises for a broken file into an error of one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        reason = _reason(error)
        if "allow_pickle" in reason or "Python objects" in reason:  # no advice to take pickles
            reason = "it is another kind of file, or holds Python objects"
        raise ValueError(f"{path}: cannot be read as {kind}: {reason}") from error


@contextlib.contextmanager
def writing(name: str, verb: str = "written") -> Iterator[None]:
    """Turn whatever a library raises into an error of one line that names the file."""
    try:
        yield
    except (MemoryError, BrokenPipeError):
        raise
    except Exception as error:
        raise OSError(f"{name}: cannot be {verb}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of an error, at most 200 characters."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(said).split("\n")[0][:200]
