"""Merge and reduce: as good as thinning in memory, and honest about weights and rows."""

import numpy as np
import pytest

from thinformer import mmd, thin
from thinformer.thinning import distributed, merging, streaming
from thinformer.thinning.streaming import merge_and_reduce


def mixture(n, d=3, seed=0):
    """Points of a few clusters, in an order that drifts, so that chunks differ."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(5, d))
    points = centres[rng.integers(5, size=n)] + rng.normal(size=(n, d))
    return points[np.argsort(points[:, 0] + 2 * rng.normal(size=n))]


def chunks(points, rows):
    return [points[i : i + rows] for i in range(0, len(points), rows)]


@pytest.fixture
def small(monkeypatch):
    """Coresets of 64 rows or more, so that a few thousand points go through several levels."""
    monkeypatch.setattr(merging, "LEAST", 64)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [512, pytest.param(1000, marks=pytest.mark.nightly)])
def test_as_good_as_in_memory(rows, small):
    points = mixture(12_000)
    settings = {"kernel": "gaussian", "bandwidth": 3.0}
    size, seeds = 24, range(6)
    memory = [mmd(points, thin(points, size, rng=s, **settings), **settings) for s in seeds]
    stream = []
    for seed in seeds:
        coreset = merge_and_reduce(chunks(points, rows), size, rng=seed, **settings)
        stream.append(mmd(points, coreset.rows, **settings))
    even = mmd(points, thin(points, size, method="standard"), **settings)
    spread = np.std(memory, ddof=1) / np.sqrt(len(memory))
    assert np.mean(stream) < np.mean(memory) + 3 * spread + 0.15 * np.mean(memory)
    assert np.mean(stream) < even / 3


def test_one_chunk_is_thinned_as_it_is():
    points = mixture(700)
    for settings in ({}, {"kernel": "imq", "g": 2}, {"method": "halving"}, {"method": "random"}):
        coreset = merge_and_reduce([points], 20, rng=5, **settings)
        np.testing.assert_array_equal(coreset.rows, thin(points, 20, rng=5, **settings))
        np.testing.assert_array_equal(coreset.points, points[coreset.rows])
        np.testing.assert_array_equal(coreset.weights, np.full(20, 35))


def test_rows_are_those_of_the_stream_and_the_same_for_a_seed(small):
    points = mixture(5000)
    one, other, third = (
        merge_and_reduce(iter(chunks(points, 600)), 10, rng=rng) for rng in (1, 1, 2)
    )
    np.testing.assert_array_equal(one.points, points[one.rows])
    np.testing.assert_array_equal(one.rows, other.rows)
    assert not np.array_equal(one.rows, third.rows)
    assert np.all(np.diff(one.rows) > 0)


def test_what_is_left_is_told_and_little(small):
    points = mixture(40_000, d=1)
    told, drawn = [], 0

    def stream():
        nonlocal drawn
        for chunk in chunks(points, 500):
            drawn += len(chunk)
            yield chunk

    def keep(rows):
        told.append((drawn, rows))

    coreset = merge_and_reduce(stream(), 4, rng=0, keep=keep)
    before, read_before = np.arange(1000), 1000
    for read, rows in told:
        assert np.all(np.diff(rows) > 0)
        assert np.isin(rows[rows < read_before], before).all()
        before, read_before = rows, read
    # 80 chunks, coresets of 64 to 127 rows
    assert max(rows.size for _, rows in told) <= 6 * np.sqrt(80) * 64
    np.testing.assert_array_equal(told[-1][1], coreset.rows)


@pytest.fixture
def unions(monkeypatch):
    """The unions that are thinned in the end."""
    seen = []
    plain = distributed.evened

    def evened(*arguments):
        seen.append(plain(*arguments))
        return seen[-1]

    monkeypatch.setattr(distributed, "evened", evened)
    return seen


@pytest.mark.parametrize("tail", [1, 7, 100, 511])
def test_rows_of_a_short_last_chunk_weigh_what_they_stand_for(tail, small, unions):
    points = mixture(4 * 512 + tail)
    merge_and_reduce(chunks(points, 512), 4, rng=0)
    (union,) = unions
    of_tail = union.rows >= 4 * 512
    np.testing.assert_array_equal(union.weights[~of_tail], 16)
    assert union.weights[of_tail].sum() == pytest.approx(tail, abs=15)
    assert of_tail.sum() == max(1, tail // 16)


def test_levels_keep_the_weight(small, unions):
    points = mixture(512 * 13)
    merge_and_reduce(chunks(points, 512), 4, rng=0)
    (union,) = unions
    # four coresets of 64 merged and halved to 128, thrice, and the thirteenth, halved once more
    np.testing.assert_array_equal(union.weights, 16)
    assert union.weights.sum() == len(points)
    np.testing.assert_array_equal(union.points, points[union.rows])
    assert len(union.rows) == 3 * 128 + 32


def test_weights_of_the_points(small):
    """Points that weigh nothing are as if they were not there."""
    points = mixture(4000, d=1)
    weights = np.where(points[:, 0] > 0, 1.0, 0.0)
    weights[1000:1500] = 0  # a chunk without weight
    pairs = zip(chunks(points, 500), chunks(weights, 500), strict=True)
    coreset = merge_and_reduce(pairs, 20, rng=0, bandwidth=1.0)
    assert np.all(weights[coreset.rows] == 1)
    assert coreset.weights.sum() == pytest.approx(weights.sum(), rel=0.01)
    even = thin(points, 20, weights=weights, method="standard", bandwidth=1.0)
    ours, theirs = (
        mmd(points, rows, weights=weights, bandwidth=1.0) for rows in (coreset.rows, even)
    )
    assert ours < 0.5 * theirs


def test_methods_that_do_not_look(small):
    points = np.arange(8000.0)[:, None]
    standard = merge_and_reduce(chunks(points, 500), 10, method="standard", rng=0).rows
    assert np.all(np.abs(np.diff(standard) - 800) < 80)
    random = merge_and_reduce(chunks(points, 500), 500, method="random", rng=0).rows
    assert random.size == 500
    assert abs(random.mean() - 4000) < 4 * 8000 / np.sqrt(12 * 500)


def test_small_chunks_are_not_halved_below_what_is_wanted():
    points = mixture(3000)
    coreset = merge_and_reduce(chunks(points, 50), 200, rng=0, bandwidth=3.0)
    assert coreset.rows.size == 200
    ours, even = (
        mmd(points, rows, bandwidth=3.0)
        for rows in (coreset.rows, thin(points, 200, method="standard"))
    )
    assert ours < 0.2 * even


def test_the_bandwidth_is_of_the_first_chunk(small):
    points = mixture(2000)
    points[600:] *= 50
    from thinformer import median_distance
    from thinformer.halving.draws import seed_from

    bandwidth = median_distance(points[:600], np.random.default_rng(seed_from(3)))
    kernels = []
    plain = streaming.resolve

    def resolve(*arguments):
        kernels.append(plain(*arguments))
        return kernels[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "resolve", resolve)
        merge_and_reduce(chunks(points, 600), 10, rng=3)
    (kernel,) = kernels
    assert kernel.scale == pytest.approx(1 / (bandwidth * np.sqrt(2)))


@pytest.mark.parametrize(
    ("stream", "size", "message"),
    [
        ([], 3, "chunks must hold at least one row"),
        ([np.zeros((0, 2))], 3, "chunks must hold at least one row"),
        (
            [mixture(10), mixture(10)],
            21,
            "size must be at most the 20 rows that weigh enough; got 21",
        ),
        ([mixture(10)], 11, "size must be at most the 10 points there are; got 11"),
        ([mixture(10)], 0, "size must be an integer of at least 1; got 0"),
        ([(mixture(10), np.zeros(10))] * 2, 5, "weights must be finite, none of them negative"),
    ],
)
def test_errors(stream, size, message):
    with pytest.raises(ValueError, match=message):
        merge_and_reduce(stream, size)


@pytest.mark.parametrize("method", ["standard", "random"])
def test_methods_that_do_not_look_need_no_bandwidth(method, small):
    points = np.concatenate([np.zeros((600, 2)), mixture(600, d=2)])
    coreset = merge_and_reduce(chunks(points, 300), 10, method=method, rng=0)
    assert np.unique(coreset.rows).size == 10
    with pytest.raises(ValueError, match="needs points that differ"):
        merge_and_reduce(chunks(points, 300), 10, rng=0)
