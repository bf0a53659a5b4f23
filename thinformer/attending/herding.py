r"""Herding: few keys of equal weight whose mean in a kernel's Hilbert space is that of many.

Where keys of equal weight stand for all, the error of a query's output is to first order
:math:`\sum_j (w_j - 1)\,p_j\,(v_j - o)`, for its attention weights p and output o, and w
:math:`n / n_{out}` for a key kept and 0 for another. That is the distance of two means in a Hilbert
space, whose kernel is

.. math:: e^{\langle x, x'\rangle} \bigl(\langle v, v'\rangle + \|V\|_{\max}^2\bigr)

here, that of *Low-Rank Thinning* (arXiv 2502.12063) on centred keys x over a temperature: x are
free to be shifted and scaled, as softmax does not see a shift of keys, nor keys over c with queries
times c.

Greedy halvings leave three times as many keys as are wanted. Of those, herding takes one by one the
key that brings the mean nearest, and goes over them once more. Queries are not looked at, but for
their norms. Unlike random halvings, it has no guarantee of *Low-Rank Thinning*.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.attending.padding import unpadded
from thinformer.cpu.run import (
    all_rows,
    draw_numbers,
    largest_entries,
    run_schedule,
    starting_points,
)
from thinformer.halving.plan import Plan, plan
from thinformer.halving.problem import CONSTANT, SCALE, Products, head_factor, make_factor
from thinformer.halving.schedule import Round, Schedule
from thinformer.kernels import exponential
from thinformer.support import checks, threads

CANDIDATES = 3  # times as many as keys kept
NORM = 1.6  # root mean square of the norms of keys that the kernel sees, at most


def herd_keys(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    *,
    n_out: int,
    scale: float,
    temperature: float | None,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the positions (B, H, n_out), increasing, of keys chosen by herding.

    Also which heads (B, H) are finite; others keep some positions. query (B, T, H, E), key
    (B, S, H, E), value (B, S, H, D); n_out is below S. The temperature is that of
    `choose_temperature` if None; ValueError if it is too small.
    """
    from thinformer.cpu import centring, herd, simd  # import Numba

    (B, S, H, E), T, dtype = key.shape, query.shape[1], key.dtype
    problems = B * H
    queries, keys, values = (head_factor(x) for x in (query, key, value))
    centred, squares = np.empty((B, H, S, E), dtype), np.empty((2, problems))
    positions = np.arange(max(T, S, simd.padded_size(E)))

    def centre(first: int, last: int) -> None:
        work = centring.workspace(keys, S)
        centring.centre_keys(
            first, last, queries, keys, T, S, positions, centred.ravel(), *squares, work
        )

    threads.run(centre, problems, 8.0 * (query.size + 2 * key.size))
    if temperature is not None:
        checks.temperature_in_range(temperature, centred, scale)
    (largest,) = largest_entries((values, all_rows(S)))
    good = (np.isfinite(largest) & np.isfinite(squares).all(axis=0)).reshape(B, H)
    if not good.all():  # or a square overflows
        tokens = [np.where(good[:, None, :, None], x, 0) for x in (query, key, value)]
        indices, _ = herd_keys(
            *tokens, n_out=n_out, scale=scale, temperature=temperature, seed=seed
        )
        return indices, np.all([np.isfinite(x).all((1, 3)) for x in (query, key, value)], axis=0)
    if temperature is None:
        tau = choose_temperature(*(scale * squares / [[max(T, 1)], [S]]))
    else:
        tau = np.full(problems, temperature)
    keys = make_factor(centred, exponential())
    keys.parameters[:, SCALE] = np.sqrt(scale) / tau
    # a power of two, to which herding is blind, brings their square in range
    limit = np.finfo(largest.dtype).maxexp - 2
    power = np.ldexp(largest.dtype.type(1), -np.clip(np.frexp(largest)[1], -limit, limit))
    values.parameters[:, SCALE], values.parameters[:, CONSTANT] = power, (largest * power) ** 2
    problem = Products(keys, values)
    halvings = Plan(candidate_schedule(S, n_out), "even")
    draws = draw_numbers(halvings.schedule, seed, max(H, 1))
    greedy = tuple(np.zeros_like(uniform) for uniform in draws.uniforms)
    draws = draws._replace(uniforms=greedy)
    index = starting_points(S, halvings, draws, (B, H))
    index = run_schedule(problem, halvings.schedule, draws, index, (B, H))[-1]
    points = index.shape[1]
    kept = np.empty((problems, n_out), np.int64)

    def herd_problems(first: int, last: int) -> None:
        work = herd.workspace(points, E + value.shape[3], dtype)
        herd.herd(first, last, problem, index, kept, work)

    threads.run(
        herd_problems,
        problems,
        1.0 * problems * points * (points * (E + value.shape[3]) + 4 * n_out),
    )
    return kept.reshape(B, H, n_out), good


