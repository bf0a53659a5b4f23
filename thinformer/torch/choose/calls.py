"""Calls of the operators: their flat arguments, from `Heads` and a `KeySelection`."""

from __future__ import annotations

import torch

from thinformer.attending.options import KeySelection
from thinformer.torch.choose import operators
from thinformer.torch.choose.heads import Heads


def choose_keys(
    heads: Heads, selection: KeySelection, seed: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose keys of equal weight, by halving or by herding: what `operators.select` returns."""
    key, value = heads.key.detach(), heads.value.detach()
    if selection.method == "herding":
        return operators.herd(
            heads.query.detach(), key, value, heads.valid, seed, selection.g, selection.size,
            heads.scale, selection.tau, selection.least_length(),
        )  # fmt: skip
    return operators.select(
        key, value, heads.valid, seed, selection.g, selection.size, heads.scale,
        selection.pre_thin, selection.least_length(),
    )  # fmt: skip


def choose_landmarks(
    heads: Heads, selection: KeySelection, seed: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Choose landmarks: what `operators.landmarks` returns."""
    tensors = (x.detach() for x in (heads.query, heads.key, heads.value))
    assert selection.correction is not None
    return operators.landmarks(
        *tensors, heads.valid, seed, selection.g, selection.size, heads.scale,
        selection.correction, selection.tau, selection.least_length(),
    )  # fmt: skip


def attend_without_gradient(
    heads: Heads, selection: KeySelection, seed: torch.Tensor, weights: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend to landmarks without a gradient: what `operators.attend_to_landmarks` returns."""
    assert selection.correction is not None
    return operators.attend_to_landmarks(
        heads.query, heads.key, heads.value, heads.valid, seed, selection.g, selection.size,
        heads.scale, selection.correction, selection.tau, selection.least_length(), weights,
    )  # fmt: skip


def keys_kept(tokens: int, selection: KeySelection, padded: bool) -> int:
    """Return how many of at most that many tokens are kept, for a symbolic number too."""
    return operators.keys_kept(
        tokens, selection.g, selection.size, selection.pre_thin, selection.least_length(), padded
    )
