"""What people hold points in: each gives the array, and the rows that the plain array gives."""

import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
import xarray as xr
from arviz_base import extract, from_dict

from thinformer import mmd, thin
from thinformer.thinning.tables import as_points

X = np.random.default_rng(0).normal(size=(60, 3))


def memmap(tmp_path_factory):
    path = tmp_path_factory.mktemp("points") / "x.npy"
    np.save(path, X)
    return np.load(path, mmap_mode="r")


def dataset(x=X):
    """Four chains of 15 draws of a number and a vector."""
    return xr.Dataset(
        {
            "mu": (("chain", "draw"), x[:, 0].reshape(4, 15)),
            "theta": (("chain", "draw", "school"), x[:, 1:].reshape(4, 15, 2)),
        }
    )


class Posterior:
    """As the InferenceData of ArviZ before version 1: groups are attributes."""

    posterior = dataset()


def strided():
    wide = np.zeros((120, 6))
    wide[::-2, ::2] = X
    return wide[::-2, ::2]


STACKED = {"sample": ("chain", "draw")}
CHAINS = {"mu": X[:, 0].reshape(4, 15), "theta": X[:, 1:].reshape(4, 15, 2)}

FLOAT64 = {
    "array": X,
    "list": X.tolist(),
    "rows of tuples": [tuple(row) for row in X],
    "Fortran": np.asfortranarray(X),
    "strided": strided(),
    "big-endian": X.astype(">f8"),
    "torch": torch.tensor(X),
    "pandas": pd.DataFrame(X, columns=["a", "b", "c"], index=np.arange(60)[::-1]),
    "pandas, one label": pd.DataFrame(X, columns=["a", "a", "a"]),
    "pandas, labels of two levels": pd.DataFrame(
        X, columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)])
    ),
    "pandas, awkward labels": pd.DataFrame(X, columns=["posterior", "data_vars", "children"]),
    "pandas, nullable": pd.DataFrame(X).astype("Float64"),
    "pandas, pyarrow": pd.DataFrame(X).astype("double[pyarrow]"),
    "polars": pl.DataFrame(X, schema=["a", "b", "c"]),
    "DataArray": xr.DataArray(X, dims=("t", "x")),
    "Dataset": dataset(),
    "Dataset, other order": dataset().transpose("school", "draw", "chain"),
    "Dataset, one dimension": xr.Dataset({n: ("t", X[:, i]) for i, n in enumerate("abc")}),
    "Dataset, one shared": xr.Dataset({"a": (("k", "t"), X[:, :2].T), "b": ("t", X[:, 2])}),
    "DataTree": xr.DataTree.from_dict({"posterior": dataset(), "prior": dataset(X + 1)}),
    "DataTree of one group": xr.DataTree(dataset()),
    "group of a DataTree": xr.DataTree.from_dict({"posterior": dataset()})["posterior"],
    "ArviZ": from_dict(
        {
            "posterior": {"mu": X[:, 0].reshape(4, 15), "theta": X[:, 1:].reshape(4, 15, 2)},
            "sample_stats": {"lp": np.zeros((4, 15))},
        }
    ),
    "InferenceData": Posterior(),
    "stacked": dataset().stack(STACKED),
    "stacked, draws first": dataset().stack(STACKED).transpose("sample", ...),
    "stacked under another name": dataset().stack(s=("chain", "draw")),
    "stacked, without an index": dataset()
    .assign_coords(chain=np.arange(4), draw=np.arange(15))
    .stack(STACKED)
    .reset_index("sample"),
    "extracted": extract(from_dict({"posterior": CHAINS})),
    "one chain": xr.Dataset({"v": (("school", "draw"), X.T)}),
    "a dimension sample": xr.Dataset({"v": (("school", "sample"), X.T)}),
    "dict": CHAINS,
    "dict of lists": {name: array.tolist() for name, array in CHAINS.items()},
    "dict of tensors": {name: torch.tensor(array) for name, array in CHAINS.items()},
    "dict of one chain": {name: a.reshape(1, 60, *a.shape[2:]) for name, a in CHAINS.items()},
    "dict without chains": {"mu": X[:, 0], "theta": X[:, 1:]},
    "dict of columns": dict(zip("abc", X.T, strict=True)),
    "dict of groups": {"posterior": CHAINS, "prior": {"mu": np.zeros((1, 7))}},
}


