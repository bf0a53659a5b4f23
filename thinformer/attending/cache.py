"""`compress_cache`: few keys, with values and masses, in place of a decoder's cache.

Arrays are query (B, L, H, E), key (B, S, H_kv, E) and value (B, S, H_kv, D); H is a multiple of
H_kv. For each head of keys, P (m, S) are the attention weights of the latest queries on all keys.
The next queries will need sums like T = P (V, 1).

- One in five of the kept keys is one that the very latest queries attend to, or stands up to eight
  places behind it. A question at the end of a text asks for them.
- Matching pursuit chooses the rest, so that their columns A of P span T: a round adds those nearest
  in direction to what is left of T.
- Every other key joins the nearest one of the rest. Kept keys get Z_0, their own (v, 1) and a share
  of those of the keys that joined.
- Ridge regression makes Z of Z_0, so that A Z is near T. The values are the first columns of Z over
  the last one, which are the masses.

`reference.cache` is the definition. Here products are of the arrays' own precision, and systems are
solved in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from thinformer.attending.arguments import check_finite, check_shapes, softmax_scale
from thinformer.support import checks

SINKS = 4  # first tokens, which are kept
RECENT = 32  # latest tokens, which are kept
GROWTH = 64  # tokens that join the latest ones before the next compression
QUERIES = 256  # latest queries of a head that keys are chosen for and fitted to
ASKING = 16  # very latest queries of a head
ASKED = 5  # one of so many kept keys is one that these queries attend to, or that stands behind it
BEHIND = 8  # places behind a key that count as much as the key
ROUNDS = 4  # rounds of the pursuit
FOLDED = 16  # columns that values are folded to in the pursuit
JOINED = 0.3  # share of the keys that joined a kept one in the sums that the fit starts from
NUGGET = 0.2  # of the pursuit and of the fit
LEAST = 0.02  # least fitted mass, as a share of the mass that the fit starts from
STIFF = 1e-3  # variance of a kept key that no other joined; others have the mass of those


@dataclass(frozen=True)
class CacheOptions:
    """How many keys of a head are kept.

    Attributes
    ----------
    size : int
        Keys after a compression.
    recent : int
        The latest of them, which are tokens as they are.
    growth : int
        Tokens that join the latest ones before the next compression.

    Raises
    ------
    ValueError
        An option is out of its range.
    """

    size: int = 256
    recent: int = RECENT
    growth: int = GROWTH

    def __post_init__(self) -> None:
        object.__setattr__(self, "recent", checks.integer("recent", self.recent, 1))
        object.__setattr__(self, "growth", checks.integer("growth", self.growth, 1))
        least = self.recent + SINKS + 1
        object.__setattr__(self, "size", checks.integer("size", self.size, 1))
        if self.size < least:
            raise ValueError(
                f"size must be at least {least}, for the first {SINKS} tokens, the latest "
                f"{self.recent} and one landmark; got {self.size}"
            )


class CompressedCache(NamedTuple):
    """What `compress_cache` returns.

    Attributes
    ----------
    key : (B, n, H_kv, E) array
        The keys that are kept, as they were.
    value : (B, n, H_kv, D) array
        Their fitted values.
    log_mass : (B, n, H_kv) array
        What is added to their logits.
    indices : (B, H_kv, n) int64 array
        Their positions, increasing.
    """

    key: NDArray
    value: NDArray
    log_mass: NDArray
    indices: NDArray[np.int64]


def compress_cache(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    size: int,
    *,
    recent: int = RECENT,
    scale: float | None = None,
    log_mass: ArrayLike | None = None,
) -> CompressedCache:
    r"""Compress the cache of a decoder: keep few keys, and fit values and masses to them.

    What is kept serves the queries that come next:
    :math:`\sum_s e^{\beta\langle q, k_s\rangle + b_s} v_s / \sum_s e^{\beta\langle q, k_s\rangle +
    b_s}` with the softmax scale :math:`\beta`, that is softmax attention with b added to the
    logits. The latest tokens are kept as they are. Of the others the first four are kept, those
    that the very latest queries attend to, and those from which the sums that the latest queries
    need can best be computed. Their values and masses are fitted, so that these sums come out.
    `thinformer.attending.cache` has the formulas.

    Parameters
    ----------
    query : (B, L, H, E) float array
        The latest queries, after rotation; the last 256 are used.
    key : (B, S, H_kv, E) float array
        The keys so far, after rotation. H is a multiple of H_kv: that many query heads share a head
        of keys.
    value : (B, S, H_kv, D) float array
        float32 and float64 are computed in their own precision, float16 in float32.
    size : int
        Keys to keep, at least ``recent + 5``. All are kept where S <= size.
    recent : int
        The latest keys, which are kept as they are. Keys that come later join them.
    scale : float, optional
        Softmax scale, positive; 1 / sqrt(E) by default.
    log_mass : (B, S, H_kv) float array, optional
        Log masses of keys that were compressed before; 0 for a token, which is the default, and
        minus infinity where there is none, as in padding.

    Returns
    -------
    CompressedCache
        ``key``, ``value``, ``log_mass`` and ``indices``, in the inputs' dtype. Nothing is drawn:
        the same input gives the same cache.

    Raises
    ------
    TypeError, ValueError
        An array is not a finite float array of the shape above, dtypes differ, or an argument is
        out of its range.

    Notes
    -----
    With m = 256 H / H_kv queries, m S (E + D + 85) + n_out S E + 3 m n_out^2 + n_out^3 / 2
    multiply-adds a head of keys, and m S numbers of memory.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import compress_cache
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = rng.normal(size=(3, 1, 1000, 4, 16))
    >>> kept = compress_cache(query, key[:, :, :2], value[:, :, :2], 128)
    >>> kept.key.shape, kept.value.shape, kept.log_mass.shape, kept.indices.shape
    ((1, 128, 2, 16), (1, 128, 2, 16), (1, 128, 2), (1, 2, 128))
    """
    options = CacheOptions(size, recent)
    query, key, value, masses, given = checked_arrays(query, key, value, log_mass)
    scale = softmax_scale(scale, key.shape[-1])
    (B, S, H_kv, _), n = key.shape, min(options.size, key.shape[1])
    indices = np.tile(np.arange(S)[:n], (B, H_kv, 1))
    kept = CompressedCache(
        np.empty((B, n, H_kv, key.shape[-1]), given),
        np.empty((B, n, H_kv, value.shape[-1]), given),
        np.empty((B, n, H_kv), given),
        indices,
    )
    latest = query[:, -QUERIES:]
    group = query.shape[2] // H_kv
    for b, h in np.ndindex(B, H_kv):
        of_group = latest[b, :, h * group : (h + 1) * group].swapaxes(0, 1)
        of_group = np.ascontiguousarray(of_group)
        of_head = key[b, :, h], value[b, :, h], masses[b, :, h]
        if n < S:
            of_head, indices[b, h] = compress_head(of_group, *of_head, options, scale)
        for array, fitted in zip(kept, of_head, strict=False):
            array[b, :, h] = fitted
    return kept


def compress_head(
    query: NDArray, key: NDArray, value: NDArray, log_mass: NDArray, options: CacheOptions,
    scale: float,
) -> tuple[tuple[NDArray, NDArray, NDArray], NDArray]:  # fmt: skip
    """Keys, values and log masses that are kept of one head, and their positions.

    query : (G, L, E), the latest queries of the heads that share the keys
    """
    early, n = options.size - options.recent, len(key) - options.recent
    weights = query.reshape(-1, key.shape[1]) @ key.T
    weights *= scale
    weights += log_mass
    weights -= weights.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    weights /= weights.sum(axis=1, keepdims=True)
    weights = weights[:, :n]
    there = log_mass[:n] > -np.inf
    very_latest = weights.reshape(*query.shape[:2], n)[:, -ASKING:].sum(axis=(0, 1))
    chosen, asked = _choose(weights, value[:n], there, _most_asked(very_latest, there), early)
    number = _nearest(key[:n], chosen, asked)
    largest = max(log_mass[:n].max(), np.finfo(log_mass.dtype).min)
    mass = np.exp(log_mass[:n] - largest)  # only ratios count
    fitted, masses = _fit(weights, value[:n], mass, chosen, number)
    kept = np.concatenate([chosen, np.arange(n, len(key))])
    of_kept = log_mass[kept]
    of_kept[:early] += np.log(masses)
    return (key[kept], np.concatenate([fitted, value[n:]]), of_kept), kept


def _most_asked(total: NDArray, there: NDArray) -> NDArray:
    """The largest total weight of a key and of the BEHIND before it, (n,); -1 in padding."""
    windows = sliding_window_view(np.pad(total, (BEHIND, 0)), BEHIND + 1)
    return np.where(there, windows.max(axis=1), -1)


def _choose(
    weights: NDArray, value: NDArray, there: NDArray, asked_for: NDArray, number: int
) -> tuple[NDArray, NDArray]:
    """Positions (number,) of the keys kept among n, and which of them are asked for.

    weights (m, n), value (n, D), there (n,), asked_for (n,)
    """
    kept = np.argsort(~there, kind="stable")[:SINKS]
    asked_for[kept] = -2
    asked = _best(asked_for, (number - SINKS) // ASKED)
    kept = np.concatenate([kept, asked])
    target = weights @ _folded(value, there)
    squares = np.einsum("mn,mn->n", weights, weights)
    damped = squares + squares.sum() / max(there.sum(), 1)
    damped[damped == 0] = 1
    for i in range(ROUNDS):
        A = weights[:, kept]
        solved = _ridge(A, target, np.ones(len(kept), weights.dtype))
        score = np.square(weights.T @ (target - A @ solved)).sum(axis=1)
        score /= damped
        score[~there] = -1
        score[kept] = -2
        kept = np.concatenate([kept, _best(score, (number - len(kept)) // (ROUNDS - i))])
    kept.sort()
    return kept, np.isin(kept, asked)


def _best(score: NDArray, number: int) -> NDArray:
    """Positions (number,) of the largest scores; of equal scores the later key."""
    return np.argsort(score, kind="stable")[len(score) - number :]


def _folded(value: NDArray, there: NDArray) -> NDArray:
    """Values (n, D) with columns added in groups, with changing signs, and a column of masses."""
    n, D = value.shape
    columns = np.zeros((n, min(D, FOLDED) + 1), value.dtype)
    for group, start in enumerate(range(0, D, FOLDED)):
        part = value[:, start : start + FOLDED]
        columns[:, : part.shape[1]] += part if group % 2 == 0 else -part
    norms = np.sqrt(np.einsum("nd,nd->n", value, value))
    columns[:, -1] = norms[there].sum() / max(there.sum(), 1)
    return columns


def _ridge(A: NDArray, target: NDArray, variance: NDArray) -> NDArray:
    """X (n, D) that minimises |A X - target|^2 + nu sum |X_s|^2 / variance_s; see the reference."""
    from scipy.linalg import cho_factor, cho_solve

    root = np.sqrt(variance)
    scaled = A * root
    gram = (scaled.T @ scaled).astype(np.float64)
    nugget = NUGGET * gram.trace() / len(A)
    if not nugget > 0:  # the queries attend to none of these keys
        return np.zeros((A.shape[1], target.shape[1]), A.dtype)
    gram[np.diag_indices(len(root))] += nugget
    solved = cho_solve(cho_factor(gram, check_finite=False), scaled.T @ target, check_finite=False)
    return root[:, None] * solved.astype(A.dtype)


def _nearest(key: NDArray, kept: NDArray, asked: NDArray) -> NDArray:
    """The number of the kept key that each key joins: the nearest that is not asked for."""
    few = key[kept]
    distances = key @ few.T
    distances *= -2
    distances += np.where(asked, np.inf, np.einsum("ne,ne->n", few, few))
    number = distances.argmin(axis=1)
    number[kept] = np.arange(len(kept))
    return number


def _fit(
    weights: NDArray, value: NDArray, mass: NDArray, kept: NDArray, number: NDArray
) -> tuple[NDArray, NDArray]:
    """Values and relative masses of the kept keys; a key joins the kept one of its number.

    weights (m, n), value (n, D), mass (n,), kept (n_out,), number (n,)
    """
    A, own = weights[:, kept], mass[kept]
    V1 = np.concatenate([value, np.ones((len(value), 1), value.dtype)], axis=1)
    relative = mass / np.where(own > 0, own, 1)[number]
    relative[kept] = 0
    joined = np.zeros((len(kept), V1.shape[1]), value.dtype)
    np.add.at(joined, number, relative[:, None] * V1)
    start = V1[kept] + value.dtype.type(JOINED) * joined
    moved = start + _ridge(A, weights @ V1 - A @ start, np.maximum(joined[:, -1], STIFF))
    masses = np.maximum(moved[:, -1:], LEAST * start[:, -1:])
    return moved[:, :-1] / masses, masses[:, 0]


def checked_arrays(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, log_mass: ArrayLike | None
) -> tuple[NDArray, NDArray, NDArray, NDArray, np.dtype]:
    """The arrays in the dtype they are computed in, and the dtype they had."""
    arrays = {
        name: checks.float_array(name, array)
        for name, array in (("query", query), ("key", key), ("value", value))
    }
    given = arrays["key"].dtype
    checks.one_dtype(**{name: array.dtype.name for name, array in arrays.items()})
    q, k, v = (checks.computed(array) for array in arrays.values())
    check_shapes(k.shape, v.shape)
    if q.ndim != 4 or (q.shape[0], q.shape[3]) != (k.shape[0], k.shape[3]) or 0 in q.shape:
        raise ValueError(
            f"query must have shape (B, L, H, E) with the B and E of key {k.shape}; "
            f"got shape {q.shape}"
        )
    if q.shape[2] % k.shape[2] != 0:
        raise ValueError(
            f"query must have a multiple of the {k.shape[2]} heads of key; got {q.shape[2]} heads"
        )
    check_finite(query=q, key=k, value=v)
    if log_mass is None:
        return q, k, v, np.zeros(k.shape[:3], k.dtype), given
    masses = checks.float_array("log_mass", log_mass)
    if masses.shape != k.shape[:3]:
        raise ValueError(f"log_mass must have shape {k.shape[:3]}; got shape {masses.shape}")
    if not (masses < np.inf).all():
        raise ValueError("log_mass must be finite or minus infinity; it holds NaN or infinity")
    if (masses == -np.inf).all(axis=1).any():
        raise ValueError("log_mass must leave each head a key; one is minus infinity throughout")
    return q, k, v, masses.astype(k.dtype), given
