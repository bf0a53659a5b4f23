"""The request to ``thinformer thin``: read from its options, and checked before the work."""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thinformer.files.csv import DELIMITERS
from thinformer.files.formats import ending
from thinformer.files.messages import shown
from thinformer.files.output import resolved
from thinformer.files.packing import check_packing
from thinformer.files.source import STANDARD, title
from thinformer.kernels.catalogue import SHORT, WITHOUT_BANDWIDTH, as_kernel
from thinformer.support import checks
from thinformer.thinning.merging import LEAST
from thinformer.thinning.methods import METHODS, Method
from thinformer.thinning.scales import unit_is_free

JOINED = (*DELIMITERS, ".parquet")  # formats of which several files are read


class Job(NamedTuple):
    """The request, as the options of the command state it.

    source, out : files; "-" is standard input and output
    more : files that are read after the source, as one table
    size : rows to choose; None for as few as are worth `ess` independent draws
    ess : effective sample size of the rows; None for the default
    columns : names of those that the distance is computed on; None for the default
    weights : name of the column of weights, or None
    bandwidth : "median", a number, or a number for each dimension
    standardize : whether columns are divided by their robust standard deviations
    seed : None for a fresh seed
    kind : format of standard input, as an ending; None for CSV
    delimiter : delimiter of CSV; None for the one that belongs to the ending
    comment : start of the lines of CSV that are no records, or None
    scheduler : "threads" or the address of a cluster of Dask; None to thin on this machine
    """

    source: Path
    more: list[Path]
    out: Path
    size: int | None
    ess: float | None
    kernel: str
    bandwidth: str | float | list[float]
    columns: list[str] | None
    weights: str | None
    method: Method
    g: int
    delta: float
    seed: int | None
    standardize: bool
    row_numbers: bool
    plot: Path | None
    curve: Path | None
    report: Path | None
    chunk_rows: int
    kind: str | None
    delimiter: str | None
    comment: str | None
    scheduler: str | None = None


def job_of(arguments: argparse.Namespace) -> Job:
    """Return the request that the arguments state."""
    source, *more = _found(arguments.source)
    return Job(
        source=source,
        more=more,
        out=arguments.out,
        size=_size(arguments.size),
        ess=arguments.ess,
        kernel=arguments.kernel,
        bandwidth=bandwidth_of(arguments.bandwidth, ("median",)),
        columns=columns_of(arguments.columns),
        weights=arguments.weights,
        method=arguments.method,
        g=arguments.g,
        delta=arguments.delta,
        seed=arguments.seed,
        standardize=_standardized(arguments),
        row_numbers=arguments.row_numbers,
        plot=arguments.plot,
        curve=arguments.curve,
        report=arguments.report,
        chunk_rows=arguments.chunk_rows,
        kind=None if arguments.format is None else f".{arguments.format}",
        delimiter=delimiter_of(arguments.delimiter),
        comment=arguments.comment,
        scheduler=arguments.scheduler,
    )


def _standardized(arguments: argparse.Namespace) -> bool:
    """Whether columns are standardised: as they say, or where no bandwidth has their units."""
    if arguments.standardize is None:
        free = unit_is_free(SHORT.get(arguments.kernel, arguments.kernel), arguments.bandwidth)
        return free and arguments.bandwidth == "median"
    return arguments.standardize


def _found(paths: list[Path]) -> list[Path]:
    """The files; a pattern that no shell has replaced stands for all files that it matches."""
    found: list[Path] = []
    for path in paths:
        if path.exists() or not set(path.name) & set("*?["):
            found.append(path)
            continue
        matches = sorted(path.parent.glob(path.name), key=_by_number)
        if not matches:
            raise FileNotFoundError(f"{path}: there is no such file, and none that it matches")
        found += matches
    return found


