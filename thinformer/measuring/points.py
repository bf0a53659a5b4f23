"""How fast and how good thinning of point sets is, on this machine, beside goodpoints.

The candidates of a line run in one process on the same points, in turn. Times are medians over
seeds. Errors are exact MMDs: their mean over seeds, and its standard error.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from thinformer.kernels import gaussian
from thinformer.support.machine import hardware, versions
from thinformer.thinning.arguments import median_distance
from thinformer.thinning.discrepancy import mmd
from thinformer.thinning.methods import METHODS, Method
from thinformer.thinning.quadrature import fit_weights
from thinformer.thinning.thin import thin

QUADRATIC = ("kernel-thinning", "halving")
LARGEST_QUADRATIC = 4**7
ANGLES = np.arange(8) * (np.pi / 4)
CENTRES = 3 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=1)  # of the mixture
CHAINS = 2000  # draws of the eight-schools posterior that ArviZ ships


@dataclass
class Cost:
    """Times of one method that thins n points to sqrt(n).

    exponent : p where the time grows as n^p, fitted to the largest three sizes
    """

    method: str
    seconds: dict[int, float]
    exponent: float


@dataclass
class Quality:
    """One method on one sample, by this package and, if it is installed, by goodpoints.

    errors : for each package the MMD of each seed
    seconds : for each package the median time
    weighted : the MMD of this package's rows with the weights of `fit_weights`, of each seed
    """

    sample: str
    n: int
    size: int
    method: str
    errors: dict[str, list[float]]
    seconds: dict[str, float]
    weighted: list[float] = field(default_factory=list)


def costs(exponents: range) -> Iterator[Cost]:
    """Time every method at g = 4 on 4^p points of a mixture in two dimensions, for each p."""
    for method in METHODS:
        thin(mixture(1024, 0), 32, kernel=gaussian(2**0.5), method=method, rng=0)  # compiles
        seconds = {}
        for p in exponents:
            n = 4**p
            if method in QUADRATIC and n > LARGEST_QUADRATIC:
                break
            points = mixture(n, 0)
            seconds[n] = min(
                timed(lambda: thin(points, 2**p, kernel=gaussian(2**0.5), method=method, rng=0))[1]  # noqa: B023
                for _ in range(3)
            )
        last = list(seconds.items())[-3:]
        sizes, times = np.log(last).T
        slope = np.polyfit(sizes, times, 1)[0] if len(last) > 1 else np.nan
        yield Cost(method, seconds, float(slope))


def qualities(sizes: tuple[int, ...], seeds: int) -> Iterator[Quality]:
    """Thin samples of n points to sqrt(n), with Compress++ at g = 2 and 4 and kernel thinning."""
    methods: list[tuple[Method, int]]
    methods = [("compress++", 2), ("compress++", 4), ("kernel-thinning", 0)]
    for name, sample in samples().items():
        for n in sizes:
            if sample(n, 0) is None:
                continue
            for method, g in methods:
                yield _quality(name, sample, n, method, g, seeds)


def speed(n: int = 4**8, g: int = 4) -> Quality:
    """Time Compress++ once, on many points in two dimensions."""
    return _quality("mixture", mixture, n, "compress++", g, 1, errors=False)


def samples() -> dict[str, Callable[[int, int], NDArray | None]]:
    """Return the samples, by name: functions of (n, seed), None where there are fewer points."""
    found: dict[str, Callable[[int, int], NDArray | None]] = {"mixture": mixture}
    if importlib.util.find_spec("arviz_base") and importlib.util.find_spec("h5py"):
        found["eight schools"] = _drawn_from(_eight_schools_chains())
    found["eight schools*"] = lambda n, seed: (
        _standardised(eight_schools(n, seed)) if n > CHAINS else None
    )
    if importlib.util.find_spec("sklearn") and importlib.util.find_spec("PIL"):
        found["photograph"] = _drawn_from(_photograph())
    return found


def mixture(n: int, seed: int) -> NDArray:
    """Return points of eight Gaussians of unit variance, with means on a circle of radius 3."""
    rng = np.random.default_rng(seed)
    return CENTRES[rng.integers(8, size=n)] + rng.standard_normal((n, 2))


def format_cost(cost: Cost) -> str:
    """Return a line of times in milliseconds."""
    cells = "".join(f"{1e3 * seconds:>11.2f}" for seconds in cost.seconds.values())
    exponent = f"n^{cost.exponent:.2f}"
    return f"{cost.method:<16}{exponent:>8}{cells}"


def format_quality(quality: Quality) -> str:
    """Return a line of errors and times."""
    line = f"{quality.sample:<14}{quality.n:>6} ->{quality.size:>4}  {quality.method:<22}"
    for package, seconds in quality.seconds.items():
        errors = quality.errors.get(package)
        if errors:
            mean, error = mean_and_error(errors)
            line += f"  {mean:.5f} +- {error:.5f}"
        if package == "thinformer" and quality.weighted:
            mean, error = mean_and_error(quality.weighted)
            line += f"  {mean:.5f} +- {error:.5f} weighted"
        line += f"{1e3 * seconds:>10.1f} ms ({package})"
    return line


def readme_line(quality: Quality) -> str:
    """Return the line as a row of a Markdown table: both errors, and the ratio of the times."""
    (ours, theirs), times = quality.errors.values(), quality.seconds
    cells = [f"{mean:.4f} ± {error:.4f}" for mean, error in map(mean_and_error, (ours, theirs))]
    faster = times["goodpoints"] / times["thinformer"]
    return (
        f"| {quality.sample} | {quality.n:,} | {quality.method} | {cells[0]} | {cells[1]} | "
        f"{faster:.1f} |"
    )


def machine_with_goodpoints() -> dict[str, str]:
    """The machine, with the version of goodpoints if it is installed."""
    found = hardware() | versions("thinformer", "numpy", "numba", "scipy")
    return found | (versions("goodpoints") if importlib.util.find_spec("goodpoints") else {})


def save(found: list[Cost], measured: list[Quality], path: Path) -> None:
    """Write the figures and the machine as JSON."""
    content = {
        "machine": machine_with_goodpoints(),
        "costs": [asdict(cost) for cost in found],
        "qualities": [asdict(quality) for quality in measured],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _quality(
    name: str,
    sample: Callable[[int, int], NDArray | None],
    n: int,
    method: Method,
    g: int,
    seeds: int,
    errors: bool = True,
) -> Quality:
    """One line: every candidate on the same points, seed after seed."""
    size = int(n**0.5)
    label = f"{method}, g = {g}" if method == "compress++" else method
    result = Quality(name, n, size, label, {}, {})
    times: dict[str, list[float]] = {}
    for seed in range(seeds):
        points = sample(n, 1000 + seed)
        assert points is not None
        bandwidth = 2**0.5 if name == "mixture" else median_distance(points, seed)
        kernel = gaussian(bandwidth)
        candidates: dict[str, Callable[[], NDArray]] = {
            "thinformer": lambda: thin(points, size, kernel=kernel, method=method, g=g, rng=seed)  # noqa: B023
        }
        if importlib.util.find_spec("goodpoints"):
            candidates["goodpoints"] = by_goodpoints(points, size, method, g, bandwidth, seed)
        for package, work in candidates.items():
            if package == "thinformer" and seed == 0:
                work()  # compiles
            rows, seconds = timed(work)
            times.setdefault(package, []).append(seconds)
            if errors:
                result.errors.setdefault(package, []).append(mmd(points, rows, kernel=kernel))
            if errors and package == "thinformer":
                weights = fit_weights(points, rows, kernel=kernel)
                fitted = mmd(points, rows, kernel=kernel, coreset_weights=weights)
                result.weighted.append(fitted)
    result.seconds = {package: float(np.median(t)) for package, t in times.items()}
    return result


def by_goodpoints(
    points: NDArray, size: int, method: str, g: int, bandwidth: float, seed: int
) -> Callable[[], NDArray]:
    """The same by goodpoints: compiled Compress++, or kernel thinning with a stored matrix."""
    from goodpoints import compress, kt

    square = 2 * bandwidth**2
    if method == "compress++":
        return lambda: compress.compresspp_kt(
            points, b"gaussian", np.array([square]), g=g, seed=seed
        )

    def kernel(y: NDArray, x: NDArray) -> NDArray:
        return np.exp(-((y - x) ** 2).sum(axis=1) / square)

    halvings = (len(points) // size).bit_length() - 1
    return lambda: kt.thin(points, halvings, kernel, kernel, seed=seed, store_K=True)


def _standardised(rows: NDArray) -> NDArray:
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)


def _drawn_from(rows: NDArray) -> Callable[[int, int], NDArray | None]:
    """A function that draws standardised rows without replacement, in their order."""
    rows = _standardised(rows)

    def sample(n: int, seed: int) -> NDArray | None:
        if n > len(rows):
            return None
        chosen = np.random.default_rng(seed).choice(len(rows), n, replace=False)
        return rows[np.sort(chosen)]

    return sample


def _eight_schools_chains() -> NDArray:
    """2000 draws of the eight schools' posterior in ten dimensions, four chains, from ArviZ."""
    from arviz_base import load_arviz_data

    from thinformer.thinning.tables import as_points

    return as_points(load_arviz_data("centered_eight"))


