"""``thinformer thin`` as a program: streams, signals, outputs that stay, its help."""

import contextlib
import io
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from files_of_points import HEADER, POINTS, RECORDS, TABLE, changed, command, run, succeed

from thinformer import thin
from thinformer.files import thin as thin_files


@pytest.mark.slow
def test_standard_streams(tmp_path):
    text = (HEADER + "".join(RECORDS)).encode()
    first = command("-", "-o", "-", "--size", "20", "--seed", "4", input=text)
    assert first.returncode == 0, first.stderr
    chosen = thin(POINTS, 20, standardize="scale", rng=4)
    assert first.stdout == (HEADER + "".join(RECORDS[i] for i in chosen)).encode()
    chatter = first.stderr.decode()
    assert "300 rows -> 20 rows: standard output" in chatter
    assert "\r" not in chatter  # no bar where there is no terminal
    assert "\x1b" not in chatter


@pytest.mark.slow
def test_interrupt_and_termination_leave_nothing(tmp_path):
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        if signal.getsignal(number) is signal.SIG_IGN:  # under nohup, as children inherit it
            continue
        process = subprocess.Popen(
            [sys.executable, "-m", "thinformer", "thin", "-", "-o", tmp_path / "out.csv",
             "--size", "10"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        while not list(tmp_path.glob(".thin-*.part")):  # until the file to be written is there
            assert process.poll() is None
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status
        assert b"Traceback" not in err
        assert not out
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_reader_that_leaves_is_met_with_silence(tmp_path):
    (tmp_path / "in.csv").write_text(HEADER + "".join(RECORDS) * 30)
    process = subprocess.Popen(
        [sys.executable, "-m", "thinformer", "thin", tmp_path / "in.csv", "-o", "-",
         "--size", "8000", "--method", "standard"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert [line for line in err.splitlines() if not line.startswith(b"thinformer: ")] == []


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--bandwidth", "1,5"], {"bandwidth": [1.0, 5.0]}),
        (["--kernel", "linear"], {"kernel": "linear"}),
        (["--method", "kernel-thinning", "--delta", "0.1"],
         {"method": "kernel-thinning", "delta": 0.1}),
        (["--method", "greedy"], {"method": "greedy"}),
        (["--g", "1"], {"g": 1}),
        (["--no-standardize"], {"bandwidth": "median"}),
    ],
)  # fmt: skip
def test_settings_reach_the_thinning(arguments, settings, tmp_path):
    np.save(tmp_path / "in.npy", POINTS)
    succeed(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 7, "--seed", 1, *arguments)
    scaled = False if "bandwidth" in settings else "scale"  # which has the units of the file
    rows = thin(POINTS, 7, standardize=scaled, rng=1, **settings)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), POINTS[rows])


def test_equal_rows_with_a_bandwidth(tmp_path):
    (tmp_path / "in.csv").write_text("x,y\n" + "1,2\n" * 9)
    succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 2, "--bandwidth", 1)
    assert (tmp_path / "out.csv").read_text() == "x,y\n1,2\n1,2\n"