def _by_number(path: Path) -> list[int | str]:
    """A key by which run-2 comes before run-10, as chains are counted."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)]


def name_of(job: Job) -> str:
    """Return the name of what is read, in errors."""
    return title(job.source) + (f" and {len(job.more)} more" if job.more else "")


def _size(text: str) -> int | None:
    if text == "auto":
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"--size takes a number of rows, or auto; got {text!r}") from None


def bandwidth_of(text: str, words: tuple[str, ...]) -> str | float | list[float]:
    """Return what --bandwidth says: one of the words, a number, or numbers."""
    if text in words:
        return text
    try:
        numbers = [float(x) for x in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--bandwidth takes {', '.join(words)}, a number, or one a column, separated by "
            f"commas; got {text!r}"
        ) from None
    return numbers if len(numbers) > 1 else numbers[0]


def columns_of(text: str | None) -> list[str] | None:
    """Return the names that --columns lists; None where it is not said."""
    if text is None:
        return None
    try:
        return [name for line in csv.reader(io.StringIO(text, newline="")) for name in line]
    except csv.Error as error:
        raise ValueError(f"--columns {shown(text)}: {error}") from None


def delimiter_of(text: str | None) -> str | None:
    """Return what --delimiter says, where no shell can write a tab."""
    return "\t" if text == "\\t" else text


def chunk_rows(job: Job) -> int:
    """Return the rows to read at once; fewer than a coreset keeps would be of no use."""
    return max(job.chunk_rows, LEAST)


def rows_beside(out: Path) -> Path:
    """Return the file for the row numbers of a .npy file: chosen.npy has chosen.rows.npy."""
    return out.with_suffix(".rows.npy")


def check(job: Job) -> str:
    """Raise, before the work, for what cannot be done; return the format of both files, an ending.

    Raises
    ------
    OSError, ValueError
        With one line that names the option.
    """
    kind = _check_formats(job)
    _check_paths(job, kind)
    _check_scheduler(job, kind)
    check_text(job.columns, job.delimiter, job.comment)
    _check_numbers(job)
    return kind


def _check_formats(job: Job) -> str:
    """Check that IN and OUT have the same format, and options that belong to it; return it."""
    if Path(STANDARD) in job.more or (job.source == Path(STANDARD) and job.more):
        raise ValueError("IN: - is standard input; it is read alone")
    if job.source == Path(STANDARD):
        kind = job.kind or ".csv"
    else:
        kind = ending(job.source, "IN")
        if job.kind is not None:
            raise ValueError(f"--format is of standard input; IN is {job.source}")
    for path in job.more:
        if kind not in JOINED:
            raise ValueError(
                f"IN takes several files of {', '.join(JOINED)}, or one of {kind}; got {path} too: "
                "join them first, as by numpy.concatenate or xarray.concat"
            )
        if ending(path, "IN") != kind:
            raise ValueError(f"IN takes files of one ending, like {job.source}; got {path}")
    check_packing(job.out)
    for option, value in (("--delimiter", job.delimiter), ("--comment", job.comment)):
        if value is not None and kind not in DELIMITERS:
            raise ValueError(f"{option} is of CSV; IN is {job.source}")
    if job.out == Path(STANDARD):
        if sys.stdout is None or sys.stdout.closed:
            raise OSError("-o -: standard output is closed")
        if kind not in DELIMITERS:
            raise ValueError(f"-o - takes CSV from IN; got {job.source}")
    elif ending(job.out, "-o") != kind:
        raise ValueError(f"-o takes a file ending in {kind}, like what is read; got {job.out}")
    return kind


def _check_paths(job: Job, kind: str) -> None:
    """Check that every file to write has a folder, and is no other file of the command."""
    standard = Path(STANDARD)
    outputs = {"-o": job.out, "--plot": job.plot, "--curve": job.curve, "--report": job.report}
    if job.row_numbers and kind == ".npy":
        outputs["--row-numbers"] = rows_beside(job.out)
    places: dict[Path, str] = {}
    sources = [job.source, *job.more]
    for source in sources:
        if resolved(source) in places:
            raise ValueError(f"IN names {source} twice")
        places[resolved(source)] = "IN"
    for option, path in outputs.items():
        if path is None or (path == standard and option == "-o"):
            continue
        if path == standard:
            raise ValueError(f"{option} takes a file; got -, which is standard output")
        target = resolved(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{option} {path}: there is no folder {target.parent}")
        other = places.setdefault(target, option)
        same = path.exists() and any(s.exists() and path.samefile(s) for s in sources)
        if other != option or same:
            raise ValueError(f"{option} {path} is the file of {'IN' if same else other} too")


def _check_scheduler(job: Job, kind: str) -> None:
    """Check that a scheduler can do what is asked."""
    name = job.scheduler
    if name is None:
        return
    if name != "threads" and "://" not in name:
        raise ValueError(f"--scheduler takes threads or an address, tcp://HOST:PORT; got {name}")
    if kind != ".parquet":
        raise ValueError(f"--scheduler reads .parquet files; IN is {title(job.source)}")
    if job.size is None or job.curve is not None:
        option = "--curve" if job.curve else "--size auto"
        raise ValueError(
            f"--scheduler takes --size NUMBER and no --curve; got {option}, for which all rows "
            "must be on this machine"
        )


def check_text(columns: list[str] | None, delimiter: str | None, comment: str | None) -> None:
    """Check names of columns, the delimiter and the comment."""
    if columns is not None and not [c for c in columns if c]:
        raise ValueError("--columns is empty; it takes names of columns, separated by commas")
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise ValueError(f"--delimiter takes one character; got {shown(delimiter)}")
    if comment is not None and (not comment or set(comment) & set('"\r\n')):
        raise ValueError(f"--comment takes what lines begin with; got {shown(comment)}")


def _check_numbers(job: Job) -> None:
    """Check sizes, the method and the kernel."""
    if job.size is not None:
        checks.integer("--size", job.size, 1)
    if job.ess is not None:
        checks.positive("--ess", job.ess)
        if job.size is not None and job.curve is None:
            raise ValueError(f"--ess is for --size auto and --curve; got --size {job.size}")
    checks.integer("--chunk-rows", job.chunk_rows, 1)
    checks.integer("--g", job.g, 0)
    if job.seed is not None:
        checks.integer("--seed", job.seed, 0)
    checks.choice("--method", job.method, METHODS)
    try:
        checks.failure_probability(job.delta)
        as_kernel(job.kernel)
    except ValueError as error:
        raise ValueError(f"--{error}") from None
    check_bandwidth(job.kernel, job.bandwidth)


def check_bandwidth(kernel: str, bandwidth: str | float | list[float]) -> None:
    """Check numbers that --bandwidth gives, and that the kernel has one."""
    if isinstance(bandwidth, str):
        return
    if SHORT.get(kernel, kernel) in WITHOUT_BANDWIDTH:
        raise ValueError(f"--bandwidth: the kernel {kernel} has none; got {bandwidth}")
    for each in np.atleast_1d(bandwidth).tolist():
        checks.positive("--bandwidth", each)
