"""`mmd` and `compare` of Dask collections: without bias, and equal to those in memory."""

import doctest
import pickle

import numpy as np
import pytest

import thinformer
from thinformer import kernels
from thinformer.dask import SampledMMD, compare, mmd, thin

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(400, 2)) * [1.0, 3.0] + [0.0, 50.0]
WEIGHTS = RNG.uniform(size=400)
BLOCKS = (150, 50, 110, 90)
ROWS = np.array([3, 399, 17, 200, 201, 42, 8, 250, 300, 120])
SIGNED = np.array([1.0, 2.0, -0.5, 1.0, 1.0, 1.0, 1.0, 3.0, 1.0, 1.0])


@pytest.fixture(autouse=True)
def on_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def lazy(points=POINTS):
    return da.from_array(points, chunks=(BLOCKS, 1))


def unknown():
    """The same rows, in blocks of unknown lengths."""
    return lazy()[lazy()[:, 0] > -np.inf]


def pairs(rows):
    ends = np.cumsum(BLOCKS)
    parts = np.searchsorted(ends, rows, "right")
    return np.stack([parts, rows - (ends - BLOCKS)[parts]], axis=1)


def frame(**more):
    import dask.dataframe as dd
    import pandas as pd

    whole = pd.DataFrame({"a": POINTS[:, 0], "b": POINTS[:, 1]} | more)
    pieces = np.split(np.arange(400), np.cumsum(BLOCKS)[:-1])
    return whole, dd.concat([dd.from_pandas(whole.iloc[i], npartitions=1) for i in pieces])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bandwidth": 2.0},
        {"standardize": "scale"},
        {"standardize": "whiten"},
        {"kernel": "energy"},
        {"kernel": kernels.gaussian(1.0) + kernels.laplace(2.0)},
        {"weights": WEIGHTS},
        {"coreset_weights": SIGNED},
    ],
    ids=str,
)
def test_all_rows_give_the_mmd_in_memory(settings):
    found = mmd(lazy(), ROWS, **settings)
    assert found == pytest.approx(thinformer.mmd(POINTS, ROWS, **settings), rel=1e-9)
    assert found.standard_error == 0
    if "weights" not in settings:
        assert mmd(unknown(), pairs(ROWS), **settings) == found


def estimates(x, coreset, seeds, **settings):
    found = [mmd(x, coreset, seed=seed, **settings) for seed in range(seeds)]
    return (np.array([getattr(each, name) for each in found])
            for name in ("squared", "standard_error"))  # fmt: skip


# a coreset near the points, where pairs make the noise, and one that is far, where rows do
NEAR, FAR = thinformer.thin(POINTS, 40, bandwidth=2.0, rng=0), np.arange(30)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "weights"),
    [
        pytest.param(NEAR, None, marks=pytest.mark.nightly),
        (POINTS[FAR] + 1.0, WEIGHTS),
        pytest.param(NEAR, WEIGHTS, marks=pytest.mark.nightly),
        pytest.param(POINTS[FAR] + 1.0, None, marks=pytest.mark.nightly),
    ],
    ids=["near-equal", "far-weighted", "near-weighted", "far-equal"],
)
def test_the_mean_over_seeds_is_the_exact_square(rows, weights):
    exact = thinformer.mmd(POINTS, rows, bandwidth=2.0, weights=weights) ** 2
    squared, errors = estimates(lazy(), rows, 300, bandwidth=2.0, weights=weights, sample=80)
    deviation = squared.std(ddof=1)
    assert abs(squared.mean() - exact) < 3 * deviation / np.sqrt(300)
    assert 0.85 < np.sqrt(np.mean(errors**2)) / deviation < 1.5
    assert np.mean(np.abs(squared - exact) < 2 * errors) > 0.9


