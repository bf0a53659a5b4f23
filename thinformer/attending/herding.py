r"""Herding selects few keys of equal weight whose kernel mean is near that of all keys.

Let a query have the attention weights p and the output o, and let w be :math:`n / n_{out}` for a
kept key and 0 for a dropped one. The error of the output is, to first order,
:math:`\sum_j (w_j - 1)\,p_j\,(v_j - o)`. Its size is the distance of two means in the Hilbert space
of a kernel. The kernel here is that of *Low-Rank Thinning* (arXiv 2502.12063),

.. math:: e^{\langle x, x'\rangle} \bigl(\langle v, v'\rangle + \|V\|_{\max}^2\bigr),

on keys x that are centred and divided by a temperature. Softmax does not change when all keys are
shifted, nor when keys are divided by c and queries multiplied by c; so shift and temperature are
free to choose.

Greedy halvings first reduce the keys to :math:`3 n_{out}` candidates. Herding then adds the best
candidate, one by one, and replaces each kept key once. Of the queries only the norms are used.
Unlike random halving, herding has no guarantee of *Low-Rank Thinning*.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer.attending.options import KeySelection
from thinformer.attending.padding import unpadded
from thinformer.attending.thinned import value_kernel
from thinformer.cpu.run import (
    all_rows,
    draw_numbers,
    largest_entries,
    run_schedule,
    starting_points,
)
from thinformer.halving.plan import Plan
from thinformer.halving.problem import SCALE, Products, head_factor, make_factor
from thinformer.halving.schedule import Round, Schedule
from thinformer.kernels import exponential
from thinformer.support import checks, threads

CANDIDATES = 3  # candidates of herding, times n_out
NORM = 1.6  # largest root mean square of the norms of keys over the temperature


def herd_keys(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    selection: KeySelection,
    *,
    n_out: int,
    scale: float,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Select n_out of S keys by herding.

    Parameters
    ----------
    query : (B, T, H, E) array
    key : (B, S, H, E) array
    value : (B, S, H, D) array
    selection : KeySelection
        Its temperature; that of `choose_temperature` where it is "auto".
    n_out : int
        Below S.

    Returns
    -------
    positions : (B, H, n_out) int64, increasing
    finite : (B, H) bool
        Which heads are finite. Other heads keep arbitrary positions.

    Raises
    ------
    ValueError
        The temperature is too small.
    """
    (B, S, H, _), T = key.shape, query.shape[1]
    centred, squares = centre_keys(query, key)
    if selection.tau is not None:
        checks.temperature_in_range(selection.tau, centred, scale)
    values = head_factor(value)
    (largest,) = largest_entries((values, all_rows(S)))
    good = (np.isfinite(largest) & np.isfinite(squares).all(axis=0)).reshape(B, H)
    if not good.all():  # or a square overflows
        q, k, v = (np.where(good[:, None, :, None], x, 0) for x in (query, key, value))
        indices, _ = herd_keys(q, k, v, selection, n_out=n_out, scale=scale, seed=seed)
        return indices, np.all([np.isfinite(x).all((1, 3)) for x in (query, key, value)], axis=0)
    if selection.tau is None:
        tau = choose_temperature(*(scale * squares / [[max(T, 1)], [S]]))
    else:
        tau = np.full(B * H, selection.tau)
    keys = make_factor(centred, exponential())
    keys.parameters[:, SCALE] = np.sqrt(scale) / tau
    problem = Products(keys, value_kernel(values, largest))
    index = halve_greedily(problem, S, n_out, seed, (B, H))
    return herd_points(problem, index, n_out).reshape(B, H, n_out), good


def centre_keys(query: NDArray, key: NDArray) -> tuple[NDArray, NDArray]:
    """Return the keys less their mean, (B, H, S, E), and sums of squared norms, (2, B * H).

    The sums are over all queries, and over all keys less their mean.
    """
    from thinformer.cpu import centring, simd  # import Numba

    (B, S, H, E), T = key.shape, query.shape[1]
    queries, keys = head_factor(query), head_factor(key)
    centred, squares = np.empty((B, H, S, E), key.dtype), np.empty((2, B * H))
    positions = np.arange(max(T, S, simd.padded_size(E)))

    def centre(first: int, last: int) -> None:
        work = centring.workspace(keys, S)
        centring.centre_keys(
            first, last, queries, keys, T, S, positions, centred.ravel(), *squares, work
        )

    threads.run(centre, B * H, 8.0 * (query.size + 2 * key.size))
    return centred, squares


