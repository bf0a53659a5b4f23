"""What ``thinformer thin`` does: read a file, thin its rows, write those chosen, and report."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.run import diagonal, embed, square
from thinformer.files import formats
from thinformer.files.csv import DELIMITERS
from thinformer.files.source import STANDARD, Request, Source, printable, shown, title, writing
from thinformer.halving.draws import seed_from
from thinformer.halving.problem import Points
from thinformer.kernels import Kernel
from thinformer.kernels.catalogue import SHORT, WITHOUT_BANDWIDTH, as_kernel
from thinformer.support import checks
from thinformer.thinning.arguments import as_problem, median_distance
from thinformer.thinning.methods import METHODS
from thinformer.thinning.streaming import BLIND, LEAST, merge_and_reduce
from thinformer.thinning.thin import thin

EXACT = 50_000  # rows that all are compared with, if that takes at most...
COST = 5e10  # ...so many products
HELD = 1e10  # products that comparing a sample with all rows, where these are held, may take
SAMPLE = 20_000  # rows drawn for the comparison where there are more
NOISE = 2  # standard deviations by which an estimate must be above 0 to be told
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
    kind : of standard input, an ending, or None for CSV
    delimiter : of CSV, or None for that of the ending
    comment : what lines of CSV begin with that are no records, or None
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
    kind: str | None
    delimiter: str | None
    comment: str | None


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
    mmd : of the coreset, or None where it is not known
    mmd_below : what it is below, where it is too small for the rows it was compared with
    standard_mmd, standard_mmd_below : of standard thinning to the same size
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
    mmd: float | None
    mmd_below: float | None
    standard_mmd: float | None
    standard_mmd_below: float | None
    compared_with: str
    seconds: dict[str, float]
    peak_megabytes: float | None
    notes: list[str]


class _Seen(NamedTuple):
    """What is kept of the rows read to compare the coreset with.

    rows, chunks : read
    weighing : rows that have a weight above 0
    only : points and weights of the first chunk, until there is another
    keys : random ones, a row that weighs
    points, weights : those of the `SAMPLE` rows with the smallest keys
    stride : of evenly spaced rows
    spaced : points of the rows whose numbers, from 1, are multiples of the stride
    """

    rows: int
    chunks: int
    weighing: int
    only: tuple[NDArray, NDArray] | None
    keys: NDArray
    points: NDArray
    weights: NDArray
    stride: int
    spaced: NDArray


class _Sample(NamedTuple):
    """Some of the rows of a problem that stand for more.

    rows : their numbers
    weights : (rows,), with the sum 1
    share : of the rows they stand for that they are
    """

    rows: NDArray
    weights: NDArray
    share: float


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
        text = io.StringIO(arguments.columns, newline="")
        try:
            columns = [name for line in csv.reader(text) for name in line]
        except csv.Error as error:
            raise ValueError(f"--columns {shown(arguments.columns)}: {error}") from None
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
        kind=None if arguments.format is None else f".{arguments.format}",
        delimiter="\t" if delimiter == "\\t" else delimiter,
        comment=arguments.comment,
    )


def format_outcome(outcome: Outcome, out: Path) -> str:
    """A few lines that say what was done."""
    where = "standard output" if out == Path(STANDARD) else printable(out)
    used = f"columns {_few(outcome.columns)}"
    if outcome.unused:
        used += f" (not used: {_few(outcome.unused)})"
    kernel = f"kernel {outcome.kernel}"
    if outcome.bandwidth is not None:
        numbers = np.atleast_1d(outcome.bandwidth).tolist()
        kernel += f", bandwidth {_few([f'{b:.6g}' for b in numbers])} ({outcome.bandwidth_from})"
    ours = _distance(outcome.mmd, outcome.mmd_below)
    theirs = _distance(outcome.standard_mmd, outcome.standard_mmd_below)
    compared = f"MMD to {outcome.compared_with}: {ours}"
    if theirs != "not known":
        compared += f"; standard thinning to {outcome.rows_out}: {theirs}"
    lines = [
        f"{outcome.rows_in} rows -> {outcome.rows_out} rows: {where}",
        used,
        f"{kernel}, seed {outcome.seed}",
        compared,
    ]
    if outcome.chunks > 1:
        lines.append(f"read in {outcome.chunks} chunks")
    memory = ""
    if outcome.peak_megabytes is not None:
        memory = f", peak memory {outcome.peak_megabytes:.0f} MB"
    return "\n".join([*lines, *outcome.notes, f"time {outcome.seconds['total']:.1f} s{memory}"])


def _few(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(_brief, names[:most])) + more


def _brief(name: str, most: int = 60) -> str:
    return printable(name[:most]) + ("..." if len(name) > most else "")


def _distance(value: float | None, below: float | None) -> str:
    if below is not None:
        return f"below {below:.5f}"
    return "not known" if value is None else f"{value:.5f}"


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
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # what matters of them is an error
        target = job.out
        if job.out != Path(STANDARD):
            target = stack.enter_context(formats.replacing(job.out))
        extra = {}
        for name in ("plot", "report"):
            path = getattr(job, name)
            if path is not None:
                extra[name] = stack.enter_context(formats.replacing(path))
        if job.row_numbers and kind == ".npy":
            extra["rows"] = stack.enter_context(formats.replacing(rows_beside(job.out)))
        delimiter = job.delimiter or DELIMITERS.get(kind, ",")
        request = Request(
            path=job.source,
            columns=job.columns,
            weights=job.weights,
            rows=_chunk_rows(job),
            numbered=job.row_numbers and kind != ".npy",
            delimiter=delimiter,
            comment=job.comment,
        )
        with _about(title(job.source)):
            source = stack.enter_context(formats.open_source(request, kind))
        reading = _Reading()
        points, outcome = _thin(job, source, reading, tell)
        thinned = time.perf_counter()
        tell("writing", None)
        with writing("standard output" if target == Path(STANDARD) else str(job.out)):
            source.write(target, reading.held, job.row_numbers)
        if "rows" in extra:
            with writing(str(rows_beside(job.out))), extra["rows"].open("wb") as stream:
                np.save(stream, np.array(outcome.row_numbers))
        if "plot" in extra:
            assert job.plot is not None
            assert reading.seen is not None
            scale = 1.0 if reading.deviation is None else reading.deviation
            every = reading.seen.points * scale
            with writing(str(job.plot), "drawn"):
                _plot(every, points * scale, source.labels, extra["plot"], job.plot.suffix.lower())
        end = time.perf_counter()
        outcome.seconds.update({"writing": end - thinned, "total": end - start})
        outcome = outcome._replace(peak_megabytes=_peak_megabytes())
        if "report" in extra:
            text = json.dumps(_report(job, outcome), indent=1, allow_nan=False) + "\n"
            with writing(str(job.report)):
                extra["report"].write_text(text)
    return outcome


def rows_beside(out: Path) -> Path:
    """The file that the row numbers of a .npy file go to: chosen.npy has chosen.rows.npy."""
    return out.with_suffix(".rows.npy")


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    """Put the name of the file before an error that has none."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if str(error).startswith((f"{name}: ", "--")):
            raise
        raise ValueError(f"{name}: {error}") from error


