"""Seeds of a selection, drawn from torch's generators."""

from __future__ import annotations

import numpy as np
import torch

from thinformer.halving.draws import seed_from


def draw_seed(generator: torch.Generator | None, device: torch.device) -> torch.Tensor:
    """Draw the seed of a selection: an int64 tensor without axes, on a device.

    None stands for torch's default generator of the device. In a CUDA graph, a generator of the GPU
    draws anew in each replay. A generator of the CPU draws the same seed for every device.

    Under `torch.vmap`, its `randomness` says whether each member has a seed of its own.

    Raises
    ------
    NotImplementedError
        A generator of the CPU, and a seed for each member on a GPU.
    """
    if device.type == "cuda" and generator is not None and generator.device.type == "cpu":
        drawn = draw_seed(generator, generator.device)
        if torch._C._functorch.is_batchedtensor(drawn):
            raise NotImplementedError(
                f"generator must be on {device} under torch.vmap(randomness='different'), or None; "
                f"got one on {generator.device}"
            )
        return torch.full((), bits_of_seed(int(drawn)), device=device)
    if _transformed():
        # the numbers of random_() below, by a function for which vmap has rules of randomness
        drawn = torch.randint(
            -1, 2**63 - 1, (), generator=generator, dtype=torch.int64, device=device
        )
        return drawn + 1
    room = torch.empty((), dtype=torch.int64, device=device)
    # the form of random_() that torch.compile knows
    return torch.ops.aten.random.default(room, generator=generator)


def draw_uniforms(
    shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device
) -> torch.Tensor:
    """Draw float64 numbers in [0, 1) where the generator is; under `torch.vmap` as `draw_seed`."""
    drawn_on = device if generator is None else generator.device
    if _transformed():
        drawn = torch.rand(shape, generator=generator, dtype=torch.float64, device=drawn_on)
    else:  # the form that torch.compile draws as torch does
        room = torch.empty(shape, dtype=torch.float64, device=drawn_on)
        drawn = room.uniform_(generator=generator)
    return drawn.to(device)


def _transformed() -> bool:
    """Whether a transform of torch.func is at work, `torch.vmap` or a gradient."""
    # "is not None" would always hold in a graph that torch.compile makes
    functorch = torch._C._functorch
    return isinstance(functorch.peek_interpreter_stack(), functorch.CInterpreter)


def under_vmap() -> bool:
    """Whether this is one member of `torch.vmap`, whose values cannot be read."""
    functorch = torch._C._functorch
    levels = functorch.get_interpreter_stack() or []
    return any(level.key() == functorch.TransformType.Vmap for level in levels)


def bits_of_seed(drawn: int) -> int:
    """The 64 bits of a seed drawn on the CPU, as the int64 that a GPU reads."""
    return int(np.uint64(seed_from(drawn)).astype(np.int64))
