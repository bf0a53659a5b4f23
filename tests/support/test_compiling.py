"""Word of kernels that are compiled: to whom, where, when and how often."""

import argparse
import io
import os
import sys

import pytest
from processes import run

from thinformer.support import compiling
from thinformer.support.progress import showing

LINE = "thinformer: compiling kernels (once)...\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def timers(monkeypatch):
    """A process that has not compiled yet: timers that the test ends, a clock that it sets."""
    made = []

    class Timer:
        def __init__(self, seconds, function):
            self.seconds, self.function, self.state = seconds, function, "made"
            made.append(self)

        def start(self):
            self.state = "started"

        def cancel(self):
            self.state = "cancelled"

    monkeypatch.setattr(compiling.threading, "Timer", Timer)
    monkeypatch.setattr(compiling, "PATIENCE", 2.0)
    for name, value in (("_said", False), ("_spent", 0.0), ("_running", None)):
        monkeypatch.setattr(compiling, name, value)
    return made


def compile_for_long(timers):
    """A compilation that takes longer than the patience."""
    compiling.begin()
    if timers[-1].state == "started":
        timers[-1].function()
    compiling.end()


def test_a_line_in_a_terminal_once_a_process(monkeypatch, timers):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    compile_for_long(timers)
    assert terminal.getvalue() == LINE
    compile_for_long(timers)
    assert terminal.getvalue() == LINE


def test_a_line_in_a_pseudo_terminal(monkeypatch, timers):
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        compile_for_long(timers)
        assert os.read(ours, 1000).decode().replace("\r\n", "\n") == LINE
    os.close(ours)


def test_a_line_in_a_notebook(monkeypatch, timers):
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stderr", stream)
    compile_for_long(timers)
    assert stream.getvalue() == LINE


def test_the_patience_is_for_all_compilations_together(monkeypatch, timers):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for now in (10.0, 10.5, 20.0, 21.25, 30.0):
        monkeypatch.setattr(compiling.time, "monotonic", lambda now=now: now)
        (compiling.end if now % 10 else compiling.begin)()
    assert [timer.seconds for timer in timers] == [2.0, 1.5, 0.25]
    assert [timer.state for timer in timers] == ["cancelled", "cancelled", "started"]
    assert terminal.getvalue() == ""
    timers[-1].function()
    compiling.end()
    assert terminal.getvalue() == LINE


def test_a_library_is_silent_in_a_pipe(monkeypatch, timers):
    piped = io.StringIO()
    for stream in (piped, None):
        monkeypatch.setattr(sys, "stderr", stream)
        compile_for_long(timers)
    closed = Terminal()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    compile_for_long(timers)
    assert piped.getvalue() == ""


def test_a_command_says_it_in_a_pipe(monkeypatch, timers, capsys):
    """Any command, by `main`; and it is a library again afterwards."""
    from thinformer.commands import info, main

    def run(arguments: argparse.Namespace) -> int:
        compile_for_long(timers)
        return 0

    monkeypatch.setattr(info, "run", run)
    assert main.main(["info"]) == 0
    assert capsys.readouterr().err == LINE
    monkeypatch.setattr(compiling, "_said", False)
    compile_for_long(timers)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("progress", [False, True])
def test_who_shows_progress_says_it(progress, monkeypatch, timers):
    """Then there is no line, nor one later for what was told already."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with showing(progress):
        compile_for_long(timers)
    assert LINE not in terminal.getvalue()
    compiling.begin()
    assert timers[-1].seconds == 2.0
    compiling.end()


def test_listeners_hear_of_begin_and_end(timers):
    heard, outer = [], []
    with compiling.told_to(outer.append):
        with compiling.told_to(heard.append):
            compile_for_long(timers)
        compile_for_long(timers)
    compile_for_long(timers)
    assert heard == [True, False]
    assert outer == [True, False, True, False]


def test_what_numba_compiles_is_told(timers):
    """The outermost kernel of this package alone, when it is compiled and not when it is called."""
    import numba

    def compiled(function, module="thinformer.cpu.of_a_test"):
        function.__module__ = module
        return numba.njit(function)  # noqa: TID251

    heard = []
    one_more = compiled(lambda x: x + 1)
    twice = compiled(lambda x: one_more(x) * 2)
    with compiling.told_to(heard.append):
        assert twice(1) == 4
        assert heard == [True, False]
        assert twice(2) == 6
        assert heard == [True, False]
        assert twice(2.0) == 6.0
        assert heard == [True, False] * 2
        for module in ("a_package_of_thinformer_users", None):  # None: of code that is executed
            of_a_user = compiled(lambda x: one_more(x) - 1, module)
            assert of_a_user(1j) == 1j
        assert heard == [True, False] * 2
    assert compiled(lambda x: x + 2)(1) == 3
    assert heard == [True, False] * 2
    with pytest.raises(Exception, match="nonsense"), compiling.told_to(heard.append):
        compiled(lambda x: x.nonsense)(1)
    assert heard == [True, False] * 3


@pytest.mark.slow
def test_the_first_call_of_a_process():
    """In a pipe it is silent, in a terminal it says the line; whatever is compiled."""
    said = run("""
        import io, sys
        import numpy as np
        from thinformer import kernel_halve
        from thinformer.support import compiling
        class Terminal(io.StringIO):
            def isatty(self):
                return True
        compiling.PATIENCE = 0.0
        sys.stderr = io.StringIO()
        kernel_halve(np.eye(4), rng=0)
        assert sys.stderr.getvalue() == "", sys.stderr.getvalue()
        sys.stderr = Terminal()
        kernel_halve(np.eye(4), rng=0)  # is compiled
        assert sys.stderr.getvalue() == "", sys.stderr.getvalue()
        kernel_halve(np.eye(4, dtype=np.float32), rng=0)
        print(sys.stderr.getvalue(), end="")
    """, THINFORMER_CACHE="0")  # fmt: skip
    assert said == LINE.strip()
