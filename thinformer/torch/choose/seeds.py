"""Seeds of a selection: drawn from torch's generators, or a layer's own; numbers from a seed."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from thinformer.halving import draws
from thinformer.halving.draws import seed_from

# torch has no shift, product or sum of uint64
GOLDEN, MIX_1, MIX_2 = (word - 2**64 for word in (draws.GOLDEN, draws.MIX_1, draws.MIX_2))
READ = 16  # numbers of a layer's weights that its seed depends on


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
    return signed(seed_from(drawn))


def signed(seed: int) -> int:
    """The 64 bits of a seed of `thinformer.halving.draws.seed_from`, as an int64."""
    return int(np.uint64(seed).astype(np.int64))


def seed_of_rank(seed: int, rank: int, device: torch.device) -> torch.Tensor:
    """The seed of one of several ranks that share a seed: an int64 tensor without axes.

    Ranks have independent draws. A GPU draws the numbers that the CPU does.
    """
    drawn = int(np.random.default_rng([seed, rank]).integers(2**63))
    return torch.full((), bits_of_seed(drawn) if device.type == "cuda" else drawn, device=device)


def seed_of_layer(layer: nn.Module, seed: int | None, device: torch.device) -> torch.Tensor | None:
    """The seed of a layer in evaluation, an int64 tensor without axes; None where it draws one.

    It depends on the first numbers of the layer's first parameter, so that layers differ, and a
    model has the same seeds whenever it is loaded. No name or counter is stored in the model.
    """
    if layer.training or seed is None:
        return None
    words = torch.full((), seed, dtype=torch.int64, device=device)
    parameter = next(layer.parameters(), None)
    if parameter is None or parameter.is_meta or parameter.numel() == 0:
        return words
    row = parameter.detach()
    while row.ndim > 1:
        row = row[0]
    # integers, whose sum is the same in any order on any device
    bits = row.reshape(-1)[:READ].to(device, torch.float64).view(torch.int64)
    places = torch.arange(1, len(bits) + 1, device=device)
    return _shifted(_mixed(words + _mixed(bits ^ (GOLDEN * places)).sum()), 1)  # not negative


def uniforms(seed: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform numbers in [0, 1) from a seed, float64, on its device: SplitMix64 of a counter."""
    places = torch.arange(1, 1 + math.prod(shape), device=seed.device).reshape(shape)
    bits = _mixed(seed + GOLDEN * places)
    return ((bits >> 11) & (2**53 - 1)).double() * 2.0**-53


def _mixed(x: torch.Tensor) -> torch.Tensor:
    """`draws.mix` of int64 tensors: SplitMix64's finaliser."""
    x = (x ^ _shifted(x, 30)) * MIX_1
    x = (x ^ _shifted(x, 27)) * MIX_2
    return x ^ _shifted(x, 31)


def _shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    """A logical shift to the right: torch's keeps the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
