"""The random numbers of a schedule.

Every number is a pure function of (seed, head, round, position), of a counter-based generator. So
the number of threads, the device and the batch change nothing: a sequence gets the same coreset
alone, padded, or as the last of a hundred. Problems that are stacked in one call share their draws;
another call with another seed has independent ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.halving.schedule import Schedule
from thinformer.support import checks

# SplitMix64 (Steele, Lea & Flood, 2014): the increment is 2^64 over the golden ratio
GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


class Draws(NamedTuple):
    """The draws of one schedule, for one problem or a stack of them.

    Leading axes of each array broadcast to the stack of problems: (heads,) for draws made from a
    seed, (B, H) where every problem has its own.

    Attributes
    ----------
    uniforms : tuple of (..., pairs) float arrays
        One a round, in [-1, 1).
    coins : tuple of (..., buckets) bool arrays
        One a round; True keeps the other half.
    strata : (..., length + 1) float array in [0, 1), or None
        The start and then the place inside every stratum of the pre-thinning.
    """

    uniforms: tuple[NDArray, ...]
    coins: tuple[NDArray, ...]
    strata: NDArray | None = None


def make_draws(schedule: Schedule, seed: int, heads: int | None = None) -> Draws:
    """Draw all random numbers of a schedule from a seed.

    Parameters
    ----------
    schedule : Schedule
    seed : int
        In [0, 2^64).
    heads : int, optional
        The arrays get a leading axis of that many heads, each with draws of its own. By default
        they have no such axis, and are the draws of head 0.

    Returns
    -------
    Draws

    Raises
    ------
    ValueError
        The seed is out of its range, or `heads` is not a positive integer.
    """
    seed = checks.integer("seed", seed, 0)
    if seed >= 2**64:
        raise ValueError(f"seed must be below 2^64; got {seed}")
    if heads is not None:
        heads = checks.integer("heads", heads, 1)
    keys = head_keys(seed, heads or 1)
    draws = from_streams(schedule, lambda stream, size: unit_numbers(keys, stream, size))
    return draws if heads is not None else of_one_head(draws)


def of_one_head(draws: Draws) -> Draws:
    """Return the draws of head 0, without an axis of heads."""
    uniforms, coins = (tuple(array[0] for array in arrays) for arrays in draws[:2])
    return Draws(uniforms, coins, None if draws.strata is None else draws.strata[0])


def head_keys(seed: int, heads: int) -> NDArray[np.uint64]:
    """Return the key of every head's streams, (heads,)."""
    return mix(mix(np.array([seed], np.uint64)) + np.arange(heads, dtype=np.uint64))


def from_streams(schedule: Schedule, numbers: Callable[[int, int], NDArray]) -> Draws:
    """Return draws whose arrays are made from numbers(stream, size), (heads, size) in [0, 1)."""
    rounds = list(enumerate(schedule.rounds))
    return Draws(
        tuple(2 * numbers(2 * i + 1, round_.pairs) - 1 for i, round_ in rounds),
        tuple(numbers(2 * i + 2, round_.buckets) >= 0.5 for i, round_ in rounds),
        numbers(0, schedule.length + 1),
    )


def seed_from(rng: int | np.random.Generator | None) -> int:
    """Return a 64-bit seed from an `rng` argument as SPEC 7 defines it."""
    try:
        generator = np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"rng must be None, a non-negative int or a numpy.random.Generator; got {rng!r}"
        ) from None
    return int(generator.integers(2**64, dtype=np.uint64))


def unit_numbers(keys: NDArray, stream: int, size: int) -> NDArray:
    """Return `size` numbers in [0, 1) of a numbered stream of every head's key: (heads, size)."""
    start = mix(keys + np.uint64(stream))[:, None]
    counter = np.arange(1, size + 1, dtype=np.uint64)
    return unit(mix(start + counter * np.uint64(GOLDEN)))


def mix(word: NDArray) -> NDArray:
    """Apply SplitMix64's finaliser: every bit of the result depends on every bit of the word."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(MIX_1)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(MIX_2)
    return word ^ (word >> np.uint64(31))


def unit(word: NDArray) -> NDArray:
    """Return the top 53 bits of a word as a float64 in [0, 1)."""
    return (word >> np.uint64(11)) * 2.0**-53
