"""A progress bar on standard error: on a terminal only, and after a second."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

PATIENCE = 1.0  # seconds before it appears
PERIOD = 0.2  # seconds between updates
WIDTH = 24


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """Yield tell(stage, fraction): the text to show, and the part that is done, or None."""
    if sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty():
        yield lambda stage, fraction: None
        return
    state: list[tuple[str, float | None]] = [("", None)]
    done = threading.Event()
    start = time.monotonic()
    stream = sys.stderr

    def draw() -> None:
        if done.wait(PATIENCE):
            return
        while not done.wait(PERIOD):
            stream.write(f"\r{_bar(*state[0])}, {time.monotonic() - start:.0f} s\x1b[K")
            stream.flush()
        stream.write("\r\x1b[K")
        stream.flush()

    def tell(stage: str, fraction: float | None) -> None:
        state[0] = stage, fraction

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        done.set()
        thread.join()


def _bar(stage: str, fraction: float | None) -> str:
    if fraction is None:
        return stage
    full = round(WIDTH * min(fraction, 1))
    return f"[{'#' * full}{'.' * (WIDTH - full)}] {100 * min(fraction, 1):3.0f} % {stage}"
