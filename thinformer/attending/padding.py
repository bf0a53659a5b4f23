"""From a mask to positions: a padded batch as sequences without padding, length by length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Sequences(NamedTuple):
    """The sequences of a batch that have one length, without their padding.

    numbers : (b,), their places in the batch
    tokens : (b, L), the positions of their tokens
    queries : (b, T'), the positions of their queries
    arrays : query (b, T', H, E), key (b, L, H, E), value (b, L, H, D)
    """

    numbers: NDArray
    tokens: NDArray
    queries: NDArray
    arrays: tuple[NDArray, NDArray, NDArray]


def by_length(valid: NDArray) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield for each length the numbers (b,) of its sequences, and their tokens' positions (b, L).

    valid (B, S) bool is True for a token, False for padding. A sequence without a token is left
    out.
    """
    lengths = valid.sum(axis=1)
    for length in np.unique(lengths[lengths > 0]).tolist():
        (numbers,) = np.nonzero(lengths == length)
        yield numbers, np.nonzero(valid[numbers])[1].reshape(-1, length)


def unpadded(
    query: NDArray, key: NDArray, value: NDArray, valid: NDArray | None, group: int
) -> Iterator[Sequences]:
    """Yield the sequences of a batch without padding, length by length.

    query (B, T * group, H, E) has the queries of a group of heads, token by token. With T = S the
    queries belong to the same tokens as the keys, and those of padding are left out.
    valid (B, S) bool is True for a token, False for padding; None for no padding.
    """
    (B, S), n_queries = key.shape[:2], query.shape[1]
    if valid is None:
        valid = np.ones((B, S), bool)
    for numbers, tokens in by_length(valid):
        queries = np.broadcast_to(np.arange(n_queries), (len(numbers), n_queries))
        if n_queries == S * group:
            queries = (tokens[:, :, None] * group + np.arange(group)).reshape(len(numbers), -1)
        keys, values = (_of(x, numbers, tokens) for x in (key, value))
        yield Sequences(numbers, tokens, queries, (_of(query, numbers, queries), keys, values))


def _of(array: NDArray, numbers: NDArray, tokens: NDArray) -> NDArray:
    """Tokens (b, L) of sequences (b,); the array itself where these are all tokens."""
    if tokens.shape == array.shape[:2]:
        return array
    return array[numbers[:, None], tokens]