def _chunk_rows(job: Job) -> int:
    """Rows read at once: of fewer than a coreset has there would be no use."""
    return max(job.chunk_rows, LEAST)


def _check(job: Job) -> str:
    """Find out before the work what cannot be done; return the kind of the files, an ending."""
    standard = Path(STANDARD)
    if job.source == standard:
        kind = job.kind or ".csv"
    else:
        kind = formats.ending(job.source, "IN")
        if job.kind is not None:
            raise ValueError(f"--format is of standard input; IN is {job.source}")
    for option, value in (("--delimiter", job.delimiter), ("--comment", job.comment)):
        if value is not None and kind not in DELIMITERS:
            raise ValueError(f"{option} is of CSV; IN is {job.source}")
    if job.out == standard:
        if sys.stdout is None or sys.stdout.closed:
            raise OSError("-o -: standard output is closed")
        if kind not in DELIMITERS:
            raise ValueError(f"-o - takes CSV from IN; got {job.source}")
    elif formats.ending(job.out, "-o") != kind:
        raise ValueError(f"-o takes a file ending in {kind}, like what is read; got {job.out}")
    outputs = {"-o": job.out, "--plot": job.plot, "--report": job.report}
    if job.row_numbers and kind == ".npy":
        outputs["--row-numbers"] = rows_beside(job.out)
    places: dict[Path, str] = {formats.resolved(job.source): "IN"}
    for option, path in outputs.items():
        if path is None or (path == standard and option == "-o"):
            continue
        if path == standard:
            raise ValueError(f"{option} takes a file; got -, which is standard output")
        target = formats.resolved(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{option} {path}: there is no folder {target.parent}")
        other = places.setdefault(target, option)
        same = job.source.exists() and path.exists() and path.samefile(job.source)
        if other != option or same:
            raise ValueError(f"{option} {path} is the file of {'IN' if same else other} too")
    if job.columns is not None and not [c for c in job.columns if c]:
        raise ValueError("--columns is empty; it takes names of columns, separated by commas")
    if job.delimiter is not None and (len(job.delimiter) != 1 or job.delimiter in '"\r\n'):
        raise ValueError(f"--delimiter takes one character; got {shown(job.delimiter)}")
    if job.comment is not None and (not job.comment or set(job.comment) & set('"\r\n')):
        raise ValueError(f"--comment takes what lines begin with; got {shown(job.comment)}")
    checks.integer("--size", job.size, 1)
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
    if job.bandwidth != "median":
        if SHORT.get(job.kernel, job.kernel) in WITHOUT_BANDWIDTH:
            raise ValueError(f"--bandwidth: the kernel {job.kernel} has none; got {job.bandwidth}")
        for bandwidth in np.atleast_1d(job.bandwidth).tolist():
            checks.positive("--bandwidth", bandwidth)
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
            f"{_few(source.labels)}; got {len(job.bandwidth)}"
        )
    with _about(title(job.source)):
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
    ours, theirs, compared_with, notes = _compared(job, seen, coreset.points, reading.bandwidth)
    first = "all rows" if seen.chunks == 1 else f"the first {_chunk_rows(job)} rows"
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
        mmd=ours[0],
        mmd_below=ours[1],
        standard_mmd=theirs[0],
        standard_mmd_below=theirs[1],
        compared_with=compared_with,
        seconds={
            "reading": reading.seconds,
            "thinning": thinned - start - reading.seconds,
            "comparing": time.perf_counter() - thinned,
        },
        peak_megabytes=None,
        notes=[*source.notes, *notes],
    )


