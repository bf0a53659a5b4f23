"""Landmarks: the kernels are what the specification says, and attention to them is near exact."""

from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from arrays import qkv as make_qkv
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from reference import landmarks as reference
from thinformer import attention, bodies, compress_schedule, make_draws
from thinformer.attending import landmarks
from thinformer.attending.landmarks import (
    CANDIDATES,
    CORRECTIONS,
    PROPOSALS,
    STREAMS,
    SUMMED,
    fit_landmarks,
)
from thinformer.data import load_activations
from thinformer.halving.draws import _unit_numbers, head_keys, seed_from
from thinformer.support import threads

corrections = pytest.mark.parametrize("correction", CORRECTIONS)
TOLERANCE = {np.float64: 1e-7, np.float32: 2e-3}


qkv = partial(make_qkv, T=180, S=120, E=4, D=3)


def everything(*arrays, rng=3, **options):
    return attention(*arrays, rng=rng, return_weights=True, return_indices=True, **options)


def exact(query, key, value, **options):
    return attention(query, key, value, size=key.shape[1], **options).output


def error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def draws_of(seed, H, T, S, n_out, correction):
    times = SUMMED if correction == "queries" else CANDIDATES
    keys, sizes = head_keys(seed, H), (min(T, landmarks.QUERIES), min(S, times * n_out))
    strata = [_unit_numbers(keys, STREAMS + i, size + 1) for i, size in enumerate(sizes)]
    if correction == "queries":
        uniforms = _unit_numbers(keys, STREAMS + 2, 1)[:, 0]
    else:
        uniforms = _unit_numbers(keys, STREAMS + 2, 2 * PROPOSALS * n_out).reshape(H, -1, 2)
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
        "seed": draw(st.integers(0, 2**32)),
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


@corrections
@pytest.mark.parametrize(("kinds", "n_out"), [(1, 1), (1, 5), (7, 7), (7, 12)])
def test_exact_where_the_rank_of_the_kernel_is_small(kinds, n_out, correction):
    """Landmarks of every distinct key stand for the others: duplicates are counted in full.

    Those that are drawn may leave a kind out.
    """
    query, key, value = qkv(S=60, H=3)
    if correction == "queries" and kinds > 1:
        n_out = 36
    key = key[:, np.arange(60) % kinds * (np.arange(60) % 3 > 0)]  # one of them is more frequent
    got = everything(query, key, value, size=n_out, correction=correction)
    if n_out == kinds or correction == "queries":
        of_head = key[0, got.indices[0], np.arange(3)[:, None]]
        assert all(len(np.unique(x, axis=0)) == kinds for x in of_head)
    bound = 1e-4 if correction == "nystrom" or kinds == 1 else 0.1  # shrunk towards a sample
    assert error(got.output, exact(query, key, value)) < bound
    plain = attention(query, key, value, size=n_out, rng=3).output
    assert error(plain, exact(query, key, value)) > 0.1


@corrections
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "case", [{"S": 2, "n_out": 1}, {"T": 1}, {"H": 1, "n_out": 1}, {"E": 1, "D": 1}, {"n_out": 119}]
)
@pytest.mark.parametrize("kind", ["random", "zero queries", "equal keys", "zero keys", "far"])
def test_finite_and_within_the_values(case, kind, dtype, correction):
    n_out = case.get("n_out", 10)
    query, key, value = qkv(**{name: n for name, n in case.items() if name != "n_out"}, dtype=dtype)
    query *= kind != "zero queries"
    key *= kind != "zero keys"
    if kind == "equal keys":
        key[:] = key[:, :1]
    if kind == "far":
        key[:, ::3] *= 100
    got = everything(query, key, value, size=n_out, correction=correction)
    low, high = value.min(axis=1, keepdims=True), value.max(axis=1, keepdims=True)
    assert ((low <= got.output) & (got.output <= high)).all()
    assert np.isfinite(got.weights).all()
    assert (np.diff(got.indices) > 0).all()
    if kind in ("equal keys", "zero keys"):
        assert error(got.output, exact(query, key, value)) < 1e-3


@corrections
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", [1e2, 1e4, 1e9, 1e15])
def test_large_norms(norm, dtype, correction):
    """Keys that no sampled query sees, and exponents that rounding would make positive."""
    query, key, value = (x.astype(dtype) for x in qkv(S=200, H=3))
    got = everything(norm * query, norm * key, value, size=20, correction=correction)
    low, high = value.min(axis=1, keepdims=True), value.max(axis=1, keepdims=True)
    assert ((low <= got.output) & (got.output <= high)).all()
    assert np.isfinite(got.weights).all()


