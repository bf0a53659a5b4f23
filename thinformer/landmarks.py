r"""Landmarks: few keys with values and masses of their own, fitted to stand for all keys.

Thinned keys weigh the same. A landmark :math:`k_s` has a value :math:`z_s` and a mass :math:`m_s`, and a
query's output is :math:`\sum_s e^{\langle q,k_s\rangle} z_s / \sum_s e^{\langle q,k_s\rangle} m_s`. Both
sums are to be what they are over all keys, and of functions of q they are in the span of few
what all are in the span of many: Nystrom's problem. It takes a kernel on keys, which
says which queries matter.

"nystrom": the exponential kernel :math:`\exp\langle x, x'\rangle` on keys that are centred and divided by a
temperature, as in WildCat (arXiv 2602.10056): the worst of all queries matters.

"queries": to that, :math:`\langle p, p'\rangle` is added, the Gram matrix of the attention that some
sampled queries pay: those matter, and the first term keeps the fit sober elsewhere. It is
a ridge regression of the sampled queries' exact outputs, shrunk towards the weights of "nystrom".

Landmarks are pivots of a randomised Cholesky factorisation of that kernel (`thinformer.pivots`), and
values and masses follow by Nystrom's formula: :math:`N_{ss}^{-1} N_{sn} (V, 1)`. N_sn times anything is
softmax attention of the landmarks, as queries, to all keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import lambertw

from thinformer import _pool
from thinformer.draws import head_keys
from thinformer.kernels import linear
from thinformer.problem import SCALE, Factor, make_factor

CORRECTIONS = ("nystrom", "queries")
QUERIES = 128  # sampled at most
CANDIDATES = 8  # times as many as landmarks
PROPOSALS = 8  # times as many as landmarks
STREAMS = 2**32  # from which on a head's streams of random numbers are those of landmarks
TWO_RHO = 6.383202050647408  # 2 sqrt(1 + exp(2 W(2 / e^2) + 2)), arXiv 2602.10056


class Chosen(NamedTuple):
    """The landmarks of each head, and what fitting them takes.

    indices : (B, H, n_out) int64, increasing
    queries : (B, H, m) int64, the queries that were sampled; m is 0 for "nystrom"
    temperature : (B, H)
    """

    indices: NDArray
    queries: NDArray
    temperature: NDArray


class Fitted(NamedTuple):
    """Landmarks and what they stand for.

    indices : (B, H, n_out) int64
    values : (B, n_out, H, D)
    masses : (B, H, n_out)
    """

    indices: NDArray
    values: NDArray
    masses: NDArray


def fit_landmarks(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    *,
    n_out: int,
    correction: str,
    temperature: float | None,
    scale: float,
    seed: int,
    fit: bool = True,
) -> tuple[Chosen, Fitted | None]:
    """Choose landmarks of query (B, T, H, E), key (B, S, H, E), value (B, S, H, D), and fit them.

    Everything is finite, and n_out below S. Without `fit` they are chosen only.
    """
    from thinformer import cpu, pivots  # import Numba
    from thinformer.softmax import softmax_attention

    B, T, H, E = query.shape
    S, D = key.shape[1], value.shape[-1]
    dtype, problems = key.dtype, B * H
    streams = head_keys(seed, max(H, 1))

    def numbers(stream: int, size: int) -> NDArray:
        out = np.empty((H, size))
        cpu.unit_numbers(streams[:H], STREAMS + stream, out)
        return out

    m = min(T, QUERIES) if correction == "queries" else 0
    sampled = np.broadcast_to(strata(T, m, numbers(0, m + 1)), (B, H, m))
    centred = key - key.mean(axis=1, keepdims=True, dtype=np.float64).astype(dtype)
    tau = (
        _temperature(query, centred, scale) if temperature is None else np.full((B, H), temperature)
    )
    keys = _factor(centred)
    keys.parameters[:, SCALE] = (np.sqrt(scale) / tau).ravel()

    everything = np.broadcast_to(np.arange(S), (problems, S))
    attention = np.empty((problems, m, S), dtype)
    outputs = np.empty((B, m, H, D if fit else 0), dtype)
    queries = _factor(np.take_along_axis(query, sampled.transpose(0, 2, 1)[..., None], axis=1))
    queries.parameters[:, SCALE] = scale
    values = _factor(value if fit else value[..., :0])
    if m:
        softmax_attention(queries, _factor(centred), values, everything, outputs, attention)

    length = min(S, CANDIDATES * n_out)
    candidates = strata(S, length, numbers(1, length + 1))
    uniforms = numbers(2, 2 * PROPOSALS * n_out).reshape(H, -1, 2)
    of_head = np.tile(np.arange(H), B)
    kept = np.empty((problems, n_out), np.int64)
    exponents, constants = np.empty((problems, n_out), dtype), np.empty((problems, 2), dtype)

    def choose(first: int, last: int) -> None:
        work = pivots.workspace(S, length, n_out, m, E, dtype)
        pivots.choose_pivots(
            first, last, keys, attention, candidates, of_head, uniforms, of_head, kept, exponents,
            constants, work,
        )  # fmt: skip

    flops = 2.0 * length * n_out * (m + E + n_out / 2)
    _pool.run(choose, problems, problems * flops)
    chosen = Chosen(kept.reshape(B, H, n_out), sampled, tau)
    if not fit:
        return chosen, None

    few = np.take_along_axis(centred, chosen.indices.transpose(0, 2, 1)[..., None], axis=1)
    x = (few * (np.sqrt(scale) / tau)[:, None, :, None].astype(dtype)).transpose(0, 2, 1, 3)
    x = x.reshape(problems, n_out, E)
    t, top = constants[:, :1], constants[:, 1:]
    # <x_s, x_j> is what a softmax of this scale makes of the query k_s / tau^2
    as_queries = _factor(few)
    as_queries.parameters[:, SCALE] = (scale / tau**2).ravel()
    sums, logs = np.empty((B, n_out, H, D), dtype), np.empty((problems, n_out), dtype)
    softmax_attention(as_queries, _factor(centred), values, everything, sums, None, logs=logs)
    right = _with_ones(sums) * np.exp(logs - exponents - top)[..., None]
    N = np.exp(x @ x.mT - exponents[:, :, None] - exponents[:, None])
    if m:
        f = np.take_along_axis(attention, kept[:, None], axis=2) * np.exp(
            t[..., None] - exponents[:, None]
        )
        N += f.mT @ f
        right += f.mT @ (_with_ones(outputs) * np.exp(t - top)[..., None])
    N[:, np.arange(n_out), np.arange(n_out)] += pivots.NUGGET
    solved = np.linalg.solve(N.astype(np.float64), right.astype(np.float64))
    fitted = (solved * np.exp(top - exponents, dtype=np.float64)[..., None]).astype(dtype)
    fitted = fitted.reshape(B, H, n_out, D + 1)
    return chosen, Fitted(
        chosen.indices,
        np.ascontiguousarray(fitted[..., :-1].transpose(0, 2, 1, 3)),
        fitted[..., -1],
    )


def strata(n_points: int, length: int, uniforms: NDArray) -> NDArray:
    """Positions (heads, length), one at random from each of as many strata: `starting_points`'s."""
    if length == n_points:
        return np.broadcast_to(np.arange(n_points), (len(uniforms), n_points))
    start = (uniforms[:, :1] * n_points).astype(np.int64)
    bounds = np.arange(length + 1, dtype=np.int64) * n_points // max(length, 1)
    inside = (uniforms[:, 1:] * np.diff(bounds)).astype(np.int64)
    return np.sort((start + bounds[:-1] + inside) % n_points, axis=1)


def _temperature(query: NDArray, key: NDArray, scale: float) -> NDArray:
    """WildCat's temperature (B, H) of centred keys; 1 where all queries or all keys are 0."""
    q, k = (
        np.sqrt(np.einsum("bshe,bshe->bsh", x, x).max(axis=1)).astype(np.float64)
        for x in (query, key)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        b = np.log(key.shape[1]) / (scale * q * k) + 2
        tau = np.sqrt(k / q * b / (2 * lambertw(b / TWO_RHO).real))
    return np.where((q > 0) & (k > 0), tau, 1.0)


def _with_ones(sums: NDArray) -> NDArray:
    """Rows (B, n, H, D) as (problems, n, D + 1), the last column ones."""
    B, n, H, D = sums.shape
    out = np.ones((B, H, n, D + 1), sums.dtype)
    out[..., :-1] = sums.transpose(0, 2, 1, 3)
    return out.reshape(B * H, n, D + 1)


def _factor(array: NDArray) -> Factor:
    return make_factor(array.transpose(0, 2, 1, 3), linear())
