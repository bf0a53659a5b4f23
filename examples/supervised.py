"""Kernel regression on few rows: thinned with targets, thinned without, uniform, and on all rows.

python -m examples.supervised

Supervised kernel thinning (arXiv 2410.13749) for ridge regression and for Nadaraya-Watson. Each
way has the bandwidth and penalty of a grid that are best on rows for validation.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits, make_friedman1
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline

from examples.command import count
from thinformer import ThinnedKernelRidge, ThinnedNadarayaWatson, median_distance, thin

RIDGE_BANDWIDTHS = 0.25, 0.5, 1.0, 2.0  # times the median distance
MEANS_BANDWIDTHS = 0.03, 0.06, 0.12, 0.25, 0.5
PENALTIES = 1e-3, 1e-2, 1e-1, 1.0
HELD_OUT = 1000  # rows for validation, and as many for the test
TUNED = 2000  # uniform rows that settings of a fit to all rows are found with
LARGEST = 10_000  # rows that a fit to all rows takes at most


class Rows(NamedTuple):
    """Points and targets for the fit, for validation, and for the test.

    `truth` is the target without noise, where it is known.
    """

    X: np.ndarray
    y: np.ndarray
    validation: tuple[np.ndarray, np.ndarray]
    test: np.ndarray
    truth: np.ndarray


class Result(NamedTuple):
    """The error of one way on the test rows, and the seconds of its fit."""

    error: float
    seconds: float


def waves(d: int) -> Callable[[int, np.random.Generator], tuple[np.ndarray, ...]]:
    """A smooth function of uniform points in d dimensions, with half its deviation as noise."""

    def draw(n, rng):
        X = rng.uniform(size=(n, d))
        truth = np.sin(4 * np.pi * X[:, 0] / min(d, 2)) + (X[:, 1:] ** 2).sum(axis=1)
        return X, truth, truth + 0.5 * truth.std() * rng.normal(size=n)

    return draw


def friedman(n, rng):
    """Friedman's first function: five of ten columns count."""
    X, truth = make_friedman1(n, noise=0.0, random_state=int(rng.integers(2**31)))
    return X, truth, truth + 0.5 * truth.std() * rng.normal(size=n)


def digits(n, rng):
    """Handwritten digits: the ink in the lower half, from the 32 pixels of the upper half."""
    images = load_digits().data
    images = images[rng.permutation(len(images))[:n]]
    ink = images[:, 32:].sum(axis=1)
    return images[:, :32], ink, ink


DATA = {**{f"waves, d = {d}": waves(d) for d in (1, 2, 4, 8)}, "friedman": friedman,
        "digits": digits}  # fmt: skip


def drawn(data: str, n: int, seed: int) -> Rows:
    """Rows of a data set, n of them for the fit; of a smaller one two thirds of all."""
    X, truth, y = DATA[data](n + 2 * HELD_OUT, np.random.default_rng(seed))
    held_out = HELD_OUT if len(X) == n + 2 * HELD_OUT else len(X) // 6
    last, middle = len(X) - held_out, len(X) - 2 * held_out
    return Rows(X[:middle], y[:middle], (X[middle:last], y[middle:last]), X[last:], truth[last:])


def chosen(way: str, rows: Rows, size: int, bandwidth: float, seed: int, estimator) -> np.ndarray:
    """The rows that a way chooses."""
    if way == "uniform rows":
        return thin(rows.X, size, method="random", rng=seed)
    if way == "rows by x":
        return thin(rows.X, size, bandwidth=bandwidth, rng=seed)
    fitted = estimator(size, bandwidth=bandwidth, random_state=seed).fit(rows.X, rows.y)
    return fitted.coreset_indices_


WAYS = "uniform rows", "rows by x", "rows by x and y"


def ridge(X, y, bandwidth: float, penalty: float) -> Callable[[np.ndarray], np.ndarray]:
    """Kernel ridge regression of targets around their mean; returns its predictions."""
    mean = y.mean()
    model = KernelRidge(alpha=penalty, kernel="rbf", gamma=1 / (2 * bandwidth**2)).fit(X, y - mean)
    return lambda at: model.predict(at) + mean


def means(X, y, bandwidth: float, penalty: None) -> Callable[[np.ndarray], np.ndarray]:
    """Nadaraya-Watson; returns its predictions."""

    def predict(at):
        squares = cdist(at, X, "sqeuclidean")
        squares -= squares.min(axis=1, keepdims=True)  # no sum of weights is 0
        weights = np.exp(-squares / (2 * bandwidth**2))
        return weights @ y / weights.sum(axis=1)

    return lambda at: np.concatenate([predict(at[i : i + 250]) for i in range(0, len(at), 250)])


def nystroem(X, y, size: int, seed: int, bandwidth: float, penalty: float):
    """Ridge regression of all rows on the features of few; returns its predictions."""
    features = Nystroem(
        gamma=1 / (2 * bandwidth**2), n_components=size, random_state=seed, n_jobs=1
    )
    return make_pipeline(features, Ridge(penalty)).fit(X, y).predict


