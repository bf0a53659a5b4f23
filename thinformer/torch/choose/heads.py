"""The tensors of attention, as all of `choose` and `attend` take them, and their dtypes."""

from __future__ import annotations

from typing import NamedTuple

import torch

# what the bodies compute in; half precision is too coarse for the running sums
COMPUTED_IN = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


class Heads(NamedTuple):
    """Query, key and value of all heads, checked.

    Attributes
    ----------
    query : (B, T, H, E) tensor
    key : (B, S, H_kv, E) tensor
        H is a multiple of H_kv.
    value : (B, S, H_kv, D) tensor
    valid : (B, S) bool tensor or None
        Which tokens take part; None for all.
    scale : float
        The softmax scale.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    valid: torch.Tensor | None
    scale: float

    @property
    def group(self) -> int:
        """How many query heads share a head of key and value."""
        return self.query.shape[2] // max(self.key.shape[2], 1)


def grouped(query: torch.Tensor, heads: int) -> torch.Tensor:
    """The queries (B, T, H, E) of a key-value head's group as more queries, (B, T', heads, E)."""
    if query.shape[2] == heads:
        return query
    return query.unflatten(2, (heads, -1)).transpose(2, 3).flatten(1, 2)
