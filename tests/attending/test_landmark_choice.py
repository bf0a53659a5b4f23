"""Which keys are landmarks: as specified, with the laws of their draws."""

from contextlib import contextmanager
from itertools import pairwise
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from specified_landmarks import (
    activations,
    corrections,
    draws_of,
    error,
    everything,
    qkv,
    specified,
)

from reference import landmarks as reference
from thinformer.attending import landmarks
from thinformer.attending.options import CORRECTIONS, KeySelection

TOLERANCE = {np.float64: 1e-7, np.float32: 2e-3}


SOME = [("text", "layer0", 32), ("vision", "layer3", 48), ("audio", "layer1", 33)]


@corrections
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("name", "layer", "n_out"), SOME)
def test_as_specified_on_activations(name, layer, n_out, dtype, correction):
    arrays = [x.astype(dtype) for x in activations(name, layer, 300, 2)]
    got = everything(*arrays, size=n_out, correction=correction)
    output, weights, indices = specified(*arrays, n_out, correction)
    np.testing.assert_array_equal(got.indices, indices)
    assert got.output.dtype == got.weights.dtype == dtype
    np.testing.assert_allclose(got.output, output, rtol=0, atol=TOLERANCE[dtype])
    np.testing.assert_allclose(got.weights, weights, rtol=0, atol=TOLERANCE[dtype])


@contextmanager
def few_queries(most):
    """Sample fewer queries, whose outputs are exact, than small examples have."""
    with patch.object(landmarks, "QUERIES", most), patch.object(reference, "QUERIES", most):
        yield


@st.composite
def problems(draw):
    S = draw(st.integers(2, 80))
    shape = {
        "B": draw(st.integers(1, 2)), "T": draw(st.integers(1, 40)), "S": S,
        "H": draw(st.integers(1, 3)), "E": draw(st.integers(1, 20)), "D": draw(st.integers(1, 20)),
        "rng": draw(st.integers(0, 2**32)),
    }  # fmt: skip
    arrays = qkv(**shape)
    if draw(st.booleans()):  # few distinct keys
        arrays[1] = np.rint(arrays[1])
    given = {
        "size": draw(st.integers(1, S - 1)), "correction": draw(st.sampled_from(CORRECTIONS)),
        "temperature": draw(st.sampled_from([None, 0.7, 2.0])),
        "scale": draw(st.sampled_from([None, 0.1, 1.0])), "rng": draw(st.integers(0, 2**32)),
    }  # fmt: skip
    return arrays, given


@given(problems())
def test_as_specified(problem):
    arrays, given = problem
    with few_queries(7):
        got = everything(*arrays, **given)
        size = given.pop("size")
        output, weights, indices = specified(*arrays, size, **given)
    np.testing.assert_array_equal(got.indices, indices)
    np.testing.assert_allclose(got.output, output, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.weights, weights, rtol=1e-5, atol=1e-5)
    assert (np.diff(got.indices) > 0).all()  # no pivot twice
    low, high = arrays[2].min(axis=1, keepdims=True), arrays[2].max(axis=1, keepdims=True)
    assert ((low <= got.output) & (got.output <= high)).all()


@corrections
def test_temperature(correction):
    """One's own; by default WildCat's formula, computed here by hand."""
    query, key, value = qkv(H=1)
    centred = key - key.mean(axis=1)
    q, k = (np.linalg.norm(x, axis=-1).max() for x in (query, centred))
    # tau^2 = k b / (2 q W_0(b / (2 rho_0))), b = log(S) / (scale q k) + 2
    b = np.log(120) / (0.5 * q * k) + 2
    w = np.linspace(0.01, 3, 3_000_001)
    w = w[np.searchsorted(w * np.exp(w), b / reference.TWO_RHO)]
    tau = np.sqrt(k * b / (2 * q * w))
    given = {"size": 20, "correction": correction, "scale": 0.5}
    default = everything(query, key, value, **given)
    same = everything(query, key, value, temperature=tau, **given)
    np.testing.assert_array_equal(same.indices, default.indices)
    np.testing.assert_allclose(same.output, default.output, rtol=1e-3)
    other = everything(query, key, value, temperature=2 * tau, **given)
    assert error(other.output, default.output) > 1e-3
    # divided keys and multiplied queries are the same softmax, and so the same kernel
    scaled = everything(4 * query, key / 4, value, **given)
    np.testing.assert_array_equal(scaled.indices, default.indices)
    np.testing.assert_allclose(scaled.output, default.output, rtol=1e-8, atol=1e-10)


def kernel_by_hand(query, key, correction, tau, scale):
    """The kernel on the keys of a head, before it is normalised."""
    x = (key - key.mean(axis=0)) * np.sqrt(scale) / tau
    K = np.exp(x @ x.T)
    if correction == "queries":
        P = np.exp(scale * query @ key.T)
        P /= P.sum(axis=1, keepdims=True)
        K = 0.3 * K / np.trace(K) + P.T @ P / np.sum(P**2)
    return K


