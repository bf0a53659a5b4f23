"""What commands on files do with streams and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TextIO


def print_outcome(text: str, stream: TextIO | None, lost: str) -> int:
    """Print what was done; where that fails, say what is lost, and return the status 1."""
    if stream is None:
        return 0
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)
    except (OSError, ValueError) as error:  # a ValueError where it is closed
        silence(stream)
        with contextlib.suppress(OSError, ValueError):
            print(f"{lost}: {error}", file=sys.stderr)
        return 1
    return 0


def silence(stream: TextIO) -> None:
    """Redirect a stream that nobody reads, so that no flush at the interpreter's end fails."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let signals that end the process unwind the stack, so that no unfinished file is left."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # no other may set handlers
        yield
        return
    before = {}
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        # a signal that is ignored, as under nohup, stays ignored
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
