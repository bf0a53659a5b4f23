"""Thinning beside goodpoints, stein_thinning and coreax: error, time and memory at equal size.

Methods that get points are compared by their MMD, methods that get scores too by their kernel Stein
discrepancy (KSD), all under one kernel. Every method runs in a process of its own, which tells its
memory. The parent computes all errors, in float64.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.kernels import gaussian, stein
from thinformer.measuring.points import (
    CENTRES,
    by_goodpoints,
    mean_and_error,
    mixture,
    timed,
)
from thinformer.support.machine import hardware, status_of_memory, versions
from thinformer.thinning.comparison import compare
from thinformer.thinning.discrepancy import mmd
from thinformer.thinning.methods import Method
from thinformer.thinning.thin import thin

PACKAGES = ("goodpoints", "stein_thinning", "coreax")
BANDWIDTH = 2**0.5
G = 4
SWEEPS = 8  # of coreax's herding over the rows it chose; KT-SWAP makes as many at most
BLOCK = 1024  # coreax sums kernel values in blocks of BLOCK x BLOCK
WALKERS = 16
LARGEST = 8  # GiB of a matrix of all pairs; methods that need more are left out
LONGEST = 600  # seconds of one process
MANY = 4**7  # above so many points, FEW_SEEDS in place of SEEDS
SEEDS, FEW_SEEDS = 10, 2
NOTES = """\
MMD       points of the mixture; Gaussian kernel
KSD       16 Metropolis chains of the mixture, one after the other, each with its warm-up; Langevin
          Stein kernel of the inverse multiquadric, with the scores of the mixture
error     mean and standard error over seeds; the bandwidth of both kernels is the root of 2
seconds   median over seeds, without the first, whose call may compile
MiB       peak of the process during the calls, beyond what it had with the points in memory
sweeps    the first chooses the rows; each later one replaces every row in turn by the best
plain     without the regularisation that is coreax's default
coreax computes in float32, its default, and sums kernel values in blocks."""

Rows = Callable[[NDArray, NDArray, int, int], NDArray]  # (points, scores, size, seed) -> rows


@dataclass
class Line:
    """One method on n points.

    method : its package and its name; or its name, where every package has it
    errors : of each seed; none, where `note` says why
    seconds : median
    mebibytes : peak beyond the points; None where the system does not tell
    """

    measure: str
    n: int
    size: int
    method: str
    errors: list[float] = field(default_factory=list)
    seconds: float = 0.0
    mebibytes: float | None = None
    note: str = ""


def scores(points: Any, xp: Any = np) -> Any:
    """Return the gradient of the mixture's log density at points (..., 2), by NumPy or JAX."""
    away = xp.asarray(CENTRES, dtype=points.dtype) - points[..., None, :]
    log = -0.5 * (away**2).sum(-1)
    share = xp.exp(log - log.max(-1, keepdims=True))
    return (share[..., None] * away).sum(-2) / share.sum(-1, keepdims=True)


