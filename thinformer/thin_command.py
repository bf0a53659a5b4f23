"""What ``thinformer thin`` does: read a file, thin its rows, write those chosen, and report."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer import _checks, files
from thinformer.delimited import DELIMITERS
from thinformer.discrepancy import median_distance, mmd
from thinformer.draws import seed_from
from thinformer.kernels import SHORT, WITHOUT_BANDWIDTH, as_kernel
from thinformer.sources import STANDARD, Request, Source, title
from thinformer.streaming import merge_and_reduce
from thinformer.thinning import METHODS, thin

SAMPLE = 20_000  # rows the coreset is compared with
SPACED = 16  # evenly spaced rows are held, times the size, of which standard thinning is made
PLOTTED = 4  # dimensions
COLOURS = ("0.75", "#D55E00")  # the full set, the coreset


class Job(NamedTuple):
    """What the command is asked for.

    source, out : files; "-" is standard input and output
    columns : that the distance is computed on, or None for all of numbers
    weights : the column of weights, or None
    bandwidth : "median", a number, or one a dimension
    seed : None for a fresh one
    kind : of standard input, an ending
    delimiter : of CSV, or None for that of the ending
    """

    source: Path
    out: Path
    size: int
    kernel: str
    bandwidth: str | float | list[float]
    columns: list[str] | None
    weights: str | None
    method: str
    g: int
    delta: float
    seed: int | None
    standardize: bool
    row_numbers: bool
    plot: Path | None
    report: Path | None
    chunk_rows: int
    kind: str
    delimiter: str | None


class Outcome(NamedTuple):
    """What was done.

    rows_in, rows_out : of the files
    chunks : that were read
    row_numbers : of the rows chosen; the first of the file is 0
    columns, unused : used for the distance, and only written
    kernel, bandwidth : the kernel, and its bandwidth if it has one
    bandwidth_from : where the bandwidth comes from
    standard_deviations : what the columns were divided by, or None
    seed : reproduces the run
    mmd, standard_mmd : of the coreset and of standard thinning to the same size
    compared_with : the rows they were compared with
    seconds : reading, thinning, comparing, writing and in all
    peak_megabytes : resident memory of the process, or None where the system does not say
    notes : on the file
    """

    rows_in: int
    rows_out: int
    chunks: int
    row_numbers: list[int]
    columns: list[str]
    unused: list[str]
    kernel: str
    bandwidth: float | list[float] | None
    bandwidth_from: str
    standard_deviations: dict[str, float] | None
    seed: int
    mmd: float
    standard_mmd: float
    compared_with: str
    seconds: dict[str, float]
    peak_megabytes: float | None
    notes: list[str]


class _Seen(NamedTuple):
    """What is kept of the rows read to compare the coreset with.

    rows, chunks : read
    keys : random ones, a row
    points, weights : those of the `SAMPLE` rows with the smallest keys
    stride : of evenly spaced rows
    spaced, spaced_weights : those of the rows whose numbers, from 1, are multiples of the stride
    """

    rows: int
    chunks: int
    keys: NDArray
    points: NDArray
    weights: NDArray
    stride: int
    spaced: NDArray
    spaced_weights: NDArray


@dataclass
class _Reading:
    """What is known and held while thinning draws one chunk after the other.

    held : row numbers and records, stretch by stretch, of the rows that may yet be chosen
    seconds : spent in reading
    """

    seen: _Seen | None = None
    held: list[tuple[NDArray, Any]] = field(default_factory=list)
    bandwidth: float | list[float] | None = None
    deviation: NDArray | None = None
    seconds: float = 0.0


def job(arguments: argparse.Namespace) -> Job:
    """What the arguments ask for."""
    bandwidth: str | float | list[float] = arguments.bandwidth
    if bandwidth != "median":
        try:
            numbers = [float(x) for x in arguments.bandwidth.split(",")]
        except ValueError:
            raise ValueError(
                "--bandwidth takes median, a number, or one a column, separated by commas; "
                f"got {arguments.bandwidth!r}"
            ) from None
        bandwidth = numbers if len(numbers) > 1 else numbers[0]
    columns = None
    if arguments.columns is not None:
        columns = [name.strip() for line in csv.reader([arguments.columns]) for name in line]
    delimiter = arguments.delimiter
    return Job(
        source=arguments.source,
        out=arguments.out,
        size=arguments.size,
        kernel=arguments.kernel,
        bandwidth=bandwidth,
        columns=columns,
        weights=arguments.weights,
        method=arguments.method,
        g=arguments.g,
        delta=arguments.delta,
        seed=arguments.seed,
        standardize=arguments.standardize,
        row_numbers=arguments.row_numbers,
        plot=arguments.plot,
        report=arguments.report,
        chunk_rows=arguments.chunk_rows,
        kind=f".{arguments.format}",
        delimiter="\t" if delimiter == "\\t" else delimiter,
    )


def format_outcome(outcome: Outcome, out: Path) -> str:
    """A few lines that say what was done."""
    where = "standard output" if out == Path(STANDARD) else out
    used = f"columns {_few(outcome.columns)}"
    if outcome.unused:
        used += f" (not used: {_few(outcome.unused)})"
    kernel = f"kernel {outcome.kernel}"
    if outcome.bandwidth is not None:
        numbers = np.atleast_1d(outcome.bandwidth).tolist()
        kernel += f", bandwidth {_few([f'{b:.6g}' for b in numbers])} ({outcome.bandwidth_from})"
    lines = [
        f"{outcome.rows_in} rows -> {outcome.rows_out} rows: {where}",
        used,
        f"{kernel}, seed {outcome.seed}",
        f"MMD to {outcome.compared_with}: {outcome.mmd:.5f}; "
        f"standard thinning to {outcome.rows_out}: {outcome.standard_mmd:.5f}",
    ]
    if outcome.chunks > 1:
        lines.append(f"read in {outcome.chunks} chunks")
    memory = ""
    if outcome.peak_megabytes is not None:
        memory = f", peak memory {outcome.peak_megabytes:.0f} MB"
    return "\n".join([*lines, *outcome.notes, f"time {outcome.seconds['total']:.1f} s{memory}"])


def _few(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(_printable, names[:most])) + more


def _printable(name: str) -> str:
    """A name whose bytes are no UTF-8, with these as escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def run(job: Job, tell: Callable[[str, float | None], None]) -> Outcome:
    """Do what the command is asked for; tell(stage, fraction) hears of the progress.

    Raises
    ------
    OSError, ValueError, TypeError, ImportError
        Of one line that says what is wrong and where. No file was written.
    """
    start = time.perf_counter()
    kind = _check(job)
    with contextlib.ExitStack() as stack:
        target = job.out
        if job.out != Path(STANDARD):
            target = stack.enter_context(files.replacing(job.out))
        extra = {}
        for name in ("plot", "report"):
            path = getattr(job, name)
            if path is not None:
                extra[name] = stack.enter_context(files.replacing(path))
        if job.row_numbers and kind == ".npy":
            extra["rows"] = stack.enter_context(files.replacing(rows_beside(job.out)))
        delimiter = job.delimiter or DELIMITERS.get(kind, ",")
        request = Request(job.source, job.columns, job.weights, job.chunk_rows, delimiter)
        source = stack.enter_context(files.open_source(request, kind))
        if job.row_numbers and "row" in [*source.columns, *source.unused, job.weights]:
            raise ValueError(
                f"{title(job.source)}: has a column 'row' already; --row-numbers would add another"
            )
        reading = _Reading()
        points, outcome = _thin(job, source, reading, tell)
        thinned = time.perf_counter()
        tell("writing", None)
        source.write(target, reading.held, job.row_numbers)
        if "rows" in extra:
            with extra["rows"].open("wb") as stream:
                np.save(stream, np.array(outcome.row_numbers))
        if "plot" in extra:
            assert job.plot is not None
            assert reading.seen is not None
            scale = 1.0 if reading.deviation is None else reading.deviation
            every = reading.seen.points * scale
            _plot(every, points * scale, source.labels, extra["plot"], job.plot.suffix)
        end = time.perf_counter()
        outcome.seconds.update({"writing": end - thinned, "total": end - start})
        outcome = outcome._replace(peak_megabytes=_peak_megabytes())
        if "report" in extra:
            extra["report"].write_text(json.dumps(_report(job, outcome), indent=1) + "\n")
    return outcome


