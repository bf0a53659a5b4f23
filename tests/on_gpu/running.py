"""Runs stages within limits of time, and writes each result as it ends."""

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

PASSED, FAILED, CUT, SKIPPED = "PASS", "FAIL", "CUT", "SKIP"
RESULT = "result: "  # begins a line of output that the summary repeats
NO_TESTS = 5  # exit status of pytest where all that it collected is skipped
LEAST = 5  # seconds; with less time left no stage begins


class Report:
    """Writes summary.txt, summary.json and log.txt, and the same lines to the terminal."""

    def __init__(self, folder):
        self.folder, self.results = folder, []
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("summary.txt", "log.txt"):
            (folder / name).write_text("")
        self.say(f"results go to {folder}")

    def say(self, line):
        print(line, flush=True)
        with (self.folder / "summary.txt").open("a") as file:
            file.write(f"{line}\n")

    def add(self, stage, outcome, seconds, words, output=""):
        """Write the result of a stage, the lines that it quotes, and all of its output."""
        stage, quoted = stage.name, re.compile(f"{RESULT}|{stage.quoted}")
        lines = [x.removeprefix(RESULT) for x in output.split("\n") if quoted.match(x)]
        self.results.append(
            {"stage": stage, "outcome": outcome, "seconds": round(seconds, 1), "words": words,
             "lines": lines}
        )  # fmt: skip
        self.say(f"{outcome:<4}  {stage:<16}{seconds:7.1f} s  {words}".rstrip())
        for line in lines:
            self.say(f"        {line}")
        with (self.folder / "log.txt").open("a") as file:
            file.write(f"==== {stage}: {outcome}\n{output}\n")
        (self.folder / "summary.json").write_text(json.dumps(self.results, indent=1) + "\n")

    def end(self):
        """Write the verdict, and return the exit status."""
        of = {x: [r["stage"] for r in self.results if r["outcome"] == x]
              for x in (PASSED, FAILED, CUT, SKIPPED)}  # fmt: skip
        bad = of[FAILED] + of[CUT]
        counts = f"{len(of[PASSED])} passed, {len(bad)} failed, {len(of[SKIPPED])} skipped"
        self.say(f"{FAILED if bad else PASSED}: {counts}" + (f": {', '.join(bad)}" if bad else ""))
        return 1 if bad else 0


class Runner:
    """Runs groups of stages, until the time of the whole run is over."""

    def __init__(self, report, seconds, environment):
        self.report, self.environment = report, environment
        self.end = time.monotonic() + seconds
        self.temporary = tempfile.TemporaryDirectory(prefix="thinformer-gpu-")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.temporary.cleanup()

    def run(self, stages):
        """Run stages at the same time, and report each when it ends."""
        running = []
        for stage in stages:
            if stage.skipped:
                self.report.add(stage, SKIPPED, 0, stage.skipped)
            elif self.end - time.monotonic() < LEAST:
                self.report.add(stage, CUT, 0, "not begun: the time of the run is over")
            else:
                running.append(Running(stage, self))
        with ThreadPoolExecutor(max(1, len(running))) as threads:
            waiting = {threads.submit(one.wait): one for one in running}
            try:
                for future in as_completed(waiting):
                    one = waiting[future]
                    self.report.add(one.stage, *one.result())
                    running.remove(one)
            finally:  # interrupted: what is stopped ends its thread
                for one in running:
                    self.report.add(one.stage, *one.result())


class Running:
    """A stage's process, whose output goes to a file in the folder of results while it runs."""

    def __init__(self, stage, runner):
        self.stage, self.begin = stage, time.monotonic()
        self.end = min(self.begin + stage.seconds, runner.end)
        name = re.sub(r"\W", "-", stage.name)
        self.path = runner.report.folder / f"running-{name}.log"
        # machine code of the CPU: two processes may not write to one folder at the same time
        cache = Path(runner.temporary.name) / re.sub(r"\W", "-", stage.cache or stage.name)
        environment = {"NUMBA_CACHE_DIR": str(cache)} | runner.environment
        with self.path.open("w") as file:
            self.process = subprocess.Popen(
                stage.command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                env=environment, cwd=runner.temporary.name, start_new_session=True,
            )  # fmt: skip

    def wait(self):
        """Wait until the process ends, or its time is over."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0, self.end - time.monotonic()))

    def result(self):
        """Return the outcome, seconds, a few words and the output; stop what still runs."""
        code = self.process.poll()
        if code is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        seconds, output = time.monotonic() - self.begin, self.path.read_text(errors="replace")
        self.path.unlink()
        counted = count(output)
        if code is None:
            outcome, words = CUT, f"stopped after {seconds:.0f} s{counted and ': ' + counted}"
        elif code in (0, NO_TESTS) and re.fullmatch(r"\d+ skipped", counted):
            outcome, words = SKIPPED, counted
        elif code == 0:
            outcome, words = PASSED, counted
        elif refusals := [word for word in self.stage.refused if word in output]:
            outcome, words = SKIPPED, f"the machine forbids it: {refusals[0]}"
        else:
            outcome, words = FAILED, f"exit status {code}" + (f"; {counted}" if counted else "")
        return outcome, seconds, words, output


def count(output):
    """What pytest -v says of its tests, also where it was stopped: "3 passed, 1 skipped"."""
    if ended := re.search(r"^=+ (\d[^=]*) in [\d.]+s.*=+$", output, re.MULTILINE):
        return ended[1]
    found = re.findall(r"^\S+::.* (PASSED|FAILED|ERROR|SKIPPED)\b", output, re.MULTILINE)
    words = {"PASSED": "passed", "FAILED": "failed", "ERROR": "errors", "SKIPPED": "skipped"}
    return ", ".join(f"{found.count(x)} {word}" for x, word in words.items() if x in found)
