"""What the commands of the examples share."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn


def stop(error: Exception) -> NoReturn:
    """End a command with one line, the last of an error out of a worker process."""
    sys.exit(f"error: {str(error).strip().splitlines()[-1]}")


def count(text: str) -> int:
    """A number of things on the command line, at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)