def rows_beside(out: Path) -> Path:
    """The file that the row numbers of a .npy file go to: chosen.npy has chosen.rows.npy."""
    return out.with_suffix(".rows.npy")


def _check(job: Job) -> str:
    """Find out before the work what cannot be done; return the kind of the files, an ending."""
    standard = Path(STANDARD)
    kind = job.kind if job.source == standard else files.ending(job.source, "IN")
    if job.out == standard:
        if kind not in DELIMITERS:
            raise ValueError(f"-o - takes CSV from IN; got {job.source}")
    elif files.ending(job.out, "-o") != kind:
        raise ValueError(f"-o takes a file ending in {kind}, like what is read; got {job.out}")
    outputs = {"-o": job.out, "--plot": job.plot, "--report": job.report}
    if job.row_numbers and kind == ".npy":
        outputs["--row-numbers"] = rows_beside(job.out)
    places: dict[Path, str] = {job.source.resolve(): "IN"}
    for option, path in outputs.items():
        if path is None or path == standard:
            continue
        if not path.resolve().parent.is_dir():
            raise FileNotFoundError(f"{option} {path}: there is no folder {path.resolve().parent}")
        other = places.setdefault(path.resolve(), option)
        same = job.source.exists() and path.exists() and path.samefile(job.source)
        if other != option or same:
            raise ValueError(f"{option} {path} is the file of {'IN' if same else other} too")
    if job.columns is not None and not [c for c in job.columns if c]:
        raise ValueError("--columns is empty; it takes names of columns, separated by commas")
    repeated = sorted({c for c in job.columns or [] if (job.columns or []).count(c) > 1})
    if repeated:
        raise ValueError(f"--columns names {', '.join(map(repr, repeated))} twice")
    if job.weights is not None and job.weights in (job.columns or []):
        raise ValueError(f"--weights {job.weights!r} is one of --columns too")
    if job.delimiter is not None and (len(job.delimiter) != 1 or job.delimiter in '"\r\n'):
        raise ValueError(f"--delimiter takes one character; got {job.delimiter!r}")
    _checks.integer("--size", job.size, 1)
    _checks.integer("--chunk-rows", job.chunk_rows, 1)
    _checks.integer("--g", job.g, 0)
    if job.seed is not None:
        _checks.integer("--seed", job.seed, 0)
    _checks.failure_probability(job.delta)
    _checks.choice("--method", job.method, METHODS)
    as_kernel(job.kernel)
    if job.bandwidth != "median":
        if SHORT.get(job.kernel, job.kernel) in WITHOUT_BANDWIDTH:
            raise ValueError(f"--bandwidth: the kernel {job.kernel} has none; got {job.bandwidth}")
        for bandwidth in np.atleast_1d(job.bandwidth).tolist():
            _checks.positive("--bandwidth", bandwidth)
    return kind


