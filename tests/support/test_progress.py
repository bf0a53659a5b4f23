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


def test_what_is_compiled_is_told():
    from thinformer.cpu.jit import inner, telling_of_compilation

    told = []
    one_more = inner(set())(lambda x: x + 1)
    twice = inner(set())(lambda x: one_more(x) * 2)
    with telling_of_compilation(lambda *stage: told.append(stage)) as tell:
        tell("adding", 0.5)
        assert twice(1) == 4
        assert set(told[1:-1]) == {("adding: compiling, once for this version", 0.5)}
        assert told[-1] == ("adding", 0.5)
        told.clear()
        assert twice(2) == 6
        assert told == []
    inner(set())(lambda x: x + 2)(1)
    assert told == []
