"""Dask arrays: the rows of `coreset` and `merge`, on any scheduler."""

import numpy as np
import pytest

from thinformer import coreset, kernels, median_distance, merge, mmd
from thinformer.dask import thin
from thinformer.thinning import merging
from thinformer.thinning.scales import deviations

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

POINTS = np.random.default_rng(0).normal(size=(3000, 3)) * [1.0, 2.0, 0.5]
BLOCKS = (700, 800, 100, 500, 300, 600)
SETTINGS = {"bandwidth": 2.0, "g": 1, "seed": 3}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Coresets of 64 rows or more, and tasks on this thread."""
    monkeypatch.setattr(merging, "LEAST", 64)
    with dask.config.set(scheduler="synchronous"):
        yield


def by_hand(size, weights=None, blocks=BLOCKS, **settings):
    ends = np.cumsum(blocks)
    parts = np.split(POINTS, ends[:-1])
    shares = [None] * len(parts) if weights is None else np.split(weights, ends[:-1])
    return merge(
        coreset(each, size, part=i, first_row=int(ends[i] - len(each)), weights=share, **settings)
        for i, (each, share) in enumerate(zip(parts, shares, strict=True))
    ).choose().rows  # fmt: skip


@pytest.mark.parametrize("columns", [(3,), (1, 2)])
def test_rows_are_those_of_the_parts(columns):
    x = da.from_array(POINTS, chunks=(BLOCKS, columns))
    rows = thin(x, 20, **SETTINGS)
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(rows, by_hand(20, **SETTINGS))
    error, every = (mmd(POINTS, each, bandwidth=2.0) for each in (rows, np.arange(0, 3000, 150)))
    assert error < every / 2


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
@pytest.mark.slow
def test_any_scheduler(scheduler, monkeypatch):
    monkeypatch.setattr(merging, "LEAST", 4096)  # as it is in other processes
    x = da.from_array(np.tile(POINTS, (10, 1)), chunks=(5000, 3))
    here = thin(x, 20, **SETTINGS)
    with dask.config.set(scheduler=scheduler, num_workers=2):
        np.testing.assert_array_equal(thin(x, 20, **SETTINGS), here)


def test_one_block():
    x = da.from_array(POINTS, chunks=-1)
    np.testing.assert_array_equal(thin(x, 20, **SETTINGS), by_hand(20, blocks=(3000,), **SETTINGS))


def test_the_median_is_of_the_first_blocks():
    x = da.from_array(POINTS, chunks=(BLOCKS, 3))
    bandwidth = median_distance(POINTS[:1500], 3)
    np.testing.assert_array_equal(
        thin(x, 20, g=1, seed=3), by_hand(20, g=1, seed=3, bandwidth=bandwidth)
    )
    few = da.from_array(POINTS[:90], chunks=(50, 3))  # fewer than 1000 in all
    assert thin(few, 5).size == 5


def test_kernels_and_methods_without_a_bandwidth():
    x = da.from_array(POINTS, chunks=(BLOCKS, 3))
    kernel = kernels.gaussian(2.0) + kernels.laplace(1.0)
    np.testing.assert_array_equal(thin(x, 9, kernel=kernel), by_hand(9, kernel=kernel))
    np.testing.assert_array_equal(thin(x, 9, method="standard"), by_hand(9, method="standard"))
    np.testing.assert_array_equal(thin(x, 9, kernel="linear"), by_hand(9, kernel="linear"))


@pytest.mark.parametrize("lazy", [True, False])
def test_weights(lazy):
    weights = np.where(POINTS[:, 0] > 0, 1.0, 0.0)
    given = da.from_array(weights, chunks=1000) if lazy else weights
    rows = thin(da.from_array(POINTS, chunks=(BLOCKS, 3)), 20, weights=given, **SETTINGS)
    np.testing.assert_array_equal(rows, by_hand(20, weights=weights, **SETTINGS))
    assert np.all(weights[rows] == 1)


def untouched(*shape):
    """An array whose blocks must not be computed."""

    def fail(block):
        raise AssertionError("a block was computed")

    zeros = da.zeros(shape, chunks=10)
    return zeros.map_blocks(fail, dtype=float, meta=np.empty((0,) * len(shape)))


@pytest.mark.parametrize(
    ("x", "wrong", "kind", "message"),
    [
        (np.ones((3, 2)), {}, TypeError, "whose variables are Dask arrays; got ndarray"),
        (untouched(30), {}, ValueError, r"x must have shape \(n, d\); got shape \(30,\) \(one col"),
        (da.ma.masked_greater(untouched(30, 2), 1.0), {}, TypeError,
         r"^x must have no mask; dask.array.ma.filled\(x\) fills its entries"),
        (untouched(0, 2), {}, ValueError, r"at least one row; got shape \(0, 2\)"),
        (untouched(30, 2), {"size": 31}, ValueError, "size must be at most the 30 rows of x"),
        (untouched(30, 2), {"size": 0}, ValueError, "size must be an integer of at least 1; got 0"),
        (untouched(30, 2), {"seed": None}, ValueError, "seed must be an integer of at least 0"),
        (untouched(30, 2), {"bandwidth": "auto"}, ValueError, "bandwidth must be a positive"),
        (untouched(30, 2), {"kernel": "none"}, ValueError, "kernel must be a Kernel or one of"),
        (untouched(30, 2), {"weights": np.ones(3)}, ValueError,
         r"weights must have shape \(30,\); got \(3,\)"),
    ],
)  # fmt: skip
def test_errors_come_before_a_block_is_computed(x, wrong, kind, message):
    with pytest.raises(kind, match=message):
        thin(x, **{"size": 5} | wrong)


def test_an_error_names_the_block():
    points = POINTS.copy()
    points[2000, 1] = np.nan
    with pytest.raises(ValueError, match=r"^block 2 of x: points must be finite; it holds NaN"):
        thin(da.from_array(points, chunks=(1000, 3)), 20, bandwidth=2.0)


def test_blocks_of_unknown_length():
    """Rows are pairs: the block, and the row in it."""
    x = da.from_array(POINTS, chunks=(BLOCKS, 3))
    right = x[x[:, 0] > 0]
    pairs = thin(right, 20, **SETTINGS)
    known = thin(right.compute_chunk_sizes(), 20, **SETTINGS)
    assert pairs.shape == (20, 2)
    lengths = [np.sum(block[:, 0] > 0) for block in np.split(POINTS, np.cumsum(BLOCKS)[:-1])]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    np.testing.assert_array_equal(starts[pairs[:, 0]] + pairs[:, 1], known)
    some = x[x[:, 0] > 0]
    with pytest.raises(ValueError, match=r"^weights need blocks of known length in x; got shape"):
        thin(some, 5, weights=np.ones(9), **SETTINGS)


def frame(**more):
    import dask.dataframe as dd
    import pandas as pd

    columns = {"a": POINTS[:, 0], "b": 1000 * POINTS[:, 1], "c": POINTS[:, 2]}
    whole = pd.DataFrame(columns | more)
    pieces = np.split(np.arange(3000), np.cumsum(BLOCKS)[:-1])
    return whole, dd.concat([dd.from_pandas(whole.iloc[i], npartitions=1) for i in pieces])


def rows_of(pairs):
    return np.concatenate([[0], np.cumsum(BLOCKS)])[pairs[:, 0]] + pairs[:, 1]


def test_a_data_frame():
    """Its columns are scaled by the first blocks with 1000 rows; an index does not count."""
    whole, x = frame(id=np.arange(3000))
    with pytest.warns(UserWarning, match=r"^x: left out of the distance: id \(an index\)"):
        pairs = thin(x, 20, g=1, seed=3)
    sample = whole[["a", "b", "c"]].to_numpy()[:1500]
    scales = deviations(sample)
    scaled = da.from_array(whole[["a", "b", "c"]].to_numpy() / scales, chunks=(BLOCKS, 3))
    expected = thin(scaled, 20, g=1, seed=3, bandwidth=median_distance(sample / scales, 3))
    np.testing.assert_array_equal(rows_of(pairs), expected)


def test_a_data_frame_as_it_is():
    whole, x = frame()
    pairs = thin(x, 20, bandwidth=[1.0, 2000.0, 0.5], g=1, seed=3)
    array = da.from_array(whole.to_numpy(), chunks=(BLOCKS, 3))
    expected = thin(array, 20, bandwidth=[1.0, 2000.0, 0.5], g=1, seed=3)
    np.testing.assert_array_equal(rows_of(pairs), expected)
    _, with_index = frame(id=np.arange(3000))
    every = thin(with_index, 20, bandwidth=[1.0, 2000.0, 0.5, 1e9], g=1, seed=3)
    np.testing.assert_array_equal(every, pairs)  # the index counts, and hardly changes a distance
    scaled = thin(x, 20, g=1, seed=3)
    np.testing.assert_array_equal(
        rows_of(scaled), thin(array, 20, standardize="scale", g=1, seed=3)
    )


def test_a_column_of_weights():
    weights = np.where(POINTS[:, 0] > 0, 1.0, 0.0)
    whole, x = frame(w=weights)
    pairs = thin(x, 20, weights="w", bandwidth=2.0, standardize=False, g=1, seed=3)
    array = da.from_array(whole[["a", "b", "c"]].to_numpy(), chunks=(BLOCKS, 3))
    expected = thin(array, 20, weights=weights, bandwidth=2.0, g=1, seed=3)
    np.testing.assert_array_equal(rows_of(pairs), expected)
    with pytest.raises(ValueError, match="^weights must be the name of a column of x, .* got 'v'"):
        thin(x, 20, weights="v")


def test_no_column_counts():
    _, x = frame()
    with pytest.raises(TypeError, match=r"^x must be a frame; got a series \(x.to_frame\(\) makes"):
        thin(x["a"], 5)
    with pytest.raises(ValueError, match="^x must have a column to compute with"):
        thin(x[["a"]].rename(columns={"a": "lp__"}), 5)


@pytest.mark.parametrize("standardize", ["whiten", "other", True])
def test_standardize(standardize):
    with pytest.raises(ValueError, match="^standardize must be 'auto', 'scale'"):
        thin(untouched(30, 2), 5, standardize=standardize)