def _thin(
    job: Job,
    source: Source,
    reading: _Reading,
    tell: Callable[[str, float | None], None],
) -> tuple[NDArray, Outcome]:
    """Thin the rows of a source, compare, and return the points chosen."""
    start = time.perf_counter()
    seed = int(np.random.default_rng().integers(2**32)) if job.seed is None else job.seed
    dimensions = len(source.labels)
    if isinstance(job.bandwidth, list) and len(job.bandwidth) != dimensions:
        raise ValueError(
            f"--bandwidth takes one number or {dimensions}, one for each of "
            f"{', '.join(source.labels[:30])}; got {len(job.bandwidth)}"
        )
    coreset = merge_and_reduce(
        _chunks(job, source, seed, reading, tell),
        job.size,
        kernel=job.kernel,
        bandwidth=job.bandwidth,
        method=job.method,
        g=job.g,
        delta=job.delta,
        rng=seed,
        keep=lambda rows: _let_go(reading.held, rows),
    )
    thinned = time.perf_counter()
    tell("comparing with standard thinning", None)
    seen = reading.seen
    assert seen is not None
    name = SHORT.get(job.kernel, job.kernel)
    kernel = as_kernel(name, reading.bandwidth)
    standard = thin(
        seen.spaced, job.size, method="standard", kernel=kernel, weights=seen.spaced_weights
    )
    ours, theirs = (
        mmd(seen.points, points, kernel=kernel, weights=seen.weights)
        for points in (coreset.points, seen.spaced[standard])
    )
    first = "all rows" if seen.chunks == 1 else f"the first {job.chunk_rows} rows"
    deviations = None
    if reading.deviation is not None:
        deviations = dict(zip(source.labels, reading.deviation.tolist(), strict=True))
    return coreset.points, Outcome(
        rows_in=seen.rows,
        rows_out=job.size,
        chunks=seen.chunks,
        row_numbers=coreset.rows.tolist(),
        columns=source.columns,
        unused=source.unused,
        kernel=name,
        bandwidth=reading.bandwidth,
        bandwidth_from=f"median distance of {first}" if job.bandwidth == "median" else "given",
        standard_deviations=deviations,
        seed=seed,
        mmd=ours,
        standard_mmd=theirs,
        compared_with="all rows" if seen.rows <= SAMPLE else f"{SAMPLE} rows drawn at random",
        seconds={
            "reading": reading.seconds,
            "thinning": thinned - start - reading.seconds,
            "comparing": time.perf_counter() - thinned,
        },
        peak_megabytes=None,
        notes=source.notes,
    )


