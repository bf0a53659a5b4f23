"""`KernelThinner`: `thin` as a scikit-learn estimator."""

from __future__ import annotations

import numbers
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

try:
    from sklearn.base import BaseEstimator
    from sklearn.utils import check_consistent_length, check_random_state
    from sklearn.utils.validation import validate_data
except ImportError as error:
    raise ImportError(
        "KernelThinner needs scikit-learn 1.6 or newer: pip install 'scikit-learn>=1.6'"
    ) from error

from thinformer.support import checks
from thinformer.support.progress import Progress
from thinformer.thinning.arguments import Target, as_weights
from thinformer.thinning.columns import OF_A_SAMPLER, Table, counted, is_of_a_sampler
from thinformer.thinning.methods import BLIND, Method
from thinformer.thinning.scales import Standardize, belongs_to_columns, for_columns
from thinformer.thinning.tables import check_in_memory, frame_labels, has_columns, is_frame
from thinformer.thinning.thin import thin


class KernelThinner(BaseEstimator):
    r"""Choose rows of X (n, d) that represent all n, as `thinformer.thin` does.

    A scikit-learn transformer must keep the number of rows, so this class is not a transformer:
    `fit` finds the rows, and `fit_resample` returns them, as in pipelines of imbalanced-learn.

    Parameters
    ----------
    n_samples : int or float
        Rows to choose: a number from 1 to n, or a share of n in (0, 1), which is rounded to the
        nearest number of rows, at least 1.
    kernel, bandwidth, standardize, method, g, delta, refine, target, progress
        See `thinformer.thin`. With ``kernel="precomputed"``, X is the Gram matrix.
    weighted : bool
        Also fit weights of the chosen rows, `sample_weight_`, as ``thin(..., return_weights=True)``
        does. They are fitted to X; the targets have no part in them.
    random_state : int, numpy.random.RandomState or None
        With an int, every `fit` chooses the rows of ``thin(..., rng=random_state)``. With a
        RandomState, or with None for NumPy's global one, every `fit` draws a new seed from it.

    Attributes
    ----------
    coreset_indices_ : (size,) int64 array
        The chosen rows, increasing and distinct.
    sample_weight_ : (size,) float64 array
        Only if `weighted`: the weights of the chosen rows, for the `sample_weight` of another
        estimator's `fit`. None is negative. Their sum is that of the `sample_weight` of `fit`, or
        n, so that a penalty, as `alpha` of Ridge, counts as much as beside all rows.
    n_features_in_ : int
        The number of columns of X.
    feature_names_in_ : (d,) object array
        The names of the columns; set only if X is a data frame and every name is a string.

    Notes
    -----
    Time and memory are those of `thinformer.thin`. The default method is Compress++
    (arXiv 2111.07941).

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import KernelThinner
    >>> X = np.random.default_rng(0).normal(size=(1000, 2))
    >>> y = X[:, 0] > 0
    >>> X_few, y_few = KernelThinner(50, random_state=0).fit_resample(X, y)
    >>> X_few.shape, y_few.shape
    ((50, 2), (50,))
    >>> from sklearn.linear_model import LogisticRegression
    >>> thinner = KernelThinner(50, weighted=True, random_state=0)
    >>> X_few, y_few = thinner.fit_resample(X, y)
    >>> model = LogisticRegression().fit(X_few, y_few, sample_weight=thinner.sample_weight_)
    >>> round(thinner.sample_weight_.sum(), 6)
    np.float64(1000.0)
    """

    def __init__(
        self,
        n_samples: float = 0.1,
        *,
        kernel: Any = "gaussian",
        bandwidth: Any = "median",
        standardize: Standardize = "auto",
        method: Method = "compress++",
        g: int = 4,
        delta: float = 0.5,
        refine: bool = True,
        target: Target = "auto",
        weighted: bool = False,
        random_state: Any = None,
        progress: Progress = None,
    ) -> None:
        self.n_samples = n_samples
        self.kernel = kernel
        self.bandwidth = bandwidth
        self.standardize = standardize
        self.method = method
        self.g = g
        self.delta = delta
        self.refine = refine
        self.target = target
        self.weighted = weighted
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> KernelThinner:
        """Find the rows that represent X.

        Parameters
        ----------
        X : (n, d) array-like or data frame, n >= 2
            float32 is computed in float32, every other dtype in float64.
        y : ignored
        sample_weight : (n,) array, optional
            The weights of the rows in the sample that is represented. The chosen rows are equally
            weighted, unless `weighted` is True.

        Returns
        -------
        KernelThinner
            Itself.

        Raises
        ------
        TypeError, ValueError
            X is not a matrix of finite numbers, or has fewer rows than `n_samples`; or a parameter
            is out of its range.
        """
        check_in_memory(X, "X")
        # a single row has no median distance, and there is nothing to choose
        points = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        n = len(points)
        unit = for_columns(self.standardize, self.kernel, self.bandwidth, has_columns(X))
        weighted = checks.boolean("weighted", self.weighted)
        blind = self.method in BLIND and not weighted
        every = blind or belongs_to_columns(self.kernel, self.bandwidth)
        if is_frame(X):
            labels = frame_labels(X)
            table = Table(points, labels, np.arange(len(labels)))
            if not every:
                table = table.without(set(filter(is_of_a_sampler, labels)), OF_A_SAMPLER)
            points = counted({"X": table}, every)[0].values
        seed = seed_of(self.random_state)
        if sample_weight is not None:
            checks.in_memory("sample_weight", sample_weight)
            sample_weight = np.asarray(sample_weight)
            as_weights(sample_weight, n, "sample_weight")
        found = thin(
            points,
            sample_size(self.n_samples, n),
            kernel=self.kernel,
            bandwidth=self.bandwidth,
            standardize=unit,
            method=self.method,
            g=self.g,
            delta=self.delta,
            refine=self.refine,
            weights=sample_weight,
            target=self.target,
            return_weights=weighted,
            rng=seed,
            progress=self.progress,
        )
        self.__dict__.pop("sample_weight_", None)  # of an earlier fit
        if isinstance(found, tuple):
            self.coreset_indices_, weights = found
            total = n if sample_weight is None else sample_weight.sum(dtype=np.float64)
            self.sample_weight_ = weights * total
        else:
            self.coreset_indices_ = found
        return self

    def fit_resample(
        self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None
    ) -> tuple[Any, Any]:
        """Find the rows that represent X, and return these rows of X and of y.

        Parameters
        ----------
        X, sample_weight
            See `fit`.
        y : (n, ...) array-like, series or frame, optional
            The targets. They do not influence the choice.

        Returns
        -------
        X, y
            The chosen rows of each, in the type that was given: array, frame, series or list. y is
            None if None was given.

        Raises
        ------
        TypeError, ValueError
            As in `fit`; or X and y have different numbers of rows.
        """
        check_consistent_length(X, y)
        self.fit(X, y, sample_weight)
        return _take(X, self.coreset_indices_), _take(y, self.coreset_indices_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = isinstance(self.kernel, str) and self.kernel == "precomputed"
        return tags


def seed_of(random_state: Any) -> int:
    """Return the seed that a `random_state` is, or draw one from it."""
    state = check_random_state(random_state)
    return int(random_state if isinstance(random_state, numbers.Integral) else state.randint(2**31))


def sample_size(n_samples: Any, n: int) -> int:
    """Return the number of rows to choose from n."""
    if isinstance(n_samples, numbers.Real) and not isinstance(n_samples, numbers.Integral):
        share = float(n_samples)
        if not 0 < share < 1:
            raise ValueError(
                f"n_samples must be an integer, or a share in (0, 1); got {n_samples!r}"
            )
        return max(1, round(share * n))
    size = checks.integer("n_samples", n_samples, 1)
    if size > n:
        raise ValueError(f"n_samples must be at most the {n} rows of X; got {size}")
    return size


def _take(data: Any, rows: np.ndarray) -> Any:
    """The given rows of an array, frame, series, list or tuple."""
    if data is None:
        return None
    if hasattr(data, "iloc"):
        return data.iloc[rows]
    if isinstance(data, (list, tuple)):
        return type(data)(data[row] for row in rows)
    return data[rows]
