r"""Landmarks: few keys whose values and masses are fitted to compensate for the dropped keys.

Thinned keys have equal weight. A landmark :math:`k_s` has a fitted value :math:`z_s` and a fitted
mass :math:`m_s`, and the output of a query q is

.. math:: \sum_s e^{\langle q,k_s\rangle} z_s \big/ \sum_s e^{\langle q,k_s\rangle} m_s.

Both sums should equal the sums over all keys. There are two ways to fit them.

"nystrom" : Both sums over all keys lie in the span of :math:`e^{\langle q,k_j\rangle}` for all j;
they are approximated in the span of the landmarks. This is the Nystrom approximation for the kernel
:math:`\exp\langle x, x'\rangle` on keys x that are centred and divided by a temperature, as in
WildCat (arXiv 2602.10056). Values and masses are :math:`N_{ss}^{-1} N_{sn} (V, 1)`, after the
kernel N is scaled to a diagonal of 1. The landmarks are the pivots of a randomised Cholesky
factorisation (`thinformer.cpu.pivots`).

"queries" : The exact outputs of some queries, a sample, are computed first. Landmarks are drawn in
key order, by the attention of the sampled queries (`thinformer.cpu.drawn`). Every key joins the
group of a landmark that is near to it (`thinformer.cpu.groups`). A landmark gets the mean key of
its group, the sum of the group's values, and the number of its keys as mass. These sums are exact
where all keys of a group are equal, so the error goes to 0 as the number of landmarks goes to that
of the keys. Then a ridge regression moves values and masses, those of large groups more than those
of small ones, so that the sampled queries get their exact outputs (`thinformer.cpu.ridge`). How far
they are moved is chosen for each head, by a fifth of the sample that is held out. The outputs of
the sampled queries are known exactly, and are written as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.attending.options import KeySelection
from thinformer.attending.padding import unpadded
from thinformer.cpu.run import stratified, without_subnormals
from thinformer.halving.draws import head_keys
from thinformer.halving.problem import SCALE, head_factor
from thinformer.support import checks

if TYPE_CHECKING:
    from thinformer.cpu.landmarks import Heads, LandmarkDraws

LEAST_QUERIES, QUERIES = 96, 256  # sampled queries: half of n_out, but not fewer or more
HELD_OUT = 5  # one of so many sampled queries chooses the nugget
NUGGETS = 10.0, 0.1, 0.003  # "queries": times the mean of the diagonal that they are added to
COMPARED = 96  # landmarks that a key is compared with, about
CANDIDATES = 4  # candidates for pivots, times n_out
PROPOSALS = 8  # proposals of pivots at most, times n_out
STREAMS = 2**32  # number of the first stream of random numbers that landmarks use
BALANCE = 0.3  # trace of the exponential kernel over that of the sampled queries' Gram matrix
BOUND = 1e8  # largest mass, and largest value over the largest of all values
SHARE = 0.3125  # least sum of masses over the sum of their magnitudes
LEAST = 1e-6  # least weighted mean of masses
TWO_RHO = 6.383202050647408  # 2 sqrt(1 + exp(2 W(2 / e^2) + 2)), arXiv 2602.10056


class Chosen(NamedTuple):
    """The landmarks of each head.

    indices : (B, H, n_out) int64, increasing
    sampled : (B, H, m) int64, increasing, the queries that were sampled; m is 0 for "nystrom"
    temperature : (B, H)
    finite : (B, H) bool, whether the head's tokens, its temperature and the squared norms of its
        keys over that are finite
    """

    indices: NDArray
    sampled: NDArray
    temperature: NDArray
    finite: NDArray


class Fitted(NamedTuple):
    """The fitted keys, values and masses of each head's landmarks.

    keys : (B, n_out, H, E), of keys minus their mean, which the softmax cannot tell from keys
    values : (B, n_out, H, D)
    masses : (B, H, n_out)
    low, high : (B, H, D), the range of all keys' values
    """

    keys: NDArray
    values: NDArray
    masses: NDArray
    low: NDArray
    high: NDArray


def number_of_queries(n_queries: int, n_out: int) -> int:
    """Return how many queries are sampled: more where more landmarks are fitted to them."""
    return min(n_queries, QUERIES, max(LEAST_QUERIES, n_out // 2))


def choose_landmarks(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    selection: KeySelection,
    *,
    n_out: int,
    scale: float,
    seed: int,
) -> Chosen:
    """Choose landmarks for query (B, T, H, E) among key (B, S, H, E), with value (B, S, H, D).

    The arguments are those of `fit_landmarks`.
    """
    from thinformer.cpu import landmarks  # imports Numba

    heads, draws, indices = _heads(
        query, key, value, selection, n_out=n_out, scale=scale, seed=seed
    )
    problems = len(indices)

    def choose(first: int, last: int) -> None:
        work = landmarks.workspace(heads, draws)
        head = first, last, heads, draws, TWO_RHO
        if draws.queries.shape[1]:
            landmarks.choose_drawn(*head, BALANCE, indices, work)
        else:
            landmarks.choose_pivoted(*head, _rounding(key.dtype), indices, work)

    without_subnormals(choose, problems, _flops(heads, draws))
    return _chosen(heads, draws, indices, query, key, value)


def fit_landmarks(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    output: NDArray,
    selection: KeySelection,
    *,
    n_out: int,
    scale: float,
    seed: int,
) -> tuple[Chosen, Fitted]:
    """Choose n_out of S keys as landmarks, and fit their keys, values and masses.

    The choice does not depend on the batch. A head with a non-finite entry gets arbitrary
    landmarks.

    Parameters
    ----------
    query : (B, T, H, E) array
    key : (B, S, H, E) array
    value : (B, S, H, D) array
    output : (B, T, H, D) array
        The exact outputs of the sampled queries are written to their rows; other rows stay.
    selection : KeySelection
        Its correction and temperature.
    n_out : int
        Below S.

    Raises
    ------
    ValueError
        The temperature is too small.
    """
    from thinformer.cpu import landmarks  # imports Numba

    heads, draws, indices = _heads(
        query, key, value, selection, n_out=n_out, scale=scale, seed=seed
    )
    (B, _, H, E), D, dtype, m = key.shape, value.shape[-1], key.dtype, draws.queries.shape[1]
    problems = len(indices)
    keys, values = (np.empty((B, n_out, H, dim), dtype) for dim in (E, D))
    masses = np.empty((problems, n_out), dtype)
    fits = landmarks.Fits(keys, values, masses, output)

    def fit(first: int, last: int) -> None:
        work = landmarks.workspace(heads, draws)
        head = first, last, heads, draws, TWO_RHO
        if m:
            held = m // HELD_OUT
            landmarks.fit_drawn(*head, BALANCE, held, NUGGETS, BOUND, indices, fits, work)
        else:
            landmarks.fit_pivoted(*head, _rounding(dtype), BOUND, indices, fits, work)

    without_subnormals(fit, problems, _flops(heads, draws, fitting=True))
    chosen = _chosen(heads, draws, indices, query, key, value)
    low, high = (x.reshape(B, H, D) for x in (heads.low, heads.high))
    return chosen, Fitted(keys, values, masses.reshape(B, H, n_out), low, high)


def _heads(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    selection: KeySelection,
    *,
    n_out: int,
    scale: float,
    seed: int,
) -> tuple[Heads, LandmarkDraws, NDArray]:
    """What the kernels of `thinformer.cpu.landmarks` take, and a place for landmarks."""
    from thinformer.cpu import draw, landmarks  # import Numba

    (B, T, H, E), (S, D), dtype = query.shape, value.shape[1::2], key.dtype
    temperature = selection.tau
    if temperature is not None:
        with np.errstate(invalid="ignore"):  # of infinity, which is found later
            centred = key - key.mean(axis=1, keepdims=True)
        checks.temperature_in_range(temperature, centred, scale)
    streams, problems = head_keys(seed, max(H, 1))[:H], B * H

    def numbers(stream: int, size: int) -> NDArray:
        out = np.empty((H, size))
        draw.unit_numbers(streams, STREAMS + stream, out)
        return out

    m = number_of_queries(T, n_out) if selection.correction == "queries" else 0
    length = 0 if m else min(S, CANDIDATES * n_out)
    draws = landmarks.LandmarkDraws(
        np.take(stratified(T, numbers(0, m + 1)), held_out_last(m), axis=1),
        stratified(S, numbers(1, length + 1)),
        numbers(2, 1 if m else 2 * PROPOSALS * n_out),
        np.tile(np.arange(H), B),
    )
    low, high, average = np.empty((3, problems, D), dtype)
    heads = landmarks.Heads(
        head_factor(query), head_factor(key), head_factor(value), T, S, n_out,
        np.arange(max(T, S, landmarks.PANEL)), np.full(problems, temperature or 0.0),
        np.empty((problems, E), dtype), low, high, average, np.empty(problems),
    )  # fmt: skip
    heads.query.parameters[:, SCALE] = scale
    return heads, draws, np.empty((problems, n_out), np.int64)


def held_out_last(m: int) -> NDArray[np.int64]:
    """Return the order of m sampled queries in which the held-out ones come last, (m,)."""
    order = np.arange(m)
    held = order % HELD_OUT == HELD_OUT - 1
    return np.concatenate([order[~held], order[held]])


def _flops(heads: Heads, draws: LandmarkDraws, fitting: bool = False) -> float:
    """Operations that landmarks cost, with what is fitted to them or without."""
    m, L, n_out = draws.queries.shape[1], draws.candidates.shape[1], heads.n_out
    E, D = heads.key.dim, heads.value.dim
    flops = heads.S * m * (E + D) if m else L * n_out * (E + n_out / 2)
    if fitting and m:
        flops += COMPARED * heads.S * E + m * (n_out * (E + D + m / 2) + m * (m / 3 + D))
    elif fitting:
        flops += n_out * heads.S * (E + D) + n_out**2 * (n_out / 6 + E / 2 + D)
    return 2.0 * len(draws.head) * flops


def _chosen(
    heads: Heads,
    draws: LandmarkDraws,
    indices: NDArray,
    query: NDArray,
    key: NDArray,
    value: NDArray,
) -> Chosen:
    """What was chosen, by sequence and head."""
    B, _, H, _ = key.shape
    finite, tau = np.isfinite(heads.sums).reshape(B, H), heads.temperature.reshape(B, H)
    if not finite.all():  # or a square overflows; of queries it may, where tau is given
        finite = np.all([np.isfinite(x).all((1, 3)) for x in (query, key, value)], axis=0)
        with np.errstate(all="ignore"):
            to_x = np.sqrt(heads.query.parameters[:1, SCALE]) / tau
            x = (key - key.mean(1, keepdims=True)) * to_x[:, None, :, None].astype(key.dtype)
            squares = np.einsum("bshe,bshe->bsh", x, x)
        finite = finite & np.isfinite(tau) & np.isfinite(squares).all(1)
    m, n_out = draws.queries.shape[1], heads.n_out
    sampled = np.broadcast_to(np.sort(draws.queries, axis=1), (B, H, m))
    return Chosen(indices.reshape(B, H, n_out), sampled, tau, finite)


def _rounding(dtype: np.dtype) -> float:
    """A nugget on the diagonal of pivots' kernel, for rounding errors of entries not to matter."""
    return float(np.sqrt(np.finfo(dtype).eps))


