"""The bar of a command in a terminal."""

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