def _compared(
    job: Job, seen: _Seen, coreset: NDArray, bandwidth: float | list[float] | None
) -> tuple[tuple, tuple, str, list[str]]:
    """The MMD of the coreset and of standard thinning, as value and bound of which one is None.

    And what they are compared with, and notes. A comparison that fails is a note.
    """
    points, weights = seen.points, seen.weights
    if seen.only is not None and _affordable(seen.weighing, points.shape[1]):
        points, weights = (array[seen.only[1] > 0] for array in seen.only)
    share = len(points) / seen.weighing
    what = "all rows" if share == 1 else f"all rows, by {len(points)} drawn at random"
    notes = []
    distances: list[tuple[float | None, float | None]] = [(None, None), (None, None)]
    name = SHORT.get(job.kernel, job.kernel)
    try:
        if bandwidth is None and name not in WITHOUT_BANDWIDTH:
            raise ValueError("the median distance is 0; say --bandwidth NUMBER")
        kernel = as_kernel(name, bandwidth)
        even, even_weights = (seen.spaced, None) if seen.only is None else seen.only
        if seen.only is None and job.weights is not None:
            even = even[:0]
            notes.append("standard thinning of weighted rows is compared in a single chunk only")
        else:
            even = even[thin(even, job.size, method="standard", weights=even_weights)]
        for i, chosen in enumerate((coreset, even)):
            held = None if share == 1 else seen.only
            work = seen.weighing * max(SAMPLE, len(chosen)) * points.shape[1]
            if held is not None and work <= HELD and _affordable(len(chosen), points.shape[1]):
                distances[i] = _mmd_held(kernel, held, (points, weights), chosen)
            elif len(chosen):
                both = np.concatenate([points, chosen], dtype=np.float64)
                distances[i] = _mmd(as_problem(both, kernel), both, weights, share)
    except (TypeError, ValueError) as error:
        notes.append(f"MMD not known: {printable(error)}")
    return distances[0], distances[1], what, notes