def off(predict, X, y) -> float:
    """Root mean square error of predictions, over the deviation of the targets."""
    return float(np.sqrt(np.mean((predict(X) - y) ** 2)) / y.std())


def best(rows: Rows, fits: Iterator[tuple[Callable, float]]) -> Result:
    """The fit with the smallest error in validation; a fit comes with the seconds spent before."""
    found = []
    for fit, before in fits:
        start = time.perf_counter()
        predict = fit()
        seconds = before + time.perf_counter() - start
        found.append((off(predict, *rows.validation), seconds, predict))
    _, seconds, predict = min(found, key=lambda each: each[0])
    return Result(off(predict, rows.test, rows.truth), seconds)


def of_few(way: str, rows: Rows, size: int, seed: int, regression) -> Result:
    """A regression on the rows that a way chooses."""
    by_ridge = regression is ridge
    estimator = ThinnedKernelRidge if by_ridge else ThinnedNadarayaWatson

    def fits():
        for bandwidth in bandwidths(rows, by_ridge):
            start = time.perf_counter()
            index = chosen(way, rows, size, bandwidth, seed, estimator)
            before = time.perf_counter() - start
            X, y = rows.X[index], rows.y[index]
            for penalty in PENALTIES if by_ridge else [None]:
                yield lambda X=X, y=y, h=bandwidth, p=penalty: regression(X, y, h, p), before

    return best(rows, fits())


def bandwidths(rows: Rows, by_ridge: bool) -> list[float]:
    """The grid of bandwidths."""
    factors = RIDGE_BANDWIDTHS if by_ridge else MEANS_BANDWIDTHS
    return [factor * median_distance(rows.X, rng=0) for factor in factors]


def of_all(rows: Rows, regression) -> Result:
    """A regression on all rows; the settings of ridge regression are those for fewer of them."""
    by_ridge = regression is ridge
    if not by_ridge:
        fits = ((lambda h=h: means(rows.X, rows.y, h, None), 0.0) for h in bandwidths(rows, False))
        return best(rows, fits)
    few = rows.X[:TUNED], rows.y[:TUNED]
    settings = list(itertools.product(bandwidths(rows, True), PENALTIES))
    errors = [off(ridge(*few, *setting), *rows.validation) for setting in settings]
    setting = settings[int(np.argmin(errors))]
    return best(rows, iter([(lambda: ridge(rows.X, rows.y, *setting), 0.0)]))


def by_nystroem(rows: Rows, size: int, seed: int) -> Result:
    """All rows on the features of few, uniform ones."""
    settings = itertools.product(bandwidths(rows, True), PENALTIES)
    fits = ((lambda s=s: nystroem(rows.X, rows.y, size, seed, *s), 0.0) for s in settings)
    return best(rows, fits)


def measure(data: str, n: int, size: int, seeds: int) -> dict[str, list[list[Result]]]:
    """Results by way, of ridge regression and of Nadaraya-Watson, for each seed."""
    results = {}
    for seed in range(seeds):
        rows = drawn(data, n, seed)
        for way in WAYS:
            both = [of_few(way, rows, size, seed, regression) for regression in (ridge, means)]
            results.setdefault(way, []).append(both)
        results.setdefault("Nystroem", []).append([by_nystroem(rows, size, seed)])
        if len(rows.X) <= LARGEST and seed == 0:  # it takes long
            results["all rows"] = [[of_all(rows, ridge), of_all(rows, means)]]
    return results


def table(data: str, n: int, size: int, results: dict[str, list[list[Result]]]) -> str:
    """Mean errors and times of each way."""
    lines = [
        f"{data}: {size} of {n:,} rows",
        f"{'':16}  {'ridge':>6}  {'seconds':>7}  {'Nadaraya-Watson':>15}  {'seconds':>7}",
    ]
    for way, each in results.items():
        averages = np.mean(each, axis=0)
        cells = f"  {averages[0, 0]:6.3f}  {averages[0, 1]:7.2f}"
        if len(averages) > 1:
            cells += f"  {averages[1, 0]:15.3f}  {averages[1, 1]:7.2f}"
        lines.append(f"{way:16}{cells}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.supervised",
        description="Kernel regression on few rows, chosen in several ways. Errors are root mean "
        "squares on test rows, without noise where it is known, over the deviation of the targets.",
    )
    parser.add_argument("--data", action="append", choices=list(DATA), help="one or more of these")
    parser.add_argument("--rows", type=count, default=10_000, help="for the fit")
    parser.add_argument("--size", type=count, default=200, help="rows that are chosen")
    parser.add_argument("--seeds", type=count, default=3)
    arguments = parser.parse_args(argv)
    for number, data in enumerate(arguments.data or DATA):
        results = measure(data, arguments.rows, arguments.size, arguments.seeds)
        n = len(drawn(data, arguments.rows, 0).X)
        print("\n" * (number > 0) + table(data, n, arguments.size, results), flush=True)


if __name__ == "__main__":
    main()