def chains(n: int, seed: int) -> NDArray:
    """Return n draws of 16 random-walk Metropolis chains of the mixture, one after the other.

    The chains start far apart, and their warm-up is left in.
    """
    rng = np.random.default_rng(seed)

    def log_density(at: NDArray) -> NDArray:
        return np.log(np.exp(-0.5 * ((at[:, None] - CENTRES) ** 2).sum(-1)).sum(-1) + 1e-300)

    at = 6 * rng.standard_normal((WALKERS, 2))
    here = log_density(at)
    drawn = []
    for _ in range(-(-n // WALKERS)):
        proposal = at + rng.standard_normal((WALKERS, 2))
        there = log_density(proposal)
        moves = np.log(rng.random(WALKERS)) < there - here
        at = np.where(moves[:, None], proposal, at)
        here = np.where(moves, there, here)
        drawn.append(at)
    return np.stack(drawn, axis=1).reshape(-1, 2)[:n]


def by_thinformer(method: Method) -> Rows:
    """`thin` by a method, of points."""
    return lambda points, scores, size, seed: thin(
        points, size, kernel=gaussian(BANDWIDTH), method=method, g=G, rng=seed
    )


def stein_by_thinformer(method: Method) -> Rows:
    """`thin` by a method, to represent the density of the scores."""
    return lambda points, scores, size, seed: thin(
        points, size, kernel=stein(scores, BANDWIDTH), method=method, g=G, rng=seed
    )


def goodpoints(method: str) -> Rows:
    """Compress++, or kernel thinning with a stored matrix."""
    return lambda points, scores, size, seed: by_goodpoints(
        points, size, method, G, BANDWIDTH, seed
    )()


def stein_thinning(points: NDArray, scores: NDArray, size: int, seed: int) -> NDArray:
    """Greedy choice; its preconditioner is a number, the square of the bandwidth."""
    from stein_thinning.thinning import thin

    return thin(points, scores, size, standardize=False, preconditioner=str(BANDWIDTH**2))


def herding(sweeps: int) -> Rows:
    """Kernel herding by coreax; sweeps after the first replace each row in turn by a better one."""

    def rows(points: NDArray, scores: NDArray, size: int, seed: int) -> NDArray:
        from coreax.kernels import SquaredExponentialKernel
        from coreax.solvers import KernelHerding

        kernel = SquaredExponentialKernel(BANDWIDTH)
        return _reduce(KernelHerding(size, kernel, block_size=BLOCK), points, sweeps)

    return rows


def cholesky(points: NDArray, scores: NDArray, size: int, seed: int) -> NDArray:
    """Randomly pivoted Cholesky by coreax."""
    import jax
    from coreax.kernels import SquaredExponentialKernel
    from coreax.solvers import RPCholesky

    kernel = SquaredExponentialKernel(BANDWIDTH)
    return _reduce(RPCholesky(size, jax.random.key(seed), kernel), points)


def stein_by_coreax(regularise: bool, sweeps: int = 1) -> Rows:
    """Greedy Stein thinning by coreax; regularised, as by default, it fits a density too."""

    def rows(points: NDArray, scores: NDArray, size: int, seed: int) -> NDArray:
        from coreax.kernels import PCIMQKernel, SteinKernel
        from coreax.solvers import SteinThinning

        kernel = SteinKernel(PCIMQKernel(BANDWIDTH / 2**0.5), _scores_by_jax)
        solver = SteinThinning(size, kernel, regularise=regularise, block_size=BLOCK)
        return _reduce(solver, points, sweeps)

    return rows


METHODS: dict[str, dict[str, Rows]] = {
    "MMD": {
        "thinformer, compress++": by_thinformer("compress++"),
        "thinformer, kernel-thinning": by_thinformer("kernel-thinning"),
        "goodpoints, compress++": goodpoints("compress++"),
        "goodpoints, kernel thinning": goodpoints("kernel-thinning"),
        "coreax, herding": herding(1),
        f"coreax, herding, {SWEEPS} sweeps": herding(SWEEPS),
        "coreax, RPCholesky": cholesky,
        "evenly spaced rows": by_thinformer("standard"),
        "random rows": by_thinformer("random"),
    },
    "KSD": {
        "thinformer, compress++": stein_by_thinformer("compress++"),
        "thinformer, kernel-thinning": stein_by_thinformer("kernel-thinning"),
        "stein_thinning": stein_thinning,
        "coreax, Stein thinning": stein_by_coreax(regularise=True),
        "coreax, Stein thinning, plain": stein_by_coreax(regularise=False),
        f"coreax, Stein thinning, plain, {SWEEPS} sweeps": stein_by_coreax(False, SWEEPS),
        "evenly spaced rows": by_thinformer("standard"),
        "random rows": by_thinformer("random"),
    },
}
SAMPLES = {"MMD": mixture, "KSD": chains}
# bytes of a number in the matrix of all pairs that a method keeps
MATRICES = {"goodpoints, kernel thinning": 8, "coreax, Stein thinning": 4}


def draw(measure: str, n: int, seed: int) -> tuple[NDArray, NDArray]:
    """Return the n points of a measure's sample, and their scores."""
    points = SAMPLES[measure](n, 1000 + seed)
    return points, scores(points)


def compared(
    measure: str,
    n: int,
    seeds: int,
    tell: Callable[[str, float | None], None] = lambda stage, fraction: None,
) -> list[Line]:
    """Thin n points to their root by each method of a measure, one after the other.

    tell(stage, fraction) receives the progress.
    """
    lines, chosen = [], {}
    for i, method in enumerate(METHODS[measure]):
        tell(f"{measure}, n = {n:,}: {method}", i / len(METHODS[measure]))
        line = Line(measure, n, int(n**0.5), method, note=why_not(method, n))
        lines.append(line)
        if line.note:
            continue
        done = in_child(measure, method, n, seeds)
        if isinstance(done, dict) and len(done["rows"][0]) != line.size:
            done = f"left out: {len(done['rows'][0])} rows in place of {line.size}"
        if isinstance(done, str):
            line.note = done
            continue
        chosen[method] = done["rows"]
        line.seconds, line.mebibytes = float(np.median(done["seconds"][1:])), done["mebibytes"]
    for seed in range(seeds):
        tell(f"{measure}, n = {n:,}: errors", seed / seeds)
        found = errors(measure, n, seed, {method: rows[seed] for method, rows in chosen.items()})
        for line in lines:
            if line.method in found:
                line.errors.append(found[line.method])
    return lines


def errors(measure: str, n: int, seed: int, rows: dict[str, list[int]]) -> dict[str, float]:
    """Return the error of each method's rows of one sample: its MMD to the points, or its KSD."""
    points, of_points = draw(measure, n, seed)
    coresets = {method: np.array(each) for method, each in rows.items()}
    if measure == "KSD":
        kernel = stein(of_points, BANDWIDTH)
        return {method: mmd(points, each, kernel=kernel) for method, each in coresets.items()}
    return {line.name: line.mmd for line in compare(points, coresets, kernel=gaussian(BANDWIDTH))}


def why_not(method: str, n: int) -> str:
    """Say why a method does not run on n points; nothing if it does."""
    package = method.partition(",")[0]
    if package in PACKAGES and importlib.util.find_spec(package) is None:
        return "not installed"
    gibibytes = MATRICES.get(method, 0) * n**2 / 2**30
    return f"left out: a matrix of {gibibytes:.0f} GiB" if gibibytes > LARGEST else ""


def in_child(measure: str, method: str, n: int, seeds: int) -> dict[str, Any] | str:
    """Return what `in_this_process` does in a process of its own; or say why it did not."""
    code = "import sys; from thinformer.measuring import peers; peers.print_result(*sys.argv[1:])"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, measure, method, str(n), str(seeds)],
            capture_output=True, text=True, timeout=LONGEST, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"left out: more than {LONGEST} s for {seeds} seeds"
    if done.returncode:
        said = done.stderr.strip().split("\n")[-1]
        return f"failed: {said or f'exit status {done.returncode}'}"
    return json.loads(done.stdout.strip().split("\n")[-1])


def print_result(measure: str, method: str, n: str, seeds: str) -> None:
    """Print, in the child, its result as one line of JSON."""
    print(json.dumps(in_this_process(measure, method, int(n), int(seeds))))


def in_this_process(measure: str, method: str, n: int, seeds: int) -> dict[str, Any]:
    """Return rows and seconds of a method for each seed, and the memory it took beyond the points.

    A call on few points comes first: it loads libraries and compiles what does not depend on n.
    """
    work = METHODS[measure][method]
    work(*draw(measure, 256, 0), 16, 0)
    samples = [draw(measure, n, seed) for seed in range(seeds)]
    before = status_of_memory("VmRSS")
    if before is not None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    rows, seconds = [], []
    for seed, (points, of_points) in enumerate(samples):
        found, taken = timed(lambda: work(points, of_points, int(n**0.5), seed))  # noqa: B023
        rows.append(found.tolist())
        seconds.append(taken)
    peak = status_of_memory("VmHWM")
    mebibytes = None if before is None or peak is None else peak - before
    return {"rows": rows, "seconds": seconds, "mebibytes": mebibytes}


def seeds_for(n: int) -> int:
    """Return how many seeds a comparison on n points has by default."""
    return FEW_SEEDS if n > MANY else SEEDS


def head(measure: str) -> list[str]:
    """Return the names of the columns."""
    return ["n", "rows", "method", measure, "seconds", "MiB"]


def cells(line: Line) -> list[str]:
    """Return the figures of a line as they are printed, in the order of `head`."""
    start = [f"{line.n:,}", f"{line.size}", line.method]
    if not line.errors:
        return [*start, line.note, "", ""]
    error, uncertainty = mean_and_error(line.errors)
    memory = "-" if line.mebibytes is None else f"{line.mebibytes:,.0f}"
    return [*start, f"{error:.5f} ± {uncertainty:.5f}", f"{line.seconds:.3g}", memory]


def format_cells(texts: list[str]) -> str:
    """Return a line for a terminal."""
    n, size, method, error, seconds, memory = texts
    return f"{n:>7}{size:>6}  {method:<41}{error:<20}{seconds:>9}{memory:>8}".rstrip()


def machine() -> dict[str, str]:
    """The machine, and the versions of packages that are installed."""
    found = hardware() | versions("thinformer", "numpy", "numba", "scipy")
    return found | versions(*(x for x in (*PACKAGES, "jax") if importlib.util.find_spec(x)))


def save(lines: list[Line], path: Path) -> None:
    """Write the figures and the machine as JSON, a list for each measure."""
    content: dict[str, Any] = {"machine": machine()}
    for measure in METHODS:
        content[measure] = [asdict(line) for line in lines if line.measure == measure]
    path.write_text(json.dumps(content, indent=1) + "\n")


def _scores_by_jax(point: Any) -> Any:
    from jax import numpy

    return scores(point, numpy)


@functools.cache
def _step() -> Callable[..., Any]:
    """Compile steps of coreax's solvers as a whole; kept, so that later calls do not compile."""
    import equinox

    return equinox.filter_jit(lambda step, solver, *given: getattr(solver, step)(*given))


def _reduce(solver: Any, points: NDArray, sweeps: int = 1) -> NDArray:
    """Return the rows that a solver of coreax chooses, and then refines."""
    from coreax import Data
    from jax import numpy

    coreset, state = _step()("reduce", solver, Data(numpy.asarray(points)))
    for _ in range(sweeps - 1):
        coreset, state = _step()("refine", solver, coreset, state)
    return np.asarray(coreset.unweighted_indices)
