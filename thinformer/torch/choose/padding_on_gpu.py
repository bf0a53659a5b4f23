"""From a mask on a GPU to sequences without padding, length by length; the CPU waits for lengths.

`thinformer.attending.padding` does it on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from thinformer.halving.plan import plan


class Sequences(NamedTuple):
    """The sequences of a batch that have one length, without their padding.

    numbers : (b,) int64, their places in the batch
    tokens : (b, L) int64, the positions of their tokens
    queries : (b, T') int64, the positions of their queries; None where these are all queries
    arrays : query (b, T', H, E), key (b, L, H, E), value (b, L, H, D)
    kept : how many keys each head keeps
    """

    numbers: torch.Tensor
    tokens: torch.Tensor
    queries: torch.Tensor | None
    arrays: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    kept: int


def unpadded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    *,
    min_length: int,
    g: int,
    size: int | None,
    group: int,
) -> tuple[torch.Tensor, Iterator[Sequences]]:
    """Return how many keys each sequence keeps, (B,) int64, and the sequences length by length.

    query (B, T * group, H, E) has the queries of a group of heads, token by token. With T = S the
    queries belong to the same tokens as the keys, and those of padding are left out. valid (B, S)
    bool is True for a token; None for no padding, for which nothing waits.

    Raises
    ------
    RuntimeError
        There is a mask, and a CUDA graph is being captured.
    """
    (B, S), device = key.shape[:2], key.device
    if valid is None:
        kept = plan(S, g, S if min_length > S else size, 0.5).schedule.size
        every = torch.arange(B, device=device)
        tokens = torch.arange(S, device=device).expand(B, S)
        of_all = Sequences(every, tokens, None, (query, key, value), kept)
        return torch.full((B,), kept, device=device), iter([of_all])
    counts, lengths = _by_length(valid, min_length, g, size)
    positions = torch.argsort((~valid).byte(), dim=1, stable=True)  # tokens that count come first

    def parts() -> Iterator[Sequences]:
        for length, kept, numbers in lengths:
            tokens, own = positions[numbers, :length], None
            if query.shape[1] == S * group:
                own = tokens[:, :, None] * group + torch.arange(group, device=device)
                own = own.flatten(1)
            queries = query[numbers] if own is None else query[numbers[:, None], own]
            keys, values = (x[numbers[:, None], tokens] for x in (key, value))
            yield Sequences(numbers, tokens, own, (queries, keys, values), kept)

    return counts, parts()


def _by_length(
    valid: torch.Tensor, min_length: int, g: int, size: int | None
) -> tuple[torch.Tensor, list[tuple[int, int, torch.Tensor]]]:
    """Return how many keys each sequence of valid (B, S) keeps, and what there is of each length.

    That is the length, how many keys are kept of it, and the sequences of that length.
    """
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a mask cannot be captured in a CUDA graph with a correction or a temperature, which"
            " wait for the lengths of the sequences; capture attention without them, or without"
            " padding"
        )
    lengths = np.array(valid.sum(dim=1).tolist(), np.int64)
    lengths_there = np.unique(lengths[lengths > 0]).tolist()
    kept_of = {0: 0}
    for n in lengths_there:
        kept_of[n] = plan(n, g, n if n < min_length else size, 0.5).schedule.size
    kept = [kept_of[n] for n in lengths.tolist()]
    # copied before the launches, as a copy waits for them
    in_order = np.argsort(lengths, kind="stable")
    counts, sequences = torch.from_numpy(np.array([kept, in_order], np.int64)).to(valid.device)
    ends = np.searchsorted(lengths[in_order], lengths_there, side="right").tolist()
    starts = [int((lengths == 0).sum()), *ends]
    return counts, [
        (n, kept_of[n], sequences[start:end])
        for n, start, end in zip(lengths_there, starts, ends, strict=False)
    ]


def is_finite(tokens: torch.Tensor) -> torch.Tensor:
    """Return whether all tokens (B, n, H, dim) of a head are finite, (B, H)."""
    return tokens.isfinite().all(3).all(1)


def take(tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return tokens (B, S, H, dim) at positions (B, H, n), as (B, H, n, dim)."""
    at = positions[..., None].expand(-1, -1, -1, tokens.shape[-1])
    return tokens.transpose(1, 2).gather(2, at)


def pick(numbers: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return numbers (B, n) of sequences at positions (B, H, few), as (B, H, few)."""
    return numbers[:, None].expand(-1, positions.shape[1], -1).gather(2, positions)
