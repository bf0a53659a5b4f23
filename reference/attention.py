"""Thinformer: attention over the keys and values that KH-Compress keeps.

Low-Rank Thinning (arXiv 2502.12063), Algorithm 1. Arrays are query (B, T, H, E), key (B, S, H, E)
and value (B, S, H, D). Each head of each sequence is thinned by itself.
"""

import numpy as np

from reference.compress import kh_compress, standard_thin, stratified_thin


def exact_attention(query, key, value, scale):
    """softmax(scale q k^T) v for every head; returns output (B, T, H, D), weights (B, H, T, S)."""
    logits = scale * np.einsum("bthe,bshe->bhts", query, key)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("bhts,bshd->bthd", weights, value), weights


def power_of_two(vmax):
    """The power of two that brings vmax into [1/2, 1), or the nearest one that its dtype has."""
    largest = np.finfo(vmax.dtype).maxexp - 2
    return np.ldexp(vmax.dtype.type(1), -np.clip(np.frexp(vmax)[1], -largest, largest))


def attention_kernel(key, value, vmax):
    """exp(<k, k'> - shift) (<v, v'> + vmax^2), (S, S), of keys (S, E) and values (S, D).

    The keys are already multiplied by sqrt(scale).

    With the first factor, exp(<q, k>) is a function in the kernel's Hilbert space. With the second
    factor, so are the numerator (its values) and the denominator (its ones) of attention, on the
    same scale.

    The shift keeps exp from overflowing. It multiplies the kernel by a constant, which does not
    change the choice of KH. So each bucket may have its own shift: the smallest that suffices is
    its largest |k|^2.
    """
    shift = np.max(np.sum(key**2, axis=1))
    return np.exp(key @ key.T - shift) * (value @ value.T + vmax**2)


def select(key, value, scale, schedule, uniforms, coins, strata=None):
    """Positions (n_out,) that one head keeps, and the traces, from key (S, E) and value (S, D).

    strata : (schedule.length + 1,) draws from [0, 1) for the stratified pre-thinning; None for the
        published stride
    """
    S, n = len(key), schedule.length
    start = standard_thin(S, n) if strata is None else stratified_thin(S, n, strata)
    E = key.shape[1]
    pairs = np.concatenate([key * np.sqrt(scale).astype(key.dtype), value], axis=1)[start]
    # ||V||_max times a power of two, which is exact, is below 1, so its square cannot overflow
    vmax = np.max(np.abs(pairs[:, E:]))
    power = power_of_two(vmax)
    pairs[:, E:] *= power
    vmax *= power

    def gram(points):
        return attention_kernel(points[:, :E], points[:, E:], vmax)

    kept, traces = kh_compress(gram, pairs, schedule.rounds, uniforms, coins)
    return start[kept], traces


def thinformer_attention(query, key, value, scale, schedule, draws):
    """Thinformer attention: the output, and what it was computed from.

    Parameters
    ----------
    query, key, value : arrays (B, T, H, E), (B, S, H, E), (B, S, H, D)
    scale : float
        Usually 1 / sqrt(E).
    schedule : an object with length (n) and rounds, a sequence of (pairs, buckets, delta)
    draws : an object with uniforms, coins and strata
        They are as `select` takes them for one head, with leading axes that broadcast to (B, H).

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
