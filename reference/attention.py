"""Thinformer: attention over the keys and values that KH-Compress keeps.

Low-Rank Thinning (arXiv 2502.12063), Algorithm 1. Arrays are query (B, T, H, E), key (B, S, H, E)
and value (B, S, H, D); each head of each sequence is thinned by itself.
"""

import numpy as np

from reference.compress import kh_compress, standard_thin, stratified_thin


def exact_attention(query, key, value, scale):
    """softmax(scale q k^T) v for every head: output (B, T, H, D), weights (B, H, T, S)."""
    logits = scale * np.einsum("bthe,bshe->bhts", query, key)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", weights, value), weights


def power_of_two(vmax):
    """The power of two that brings vmax into [1/2, 1), as far as its dtype has it."""
    largest = np.finfo(vmax.dtype).maxexp - 2
    return np.ldexp(vmax.dtype.type(1), -np.clip(np.frexp(vmax)[1], -largest, largest))


def attention_kernel(key, value, vmax):
    """exp(<k, k'> - shift) (<v, v'> + vmax^2) on keys (S, E), already times sqrt(scale).

    The first factor makes exp(<q, k>) a function in the kernel's Hilbert space, the second makes
    room for the numerator's values and the denominator's ones, on one footing.
    The shift keeps exp from overflowing. It multiplies the kernel by a constant, to which KH is
    blind, so each bucket may have its own, the least that does: its largest |k|^2.
    """
    shift = np.max(np.sum(key**2, axis=1))
    return np.exp(key @ key.T - shift) * (value @ value.T + vmax**2)


def select(key, value, scale, schedule, uniforms, coins, strata=None):
    """Positions (n_out,) that one head keeps, from key (S, E) and value (S, D), and the traces.

    `strata` (schedule.length + 1 draws from [0, 1)) chooses the stratified pre-thinning;
    without it, it is the published stride.
    """
    S, n = len(key), schedule.length
    start = standard_thin(S, n) if strata is None else stratified_thin(S, n, strata)
    E = key.shape[1]
    pairs = np.concatenate([key * np.sqrt(scale).astype(key.dtype), value], axis=1)[start]
    # ||V||_max, brought below 1 by a power of two, which is exact: its square cannot overflow
    vmax = np.max(np.abs(pairs[:, E:]))
    power = power_of_two(vmax)
    pairs[:, E:] *= power
    vmax *= power

    def gram(points):
        return attention_kernel(points[:, :E], points[:, E:], vmax)

    kept, traces = kh_compress(gram, pairs, schedule.rounds, uniforms, coins)
    return start[kept], traces


def thinformer_attention(query, key, value, scale, schedule, draws):
    """Thinformer attention and all it was made from.

    Parameters
    ----------
    query, key, value : arrays (B, T, H, E), (B, S, H, E), (B, S, H, D)
    scale : float
        Usually 1 / sqrt(E).
    schedule : has length (n) and rounds, a sequence of (pairs, buckets, delta)
    draws : has uniforms, coins and strata, as `select` takes them for one head; each array with
        leading axes that broadcast to (B, H)

    Returns
    -------
    output : (B, T, H, D)
    weights : (B, H, T, n_out)
    indices : (B, H, n_out) int
    traces : dict of (b, h) to list of Trace
    """
    B, _, H, _ = key.shape

    def of_head(draw, b, h):
        return np.broadcast_to(draw, (B, H, draw.shape[-1]))[b, h]

    indices, traces = [], {}
    for b in range(B):
        for h in range(H):
            strata = None if draws.strata is None else of_head(draws.strata, b, h)
            kept, traces[b, h] = select(
                key[b, :, h],
                value[b, :, h],
                scale,
                schedule,
                [of_head(u, b, h) for u in draws.uniforms],
                [of_head(c, b, h) for c in draws.coins],
                strata,
            )
            indices.append(kept)
    indices = np.reshape(indices, (B, H, -1))
    rows = indices.transpose(0, 2, 1)[..., None]  # (B, n_out, H, 1)
    kept_key = np.take_along_axis(key, rows, axis=1)
    kept_value = np.take_along_axis(value, rows, axis=1)
    output, weights = exact_attention(query, kept_key, kept_value, scale)
    return output, weights, indices, traces