def halve_greedily(
    problem: Products, n_points: int, n_out: int, seed: int, stack: tuple[int, int]
) -> NDArray:
    """Return the positions (problems, CANDIDATES * n_out) that greedy halvings leave."""
    halvings = Plan(candidate_schedule(n_points, n_out), "even")
    draws = draw_numbers(halvings.schedule, seed, max(stack[1], 1))
    greedy = tuple(np.zeros_like(uniform) for uniform in draws.uniforms)
    draws = draws._replace(uniforms=greedy)
    index = starting_points(n_points, halvings, draws, stack)
    return run_schedule(problem, halvings.schedule, draws, index, stack)[-1]


def herd_points(problem: Products, index: NDArray, n_out: int) -> NDArray:
    """Return the positions (problems, n_out) that herding keeps of index (problems, points)."""
    from thinformer.cpu import herd  # imports Numba

    problems, points = index.shape
    dims, dtype = problem.keys.dim + problem.values.dim, problem.keys.window.dtype
    kept = np.empty((problems, n_out), np.int64)

    def herd_problems(first: int, last: int) -> None:
        work = herd.workspace(points, dims, dtype)
        herd.herd(first, last, problem, index, kept, work)

    threads.run(herd_problems, problems, 1.0 * problems * points * (points * dims + 4 * n_out))
    return kept


def herd_valid_keys(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    valid: NDArray | None,
    width: int,
    selection: KeySelection,
    *,
    group: int,
    scale: float,
    seed: int,
) -> tuple[NDArray, NDArray, NDArray]:
    """Herd the valid tokens, (B, S) bool: each sequence keeps the keys that it keeps alone.

    query (B, T * group, H, E) has the queries of a group of heads, token by token. With T = S the
    queries belong to the same tokens as the keys, and those of invalid tokens do not count for the
    temperature.

    Returns what `thin_valid_keys` returns. A sequence shorter than `min_length`, or not longer than
    its coreset, keeps all its tokens. A head that is not finite keeps arbitrary positions.
    """
    B, _, H, _ = key.shape
    indices, finite = np.zeros((B, H, width), np.int64), np.ones((B, H), bool)
    kept = np.zeros(B, np.int64)
    for some in unpadded(query, key, value, valid, group):
        (b, length), (queries, keys, values) = some.tokens.shape, some.arrays
        few = selection.plan(length).schedule.size
        chosen = np.broadcast_to(some.tokens[:, None], (b, H, length))
        if few == length:
            scans = [(head_factor(x), all_rows(length)) for x in (keys, values)]
            entries = largest_entries(*scans)
            good = np.isfinite(entries).all(axis=0).reshape(b, H)
        else:
            places, good = herd_keys(
                queries, keys, values, selection, n_out=few, scale=scale, seed=seed
            )
            chosen = np.take_along_axis(chosen, places, axis=2)
        kept[some.numbers], finite[some.numbers] = few, good
        indices[some.numbers] = chosen[..., :1]
        indices[some.numbers, :, :few] = chosen
    return indices, kept, finite


def candidate_schedule(n_points: int, n_out: int) -> Schedule:
    """The halvings that leave CANDIDATES * n_out of n_points points, or all if they are fewer.

    The last round has buckets of n_out / 2 points; each round before it has buckets half as long.
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
    """The temperature (problems,) of each head, from mean squared norms of its queries and keys.

    The norms include the softmax scale. Keys over the temperature have a root mean square norm of
    NORM; where attention is smoother, of the geometric mean of the queries' and the keys'. The
    temperature is 1 where all keys or all queries are 0.
    """
    q, k = np.sqrt(query), np.sqrt(key)
    with np.errstate(divide="ignore", invalid="ignore"):
        tau = k / np.minimum(NORM, np.sqrt(q * k))
    return np.where((q > 0) & (k > 0), tau, 1.0)