def test_one_variable_of_a_posterior():
    draws = dataset()
    expected = draws["theta"].to_numpy().reshape(60, -1)
    np.testing.assert_array_equal(as_points(draws["theta"]), expected)
    np.testing.assert_array_equal(as_points(np.ma.array(X, mask=False)), X)


ONE_VARIABLE = {
    "chains": dataset()["theta"],
    "chains last": dataset()["theta"].transpose("school", "draw", "chain"),
    "stacked": dataset()["theta"].stack(STACKED),
    "stacked, draws first": dataset()["theta"].stack(STACKED).transpose("sample", ...),
    "stacked under another name": dataset()["theta"].stack(s=("chain", "draw")),
    "extracted": extract(from_dict({"posterior": CHAINS}), var_names="theta"),
    "one chain": xr.DataArray(X[:, 1:].T, dims=("school", "draw")),
    "a dimension sample": xr.DataArray(X[:, 1:].T, dims=("school", "sample")),
}


@pytest.mark.parametrize("variable", ONE_VARIABLE.values(), ids=ONE_VARIABLE)
def test_rows_are_draws_in_any_order_of_dimensions(variable):
    np.testing.assert_array_equal(as_points(variable), X[:, 1:])
    np.testing.assert_array_equal(
        thin(variable, 5, standardize=False, rng=0), thin(X[:, 1:], 5, rng=0)
    )


def test_a_number_for_each_draw_is_one_column():
    mu = extract(from_dict({"posterior": CHAINS}), var_names="mu")
    np.testing.assert_array_equal(as_points(mu), X[:, :1])
    np.testing.assert_array_equal(as_points({"mu": X[:, 0]}), X[:, :1])


def test_draws_stacked_in_another_order_keep_it():
    points = dataset().stack(sample=("draw", "chain"))
    np.testing.assert_array_equal(
        as_points(points), X.reshape(4, 15, 3).swapaxes(0, 1).reshape(-1, 3)
    )


HOURS = np.arange(60) * np.timedelta64(1, "h")
TIMES = {"durations": HOURS.astype("m8[ns]"), "dates": np.datetime64("2020-01-01", "ns") + HOURS}


@pytest.mark.parametrize("values", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize(
    "container",
    [pd.DataFrame, pl.DataFrame, dict, lambda columns: xr.Dataset(columns).rename(dim_0="obs")],
)
def test_dates_and_durations_are_no_numbers(container, values):
    """They would count in nanoseconds. The error says how they become numbers."""
    columns = {"x": X[:, 0], "t": values}
    if container not in (pd.DataFrame, pl.DataFrame, dict):
        columns = {name: xr.DataArray(column) for name, column in columns.items()}
    points = container(columns)
    message = r"a (column|variable) 't' of .*, not of numbers; make it a number, as by \(t - t.min"
    with pytest.raises(TypeError, match="^points has " + message):
        thin(points, 5)
    t = xr.Dataset({"t": ("obs", values)})["t"]
    numbers = (t - t.min()) / np.timedelta64(1, "s")  # the remedy
    expected = 3600.0 * np.arange(60)[:, None]
    np.testing.assert_array_equal(as_points(numbers.to_dataset()), expected)


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        ({}, ValueError, "must have at least one variable$"),
        (
            {"theta": X},
            ValueError,
            r"chains as draws, .* got theta \(60, 3\). Draws without chains",
        ),
        ({"a": X[:, 0], "b": X[1:]}, ValueError, r"got a \(60,\), b \(59, 3\). Draws"),
        ({"a": X.T, "b": X.T[:2]}, ValueError, r"got a \(3, 60\), b \(2, 60\). Draws"),
        ({"a": 1.0}, ValueError, r"got a \(\). Draws"),
        ({"a": X[:, 0], "b": 1.0}, ValueError, r"got a \(60,\), b \(\). Draws"),
        ({"a": np.empty(0)}, ValueError, "must have at least one draw$"),
        ({"a": np.empty((0, 5))}, ValueError, "must have at least one draw$"),
        ({"a": ["x", "y"]}, TypeError, "has a variable 'a' of <U1, not of numbers$"),
        ({"prior": {"mu": X}}, TypeError, "has a variable 'prior' of object, not of numbers$"),
    ],
)
def test_dicts_that_hold_no_draws(points, error, message):
    with pytest.raises(error, match="^points .*" + message):
        thin(points, 1)