@pytest.mark.parametrize(
    ("name", "layer", "n_out", "nystrom", "queries"),
    [("text", "layer5", 64, 0.3, 0.15), ("vision", "layer3", 96, 0.9, 0.65),
     ("audio", "layer1", 96, 0.65, 0.4)],
)  # fmt: skip
def test_nearer_than_thinning_with_as_many_keys(name, layer, n_out, nystrom, queries):
    """Bounds of the error beside that of the published method, a fifth above what was measured."""
    arrays = activations(name, layer, 500)
    plain, of_nystrom, of_queries = (
        np.mean([error(attention(*arrays, size=n_out, rng=i, correction=correction).output,
                       exact(*arrays)) for i in range(2)])
        for correction in (None, "nystrom", "queries")
    )  # fmt: skip
    assert of_queries < of_nystrom
    assert of_nystrom < nystrom * plain
    assert of_queries < queries * plain


@corrections
def test_more_landmarks_come_nearer(correction):
    arrays = activations("vision", "layer3", 400)
    errors = [error(attention(*arrays, size=n, correction=correction, rng=0).output, exact(*arrays))
              for n in (20, 80, 320)]  # fmt: skip
    assert errors[2] < errors[1] / 2
    assert errors[1] < errors[0] / 1.3


@corrections
def test_a_constant_is_kept(correction):
    """Numerator and denominator are fitted alike; weights sum to 1."""
    query, key, value = qkv()
    value[..., 1] = 7
    _, (values, masses, *_) = fit_landmarks(
        query, key, value, np.empty((*query.shape[:3], 3)), n_out=15, correction=correction,
        temperature=None, scale=0.5, seed=1,
    )  # fmt: skip
    np.testing.assert_allclose(values[..., 1], 7 * masses.transpose(0, 2, 1), rtol=1e-9)
    # fitted without a constraint, yet the masses are about all keys'
    assert masses.sum() == pytest.approx(2 * 120, rel=0.5)
    got = everything(query, key, value, size=15, correction=correction)
    np.testing.assert_allclose(got.output[..., 1], 7, rtol=1e-12)
    query, key, value = activations("vision", "layer3", 400)
    got = everything(query, key, value, size=50, correction=correction)
    sums = got.weights.sum(axis=-1)
    assert sums.max() < 1 + 1e-9
    assert np.mean(sums > 1 - 1e-9) > 0.99  # elsewhere they nearly cancel


def test_a_sum_of_masses_that_cancels_is_floored():
    """At a temperature that is far too low; the weights do not sum to 1 there."""
    query, key, value = qkv(T=60, S=200, E=8)
    key *= 3
    options = {"correction": "nystrom", "temperature": 0.3}
    got = everything(query, key, value, size=10, **options)
    np.testing.assert_allclose(got.weights, specified(query, key, value, 10, **options)[1],
                               rtol=1e-4, atol=1e-9)  # fmt: skip
    magnitude = np.abs(got.weights).sum(axis=-1)
    assert magnitude.max() <= 3.2 * (1 + 1e-9)  # 1 / 0.3125
    assert (magnitude > 3.2 * (1 - 1e-9)).any()


@corrections
def test_as_many_landmarks_as_keys_are_exact(correction):
    query, key, value = qkv()
    for size in (120, 1000):
        got = everything(query, key, value, size=size, correction=correction)
        np.testing.assert_array_equal(got.output, exact(query, key, value))
        np.testing.assert_array_equal(got.indices, np.broadcast_to(np.arange(120), (1, 2, 120)))


@corrections
def test_g_says_how_many(correction):
    got = everything(*qkv(S=300), g=1, correction=correction)
    assert got.indices.shape == (1, 2, 32)
    assert got.weights.shape == (1, 2, 180, 32)


@corrections
def test_a_vector_added_to_all_keys_changes_nothing(correction):
    query, key, value = qkv()
    got = everything(query, key, value, size=20, correction=correction)
    moved = key + 10 * np.random.default_rng(1).standard_normal((1, 1, 2, 4))
    same = everything(query, moved, value, size=20, correction=correction)
    np.testing.assert_array_equal(same.indices, got.indices)
    np.testing.assert_allclose(same.output, got.output, rtol=1e-8, atol=1e-9)


