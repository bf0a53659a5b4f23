"""`causal_attention`: each token attends to the tokens near before it, and to few keys of the rest.

`reference.cache.causal_attention` is the definition, and `thinformer.cpu.causal` computes the
attention of a block. Arrays are query (B, T, H, E), key
(B, T, H_kv, E) and value (B, T, H_kv, D); H is a multiple of H_kv.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.attending.arguments import check_logits, softmax_scale
from thinformer.attending.cache import QUERIES, CacheOptions, checked_arrays, compress_arrays
from thinformer.cpu.run import without_subnormals
from thinformer.halving.problem import SCALE, head_factor
from thinformer.support import checks


def causal_attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    size: int = 256,
    *,
    block: int = 2048,
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
        Tokens in a block. Larger blocks are nearer, and take more time.
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
    A block takes block (size + block / 2) (E + D) multiply-adds a query head, and a compression of
    size + block keys for each head of keys, see `compress_cache`, which also says what memory it
    takes. A text of no more than `block` tokens is not compressed, and up to twice as many tokens
    exact attention is as fast.

    What a head looks up far back, one token of many, is lost. Where most queries do that, a window
    over as many tokens as the time allows can be nearer.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import causal_attention
    >>> query, key, value = np.random.default_rng(0).normal(size=(3, 1, 5000, 2, 16))
    >>> causal_attention(query, key, value, 256).shape
    (1, 5000, 2, 16)
    """
    options, block = CacheOptions(size, recent), checks.integer("block", block, 1)
    query, key, value, _, given = checked_arrays(query, key, value, None)
    scale, (B, T, H, _), H_kv = softmax_scale(scale, key.shape[-1]), query.shape, key.shape[2]
    if key.shape[1] != T:
        raise ValueError(
            f"query and key must have as many tokens, which attend to themselves and to those "
            f"before; got {T} and {key.shape[1]}"
        )
    check_logits(query, key, scale)
    output = np.empty((B, T, H, value.shape[-1]), key.dtype)
    keys, values = key[:, :0], value[:, :0]
    log_mass = np.zeros((B, 0, H_kv), key.dtype)
    for start in range(0, T, block):
        here = slice(start, min(start + block, T))
        keys, values = (
            np.concatenate([kept, tokens[:, here]], axis=1)
            for kept, tokens in ((keys, key), (values, value))
        )
        log_mass = np.pad(log_mass, ((0, 0), (0, keys.shape[1] - log_mass.shape[1]), (0, 0)))
        attend_to_block(query[:, here], keys, values, log_mass, scale, output, start)
        if here.stop < T:
            latest = query[:, max(0, here.stop - QUERIES) : here.stop]
            keys, values, log_mass, _ = compress_arrays(
                latest, keys, values, log_mass, options, scale
            )
    return output.astype(given, copy=False)


def attend_to_block(
    query: NDArray, key: NDArray, value: NDArray, log_mass: NDArray, scale: float,
    output: NDArray, start: int,
) -> None:  # fmt: skip
    """Write the outputs of a block of t tokens, whose own keys are the last of S.

    query (B, t, H, E), key (B, S, H_kv, E), value (B, S, H_kv, D), log_mass (B, S, H_kv)
    output (B, T, H, D), contiguous, of which t tokens from `start` on are written
    """
    from thinformer.cpu import causal, simd  # imports Numba

    (_, t, _, E), S, (B, T, H, D) = query.shape, key.shape[1], output.shape
    blocks, of_keys = -(-t // simd.PANEL), log_mass.swapaxes(1, 2).reshape(-1, S)
    queries, keys, values = (head_factor(array) for array in (query, key, value))
    queries.parameters[:, SCALE] = scale
    masses, positions = np.ascontiguousarray(of_keys), np.arange(max(S, simd.PANEL))
    place = D * ((np.arange(B)[:, None] * T + start) * H + np.arange(H)).ravel()

    def attend(first: int, last: int) -> None:
        work = causal.workspace(S, E, D, output.dtype)
        causal.attend_block(
            first, last, blocks, t, queries, keys, values, masses, positions, output.ravel(),
            place, H * D, work,
        )  # fmt: skip

    without_subnormals(attend, B * H * blocks, 2.0 * B * H * t * S * (E + D))
