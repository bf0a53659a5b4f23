"""Kernel regression on a coreset of points and targets, as scikit-learn estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "ThinnedKernelRidge and ThinnedNadarayaWatson need scikit-learn 1.6 or newer: "
        "pip install 'scikit-learn>=1.6'"
    ) from error

from thinformer.cpu.points import embed
from thinformer.kernels import Kernel, with_labels
from thinformer.kernels.phi import GAUSSIAN, RATIONAL_QUADRATIC, SOBOLEV
from thinformer.support import checks
from thinformer.thinning.arguments import as_problem, resolve
from thinformer.thinning.estimator import sample_size, seed_of
from thinformer.thinning.tables import check_in_memory
from thinformer.thinning.thin import thin

DTYPES = [np.float64, np.float32]


class _OnCoreset(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """What both estimators share: a coreset of X and y, and the shape of the predictions."""

    n_samples: float
    kernel: Any
    bandwidth: Any
    random_state: Any
    _tags: range
    _takes: str  # the kernels of these tags, in words

    def _choose(self, X: Any, y: Any, constant: float, squared: float) -> tuple[NDArray, NDArray]:
        """Set the kernel and the coreset; return targets (n, t) float64 and their means (t,)."""
        check_in_memory(X, "X")
        checks.in_memory("y", y)
        X, y = validate_data(
            self, X, y, dtype=DTYPES, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        seed = seed_of(self.random_state)
        size = sample_size(self.n_samples, len(X))
        self._one_target = y.ndim == 1
        y = y.reshape(len(X), -1).astype(np.float64)
        mean = y.mean(axis=0)
        deviation = y.std(axis=0)
        # of several targets, the mean of the kernels of each
        labels = (y - mean) / np.where(deviation > 0, deviation, 1.0) / np.sqrt(y.shape[1])
        self.kernel_ = resolve(self.kernel, self.bandwidth, X, seed)
        labelled = with_labels(self.kernel_, labels, constant=constant, squared=squared)
        for term in self.kernel_.summands:
            if term.tag not in self._tags:
                raise ValueError(f"kernel must be {self._takes}; got {term.name}")
        self.coreset_indices_ = thin(X, size, kernel=labelled, rng=seed)
        self.X_fit_ = X[self.coreset_indices_]
        return y, mean

    def _points(self, X: Any) -> NDArray:
        check_is_fitted(self)
        check_in_memory(X, "X")
        return validate_data(self, X, dtype=DTYPES, reset=False)

    def _predictions(self, values: NDArray) -> NDArray:
        return values[:, 0] if self._one_target else values


class ThinnedKernelRidge(_OnCoreset):
    r"""Kernel ridge regression on a coreset of X (n, d) and y.

    The rows represent the joint distribution of X and y: they are chosen by Compress++ under the
    kernel :math:`k(x, x')^2 + k(x, x') \langle z, z' \rangle` of supervised kernel thinning
    (arXiv 2410.13749), where z is y minus its mean over its standard deviation. The fit is that of
    scikit-learn's ``KernelRidge`` to these rows of X and of y minus its mean.

    Parameters
    ----------
    n_samples : int or float
        Rows to choose: a number from 1 to n, or a share of n in (0, 1), as in `KernelThinner`.
    alpha : float
        Positive, added to the diagonal of the coreset's Gram matrix. A good value depends on the
        noise of y and hardly on the number of rows.
    kernel, bandwidth
        See `thinformer.thin`. No kernel of your own, and neither "energy", "precomputed" nor a
        `stein` kernel. Columns are taken as they are: scale them first.
    random_state : int, numpy.random.RandomState or None
        See `KernelThinner`.

    Attributes
    ----------
    coreset_indices_ : (size,) int64 array
        The chosen rows, increasing and distinct.
    X_fit_ : (size, d) array
        These rows of X.
    dual_coef_ : (size,) or (size, t) float64 array
        The weights of the rows in a prediction.
    intercept_ : float or (t,) float64 array
        The mean of y over all n rows.
    kernel_ : Kernel
        The kernel with its bandwidth.
    n_features_in_, feature_names_in_
        As in all estimators of scikit-learn.

    Notes
    -----
    Time is that of `thinformer.thin` and O(size^3), memory O(n d + size^2); a prediction takes
    O(size d). Where all rows fit in memory, ridge regression of them on features of few
    (scikit-learn's ``Nystroem``) was more accurate in every case that was measured.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import ThinnedKernelRidge
    >>> X = np.random.default_rng(0).uniform(size=(2000, 1))
    >>> y = np.sin(6 * X[:, 0])
    >>> model = ThinnedKernelRidge(40, alpha=1e-3, random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.99
    True
    """

    _tags, _takes = range(SOBOLEV + 1), "one that has values at all points"  # Stein's has not

    def __init__(
        self,
        n_samples: float = 0.1,
        *,
        alpha: float = 0.1,
        kernel: Any = "gaussian",
        bandwidth: Any = "median",
        random_state: Any = None,
    ) -> None:
        self.n_samples = n_samples
        self.alpha = alpha
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> ThinnedKernelRidge:
        """Choose the rows and fit them.

        Parameters
        ----------
        X : (n, d) array-like or data frame, n >= 2
            float32 is computed in float32, every other dtype in float64; the solution in float64.
        y : (n,) or (n, t) array-like
            One target or several.

        Returns
        -------
        ThinnedKernelRidge
            Itself.

        Raises
        ------
        TypeError, ValueError
            X or y are not finite numbers, or have fewer rows than `n_samples`; a parameter is out
            of its range; alpha is so small that the Gram matrix is singular.
        """
        from scipy.linalg import LinAlgError, cho_factor, cho_solve

        alpha = checks.positive("alpha", self.alpha)
        y, mean = self._choose(X, y, constant=0.0, squared=1.0)
        K = gram(self.kernel_, self.X_fit_)
        K[np.diag_indices_from(K)] += alpha
        try:
            factor = cho_factor(K, lower=True, overwrite_a=True)
        except LinAlgError as error:
            raise ValueError(
                f"alpha must be larger: with {alpha!r} the Gram matrix of the rows is singular"
            ) from error
        dual = cho_solve(factor, y[self.coreset_indices_] - mean)
        self.dual_coef_ = self._predictions(dual)
        self.intercept_ = float(mean[0]) if self._one_target else mean
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return the predictions (q,) or (q, t) for points X (q, d)."""
        X = self._points(X)
        weights = self.dual_coef_.reshape(len(self.X_fit_), -1)
        sums = kernel_sums(self.kernel_, self.X_fit_, X, weights)
        return self._predictions(sums) + self.intercept_


class ThinnedNadarayaWatson(_OnCoreset):
    r"""Nadaraya-Watson regression on a coreset of X (n, d) and y.

    A prediction is the mean of the chosen y, weighted by the kernel values between the point and
    the chosen rows. These represent the joint distribution of X and y: they are chosen by
    Compress++ under the kernel :math:`k(x, x') (1 + \langle z, z' \rangle)` of supervised kernel
    thinning (arXiv 2410.13749), where z is y minus its mean over its standard deviation.

    Parameters
    ----------
    n_samples : int or float
        Rows to choose: a number from 1 to n, or a share of n in (0, 1), as in `KernelThinner`.
    kernel : str or Kernel
        Of distances and positive: "gaussian", "laplace", "matern", "inverse_multiquadric",
        "rational_quadratic", or a sum of such kernels.
    bandwidth : float, sequence of d floats, or "median"
        See `thinformer.thin`. The median distance is often too long; find a value by
        cross-validation. Columns are taken as they are: scale them first.
    random_state : int, numpy.random.RandomState or None
        See `KernelThinner`.

    Attributes
    ----------
    coreset_indices_ : (size,) int64 array
        The chosen rows, increasing and distinct.
    X_fit_ : (size, d) array
        These rows of X.
    y_fit_ : (size,) or (size, t) float64 array
        These rows of y.
    kernel_ : Kernel
        The kernel with its bandwidth.
    n_features_in_, feature_names_in_
        As in all estimators of scikit-learn.

    Notes
    -----
    Time is that of `thinformer.thin`; a prediction takes O(size d). It is the y of the nearest
    chosen row for a point so far from all that kernel values underflow.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import ThinnedNadarayaWatson
    >>> X = np.random.default_rng(0).uniform(size=(2000, 1))
    >>> y = np.sin(6 * X[:, 0])
    >>> model = ThinnedNadarayaWatson(60, bandwidth=0.03, random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.98
    True
    """

    # weights of a mean must not be negative
    _tags, _takes = range(GAUSSIAN, RATIONAL_QUADRATIC + 1), "a positive one of distances"

    def __init__(
        self,
        n_samples: float = 0.1,
        *,
        kernel: Any = "gaussian",
        bandwidth: Any = "median",
        random_state: Any = None,
    ) -> None:
        self.n_samples = n_samples
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> ThinnedNadarayaWatson:
        """Choose the rows.

        Parameters
        ----------
        X : (n, d) array-like or data frame, n >= 2
            float32 is computed in float32, every other dtype in float64.
        y : (n,) or (n, t) array-like
            One target or several.

        Returns
        -------
        ThinnedNadarayaWatson
            Itself.

        Raises
        ------
        TypeError, ValueError
            X or y are not finite numbers, or have fewer rows than `n_samples`; a parameter is out
            of its range.
        """
        y, _ = self._choose(X, y, constant=1.0, squared=0.0)
        self.y_fit_ = self._predictions(y[self.coreset_indices_])
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Return the predictions (q,) or (q, t) for points X (q, d)."""
        X = self._points(X)
        y = self.y_fit_.reshape(len(self.X_fit_), -1)
        ones = np.ones((len(y), 1))
        sums = kernel_sums(self.kernel_, self.X_fit_, X, np.hstack([y, ones]))
        values, totals = sums[:, :-1], sums[:, -1]
        far = totals < np.finfo(self.X_fit_.dtype).tiny
        values[~far] /= totals[~far, None]
        if far.any():
            values[far] = y[_nearest(self.X_fit_, X[far])]
        return self._predictions(values)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True  # 20 rows in 10 dimensions, as in its checks
        return tags


def gram(kernel: Kernel, points: NDArray) -> NDArray[np.float64]:
    """Return the Gram matrix (m, m) of points (m, d)."""
    problem, every = as_problem(points, kernel), np.arange(len(points))
    return np.array([embed(problem, every, every[j : j + 1], np.ones(1)) for j in every])


def kernel_sums(kernel: Kernel, points: NDArray, at: NDArray, weights: NDArray) -> NDArray:
    """Return sum_j w_j k(x, y_j) for x at (q, d), points y_j (m, d) and weights (m, t): (q, t)."""
    problem = as_problem(np.concatenate([points, at]), kernel)
    rows, of_points = len(points) + np.arange(len(at)), np.arange(len(points))
    each = [embed(problem, rows, of_points, np.ascontiguousarray(w)) for w in weights.T]
    return np.stack(each, axis=1)


def _nearest(points: NDArray, at: NDArray) -> NDArray:
    """The nearest of points (m, d) to each point at (q, d)."""
    from scipy.spatial import KDTree

    return KDTree(points).query(at)[1]
