"""The operators on the CPU: tensors as arrays to the NumPy path, on torch's threads, and back.

Nothing here is differentiable. On CUDA tensors the work goes on to `on_gpu`, `herding_on_gpu`
and `landmarks_on_gpu`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from thinformer.attending import softmax
from thinformer.attending.herding import herd_valid_keys
from thinformer.attending.landmarks import choose_valid_landmarks
from thinformer.attending.options import KeySelection
from thinformer.attending.thinned import thin_keys, thin_valid_keys
from thinformer.halving.draws import seed_from
from thinformer.support import threads
from thinformer.torch.choose.heads import COMPUTED_IN, Heads, grouped
from thinformer.torch.choose.openmp import team


def select(
    heads: Heads, selection: KeySelection, seed: torch.Tensor, kept: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `operators.select` does, of which at most `kept` a sequence.

    The tensors are read in place, but for half precision on the CPU. The results are on their
    device; nothing waits for a GPU.
    """
    _, key, value, valid, scale = heads
    if key.is_cuda:
        _check_available(key)
        from thinformer.torch.choose import on_gpu

        if valid is not None:
            return on_gpu.select_valid(
                key, value, valid, kept, selection.least_length(), g=selection.g,
                size=selection.size, pre_thin=selection.pre_thin, scale=scale, seed=seed,
            )  # fmt: skip
        plan_of_all = selection.plan(key.shape[1])
        indices, finite = on_gpu.select(key, value, settings=plan_of_all, scale=scale, seed=seed)
        return indices, torch.full((len(key),), kept, device=key.device), finite
    arrays, draws = (_array(key), _array(value)), seed_from(int(seed))
    with threads.on(team()):
        if valid is None:
            of_all, good = thin_keys(*arrays, selection, scale=scale, draws=draws)
            found = of_all, np.full(len(of_all), kept), good
        else:
            found = thin_valid_keys(
                *arrays, valid.numpy(), kept, selection, scale=scale, draws=draws
            )
    positions, counts, of_heads = map(torch.from_numpy, found)
    return positions, counts, of_heads


def herd(
    heads: Heads, selection: KeySelection, seed: torch.Tensor, kept: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `operators.herd` does; of a GPU only the lengths of a mask are waited for."""
    if heads.key.is_cuda:
        _check_available(heads.key)
        from thinformer.torch.choose.herding_on_gpu import herd_valid as herd_on_gpu

        found, n_kept, good = _on_gpu(herd_on_gpu, heads, selection, seed, kept)
        return found, n_kept, good
    with threads.on(team()):
        indices, counts, finite = herd_valid_keys(
            *_arrays(heads), kept, selection, group=heads.group, scale=heads.scale,
            seed=seed_from(int(seed)),
        )  # fmt: skip
    return torch.from_numpy(indices), torch.from_numpy(counts), torch.from_numpy(finite)


def landmarks(
    heads: Heads, selection: KeySelection, seed: torch.Tensor, kept: int
) -> tuple[torch.Tensor, ...]:
    """Return what `operators.landmarks` does; a GPU is waited for as in `herd`."""
    if heads.key.is_cuda:
        _check_available(heads.key)
        from thinformer.torch.choose.landmarks_on_gpu import choose_valid as choose_on_gpu

        correction = {"correction": selection.correction}
        return _on_gpu(choose_on_gpu, heads, selection, seed, kept, **correction)
    with threads.on(team()):
        chosen = choose_valid_landmarks(
            *_arrays(heads), kept, selection, group=heads.group, scale=heads.scale,
            seed=seed_from(int(seed)),
        )  # fmt: skip
    return tuple(map(torch.from_numpy, chosen))


def _check_available(tensor: torch.Tensor) -> None:
    """Check that kernels run on the GPU of a tensor."""
    from thinformer.cuda.jit import check_available  # imports numba.cuda

    check_available(f"a tensor on {tensor.device}")


def _on_gpu(
    choose: Callable,
    heads: Heads,
    selection: KeySelection,
    seed: torch.Tensor,
    kept: int,
    **more: str | None,
) -> tuple[torch.Tensor, ...]:
    """Choose from CUDA tensors, in the dtype that they are computed in."""
    query, key, value, valid, scale = heads
    wide = COMPUTED_IN[key.dtype]
    queries = grouped(query, key.shape[2]).to(wide)
    with torch.autocast(key.device.type, enabled=False):
        return choose(
            queries, key.to(wide), value.to(wide), valid, kept, selection.least_length(),
            g=selection.g, size=selection.size, seed=seed, group=heads.group, scale=scale,
            temperature=selection.tau, **more,
        )  # fmt: skip


def attend_to_landmarks(
    heads: Heads, selection: KeySelection, seed: torch.Tensor, kept: int, with_weights: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what `operators.attend_to_landmarks` does."""
    (B, T, H, _), (H_kv, D), dtype = heads.query.shape, heads.value.shape[2:], heads.value.dtype
    (query, key, value, valid), group = _arrays(heads), heads.group
    number, S = seed_from(int(seed)), key.shape[1]
    if valid is None and kept == S:  # a graph serves any S
        valid = np.ones((B, S), bool)
    with threads.on(team()):
        if valid is None:
            output, weights = softmax.make_result(query, value, kept, with_weights)
            chosen = softmax.write_landmark_attention(
                query, key, value, output, weights, selection, n_out=kept, scale=heads.scale,
                seed=number,
            )  # fmt: skip
            indices, finite = chosen.indices, chosen.finite
        else:
            output, weights, indices, finite = softmax.attend_to_valid_landmarks(
                query, key, value, valid, selection, n_out=kept, group=group, scale=heads.scale,
                seed=number, weights=with_weights,
            )  # fmt: skip
    output = output.reshape(B, T, group, H_kv, D).swapaxes(2, 3).reshape(B, T, H, D)
    hidden = ~torch.from_numpy(finite).repeat_interleave(group, dim=1)
    of_output = torch.from_numpy(output)
    if not finite.all():
        of_output = of_output.masked_fill(hidden[:, None, :, None], math.nan)
    of_weights = heads.value.new_empty(0)
    if weights is not None:
        weights = weights.reshape(B, H_kv, T, group, kept).swapaxes(2, 3).reshape(B, H, T, kept)
        of_weights = torch.from_numpy(weights).masked_fill(hidden[..., None, None], math.nan)
    return of_output.to(dtype), of_weights.to(dtype), torch.from_numpy(indices)


def _arrays(heads: Heads) -> tuple[NDArray, NDArray, NDArray, NDArray | None]:
    """Query, with the queries of a group of heads as more queries, key, value and valid."""
    query, key, value, valid, _ = heads
    queries = grouped(query, key.shape[2])
    return _array(queries), _array(key), _array(value), None if valid is None else valid.numpy()


def _array(tensor: torch.Tensor) -> NDArray:
    """A NumPy view of a tensor's memory; a copy for half precision."""
    tensor = tensor.detach().to(COMPUTED_IN[tensor.dtype])
    return tensor.resolve_conj().resolve_neg().numpy()