@pytest.mark.slow
def test_two_collections_are_both_sampled():
    other = np.random.default_rng(1).normal(size=(400, 2)) * [1.0, 3.0] + [0.2, 50.0]
    exact = thinformer.mmd(POINTS, other, bandwidth=2.0) ** 2
    squared, errors = estimates(lazy(), lazy(other), 200, bandwidth=2.0, sample=80)
    deviation = squared.std(ddof=1)
    assert abs(squared.mean() - exact) < 3 * deviation / np.sqrt(200)
    assert 0.85 < np.sqrt(np.mean(errors**2)) / deviation < 1.5
    every = mmd(lazy(), lazy(other), bandwidth=2.0)
    assert every.squared == pytest.approx(exact, rel=1e-9)


def test_draws_do_not_depend_on_blocks():
    other = da.from_array(POINTS, chunks=(33, 2))
    assert mmd(lazy(), ROWS, sample=50, seed=4) == mmd(other, ROWS, sample=50, seed=4)
    assert mmd(lazy(), ROWS, sample=50, seed=4) != mmd(lazy(), ROWS, sample=50, seed=5)


def test_points_of_their_own():
    few = POINTS[:20] + 0.3
    assert mmd(lazy(), few) == pytest.approx(thinformer.mmd(POINTS, few), rel=1e-9)


def test_frames():
    """Weights by their name; an index does not count; a frame in memory beside it."""
    whole, x = frame(id=np.arange(400), w=WEIGHTS)
    with pytest.warns(UserWarning, match=r"^x: left out of the distance: id \(an index\)"):
        found = mmd(x, pairs(ROWS), weights="w")
    expected = thinformer.mmd(whole[["a", "b"]], ROWS, weights=WEIGHTS)
    assert found == pytest.approx(expected, rel=1e-9)
    _, x = frame()
    other = whole[["b", "a"]][:50]
    expected = thinformer.mmd(whole[["a", "b"]], other)
    assert mmd(x, other) == pytest.approx(expected, rel=1e-9)


def flat(comparison):
    numbers = [each for column in comparison.columns for each in column[1:]]
    return np.array([*comparison[1:6], *numbers])


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_compare_is_that_in_memory(weights):
    coresets = {"a": ROWS, "b": (ROWS, SIGNED), "c": (3, 4)}
    found = compare(lazy(), coresets, weights=weights)
    expected = thinformer.compare(POINTS, coresets, weights=weights)
    for one, other in zip(found, expected, strict=True):
        assert one.name == other.name
        np.testing.assert_allclose(flat(one), flat(other), rtol=1e-9, atol=1e-9)
    assert str(found) == str(expected)


def test_compare_of_a_sample():
    """Moments are of all rows; MMDs are those of `mmd`."""
    whole, x = frame(w=WEIGHTS)
    coresets = {"a": pairs(ROWS), "b": (pairs(ROWS), SIGNED)}
    settings = {"weights": "w", "bandwidth": 2.0, "standardize": False, "sample": 100}
    found = compare(x, coresets, **settings)
    other = mmd(x, coresets["b"][0], coreset_weights=SIGNED, **settings)
    assert found[1].mmd.squared == pytest.approx(other.squared, rel=1e-12)
    assert found[1].mmd.standard_error == pytest.approx(other.standard_error, rel=1e-12)
    by_rows = {"a": ROWS, "b": (ROWS, SIGNED)}
    expected = thinformer.compare(whole[["a", "b"]], by_rows, weights=WEIGHTS)
    for one, every in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[4:6], every[4:6], rtol=1e-9)
        np.testing.assert_allclose(
            [each[1:3] for each in one.columns], [each[1:3] for each in every.columns], rtol=1e-9
        )


def test_only_blocks_with_drawn_rows_are_computed():
    def fail(block):
        raise AssertionError("a block was computed")

    blocks = [lazy()[:150], da.zeros((1, 2)).map_blocks(fail, dtype=float, meta=np.empty((0, 0)))]
    x = da.concatenate(blocks)
    for seed in range(100):
        drawn = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0,)))
        if 150 not in drawn.choice(151, 20, replace=False):
            assert mmd(x, [3, 4], sample=20, seed=seed) > 0
            return