def test_pivots_have_the_law_of_randomly_pivoted_cholesky():
    """Every head draws its own: 8,000 heads of the same six keys, of which two are kept."""
    rng = np.random.default_rng(1)
    query, key, heads = rng.standard_normal((5, 2)), 1.5 * rng.standard_normal((6, 2)), 8000
    K = kernel_by_hand(query, key, "nystrom", 1.0, 1.0)
    first = np.diag(K) / np.trace(K)
    pairs = np.zeros((6, 6))
    for i in range(6):
        left = np.diag(K) - K[i] ** 2 / K[i, i]
        left[i] = 0
        pairs[i] = first[i] * left / left.sum()
    pairs = (pairs + pairs.T)[np.triu_indices(6, 1)]
    arrays = [np.repeat(x[None, :, None], heads, axis=2) for x in (query, key, key)]
    options = {"correction": "nystrom", "temperature": 1.0, "scale": 1.0}
    (one,) = everything(*arrays, size=1, **options).indices[..., 0]
    counts = np.bincount(one, minlength=6)
    assert chisquare(counts, heads * first).pvalue > 0.01
    assert chisquare(counts, np.full(6, heads / 6)).pvalue < 1e-6  # they could be told apart
    (two,) = everything(*arrays, size=2, **options).indices
    counts = np.zeros((6, 6))
    np.add.at(counts, tuple(two.T), 1)
    assert chisquare(counts[np.triu_indices(6, 1)], heads * pairs).pvalue > 0.01
    independent = np.outer(first, first / (1 - first))
    independent = (independent * (1 - np.eye(6))).T  # without replacement, never looked at again
    independent = independent / independent.sum() * heads
    independent = (independent + independent.T)[np.triu_indices(6, 1)]
    assert chisquare(counts[np.triu_indices(6, 1)], independent).pvalue < 1e-6


def test_landmarks_of_queries_have_the_law_of_systematic_sampling():
    """8,000 heads of the same six keys, of which two are kept: pairs by the place of the comb."""
    rng = np.random.default_rng(1)
    query, key, heads = rng.standard_normal((5, 2)), 1.5 * rng.standard_normal((6, 2)), 8000
    root = np.sqrt(np.diag(kernel_by_hand(query, key, "queries", 1.0, 1.0)))
    probability = 2 * root / root.sum()
    assert probability.max() < 1
    ends = np.cumsum(probability)
    places = np.sort(np.concatenate([[0, 1], ends[ends < 1], ends[(ends >= 1) & (ends < 2)] - 1]))
    expected = np.zeros((6, 6))
    for low, high in pairwise(places):
        pair = np.searchsorted(ends, (low + high) / 2 + np.arange(2))
        expected[tuple(pair)] += heads * (high - low)
    arrays = [np.repeat(x[None, :, None], heads, axis=2) for x in (query, key, key)]
    options = {"correction": "queries", "temperature": 1.0, "scale": 1.0}
    (two,) = everything(*arrays, size=2, **options).indices
    counts = np.zeros((6, 6))
    np.add.at(counts, tuple(two.T), 1)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], expected[possible]).pvalue > 0.01
    assert chisquare(counts.sum(axis=0) + counts.sum(axis=1), np.full(6, heads / 3)).pvalue < 1e-6


def test_keys_that_matter_much_are_landmarks_for_sure():
    """Their probability would be above 1; others share what is left of the landmarks."""
    query, key, value = qkv(T=300, H=5)
    key[:, 50], key[:, 60] = 40 * query[:, 0], 40 * query[:, 1]
    got = everything(query, key, value, size=20, correction="queries")
    assert ((got.indices == 50).any(axis=-1) & (got.indices == 60).any(axis=-1)).all()


@pytest.mark.parametrize("n_out", [90, 120])
def test_groups_that_no_sampled_query_attends_to_hardly_move(n_out):
    """A third of the keys takes all attention, and stays alone; the others are merged."""
    query, key, value = np.random.default_rng(0).standard_normal((3, 1, 180, 1, 4))
    attended = np.arange(180) % 3 == 0
    key[:, attended, :, 0] += 6
    key[:, ~attended, :, 0] -= 6
    query[..., 0] += 6
    _, fitted = landmarks.fit_landmarks(
        query, key, value, np.empty_like(query), KeySelection(correction="queries"),
        n_out=n_out, scale=0.5, seed=1,
    )  # fmt: skip
    (draws,) = draws_of(1, 1, 180, 180, n_out, "queries")
    head = (x[0, :, 0] for x in (query, key, value))
    expected = reference.landmark_attention(*head, 0.5, n_out, "queries", draws)[2]
    np.testing.assert_allclose(fitted.masses[0, 0], expected.masses, rtol=1e-9)
    np.testing.assert_allclose(fitted.values[0, :, 0], expected.values, rtol=0, atol=1e-9)
    counts = np.rint(expected.masses)
    assert counts.sum() == 180  # the numbers of keys of the groups
    assert 0 < np.abs(expected.masses - counts).max() < 0.2
