"""The command, as a user runs it."""

import os
import subprocess
import sys

import numpy as np
import pytest

import thinformer
from thinformer.commands.main import COMMANDS, main
from thinformer.data import ACTIVATIONS
from thinformer.measuring import demo

NAMES = [module.__name__.rpartition(".")[2].replace("_", "-") for module in COMMANDS]


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "thinformer", *arguments], capture_output=True, text=True,
        timeout=300, check=False, cwd="/", **options,
    )  # fmt: skip


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    picture = tmp_path / "demo.png"
    assert main(["demo", "--plot", str(picture)]) == 0
    printed = capsys.readouterr()
    rows = [line for line in printed.out.splitlines() if " MB" in line]
    assert [row.split()[0] for row in rows if "exact" in row] == list(ACTIVATIONS)
    vision = [row for row in rows if row.startswith("vision")]
    assert ["128 of 1370" in row for row in vision].index(True) == 3  # exact, g = 0, 1, 2
    errors = [float(row.split("1370")[1].split()[0]) for row in vision[1:]]
    assert np.all(np.diff(errors) < 0)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert printed.err == ""


def test_demo_lines_say_what_was_measured():
    line = next(demo.run())
    assert (line.encoder, line.setting, line.kept, line.keys) == ("text", "exact", 512, 512)
    assert line.error == 0
    assert line.seconds > 0
    assert 0.3 < line.megabytes < 20
    assert demo.format_line(line).split()[:5] == ["text", "exact", "512", "of", "512"]


@pytest.mark.slow
def test_info():
    result = command("info", env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    info = dict(line.split(maxsplit=1) for line in lines)
    assert info["numpy"] == np.__version__
    assert info["threads"].startswith("1 of ")
    assert "CUDA" in info


def test_info_fits_a_terminal(monkeypatch, capsys):
    """A long reason is wrapped; a path stays on one line, so that it can be copied."""
    from thinformer.cuda import jit

    reason = "the driver is too old " * 20
    monkeypatch.setattr(jit, "why_unavailable", lambda: reason)
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert reason.strip() in " ".join(printed.split())
    lines = [line for line in printed.splitlines() if not line.startswith("kernel cache")]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", ["NVIDIA H100", b"NVIDIA H100"])
def test_info_names_gpus_of_either_binding(name, monkeypatch, capsys):
    from thinformer.cuda.jit import cuda

    class Gpu:
        pass

    Gpu.name = name
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "gpus", [Gpu])
    assert main(["info"]) == 0
    assert "CUDA devices     NVIDIA H100\n" in capsys.readouterr().out


@pytest.mark.slow
def test_validate(capsys):
    assert main(["validate"]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    assert printed.splitlines()[-1].startswith("PASS: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--plot", "/nowhere/demo.png"], "there is no folder /nowhere"),
        (["demo", "--plot", "demo.txt"], "--plot takes a file ending in .png, .svg or .pdf; got"),
        (["validate", "--upstream", "/nowhere"], "/nowhere/thinformer/thinformer.py does not"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.mark.slow
def test_no_command():
    result = command()
    assert result.returncode == 2
    assert "usage: thinformer" in result.stderr
    assert "validate" in result.stderr
    assert command("--version").stdout.strip() == thinformer.__version__


@pytest.mark.parametrize("name", ["", *NAMES])
def test_help_fits_a_terminal(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as done:
        main([name, "--help"] if name else ["--help"])
    assert done.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: thinformer {name}".rstrip())
    assert max(map(len, lines)) <= 100


def test_help_loads_no_compiler():
    """Nor torch, so that it comes at once."""
    code = (
        "import contextlib, sys; from thinformer.commands.main import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
        "sys.exit(bool({'numba', 'torch', 'transformers'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, cwd="/")
    assert result.returncode == 0, result.stderr