def _affordable(rows: int, dimensions: int) -> bool:
    """Whether so many rows can all be compared with."""
    return rows <= SAMPLE or (rows <= EXACT and rows**2 * dimensions <= COST)


def _mmd(
    problem: Points, points: NDArray, weights: NDArray, share: float
) -> tuple[float | None, float | None]:
    """The MMD of the last points of a problem to the first ones, which have weights.

    share : of all rows, that the first points were drawn from at random

    Returns
    -------
    value, below : float or None
        The estimate, or where it is within its noise what the MMD is below.
    """
    m = len(weights)
    s = len(points) - m
    scaled = weights / weights.max()  # or their sum may leave the range
    every = _Sample(np.arange(m), scaled / scaled.sum(), share)
    rows = m + np.arange(s)
    if not _affordable(s, points.shape[1]):
        rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
    chosen = _Sample(rows, np.full(len(rows), 1 / len(rows)), len(rows) / s)
    (one, noise), (other, more) = _own(problem, every, chosen), _own(problem, chosen, every)
    between = every.weights @ embed(problem, every.rows, chosen.rows, chosen.weights)
    squared = one - 2 * between + other
    return _told(squared, float(np.hypot(noise, more)))


def _mmd_held(
    kernel: Kernel,
    held: tuple[NDArray, NDArray],
    sample: tuple[NDArray, NDArray],
    chosen: NDArray,
) -> tuple[float | None, float | None]:
    """The MMD of chosen points to those held, as `_mmd`, by a sample of them, all with weights.

    The product of two differences of means, of which only one has the noise of the sample.
    """
    points, weights = (array[held[1] > 0] for array in held)
    n, m, s = len(points), len(sample[0]), len(chosen)
    problem = as_problem(np.concatenate([points, sample[0], chosen], dtype=np.float64), kernel)
    drawn, rows = n + np.arange(m), n + m + np.arange(s)
    equal = np.full(s, 1 / s)
    share, part = (array / array.max() for array in (weights, sample[1]))
    share, part = share / share.sum(), part / part.sum()
    every = np.arange(n)
    witness = embed(problem, drawn, every, share) - embed(problem, drawn, rows, equal)
    of_chosen = embed(problem, rows, every, share).mean() - square(problem, rows[None], equal)[0]
    squared = part @ witness - of_chosen
    witness -= part @ witness
    return _told(float(squared), float(np.sqrt((1 - m / n) * (part**2 @ witness**2))))


def _told(squared: float, noise: float) -> tuple[float | None, float | None]:
    """The MMD from its square, or what it is below."""
    margin = NOISE * noise
    if not np.isfinite(squared + margin):
        raise ValueError("the kernel has values that are not finite")
    if margin and squared < margin:
        return None, float(np.sqrt(max(squared, 0) + margin))
    return float(np.sqrt(max(squared, 0))), None