@pytest.mark.parametrize("points", FLOAT64.values(), ids=FLOAT64)
def test_the_same_numbers_and_the_same_rows(points):
    array = as_points(points)
    assert type(array) is np.ndarray
    assert array.dtype == np.dtype(np.float64)
    np.testing.assert_array_equal(array, X)
    rows = thin(points, 9, standardize=False, rng=0)
    np.testing.assert_array_equal(rows, thin(X, 9, rng=0))
    assert mmd(points, rows, standardize=False) == mmd(X, rows)


def test_memory_map(tmp_path_factory):
    mapped = memmap(tmp_path_factory)
    assert np.shares_memory(as_points(mapped), mapped)
    np.testing.assert_array_equal(thin(mapped, 9, rng=0), thin(X, 9, rng=0))


def test_arrays_are_not_copied():
    for array in (X, np.asfortranarray(X), strided(), X.astype(np.float32)):
        assert np.shares_memory(as_points(array), array)


@pytest.mark.parametrize("dtype", ["i1", "u2", "i8", "?", ">i4"])
def test_integers_and_booleans_are_float64(dtype):
    array = np.arange(40).reshape(20, 2).astype(dtype)
    points = as_points(array)
    assert points.dtype == np.float64
    np.testing.assert_array_equal(points, array.astype(float))
    np.testing.assert_array_equal(
        thin(array, 4, bandwidth=3.0, rng=0), thin(array.astype(float), 4, bandwidth=3.0, rng=0)
    )
    frame = as_points(pd.DataFrame({"a": array[:, 0], "b": array[:, 1]}))
    np.testing.assert_array_equal(frame, points)


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f2", ">f4"])
def test_float16_and_float32_are_float32(dtype):
    array = X.astype(dtype)
    points = as_points(array)
    assert points.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(points, array.astype(np.float32))
    np.testing.assert_array_equal(thin(array, 9, rng=0), thin(points, 9, rng=0))


def test_frames_of_float32():
    few = X.astype(np.float32)
    for frame in (pd.DataFrame(few), pl.DataFrame(few)):
        assert as_points(frame).dtype == np.float32
        np.testing.assert_array_equal(as_points(frame), few)


