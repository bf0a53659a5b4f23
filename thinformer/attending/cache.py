"""`compress_cache`: few keys, with values and masses, in place of a decoder's cache.

Arrays are query (B, L, H, E), key (B, S, H_kv, E) and value (B, S, H_kv, D); H is a multiple of
H_kv. For each head of keys, P (m, S) are the attention weights of the latest queries on all keys.
The next queries will need sums like T = P (V, 1).

- One in five of the kept keys is one that the very latest queries attend to, or stands up to eight
  places behind it. A question at the end of a text asks for them.
- Orthogonal matching pursuit chooses the rest, so that their columns A of P span T: a round adds
  those nearest in direction to what is left of T.
- Every other key joins the nearest one of the rest. Kept keys get Z_0, their own (v, 1) and a share
  of those of the keys that joined.
- Ridge regression makes Z of Z_0, so that A Z is near T. The values are the first columns of Z over
  the last one, which are the masses.

`reference.cache` is the definition, and `thinformer.cpu.cache` computes it, in the arrays' own
precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.attending.arguments import (
    check_finite,
    check_logits,
    check_shapes,
    softmax_scale,
)
from thinformer.cpu.run import without_subnormals
from thinformer.halving.problem import SCALE, head_factor
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
RATIO = 40  # largest log of the mass of a key that joins, over that of the key it joins
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
    check_logits(query, key, scale)
    keys, values, log_masses, indices = compress_arrays(
        query[:, -QUERIES:], key, value, masses, options, scale
    )
    limit = np.finfo(given).max  # a value over a mass below 1 may be above that of float16
    values = np.clip(values, -limit, limit)
    keys, values, log_masses = (array.astype(given) for array in (keys, values, log_masses))
    return CompressedCache(keys, values, log_masses, indices)


def compress_arrays(
    query: NDArray, key: NDArray, value: NDArray, log_mass: NDArray, options: CacheOptions,
    scale: float,
) -> CompressedCache:  # fmt: skip
    """Compress a cache as `compress_cache` does, of arrays that are checked.

    query : (B, L, H, E), of which all are used; a query whose first number is NaN is none
    """
    (B, S, H_kv, _), n = key.shape, options.size
    if n >= S:
        indices = np.tile(np.arange(S), (B, H_kv, 1))
        return CompressedCache(key, value, log_mass, indices)
    early, D = n - options.recent, value.shape[-1]
    indices = np.tile(np.arange(S - n, S), (B, H_kv, 1))
    fitted = np.empty((B, H_kv, early, D), key.dtype)
    masses = np.empty((B, H_kv, early), key.dtype)
    positions = np.empty((B * H_kv, early), np.int64)
    _compress_heads(
        query, key, value, log_mass, S - options.recent, scale, positions,
        fitted.reshape(B * H_kv, early, D), masses.reshape(B * H_kv, early),
    )  # fmt: skip
    indices[..., :early] = positions.reshape(B, H_kv, early)
    rows = indices.swapaxes(1, 2)
    keys, values = (np.take_along_axis(array, rows[..., None], 1) for array in (key, value))
    log_masses = np.take_along_axis(log_mass, rows, 1)
    values[:, :early] = fitted.swapaxes(1, 2)
    log_masses[:, :early] += np.log(masses).swapaxes(1, 2)
    return CompressedCache(keys, values, log_masses, indices)


def _compress_heads(
    query: NDArray, key: NDArray, value: NDArray, log_mass: NDArray, n: int, scale: float,
    indices: NDArray, values: NDArray, masses: NDArray,
) -> None:  # fmt: skip
    """Write which of the first n keys are kept, (problems, early), their values and masses."""
    from thinformer.cpu import cache  # imports Numba

    (_, L, _, E), (problems, early), D = query.shape, indices.shape, value.shape[-1]
    group, S = query.shape[2] // key.shape[2], key.shape[1]
    queries, of_keys = head_factor(query), log_mass.swapaxes(1, 2).reshape(problems, S)
    queries.parameters[:, SCALE] = scale
    positions = np.arange(max(L, S, cache.PANEL))
    held = cache.Held(
        queries, head_factor(key), head_factor(value), np.ascontiguousarray(of_keys), L, n,
        positions,
    )  # fmt: skip
    rules = cache.Rules(
        SINKS, ASKING, ASKED, BEHIND, ROUNDS, FOLDED, JOINED, NUGGET, LEAST, STIFF, float(RATIO)
    )

    def compress(first: int, last: int) -> None:
        work = cache.workspace(held, group, early)
        cache.compress_heads(first, last, held, rules, indices, values, masses, work)

    M = group * L
    flops = M * n * (E + D + 85) + n * early * E + 3 * M * early**2 + early**3 / 2
    without_subnormals(compress, problems, 2.0 * problems * flops)


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
    if k.shape[2] == 0:
        raise ValueError(f"key must have at least one head; got shape {k.shape}")
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
    with np.errstate(over="ignore"):
        cast = masses.astype(k.dtype)
    if (np.isinf(cast) != np.isinf(masses)).any():
        raise ValueError(f"log_mass must be in the range of {k.dtype}, the dtype of key")
    return q, k, v, cast, given