def choose_valid_landmarks(
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
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Choose landmarks among the valid tokens, (B, S) bool: each sequence's are those it has alone.

    query (B, T * group, H, E) has the queries of a group of heads, token by token. With T = S the
    queries belong to the same tokens as the keys, and those of invalid tokens are not sampled.

    Returns
    -------
    positions : (B, H, width) int64
        A sequence has the first ones.
    counts : (B,) int64
        How many positions are a sequence's own.
    finite : (B, H) bool
        Which heads are finite.
    sampled : (B, H, m) int64
        The sampled queries, -1 where there are fewer.
    temperature : (B, H)

    Notes
    -----
    A sequence that is shorter than `min_length`, or not longer than its coreset, keeps all its
    tokens, and no query is sampled.
    """
    (B, _, H, _), n_queries = key.shape, query.shape[1]
    m = number_of_queries(n_queries, width) if selection.correction == "queries" else 0
    indices, sampled = np.zeros((B, H, width), np.int64), np.full((B, H, m), -1)
    finite, tau, kept = np.ones((B, H), bool), np.ones((B, H)), np.zeros(B, np.int64)
    for some in unpadded(query, key, value, valid, group):
        (b, length), (_, keys, values) = some.tokens.shape, some.arrays
        few = selection.plan(length).schedule.size
        kept[some.numbers] = few
        if few == length:
            indices[some.numbers, :, :few] = some.tokens[:, None]
            finite[some.numbers] = np.isfinite(keys).all((1, 3)) & np.isfinite(values).all((1, 3))
            continue
        chosen = choose_landmarks(*some.arrays, selection, n_out=few, scale=scale, seed=seed)
        tau[some.numbers], finite[some.numbers] = chosen.temperature, chosen.finite
        for of_all, own, places in (
            (indices, some.tokens, chosen.indices),
            (sampled, some.queries, chosen.sampled),
        ):
            of_heads = np.broadcast_to(own[:, None], (b, H, own.shape[1]))
            few_of_all = np.take_along_axis(of_heads, places, axis=2)
            of_all[some.numbers, :, : places.shape[2]] = few_of_all
    return indices, kept, finite, sampled, tau
