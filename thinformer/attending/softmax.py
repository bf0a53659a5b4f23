"""Softmax attention over the keys kept: the memory of a result, and what is written there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer.attending.landmarks import LEAST, SHARE, Chosen, Fitted, fit_landmarks
from thinformer.attending.options import KeySelection
from thinformer.attending.padding import Sequences, unpadded
from thinformer.halving.problem import SCALE, head_factor


def make_result(
    query: NDArray, value: NDArray, n_out: int, weights: bool
) -> tuple[NDArray, NDArray | None]:
    """Memory for the output (B, T, H, D) and, if wanted, the weights (B, H, T, n_out)."""
    B, T, H, _ = query.shape
    output = np.empty((B, T, H, value.shape[-1]), query.dtype)
    return output, np.empty((B, H, T, n_out), query.dtype) if weights else None


def attend(
    query: NDArray, key: NDArray, value: NDArray, indices: NDArray, scale: float, weights: bool
) -> tuple[NDArray, NDArray | None]:
    """Return softmax attention over positions (B, H, n_out), and its weights if wanted."""
    output, of_keys = make_result(query, value, indices.shape[-1], weights)
    write_attention(query, key, value, indices, scale, output, of_keys)
    return output, of_keys


def write_landmark_attention(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    output: NDArray,
    weights: NDArray | None,
    selection: KeySelection,
    *,
    n_out: int,
    scale: float,
    seed: int,
) -> Chosen:
    """Write attention to landmarks, and its weights if there is memory for them; return which."""
    chosen, fitted = fit_landmarks(
        query, key, value, output, selection, n_out=n_out, scale=scale, seed=seed
    )
    # draws differ by head, not by sequence
    known = chosen.sampled[0] if len(query) else None
    every = np.tile(np.arange(n_out), (*chosen.indices.shape[:2], 1))
    write_attention(query, fitted.keys, fitted.values, every, scale, output, weights, fitted, known)
    return chosen


def attend_to_valid_landmarks(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    valid: NDArray,
    selection: KeySelection,
    *,
    n_out: int,
    group: int,
    scale: float,
    seed: int,
    weights: bool,
) -> tuple[NDArray, NDArray | None, NDArray, NDArray]:
    """Attend to landmarks among the valid tokens, (B, S) bool, of which a sequence has up to n_out.

    Each sequence has those that it has alone, see `landmarks.choose_valid_landmarks`, whose `query`
    and `group` these are. All queries have an output, those of padding too. Without a token it is
    zeros.

    Returns
    -------
    output : (B, T * group, H, D)
    weights : (B, H, T * group, n_out) if wanted
        0 behind the landmarks of a sequence with fewer.
    indices : (B, H, n_out) int64
        -1 there.
    finite : (B, H) bool
        Which heads are finite.
    """
    B, _, H, _ = key.shape
    output, of_keys = make_result(query, value, n_out, weights)
    indices, finite = np.full((B, H, n_out), -1), np.ones((B, H), bool)
    output[~valid.any(axis=1)] = 0
    if of_keys is not None:
        of_keys[...] = 0
    for some in unpadded(query, key, value, valid, group):
        tokens, numbers = some.tokens, some.numbers
        few, queries = selection.plan(tokens.shape[1]).schedule.size, query[numbers]
        own, own_weights = make_result(queries, value, few, weights)
        if few == tokens.shape[1]:
            _, keys, values = some.arrays
            places = np.tile(np.arange(few), (len(numbers), H, 1))
            write_attention(queries, keys, values, places, scale, own, own_weights)
            finite[numbers] = np.isfinite(keys).all((1, 3)) & np.isfinite(values).all((1, 3))
        else:
            chosen = _write_padded(
                queries, some, own, own_weights, selection, n_out=few, scale=scale, seed=seed
            )
            places, finite[numbers] = chosen.indices, chosen.finite
        output[numbers] = own
        indices[numbers, :, :few] = np.take_along_axis(tokens[:, None], places, axis=2)
        if of_keys is not None:
            of_keys[numbers, :, :, :few] = own_weights
    return output, of_keys, indices, finite


def _write_padded(
    query: NDArray,
    some: Sequences,
    output: NDArray,
    weights: NDArray | None,
    selection: KeySelection,
    *,
    n_out: int,
    scale: float,
    seed: int,
) -> Chosen:
    """Write what all queries of sequences of one length attend to, fitted to those of tokens."""
    exact = np.empty((*some.queries.shape, *output.shape[2:]), output.dtype)
    chosen, fitted = fit_landmarks(
        *some.arrays, exact, selection, n_out=n_out, scale=scale, seed=seed
    )
    every = np.tile(np.arange(n_out), (*chosen.indices.shape[:2], 1))
    write_attention(query, fitted.keys, fitted.values, every, scale, output, weights, fitted)
    sequence, head = np.ogrid[: len(query), : query.shape[2]]
    sequence, head = sequence[..., None], head[..., None]
    rows = np.take_along_axis(some.queries[:, None], chosen.sampled, axis=2)
    output[sequence, rows, head] = exact[sequence, chosen.sampled, head]
    return chosen


def write_attention(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    indices: NDArray,
    scale: float,
    output: NDArray,
    weights: NDArray | None,
    fitted: Fitted | None = None,
    known: NDArray | None = None,
) -> None:
    """Write the softmax over positions (B, H, n_out), with the masses of landmarks if fitted.

    known : (H, m) positions of queries whose rows of the output are written already, and stay
    """
    from thinformer.cpu.softmax import Landmarks, softmax_attention  # imports Numba

    B, H, n_out = indices.shape
    queries = head_factor(query)
    queries.parameters[:, SCALE] = scale
    every = None if weights is None else weights.reshape(B * H, weights.shape[2], n_out)
    rows = indices.reshape(B * H, n_out)
    of_problems = None
    if fitted is not None:
        masses, low, high = (
            array.reshape(B * H, array.shape[-1])
            for array in (fitted.masses, fitted.low, fitted.high)
        )
        of_problems = Landmarks(masses, low, high, SHARE, LEAST)
    softmax_attention(
        queries, head_factor(key), head_factor(value), rows, output, every, of_problems, known
    )
