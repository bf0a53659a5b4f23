"""What ``thinformer thin`` does: read a file, thin its rows, write those chosen, and report."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.files import spread
from thinformer.files.comparison import Compared, compared
from thinformer.files.csv import DELIMITERS
from thinformer.files.job import Job, check, chunk_rows, name_of, rows_beside
from thinformer.files.messages import writing
from thinformer.files.output import replacing
from thinformer.files.packing import packing
from thinformer.files.reading import Reading, Rows, chunks_of, keep_only
from thinformer.files.report import Outcome, report
from thinformer.files.sampler import format_skipped
from thinformer.files.several import open_sources
from thinformer.files.source import STANDARD, Request, Source, title
from thinformer.kernels.catalogue import SHORT
from thinformer.plot import draw_coreset
from thinformer.plot import error_curve as draw_curve
from thinformer.support.machine import peak_resident_megabytes
from thinformer.support.names import few
from thinformer.support.progress import Tell
from thinformer.thinning import ess as effective
from thinformer.thinning.arguments import unequal_weights
from thinformer.thinning.sizes import error_curve
from thinformer.thinning.streaming import merge_and_reduce
from thinformer.thinning.thin import thin


def run(job: Job, tell: Tell) -> Outcome:
    """Carry the request out.

    Parameters
    ----------
    job : Job
    tell : callable
        tell(stage, fraction) receives what is done now, and how much of it, if known.

    Raises
    ------
    OSError, ValueError, TypeError, ImportError
        With one line that says what is wrong and where. No file was written.
    """
    start = time.perf_counter()
    kind = check(job)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # a warning that matters is raised as an error
        outputs = _outputs(job, kind, stack)
        with _about(job):
            source = stack.enter_context(open_sources(_requests(job, kind), kind))
        reading = Reading(seconds=time.perf_counter() - start)
        points, outcome = _thin(job, source, reading, tell)
        thinned = time.perf_counter()
        tell("writing", None)
        _write(job, source, reading, outputs, outcome)
        if "plot" in outputs:
            _draw(job, source, reading, points, outputs["plot"])
        if "curve" in outputs:
            tell("measuring the error by size", None)
            _draw_errors(job, source, reading, outcome, outputs["curve"], tell)
        end = time.perf_counter()
        outcome.seconds.update({"writing": end - thinned, "total": end - start})
        outcome = outcome._replace(peak_megabytes=peak_resident_megabytes())
        if "report" in outputs:
            text = json.dumps(report(job, outcome), indent=1, allow_nan=False) + "\n"
            with writing(str(job.report)):
                outputs["report"].write_text(text)
    return outcome


def _outputs(job: Job, kind: str, stack: contextlib.ExitStack) -> dict[str, Path]:
    """Files to write, by what they hold; each replaces its path when the stack closes."""
    paths = {"out": job.out, "plot": job.plot, "curve": job.curve, "report": job.report}
    if job.row_numbers and kind == ".npy":
        paths["rows"] = rows_beside(job.out)
    outputs = {}
    for name, path in paths.items():
        if path == Path(STANDARD):
            outputs[name] = path
        elif path is not None:
            outputs[name] = stack.enter_context(replacing(path))
    return outputs


def _requests(job: Job, kind: str) -> list[Request]:
    request = Request(
        path=job.source,
        columns=job.columns,
        weights=job.weights,
        rows=chunk_rows(job),
        numbered=job.row_numbers and kind != ".npy",
        delimiter=job.delimiter or DELIMITERS.get(kind, ","),
        comment=job.comment,
        packing=packing(job.out),
    )
    return [request._replace(path=path) for path in (job.source, *job.more)]


def _write(
    job: Job, source: Source, reading: Reading, outputs: dict[str, Path], outcome: Outcome
) -> None:
    """Write the chosen rows, and for .npy their numbers."""
    target = outputs["out"]
    with writing("standard output" if target == Path(STANDARD) else str(job.out)):
        source.write(target, reading.held, job.row_numbers)
    if "rows" in outputs:
        with writing(str(rows_beside(job.out))), outputs["rows"].open("wb") as stream:
            np.save(stream, np.array(outcome.row_numbers))


def _draw(job: Job, source: Source, reading: Reading, points: NDArray, target: Path) -> None:
    """Draw the rows and the coreset in the units of the file."""
    assert job.plot is not None
    assert reading.seen is not None
    scale = 1.0 if reading.deviation is None else reading.deviation
    every = reading.seen.points * scale
    with writing(str(job.plot), "drawn"):
        figure = draw_coreset(every, points * scale, source.labels)
        figure.savefig(target, dpi=150, format=job.plot.suffix.lower()[1:])


def _draw_errors(
    job: Job, source: Source, reading: Reading, outcome: Outcome, target: Path, tell: Tell
) -> None:
    """Draw the error of coresets by size."""
    assert job.curve is not None
    assert reading.seen is not None
    assert reading.seen.only is not None
    points, weights = reading.seen.only
    ess, _ = _effective_size(job, source, points, weights)
    settings = _settings(job, outcome.seed)
    curve = error_curve(points, ess=ess, weights=weights, progress=tell, **settings)
    with writing(str(job.curve), "drawn"):
        draw_curve(curve).savefig(target, dpi=150, format=job.curve.suffix.lower()[1:])


@contextlib.contextmanager
def _about(job: Job) -> Iterator[None]:
    """Put the name of the file before an error that does not begin with one or an option."""
    names = [name_of(job), *(title(path) for path in (job.source, *job.more))]
    try:
        yield
    except (TypeError, ValueError) as error:
        if str(error).startswith((*(f"{name}: " for name in names), "--")):
            raise
        raise ValueError(f"{names[0]}: {error}") from error


def _thin(
    job: Job,
    source: Source,
    reading: Reading,
    tell: Tell,
) -> tuple[NDArray, Outcome]:
    """Thin the rows of a source, compare, and return the chosen points."""
    start = time.perf_counter()
    seed = int(np.random.default_rng().integers(2**32)) if job.seed is None else job.seed
    _check_bandwidths(job, source)
    with _about(job):
        ess = None
        if job.scheduler is not None:
            requests, settings = _requests(job, ".parquet"), _settings(job, seed)
            rows, points = spread.choose(job, source, requests, settings, reading, tell)
        else:
            rows, points, ess = _choose(job, source, seed, reading, tell)
    thinned = time.perf_counter()
    tell("comparing with standard thinning", None)
    assert reading.seen is not None
    found = compared(job, reading.seen, points, reading.bandwidth, source.labels)
    seconds = {
        "reading": reading.seconds,
        "thinning": thinned - start - reading.seconds,
        "comparing": time.perf_counter() - thinned,
    }
    outcome = _outcome(job, source, reading, found, seed, rows.tolist(), seconds)
    if ess is not None:
        outcome = outcome._replace(ess=ess[0], ess_from=ess[1])
    return points, outcome


def _choose(
    job: Job, source: Source, seed: int, reading: Reading, tell: Tell
) -> tuple[NDArray[np.int64], NDArray, tuple[float, str] | None]:
    """Choose rows chunk by chunk; their points, and the effective size that gave their number."""
    chunks = chunks_of(job, source, seed, reading, tell)
    settings = _settings(job, seed)
    size, ess = job.size, None
    if size is None or job.curve is not None:
        only = _only_chunk(job, chunks)
        chunks = iter([only])
    if size is None:
        ess = _effective_size(job, source, *only)
        chosen = thin(only[0], "auto", ess=ess[0], weights=only[1], progress=tell, **settings)
        size = chosen.size
    coreset = merge_and_reduce(
        chunks,
        size,
        keep=lambda rows: keep_only(reading.held, rows),
        progress=tell,
        **settings,
    )
    return coreset.rows, coreset.points, ess


def _settings(job: Job, seed: int) -> dict[str, Any]:
    """The arguments of `thinformer.thin` that the job states."""
    return {
        "kernel": job.kernel,
        "bandwidth": job.bandwidth,
        "method": job.method,
        "g": job.g,
        "delta": job.delta,
        "rng": seed,
    }


def _only_chunk(job: Job, chunks: Iterator[Rows]) -> Rows:
    """The chunk that holds all rows."""
    first = next(chunks, None)
    if first is None:
        raise ValueError(f"{name_of(job)}: has no rows")
    if next(chunks, None) is not None:
        option, or_else = "--curve", ""
        if job.size is None:
            option, or_else = "--size auto", ", or --size NUMBER"
        raise ValueError(
            f"{option} takes rows of one chunk; {name_of(job)} has more than {chunk_rows(job)}: "
            f"say --chunk-rows NUMBER{or_else}"
        )
    return first


def _effective_size(
    job: Job, source: Source, points: NDArray, weights: NDArray
) -> tuple[float, str]:
    """The effective sample size of the rows, and where it is from."""
    if job.ess is not None:
        return job.ess, "given"
    shares = unequal_weights(weights, len(points))
    ess = effective.of_rows(points, shares, source.draws)
    return ess, "autocorrelation" if source.draws else "independent rows"


def _check_bandwidths(job: Job, source: Source) -> None:
    dimensions = len(source.labels)
    if isinstance(job.bandwidth, list) and len(job.bandwidth) != dimensions:
        raise ValueError(
            f"--bandwidth takes one number or {dimensions}, one for each of "
            f"{few(source.labels)}; got {len(job.bandwidth)}"
        )


def _outcome(
    job: Job,
    source: Source,
    reading: Reading,
    found: Compared,
    seed: int,
    rows: list[int],
    seconds: dict[str, float],
) -> Outcome:
    """What is known before the files are written."""
    seen = reading.seen
    assert seen is not None
    first = "all rows" if seen.chunks == 1 else f"the first {chunk_rows(job)} rows"
    scales = None
    if reading.deviation is not None:
        scales = dict(zip(source.labels, reading.deviation.tolist(), strict=True))
    distances = found._asdict()
    notes = [*source.notes, *format_skipped(source.skipped), *distances.pop("notes")]
    return Outcome(
        rows_in=seen.rows,
        rows_out=len(rows),
        ess=None,
        ess_from=None,
        chunks=seen.chunks,
        row_numbers=rows,
        columns=source.columns,
        unused=source.unused,
        left_out=dict(source.left_out),
        kernel=SHORT.get(job.kernel, job.kernel),
        bandwidth=reading.bandwidth,
        bandwidth_from=f"median distance of {first}" if job.bandwidth == "median" else "given",
        scales=scales,
        seed=seed,
        **distances,
        seconds=seconds,
        peak_megabytes=None,
        notes=notes,
    )
