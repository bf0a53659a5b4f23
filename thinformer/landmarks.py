r"""Landmarks: few keys with values and masses of their own, fitted to stand for all keys.

Thinned keys weigh the same. A landmark :math:`k_s` has a value :math:`z_s` and a mass :math:`m_s`,
and the output of a query is

.. math:: \sum_s e^{\langle q,k_s\rangle} z_s \big/ \sum_s e^{\langle q,k_s\rangle} m_s.

Both sums should be what they are over all keys: functions of q, in the span of
:math:`e^{\langle q,k_j\rangle}` for all j, are to be approximated in the span of a few. That is
Nystrom's problem, for a kernel on keys, and the kernel says which queries matter:

"nystrom" : :math:`\exp\langle x, x'\rangle` on keys x that are centred and divided by a
temperature, as in WildCat (arXiv 2602.10056). The worst of all queries matters.

"queries" : to that, :math:`\langle p, p'\rangle` is added, where :math:`p_j` are the attention
weights that some sampled queries give to key j. Queries like those matter; the first term keeps
the fit sober elsewhere. It is a ridge regression of the sampled queries' exact outputs, shrunk
towards what "nystrom" finds.

Landmarks are the pivots of a randomised Cholesky factorisation of the kernel
(`thinformer.pivots`). Values and masses are :math:`N_{ss}^{-1} N_{sn} (V, 1)`, and
:math:`N_{sn}` times anything is softmax attention of the landmarks, as queries, to all keys.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer import _pool
from thinformer.compress import plan
from thinformer.draws import head_keys
from thinformer.kernels import linear
from thinformer.problem import SCALE, Factor, make_factor

CORRECTIONS = ("nystrom", "queries")
QUERIES = 192  # sampled at most
CANDIDATES = 6  # times as many as landmarks
PROPOSALS = 8  # times as many as landmarks
STREAMS = 2**32  # from which on a head's streams of random numbers are those of landmarks
BALANCE = 0.1  # the exponential kernel's trace beside that of the sampled queries' attention
BOUND = 1e8  # of values and masses, in the largest value; beyond are landmarks without weight
SHARE = 0.3125  # of the sum of magnitudes, below which a sum of masses may not fall
LEAST = 1e-6  # of a key's mass, below which no weighted mean of masses may fall
TWO_RHO = 6.383202050647408  # 2 sqrt(1 + exp(2 W(2 / e^2) + 2)), arXiv 2602.10056


class Chosen(NamedTuple):
    """The landmarks of each head, and what fitting them takes.

    indices : (B, H, n_out) int64, increasing
    sampled : (B, H, m) int64, the queries that were sampled; m is 0 for "nystrom"
    temperature : (B, H)
    centred : (B, S, H, E), the keys less their mean
    attention : (B * H, m, S), the weights of the sampled queries
    exponents, shift, top : (B * H, n_out), (B * H, 1) and (B * H, 1), as `pivots` defines them
    """

    indices: NDArray
    sampled: NDArray
    temperature: NDArray
    centred: NDArray
    attention: NDArray
    exponents: NDArray
    shift: NDArray
    top: NDArray


def choose_landmarks(
    query: NDArray,
    key: NDArray,
    *,
    n_out: int,
    correction: str,
    temperature: float | None,
    scale: float,
    seed: int,
) -> Chosen:
    """Choose landmarks for query (B, T, H, E) among key (B, S, H, E); n_out is below S.

    They are those that a sequence has alone. A head that is not finite gets some.
    """
    from thinformer import cpu, pivots  # import Numba
    from thinformer.softmax import softmax_attention

    (B, T, H, E), S, dtype = query.shape, key.shape[1], key.dtype
    streams = head_keys(seed, max(H, 1))[:H]

    def numbers(stream: int, size: int) -> NDArray:
        out = np.empty((H, size))
        cpu.unit_numbers(streams, STREAMS + stream, out)
        return out

    m = min(T, QUERIES) if correction == "queries" else 0
    sampled = np.broadcast_to(strata(T, m, numbers(0, m + 1)), (B, H, m))
    with np.errstate(invalid="ignore", over="ignore"):
        centred = key - key.mean(axis=1, keepdims=True, dtype=np.float64).astype(dtype)
        if temperature is None:
            tau = _temperature(query, centred, scale)
        else:
            tau = np.full((B, H), temperature)
    attention = np.empty((B * H, m, S), dtype)
    if m:
        few = as_factor(take_tokens(query, sampled), scale)
        nothing = as_factor(key[..., :0])
        rows = np.tile(np.arange(S), (B * H, 1))
        outputs = np.empty((B, m, H, 0), dtype)
        softmax_attention(few, as_factor(centred), nothing, rows, outputs, attention)

    length = min(S, CANDIDATES * n_out)
    candidates = strata(S, length, numbers(1, length + 1))
    uniforms = numbers(2, 2 * PROPOSALS * n_out).reshape(H, PROPOSALS * n_out, 2)
    keys, of_head = as_factor(centred, np.sqrt(scale) / tau), np.tile(np.arange(H), B)
    kept = np.empty((B * H, n_out), np.int64)
    exponents, constants = np.empty((B * H, n_out), dtype), np.empty((B * H, 2), dtype)

    def choose(first: int, last: int) -> None:
        work = pivots.workspace(S, length, n_out, m, E, dtype)
        pivots.choose_pivots(
            first, last, keys, attention, candidates, of_head, uniforms, of_head, kept, exponents,
            constants, BALANCE, nugget(dtype), work,
        )  # fmt: skip

    _pool.run(choose, B * H, 2.0 * B * H * length * n_out * (m + E + n_out / 2))
    kept = kept.reshape(B, H, n_out)
    return Chosen(
        kept, sampled, tau, centred, attention, exponents, constants[:, :1], constants[:, 1:]
    )


def choose_valid(
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
) -> tuple[NDArray, NDArray, NDArray, NDArray, NDArray]:
    """Choose landmarks among the tokens that count, valid (B, S) bool: each sequence's as alone.

    query (B, T * group, H, E) has the queries of a group of heads, token by token. With T = S they
    are the keys' own tokens, and those that do not count are not sampled.

    Returns positions (B, H, width), of which a sequence has the first ones; how many those are,
    (B,); which heads are finite; the queries that were sampled, (B, H, m), -1 where there are
    fewer; and the temperature (B, H). A sequence that is shorter than `min_length`, or not longer
    than its coreset would be, keeps all its tokens, and no query is sampled.
    """
    (B, S, H, _), n_queries = key.shape, query.shape[1]
    m = min(n_queries, QUERIES) if settings["correction"] == "queries" else 0
    indices, sampled = np.zeros((B, H, width), np.int64), np.full((B, H, m), -1)
    finite, tau, kept = np.ones((B, H), bool), np.ones((B, H)), np.zeros(B, np.int64)
    if valid is None:
        valid = np.ones((B, S), bool)
    lengths = valid.sum(axis=1)
    for length in np.unique(lengths[lengths > 0]).tolist():
        (sequences,) = np.nonzero(lengths == length)
        tokens = np.nonzero(valid[sequences])[1].reshape(-1, length)
        keys, values = (_tokens_of(x, sequences, tokens) for x in (key, value))
        queries, own = query[sequences], tokens[:, :, None]
        if n_queries == S * group:
            own = own * group + np.arange(group)
            queries = _tokens_of(query, sequences, own.reshape(len(tokens), -1))
        finite[sequences] = np.isfinite(keys).all((1, 3)) & np.isfinite(values).all((1, 3))
        few = plan(length, g, length if length < min_length else size, 0.5).schedule.size
        kept[sequences] = few
        if few == length:
            indices[sequences, :, :few] = tokens[:, None]
            continue
        chosen = choose_landmarks(queries, keys, n_out=few, **settings)
        tokens = np.broadcast_to(tokens[:, None], (len(tokens), H, length))
        indices[sequences, :, :few] = np.take_along_axis(tokens, chosen.indices, axis=2)
        tau[sequences] = chosen.temperature
        of_all = chosen.sampled
        if n_queries == S * group:
            flat = np.broadcast_to(own.reshape(len(own), 1, -1), (len(own), H, length * group))
            of_all = np.take_along_axis(flat, of_all, axis=2)
        sampled[sequences, :, : of_all.shape[2]] = of_all
        asked = np.isfinite(take_tokens(queries, chosen.sampled)).all((1, 3))
        finite[sequences] &= asked & np.isfinite(chosen.temperature)
    return indices, kept, finite, sampled, tau


def fit_landmarks(chosen: Chosen, value: NDArray, scale: float) -> tuple[NDArray, NDArray]:
    """Return what landmarks stand for: values (B, n_out, H, D) and masses (B, H, n_out)."""
    from thinformer.softmax import softmax_attention  # imports Numba

    (B, S, H, D), dtype, n_out = value.shape, value.dtype, chosen.indices.shape[-1]
    tau, h, top = chosen.temperature, chosen.exponents, chosen.top
    few = take_tokens(chosen.centred, chosen.indices)
    # <x_s, x_j> is what softmax with this scale makes of the landmark as a query
    landmarks = as_factor(few, scale / tau**2)
    sums, logs = np.empty((B, n_out, H, D), dtype), np.empty((B * H, n_out), dtype)
    rows = np.tile(np.arange(S), (B * H, 1))
    softmax_attention(
        landmarks, as_factor(chosen.centred), as_factor(value), rows, sums, None, logs=logs
    )
    # a sum of S exponentials, of which no exponent is above 0 but by rounding
    right = np.exp(np.minimum(logs - h - top, np.log(S)))[..., None]
    right = right * _with_ones(sums.transpose(0, 2, 1, 3))
    x = few.transpose(0, 2, 1, 3) * (np.sqrt(scale) / tau)[..., None, None].astype(dtype)
    x = x.reshape(B * H, n_out, x.shape[-1])
    N = np.exp(np.minimum(x @ x.mT - h[:, :, None] - h[:, None], 0))
    if chosen.attention.shape[1]:
        attention = chosen.attention.reshape(B, H, chosen.attention.shape[1], S)
        outputs = attention @ value.transpose(0, 2, 1, 3)
        at = chosen.indices.reshape(B * H, 1, n_out)
        f = np.take_along_axis(chosen.attention, at, axis=2)
        f *= np.exp(chosen.shift - h)[:, None]
        N += f.mT @ f
        right += f.mT @ (np.exp(chosen.shift - top)[..., None] * _with_ones(outputs))
    N[:, np.arange(n_out), np.arange(n_out)] += nugget(dtype)
    fitted = np.linalg.solve(N.astype(np.float64), right.astype(np.float64))
    largest = 0.9 * np.log(np.finfo(dtype).max)
    fitted *= np.exp(np.minimum(top - h, largest), dtype=np.float64)[..., None]
    bound = BOUND * np.maximum(np.abs(value).max(axis=(1, 3)), 1).reshape(-1, 1, 1)
    fitted = np.clip(fitted, -bound, bound)
    fitted = fitted.astype(dtype).reshape(B, H, n_out, D + 1)
    values = np.ascontiguousarray(fitted[..., :D].transpose(0, 2, 1, 3))
    return values, np.ascontiguousarray(fitted[..., D])


def nugget(dtype: np.dtype) -> float:
    """What is added to the diagonal of N, so that rounding errors of its entries do not matter."""
    return float(np.sqrt(np.finfo(dtype).eps))


def strata(n_points: int, length: int, uniforms: NDArray) -> NDArray:
    """Positions (heads, length), one at random from each of as many strata laid around a ring.

    The rule of `thinformer.compress.starting_points`. Uniforms are (heads, length + 1).
    """
    if length == n_points:
        return np.tile(np.arange(n_points), (len(uniforms), 1))
    start = (uniforms[:, :1] * n_points).astype(np.int64)
    bounds = np.arange(length + 1, dtype=np.int64) * n_points // max(length, 1)
    inside = (uniforms[:, 1:] * np.diff(bounds)).astype(np.int64)
    return np.sort((start + bounds[:-1] + inside) % n_points, axis=1)


def take_tokens(tokens: NDArray, positions: NDArray) -> NDArray:
    """Tokens (B, S, H, dim) at positions (B, H, n), as (B, n, H, dim)."""
    return np.take_along_axis(tokens, positions.transpose(0, 2, 1)[..., None], axis=1)


def as_factor(array: NDArray, scale: NDArray | float = 1.0) -> Factor:
    """A factor on (B, S, H, dim), whose heads are the problems, times scales (B, H)."""
    factor = make_factor(array.transpose(0, 2, 1, 3), linear())
    factor.parameters[:, SCALE] = np.ravel(scale)
    return factor


def _tokens_of(array: NDArray, sequences: NDArray, tokens: NDArray) -> NDArray:
    """Some tokens (b, L) of some sequences (b,); the array itself where they are all."""
    if tokens.shape == array.shape[:2]:
        return array
    return array[sequences[:, None], tokens]


def _temperature(query: NDArray, key: NDArray, scale: float) -> NDArray:
    """WildCat's temperature (B, H) of centred keys; 1 where all queries or all keys are 0."""
    from scipy.special import lambertw  # imported where it is needed

    q, k = (
        np.sqrt(np.einsum("bshe,bshe->bsh", x, x).max(axis=1, initial=0)).astype(np.float64)
        for x in (query, key)
    )
    with np.errstate(divide="ignore"):
        b = np.log(key.shape[1]) / (scale * q * k) + 2
        tau = np.sqrt(k / q * b / (2 * lambertw(b / TWO_RHO).real))
    return np.where((q > 0) & (k > 0), tau, 1.0)


def _with_ones(rows: NDArray) -> NDArray:
    """Rows (B, H, n, D) as (B * H, n, D + 1), the last column ones."""
    B, H, n, D = rows.shape
    out = np.ones((B * H, n, D + 1), rows.dtype)
    out[..., :D] = rows.reshape(B * H, n, D)
    return out
