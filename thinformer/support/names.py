"""Names and cells as users read them: printable, short, and on one line."""

from __future__ import annotations

from typing import Any


def printable(text: Any) -> str:
    """Return text on one line; characters that no terminal prints become escapes."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in str(text)
    )


def brief(name: str, most: int = 60) -> str:
    """Return the start of a name, for a summary or a plot."""
    return printable(name[:most]) + ("..." if len(name) > most else "")


def few(names: list[str], most: int = 8) -> str:
    """Return the first names, and how many more there are, for a summary."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(brief, names[:most])) + more
