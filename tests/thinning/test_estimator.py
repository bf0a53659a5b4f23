"""KernelThinner: scikit-learn's own checks, the rows of `thin`, containers, random states."""

import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.linear_model import Ridge
from sklearn.model_selection import ParameterGrid
from sklearn.utils.estimator_checks import parametrize_with_checks

from thinformer import kernels, thin
from thinformer.thinning.estimator import KernelThinner

X = np.random.default_rng(0).normal(size=(120, 3))
Y = np.arange(120) % 4


@parametrize_with_checks([KernelThinner(), KernelThinner(weighted=True)])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize(
    "settings",
    [
        *ParameterGrid({"method": ["compress++", "kernel-thinning", "halving", "random"]}),
        {"kernel": "laplace", "bandwidth": 2.0},
        {"kernel": kernels.matern(0.5)},
        {"g": 1, "delta": 0.1, "refine": False},
        {"kernel": kernels.stein(-X), "target": "mean-zero"},
    ],
    ids=str,
)
def test_the_rows_are_those_of_thin(settings):
    thinner = KernelThinner(11, random_state=5, **settings)
    assert thinner.fit(X) is thinner
    np.testing.assert_array_equal(thinner.coreset_indices_, thin(X, 11, rng=5, **settings))
    assert thinner.coreset_indices_.dtype == np.int64
    assert thinner.n_features_in_ == 3


def test_sample_weight():
    weight = np.where(np.arange(120) < 60, 0.0, 1.0)
    rows = KernelThinner(10, random_state=0).fit(X, sample_weight=weight).coreset_indices_
    np.testing.assert_array_equal(rows, thin(X, 10, weights=weight, rng=0))
    assert rows.min() >= 60
    again, _ = KernelThinner(10, random_state=0).fit_resample(X, None, weight.tolist())
    np.testing.assert_array_equal(again, X[rows])


def test_weights_of_the_chosen_rows():
    thinner = KernelThinner(11, weighted=True, random_state=5).fit(X)
    rows, weights = thin(X, 11, rng=5, return_weights=True)
    np.testing.assert_array_equal(thinner.coreset_indices_, rows)
    np.testing.assert_allclose(thinner.sample_weight_, 120 * weights, rtol=1e-9)
    weight = np.random.default_rng(1).uniform(size=120)
    thinner.fit(X, sample_weight=weight)
    weights = thin(X, 11, rng=5, weights=weight, return_weights=True)[1]
    np.testing.assert_allclose(thinner.sample_weight_, weight.sum() * weights, rtol=1e-9)
    assert not hasattr(thinner.set_params(weighted=False).fit(X), "sample_weight_")
    frame = pd.DataFrame(X, columns=["a", "b", "lp__"])
    blind = KernelThinner(9, method="random", random_state=0)
    few = blind.fit(frame).coreset_indices_
    with pytest.warns(UserWarning, match="left out of the distance: lp__"):
        blind.set_params(weighted=True).fit(frame)
    np.testing.assert_array_equal(blind.coreset_indices_, few)
    with pytest.raises(TypeError, match="^weighted must be True or False; got 'simplex'"):
        KernelThinner(5, weighted="simplex").fit(X)


def test_weights_bring_a_ridge_near_that_of_all_rows():
    y = X @ [1.0, -2.0, 0.5] + np.sin(X[:, 0])
    of_all = Ridge(alpha=30.0).fit(X, y).coef_
    thinner = KernelThinner(20, method="random", weighted=True, random_state=0)
    X_few, y_few = thinner.fit_resample(X, y)
    weighted = Ridge(alpha=30.0).fit(X_few, y_few, sample_weight=thinner.sample_weight_).coef_
    equal = Ridge(alpha=30.0).fit(X_few, y_few).coef_
    assert np.linalg.norm(weighted - of_all) < np.linalg.norm(equal - of_all) / 3


@pytest.mark.parametrize(
    ("n_samples", "size"),
    [(1, 1), (np.int32(120), 120), (0.1, 12), (0.004, 1), (0.29, 35), (np.float32(0.5), 60)],
)
def test_n_samples(n_samples, size):
    assert len(KernelThinner(n_samples).fit(X).coreset_indices_) == size


def test_float32_is_computed_in_float32():
    few = X.astype(np.float32)
    rows = KernelThinner(9, random_state=1, bandwidth=1.0).fit(few).coreset_indices_
    np.testing.assert_array_equal(rows, thin(few, 9, rng=1, bandwidth=1.0))


def test_frames_keep_their_names_and_types():
    rows = KernelThinner(7, standardize="scale", random_state=0).fit(X).coreset_indices_
    frame = pd.DataFrame(X, columns=["a", "b", "c"], index=np.arange(120) + 1000)
    labels = pd.Series(Y, index=frame.index, name="label")
    thinner = KernelThinner(7, random_state=0)
    few, few_labels = thinner.fit_resample(frame, labels)
    pd.testing.assert_frame_equal(few, frame.iloc[rows])
    pd.testing.assert_series_equal(few_labels, labels.iloc[rows])
    assert thinner.feature_names_in_.tolist() == ["a", "b", "c"]
    assert not hasattr(thinner.fit(X), "feature_names_in_")

    frame = pl.DataFrame(X, schema=["a", "b", "c"])
    few, few_labels = thinner.fit_resample(frame, pl.Series(Y))
    assert few.equals(frame[rows.tolist()])
    assert few_labels.to_list() == Y[rows].tolist()
    by_array = KernelThinner(7, random_state=0).fit(X).coreset_indices_
    as_it_is = KernelThinner(7, standardize=False, random_state=0).fit(frame).coreset_indices_
    np.testing.assert_array_equal(as_it_is, by_array)
    assert thinner.feature_names_in_.tolist() == ["a", "b", "c"]


