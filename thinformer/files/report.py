"""What ``thinformer thin`` did: a few lines for the terminal, and a report in JSON."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thinformer.files.columns import format_left_out
from thinformer.files.job import Job
from thinformer.files.source import STANDARD
from thinformer.support.names import few, printable
from thinformer.support.version import version

PACKAGES = ("thinformer", "numpy", "scipy", "numba", "pyarrow", "xarray", "h5netcdf")


class Outcome(NamedTuple):
    """What was done.

    rows_in, rows_out : numbers of rows of the two files
    ess, ess_from : independent draws that the chosen rows are worth, and "given", "independent
        rows" or "autocorrelation"; None where the size was given
    chunks : number of chunks that were read
    row_numbers : those of the chosen rows; the first row of the file is 0
    columns, unused : columns that the distance is computed on, and columns only written
    left_out : those of the unused that are numbers but no data, and why
    kernel, bandwidth : the kernel, and its bandwidth if it has one
    bandwidth_from : "given", or the rows whose median distance it is
    scales : divisors of the columns, or None where they are not standardised
    seed : the seed that reproduces the run
    mmd : MMD of the coreset to all rows; None where it is not known
    mmd_below : a bound, where the estimate of the MMD is within its noise
    standard_mmd, standard_mmd_below : the same for standard thinning to the same size
    compared_with : the rows that the MMDs and the errors of columns are computed with
    errors : of the mean, the deviation and the tails of each column; see `ColumnError`
    seconds : of reading, thinning, comparing, writing, and in total
    peak_megabytes : resident memory of the process, or None where the system does not say
    notes : notes on the file and the comparison
    """

    rows_in: int
    rows_out: int
    ess: float | None
    ess_from: str | None
    chunks: int
    row_numbers: list[int]
    columns: list[str]
    unused: list[str]
    left_out: dict[str, str]
    kernel: str
    bandwidth: float | list[float] | None
    bandwidth_from: str
    scales: dict[str, float] | None
    seed: int
    mmd: float | None
    mmd_below: float | None
    standard_mmd: float | None
    standard_mmd_below: float | None
    compared_with: str
    errors: list[dict[str, Any]]
    seconds: dict[str, float]
    peak_megabytes: float | None
    notes: list[str]


def format_outcome(outcome: Outcome, out: Path) -> str:
    """Return a few lines that say what was done."""
    where = "standard output" if out == Path(STANDARD) else printable(out)
    used = f"columns {few(outcome.columns)}"
    unused = [column for column in outcome.unused if column not in outcome.left_out]
    if unused:
        used += f" (not used: {few(unused)})"
    kernel = f"kernel {outcome.kernel}"
    if outcome.bandwidth is not None:
        numbers = np.atleast_1d(outcome.bandwidth).tolist()
        kernel += f", bandwidth {few([f'{b:.6g}' for b in numbers])} ({outcome.bandwidth_from})"
    ours = _distance(outcome.mmd, outcome.mmd_below)
    theirs = _distance(outcome.standard_mmd, outcome.standard_mmd_below)
    compared = f"MMD to {outcome.compared_with}: {ours}"
    if theirs != "not known":
        compared += f"; standard thinning to {outcome.rows_out}: {theirs}"
    unit = (
        "each divided by its robust standard deviation" if outcome.scales else "in their own units"
    )
    used += f", {unit}"
    lines = [
        f"{outcome.rows_in} rows -> {outcome.rows_out} rows: {where}",
        *_worth(outcome),
        used,
        *([format_left_out(outcome.left_out)] if outcome.left_out else []),
        f"{kernel}, seed {outcome.seed}",
        compared,
        *_worst(outcome),
    ]
    if outcome.chunks > 1:
        lines.append(f"read in {outcome.chunks} chunks")
    memory = ""
    if outcome.peak_megabytes is not None:
        memory = f", peak memory {outcome.peak_megabytes:.0f} MB"
    return "\n".join([*lines, *outcome.notes, f"time {outcome.seconds['total']:.1f} s{memory}"])


def _worth(outcome: Outcome) -> list[str]:
    """A line that says by what the size was chosen."""
    if outcome.ess is None:
        return []
    why = {
        "given": "--ess",
        "independent rows": "all rows count as independent; --ess takes another number",
        "autocorrelation": "the effective sample size of the rows in their order",
    }[str(outcome.ess_from)]
    return [f"the chosen rows are worth {outcome.ess:.0f} independent draws ({why})"]


def _worst(outcome: Outcome) -> list[str]:
    """A line with the largest errors of columns."""
    if not outcome.errors:
        return []
    found = {name: max(outcome.errors, key=lambda each: each[name]) for name in ("mean", "tails")}
    return [
        f"largest error of a mean {found['mean']['mean']:.3f} standard deviations "
        f"({printable(found['mean']['column'])}), of a 5 or 95 % quantile "
        f"{found['tails']['tails']:.3f} ({printable(found['tails']['column'])})"
    ]


def _distance(value: float | None, below: float | None) -> str:
    if below is not None:
        return f"below {below:.5f}"
    return "not known" if value is None else f"{value:.5f}"


def report(job: Job, outcome: Outcome) -> dict[str, Any]:
    """Return the report: the settings, what was done, and the versions of the libraries."""
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in job._asdict().items()
    } | {"more": [str(path) for path in job.more]}
    return {"settings": settings, **outcome._asdict(), "versions": versions()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that are installed."""
    found = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {k: v for k, v in found.items() if v}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
