"""`tests/on_gpu/run.sh`, the command for a GPU, as far as the simulator goes."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

pytestmark = pytest.mark.slow

sys.path.append(str(ROOT / "tests" / "on_gpu"))
running, stages = map(importlib.import_module, ("running", "stages"))


def files():
    """What is in the checkout, but for what other tests write."""
    return {path for path in (ROOT / "tests").rglob("*") if "__pycache__" not in path.parts}


def run_the_command(folder, *options):
    """Run it, check that nothing is written into the checkout, and return the stages by name."""
    before = files()
    command = [ROOT / "tests" / "on_gpu" / "run.sh", "--simulator", "--out", folder,
               "--seconds", "1000", *options]  # fmt: skip
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (folder / "log.txt").read_text()
    assert files() == before
    assert (folder / "summary.txt").read_text() == done.stdout
    assert sorted(path.name for path in folder.iterdir()) == [
        "log.txt", "summary.json", "summary.txt",
    ]  # fmt: skip
    return {r["stage"]: r for r in json.loads((folder / "summary.json").read_text())}


def test_the_command_without_its_tests(tmp_path):
    names = ["versions", "validate", "memcheck", "racecheck", "benchmark", "profile"]
    results = run_the_command(tmp_path, "--only", ",".join(names))
    assert {name: r["outcome"] for name, r in results.items()} == {
        "versions": "PASS", "validate": "SKIP", "memcheck": "SKIP", "racecheck": "SKIP",
        "benchmark": "PASS", "profile": "SKIP",
    }  # fmt: skip
    assert "a kernel compiles and runs" in results["versions"]["lines"]
    assert results["memcheck"]["words"] == "compute-sanitizer needs a GPU"
    aims = [line for line in results["benchmark"]["lines"] if ", aim " in line]
    assert [line.split(", aim ")[1] for line in aims][:4] == ["10", "3", "10", "3"]


@pytest.mark.nightly
def test_the_command(tmp_path):
    """All stages, on small problems."""
    results = run_the_command(tmp_path)
    assert results["tests"]["outcome"] == "PASS"
    assert int(results["tests"]["words"].split()[0]) > 80


@pytest.fixture
def runner(tmp_path):
    report = running.Report(tmp_path)
    with running.Runner(report, 60, dict(os.environ)) as made:
        yield made


def code(words, *, name="stage", seconds=30, **settings):
    return stages.Stage(name, (sys.executable, "-c", words), seconds, **settings)


def test_results_are_written_as_they_end(runner, tmp_path):
    """A stage that fails, or that takes too long, does not stop the others."""
    told = "print('x.py::test_one PASSED', flush=True); print('result: 7 ms', flush=True)"
    runner.run([code(f"{told}; raise SystemExit(3)", name="fails")])
    assert json.loads((tmp_path / "summary.json").read_text())[0]["lines"] == ["7 ms"]
    hangs = code(f"{told}; import threading; threading.Event().wait()", name="hangs", seconds=2)
    runner.run([hangs, code("print(1)", name="passes")])
    runner.run([code("", name="absent", skipped="it is not here")])
    skipped = "print('==== 2 skipped in 0.1s ====')"
    runner.run([code(skipped, name="unfit")])
    runner.run([code(f"{skipped}; raise SystemExit(5)", name="none")])
    refused = code("raise SystemExit('Device not supported')", name="refused",
                   refused=("Device not supported",))  # fmt: skip
    runner.run([refused])
    assert runner.report.end() == 1
    results = {r["stage"]: r for r in json.loads((tmp_path / "summary.json").read_text())}
    assert [(name, r["outcome"], r["words"]) for name, r in results.items()] == [
        ("fails", "FAIL", "exit status 3; 1 passed"),
        ("passes", "PASS", ""),
        ("hangs", "CUT", "stopped after 2 s: 1 passed"),
        ("absent", "SKIP", "it is not here"),
        ("unfit", "SKIP", "2 skipped"),
        ("none", "SKIP", "2 skipped"),
        ("refused", "SKIP", "the machine forbids it: Device not supported"),
    ]
    *_, verdict = (tmp_path / "summary.txt").read_text().split("\n")[:-1]
    assert verdict == "FAIL: 1 passed, 2 failed, 4 skipped: fails, hangs"


def test_no_stage_begins_when_the_time_is_over(runner):
    runner.end = 0
    runner.run([code("")])
    assert runner.report.results[0]["words"] == "not begun: the time of the run is over"
    assert runner.report.end() == 1


def test_the_limits_are_less_than_five_minutes():
    """Of a GPU's run: stages of a group run at the same time."""
    limits = [max(stage.seconds for stage in group) for group in stages.groups(False)]
    assert sum(limits) <= 290
    assert all(Path(stage.command[0]).exists() for group in stages.groups(False) for stage in group
               if not stage.skipped)  # fmt: skip