def _own(problem: Points, sample: _Sample, other: _Sample) -> tuple[float, float]:
    """The mean of k(x, x') over all rows that a sample stands for, each with each and itself.

    And the standard deviation of the squared MMD to the other sample that is due to this one.
    """
    rows, weights, share = sample
    if share == 1:
        return float(square(problem, rows[None], weights)[0]), 0.0
    embedded = embed(problem, rows, rows, weights)
    mean = weights @ embedded
    # pairs of one row come more often in a sample than in all
    itself, of_itself = weights**2 @ diagonal(problem, rows), weights @ weights
    distinct = (mean - itself) / (1 - of_itself)
    mean -= (1 - share) * (itself - of_itself * distinct)
    witness = embedded - embed(problem, rows, other.rows, other.weights)
    witness -= weights @ witness
    return float(mean), 2 * float(np.sqrt((1 - share) * (weights**2 @ witness**2)))


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
                if not np.isfinite(deviation).all():
                    column = source.labels[int(np.argmin(np.isfinite(deviation)))]
                    raise ValueError(
                        f"{title(job.source)}: column {shown(column)} is too large for "
                        "--standardize; scale it first"
                    )
                reading.deviation = np.where(deviation > 0, deviation, 1)
            points = points / reading.deviation.astype(points.dtype)
        if reading.seen is None:
            reading.bandwidth = _bandwidth(job, points, seed)
        weights = np.ones(len(points)) if chunk.weights is None else chunk.weights
        if weights.min() < 0:
            raise ValueError(
                f"{title(job.source)}: --weights {shown(job.weights)} must not be negative; "
                f"it holds {weights.min()}"
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
        if job.method in BLIND:
            return None
        raise ValueError(
            f"{title(job.source)}: {error} (of the first {len(points)} rows); "
            "say --bandwidth NUMBER, or a larger --chunk-rows if others differ"
        ) from None


def _see(
    seen: _Seen | None,
    points: NDArray,
    weights: NDArray,
    size: int,
    generator: np.random.Generator,
) -> _Seen:
    """What is kept of the rows read, after one more chunk."""
    only = (points, weights) if seen is None else None
    if seen is None:
        none = np.empty(0)
        seen = _Seen(0, 0, 0, None, none, points[:0], weights[:0], 1, points[:0])
    rows = seen.rows + len(points)
    stride, spaced = seen.stride, seen.spaced
    while rows // stride > SPACED * size:
        stride, spaced = 2 * stride, spaced[1::2]
    first = -(seen.rows + 1) % stride
    # only the rows of the chunk that come before the SAMPLE-th key can be kept
    weighing = np.flatnonzero(weights)
    keys = generator.random(len(weighing))
    small = np.sort(np.argsort(keys, kind="stable")[:SAMPLE])
    keys = np.concatenate([seen.keys, keys[small]])
    kept = np.sort(np.argsort(keys, kind="stable")[:SAMPLE])
    return _Seen(
        rows=rows,
        chunks=seen.chunks + 1,
        weighing=seen.weighing + len(weighing),
        only=only,
        keys=keys[kept],
        points=np.concatenate([seen.points, points[weighing[small]]])[kept],
        weights=np.concatenate([seen.weights, weights[weighing[small]]])[kept],
        stride=stride,
        spaced=np.concatenate([spaced, points[first::stride]]),
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
    labels = [_brief(label).replace("$", r"\$") for label in labels[:d]]  # no formulas
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
                bins = _bins(every[:, i])
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


def _bins(values: NDArray) -> NDArray:
    """Edges of bins; of a single one where the values hardly differ."""
    try:
        return np.histogram_bin_edges(values, 20)
    except ValueError:
        pad = max(1.0, 1e-3 * float(np.abs(values).max()))
        return np.array([values.min() - pad, values.max() + pad])
