"""From tensors to the indices of the keys to keep; nothing here is differentiable."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thinformer.attending.attention import attend_to_landmarks as attend_arrays
from thinformer.attending.attention import select as select_arrays
from thinformer.attending.attention import select_valid, softmax_scale
from thinformer.attending.herding import herd_valid
from thinformer.attending.landmarks import choose_valid
from thinformer.halving.draws import seed_from
from thinformer.halving.plan import plan
from thinformer.support import threads
from thinformer.torch.choose.openmp import team

# what the bodies compute in; half precision is too coarse for the running sums
COMPUTED_IN = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def draw_seed(generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    """Draw the seed of a selection on a device: an int64 without axes.

    From torch's own generator of the device if None; in a CUDA graph, one of the GPU draws anew in
    each replay. A generator of the CPU gives what it gives there.
    """
    if device.type == "cuda" and generator is not None and generator.device.type == "cpu":
        drawn = int(draw_seed(generator, generator.device))
        return torch.full((), bits_of_seed(drawn), device=device)
    room = torch.empty((), dtype=torch.int64, device=device)
    # the form of random_() that torch.compile knows
    return torch.ops.aten.random.default(room, generator=generator)


def bits_of_seed(drawn: int) -> int:
    """What a GPU takes for a seed drawn on the CPU: the bits of its 64, as an int64."""
    return int(np.uint64(seed_from(drawn)).astype(np.int64))


def select(
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    seed: torch.Tensor,
    *,
    g: int,
    size: int | None,
    scale: float | None,
    pre_thin: str,
    min_length: int,
    kept: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `operators.select` does, of which at most `kept` a sequence.

    The tensors are read in place, but for half precision on the CPU. The results are on their
    device; nothing waits for a GPU but a mask, for its lengths.
    """
    if key.is_cuda:
        from thinformer.cuda.jit import check_available  # imports numba.cuda

        check_available(f"a tensor on {key.device}")
        from thinformer.torch.choose import on_gpu

        scale = softmax_scale(scale, key.shape[-1])
        if valid is not None:
            return on_gpu.select_valid(
                key, value, valid, kept, min_length, g=g, size=size, pre_thin=pre_thin,
                scale=scale, seed=seed,
            )  # fmt: skip
        plan_of_all = plan(key.shape[1], g, size, 0.5, pre_thin)
        indices, finite = on_gpu.select(key, value, settings=plan_of_all, scale=scale, seed=seed)
        return indices, torch.full((len(key),), kept, device=key.device), finite
    arrays = (_array(key), _array(value))
    with threads.on(team()):
        settings: dict[str, Any] = {
            "g": g, "size": size, "scale": scale, "delta": 0.5, "pre_thin": pre_thin,
            "draws": seed_from(int(seed)),
        }  # fmt: skip
        if valid is None:
            kept_of_all, good = select_arrays(*arrays, **settings)
            found = kept_of_all, np.full(len(kept_of_all), kept), good
        else:
            found = select_valid(*arrays, valid.numpy(), kept, min_length, **settings)
    positions, counts, of_heads = map(torch.from_numpy, found)
    return positions, counts, of_heads


def herd(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    seed: torch.Tensor,
    *,
    width: int,
    min_length: int,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `operators.herd` does, on the CPU."""
    arrays = _array(grouped(query, key.shape[2])), _array(key), _array(value)
    with threads.on(team()):
        indices, counts, finite = herd_valid(
            *arrays, None if valid is None else valid.numpy(), width, min_length,
            seed=seed_from(int(seed)), group=query.shape[2] // max(key.shape[2], 1), **settings,
        )  # fmt: skip
    return torch.from_numpy(indices), torch.from_numpy(counts), torch.from_numpy(finite)


def landmarks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    seed: torch.Tensor,
    *,
    g: int,
    size: int | None,
    width: int,
    min_length: int,
    **settings: Any,
) -> tuple[torch.Tensor, ...]:
    """Return what `operators.landmarks` does; `select` says what is waited for."""
    group = query.shape[2] // max(key.shape[2], 1)
    if key.is_cuda:
        from thinformer.cuda.jit import check_available  # imports numba.cuda

        check_available(f"a tensor on {key.device}")
        from thinformer.torch.choose.landmarks_on_gpu import choose_valid as choose_on_gpu

        wide = COMPUTED_IN[key.dtype]
        queries = grouped(query, key.shape[2]).to(wide)
        with torch.autocast(key.device.type, enabled=False):
            return choose_on_gpu(
                queries, key.to(wide), value.to(wide), valid, width, min_length, g=g, size=size,
                seed=seed, group=group, **settings,
            )  # fmt: skip
    arrays = _array(grouped(query, key.shape[2])), _array(key), _array(value)
    present = None if valid is None else valid.numpy()
    with threads.on(team()):
        chosen = choose_valid(
            *arrays, present, width, min_length, g=g, size=size,
            seed=seed_from(int(seed)), group=group, **settings,
        )  # fmt: skip
    return tuple(map(torch.from_numpy, chosen))


def attend_to_landmarks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    seed: torch.Tensor,
    with_weights: bool,
    *,
    kept: int,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `operators.attend_to_landmarks` does."""
    (B, T, H, _), (H_kv, D) = query.shape, value.shape[2:]
    arrays = _array(grouped(query, H_kv)), _array(key), _array(value)
    with threads.on(team()):
        output, weights, chosen = attend_arrays(
            *arrays, with_weights, n_out=kept, seed=seed_from(int(seed)), **settings
        )
    group = H // max(H_kv, 1)
    output = output.reshape(B, T, group, H_kv, D).swapaxes(2, 3).reshape(B, T, H, D)
    finite = torch.from_numpy(chosen.finite)
    hidden = ~finite.repeat_interleave(group, dim=1)
    of_output = torch.from_numpy(output).masked_fill(hidden[:, None, :, None], math.nan)
    of_weights = value.new_empty(0)
    if weights is not None:
        weights = weights.reshape(B, H_kv, T, group, kept).swapaxes(2, 3).reshape(B, H, T, kept)
        of_weights = torch.from_numpy(weights).masked_fill(hidden[..., None, None], math.nan)
    indices = torch.from_numpy(chosen.indices)
    return of_output.to(value.dtype), of_weights.to(value.dtype), indices


def grouped(query: torch.Tensor, heads: int) -> torch.Tensor:
    """The queries (B, T, H, E) of a key-value head's group as more queries, (B, T', heads, E)."""
    if query.shape[2] == heads:
        return query
    return query.unflatten(2, (heads, -1)).transpose(2, 3).flatten(1, 2)


def _array(tensor: torch.Tensor) -> NDArray:
    """A NumPy view of a tensor's memory; a copy for half precision."""
    tensor = tensor.detach().to(COMPUTED_IN[tensor.dtype])
    return tensor.resolve_conj().resolve_neg().numpy()
