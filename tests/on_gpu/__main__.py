"""All checks of a GPU by one command: `tests/on_gpu/run.sh` or `python tests/on_gpu`.

The checkout is run as it lies, and nothing is written into it. The exit status is 0 if no stage
failed, else 1.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

import stages
from running import Report, Runner

SECONDS = 290  # of the whole run


def main():
    parser = argparse.ArgumentParser("tests/on_gpu/run.sh", description=__doc__)
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER",
        help="where summary.txt, summary.json and log.txt are written (default: $OUT, or a new"
        " folder among the temporary ones)",
    )  # fmt: skip
    parser.add_argument(
        "--simulator", action="store_true",
        help="run what Numba's simulator can, on small problems (also with NUMBA_ENABLE_CUDASIM=1)",
    )  # fmt: skip
    parser.add_argument(
        "--only", metavar="STAGE,..", help=f"some of the stages: {', '.join(stages.NAMES)}"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of the whole run")
    arguments = parser.parse_args()
    simulated = arguments.simulator or os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
    names = arguments.only.split(",") if arguments.only else stages.NAMES
    if unknown := [name for name in names if name not in stages.NAMES]:
        parser.error(f"--only must name some of {', '.join(stages.NAMES)}; got {unknown[0]!r}")
    folder = arguments.out or os.environ.get("OUT") or tempfile.mkdtemp(prefix="thinformer-gpu-")
    report = Report(Path(folder))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the stages that run are stopped
    with Runner(report, arguments.seconds, stages.environment(simulated)) as runner:
        for group in stages.groups(simulated):
            runner.run([stage for stage in group if stage.name in names])
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
