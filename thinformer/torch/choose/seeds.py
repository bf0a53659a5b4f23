"""Seeds of a selection, drawn from torch's generators."""

from __future__ import annotations

import numpy as np
import torch

from thinformer.halving.draws import seed_from


def draw_seed(generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    """Draw the seed of a selection: an int64 tensor without axes, on a device.

    None stands for torch's default generator of the device. In a CUDA graph, a generator of the GPU
    draws anew in each replay. A generator of the CPU draws the same seed for every device.
    """
    if device.type == "cuda" and generator is not None and generator.device.type == "cpu":
        drawn = int(draw_seed(generator, generator.device))
        return torch.full((), bits_of_seed(drawn), device=device)
    room = torch.empty((), dtype=torch.int64, device=device)
    # the form of random_() that torch.compile knows
    return torch.ops.aten.random.default(room, generator=generator)


def bits_of_seed(drawn: int) -> int:
    """The 64 bits of a seed drawn on the CPU, as the int64 that a GPU reads."""
    return int(np.uint64(seed_from(drawn)).astype(np.int64))
