"""Slots for the keys of a padded batch: as many as its largest coreset, where that is known."""

from __future__ import annotations

import torch
from torch.nn.functional import pad


def used_slots(indices: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the first slots of indices (..., n), as many as the largest of counts; at least one.

    The shapes alone allow a slot for each token that a short sequence keeps, `min_length` - 1 of
    them: all would be computed. A graph needs that number, as it serves every mask, and a GPU would
    be waited for.
    """
    if counts.numel() == 0 or counts.is_cuda or _traced():
        return indices
    return indices[..., : max(1, int(counts.max()))]


def _traced() -> bool:
    """Whether tensors may have no values yet: in a graph, in `torch.vmap`, under a mode."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def widened(slots: torch.Tensor, width: int, number: int) -> torch.Tensor:
    """Return slots (..., n) with a number behind them, (..., width)."""
    missing = width - slots.shape[-1]
    return pad(slots, (0, missing), value=number) if missing else slots
