"""The stages of a run, as data: commands, limits of time, and what is left out where."""

import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SANITIZER, PROFILER = "compute-sanitizer", "ncu"
OF_SANITIZER = "=+ (ERROR|RACECHECK) SUMMARY|FAIL"
OF_PROFILER = (
    r"\s+(\S*halve|Duration|Elapsed Cycles|Compute \(SM\) Throughput|Memory Throughput|Registers"
    r"|Block Size|Grid Size|Achieved Occupancy|Waves)"
)
# files of tests, in the order in which they are worth running; all at the same time on a GPU
TESTS = ("small", "attention", "tensors", "points", "graphs", "landmarks", "many", "cupy", "thin")


class Stage(NamedTuple):
    """A command.

    seconds : after which it is stopped
    skipped : why it is not run; None where it is
    cache : whose folder of machine code it takes, made by a stage before it; None for its own
    refused : words in the output of a command that failed because the machine forbids it
    quoted : a pattern; the summary repeats lines of the output that begin with it
    """

    name: str
    command: tuple[str, ...]
    seconds: float
    skipped: str | None = None
    cache: str | None = None
    refused: tuple[str, ...] = ()
    quoted: str = "FAIL|ERROR |SKIPPED |PASS: "


def tests(*arguments):
    """The tests of some files, with settings of their own: no plugin, no file in the checkout."""
    return (
        sys.executable, "-m", "pytest", "-c", str(HERE / "pytest.ini"), "--rootdir", str(HERE),
        "--confcutdir", str(HERE), *(str(HERE / x) if x.endswith(".py") else x for x in arguments),
    )  # fmt: skip


def located(name, *arguments):
    """A tool's command, and why it is not run: an empty command where it is not on the PATH."""
    found = shutil.which(name) or shutil.which(f"/usr/local/cuda/bin/{name}")
    return ((found, *arguments) if found else (), None if found else f"{name} was not found")


def groups(simulated):
    """The stages in order; those of a group run at the same time.

    A process compiles its kernels before it runs them, on one core. So the files of tests are
    processes that compile at the same time. What is timed runs alone.
    """
    versions = Stage("versions", (sys.executable, str(HERE / "versions.py")), 30)
    validate = Stage(
        "validate", (sys.executable, "-m", "thinformer", "validate", "--device", "cuda"), 100,
        "its problems are too large for the simulator" if simulated else None,
    )  # fmt: skip
    files = [f"test_{name}.py" for name in TESTS]
    benchmark = Stage("benchmark", tests("-s", "benchmark.py"), 75)
    watched = tests("test_small.py", "-k", "not profiled")
    # torch asks the driver about addresses that are not on a GPU, which is no error
    options = {"memcheck": ("--report-api-errors", "no"), "racecheck": ()}
    sanitizers = [
        _of_tool(
            tool, SANITIZER, ("--tool", tool, "--error-exitcode", "9", *options[tool], *watched),
            30,
            OF_SANITIZER, simulated,
        )
        for tool in options
    ]  # fmt: skip
    profile = _of_tool(
        "profile", PROFILER,
        ("--clock-control", "none", "--set", "basic", "--kernel-name-base", "mangled", "-k",
         "regex:halve", "-c", "6", *tests("-k", "profiled", "-s", "test_small.py")), 25,
        OF_PROFILER, simulated,
    )  # fmt: skip
    if simulated:  # one process, as each takes seconds to begin
        checks = [Stage("tests", tests(*files), 1000)]
    else:
        checks = [
            Stage(f"test {name}", tests(file), 100) for name, file in zip(TESTS, files, strict=True)
        ]
    return [[versions], [validate, *checks], *([x] for x in sanitizers), [benchmark], [profile]]


def _of_tool(name, program, arguments, seconds, quoted, simulated):
    command, missing = located(program, *arguments)
    why = f"{program} needs a GPU" if simulated else missing
    refused = ("Device not supported", "LibraryNotLoaded", "ERR_NVGPUCTRPERM")
    return Stage(name, command, seconds, why, "test small", refused, quoted)


NAMES = tuple(dict.fromkeys(stage.name for x in (True, False) for g in groups(x) for stage in g))


def environment(simulated):
    """What all stages inherit; `Runner` adds folders for machine code."""
    inherited = os.environ | {
        "PYTHONSAFEPATH": "",  # stages import what stands beside them
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    inherited.pop("PYTEST_ADDOPTS", None)
    if not simulated:  # stages that run at the same time have a folder each
        inherited.pop("NUMBA_CACHE_DIR", None)
    return inherited | ({"NUMBA_ENABLE_CUDASIM": "1"} if simulated else {})
