"""Progress on standard error, after a second: a bar on a terminal, elsewhere lines of stages.

`showing` is for the argument `progress` of functions, `progress` for commands.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

from thinformer.support import compiling

PATIENCE = 1.0  # seconds before the bar appears
BEFORE = 1.5  # seconds before the first line
PERIOD = 0.2  # seconds between updates of the bar
BETWEEN = 5.0  # seconds between lines, at least
WIDTH = 24
FORMAT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}"  # of tqdm; a stage's rate is not the next's

Tell = Callable[[str, float | None], None]  # of a stage, and the part of it that is done, or None
Progress = bool | Tell | None


def quiet(stage: str, fraction: float | None) -> None:
    """A `Tell` that shows nothing."""


def ignore(fraction: float) -> None:
    """The part of a stage that is done, for nobody."""


def labelled(tell: Tell, part: str) -> Tell:
    """Return a tell(stage, fraction) that also says of which part of the work."""
    return lambda stage, fraction: tell(f"{part}: {stage}", fraction)


def begin(tell: Tell, stage: str) -> Callable[[float], None]:
    """Begin a stage; return done(fraction), whose last fraction is 1."""
    tell(stage, 0.0)
    return partial(tell, stage)


def within(done: Callable[[float], None], start: float, end: float) -> Callable[[float], None]:
    """Return done(fraction) of the work from `start` to `end`, both fractions of the whole."""
    return lambda fraction: done(end - (1 - fraction) * (end - start))


def showing(progress: Progress) -> contextlib.AbstractContextManager[Tell]:
    """Return a context that gives tell(stage, fraction) for the argument `progress`.

    Parameters
    ----------
    progress : None, bool or function
        None shows nothing, but a line where kernels are compiled for long; False shows nothing at
        all; True a bar. A function gets what is told, on the thread that tells.
    """
    if isinstance(progress, bool):
        return _bar_of_any() if progress else _silence()
    if progress is None:
        return contextlib.nullcontext(quiet)
    if callable(progress):
        return contextlib.nullcontext(progress)
    raise TypeError(
        f"progress must be None, True, False or a function of (stage, fraction); got {progress!r}"
    )


@contextlib.contextmanager
def _silence() -> Iterator[Tell]:
    with compiling.told_to(lambda running: None):
        yield quiet


@contextlib.contextmanager
def _bar_of_any() -> Iterator[Tell]:
    """Show tqdm's bar, in a notebook its widget; our own where tqdm is not installed."""
    try:
        from tqdm.auto import tqdm
    except ImportError:
        with progress() as tell:
            yield tell
        return
    with tqdm(total=1.0, leave=False, delay=PATIENCE, bar_format=FORMAT) as bar:
        told = [""]

        def tell(stage: str, fraction: float | None) -> None:
            told[0] = stage
            bar.set_description_str(stage, refresh=False)
            bar.update((fraction or 0.0) - bar.n)

        def listen(running: bool) -> None:
            bar.set_description_str(compiling.WORDS if running else told[0])

        with compiling.told_to(listen):
            yield tell


@contextlib.contextmanager
def progress() -> Iterator[Tell]:
    """Yield tell(stage, fraction): the text to show, and the part that is done, or None."""
    if sys.stderr is None or sys.stderr.closed:
        yield quiet
        return
    state: list[tuple[str, float | None]] = [("", None)]
    compiled = [False]
    done = threading.Event()
    start = time.monotonic()
    stream = sys.stderr

    def now() -> tuple[str, float | None]:
        stage, fraction = state[0]
        if compiled[0]:
            stage = f"{stage}: {compiling.WORDS}" if stage else compiling.WORDS
        return stage, fraction

    def draw() -> None:
        if not stream.isatty():
            list_stages()
            return
        if done.wait(PATIENCE):
            return
        while not done.wait(PERIOD):
            stream.write(f"\r{_bar(*now())}, {time.monotonic() - start:.0f} s\x1b[K")
            stream.flush()
        stream.write("\r\x1b[K")
        stream.flush()

    def list_stages() -> None:
        told, pause = "", BEFORE
        while not done.wait(pause):
            stage, pause = now()[0], PERIOD
            if not told.startswith(stage):  # what follows the part that it adds is no news
                with contextlib.suppress(OSError, ValueError):  # nobody reads
                    stream.write(f"thinformer: {stage}\n")
                    stream.flush()
                told, pause = stage, BETWEEN

    def tell(stage: str, fraction: float | None) -> None:
        state[0] = stage, fraction

    def listen(running: bool) -> None:
        compiled[0] = running

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        with compiling.told_to(listen):
            yield tell
    finally:
        done.set()
        thread.join()


def _bar(stage: str, fraction: float | None) -> str:
    if fraction is None:
        return stage
    full = round(WIDTH * min(fraction, 1))
    return f"[{'#' * full}{'.' * (WIDTH - full)}] {100 * min(fraction, 1):3.0f} % {stage}"
