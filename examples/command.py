"""Functions that the commands of the examples share: how they stop, and an argument type."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


def stop(error: Exception) -> NoReturn:
    """End a command with the last line of an error, which may hold a worker's traceback."""
    sys.exit(f"error: {str(error).strip().splitlines()[-1]}")


def count(text: str) -> int:
    """A number on the command line, a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)
