"""From masks to the keys that take part, (B, S) bool.

A mask of any other kind raises: an ignored mask would be the worst fault.
`thinformer.attending.padding` turns (B, S) into the positions of each sequence's tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from thinformer.torch.choose.seeds import under_vmap


class MaskNames(NamedTuple):
    """What a caller calls a mask of scores: errors name what was given.

    Attributes
    ----------
    mask : str
    takes : str
        The masks it may give, with their shapes.
    true : str
        What True means in it.
    """

    mask: str = "attn_mask"
    takes: str = "key_padding_mask (B, S), or attn_mask (B, 1, 1, S)"
    true: str = "a key takes part"


OF_SDPA = MaskNames()
OF_TRANSFORMERS = MaskNames("attention_mask", "attention_mask (B, S)")
OF_MULTIHEAD = MaskNames("attn_mask", "key_padding_mask (B, S)", "a query may not attend")
OF_PADDING = MaskNames("key_padding_mask", "key_padding_mask (B, S)", "a key is padding")


def keys_attended(
    key_padding_mask: torch.Tensor | None,
    attn_mask: torch.Tensor | None,
    shape: tuple[int, int, int, int],
    device: torch.device,
    names: MaskNames = OF_SDPA,
) -> torch.Tensor | None:
    """Return which keys take part by both masks, (B, S) bool; None without masks.

    Parameters
    ----------
    key_padding_mask : (B, S) bool, True where a key is padding
    attn_mask : broadcasts to (B, H, T, S); bool, True where a key takes part, or 0 and -inf
    shape : (B, H, T, S)
    names : MaskNames
        What the caller calls `attn_mask`.

    Raises
    ------
    NotImplementedError
        attn_mask differs by query or head or is a bias.
    TypeError, ValueError
        A mask of another dtype, shape or device.
    """
    B, _, _, S = shape
    for name, mask in (("key_padding_mask", key_padding_mask), (names.mask, attn_mask)):
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
        of_keys = _of_keys(attn_mask, shape, names)
        valid = of_keys if valid is None else valid & of_keys
    return valid


def padding_of_multihead(mask: torch.Tensor, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Return the key_padding_mask of nn.MultiheadAttention, (B, S), as bool if it is floating."""
    B, _, _, S = shape
    if not mask.is_floating_point():
        return mask
    if mask.shape != (B, S):
        raise ValueError(
            f"key_padding_mask must have shape (B, S) = {(B, S)}; got shape {tuple(mask.shape)}"
        )
    return ~_of_keys(mask[:, None, None], shape, OF_PADDING)


def scores_of_multihead(mask: torch.Tensor, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Return the attn_mask of nn.MultiheadAttention as a mask of the scores (B, H, T, S)."""
    B, H, T, S = shape
    if mask.shape not in ((T, S), (B * H, T, S)):
        raise ValueError(
            f"attn_mask must have shape (T, S) = {(T, S)} or (B H, T, S) = {(B * H, T, S)}; "
            f"got shape {tuple(mask.shape)}"
        )
    if mask.dtype == torch.bool:
        mask = ~mask  # here True is left out, there True takes part
    return mask.view(B, H, T, S) if mask.dim() == 3 else mask


def _of_keys(
    mask: torch.Tensor, shape: tuple[int, int, int, int], names: MaskNames
) -> torch.Tensor:
    """Return which keys (B, S) take part by a mask of the scores (B, H, T, S)."""
    name = names.mask
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise TypeError(
            f"{name} must be bool, True where {names.true}, or floating, 0 where a key takes part "
            f"and -inf elsewhere; got dtype {mask.dtype}"
        )
    given = tuple(mask.shape)
    mask = mask[(None,) * (4 - mask.ndim)] if mask.ndim < 4 else mask
    if mask.ndim != 4 or any(n not in (1, m) for n, m in zip(mask.shape, shape, strict=True)):
        raise ValueError(f"{name} must broadcast to (B, H, T, S) = {shape}; got shape {given}")
    supported = (
        f"thinformer takes masks that are the same for every query and every head: {names.takes}"
    )
    for axis, differs in ((1, "head"), (2, "query")):
        if mask.shape[axis] == 0:  # there is no query or no head
            return mask.new_ones((shape[0], shape[3]), dtype=torch.bool)
        first = mask.narrow(axis, 0, 1)
        if mask.shape[axis] > 1 and mask.stride(axis) != 0 and not _all(mask == first, names):
            raise NotImplementedError(f"{name} differs by {differs}, which cannot be: {supported}")
        mask = first
    if mask.dtype != torch.bool:
        takes_part, not_so = mask == 0, mask <= torch.finfo(mask.dtype).min
        if mask.requires_grad:
            raise NotImplementedError(
                f"{name} is a bias that learns, which cannot be: a floating mask holds 0 where a "
                f"key takes part and -inf where it does not. {supported}"
            )
        if not _all(takes_part | not_so, names):
            held = mask[~(takes_part | not_so)][0]
            raise NotImplementedError(
                f"{name} is a bias, which cannot be: it holds {held:g}, and a floating mask holds "
                f"0 where a key takes part and -inf where it does not, or is bool. {supported}"
            )
        mask = takes_part
    return mask[:, 0, 0].expand(shape[0], shape[3])


def _all(condition: torch.Tensor, names: MaskNames) -> bool:
    """Whether all are true; under `torch.compile` and `torch.vmap` values cannot be looked at."""
    compiling = torch.compiler.is_compiling()
    if compiling or under_vmap():
        raise NotImplementedError(
            f"{names.mask} would have to be looked at to know that it masks keys alone, which "
            f"cannot be under torch.{'compile' if compiling else 'vmap'}: give it as bool of one "
            f"row for all queries and heads, {names.takes}"
        )
    return bool(condition.all())
