"""`Task`: one call of `thin`, with its arguments checked."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.run import draw_numbers
from thinformer.halving.draws import Draws, seed_from
from thinformer.halving.problem import Points
from thinformer.halving.schedule import Schedule
from thinformer.support.progress import Tell, quiet


class Task(NamedTuple):
    """What `thin` is to do.

    problem : the points under their kernel, where they are computed with; see `bodies.place`
    n : the number of points; size : the number of rows to choose
    weights : (n,) float64 with a sum of 1; None where they are equal
    delta, refine, unique, target : the arguments of `thin`
    generator : the source of all draws
    tell : tell(stage, fraction) receives the progress
    """

    problem: Points | Any
    n: int
    size: int
    weights: NDArray | None
    delta: float
    refine: bool
    unique: bool
    target: str
    generator: np.random.Generator
    tell: Tell = quiet

    def draws(self, schedule: Schedule) -> Draws:
        """Draws for a schedule; their seed is the next number of the generator."""
        return draw_numbers(schedule, seed_from(self.generator))
