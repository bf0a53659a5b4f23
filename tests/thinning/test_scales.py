"""`standardize`: one unit for all columns, where columns have names, or where it is asked for."""

import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from thinformer import KernelThinner, compare, kernels, median_distance, mmd, mmd2_unbiased, thin
from thinformer.thinning.scales import deviations

RNG = np.random.default_rng(3)
X = RNG.normal(size=(400, 3))
UNITS = np.array([1e-3, 1.0, 1e4])
UNLIKE = X * UNITS
NAMES = ["a", "b", "c"]


def posterior(array):
    chains = array.reshape(4, 100, 3)
    return xr.Dataset({"a": (("chain", "draw"), chains[..., 0]),
                       "bc": (("chain", "draw", "k"), chains[..., 1:])})  # fmt: skip


NAMED = {
    "pandas": lambda array: pd.DataFrame(array, columns=NAMES),
    "polars": lambda array: pl.DataFrame(array, schema=NAMES),
    "Dataset": posterior,
    "DataTree": lambda array: xr.DataTree.from_dict({"posterior": posterior(array)}),
}


def quiet(function, *arguments, **options):
    """Call, and raise for any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(*arguments, **options)


def test_deviations_are_numpys_quartiles():
    low, high = np.percentile(UNLIKE, [25, 75], axis=0)
    np.testing.assert_allclose(deviations(UNLIKE), (high - low) / 1.3489795003921634, rtol=1e-14)
    normal = np.random.default_rng(0).normal(size=(200_000, 1)) * 7
    assert abs(deviations(normal)[0] / 7 - 1) < 0.01
    wild = X.copy()
    wild[:20] = 1e9
    assert (deviations(wild) < 1.3 * deviations(X)).all()
    rare = np.zeros((100, 2))
    rare[:10, 0] = 1  # half of the column is 0
    np.testing.assert_array_equal(deviations(rare), [rare[:, 0].std(), 1.0])


@pytest.mark.parametrize("name", NAMED)
def test_named_columns_are_scaled(name):
    """The rows do not depend on units, and are those of an array that is scaled by hand."""
    expected = thin(X / deviations(X), 16, rng=0)
    np.testing.assert_array_equal(quiet(thin, NAMED[name](UNLIKE), 16, rng=0), expected)
    np.testing.assert_array_equal(thin(UNLIKE, 16, standardize="scale", rng=0), expected)
    scaled = mmd(X / deviations(X), expected)
    assert np.isclose(mmd(NAMED[name](UNLIKE), expected), scaled, rtol=1e-9)
    (row,) = compare(NAMED[name](UNLIKE), {"thin": expected})
    assert np.isclose(row.mmd, scaled, rtol=1e-9)
    assert row.energy == mmd(UNLIKE, expected, kernel=kernels.energy(), standardize="scale")
    elements = ["a", "bc[0]", "bc[1]"] if name.startswith("Data") else NAMES
    assert [each.column for each in row.columns] == elements


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    "options",
    [{"bandwidth": 2.0}, {"bandwidth": [1.0, 2.0, 3.0]}, {"kernel": kernels.gaussian(2.0)},
     {"kernel": kernels.energy()}, {"standardize": False}],
    ids=["bandwidth", "bandwidths", "Kernel", "energy", "False"],
)  # fmt: skip
def test_units_that_are_given_stay(name, options):
    rows = quiet(thin, NAMED[name](UNLIKE), 16, rng=0, **options)
    np.testing.assert_array_equal(rows, quiet(thin, UNLIKE, 16, rng=0, **options))
    assert mmd(NAMED[name](UNLIKE), rows, **options) == mmd(UNLIKE, rows, **options)


def test_whitening_gives_the_identity_as_covariance():
    mixing = np.array([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.3, 2.0]])
    mixed = X @ mixing.T * UNITS
    rows = thin(mixed, 16, standardize="whiten", rng=0)
    covariance = np.cov(mixed, rowvar=False, ddof=0)
    by_hand = mixed @ np.linalg.inv(np.linalg.cholesky(covariance)).T  # up to a rotation
    np.testing.assert_allclose(
        mmd(mixed, rows, standardize="whiten"), mmd(by_hand, rows), rtol=1e-6
    )
    doubled = np.column_stack([mixed, mixed[:, 0] + mixed[:, 1], np.ones(len(mixed))])
    np.testing.assert_allclose(
        mmd(doubled, rows, standardize="whiten"), mmd(by_hand, rows), rtol=1e-4
    )
    assert mmd(np.ones((5, 2)), [0], standardize="whiten", bandwidth=1.0) == 0


def test_a_coreset_of_points_has_the_scales_of_the_points():
    rows = np.arange(0, 400, 40)
    own = UNLIKE[rows]
    assert mmd(UNLIKE, own, standardize="scale") == mmd(UNLIKE, rows, standardize="scale")
    frames = pd.DataFrame(UNLIKE[:200]), pd.DataFrame(UNLIKE[200:])
    units = deviations(UNLIKE)
    bandwidth = median_distance(UNLIKE / units, rng=0)
    expected = mmd2_unbiased(UNLIKE[:200] / units, UNLIKE[200:] / units, bandwidth=bandwidth)
    assert np.isclose(mmd2_unbiased(*frames), expected, rtol=1e-9)


@pytest.mark.parametrize(
    "call",
    [lambda x, **o: thin(x, 16, rng=0, **o), lambda x, **o: mmd(x, [0], **o),
     lambda x, **o: compare(x, {"few": [0]}, **o),
     lambda x, **o: mmd2_unbiased(x[:9], x[9:], **o),
     lambda x, **o: KernelThinner(16, random_state=0, **o).fit(x)],
    ids=["thin", "mmd", "compare", "mmd2_unbiased", "KernelThinner"],
)  # fmt: skip
def test_an_array_of_unlike_columns_warns(call):
    with pytest.warns(UserWarning, match="deviation of column 2 is .*, of column 0 .*, which hard"):
        call(UNLIKE)
    quiet(call, X * [1, 3, 9])
    quiet(call, np.column_stack([X, np.zeros(400)]))  # a constant column is on no scale
    quiet(call, UNLIKE, standardize=False)
    quiet(call, UNLIKE, standardize="scale")
    quiet(call, UNLIKE, bandwidth=1.0)
    quiet(call, UNLIKE, kernel=kernels.gaussian(1.0))


def test_float32_stays_float32_and_thin_reads_no_units_from_it():
    x = UNLIKE.astype(np.float32)
    rows = thin(x, 16, standardize="scale", rng=0)
    np.testing.assert_array_equal(rows, thin(x / deviations(x).astype("f4"), 16, rng=0))


@given(st.lists(st.sampled_from([1e-8, 1e-3, 1.0, 8.0, 1e5]), min_size=3, max_size=3))
def test_rows_do_not_depend_on_units(units):
    powers = 2.0 ** np.round(np.log2(units))  # exact, so that no rounding decides
    expected = thin(X[:100], 8, standardize="scale", rng=1)
    np.testing.assert_array_equal(thin(X[:100] * powers, 8, standardize="scale", rng=1), expected)


@pytest.mark.parametrize("bad", [True, 1, 0, None, "std", "SCALE", np.ones(3)])
def test_bad_choices(bad):
    with pytest.raises(ValueError, match="^standardize must be 'auto', 'scale', 'whiten' or False"):
        thin(X, 3, standardize=bad)


def test_kernels_that_belong_to_the_points():
    gram = X @ X.T
    with pytest.raises(
        ValueError, match="^standardize must be False with the kernel 'precomputed'"
    ):
        thin(gram, 3, kernel="precomputed", standardize="scale")
    with pytest.raises(ValueError, match="^points must be finite"):
        thin(np.where(X > 3, np.nan, X), 3, standardize="scale")
    wide = np.zeros((9, 1))
    wide[4:], wide[8] = 1e-300, 1e300
    for array in (wide, 1.7e308 * np.sign(X)):
        with pytest.raises(ValueError, match="^standardize: a column has too wide a range"):
            thin(array, 3, standardize="scale")
