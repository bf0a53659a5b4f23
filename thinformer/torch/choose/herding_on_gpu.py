"""Herding of keys among CUDA tensors; `thinformer.attending.herding` on the CPU.

Halvings and herding are CUDA kernels; all other operations are torch's. The CPU waits only for the
lengths behind a mask.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from thinformer.attending.herding import NORM, candidate_schedule
from thinformer.halving.plan import Plan
from thinformer.torch.choose import on_gpu
from thinformer.torch.choose.padding_on_gpu import is_finite, pick, take, unpadded


def herd_valid(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    width: int,
    min_length: int,
    *,
    g: int,
    size: int | None,
    group: int,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Herd as `attending.herding.herd_valid_keys`: its arguments and results.

    A head is also not finite where keys over a given temperature overflow.

    Raises
    ------
    RuntimeError
        There is a mask, and a CUDA graph is being captured.
    """
    (B, _, H, _), device = key.shape, key.device
    indices = torch.zeros((B, H, width), dtype=torch.int64, device=device)
    finite = torch.ones((B, H), dtype=torch.bool, device=device)
    counts, parts = unpadded(
        query, key, value, valid, min_length=min_length, g=g, size=size, group=group
    )
    for some in parts:
        numbers, few, (queries, keys, values) = some.numbers, some.kept, some.arrays
        good = is_finite(keys) & is_finite(values)
        chosen = some.tokens[:, None].expand(-1, H, -1)
        if few < some.tokens.shape[1]:
            places, in_range = _choose(queries, keys, values, n_out=few, **settings)
            good = good & is_finite(queries) & in_range
            chosen = pick(some.tokens, places)
        finite[numbers] = good
        # all slots first, so that those without a key of their own repeat the first
        indices[numbers] = chosen[..., :1]
        indices[numbers, :, :few] = chosen
    return indices, counts, finite


def _choose(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    n_out: int,
    scale: float,
    temperature: float | None,
    seed: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions (B, H, n_out), and the heads (B, H) whose temperature is large enough.

    query (B, T, H, E), key (B, S, H, E), value (B, S, H, D).
    """
    x = _scaled(query, key, scale, temperature)
    places = _herd(x, value, n_out, seed)
    if temperature is None:  # where a square overflows, the values alone tell keys apart
        return places, torch.ones_like(places[..., 0], dtype=torch.bool)
    return places, is_finite(x.square().sum(-1, keepdim=True))


def _scaled(
    query: torch.Tensor, key: torch.Tensor, scale: float, temperature: float | None
) -> torch.Tensor:
    """Return keys (B, S, H, E) less their mean, over the temperature, with the root of the scale.

    See `thinformer.attending.herding.choose_temperature`.
    """
    centred = key - key.mean(1, keepdim=True, dtype=torch.float64).to(key.dtype)
    if temperature is not None:
        return centred * (math.sqrt(scale) / temperature)
    q, k = (
        (scale * x.square().sum(-1).sum(1, dtype=torch.float64) / max(x.shape[1], 1)).sqrt()
        for x in (query, centred)
    )
    tau = k / torch.sqrt(q * k).clamp(max=NORM)
    tau = tau.where((q > 0) & (k > 0), 1.0)
    return centred * (math.sqrt(scale) / tau).to(key.dtype)[:, None, :, None]


def _herd(x: torch.Tensor, value: torch.Tensor, n_out: int, seed: torch.Tensor) -> torch.Tensor:
    """Return positions (B, H, n_out), increasing, of scaled keys x (B, S, H, E)."""
    (B, S, H, _), dtype = x.shape, x.dtype
    halvings, vmax = Plan(candidate_schedule(S, n_out), "even"), value.abs().amax((1, 3))
    candidates, _ = on_gpu.select(x, value, settings=halvings, scale=1.0, seed=seed, largest=vmax)
    keys, values = take(x, candidates), take(value, candidates)
    # the kernel exp(<x, x'>) (<v, v'> + vmax^2), over two factors that keep it in range
    vmax = vmax[..., None, None]
    power = (vmax.frexp().mantissa / vmax).clamp(max=1 / torch.finfo(dtype).tiny)  # of two
    power = power.where(vmax > 0, 1.0)
    values, constant = values * power, (vmax * power).square()
    largest = keys.square().sum(-1).amax(-1)[..., None, None]
    gram, of_values = keys @ keys.mT, values @ values.mT  # in place: they are large
    gram.sub_(largest).exp_().mul_(of_values.add_(constant))
    places = on_gpu.herd(gram.flatten(0, 1), n_out).unflatten(0, (B, H))
    return candidates.gather(2, places.sort(2).values)
