"""From tensors to the indices of the keys to keep; nothing here is differentiable."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thinformer import _pool
from thinformer.attention import select as select_arrays
from thinformer.attention import select_valid
from thinformer.draws import seed_from
from thinformer.torch.openmp import team

# what the bodies compute in; half precision is too coarse for the running sums
COMPUTED_IN = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


def draw_seed(generator: torch.Generator | None) -> torch.Tensor:
    """Draw the seed of a selection: an int64 without axes, from torch's own generator if None."""
    room = torch.empty((), dtype=torch.int64, device="cpu")
    # the form of random_() that torch.compile knows
    return torch.ops.aten.random.default(room, generator=generator)


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
    """Return what `thinformer.torch.library.select` does, of which at most `kept` a sequence.

    The tensors, on the CPU, are read in place where their dtype is one that is computed in.
    """
    arrays = (_array(key), _array(value))
    with _pool.on(team()):
        settings: dict[str, Any] = {
            "g": g, "size": size, "scale": scale, "delta": 0.5, "pre_thin": pre_thin,
            "draws": seed_from(int(seed)),
        }  # fmt: skip
        if valid is None:
            indices, finite = select_arrays(*arrays, **settings)
            counts = np.full(len(indices), kept)
        else:
            indices, counts, finite = select_valid(
                *arrays, valid.numpy(), kept, min_length, **settings
            )
    return torch.from_numpy(indices), torch.from_numpy(counts), torch.from_numpy(finite)


def _array(tensor: torch.Tensor) -> NDArray:
    """A NumPy view of a tensor's memory; a copy for half precision."""
    tensor = tensor.detach().to(COMPUTED_IN[tensor.dtype])
    return tensor.resolve_conj().resolve_neg().numpy()