def _chunks(
    job: Job,
    source: Source,
    seed: int,
    reading: _Reading,
    tell: Callable[[str, float | None], None],
) -> Iterator[NDArray | tuple[NDArray, NDArray]]:
    """The points of a source, chunk by chunk, standardised where that is asked for."""
    generator = np.random.default_rng([seed, 1])  # other numbers than those that thinning draws
    clock = time.perf_counter()
    for chunk in source.chunks:
        points = chunk.points
        if job.standardize:
            if reading.deviation is None:
                deviation = points.std(axis=0, dtype=np.float64)
                reading.deviation = np.where(deviation > 0, deviation, 1)
            points = points / reading.deviation.astype(points.dtype)
        if reading.seen is None:
            reading.bandwidth = _bandwidth(job, points, seed)
        weights = np.ones(len(points)) if chunk.weights is None else chunk.weights
        if weights.min() < 0:
            raise ValueError(
                f"--weights {job.weights!r} must not be negative; it holds {weights.min()}"
            )
        reading.seen = _see(reading.seen, points, weights, job.size, generator)
        rows = reading.seen.rows
        reading.held.append((np.arange(rows - len(points), rows), chunk.records))
        reading.seconds += time.perf_counter() - clock
        tell("reading and thinning", source.fraction())
        yield points, weights
        clock = time.perf_counter()
    reading.seconds += time.perf_counter() - clock
    if reading.seen is not None and reading.seen.rows < job.size:
        raise ValueError(
            f"{title(job.source)}: --size {job.size} is more than its {reading.seen.rows} rows"
        )
    tell("thinning", None)


def _bandwidth(job: Job, points: NDArray, seed: int) -> float | list[float] | None:
    """The bandwidth of the kernel, "median" as `thin` takes it of the same points and seed."""
    if SHORT.get(job.kernel, job.kernel) in WITHOUT_BANDWIDTH:
        return None
    if not isinstance(job.bandwidth, str):
        return job.bandwidth
    try:
        return median_distance(points, np.random.default_rng(seed_from(seed)))
    except ValueError as error:
        raise ValueError(f"{title(job.source)}: {error}; or say --bandwidth NUMBER") from None


