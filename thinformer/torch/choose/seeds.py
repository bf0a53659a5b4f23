"""Seeds of a selection, drawn from torch's generators."""

from __future__ import annotations

import numpy as np
import torch

from thinformer.halving.draws import seed_from


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
