"""Two-sample tests: how often each rejects, and how long it takes.

OPENBLAS_NUM_THREADS=1 python -m examples.two_sample

Compress Then Test (arXiv 2301.05974) and tests with random Fourier features come from goodpoints,
if it is installed. All tests read the same pairs of samples and take turns, on one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from examples.command import count
from thinformer import median_distance, set_num_threads, two_sample_test

FACTORS = np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2])  # of the median: our default's bandwidths
LONGEST = 8192  # points of a sample for which all kernel values are computed, but for --exact

Pair = tuple[np.ndarray, np.ndarray]
Test = Callable[[np.ndarray, np.ndarray, int], float]  # 1 where it rejects


def normal(d: int, apart: float) -> Callable[[int, np.random.Generator], Pair]:
    """Standard normals; y is moved by apart / sqrt(n) in its first column."""

    def draw(n, rng):
        x, y = rng.normal(size=(2, n, d))
        y[:, 0] += apart / np.sqrt(n)
        return x, y

    return draw


def blobs(ratio: float) -> Callable[[int, np.random.Generator], Pair]:
    """Nine normals on a grid; those of y have a covariance with this ratio of its eigenvalues."""

    def draw(n, rng):
        x, y = 10.0 * rng.integers(0, 3, size=(2, n, 2))
        correlation = (ratio - 1) / (ratio + 1)
        half = np.linalg.cholesky([[1, correlation], [correlation, 1]])
        return x + rng.normal(size=(n, 2)), y + rng.normal(size=(n, 2)) @ half.T

    return draw


POWER = {
    "normal, d = 2": (normal(2, 3.2), None),
    "normal, d = 10": (normal(10, 4.5), None),
    "blobs": (blobs(1.8), 1.0),  # the median distance would see nothing
}
LEVEL = {
    "normal, d = 2": lambda rng: rng.normal(size=(2, 100, 2)),
    "normal, d = 10, 40 and 250": lambda rng: (rng.normal(size=(n, 10)) for n in (40, 250)),
    "counts with ties, 80 and 81": lambda rng: (rng.poisson(1.5, size=(n, 2)) for n in (80, 81)),
    "Cauchy, 60 and 1,000": lambda rng: (rng.standard_cauchy(size=(n, 1)) for n in (60, 1000)),
    "blobs": lambda rng: (blobs(1.0)(120, rng)[0] for _ in range(2)),
}
LEVEL_WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    "landmarks": {"method": "landmarks"},
    "compress": {"method": "compress", "g": 0, "bins": 16},
}


def ours(**arguments: Any) -> Test:
    """Our test with these arguments."""

    def test(x, y, seed):
        return two_sample_test(x, y, standardize=False, rng=seed, **arguments).reject

    return test


def theirs(name: str, bandwidth: Any, **arguments: Any) -> Test:
    """A test of goodpoints, whose kernel is exp(-|x - y|^2 / lam^2)."""
    from goodpoints import ctt

    def test(x, y, seed):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it computes
            found = getattr(ctt, name)(
                x, y, lam=np.sqrt(2) * bandwidth, null_seed=seed, statistic_seed=seed, **arguments
            )
        return found.rejects

    return test


def ways(bandwidth: float, median: float, exact: bool) -> dict[str, Test]:
    """All tests by name."""
    made = {
        f"landmarks={size}": ours(bandwidth=bandwidth, method="landmarks", landmarks=size)
        for size in (64, 256)
    }
    for g in (1, 2):
        made[f"compress, g={g}"] = ours(bandwidth=bandwidth, method="compress", g=g)
    if exact:
        made["exact"] = ours(bandwidth=bandwidth, method="exact")
    made["default, 6 bandwidths"] = ours()
    if importlib.util.find_spec("goodpoints") is not None:
        for g in range(4):
            made[f"goodpoints, CTT g={g}"] = theirs("ctt", bandwidth, g=g)
        for size in (8, 32, 128):
            made[f"goodpoints, RFF {size}"] = theirs("rff", bandwidth, r=size)
        made["goodpoints, ACTT 6 g=2"] = theirs(
            "actt", median * FACTORS, g=2, weights=np.full(FACTORS.size, 1 / FACTORS.size)
        )
    return made


def power(n: int, pairs: int, exact: bool) -> Iterable[str]:
    """Lines of a table: the share of rejected pairs, and the median time of a test."""
    for name, (draw, given) in POWER.items():
        x, y = draw(n, np.random.default_rng(0))
        median = median_distance(np.concatenate([x, y]), rng=0)
        tests = ways(given or median, median, exact)
        for test in tests.values():
            test(x, y, 0)  # compiles
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in tests}
        for seed in range(1, pairs + 1):
            x, y = draw(n, np.random.default_rng(seed))
            for way, test in tests.items():
                start = time.perf_counter()
                reject = test(x, y, seed)
                found[way].append((reject, time.perf_counter() - start))
        yield f"{name}: {pairs} pairs of {n:,} and {n:,} points\n{'':24}  power  milliseconds"
        for way, results in found.items():
            rejected, seconds = zip(*results, strict=True)
            yield f"{way:24}  {np.mean(rejected):5.2f}  {1000 * np.median(seconds):12.1f}"
        yield ""


def level(pairs: int) -> Iterable[str]:
    """Lines of a table: the share of rejected pairs whose distributions are equal."""
    yield f"{'':28}" + "".join(f"  {way:>9}" for way in LEVEL_WAYS)
    for name, draw in LEVEL.items():
        shares = []
        for arguments in LEVEL_WAYS.values():
            rngs = map(np.random.default_rng, range(pairs))
            results = (
                two_sample_test(*draw(rng), permutations=199, rng=rng, **arguments) for rng in rngs
            )
            shares.append(sum(result.reject for result in results) / pairs)
        yield f"{name:28}" + "".join(f"  {share:9.4f}" for share in shares)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.two_sample",
        description="How often two-sample tests reject at level 0.05, and how long they take.",
    )
    parser.add_argument("--points", type=count, default=4096, help="of each sample")
    parser.add_argument("--pairs", type=count, default=100)
    parser.add_argument(
        "--exact", action="store_true",
        help=f"compute all kernel values also for more than {LONGEST} points",
    )  # fmt: skip
    parser.add_argument(
        "--level", action="store_true", help="only pairs of equal distributions, of few points"
    )
    arguments = parser.parse_args(argv)
    set_num_threads(1)
    if arguments.level:
        lines = level(arguments.pairs)
    else:
        lines = power(
            arguments.points, arguments.pairs, arguments.exact or arguments.points <= LONGEST
        )
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
