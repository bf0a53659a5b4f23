"""What ``thinformer test`` does: read two samples, test whether they differ, draw, and report."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from thinformer.files.columns import format_left_out
from thinformer.files.csv import DELIMITERS
from thinformer.files.job import check_bandwidth, check_text
from thinformer.files.messages import writing
from thinformer.files.output import replacing, resolved
from thinformer.files.report import versions
from thinformer.files.samples import Sample, kind_of, read_samples
from thinformer.kernels.catalogue import SHORT, WITHOUT_BANDWIDTH, as_kernel
from thinformer.plot import draw_witness
from thinformer.support import checks
from thinformer.support.names import few, printable
from thinformer.support.progress import Tell
from thinformer.thinning import ess as effective
from thinformer.thinning.bins import LARGEST
from thinformer.thinning.scales import deviations, unit_is_free
from thinformer.thinning.two_sample import (
    METHODS,
    TestMethod,
    two_sample_test,
)
from thinformer.thinning.two_sample_result import KernelResult, TwoSampleResult
from thinformer.thinning.witness import witness

BOUND = 1 / 2  # of the rows; estimates for independent draws hardly fall below it
APART = 2  # a step between draws, in rows / ESS, by which the level of the test holds


class TwoSampleJob(NamedTuple):
    """The request, as the options of the command state it.

    sources : the files of the two samples
    columns : names of those that are compared; None for the default
    weights : name of the column of weights, or None
    bandwidth : "auto", "median", a number, or a number for each dimension
    standardize : whether columns are divided by their robust standard deviations
    seed : None for a fresh seed
    delimiter, comment : of CSV; None for the default
    """

    sources: tuple[Path, Path]
    columns: list[str] | None
    weights: str | None
    kernels: list[str]
    bandwidth: str | float | list[float]
    standardize: bool
    method: TestMethod
    bins: int
    permutations: int
    level: float
    seed: int | None
    plot: Path | None
    report: Path | None
    delimiter: str | None
    comment: str | None


class Tested(NamedTuple):
    """What was done.

    result : of the test
    samples : both, without the columns that do not count
    scales : divisors of the columns, or None where they are not standardised
    warned : warnings of the test, by the names of the files
    ess : effective sample sizes of samples that are draws of a sampler; None for others
    drawn : kernel whose witness function is drawn, or None
    seed : the seed that reproduces the run
    seconds : in total
    """

    result: TwoSampleResult
    samples: tuple[Sample, Sample]
    scales: dict[str, float] | None
    warned: list[str]
    ess: list[float | None]
    drawn: KernelResult | None
    seed: int
    seconds: float


def run(job: TwoSampleJob, tell: Tell) -> Tested:
    """Carry the request out.

    Raises
    ------
    OSError, ValueError, TypeError, ImportError
        With one line that says what is wrong and where. No file was written.
    """
    start = time.perf_counter()
    _check(job)
    seed = int(np.random.default_rng().integers(2**32)) if job.seed is None else job.seed
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # a warning that matters is raised as an error
        paths = {"plot": job.plot, "report": job.report}
        outputs = {
            name: stack.enter_context(replacing(path)) for name, path in paths.items() if path
        }
        samples = read_samples(
            job.sources, job.columns, job.weights, job.delimiter, job.comment, tell
        )
        _check_bandwidths(job, samples[0].labels)
        first, second = samples
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always", UserWarning)
            result = two_sample_test(
                first.points, second.points, kernel=job.kernels, bandwidth=job.bandwidth,
                standardize="scale" if job.standardize else False, x_weights=first.weights,
                y_weights=second.weights, method=job.method, bins=job.bins,
                permutations=job.permutations, level=job.level, rng=seed, progress=tell,
            )  # fmt: skip
        warned = [_of_files(str(each.message), samples) for each in said]
        scales = None
        if job.standardize:
            divisors = deviations(np.concatenate([each.points for each in samples]))
            scales = dict(zip(first.labels, divisors.tolist(), strict=True))
        ess = [effective.of_draws(each.points) if each.draws else None for each in samples]
        drawn = None
        if "plot" in outputs:
            tell("drawing", None)
            drawn = _draw(job, samples, result, seed, outputs["plot"])
        tested = Tested(
            result, samples, scales, warned, ess, drawn, seed, time.perf_counter() - start
        )
        if "report" in outputs:
            text = json.dumps(report(job, tested), indent=1, allow_nan=False) + "\n"
            with writing(str(job.report)):
                outputs["report"].write_text(text)
    return tested


def _of_files(message: str, samples: tuple[Sample, Sample]) -> str:
    """A message about arguments as one about files."""
    for name, each in zip(("x_weights", "y_weights"), samples, strict=True):
        message = message.replace(name, f"the weights in {printable(each.path)}")
    return message


def _check(job: TwoSampleJob) -> None:
    """Raise, before the work, for what cannot be done."""
    kinds = [kind_of(path, option) for option, path in zip("AB", job.sources, strict=True)]
    for option, value in (("--delimiter", job.delimiter), ("--comment", job.comment)):
        if value is not None and not set(kinds) & set(DELIMITERS):
            raise ValueError(f"{option} is of CSV; A is {job.sources[0]}, B is {job.sources[1]}")
    check_text(job.columns, job.delimiter, job.comment)
    places = {resolved(path): option for option, path in zip("AB", job.sources, strict=True)}
    for option, path in (("--plot", job.plot), ("--report", job.report)):
        if path is None:
            continue
        target = resolved(path)
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{option} {path}: there is no folder {target.parent}")
        if target in places:
            raise ValueError(f"{option} {path} is the file of {places[target]} too")
        places[target] = option
    checks.choice("--method", job.method, METHODS)
    if checks.integer("--bins", job.bins, 4) > LARGEST:
        raise ValueError(f"--bins must be at most {LARGEST}; got {job.bins}")
    checks.integer("--permutations", job.permutations, 1)
    if not 0 < checks.finite_number("--level", job.level) < 1:
        raise ValueError(f"--level must be between 0 and 1; got {job.level}")
    if job.seed is not None:
        checks.integer("--seed", job.seed, 0)
    for kernel in job.kernels:
        try:
            as_kernel(kernel)
        except ValueError as error:
            raise ValueError(f"--{error}".replace("a Kernel or ", "")) from None
        check_bandwidth(kernel, job.bandwidth)


def _check_bandwidths(job: TwoSampleJob, labels: list[str]) -> None:
    if isinstance(job.bandwidth, list) and len(job.bandwidth) != len(labels):
        raise ValueError(
            f"--bandwidth takes one number or {len(labels)}, one for each of {few(labels)}; "
            f"got {len(job.bandwidth)}"
        )


def most_different(result: TwoSampleResult) -> KernelResult:
    """Return the kernel of the largest statistic."""
    return max(result.kernels, key=lambda each: each.statistic)


def _draw(
    job: TwoSampleJob,
    samples: tuple[Sample, Sample],
    result: TwoSampleResult,
    seed: int,
    target: Path,
) -> KernelResult:
    """Draw the witness function in the units of the files, and return its kernel."""
    assert job.plot is not None
    best = most_different(result)
    bandwidth: Any = best.bandwidth
    if bandwidth is None:
        given = job.bandwidth not in ("auto", "median") and best.name not in WITHOUT_BANDWIDTH
        bandwidth = job.bandwidth if given else "median"
    first, second = samples
    found = witness(
        first.points, second.points, best.name, bandwidth, "scale" if job.standardize else False,
        first.weights, second.weights, seed,
    )  # fmt: skip
    names = [path.name for path in job.sources]
    if names[0] == names[1]:
        names = [f"{letter}, {name}" for letter, name in zip("AB", names, strict=True)]
    with writing(str(job.plot), "drawn"):
        figure = draw_witness(found._replace(labels=first.labels), names)
        figure.savefig(target, dpi=150, format=job.plot.suffix.lower()[1:])
    return best


def format_tested(job: TwoSampleJob, tested: Tested) -> str:
    """Return the lines that say what was found."""
    samples = tested.samples
    left_out = samples[0].left_out | samples[1].left_out
    unused = dict.fromkeys(name for each in samples for name in each.unused if name not in left_out)
    used = f"columns {few(samples[0].labels)}"
    if unused:
        used += f" (not used: {few(list(unused))})"
    unit = "each divided by its robust standard deviation"
    lines = [str(tested.result), f"{used}, {unit if tested.scales else 'in their own units'}"]
    if left_out:
        lines.append(format_left_out(left_out))
    for each, ess in zip(samples, tested.ess, strict=True):
        name = printable(each.path)
        if job.weights is not None and each.weights is None:
            lines.append(f"{name}: no column {printable(job.weights)}, so rows of equal weight")
        if ess is not None:
            draws = f"{len(each.points)} draws of a sampler"
            lines.append(f"{name}: {draws}, effective sample size {ess:.0f}")
    lines += [printable(note) for each in samples for note in each.notes]
    if tested.drawn is not None:
        length = tested.drawn.bandwidth
        kernel = tested.drawn.name + ("" if length is None else f", bandwidth {length:.4g}")
        lines.append(f"witness function of {kernel}: {printable(job.plot)}")
    return "\n".join([*lines, f"seed {tested.seed}", f"time {tested.seconds:.1f} s"])


def format_warnings(tested: Tested) -> list[str]:
    """Return warnings of the test, and one about draws that are not independent."""
    parts = []
    for each, ess in zip(tested.samples, tested.ess, strict=True):
        rows = len(each.points)
        if ess is not None and ess < BOUND * rows:
            step = int(np.ceil(APART * rows / ess))
            parts.append(
                f"{printable(each.path)} has {rows} draws and an effective sample size of "
                f"{ess:.0f}: take one draw in {step}, as by `thinformer thin --method standard "
                f"--size {max(2, rows // step)}`"
            )
    if not parts:
        return tested.warned
    dependent = "draws of a Markov chain are not independent, and the test rejects too often. "
    return [*tested.warned, dependent + "; ".join(parts)]


def report(job: TwoSampleJob, tested: Tested) -> dict[str, Any]:
    """Return the report: the settings, what was found, and the versions of the libraries."""
    result, samples = tested.result, tested.samples
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in job._asdict().items()
    } | {"sources": [str(path) for path in job.sources]}
    return {
        "settings": settings,
        **result._asdict(),
        "reject": result.reject,
        "kernels": [each._asdict() for each in result.kernels],
        "columns": samples[0].labels,
        "left_out": samples[0].left_out | samples[1].left_out,
        "rows": [len(each.points) for each in samples],
        "weighted": [each.weights is not None for each in samples],
        "warnings": tested.warned,
        "ess": tested.ess,
        "scales": tested.scales,
        "drawn": None if tested.drawn is None else tested.drawn._asdict(),
        "seed": tested.seed,
        "seconds": tested.seconds,
        "notes": [note for each in samples for note in each.notes],
        "versions": versions(),
    }


def standardized_by_default(kernels: list[str], bandwidth: Any) -> bool:
    """Whether columns are standardised where nothing is said: where nothing has their units."""
    return all(unit_is_free(SHORT.get(kernel, kernel), bandwidth) for kernel in kernels)