def _see(
    seen: _Seen | None,
    points: NDArray,
    weights: NDArray,
    size: int,
    generator: np.random.Generator,
) -> _Seen:
    """What is kept of the rows read, after one more chunk."""
    keys = generator.random(len(points))
    if seen is None:
        seen = _Seen(0, 0, keys[:0], points[:0], weights[:0], 1, points[:0], weights[:0])
    rows = seen.rows + len(points)
    stride, spaced, spaced_weights = seen.stride, seen.spaced, seen.spaced_weights
    while rows // stride > SPACED * size:
        stride, spaced, spaced_weights = 2 * stride, spaced[1::2], spaced_weights[1::2]
    first = -(seen.rows + 1) % stride
    # only the rows of the chunk that come before the SAMPLE-th key can be kept
    small = np.sort(np.argsort(keys, kind="stable")[:SAMPLE])
    keys = np.concatenate([seen.keys, keys[small]])
    kept = np.sort(np.argsort(keys, kind="stable")[:SAMPLE])
    return _Seen(
        rows,
        seen.chunks + 1,
        keys[kept],
        np.concatenate([seen.points, points[small]])[kept],
        np.concatenate([seen.weights, weights[small]])[kept],
        stride,
        np.concatenate([spaced, points[first::stride]]),
        np.concatenate([spaced_weights, weights[first::stride]]),
    )


def _let_go(held: list[tuple[NDArray, Any]], rows: NDArray[np.int64]) -> None:
    """Keep the records of some rows only, given by increasing numbers."""
    left = []
    for numbers, records in held:
        among = rows[
            np.searchsorted(rows, numbers[0]) : np.searchsorted(rows, numbers[-1], "right")
        ]
        if among.size == numbers.size:
            left.append((numbers, records))
        elif among.size:
            left.append((among, records.take(np.searchsorted(numbers, among))))
    held[:] = left


def _report(job: Job, outcome: Outcome) -> dict[str, Any]:
    """The report: what was asked for, what was done, and with which versions."""
    asked = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in job._asdict().items()
    }
    packages = ("thinformer", "numpy", "scipy", "numba", "pyarrow", "xarray", "h5netcdf")
    versions = {name: _version(name) for name in packages}
    return {
        "settings": asked,
        **outcome._asdict(),
        "versions": {"python": platform.python_version()}
        | {k: v for k, v in versions.items() if v},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _peak_megabytes() -> float | None:
    """The most memory that the process had resident, where the system says it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def _plot(every: NDArray, chosen: NDArray, labels: list[str], path: Path, ending: str) -> None:
    """Draw the first dimensions against each other, the coreset over the rows it stands for."""
    import matplotlib
    from matplotlib.figure import Figure

    d = min(PLOTTED, len(labels))
    labels = [_printable(label).replace("$", r"\$") for label in labels[:d]]  # no formulas
    side = 2.2 * d + 1
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(side, side), layout="constrained")
        grid: Any = figure.subplots(d, d, squeeze=False, sharex="col")
        for i, j in np.ndindex(d, d):
            axes = grid[i, j]
            if i < j:
                axes.remove()
            elif i == j:
                bins = np.histogram_bin_edges(every[:, i], 20)
                axes.hist(every[:, i], bins, density=True, color=COLOURS[0])
                axes.hist(chosen[:, i], bins, density=True, color=COLOURS[1], histtype="step")
                axes.set_yticks([])
            else:
                axes.scatter(every[:, j], every[:, i], 3, COLOURS[0], linewidths=0, rasterized=True)
                axes.scatter(chosen[:, j], chosen[:, i], 6, COLOURS[1], linewidths=0)
            if i == d - 1:
                axes.set_xlabel(labels[j])
            if j == 0 and i > 0:
                axes.set_ylabel(labels[i])
        handles = [
            matplotlib.lines.Line2D([], [], color=colour, marker="o", linestyle="", label=label)
            for colour, label in zip(
                COLOURS, (f"{len(every)} rows", f"{len(chosen)} chosen"), strict=True
            )
        ]
        figure.legend(handles=handles, loc="outside upper right", frameon=False)
        figure.savefig(path, dpi=150, format=ending[1:])
