"""Posteriors whose variables are Dask arrays: the rows of the same draws as an array."""

import warnings

import numpy as np
import pytest
import xarray as xr

from thinformer import median_distance, take_draws
from thinformer.dask import compare, mmd, thin
from thinformer.thinning import merging
from thinformer.thinning.scales import deviations

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

CHAINS, DRAWS = 3, 900
X = np.random.default_rng(0).normal(size=(CHAINS * DRAWS, 3)) * [1.0, 20.0, 0.5]
SETTINGS = {"bandwidth": 2.0, "g": 1, "seed": 3}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Coresets of 64 rows or more, and tasks on this thread."""
    monkeypatch.setattr(merging, "LEAST", 64)
    with dask.config.set(scheduler="synchronous"):
        yield


def in_memory(**more):
    shape = (CHAINS, DRAWS)
    return xr.Dataset(
        {
            "tau": (("draw", "chain"), X[:, 0].reshape(shape).T),
            "theta": (("chain", "draw", "school"), X[:, 1:].reshape(*shape, 2)),
        }
        | more
    )


def lazy(chain=2, draw=200, **more):
    return in_memory(**more).chunk({"chain": chain, "draw": draw})


def as_array(draw=200):
    return da.from_array(X, chunks=([*[draw] * (DRAWS // draw), DRAWS % draw] * CHAINS, 3))


class InferenceData:
    """What is used of ArviZ before version 1."""

    def __init__(self, posterior):
        self.posterior = posterior


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda x: x,
        lambda x: xr.DataTree.from_dict({"posterior": x, "prior": x.compute() * 0}),
        InferenceData,
        lambda x: x.stack(sample=("chain", "draw")).transpose("sample", ...),
    ],
    ids=["Dataset", "DataTree", "InferenceData", "stacked"],
)
def test_rows_are_draws_chain_after_chain(wrapped):
    posterior = wrapped(lazy())
    array = as_array()
    if "sample" in getattr(posterior, "dims", ()):  # xarray makes other blocks
        array = da.from_array(X, chunks=(posterior.unify_chunks().chunks["sample"], 3))
    expected = thin(array, 20, **SETTINGS)
    np.testing.assert_array_equal(thin(posterior, 20, **SETTINGS), expected)


def test_one_variable():
    """A DataArray is compared on the elements of each draw."""
    expected = thin(as_array()[:, 1:], 20, **SETTINGS)
    np.testing.assert_array_equal(thin(lazy()["theta"], 20, **SETTINGS), expected)


def test_blocks_of_variables_that_differ():
    """The draws of one chain that are in one block of every variable are a part."""
    posterior = lazy()
    posterior["tau"] = posterior["tau"].chunk({"chain": 1, "draw": 300})
    lengths = [200, 100, 100, 200, 200, 100]
    array = da.from_array(X, chunks=(lengths * CHAINS, 3))
    found = thin(posterior, 20, **SETTINGS)
    np.testing.assert_array_equal(found, thin(array, 20, **SETTINGS))


def test_a_variable_in_memory_beside_others():
    posterior = lazy()
    posterior["tau"] = posterior["tau"].compute()
    found = thin(posterior, 20, **SETTINGS)
    np.testing.assert_array_equal(found, thin(as_array(), 20, **SETTINGS))


def test_columns_are_those_of_thin_in_memory():
    """Scaled, without variables of a sampler, without draws, and indexes."""
    more = {
        "lp__": (("chain", "draw"), X[:, 0].reshape(CHAINS, DRAWS)),
        "id": (("chain", "draw"), np.arange(CHAINS * DRAWS).reshape(CHAINS, DRAWS)),
        "data": (("school",), [1.0, 2.0]),
    }
    expected = (
        r"^x: left out of the distance: data \(without draws\); lp__ \(of a sampler\); id \(an"
    )
    with pytest.warns(UserWarning, match=expected):
        found = thin(lazy(**more), 20, g=1, seed=3)
    sample = X[:1100]  # of the first chain, and a block of the second
    scales = deviations(sample)
    bandwidth = median_distance(sample / scales, 3)
    settings = {"bandwidth": bandwidth, "g": 1, "seed": 3}
    np.testing.assert_array_equal(found, thin(as_array() / scales, 20, **settings))


def test_chosen_draws_are_not_loaded():
    posterior = lazy()
    rows = thin(posterior, 20, **SETTINGS)
    few = take_draws(posterior, rows)
    assert few["theta"].chunks is not None
    np.testing.assert_array_equal(few["theta"].to_numpy()[0], X[rows, 1:])


def test_weights_are_of_draws():
    weights = np.where(X[:, 0] > 0, 1.0, 0.0)
    rows = thin(lazy(), 20, weights=weights, **SETTINGS)
    np.testing.assert_array_equal(rows, thin(as_array(), 20, weights=weights, **SETTINGS))
    assert np.all(X[rows, 0] > 0)


def test_measures_are_those_of_the_array():
    settings = {"bandwidth": 2.0, "sample": 500}
    rows = np.arange(0, 2700, 90)
    assert mmd(lazy(), rows, **settings) == mmd(as_array(), rows, **settings)
    (one,) = compare(lazy(), {"a": rows}, **settings)
    (other,) = compare(as_array(), {"a": rows}, **settings)
    np.testing.assert_allclose(one[1:6], other[1:6], rtol=1e-12)
    assert [each.column for each in one.columns] == ["tau", "theta[0]", "theta[1]"]


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (in_memory(), TypeError, "^x must be a dask.array.Array, .* got Dataset"),
        ({"mu": da.zeros((4, 10))}, TypeError, "^x must be a dask.array.Array, .* got dict"),
        (lazy()[["tau"]].rename(tau="lp__"), ValueError, "^x must have a column to compute with"),
        (lazy().isel(draw=slice(0, 0)), ValueError, "^x must have at least one draw"),
        (lazy()[["tau"]].astype("M8[s]"), TypeError, "^x has a variable 'tau' of datetime64"),
    ],
)
def test_errors(wrong, kind, message):
    with warnings.catch_warnings(), pytest.raises(kind, match=message):
        thin(wrong, 5)
