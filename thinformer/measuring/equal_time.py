"""Errors of methods at the same time, from errors and times of each at several sizes.

The curve of a method is the error that it reaches within a time: its points that are nearer than
all faster ones of it, joined by straight lines in the logarithms. It is never extended. Where it
does not reach, its fastest or slowest point stands in, and the ratio is a bound. From the time of
exact attention on, the error to compare with is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from thinformer.measuring.quality import BEST, EXACT, Line

Point = tuple[float, float]  # seconds, error

BELOW, ABOVE, NONE = "<", ">", "exact"  # how a ratio is bounded


class Ratio(NamedTuple):
    """The error of a method at a size, divided by that of another method at the same time.

    ratio : None where the error to compare with is 0
    bound : "" where the curve of `other` reaches that time. BELOW: it has no point so fast, its
        fastest stands in, and the ratio is at most this. ABOVE: it has no point so slow, its
        slowest stands in, and the ratio is at least this. NONE: exact attention is as fast
    """

    input: str
    method: str
    kept: int
    other: str
    ratio: float | None
    bound: str


def ratios(lines: Sequence[Line]) -> list[Ratio]:
    """Compare each method of an input, at each size that leaves keys out, with each other one."""
    (exact,) = (line for line in lines if line.method == EXACT)
    points: dict[str, dict[int, Point]] = {}
    for line in lines:
        if line.seconds is not None and line.method not in (EXACT, BEST) and line.kept < line.keys:
            points.setdefault(line.method, {})[line.kept] = line.seconds, line.error
    assert exact.seconds is not None
    return [
        Ratio(
            exact.input, method, kept, other,
            *at_equal_time(point, list(points[other].values()), exact.seconds),
        )
        for method, of_sizes in points.items()
        for kept, point in of_sizes.items()
        for other in points
        if other != method
    ]  # fmt: skip


def curve(points: Sequence[Point], limit: float) -> list[Point]:
    """Return the points that are nearer than all faster ones, fastest first.

    Those that take `limit` seconds or longer are left out, but for the fastest.
    """
    found: list[Point] = []
    for seconds, error in sorted(points):
        if not found or (error < found[-1][1] and seconds < limit):
            found.append((seconds, error))
    return found


def at_equal_time(
    point: Point, other: Sequence[Point], exact_seconds: float
) -> tuple[float | None, str]:
    """Return the ratio of a point's error to another curve's at the same time, and its bound."""
    seconds, error = point
    # a method without error is exact attention, and may be faster
    limit = min([exact_seconds, *(time for time, without in other if without == 0)])
    approximate = [each for each in other if each[1] > 0]
    if seconds >= limit or not approximate:
        return None, NONE
    times, errors = np.log(curve(approximate, limit)).T
    at = np.exp(np.interp(np.log(seconds), times, errors))
    bound = BELOW if np.log(seconds) < times[0] else ABOVE if np.log(seconds) > times[-1] else ""
    return float(error / at), bound
