"""How large a coreset must be: errors by size, and the smallest size that is near enough.

The unit of an error is a number of independent draws. m independent draws of a distribution P have
the expected squared MMD (E k(x, x) - |mu|^2) / m to it, where mu is the mean embedding of P. So a
coreset with the squared MMD e is worth (E k(x, x) - |mu|^2) / e independent draws.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.halving.draws import seed_from
from thinformer.halving.problem import Points
from thinformer.support import checks
from thinformer.support.progress import Progress, Tell, begin, labelled, showing
from thinformer.thinning import ess as effective
from thinformer.thinning.arguments import Target, as_weights, unequal_weights
from thinformer.thinning.methods import Method, choose_rows, kh_compress_rows
from thinformer.thinning.options import ThinOptions, task_of
from thinformer.thinning.scales import Standardize, samples
from thinformer.thinning.tables import are_draws
from thinformer.thinning.task import Task

COMPARED = 2**16  # rows that a coreset is compared with, at most
NEAR = 1.05  # the smallest size is found to this factor


class ErrorCurve(NamedTuple):
    """Errors of coresets by size; it prints as a table.

    Attributes
    ----------
    sizes : (k,) int64 array
        Increasing numbers of rows.
    mmd : (k,) float64 array
        The MMD of each coreset to the points; its KSD to the density, with a `stein` kernel.
    draws : (k,) float64 array
        How many independent draws have this MMD, in expectation.
    ess : float
        The effective sample size of the points. A coreset that is worth as many draws adds no more
        error than the points have themselves.
    measure : str
        What `mmd` is: "MMD" or "KSD".
    """

    sizes: NDArray[np.int64]
    mmd: NDArray[np.float64]
    draws: NDArray[np.float64]
    ess: float
    measure: str = "MMD"

    def __str__(self) -> str:
        lines = [f"{'size':>7} {self.measure:>9} {'worth independent draws':>24}"]
        lines += [
            f"{size:>7} {mmd:>9.5f} {_rounded(draws):>24}"
            for size, mmd, draws in zip(self.sizes, self.mmd, self.draws, strict=True)
        ]
        return "\n".join([*lines, f"The points are worth {_rounded(self.ess)} (ESS)."])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))


def error_curve(
    points: Any,
    sizes: Sequence[int] | None = None,
    *,
    ess: float | None = None,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Standardize = "auto",
    method: Method = "compress++",
    g: int = 4,
    delta: float = 0.5,
    refine: bool = True,
    unique: bool = True,
    weights: ArrayLike | None = None,
    target: Target = "auto",
    rng: int | np.random.Generator | None = 0,
    device: bodies.Device = "auto",
    progress: Progress = None,
) -> ErrorCurve:
    """Thin points to several sizes, and return the error of each coreset.

    Parameters
    ----------
    points : (n, d) array, frame, posterior or dict of draws
        See `thin`.
    sizes : increasing integers from 1 to n, optional
        By default 1, 2, 4, ..., up to the first that is worth `ess` independent draws.
    ess : float, optional
        The effective sample size of the points; by default as in `thin`.
    kernel, bandwidth, standardize, method, g, delta, refine, unique, weights, target, rng, device
        See `thin`. Each coreset has the rows of ``thin(points, size, ..., rng=rng)`` with the same
        seed.
    progress
        See `thin`. The stages are those of `thin(points, "auto")`.

    Returns
    -------
    ErrorCurve
        `thinformer.plot.error_curve` draws it.

    Raises
    ------
    TypeError, ValueError
        As in `thin`; or `sizes` are not increasing integers from 1 to n.

    Notes
    -----
    The time is that of the calls of `thin`, and O(n^2 d) for the errors. Where there are more than
    65,536 points, their KH-Compress coreset of 32,768 to 65,536 rows stands for them.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import error_curve
    >>> x = np.random.default_rng(0).normal(size=(1000, 2))
    >>> curve = error_curve(x, [10, 100])
    >>> bool(curve.mmd[1] < curve.mmd[0]), curve.ess
    (True, 1000.0)
    """
    shown = showing(progress)
    options = ThinOptions(
        kernel, bandwidth, standardize, method, g, delta, refine, unique, weights, target, device
    ).checked(points)
    with shown as tell, bodies.reading(points):
        task, worth = prepared(points, options, ess, rng, tell)
        if sizes is not None:
            sizes = _increasing(sizes, task.n)
        measure = yardstick(task)
        found = []
        for size in _doubling(task.n) if sizes is None else sizes:
            squared = measure.squared_error(sized(task, size, options))
            found.append((size, squared))
            if sizes is None and measure.draws(squared) >= worth:
                break
    numbers, squares = (np.array(column) for column in zip(*found, strict=True))
    draws = np.array([measure.draws(squared) for squared in squares])
    name = "KSD" if task.target == "mean-zero" else "MMD"
    return ErrorCurve(numbers, np.sqrt(squares), draws, worth, name)


def prepared(
    points: Any,
    options: ThinOptions,
    ess: float | None,
    rng: int | np.random.Generator | None,
    tell: Tell,
) -> tuple[Task, float]:
    """Return the task to thin points, of any size, and the ESS of the points.

    `options` are as `ThinOptions.checked` returns them.
    """
    unit, (table,) = samples(
        {"points": points}, options.standardize, options.kernel, options.bandwidth, there=True
    )
    array = table.values
    if ess is not None:
        ess = checks.positive("ess", ess)
    n = array.shape[0]
    weights = unequal_weights(options.weights, n)
    generator = np.random.default_rng(seed_from(rng))
    task = task_of(array, n, options, unit, weights, generator, tell)
    if ess is None:
        ess = effective.of_rows(array, weights, are_draws(points))
    return task, ess


def smallest(task: Task, options: ThinOptions, draws: float) -> NDArray[np.int64]:
    """Return the rows of the smallest coreset that is worth so many independent draws.

    The size doubles until the coreset is; then the interval between the last two sizes is halved,
    in logarithms, until its ends differ by 5 %.
    """
    measure = yardstick(task)
    low = 0
    for high in _doubling(task.n):
        rows = sized(task, high, options)
        worth = measure.draws(measure.squared_error(rows))
        if worth >= draws:
            break
        low = high
    else:
        raise ValueError(
            f"size='auto': no coreset is worth {_rounded(draws)} independent draws; all "
            f"{task.n} points are worth {_rounded(worth)}. Give a smaller ess, or a size"
        )
    while high > max(low + 1, NEAR * low):
        middle = min(max(round(math.sqrt(low * high)), low + 1), high - 1)
        found = sized(task, middle, options)
        if measure.draws(measure.squared_error(found)) >= draws:
            high, rows = middle, found
        else:
            low = middle
    return rows


def sized(task: Task, size: int, options: ThinOptions) -> NDArray[np.int64]:
    """Return the rows of the coreset of one size; the task's generator stays as it is."""
    generator = copy.deepcopy(task.generator)
    tell = labelled(task.tell, f"{size} rows")
    part = task._replace(size=size, generator=generator, tell=tell)
    return choose_rows(part, options.method, options.g)


