"""Attention to landmarks by the specification, and arrays to compare on."""

from functools import partial

import arrays
import numpy as np
import pytest

from reference import landmarks as reference
from thinformer import attention
from thinformer.attending import landmarks
from thinformer.attending.landmarks import CANDIDATES, PROPOSALS, STREAMS
from thinformer.attending.options import CORRECTIONS
from thinformer.data import load_activations
from thinformer.halving.draws import head_keys, seed_from, unit_numbers

corrections = pytest.mark.parametrize("correction", CORRECTIONS)
qkv = partial(arrays.qkv, T=180, S=120, E=4, D=3)


def everything(*arrays, rng=3, **options):
    return attention(*arrays, rng=rng, return_weights=True, return_indices=True, **options)


def error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def draws_of(seed, H, T, S, n_out, correction):
    m = landmarks.number_of_queries(T, n_out)
    sizes = (m, 0) if correction == "queries" else (0, min(S, CANDIDATES * n_out))
    keys = head_keys(seed, H)
    strata = [unit_numbers(keys, STREAMS + i, size + 1) for i, size in enumerate(sizes)]
    if correction == "queries":
        uniforms = unit_numbers(keys, STREAMS + 2, 1)[:, 0]
    else:
        uniforms = unit_numbers(keys, STREAMS + 2, 2 * PROPOSALS * n_out).reshape(H, -1, 2)
    return [reference.LandmarkDraws(*of_head) for of_head in zip(*strata, uniforms, strict=True)]


def specified(query, key, value, n_out, correction, temperature=None, scale=None, rng=3):
    """Output, weights and positions of all heads, as `everything` has them."""
    (B, T, H, E), S = query.shape, key.shape[1]
    output, indices = np.empty((B, T, H, value.shape[-1])), np.empty((B, H, n_out), np.int64)
    weights = np.empty((B, H, T, n_out))
    draws = draws_of(seed_from(rng), H, T, S, n_out, correction)
    for b in range(B):
        for h in range(H):
            output[b, :, h], weights[b, h], landmarks = reference.landmark_attention(
                query[b, :, h], key[b, :, h], value[b, :, h], scale or E**-0.5, n_out, correction,
                draws[h], temperature,
            )  # fmt: skip
            indices[b, h] = landmarks.positions
    return output, weights, indices


def activations(name, layer, tokens, heads=1):
    arrays = load_activations(name)[layer]
    return [arrays[role][:, :tokens, :heads].astype(float) for role in ("query", "key", "value")]