def herd_valid(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    valid: NDArray | None,
    width: int,
    min_length: int,
    *,
    g: int,
    size: int | None,
    group: int,
    **settings: Any,
) -> tuple[NDArray, NDArray, NDArray]:
    """Herd the tokens that count, valid (B, S) bool: each sequence's keys as they would be alone.

    query (B, T * group, H, E) has the queries of a group of heads, token by token. With T = S they
    are the keys' own tokens, and those that do not count say nothing about the temperature.

    Returns what `thinformer.attending.attention.select_valid` does. A sequence shorter than
    `min_length`, or not longer than its coreset would be, keeps all its tokens. A head whose tokens
    are not finite keeps some. The other settings are those of `herd_keys`.
    """
    B, _, H, _ = key.shape
    indices, finite = np.zeros((B, H, width), np.int64), np.ones((B, H), bool)
    kept = np.zeros(B, np.int64)
    for some in unpadded(query, key, value, valid, group):
        (b, length), (queries, keys, values) = some.tokens.shape, some.arrays
        few = plan(length, g, length if length < min_length else size, 0.5).schedule.size
        chosen = np.broadcast_to(some.tokens[:, None], (b, H, length))
        if few == length:
            scans = [(head_factor(x), all_rows(length)) for x in (keys, values)]
            entries = largest_entries(*scans)
            good = np.isfinite(entries).all(axis=0).reshape(b, H)
        else:
            places, good = herd_keys(queries, keys, values, n_out=few, **settings)
            chosen = np.take_along_axis(chosen, places, axis=2)
        kept[some.numbers], finite[some.numbers] = few, good
        indices[some.numbers] = chosen[..., :1]
        indices[some.numbers, :, :few] = chosen
    return indices, kept, finite


def candidate_schedule(n_points: int, n_out: int) -> Schedule:
    """The halvings from as many points as halve evenly to CANDIDATES * n_out, or to all there are.

    The last is of buckets of n_out / 2 points; those before are half as long, round by round.
    """
    size = min(n_points, CANDIDATES * n_out)
    halvings = (n_points // size).bit_length() - 1
    rounds = []
    for i in range(halvings):
        pairs = size << (halvings - 1 - i)
        buckets = min(CANDIDATES * 4 ** (halvings - i), max(1, pairs // 2))
        rounds.append(Round(pairs, buckets, 1 / (halvings * buckets)))
    return Schedule(size << halvings, size, tuple(rounds))


def choose_temperature(query: NDArray, key: NDArray) -> NDArray:
    """What centred keys are divided by, from mean squared norms of queries and keys of each head.

    The softmax scale is in them. It makes the root mean square of the keys' norms NORM; or, where
    attention is smoother, the geometric mean of that of queries and that of keys. It is 1 where all
    keys or all queries are 0.
    """
    q, k = np.sqrt(query), np.sqrt(key)
    with np.errstate(divide="ignore", invalid="ignore"):
        tau = k / np.minimum(NORM, np.sqrt(q * k))
    return np.where((q > 0) & (k > 0), tau, 1.0)
