"""`causal_attention`: each token attends to the tokens near before it, and to few keys of the rest.

`reference.cache.causal_attention` is the definition. Arrays are query (B, T, H, E), key
(B, T, H_kv, E) and value (B, T, H_kv, D); H is a multiple of H_kv.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.attending.arguments import softmax_scale
from thinformer.attending.cache import QUERIES, CacheOptions, checked_arrays, compress_head
from thinformer.support import checks


def causal_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    size: int = 256,
    *,
    block: int = 512,
    recent: int = 128,
    scale: float | None = None,
) -> NDArray:
    """Approximate causal attention in time and memory that grow linearly with the tokens.

    Tokens are read in blocks. A query attends exactly to the tokens of its block up to its own and
    to the `recent` tokens before the block. Of all earlier tokens it attends to few keys with
    fitted values and masses: what `compress_cache` keeps after each block. No output depends on a
    later token. With T <= size this is exact attention.

    Parameters
    ----------
    query : (B, T, H, E) float array
    key : (B, T, H_kv, E) float array
        H is a multiple of H_kv: that many query heads share a head of keys.
    value : (B, T, H_kv, D) float array
        float32 and float64 are computed in their own precision, float16 in float32.
    size : int
        Keys that are kept after a block, at least ``recent + 5``.
    block : int
        Tokens in a block.
    recent : int
        The latest tokens, of `size`, that are kept as they are.
    scale : float, optional
        Softmax scale, positive; 1 / sqrt(E) by default.

    Returns
    -------
    (B, T, H, D) array
        In the inputs' dtype. Nothing is drawn: the same input gives the same output.

    Raises
    ------
    TypeError, ValueError
        An array is not a finite float array of the shape above, dtypes differ, or an argument is
        out of its range.

    Notes
    -----
    A block takes block (size + block) (E + D) multiply-adds a query head, and a compression of
    size + block keys for each head of keys. Memory is that of the weights of a block,
    and of 256 queries for each head of a group.

    Let BLAS use one thread, by ``OPENBLAS_NUM_THREADS=1`` before NumPy is imported, where there are
    few cores: threads that wait for each other took most of the time on two. Below some thousands
    of tokens exact attention is faster.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import causal_attention
    >>> query, key, value = np.random.default_rng(0).normal(size=(3, 1, 2000, 2, 16))
    >>> causal_attention(query, key, value, 256).shape
    (1, 2000, 2, 16)
    """
    options, block = CacheOptions(size, recent), checks.integer("block", block, 1)
    query, key, value, _, given = checked_arrays(query, key, value, None)
    scale, (B, T, H, _), H_kv = softmax_scale(scale, key.shape[-1]), query.shape, key.shape[2]
    if key.shape[1] != T:
        raise ValueError(
            f"query and key must have as many tokens, which attend to themselves and to those "
            f"before; got {T} and {key.shape[1]}"
        )
    output, group = np.empty((B, T, H, value.shape[-1]), given), H // H_kv
    for b, h in np.ndindex(B, H_kv):
        heads = slice(h * group, (h + 1) * group)
        of_group = np.ascontiguousarray(query[b, :, heads].swapaxes(0, 1))
        _attend(of_group, key[b, :, h], value[b, :, h], options, block, scale, output[b, :, heads])
    return output


def _attend(
    query: NDArray, key: NDArray, value: NDArray, options: CacheOptions, block: int, scale: float,
    output: NDArray,
) -> None:  # fmt: skip
    """Write the output (T, G, D) of queries (G, T, E) of the heads that share keys (T, E)."""
    G, T, E = query.shape
    keys, values, log_mass = key[:0], value[:0], np.zeros(0, key.dtype)
    for start in range(0, T, block):
        end, kept = min(start + block, T), len(keys)
        t = end - start
        keys, values = (
            np.concatenate([before, array[start:end]])
            for before, array in ((keys, key), (values, value))
        )
        log_mass = np.concatenate([log_mass, np.zeros(t, key.dtype)])
        weights = query[:, start:end].reshape(-1, E) @ keys.T
        weights *= scale
        weights += log_mass
        weights = weights.reshape(G, t, -1)
        weights[:, np.arange(t)[:, None] < np.arange(-kept, t)] = -np.inf  # later tokens
        weights -= weights.max(axis=-1, keepdims=True)
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=-1, keepdims=True)
        output[start:end] = (weights @ values).swapaxes(0, 1)
        if end < T and len(keys) > options.size:
            latest = query[:, max(0, end - QUERIES) : end]
            (keys, values, log_mass), _ = compress_head(
                latest, keys, values, log_mass, options, scale
            )
