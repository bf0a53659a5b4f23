"""Word of kernels that are compiled: to whoever shows progress, or one line, once a process.

`thinformer.cpu.jit` calls `begin` and `end`. A library is silent in pipes; a command is not.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 2.0  # seconds of compilation, all together, before the line
WORDS = "compiling kernels (once)"

_listeners: list[Callable[[bool], None]] = []
_in_pipes = False
_said = False
_spent = 0.0  # seconds of compilations that have ended
_running: tuple[float, threading.Timer] | None = None  # when it began, and what will say so


@contextlib.contextmanager
def told_to(listener: Callable[[bool], None]) -> Iterator[None]:
    """Call listener(True) when a compilation begins and listener(False) when it ends.

    It is called on the thread that compiles. The line is then not written.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextlib.contextmanager
def said_in_pipes() -> Iterator[None]:
    """Write the line also where standard error is neither a terminal nor a notebook."""
    global _in_pipes
    before, _in_pipes = _in_pipes, True
    try:
        yield
    finally:
        _in_pipes = before


def begin() -> None:
    """A compilation begins. No other begins before its end: compilers hold a lock."""
    global _running
    for listener in list(_listeners):
        listener(True)
    timer = threading.Timer(max(0.0, PATIENCE - _spent), _say)
    timer.daemon = True
    _running = time.monotonic(), timer
    if not _said:
        with contextlib.suppress(RuntimeError):  # no more threads, or the interpreter ends
            timer.start()


def end() -> None:
    """The compilation ends."""
    global _running, _spent
    if _running is not None:
        began, timer = _running
        timer.cancel()
        _running = None
        if not _listeners:  # what they told nobody waited for without a word
            _spent += time.monotonic() - began
    for listener in list(_listeners):
        listener(False)


def _say() -> None:
    """Write the line, where someone reads it and nobody else tells."""
    global _said
    stream = sys.stderr
    if _said or _listeners or not (_in_pipes or _is_watched(stream)):
        return
    _said = True
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
        stream.write(f"thinformer: {WORDS}...\n")
        stream.flush()


def _is_watched(stream: Any) -> bool:
    """Whether a stream is that of a terminal or of a notebook."""
    if stream is None or stream.closed:
        return False
    return stream.isatty() or type(stream).__module__.startswith("ipykernel")