def test_the_number():
    found = SampledMMD(0.25, 0.01)
    assert found == 0.5
    assert (found.squared, found.standard_error) == (0.25, 0.01)
    assert SampledMMD(-0.25, 0.01) == 0
    copy = pickle.loads(pickle.dumps(found))
    assert (copy, copy.squared, copy.standard_error) == (0.5, 0.25, 0.01)
    assert repr(found) == "SampledMMD(0.5, squared=0.25, standard_error=0.01)"


@pytest.mark.parametrize(
    ("coreset", "more", "message"),
    [
        ([400], {}, "^coreset must hold rows from 0 to 399; got 400 to 400"),
        (ROWS, {"sample": 15}, "^sample must be an integer of at least 16; got 15"),
        (ROWS, {"seed": -1}, "^seed must be an integer of at least 0; got -1"),
        (ROWS, {"kernel": "precomputed"}, "^kernel must compare any two points"),
        (ROWS, {"kernel": "none"}, "^kernel must be a Kernel or one of"),
        (ROWS, {"bandwidth": "auto"}, "^bandwidth must be a positive number"),
        (ROWS, {"bandwidth": -1.0}, "^bandwidth must be"),
        (ROWS, {"standardize": True}, "^standardize must be 'auto'"),
        (ROWS, {"weights": np.ones(3)}, r"^weights must have shape \(400,\); got \(3,\)"),
        (ROWS, {"weights": np.eye(400)[0], "sample": 20, "seed": 1},
         "^sample must be larger: all 20 rows that were drawn have the weight 0"),
        (POINTS[:3], {"weights": np.eye(400)[0], "sample": 20, "seed": 1}, "^sample must be larg"),
        (ROWS, {"weights": np.zeros(400)}, "^weights must be finite, none of them neg"),
        (ROWS, {"weights": -np.ones(400)}, "^weights must be finite, and none of them negative"),
        (ROWS, {"coreset_weights": np.ones(3)}, r"^coreset_weights must be numbers of shape \(10,"),
        (lazy(), {"coreset_weights": np.ones(3)}, "^coreset_weights must be None for a coreset of"),
        (np.ones((3, 4)), {}, "^coreset must have the 2 dimensions of x; got 4"),
    ],
)  # fmt: skip
def test_errors(coreset, more, message):
    with pytest.raises(ValueError, match=message):
        mmd(lazy(), coreset, **more)


@pytest.mark.parametrize(
    ("coreset", "message"),
    [
        (ROWS, r"^coreset must hold pairs \(partition, row\), .* got shape \(10,\)"),
        ([[4, 0]], "^coreset must hold partitions from 0 to 3; got 4 to 4"),
        ([[1, 49], [1, 50]], "got row 50 of partition 1, which has 50 rows"),
    ],
)
def test_pairs(coreset, message):
    with pytest.raises(ValueError, match=message):
        mmd(unknown(), coreset)


@pytest.mark.parametrize("lazy_points", [lambda x: da.from_array(x, chunks=100), None])
def test_rows_that_are_not_drawn_must_be_finite(lazy_points):
    """Means and covariances are of all rows."""
    points = POINTS.copy()
    drawn = np.random.default_rng(np.random.SeedSequence(0, spawn_key=(0,)))
    points[np.setdiff1d(np.arange(400), drawn.choice(400, 50, replace=False))[-1], 1] = np.nan
    rows = [3, 4]
    if lazy_points is None:
        dd, pd = pytest.importorskip("dask.dataframe"), pytest.importorskip("pandas")
        lazy_points, rows = lambda x: dd.from_pandas(pd.DataFrame(x), npartitions=2), [[0, 3]]
    assert mmd(lazy_points(points), rows, sample=50) > 0
    with pytest.raises(ValueError, match="^x must be finite; it holds NaN or infinity"):
        compare(lazy_points(points), {"a": rows}, sample=50)