def test_columns_of_mixed_types_are_float64():
    columns = {"flag": X[:, 0] > 0, "count": np.arange(60), "x": X[:, 1].astype(np.float32)}
    expected = np.column_stack([column.astype(float) for column in columns.values()])
    for frame in (pd.DataFrame(columns), pl.DataFrame(columns)):
        assert as_points(frame).dtype == np.float64
        np.testing.assert_array_equal(as_points(frame), expected)
    both = xr.Dataset({name: ("t", column) for name, column in columns.items()})
    np.testing.assert_array_equal(as_points(both), expected)


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        (pd.DataFrame({"a": [1.0], "b": ["x"]}), TypeError, "a column 'b' of .*, not of numbers$"),
        (pl.DataFrame({"a": ["x"]}), TypeError, "a column 'a' of String, not of numbers$"),
        (
            pd.DataFrame({"t": pd.to_datetime(["2020-01-01"])}),
            TypeError,
            "a column 't' of datetime",
        ),
        (pd.DataFrame({"c": pd.Categorical(["x"])}), TypeError, "a column 'c' of category"),
        (xr.Dataset({"s": ("t", ["x"])}), TypeError, "a variable 's' of <U1, not of numbers$"),
        (pl.DataFrame({"a": [1.0]}).lazy(), TypeError, "must be float16.*got dtype object"),
        ([["x", "y"]], TypeError, "must be float16, float32 or float64; got dtype <U1"),
        (X.astype(object), TypeError, "must be float16.*; got dtype object"),
        (X + 1j, TypeError, "must be float16.*; got dtype complex128"),
        (X.astype(np.longdouble), TypeError, "must be float16.*; got dtype (float128|float96)"),
        (None, TypeError, "must be float16.*; got dtype object"),
        (pd.DataFrame(), ValueError, "must have at least one column$"),
        (pl.DataFrame(), ValueError, "must have at least one column$"),
        (pd.DataFrame({"a": np.empty(0)}), ValueError, "must have at least one row$"),
        (np.empty((0, 2)), ValueError, r"must have at least one point; got shape \(0, 2\)$"),
        (np.empty((2, 0)), ValueError, r"must have at least one dimension; got shape \(2, 0\)$"),
        (X[:, 0], ValueError, r"\(n, d\); got shape \(60,\) \(one column is points\[:, None\]\)$"),
        (pd.Series(X[:, 0]), ValueError, r"\(n, d\); got shape \(60,\) \(one column is "),
        (pl.Series(X[:, 0]), ValueError, r"\(n, d\); got shape \(60,\) \(one column is "),
        (X[None], ValueError, r"\(n, d\); got shape \(1, 60, 3\)$"),
        (3.0, ValueError, r"\(n, d\); got shape \(\)$"),
        (np.ma.array(X, mask=X > 1), ValueError, "must have no masked entries; drop or fill them$"),
        (xr.Dataset(), ValueError, "must have at least one variable$"),
        (
            xr.DataTree.from_dict({"prior": dataset()}),
            ValueError,
            "must have at least one variable",
        ),
        (xr.Dataset({"a": ("t", np.empty(0))}), ValueError, "must have at least one draw$"),
        (xr.Dataset({"a": 1.0}), ValueError, "or one that they share; they share none$"),
        (
            xr.Dataset({"a": (("t", "k"), X)}),
            ValueError,
            r"dimensions chain and draw, or one that they share; they share \['k', 't'\]$",
        ),
        (
            xr.Dataset({"a": ("t", X[:, 0]), "b": ("u", X[:, 0])}),
            ValueError,
            "or one that they share; they share none$",
        ),
    ],
)
def test_what_is_not_points(points, error, message):
    with pytest.raises(error, match="^points .*" + message):
        as_points(points)
    with pytest.raises(error, match="^points .*" + message):
        thin(points, 1)
    with pytest.raises(error, match="^sample "):
        as_points(points, "sample")


@pytest.mark.parametrize(
    "frame", [pd.DataFrame({"a": [1.0, None]}), pl.DataFrame({"a": [1.0, None]})]
)
def test_missing_values_are_not_finite(frame):
    with pytest.raises(ValueError, match="^points must be finite; it holds NaN or infinity"):
        thin(frame, 1, bandwidth=1.0)


@pytest.mark.slow
def test_nothing_is_imported_for_arrays():
    """A frame is known by its methods: who has arrays needs no other library."""
    program = """
        import sys
        import numpy as np
        import thinformer
        assert "numba" not in sys.modules
        rows = thinformer.thin(np.random.default_rng(0).normal(size=(60, 2)), 5, rng=0)
        assert rows.size == 5
        for name in ("pandas", "polars", "xarray", "sklearn", "torch", "matplotlib"):
            assert name not in sys.modules, name
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
