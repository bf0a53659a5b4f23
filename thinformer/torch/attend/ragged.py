"""Ragged batches: jagged nested tensors to padded ones with a mask, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad


def padded(
    query: Any, key: Any, value: Any, key_padding_mask: Any, attn_mask: Any, layout: str
) -> tuple[Any, Any, Any, Any]:
    """Return query, key, value and key_padding_mask without nested tensors; others pass through.

    Parameters
    ----------
    query, key, value
        Where nested, of shape (B, j, H, dim), or (B, H, j, dim) in the layout "bhsd"; key and value
        are so together.

    Returns
    -------
    query, key, value : dense
        Behind the end of a sequence lie tokens of other sequences.
    key_padding_mask : (B, S) bool, where keys are nested

    Raises
    ------
    NotImplementedError
        A nested tensor that is not jagged.
    ValueError
        Another shape; key and value with different lengths; a mask beside nested keys.
    """
    if _is_nested(query):
        query, _ = _padded("query", query, layout)
    if not (_is_nested(key) or _is_nested(value)):
        return query, key, value, key_padding_mask
    for name, mask in (("key_padding_mask", key_padding_mask), ("attn_mask", attn_mask)):
        if mask is not None:
            raise ValueError(f"{name} must be None where key is nested, which has no padding")
    for name, other, tensor in (("key", "value", key), ("value", "key", value)):
        if not _is_nested(tensor):
            raise ValueError(f"{name} must be nested like {other}")
    key, lengths = _padded("key", key, layout)
    value, lengths_of_value = _padded("value", value, layout)
    if not torch.equal(lengths, lengths_of_value):
        raise ValueError(
            f"value must have the lengths of key, {lengths.tolist()}; "
            f"got {lengths_of_value.tolist()}"
        )
    return query, key, value, ~_present(lengths, key.shape[layout.index("s")])


def like(query: Any, output: torch.Tensor, layout: str) -> torch.Tensor:
    """Return a padded output as a nested tensor of the lengths of query."""
    tokens = layout.index("s")
    there = _present(_lengths(query), output.shape[tokens])
    offsets = query.offsets()
    if query.lengths() is not None:  # the query has gaps, the output has none
        offsets = pad(query.lengths().cumsum(0), (1, 0))
    rows = output.transpose(1, tokens)[there]
    return torch.nested.nested_tensor_from_jagged(rows, offsets).transpose(1, tokens)


def query_mask(given: Any, query: torch.Tensor, layout: str) -> torch.Tensor | None:
    """Return which queries there are, (B, T) bool, where `given` is nested; else None."""
    return _present(_lengths(given), query.shape[layout.index("s")]) if _is_nested(given) else None


def of_present(query: Any, weights: torch.Tensor | None) -> torch.Tensor | None:
    """Return weights (B, H, T, n_out), 0 behind the end of a sequence of queries."""
    if weights is None:
        return None
    there = _present(_lengths(query), weights.shape[2])
    return weights.masked_fill(~there[:, None, :, None], 0)


def _is_nested(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.is_nested


def _padded(name: str, nested: Any, layout: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A nested tensor, dense, and its lengths (B,)."""
    if nested.layout != torch.jagged:
        raise NotImplementedError(
            f"{name} is a nested tensor of the layout {nested.layout}; make it with "
            f"layout=torch.jagged"
        )
    tokens = layout.index("s")
    if nested.dim() != 4 or nested._ragged_idx != tokens:
        takes = "(B, j, H, dim)" if layout == "bshd" else "(B, H, j, dim)"
        raise ValueError(
            f"{name} must have shape {takes}, where it is nested, for the layout {layout!r}; "
            f"got shape {tuple(nested.shape)}"
        )
    lengths, values = _lengths(nested), nested.transpose(1, tokens).values()
    rows = nested.offsets()[:-1, None] + torch.arange(int(lengths.max()), device=values.device)
    return values[rows.clamp(max=max(len(values) - 1, 0))].transpose(1, tokens), lengths


def _lengths(nested: Any) -> torch.Tensor:
    return nested.offsets().diff() if nested.lengths() is None else nested.lengths()


def _present(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """Which tokens there are, (B, longest) bool."""
    return torch.arange(longest, device=lengths.device) < lengths[:, None]
