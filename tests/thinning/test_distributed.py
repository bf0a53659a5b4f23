"""Parts of a point set: any order, any tree of merges and any process give the same rows."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinformer import Coresets, coreset, kernels, merge, mmd, thin
from thinformer.thinning import merging
from thinformer.thinning.streaming import merge_and_reduce

SETTINGS = {"bandwidth": 3.0, "seed": 7}
LENGTHS = [500, 130, 0, 700, 64, 63, 1, 300, 900, 500, 128, 129, 350, 500, 0, 20, 640, 333]


def mixture(n, d=3, seed=0):
    """Points of a few clusters, in an order that drifts, so that parts differ."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(5, d))
    points = centres[rng.integers(5, size=n)] + rng.normal(size=(n, d))
    return points[np.argsort(points[:, 0] + 2 * rng.normal(size=n))]


POINTS = mixture(sum(LENGTHS))
STARTS = np.concatenate([[0], np.cumsum(LENGTHS)])
PARTS = [POINTS[start:end] for start, end in pairwise(STARTS)]


@pytest.fixture(autouse=True, scope="module")
def small():
    """Coresets of 64 rows or more, so that a few thousand points go through several levels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "LEAST", 64)
        yield


@pytest.fixture(scope="module")
def found(small):
    """The coresets of all parts, and their union."""
    every = [
        coreset(points, 10, part=part, first_row=int(start), g=2, **SETTINGS)
        for part, (points, start) in enumerate(zip(PARTS, STARTS, strict=False))
    ]
    return every, merge(every)


def assert_same(one, other):
    assert one.nodes.keys() == other.nodes.keys()
    for node in one.nodes:
        for a, b in zip(one.nodes[node], other.nodes[node], strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def some_tree(items, seed):
    """The items in some order and some tree: lists of items and of trees."""
    rng = np.random.default_rng(seed)
    order = [items[i] for i in rng.permutation(len(items))]
    while len(order) > 1:
        size = rng.integers(1, 6)
        start = rng.integers(len(order))
        order[start : start + size] = [order[start : start + size]]
    return order


@given(st.integers(0, 2**32))
def test_any_order_and_any_tree(found, seed):
    every, union = found

    def merged(branch):
        return merge(map(merged, branch)) if isinstance(branch, list) else every[branch]

    assert_same(merged(some_tree(range(len(LENGTHS)), seed)), union)


def test_rows_are_those_of_the_parts(found):
    rows = found[1].choose(parts=len(LENGTHS))
    np.testing.assert_array_equal(rows.points, POINTS[rows.rows])
    np.testing.assert_array_equal(rows.parts, np.searchsorted(STARTS, rows.rows, "right") - 1)
    assert rows.rows.size == 10
    assert np.all(np.diff(rows.rows) > 0)
    assert rows.weights.sum() == pytest.approx(sum(LENGTHS), rel=0.05)
    local = merge(coreset(points, 10, part=part, g=2, **SETTINGS)
                  for part, points in enumerate(PARTS)).choose()  # fmt: skip
    np.testing.assert_array_equal(STARTS[local.parts] + local.rows, rows.rows)


def test_four_neighbours_are_halved_once(found):
    every, union = found
    assert list(union.nodes) == [(2, 0), (0, 16), (0, 17)]
    assert list(merge(every[:15]).nodes) == [(1, 0), (1, 1), (1, 2), (0, 12), (0, 13), (0, 14)]
    assert list(merge([every[i] for i in (0, 1, 2, 4, 5, 7)]).nodes) == [
        (0, 0), (0, 1), (0, 2), (0, 4), (0, 5), (0, 7)
    ]  # fmt: skip
    four = [coreset(POINTS[i::4][:512], 10, part=8 + i, g=2, **SETTINGS) for i in range(4)]
    assert [len(each.nodes[0, 8 + i].rows) for i, each in enumerate(four)] == [64] * 4
    (node,) = merge(four).nodes.values()
    np.testing.assert_array_equal(node.weights, np.full(128, 16))


@pytest.mark.parametrize("rows", [256, 700])
@pytest.mark.parametrize("method", ["compress++", "standard"])
def test_a_stream_is_the_parts_in_their_order(rows, method):
    chunks = [POINTS[i : i + rows] for i in range(0, len(POINTS), rows)]
    settings = {"bandwidth": 2.0, "method": method, "g": 1}
    parts = (
        coreset(chunk, 9, part=part, first_row=part * rows, seed=11, **settings)
        for part, chunk in enumerate(chunks)
    )
    ours, stream = merge(parts).choose(), merge_and_reduce(chunks, 9, rng=11, **settings)
    for a, b in zip(ours, stream, strict=True):
        np.testing.assert_array_equal(a, b)


def test_draws_follow_from_the_seed_and_the_part():
    rows = [
        coreset(PARTS[8], 10, part=part, bandwidth=3.0, seed=seed).nodes[0, part].rows
        for part, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    assert not np.array_equal(rows[0], rows[3])


def test_pickled_on_the_way(found):
    every, union = found
    again = merge(pickle.loads(pickle.dumps(each)) for each in reversed(every))
    assert_same(again, union)
    back = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(back.choose().rows, union.choose().rows)
    assert repr(back) == repr(union) == f"Coresets(parts 0 to 17: {_rows(union)} rows)"


def _rows(coresets):
    return sum(len(node.rows) for node in coresets.nodes.values())


@pytest.mark.slow
def test_in_other_processes():
    points = mixture(50_000, d=2)
    parts = np.array_split(points, 5)
    settings = {"size": 20, "bandwidth": 2.0, "g": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "LEAST", 4096)  # as it is in other processes
        here = merge(coreset(each, part=part, **settings) for part, each in enumerate(parts))
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=spawn) as pool:
            jobs = [pool.submit(coreset, parts[i], part=i, **settings) for i in (3, 4, 0, 2, 1)]
            first, second = ([job.result() for job in group] for group in (jobs[:2], jobs[2:]))
            there = merge(pool.map(merge, [first, second]))
        assert_same(there, here)
        assert list(here.nodes) == [(1, 0), (0, 4)]
        np.testing.assert_array_equal(there.choose(parts=5).rows, here.choose(parts=5).rows)


@pytest.mark.slow
@pytest.mark.parametrize("even", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_as_good_as_all_points_together(even):
    points = mixture(12_000)
    ends = np.arange(500, 12_000, 500)
    if not even:
        ends = np.sort(np.random.default_rng(1).integers(12_000, size=23))
    size, seeds, kernel = 24, range(6), {"bandwidth": 3.0}
    together = [mmd(points, thin(points, size, rng=seed, **kernel), **kernel) for seed in seeds]
    apart = []
    for seed in seeds:
        parts = np.split(points, ends)
        rows = merge(
            coreset(part, size, part=i, seed=seed, **kernel) for i, part in enumerate(parts)
        ).choose()
        numbers = np.concatenate([[0], ends])[rows.parts] + rows.rows
        apart.append(mmd(points, numbers, **kernel))
    every = mmd(points, thin(points, size, method="standard"), **kernel)
    spread = np.std(together, ddof=1) / np.sqrt(len(together))
    assert np.mean(apart) < np.mean(together) + 3 * spread + 0.15 * np.mean(together)
    assert np.mean(apart) < every / 3


def test_parts_without_rows_or_weight():
    full = [coreset(PARTS[0], 10, part=part, **SETTINGS) for part in range(2)]
    empty = [coreset(np.empty(shape), 10, part=2, **SETTINGS) for shape in ((0, 3), (0, 0))]
    nothing = coreset(PARTS[3], 10, part=2, weights=np.zeros(len(PARTS[3])), **SETTINGS)
    last = coreset(PARTS[9], 10, part=3, **SETTINGS)
    one, *others = (merge([*full, each, last]) for each in (*empty, nothing))
    for other in others:
        assert_same(one, other)
    assert set(one.choose().parts) == {0, 1, 3}
    void = merge(coreset(np.empty((0, 3)), 10, part=part, **SETTINGS) for part in range(5))
    with pytest.raises(ValueError, match="not all zero"):
        void.choose()


def test_weights_of_the_rows():
    """Rows that weigh nothing are as if they were not there."""
    weights = np.where(POINTS[:, 0] > 0, 2.5, 0.0)
    parts = zip(np.array_split(POINTS, 7), np.array_split(weights, 7), strict=True)
    rows = merge(
        coreset(points, 20, part=part, weights=share, bandwidth=2.0)
        for part, (points, share) in enumerate(parts)
    ).choose()
    assert np.all(rows.points[:, 0] > 0)
    assert rows.weights.sum() == pytest.approx(weights.sum(), rel=0.05)


def test_rows_without_weight_are_not_counted():
    """Of 500 rows 100 weigh: halved to 64 or more they are all there, with their own weights."""
    weights = np.zeros(500)
    weights[::5] = 1.0
    (one,) = coreset(PARTS[0], 10, part=0, weights=weights, g=2, **SETTINGS).nodes.values()
    np.testing.assert_array_equal(one.rows, np.arange(0, 500, 5))
    np.testing.assert_array_equal(one.weights, np.ones(100))
    every = [coreset(PARTS[0], 60, part=i, weights=weights, g=0, **SETTINGS) for i in range(5)]
    assert merge(every).choose().rows.size == 60


def test_a_heavy_row_does_not_make_the_others_too_few():
    parts = [POINTS[:1], *(POINTS[300 * i : 300 * i + 300] for i in range(1, 4))]
    weights = [[1000.0], *[np.ones(300)] * 3]
    union = merge(
        coreset(points, 20, part=part, weights=share, g=0, **SETTINGS)
        for part, (points, share) in enumerate(zip(parts, weights, strict=True))
    )
    assert _rows(union) > 50  # they are not brought to its weight, but it is chosen often
    rows = union.choose()
    assert np.unique(rows.rows + 300 * rows.parts).size == 20
    assert 0 in rows.parts


def test_points_are_copied_and_keep_their_precision():
    points = PARTS[4].astype(np.float32)
    weights = np.ones(len(points))
    mine = coreset(points, 10, part=0, weights=weights, **SETTINGS)
    before = points.copy()
    points[:], weights[:] = 0, 0
    (node,) = mine.nodes.values()
    np.testing.assert_array_equal(node.points, before)
    np.testing.assert_array_equal(node.weights, 1)
    assert node.points.dtype == np.float32
    assert coreset(np.eye(3, dtype=int), 1, part=0, **SETTINGS).nodes[0, 0].points.dtype == float


def test_a_part_may_be_missing():
    every = [coreset(PARTS[0][:20], 10, part=part, **SETTINGS) for part in (1, 2, 6, 8)]
    union = merge(every)
    with pytest.raises(
        ValueError, match=r"hold parts 0 to 8; part 0, 3 to 5, 7 is missing \(parts='any' does wi"
    ):
        union.choose()
    with pytest.raises(ValueError, match="parts 0 to 9; part 0, 3 to 5, 7, 9 is missing"):
        union.choose(parts=10)
    with pytest.raises(ValueError, match="got 8, and part 8 is there"):
        union.choose(parts=8)
    for wrong in ("all", 0, 2.5, True):
        with pytest.raises(ValueError, match="parts must be None, the number of parts or 'any'"):
            union.choose(parts=wrong)
    assert set(union.choose(parts="any").parts) <= {1, 2, 6, 8}


def test_a_part_that_comes_twice():
    every = [coreset(PARTS[0], 10, part=part, **SETTINGS) for part in range(9)]
    with pytest.raises(ValueError, match="hold each part once; part 8 came twice"):
        merge([every[8], every[1], every[8]])
    with pytest.raises(ValueError, match="part 6 came twice"):
        merge([merge(every), every[6]])
    with pytest.raises(ValueError, match="part 4 to 7 came twice"):
        merge([merge(every[4:8]), every[0], merge(every[4:8])])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"size": 11}, "the same size; got 10 for parts 0 and 11 for parts 1"),
        ({"seed": 8}, "the same seed; got 7 for parts 0 and 8 for parts 1"),
        ({"g": 3}, "the same g; got 4 for parts 0 and 3"),
        ({"delta": 0.1}, r"the same delta; got 0\.5 for parts 0 and 0\.1"),
        ({"method": "greedy"}, "the same method; got 'compress"),
        ({"bandwidth": 2.0}, "the same kernel; got Kernel"),
        ({"kernel": "laplace"}, "the same kernel; got Kernel"),
        ({"points": np.ones((5, 2))}, "same number of columns; got 3 for parts 0 and 2 for par"),
    ],
)
def test_settings_that_differ(other, message):
    one = coreset(PARTS[0], 10, part=0, **SETTINGS)
    second = coreset(**{"points": PARTS[0], "size": 10, "part": 1} | SETTINGS | other)
    with pytest.raises(ValueError, match=message):
        merge([one, second])


def test_equal_kernels_are_the_same():
    """Also after they were pickled, which makes another object."""
    kernel = kernels.gaussian([1.0, 2.0, 3.0]) + 0.5 * kernels.laplace(2.0)
    one, two = (
        coreset(PARTS[0], 10, part=part, kernel=each)
        for part, each in enumerate((kernel, pickle.loads(pickle.dumps(kernel))))
    )
    assert list(merge([one, two]).nodes) == [(0, 0), (0, 1)]
    third = coreset(PARTS[0], 10, part=1, kernel=kernel + kernels.linear())
    with pytest.raises(ValueError, match="the same kernel"):
        merge([one, third])
    # the kernel changes nothing for these methods
    a, b = (coreset(PARTS[0], 10, part=i, method="random", kernel=k)
            for i, k in enumerate(("gaussian", "imq")))  # fmt: skip
    merge([a, b])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bandwidth": None}, r"the same for all parts; got None\. Compute it once: median_dist"),
        ({"bandwidth": "median"}, "the same for all parts; got 'median'. Compute it once: median"),
        (
            {"bandwidth": None, "kernel": replace(kernels.gaussian(), scale="median")},
            "got 'median'. Compute it ",
        ),
        ({"bandwidth": -1.0}, "bandwidth must be positive"),
        ({"kernel": "nonsense"}, "kernel must be a Kernel or one of"),
        ({"kernel": "nonsense", "method": "standard"}, "kernel must be a Kernel or one of"),
        ({"kernel": "precomputed"}, "kernel 'precomputed' with scores, labels or a Gram matrix"),
        ({"kernel": kernels.stein(PARTS[0], 1.0)}, "kernel 'stein' with scores, labels"),
        (
            {"kernel": kernels.with_labels(kernels.gaussian(1.0), PARTS[0][:, 0])},
            "belongs to the rows of one array",
        ),
        ({"kernel": kernels.gaussian(1.0)}, "bandwidth is part of the kernel"),
        ({"part": -1}, "part must be an integer of at least 0; got -1"),
        ({"part": 1.0}, "part must be an integer of at least 0; got 1.0"),
        ({"first_row": -1}, "first_row must be an integer of at least 0; got -1"),
        ({"seed": None}, "seed must be an integer of at least 0; got None"),
        ({"size": 0}, "size must be an integer of at least 1; got 0"),
        ({"g": -1}, "g must be an integer of at least 0; got -1"),
        ({"delta": 0}, r"delta must lie in \(0, 1\]; got 0"),
        ({"method": "best"}, "method must be one of"),
        ({"points": np.ones(3)}, r"points must have shape \(rows, d\); got shape \(3,\)"),
        ({"points": np.full((3, 2), np.nan)}, "points must be finite"),
        ({"points": np.ma.masked_less(np.eye(3), 1.0)}, "points must have no masked entries"),
        ({"weights": np.ones(3)}, r"weights must be numbers of shape \(500,\); got dtype float64"),
        ({"weights": np.full(500, -1)}, "weights must be finite, and none of them negative"),
        ({"weights": np.full(500, 1e308)}, "weights must have a finite sum; divide them by the"),
        ({"weights": np.full(500, np.inf)}, "weights must be finite, and none of them negative"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        coreset(**{"points": PARTS[0], "size": 10, "part": 0} | SETTINGS | wrong)


def test_wrong_types():
    frame = pytest.importorskip("pandas").DataFrame(PARTS[0])
    with pytest.raises(TypeError, match=r"points must be an array .*to_numpy\(\); got DataFrame"):
        coreset(frame, 10, part=0, **SETTINGS)
    with pytest.raises(TypeError, match="coresets must hold results of coreset or merge; got 3"):
        merge([3])
    with pytest.raises(ValueError, match="coresets must hold at least one; got none"):
        merge([])
    few = merge([coreset(PARTS[15], 21, part=0, **SETTINGS)])
    assert isinstance(few, Coresets)
    with pytest.raises(ValueError, match="at most the 20 rows that weigh enough; got 21"):
        few.choose()
