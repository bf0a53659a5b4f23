"""Regression on a coreset: scikit-learn's own checks, its estimators on the same rows, errors."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.gaussian_process.kernels import Matern
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from reference import kernels as reference_kernels
from thinformer import ThinnedKernelRidge, ThinnedNadarayaWatson, kernels, median_distance, thin

RNG = np.random.default_rng(8)
X = RNG.uniform(-1, 1, size=(400, 2))
TRUTH = np.sin(3 * X[:, 0]) + X[:, 1] ** 2 + 10.0
Y = TRUTH + 0.1 * RNG.normal(size=400)
BOTH = np.column_stack([Y, -3 * Y + X[:, 0]])
AT = RNG.uniform(-1, 1, size=(70, 2))
H = 0.6
ESTIMATORS = ThinnedKernelRidge, ThinnedNadarayaWatson
EACH = pytest.mark.parametrize("make", ESTIMATORS)


@parametrize_with_checks([make() for make in ESTIMATORS])
def test_scikit_learn_checks(estimator, check):
    check(estimator)


def labels(y):
    """Targets around their mean, in units of their deviation."""
    z = (y - y.mean(axis=0)) / y.std(axis=0)
    return z / np.sqrt(z.shape[1]) if z.ndim == 2 else z


@pytest.mark.parametrize("y", [Y, BOTH, BOTH[:, :1]], ids=["one", "two", "a column"])
def test_ridge_is_that_of_scikit_learn_on_the_rows(y):
    model = ThinnedKernelRidge(60, alpha=0.3, bandwidth=H, random_state=4).fit(X, y)
    kernel = kernels.with_labels(kernels.gaussian(H), labels(y), constant=0, squared=1)
    rows = thin(X, 60, kernel=kernel, rng=4)
    np.testing.assert_array_equal(model.coreset_indices_, rows)
    np.testing.assert_array_equal(model.X_fit_, X[rows])
    theirs = KernelRidge(alpha=0.3, kernel="rbf", gamma=1 / (2 * H**2))
    theirs.fit(X[rows], y[rows] - y.mean(axis=0))
    np.testing.assert_allclose(model.dual_coef_, theirs.dual_coef_, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(model.intercept_, y.mean(axis=0), rtol=1e-14)
    expected = theirs.predict(AT) + y.mean(axis=0)
    assert model.predict(AT).shape == expected.shape == (70, *y.shape[1:])
    np.testing.assert_allclose(model.predict(AT), expected, rtol=1e-9)
    assert model.n_features_in_ == 2


@pytest.mark.parametrize("y", [Y, BOTH, BOTH[:, :1]], ids=["one", "two", "a column"])
def test_nadaraya_watson_is_its_formula_on_the_rows(y):
    model = ThinnedNadarayaWatson(60, bandwidth=0.2, random_state=4).fit(X, y)
    kernel = kernels.with_labels(kernels.gaussian(0.2), labels(y))
    rows = thin(X, 60, kernel=kernel, rng=4)
    np.testing.assert_array_equal(model.coreset_indices_, rows)
    np.testing.assert_array_equal(model.y_fit_, y[rows])
    K = reference_kernels.gaussian(AT, X[rows], 0.2)
    expected = (K @ y[rows]) / K.sum(axis=1).reshape(-1, *(1,) * (y.ndim - 1))
    assert model.predict(AT).shape == expected.shape
    np.testing.assert_allclose(model.predict(AT), expected, rtol=1e-10)


def test_other_kernels():
    kernel = kernels.matern([0.5, 0.8], nu=2.5) + 0.5 * kernels.matern(0.3)

    def K(a, b):
        return Matern([0.5, 0.8], nu=2.5)(a, b) + 0.5 * Matern(0.3, nu=1.5)(a, b)

    model = ThinnedKernelRidge(50, kernel=kernel, random_state=0).fit(X, Y)
    rows = model.coreset_indices_
    dual = np.linalg.solve(K(X[rows], X[rows]) + 0.1 * np.eye(50), Y[rows] - Y.mean())
    np.testing.assert_allclose(model.predict(AT), K(AT, X[rows]) @ dual + Y.mean(), rtol=1e-10)
    model = ThinnedNadarayaWatson(50, kernel=kernel, random_state=0).fit(X, Y)
    weights = K(AT, model.X_fit_)
    expected = weights @ model.y_fit_ / weights.sum(axis=1)
    np.testing.assert_allclose(model.predict(AT), expected, rtol=1e-10)
    model = ThinnedKernelRidge(50, kernel="polynomial", random_state=0).fit(X, Y)
    assert model.kernel_.scale == 1 / median_distance(X)
    assert model.score(X, TRUTH) > 0.9


@EACH
def test_float32_is_computed_in_float32(make):
    few = X.astype(np.float32)
    model = make(40, bandwidth=H, random_state=1).fit(few, Y)
    assert model.X_fit_.dtype == np.float32
    kernel, numbers = kernels.gaussian(H), {"constant": 0, "squared": 1}
    if make is ThinnedNadarayaWatson:
        numbers = {}
    labelled = kernels.with_labels(kernel, labels(Y), **numbers)
    np.testing.assert_array_equal(model.coreset_indices_, thin(few, 40, kernel=labelled, rng=1))
    predicted = model.predict(AT.astype(np.float32))
    assert predicted.dtype == np.float64
    double = make(40, bandwidth=H, random_state=1).fit(few.astype(float), Y)
    np.testing.assert_array_equal(double.coreset_indices_, model.coreset_indices_)
    np.testing.assert_allclose(predicted, double.predict(AT.astype(np.float32)), rtol=1e-5)


def test_rows_by_targets_are_better_than_uniform_ones():
    """Of a noisy function of one variable: half of the error in the mean of five seeds."""
    x = RNG.uniform(size=(4000, 1))
    truth = np.sin(9 * x[:, 0])
    ours, uniform = [], []
    for seed in range(5):
        y = truth + 0.5 * RNG.normal(size=4000)
        settings = {"bandwidth": 0.15, "random_state": seed}
        model = ThinnedKernelRidge(100, alpha=0.2, **settings).fit(x, y)
        rows = RNG.choice(4000, 100, replace=False)
        theirs = KernelRidge(alpha=0.2, kernel="rbf", gamma=1 / (2 * 0.15**2)).fit(x[rows], y[rows])
        ours.append(np.mean((model.predict(x) - truth) ** 2))
        uniform.append(np.mean((theirs.predict(x) - truth) ** 2))
    assert np.mean(ours) < np.mean(uniform) / 4


def test_far_from_all_rows():
    model = ThinnedNadarayaWatson(30, bandwidth=0.1, random_state=0).fit(X, BOTH)
    far = np.array([[1e3, 0.0], [-500.0, 300.0]])
    nearest = np.argmin(np.sum((far[:, None] - model.X_fit_) ** 2, axis=-1), axis=1)
    np.testing.assert_array_equal(model.predict(far), model.y_fit_[nearest])
    near = np.vstack([AT, far])
    np.testing.assert_allclose(model.predict(near)[:70], model.predict(AT), rtol=1e-14)
    ridge = ThinnedKernelRidge(30, bandwidth=0.1, random_state=0).fit(X, Y)
    np.testing.assert_array_equal(ridge.predict(far), Y.mean())


@EACH
def test_a_target_that_is_constant(make):
    model = make(20, random_state=0).fit(X, np.full(400, 3.0))
    np.testing.assert_allclose(model.predict(AT), 3.0, rtol=1e-12)


@EACH
def test_frames_grids_and_random_states(make):
    frame = pd.DataFrame(X, columns=["a", "b"])
    model = make(0.2, bandwidth=0.3, random_state=0).fit(frame, pd.Series(Y))
    assert model.feature_names_in_.tolist() == ["a", "b"]
    assert len(model.coreset_indices_) == 80
    again = make(80, bandwidth=0.3, random_state=0).fit(X, Y)
    np.testing.assert_array_equal(again.predict(X), model.predict(frame))
    search = GridSearchCV(make(0.25, random_state=0), {"bandwidth": [0.01, 0.2, 20.0]}, cv=3)
    assert search.fit(X, Y).best_params_ == {"bandwidth": 0.2}
    state = np.random.RandomState(0)
    first, second = (make(20, random_state=state).fit(X, Y).coreset_indices_ for _ in range(2))
    assert first.tolist() != second.tolist()


@EACH
def test_all_rows(make):
    assert make(400, random_state=0).fit(X, Y).coreset_indices_.tolist() == list(range(400))


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (ThinnedKernelRidge, {"n_samples": 401}, "^n_samples must be at most the 400 rows of X"),
        (ThinnedKernelRidge, {"alpha": 0}, "^alpha must be positive and finite; got 0"),
        (ThinnedKernelRidge, {"alpha": [1.0]}, r"^alpha must be positive and finite; got \[1.0\]"),
        (
            ThinnedKernelRidge,
            {"alpha": 1e-300, "kernel": "linear", "n_samples": 50},
            "^alpha must be larger: with 1e-300 the Gram matrix of the rows is singular",
        ),
        (ThinnedKernelRidge, {"kernel": "energy"}, "^kernel must be positive definite and one of"),
        (
            ThinnedKernelRidge,
            {"kernel": kernels.stein(-X)},
            "^kernel must be one .*; got stein$",
        ),
        (ThinnedKernelRidge, {"bandwidth": -1.0}, "^bandwidth must be positive and finite"),
        (ThinnedNadarayaWatson, {"kernel": "linear"}, "^kernel must be a positive one of dist"),
        (
            ThinnedNadarayaWatson,
            {"kernel": kernels.gaussian() + kernels.linear()},
            "^kernel must be a positive one of distances; got linear$",
        ),
        (
            ThinnedNadarayaWatson,
            {"kernel": kernels.with_labels("gaussian", Y)},
            "^kernel has labels already",
        ),
    ],
)
def test_bad_parameters(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings).fit(X, Y)


@pytest.mark.slow
def test_without_scikit_learn():
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import thinformer\n"
        "try: thinformer.ThinnedKernelRidge\n"
        "except ImportError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    assert result.stdout == (
        "ThinnedKernelRidge and ThinnedNadarayaWatson need scikit-learn 1.6 or newer: "
        "pip install 'scikit-learn>=1.6'\n"
    )