class Yardstick(NamedTuple):
    """What a coreset is compared with.

    problem : the points under their kernel
    rows, weights : (m,) rows that stand for the points, and their weights, of sum 1; no rows where
        the mean embedding to compare with is zero
    squared : |mu|^2, the squared norm of their mean embedding
    unit : the mean of k(x, x), less |mu|^2: the expected squared MMD of one independent draw
    """

    problem: Points | Any
    rows: NDArray
    weights: NDArray
    squared: float
    unit: float

    def squared_error(self, rows: NDArray) -> float:
        """The squared MMD of equally weighted rows (s,)."""
        own = bodies.square(self.problem, rows[None], np.full(rows.size, 1 / rows.size))[0]
        between = bodies.embed(self.problem, rows, self.rows, self.weights).mean()
        return max(0.0, float(self.squared - 2 * between + own))

    def draws(self, squared: float) -> float:
        """How many independent draws have a squared MMD, in expectation."""
        return self.unit / squared if squared > 0 else math.inf


def yardstick(task: Task) -> Yardstick:
    """Return what coresets of the task's points are compared with."""
    rows, weights = np.arange(task.n), as_weights(task.weights, task.n)
    if task.target == "mean-zero":
        unit = float(weights @ bodies.diagonal(task.problem, rows))
        return Yardstick(task.problem, rows[:0], weights[:0], 0.0, unit)
    tell = labelled(task.tell, "all points")
    halvings = max(0, math.ceil(math.log2(task.n / COMPARED)))
    if halvings:
        generator = copy.deepcopy(task.generator)
        part = task._replace(size=task.n >> halvings, generator=generator, tell=tell)
        rows = kh_compress_rows(part)
        weights = np.full(rows.size, 1 / rows.size)
    mean_diagonal = float(weights @ bodies.diagonal(task.problem, rows))
    squared = float(bodies.square(task.problem, rows[None], weights, begin(tell, "MMD"))[0])
    return Yardstick(task.problem, rows, weights, squared, mean_diagonal - squared)


def _doubling(n: int) -> list[int]:
    """1, 2, 4, ..., and n."""
    return [2**i for i in range((n - 1).bit_length())] + [n]


def _increasing(sizes: Sequence[int], n: int) -> list[int]:
    numbers = [checks.integer("sizes", size, 1) for size in sizes]
    if not numbers or numbers != sorted(set(numbers)) or numbers[-1] > n:
        raise ValueError(f"sizes must be increasing integers from 1 to {n}; got {list(sizes)}")
    return numbers


def _rounded(draws: float) -> str:
    """Three digits of a number of draws, without an exponent."""
    digits = f"{draws:.3g}"
    return f"{float(digits):,.0f}" if 100 <= draws < math.inf else digits
