"""Progress on standard error, after a second: a bar on a terminal, elsewhere lines of stages."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

PATIENCE = 1.0  # seconds before the bar appears
BEFORE = 1.5  # seconds before the first line
PERIOD = 0.2  # seconds between updates of the bar
BETWEEN = 5.0  # seconds between lines, at least
WIDTH = 24


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """Yield tell(stage, fraction): the text to show, and the part that is done, or None."""
    if sys.stderr is None or sys.stderr.closed:
        yield lambda stage, fraction: None
        return
    state: list[tuple[str, float | None]] = [("", None)]
    done = threading.Event()
    start = time.monotonic()
    stream = sys.stderr

    def draw() -> None:
        if not stream.isatty():
            list_stages()
            return
        if done.wait(PATIENCE):
            return
        while not done.wait(PERIOD):
            stream.write(f"\r{_bar(*state[0])}, {time.monotonic() - start:.0f} s\x1b[K")
            stream.flush()
        stream.write("\r\x1b[K")
        stream.flush()

    def list_stages() -> None:
        told, pause = "", BEFORE
        while not done.wait(pause):
            stage, pause = state[0][0], PERIOD
            if not told.startswith(stage):  # what follows the part that it adds is no news
                with contextlib.suppress(OSError, ValueError):  # nobody reads
                    stream.write(f"thinformer: {stage}\n")
                    stream.flush()
                told, pause = stage, BETWEEN

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