@corrections
def test_alone_in_a_batch_and_on_any_number_of_threads(correction):
    arrays = qkv(B=3, H=3)
    options = {"size": 20, "correction": correction}
    expected = everything(*arrays, **options)
    with patch.multiple(threads, THREAD_FLOPS=1, PIECE_FLOPS=1, _threads=3):
        in_pieces = everything(*arrays, **options)
    alone = [everything(*(x[b : b + 1] for x in arrays), **options) for b in range(3)]
    for got in (in_pieces, [np.concatenate(x) for x in zip(*alone, strict=True)]):
        np.testing.assert_array_equal(got[2], expected.indices)
        np.testing.assert_allclose(got[0], expected.output, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(got[1], expected.weights, rtol=1e-10, atol=1e-12)
    assert not np.array_equal(everything(*arrays, rng=4, **options).indices, expected.indices)
    assert not np.array_equal(expected.indices[:, 0], expected.indices[:, 1])


@corrections
def test_strided_and_read_only(correction):
    arrays = qkv(B=2)
    expected = everything(*arrays, size=20, correction=correction)
    by_head = [np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3) for x in arrays]
    backwards = [np.ascontiguousarray(x[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1]
                 for x in arrays]  # fmt: skip
    apart = [np.repeat(np.repeat(x, 2, axis=-1), 3, axis=1)[:, ::3, :, ::2] for x in arrays]
    for views in (by_head, backwards, apart):
        for view in views:
            view.flags.writeable = False
        got = everything(*views, size=20, correction=correction)
        np.testing.assert_array_equal(got.indices, expected.indices)
        np.testing.assert_allclose(got.output, expected.output, rtol=1e-9, atol=1e-11)


@corrections
def test_float16_is_computed_in_float32(correction):
    arrays = [x.astype(np.float16) for x in qkv()]
    got = everything(*arrays, size=20, correction=correction)
    wide = everything(*(x.astype(np.float32) for x in arrays), size=20, correction=correction)
    assert got.output.dtype == got.weights.dtype == np.float16
    np.testing.assert_array_equal(got.indices, wide.indices)
    np.testing.assert_array_equal(got.output, wide.output.astype(np.float16))


@corrections
@pytest.mark.parametrize("axis", ["B", "T", "H"])
def test_empty(axis, correction):
    arrays = qkv(**{axis: 0})
    got = everything(*arrays, size=20, correction=correction)
    B, T, H, _ = arrays[0].shape
    assert got.output.shape == (B, T, H, 3)
    assert got.weights.shape == (B, H, T, 20)
    assert got.indices.shape == (B, H, 20)


def test_no_correction_is_the_published_method():
    arrays = qkv()
    got, plain = everything(*arrays, size=20, correction=None), everything(*arrays, size=20)
    assert all(map(np.array_equal, got, plain))
    assert not np.array_equal(
        got.indices, everything(*arrays, size=20, correction="nystrom").indices
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"correction": "wildcat"}, ValueError,
         "^correction must be one of None, 'nystrom', 'queries'; got 'wildcat'"),
        ({"correction": True}, ValueError, "^correction must be one of"),
        ({"correction": "queries", "pre_thin": "stride"}, ValueError, "^pre_thin, delta and draws"),
        ({"correction": "queries", "delta": 0.1}, ValueError, "^pre_thin, delta and draws"),
        ({"correction": "queries", "draws": make_draws(compress_schedule(120, 64), 0, 2)},
         ValueError, "^pre_thin, delta and draws"),
        *(({"correction": "nystrom", "temperature": tau}, ValueError,
           "^temperature must be positive and finite; got")
          for tau in (0, -1.0, np.nan, np.inf)),
        ({"correction": "nystrom", "temperature": "1"}, ValueError,
         "^temperature must be None, 'auto' or a number; got '1'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [20, 1000])
def test_bad_arguments(size, options, error, message):
    """Also where all keys are kept, and nothing would be fitted."""
    with pytest.raises(error, match=message):
        attention(*qkv(), size=size, **options)


@corrections
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_temperature_that_leaves_the_range(dtype, correction):
    arrays = qkv(dtype=dtype)
    low = {np.float32: 1e-17, np.float64: 1e-150}[dtype]
    assert np.isfinite(
        everything(*arrays, size=20, correction=correction, temperature=low).output
    ).all()
    with pytest.raises(ValueError, match="^temperature must be larger: .* got 1e-200"):
        attention(*arrays, size=20, correction=correction, temperature=1e-200)


@corrections
@pytest.mark.parametrize(("bad", "temperature"), [(np.nan, None), (np.inf, None), (np.inf, 1.0)])
@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_not_finite(name, bad, temperature, correction):
    arrays = dict(zip(("query", "key", "value"), qkv(), strict=True))
    arrays[name][0, 3, 1, 0] = bad
    with pytest.raises(ValueError, match=f"^{name} must be finite"):
        attention(**arrays, size=20, correction=correction, temperature=temperature)


def test_not_on_a_gpu(monkeypatch):
    monkeypatch.setattr(bodies, "choose", lambda device, **arrays: device)  # as if there were one
    with pytest.raises(NotImplementedError, match="^correction is None only on a GPU"):
        attention(*qkv(), size=20, correction="queries", device="cuda")
    monkeypatch.setattr(bodies, "on_gpu", lambda array: isinstance(array, SimpleNamespace))
    with pytest.raises(NotImplementedError, match="takes no arrays on a GPU"):
        attention(SimpleNamespace(), *qkv()[1:], size=20, correction="queries")