def test_arrays_and_lists():
    thinner = KernelThinner(7, random_state=0)
    few, nothing = thinner.fit_resample(X)
    rows = thinner.coreset_indices_
    np.testing.assert_array_equal(few, X[rows])
    assert nothing is None
    few, labels = thinner.fit_resample(X.tolist(), [str(y) for y in Y])
    assert few == X[rows].tolist()
    assert labels == [str(y) for y in Y[rows]]
    _, labels = thinner.fit_resample(X, np.eye(120))
    np.testing.assert_array_equal(labels, np.eye(120)[rows])


def test_random_state():
    def rows(state):
        return (
            KernelThinner(8, method="random", random_state=state).fit(X).coreset_indices_.tolist()
        )

    assert rows(0) == rows(0) == rows(np.int64(0))
    assert rows(0) != rows(1)
    state = np.random.RandomState(0)
    first, second = rows(state), rows(state)
    assert first != second
    assert first == rows(np.random.RandomState(0))
    glob = np.random.mtrand._rand.get_state()  # scikit-learn's None is NumPy's global state
    try:
        np.random.mtrand._rand.set_state(np.random.RandomState(7).get_state())
        assert rows(None) == rows(np.random.RandomState(7))
        assert rows(None) != rows(np.random.RandomState(7))
    finally:
        np.random.mtrand._rand.set_state(glob)


def test_parameters():
    thinner = KernelThinner(5, kernel=kernels.gaussian(2.0), g=2)
    assert list(thinner.get_params()) == [
        "bandwidth", "delta", "g", "kernel", "method", "n_samples", "progress", "random_state",
        "refine", "standardize", "target", "weighted",
    ]  # fmt: skip
    copy = clone(thinner)
    assert copy is not thinner
    assert copy.get_params()["kernel"].scale == thinner.kernel.scale
    assert "".join(repr(copy).split()).startswith("KernelThinner(g=2,kernel=Kernel(name='gaussian'")
    rows = thinner.fit(X).coreset_indices_
    assert rows.size == 5
    assert thinner.set_params(n_samples=6).fit(X).coreset_indices_.size == 6
    assert not hasattr(copy, "coreset_indices_")
    assert not hasattr(thinner, "transform")


def test_precomputed():
    gram = np.exp(-((X[:, None] - X[None]) ** 2).sum(axis=2) / 2)
    thinner = KernelThinner(9, kernel="precomputed", random_state=0)
    np.testing.assert_array_equal(
        thinner.fit(gram).coreset_indices_, thin(gram, 9, kernel="precomputed", rng=0)
    )
    assert thinner.__sklearn_tags__().input_tags.pairwise
    assert not KernelThinner().__sklearn_tags__().input_tags.pairwise
    with pytest.raises(ValueError, match=r"Gram matrix \(n, n\)"):
        thinner.fit(X)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_samples": 121}, "^n_samples must be at most the 120 rows of X; got 121"),
        ({"n_samples": 0}, "^n_samples must be an integer of at least 1; got 0"),
        ({"n_samples": True}, "^n_samples must be an integer of at least 1; got True"),
        ({"n_samples": "few"}, "^n_samples must be an integer of at least 1; got 'few'"),
        ({"n_samples": 1.0}, r"^n_samples must be an integer, or a share in \(0, 1\); got 1.0"),
        ({"n_samples": -0.5}, r"^n_samples must be an integer, or a share in \(0, 1\); got -0.5"),
        ({"n_samples": float("nan")}, "^n_samples must be an integer, or a share"),
        ({"method": "best"}, "^method must be one of 'compress"),
        ({"kernel": "gausian"}, "^kernel must be a Kernel or one of"),
        ({"random_state": "seed"}, "'seed' cannot be used to seed"),
        ({"random_state": -1}, "Seed must be between 0"),
        ({"random_state": np.random.default_rng(0)}, "cannot be used to seed"),
    ],
)
def test_bad_parameters(settings, message):
    with pytest.raises(ValueError, match=message):
        KernelThinner(**settings).fit(X)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (X[0], "Expected 2D array, got 1D array"),
        (np.where(X > 2, np.nan, X), "Input X contains NaN"),
        (X[:1], r"Found array with 1 sample\(s\).* while a minimum of 2"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(ValueError, match=message):
        KernelThinner(1).fit(data)


def test_bad_weights_and_targets():
    with pytest.raises(ValueError, match=r"^sample_weight must be numbers of shape \(120,\); got"):
        KernelThinner(5).fit(X, sample_weight=np.ones(3))
    with pytest.raises(ValueError, match="^sample_weight must be finite .* none of them negative"):
        KernelThinner(5).fit(X, sample_weight=-np.ones(120))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        KernelThinner(5).fit_resample(X, Y[:7])


@pytest.mark.slow
def test_without_scikit_learn():
    """The error says what to install; the rest of the package does without."""
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import thinformer\n"
        "try: thinformer.KernelThinner\n"
        "except ImportError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    assert result.stdout == (
        "KernelThinner needs scikit-learn 1.6 or newer: pip install 'scikit-learn>=1.6'\n"
    )