def eight_schools(n: int, seed: int) -> NDArray:
    """Return independent draws (n, 10) of the same posterior, where the chains are too short.

    Given tau, the schools' effects and their mean mu are Gaussian; tau is drawn from a grid.
    mu ~ N(0, 5^2), tau ~ half-Cauchy(5), as in ArviZ's model.
    """
    rng = np.random.default_rng(seed)
    effect = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    variance = np.array([15.0, 10, 16, 11, 9, 11, 10, 18]) ** 2
    grid = np.linspace(0.01, 100, 10_000)

    def of_mu(tau: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Mean and precision of mu given tau, and the log density of tau."""
        weight = 1 / (variance + tau[:, None] ** 2)
        precision = weight.sum(axis=1) + 1 / 5**2
        mean = (weight * effect).sum(axis=1) / precision
        log = 0.5 * (np.log(weight).sum(axis=1) - (weight * effect**2).sum(axis=1))
        log += 0.5 * (precision * mean**2 - np.log(precision)) - np.log1p((tau / 5) ** 2)
        return mean, precision, log

    _, _, log = of_mu(grid)
    chance = np.exp(log - log.max())
    tau = rng.choice(grid, n, p=chance / chance.sum())
    mean, precision, _ = of_mu(tau)
    mu = mean + rng.standard_normal(n) / np.sqrt(precision)
    inverse = 1 / variance + 1 / tau[:, None] ** 2
    centre = (effect / variance + (mu / tau**2)[:, None]) / inverse
    theta = centre + rng.standard_normal((n, 8)) / np.sqrt(inverse)
    return np.column_stack([mu, theta, tau])


def _photograph() -> NDArray:
    """The colours of 273,280 pixels, which scikit-learn ships."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg").reshape(-1, 3).astype(np.float64)


def timed(work: Callable[[], NDArray]) -> tuple[NDArray, float]:
    """Return what the work returns, and its seconds."""
    start = time.perf_counter()
    rows = work()
    return rows, time.perf_counter() - start


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Return the mean and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / len(values) ** 0.5)
