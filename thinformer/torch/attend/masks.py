"""From masks to the keys that take part, (B, S) bool.

A mask of any other kind raises: an ignored mask would be the worst fault.
`thinformer.attending.padding` turns (B, S) into the positions of each sequence's tokens.
"""

from __future__ import annotations

import torch

SUPPORTED = (
    "thinformer takes masks that are the same for every query and every head: key_padding_mask "
    "(B, S), or attn_mask (B, 1, 1, S)"
)


def keys_attended(
    key_padding_mask: torch.Tensor | None,
    attn_mask: torch.Tensor | None,
    shape: tuple[int, int, int, int],
    device: torch.device,
) -> torch.Tensor | None:
    """Return which keys take part by both masks, (B, S) bool; None without masks.

    Parameters
    ----------
    key_padding_mask : (B, S) bool, True where a key is padding
    attn_mask : broadcasts to (B, H, T, S); bool, True where a key takes part, or 0 and -inf
    shape : (B, H, T, S)

    Raises
    ------
    NotImplementedError
        attn_mask differs by query or head or is a bias.
    TypeError, ValueError
        A mask of another dtype, shape or device.
    """
    B, _, _, S = shape
    for name, mask in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
        if mask is not None and not isinstance(mask, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(mask).__name__}")
        if mask is not None and mask.device != device:
            raise ValueError(f"{name} must be on the device of key, {device}; got {mask.device}")
    valid = None
    if key_padding_mask is not None:
        if key_padding_mask.dtype != torch.bool:
            raise TypeError(
                f"key_padding_mask must be bool, True where a key is padding; got dtype "
                f"{key_padding_mask.dtype} (from a tokenizer: attention_mask == 0)"
            )
        if key_padding_mask.shape != (B, S):
            raise ValueError(
                f"key_padding_mask must have shape (B, S) = {(B, S)}; "
                f"got shape {tuple(key_padding_mask.shape)}"
            )
        valid = ~key_padding_mask
    if attn_mask is not None:
        of_keys = _of_keys(attn_mask, shape)
        valid = of_keys if valid is None else valid & of_keys
    return valid


def _of_keys(mask: torch.Tensor, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Return which keys (B, S) take part by a mask of the scores (B, H, T, S)."""
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"attn_mask must be bool, True where a key takes part, or floating, 0 there and -inf "
            f"elsewhere; got dtype {mask.dtype}"
        )
    given = tuple(mask.shape)
    mask = mask[(None,) * (4 - mask.ndim)] if mask.ndim < 4 else mask
    if mask.ndim != 4 or any(n not in (1, m) for n, m in zip(mask.shape, shape, strict=True)):
        raise ValueError(f"attn_mask must broadcast to (B, H, T, S) = {shape}; got shape {given}")
    for axis, name in ((1, "head"), (2, "query")):
        if mask.shape[axis] == 0:  # there is no query or no head
            return mask.new_ones((shape[0], shape[3]), dtype=torch.bool)
        first = mask.narrow(axis, 0, 1)
        if mask.shape[axis] > 1 and mask.stride(axis) != 0 and not _all(mask == first):
            raise NotImplementedError(f"attn_mask differs by {name}, which cannot be: {SUPPORTED}")
        mask = first
    if mask.dtype != torch.bool:
        takes_part, not_so = mask == 0, mask <= torch.finfo(mask.dtype).min
        if mask.requires_grad or not _all(takes_part | not_so):
            raise NotImplementedError(
                f"attn_mask is a bias, with other numbers than 0 and -inf, which cannot be: "
                f"{SUPPORTED}"
            )
        mask = takes_part
    return mask[:, 0, 0].expand(shape[0], shape[3])


def _all(condition: torch.Tensor) -> bool:
    """Whether all are true; under `torch.compile` values cannot be looked at."""
    if torch.compiler.is_compiling():
        raise NotImplementedError(
            f"attn_mask would have to be looked at to know that it masks keys alone, which cannot "
            f"be under torch.compile: give it as bool of the shape (B, 1, 1, S). {SUPPORTED}"
        )
    return bool(condition.all())
