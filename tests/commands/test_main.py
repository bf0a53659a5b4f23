"""The command, as a user runs it."""

import os
import subprocess
import sys

import numpy as np
import pytest

import thinformer
from thinformer.commands.main import main
from thinformer.data import ACTIVATIONS
from thinformer.measuring import demo


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "thinformer", *arguments], capture_output=True, text=True,
        timeout=300, check=False, cwd="/", **options,
    )  # fmt: skip


@pytest.mark.slow
def test_demo(tmp_path):
    picture = tmp_path / "demo.png"
    result = command("demo", "--plot", str(picture))
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if " MB" in line]
    assert [row.split()[0] for row in rows if "exact" in row] == list(ACTIVATIONS)
    vision = [row for row in rows if row.startswith("vision")]
    assert ["128 of 1370" in row for row in vision].index(True) == 3  # exact, g = 0, 1, 2
    errors = [float(row.split("1370")[1].split()[0]) for row in vision[1:]]
    assert np.all(np.diff(errors) < 0)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not result.stderr


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
    info = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert info["numpy"] == np.__version__
    assert info["threads"].startswith("1 of ")
    assert "CUDA" in info


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
def test_validate():
    result = command("validate")
    assert result.returncode == 0, result.stderr
    assert "FAIL" not in result.stdout
    assert result.stdout.splitlines()[-1].startswith("PASS: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--plot", "/nowhere/demo.png"], "there is no folder /nowhere"),
        (["demo", "--plot", "demo.txt"], "--plot takes a file ending in .png, .svg or .pdf; got"),
        (["validate", "--upstream", "/nowhere"], "/nowhere/thinformer/thinformer.py does not"),
    ],
)
def test_errors_are_one_line(arguments, message):
    result = command(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not result.stdout


@pytest.mark.slow
def test_no_command():
    result = command()
    assert result.returncode == 2
    assert "usage: thinformer" in result.stderr
    assert "validate" in result.stderr
    assert command("--version").stdout.strip() == thinformer.__version__
