"""`ThinOptions`: how `thin` is to choose rows, and the `Task` that they make of points."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.kernels.catalogue import as_kernel
from thinformer.support import checks
from thinformer.support.progress import Tell
from thinformer.thinning.arguments import (
    Target,
    as_problem,
    check_definite,
    holds_scores,
    resolve,
    target_of,
    warn_if_reversed,
)
from thinformer.thinning.methods import (
    BLIND,
    METHODS,
    OF_MEAN_ZERO,
    SWAPPED,
    Method,
)
from thinformer.thinning.scales import LOOKED_AT, Standardize, standardized
from thinformer.thinning.task import Task


class ThinOptions(NamedTuple):
    """The arguments of `thin` that say how rows are chosen, with its names."""

    kernel: Any
    bandwidth: Any
    standardize: Standardize
    method: Method
    g: int
    delta: float
    refine: bool
    unique: bool
    weights: ArrayLike | None
    target: Target
    device: bodies.Device

    def checked(self, points: Any) -> ThinOptions:
        """Return the options with all checked that depends only on the memory of the points.

        `target` is what "auto" stands for, and `device` is "cpu" or "cuda".
        """
        checks.choice("method", self.method, METHODS)
        represents = target_of(self.target, self.kernel)
        device = bodies.choose(self.device, points=points)
        blind = self.target == "auto" and self.method in BLIND  # which has no target
        able = self.method in OF_MEAN_ZERO and (self.refine or self.method not in SWAPPED)
        if represents == "mean-zero" and not (able or blind):
            wanted = (
                f"target='mean-zero' takes method {' or '.join(map(repr, OF_MEAN_ZERO))}, and "
                f"refine=True; got refine={self.refine!r}, method={self.method!r}"
            )
            if self.target == "auto":
                wanted = (
                    "kernel stein has target='mean-zero' unless you say target='sample'. " + wanted
                )
            raise ValueError(wanted)
        if isinstance(self.kernel, str) and self.kernel != "precomputed":
            as_kernel(self.kernel)
        return self._replace(
            g=checks.integer("g", self.g, 0),
            delta=checks.failure_probability(self.delta),
            refine=checks.boolean("refine", self.refine),
            unique=checks.boolean("unique", self.unique),
            target=represents,
            device=device,
        )


def task_of(
    array: NDArray,
    size: int,
    options: ThinOptions,
    unit: Standardize,
    weights: NDArray | None,
    generator: np.random.Generator,
    tell: Tell,
) -> Task:
    """Return the task to choose `size` rows of points (n, d).

    Parameters
    ----------
    array : (n, d)
        Of the columns that count, see `samples`.
    options : ThinOptions
        As `ThinOptions.checked` returns it.
    unit : "auto", "scale", "whiten" or False
        As `for_columns` returns it.
    weights : (n,), optional
        With a sum of 1; None where they are equal.
    tell : function
        tell(stage, fraction) receives the progress, now and in the task.
    """
    array, kernel = standardized(array, unit, options.kernel)
    kernel = resolve(kernel, options.bandwidth, array, generator)
    check_definite(options.target, kernel)
    if options.device == "cuda" and isinstance(array, np.ndarray):
        array = np.ascontiguousarray(array)
    problem = as_problem(array, kernel, shift=True, tell=tell, device=options.device)
    if holds_scores(kernel):
        warn_if_reversed(*_looked_at(array, kernel.companion, weights))
    return Task(
        problem, array.shape[0], size, weights, options.delta, options.refine, options.unique,
        options.target, generator, tell,
    )  # fmt: skip


def _looked_at(
    array: NDArray, scores: NDArray, weights: NDArray | None
) -> tuple[NDArray, NDArray, NDArray | None]:
    """The points that a look at their scores takes: evenly spaced rows, if they are on a GPU."""
    if isinstance(array, np.ndarray):
        return array, scores, weights
    n = array.shape[0]
    rows = np.arange(0, n, -(-n // LOOKED_AT))
    share = None if weights is None or not weights[rows].any() else weights[rows]
    return bodies.rows_of(array, rows), scores[rows], share
