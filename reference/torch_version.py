"""Thinformer as a torch user would write it: batched over heads, differentiable, in plain torch.

The steps are those of the NumPy files in this folder. Tensors are query (B, T, H, E), key
(B, S, H, E), value (B, S, H, D). The draws are arguments, so results can be compared.
"""

import math
from itertools import pairwise

import torch


def exact_attention(query, key, value, scale):
    """softmax(scale q k^T) v for every head; returns output (B, T, H, D), weights (B, H, T, S)."""
    weights = torch.softmax(scale * torch.einsum("bthe,bshe->bhts", query, key), dim=-1)
    return torch.einsum("bhts,bshd->bthd", weights, value), weights


def kernel_halving(K, delta, uniform, coin):
    """KH(delta) for a stack of Gram matrices.

    K (..., S, S), uniform (..., S/2) in [-1, 1), coin (...) bool -> kept (..., S/2), increasing.
    """
    S = K.shape[-1]
    even, odd = slice(0, None, 2), slice(1, None, 2)
    G = K[..., even, even] - K[..., even, odd] - K[..., odd, even] + K[..., odd, odd]
    b = G.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    a = b * b.cummax(dim=-1).values * (0.5 + math.log(2 * S / delta))
    threshold = uniform.to(K.dtype) * a

    swap = torch.zeros_like(threshold, dtype=torch.bool)
    walk = G[..., 0, :]
    for i in range(1, S // 2):
        swap[..., i] = threshold[..., i] <= walk[..., i]
        eta = 1 - 2 * swap[..., i, None].to(K.dtype)
        walk = walk + eta * G[..., i, :]
    return 2 * torch.arange(S // 2, device=K.device) + (swap ^ coin[..., None])


def kh_compress(gram, points, rounds, uniforms, coins):
    """KH-Compress for a stack of problems.

    Parameters
    ----------
    gram : callable
        gram(list of tensors (..., buckets, S, dim)) -> (..., buckets, S, S).
    points : list of tensors (..., n, dim)
        The arguments of the kernel, for instance keys and values.
    rounds, uniforms, coins
        As in `reference.compress`; the draws have the leading axes of the problems.

    Returns
    -------
    kept : (..., n_out) int tensor, increasing.
    """
    *problems, n, _ = points[0].shape
    device = points[0].device
    kept = torch.arange(n, device=device).expand(*problems, n)
    for (pairs, buckets, delta), uniform, coin in zip(rounds, uniforms, coins, strict=True):
        bounds = [b * pairs // buckets for b in range(buckets + 1)]
        lengths = [last - first for first, last in pairwise(bounds)]
        halves = torch.empty(*problems, pairs, dtype=kept.dtype, device=kept.device)
        for length in set(lengths):  # buckets of one length are halved together
            of_length = [b for b in range(buckets) if lengths[b] == length]
            if len(of_length) == buckets:  # a CUDA graph cannot capture the copy of a list to a GPU
                of_length = slice(None)
            bucket = torch.arange(buckets, device=device)[of_length]
            # (buckets, length)
            pair = (bucket * pairs // buckets)[:, None] + torch.arange(length, device=device)
            point = torch.stack([2 * pair, 2 * pair + 1], dim=-1).flatten(-2)
            bucket = kept[..., point]
            rows = [
                x.gather(
                    -2, bucket.flatten(-2)[..., None].expand(*problems, -1, x.shape[-1])
                ).unflatten(-2, bucket.shape[-2:])
                for x in points
            ]
            half = kernel_halving(gram(rows), delta, uniform[..., pair], coin[..., of_length])
            halves[..., pair] = bucket.gather(-1, half)
        kept = halves
    return kept


def attention_gram(rows, vmax):
    """exp(<k, k'> - shift) (<v, v'> + vmax^2) for keys (..., S, E) and values (..., S, D)."""
    key, value = rows
    shift = key.square().sum(-1).amax(-1)[..., None, None]
    return torch.exp(key @ key.mT - shift) * (value @ value.mT + vmax.square())


def stratified_thin(S, n, uniform):
    """Positions (..., n), one from each of n strata at random; uniform (..., n + 1) in [0, 1)."""
    if n == S:
        return torch.arange(S, device=uniform.device).expand(*uniform.shape[:-1], S)
    start = (uniform[..., :1] * S).long()
    bounds = torch.arange(n + 1, device=uniform.device) * S // n
    inside = (uniform[..., 1:] * bounds.diff()).long()
    return ((start + bounds[:-1] + inside) % S).sort(dim=-1).values


def select(key, value, scale, schedule, draws):
    """Positions (B, H, n_out) of the kept keys; the draws are torch tensors."""
    B, S, H, _ = key.shape
    n = schedule.length
    with torch.no_grad():
        if draws.strata is None:
            start = (torch.arange(n, device=key.device) * (S // n)).expand(B, H, n)
        else:
            start = stratified_thin(S, n, draws.strata).expand(B, H, n)
        # (B, S, H, E) -> (B, H, n, E)
        points = [
            x.transpose(1, 2).gather(2, start[..., None].expand(-1, -1, -1, x.shape[-1]))
            for x in (key * math.sqrt(scale), value)
        ]
        vmax = points[1].abs().amax((-2, -1))[..., None, None, None]
        # vmax times a power of two, which is exact, is below 1, so its square cannot overflow
        power = torch.ldexp(torch.ones_like(vmax), -torch.frexp(vmax).exponent.clamp(-125, 125))
        points[1] = points[1] * power[..., 0]
        vmax = vmax * power
        uniforms = [u.expand(B, H, -1) for u in draws.uniforms]
        coins = [c.expand(B, H, -1) for c in draws.coins]
        kept = kh_compress(
            lambda rows: attention_gram(rows, vmax), points, schedule.rounds, uniforms, coins
        )
        return start.gather(-1, kept)


def thinformer_attention(query, key, value, scale, schedule, draws):
    """Output (B, T, H, D), weights (B, H, T, n_out) and indices (B, H, n_out)."""
    indices = select(key, value, scale, schedule, draws)
    rows = indices.transpose(1, 2)[..., None]
    kept_key = key.gather(1, rows.expand(-1, -1, -1, key.shape[-1]))
    kept_value = value.gather(1, rows.expand(-1, -1, -1, value.shape[-1]))
    output, weights = exact_attention(query, kept_key, kept_value, scale)
    return output, weights, indices