def test_an_old_output_survives_an_error_and_is_replaced_otherwise(tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("old")
    (tmp_path / "in.csv").write_text(changed(20, "a,b,c"))
    with contextlib.redirect_stderr(io.StringIO()):
        assert run(tmp_path / "in.csv", "-o", out, "--columns", "x", "--size", 3) == 2
    assert out.read_text() == "old"
    (tmp_path / "in.csv").write_text(TABLE)
    succeed(tmp_path / "in.csv", "-o", out, "--columns", "x", "--size", 3)
    assert out.read_text().startswith("x,y,name\n")


def test_a_pipe_is_not_replaced(tmp_path, capsys):
    (tmp_path / "in.csv").write_text(TABLE)
    os.mkfifo(tmp_path / "out.csv")
    for option in (["-o", tmp_path / "out.csv"],
                   ["-o", tmp_path / "o.csv", "--report", tmp_path / "out.csv"]):  # fmt: skip
        assert run(tmp_path / "in.csv", *option, "--size", 3) == 2
        assert "out.csv: is no regular file; it is not replaced\n" in capsys.readouterr().err
        assert (tmp_path / "out.csv").is_fifo()
    assert len(os.listdir(tmp_path)) == 2


def test_the_mode_of_an_output_stays_and_its_name_may_be_long(tmp_path):
    (tmp_path / "in.csv").write_text(TABLE)
    out = tmp_path / ("o" * 251 + ".csv")
    out.write_text("old")
    out.chmod(0o640)
    link = tmp_path / "link.csv"
    link.symlink_to(out)
    succeed(tmp_path / "in.csv", "-o", link, "--size", 3)
    assert link.is_symlink()
    assert out.stat().st_mode & 0o777 == 0o640
    assert out.read_text().startswith("x,y,name\n")


@pytest.mark.parametrize("option", ["IN", "-o", "--report", "--plot"])
def test_a_loop_of_links_is_named(option, tmp_path, capsys):
    (tmp_path / "in.csv").write_text(TABLE)
    for name in ("loop.csv", "loop.png"):
        (tmp_path / name).symlink_to(tmp_path / name)
    loop = tmp_path / ("loop.png" if option == "--plot" else "loop.csv")
    source = loop if option == "IN" else tmp_path / "in.csv"
    extra = [] if option == "IN" else [option, loop]
    assert run(source, "-o", tmp_path / "o.csv", "--size", 3, *extra) == 2
    printed = capsys.readouterr().err
    assert "is a loop of symbolic links" in printed or "oo many levels" in printed
    assert str(loop) in printed
    assert printed.count("\n") == 1


class Full(io.StringIO):
    encoding = "ascii"

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        text.encode(self.encoding)
        if self.error is not None:
            raise self.error
        return super().write(text)

    def fileno(self):
        raise io.UnsupportedOperation


@pytest.mark.parametrize(
    ("error", "status"), [(None, 0), (BrokenPipeError(), 0), (OSError(28, "No space left"), 1)]
)
def test_a_summary_that_cannot_be_printed_is_no_failure(
    error, status, tmp_path, monkeypatch, capsys
):
    (tmp_path / "in.csv").write_text(TABLE.replace("x,", "é\u2028,"), encoding="utf-8")
    stream = Full(error)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert run(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 3) == status
    assert (tmp_path / "out.csv").exists()
    assert ("the files are written; the summary is not" in capsys.readouterr().err) == status
    if error is None:
        assert "columns \\xe9\\u2028, y" in stream.getvalue()


def test_closed_streams(tmp_path, monkeypatch, capsys):
    (tmp_path / "in.csv").write_text(TABLE)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        assert run("-", "-o", tmp_path / "out.csv", "--size", 3) == 2
    assert "standard input: is closed" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert run(tmp_path / "in.csv", "-o", "-", "--size", 3) == 2
        assert run(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 3) == 0
    assert "-o -: standard output is closed" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 3)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("odd")])
def test_a_file_that_cannot_be_written_is_named(error, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "in.npy", POINTS)

    def save(*arguments):
        raise error

    monkeypatch.setattr(np, "save", save)
    assert run(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 3) == 2
    reason = error.strerror if isinstance(error, OSError) else "'odd'"
    assert f"out.npy: cannot be written: {reason}\n" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in.npy"]


def test_whatever_is_raised_is_one_line(tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise KeyError("a\nb")

    monkeypatch.setattr(thin_files, "run", fail)
    assert run(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 3) == 2
    printed = capsys.readouterr().err
    assert "KeyError" in printed
    assert printed.count("\n") == 1


def test_a_first_chunk_of_equal_rows(tmp_path, capsys):
    tail = "".join(f"{x},{y}\n" for x, y in POINTS.tolist())
    (tmp_path / "in.csv").write_text("x,y\n" + "1,2\n" * 4096 + tail)
    arguments = (tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 3)
    assert run(*arguments, "--chunk-rows", 1) == 2  # 4096 are read at once
    assert "(of the first 4096 rows); say --bandwidth NUMBER" in capsys.readouterr().err
    for method in ("standard", "random"):
        succeed(*arguments, "--chunk-rows", 1, "--method", method)
        assert "MMD not known: " in capsys.readouterr().out
    succeed(*arguments, "--chunk-rows", 1, "--bandwidth", 1)
    succeed(*arguments, "--columns", "y", "--bandwidth", 1)
    assert "read in" not in capsys.readouterr().out.splitlines()[-1]


def test_help_says_what_is_promised(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "on any number of threads",
        "exit status",
        "do not apply the column of --weights",
        "chain after chain",
        "at least 4096",
        "overwritten",
        "--comment '#'",
    ):
        assert words in said
