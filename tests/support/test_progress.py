"""The progress of a command: a bar in a terminal, lines elsewhere, and what is compiled."""

import io
import sys


def test_the_bar(monkeypatch):
    from thinformer.support import progress

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "PERIOD", 0.001)
    with progress.progress() as tell:
        tell("reading", 0.5)
        while "50 % reading" not in terminal.getvalue():
            pass
        tell("thinning", None)
        while "\rthinning" not in terminal.getvalue():
            pass
    assert terminal.getvalue().endswith("\r\x1b[K")
    quick = Terminal()
    monkeypatch.setattr(sys, "stderr", quick)
    monkeypatch.setattr(progress, "PATIENCE", 60.0)
    with progress.progress() as tell:
        tell("reading", 0.5)
    assert quick.getvalue() == ""


def test_lines_where_there_is_no_terminal(monkeypatch):
    from thinformer.support import progress

    piped = io.StringIO()
    monkeypatch.setattr(sys, "stderr", piped)
    for name in ("BEFORE", "PERIOD", "BETWEEN"):
        monkeypatch.setattr(progress, name, 0.001)
    with progress.progress() as tell:
        for stage in ("reading", "thinning: compiling", "thinning", "writing"):
            tell(stage, 0.5)
            while stage != "thinning" and not piped.getvalue().endswith(f"{stage}\n"):
                pass
    lines = piped.getvalue().splitlines()
    assert lines == [f"thinformer: {x}" for x in ("reading", "thinning: compiling", "writing")]
    quick = io.StringIO()
    monkeypatch.setattr(sys, "stderr", quick)
    monkeypatch.setattr(progress, "BEFORE", 60.0)
    with progress.progress() as tell:
        tell("reading", 0.5)
    assert quick.getvalue() == ""


def test_what_is_compiled_is_told(monkeypatch):
    from thinformer.support import compiling, progress

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "PERIOD", 0.001)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress.progress() as tell:
        compiling.begin()
        while "\rcompiling kernels (once), " not in terminal.getvalue():
            pass
        tell("adding", 0.5)
        while "50 % adding: compiling kernels (once), " not in terminal.getvalue():
            pass
        compiling.end()
        told = len(terminal.getvalue())
        while "50 % adding, " not in terminal.getvalue()[told:]:
            pass
    piped = io.StringIO()
    monkeypatch.setattr(sys, "stderr", piped)
    monkeypatch.setattr(progress, "BEFORE", 0.001)
    with progress.progress() as tell:
        tell("adding", 0.5)
        compiling.begin()
        while "thinformer: adding: compiling kernels (once)\n" not in piped.getvalue():
            pass
        compiling.end()
