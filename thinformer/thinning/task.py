"""`Task`: a point set under a kernel, and what `thin` is to do with it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.halving.draws import Draws, make_draws, seed_from
from thinformer.halving.problem import Points
from thinformer.halving.schedule import Schedule


class Task(NamedTuple):
    """What is to be thinned, to how many rows, and how; weights are None where they are equal."""

    problem: Points
    n: int
    size: int
    weights: NDArray | None
    delta: float
    refine: bool
    unique: bool
    target: str
    generator: np.random.Generator
    device: str = "cpu"

    def draws(self, schedule: Schedule) -> Draws:
        """Draws of a schedule, from the next number of the generator."""
        return make_draws(schedule, seed_from(self.generator))