def test_what_is_no_coreset():
    with pytest.raises(TypeError, match="^coresets must be a dict of rows by name; got list"):
        compare(lazy(), [ROWS])
    with pytest.raises(ValueError, match=r"^coresets\['a'\] must hold rows of x; got points"):
        compare(lazy(), {"a": POINTS[:3]})
    with pytest.raises(TypeError, match="^x must be a dask.array.Array, .* got ndarray"):
        mmd(POINTS, ROWS)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: thinformer.thin(x, 5),
        lambda x: thinformer.mmd(x, [1, 2]),
        lambda x: thinformer.mmd(POINTS, x),
        lambda x: thinformer.compare(x, {"a": [1, 2]}),
        lambda x: thinformer.two_sample_test(x, POINTS),
        lambda x: thinformer.mmd2_unbiased(POINTS, x),
        lambda x: thinformer.median_distance(x),
        lambda x: thinformer.error_curve(x),
        lambda x: thinformer.fit_weights(x, [1, 2]),
        lambda x: thinformer.coreset(x, 5, part=0, bandwidth=1.0),
        lambda x: thinformer.KernelThinner(5).fit(x),
    ],
    ids=["thin", "mmd", "coreset of mmd", "compare", "two_sample_test", "mmd2_unbiased",
         "median_distance", "error_curve", "fit_weights", "coreset", "KernelThinner"],
)  # fmt: skip
def test_functions_in_memory_load_nothing(function):
    x = da.zeros((400, 2), chunks=100).map_blocks(pytest.fail, dtype=float)
    message = "must be in memory; got a Dask Array. thinformer.dask.thin, .mmd and .compare read it"
    with pytest.raises(TypeError, match=message):
        function(x)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("K", lambda x: thinformer.kernel_halve(x)),
        ("points", lambda x: thinformer.kh_compress(x, g=1)),
        ("points", lambda x: thinformer.compress(x, lambda part: np.arange(0, len(part), 2))),
        ("key", lambda x: thinformer.compress_kv(x[None], POINTS[None], g=1)),
        ("query", lambda x: thinformer.attention(x[None], POINTS[None], POINTS[None], g=1)),
        ("weights", lambda x: thinformer.thin(POINTS, 5, weights=x[:, 0])),
        ("weights", lambda x: thinformer.coreset(
            POINTS, 5, part=0, bandwidth=1.0, weights=x[:, 0])),
        ("coreset_weights", lambda x: thinformer.mmd(POINTS, POINTS, coreset_weights=x[:, 0])),
        ("scores", lambda x: kernels.stein(x)),
        ("labels", lambda x: kernels.with_labels("gaussian", x)),
        ("log_ratio", lambda x: kernels.gradient_free_stein(POINTS, x[:, 0])),
        ("sample_weight", lambda x: thinformer.KernelThinner(5).fit(POINTS, sample_weight=x[:, 0])),
        ("X", lambda x: thinformer.ThinnedKernelRidge().fit(x, POINTS[:, 0])),
        ("y", lambda x: thinformer.ThinnedKernelRidge().fit(POINTS, x[:, 0])),
    ],
)  # fmt: skip
def test_no_array_of_dask_is_loaded(name, function):
    x = da.zeros((400, 2), chunks=100).map_blocks(pytest.fail, dtype=float)
    with pytest.raises(TypeError, match=f"^{name} must be in memory; got a Dask Array"):
        function(x)


def test_containers_in_memory_load_nothing():
    xr = pytest.importorskip("xarray")
    variable = xr.DataArray(da.zeros((4, 50), chunks=10), dims=("chain", "draw"))
    dataset = variable.to_dataset(name="mu")
    tree = xr.DataTree.from_dict({"posterior": dataset})
    _, x = frame()
    draws = {"mu": variable.data}
    for lazy_points in (dataset, variable, tree, x, draws, {"posterior": draws}):
        with pytest.raises(TypeError, match="^points must be in memory; got a Dask"):
            thinformer.thin(lazy_points, 5)


@pytest.mark.parametrize("function", [mmd, compare, thin])
def test_examples(function):
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for test in finder.find(function, function.__name__):
        assert test.examples
        runner.run(test)
    assert runner.failures == 0


def test_a_coreset_is_nearer_than_even_rows():
    table = compare(lazy(), {"ours": thin(lazy(), 20), "even": np.arange(0, 400, 20)}, sample=300)
    assert table[0].mmd < table[1].mmd
