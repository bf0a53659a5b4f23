"""MMD, its unbiased estimate, comparisons and the median distance, against their formulas."""

import math
import threading
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import energy_distance

from reference import kernels as reference_kernels
from thinformer import (
    compare,
    kernels,
    median_distance,
    mmd,
    mmd2_unbiased,
    set_num_threads,
)
from thinformer.cpu.points import embed, square
from thinformer.thinning.arguments import as_problem
from thinformer.thinning.moments import column_errors

RNG = np.random.default_rng(0)
X = RNG.normal(size=(150, 3))
ROWS = np.sort(RNG.choice(150, 20, replace=False))
WEIGHTS = RNG.uniform(size=150)
KERNELS = {
    "linear": kernels.linear(1.0),
    "polynomial": kernels.polynomial(2),
    "exponential": kernels.exponential(2.0),
    "gaussian": kernels.gaussian(1.3),
    "laplace": kernels.laplace(1.3),
    "inverse_multiquadric": kernels.inverse_multiquadric(1.3),
    "matern": kernels.matern(1.3),
    "rational_quadratic": kernels.rational_quadratic(1.3),
    "energy": kernels.energy(),
    "sobolev": kernels.sobolev(),
}
ARGUMENTS = {
    "linear": {"constant": 1.0},
    "polynomial": {"degree": 2},
    "exponential": {"bandwidth": 2.0},
    "energy": {},
    "sobolev": {},
}


def brute_force(name, points, coreset, weights=None):
    """The MMD from whole Gram matrices."""
    formula = getattr(reference_kernels, name)
    arguments = ARGUMENTS.get(name, {"bandwidth": 1.3})
    w = np.full(len(points), 1 / len(points)) if weights is None else weights / weights.sum()
    of_points = w @ formula(points, points, **arguments) @ w
    between = w @ formula(points, coreset, **arguments).mean(axis=1)
    return np.sqrt(of_points - 2 * between + formula(coreset, coreset, **arguments).mean())


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_mmd_is_the_formula(name, weights):
    points = X % 1 if name == "sobolev" else X
    expected = brute_force(name, points, points[ROWS], weights)
    got = mmd(points, ROWS, kernel=KERNELS[name], weights=weights)
    assert type(got) is float
    assert math.isclose(got, expected, rel_tol=1e-12)
    own = mmd(points, points[ROWS], kernel=KERNELS[name], weights=weights)
    assert math.isclose(own, expected, rel_tol=1e-12)


def test_coresets_of_any_points_and_repeated_rows():
    others = RNG.normal(1, 2, size=(7, 3))
    got = mmd(X, others, kernel=kernels.gaussian(1.3))
    assert math.isclose(got, brute_force("gaussian", X, others), rel_tol=1e-12)
    rows = [3, 3, 3, 149, 0]
    got = mmd(X, rows, kernel=kernels.gaussian(1.3))
    assert math.isclose(got, brute_force("gaussian", X, X[rows]), rel_tol=1e-12)


def test_known_values():
    two = np.array([[0.0], [1.0]])
    assert math.isclose(mmd(two, [0], bandwidth=1.0), math.sqrt((1 - math.exp(-0.5)) / 2))
    assert math.isclose(mmd(two, [0], kernel="linear"), 0.5)
    assert math.isclose(mmd(two, [0], kernel="linear", weights=[1, 3]), 0.75)
    assert mmd(two, [0], kernel="linear", weights=[5, 0]) == 0
    assert mmd(X, np.arange(150), bandwidth=1.0) < 1e-7
    assert mmd(X, X[::-1], kernel="linear") < 1e-7  # not the root of a negative number


def test_dtypes_are_computed_in_float64():
    few = X.astype(np.float32)
    whole = few.astype(np.float64)
    assert mmd(few, ROWS, bandwidth=1.0) == mmd(whole, ROWS, bandwidth=1.0)
    assert mmd2_unbiased(few, few[:9], bandwidth=1.0) == mmd2_unbiased(
        whole, whole[:9], bandwidth=1.0
    )
    grid = np.arange(40).reshape(20, 2)
    assert mmd(grid, [1], bandwidth=1.0) == mmd(grid.astype(float), [1], bandwidth=1.0)


def test_median_bandwidth():
    assert mmd(X, ROWS) == mmd(X, ROWS, bandwidth=median_distance(X))
    own = np.concatenate([X[ROWS], X[ROWS] + 100])
    assert mmd(X, own) == mmd(X, own, bandwidth=median_distance(X))  # of the points alone
    both = np.concatenate([X, own])
    assert mmd2_unbiased(X, own) == mmd2_unbiased(X, own, bandwidth=median_distance(both))


def test_median_distance():
    assert median_distance(X) == np.median(pdist(X))
    repeated = np.repeat(X, 3, axis=0)[:200]
    distances = pdist(repeated)
    assert median_distance(repeated) == np.median(distances[distances > 0])
    many = RNG.normal(size=(3000, 2))
    assert median_distance(many, rng=1) == median_distance(many, rng=1)
    assert median_distance(many, rng=1) != median_distance(many, rng=2)
    assert math.isclose(median_distance(many, rng=1), np.median(pdist(many)), rel_tol=0.05)
    drawn = np.sort(np.random.default_rng(1).choice(3000, 1000, replace=False))
    assert median_distance(many, rng=1) == np.median(pdist(many[drawn]))


def test_mean_zero_is_the_norm_of_the_coreset():
    scores = -X
    K = reference_kernels.stein(X[ROWS], X[ROWS], scores[ROWS], scores[ROWS], 0.9)
    kernel = kernels.stein(scores, 0.9)
    got = mmd(X, ROWS, kernel=kernel, target="mean-zero")
    assert math.isclose(got, math.sqrt(K.mean()), rel_tol=1e-12)
    of_points = reference_kernels.stein(X, X, scores, scores, 0.9)
    everything = mmd(X, np.arange(150), kernel=kernel, target="mean-zero")
    assert math.isclose(everything, math.sqrt(of_points.mean()), rel_tol=1e-12)
    between = of_points[ROWS].mean()
    got = mmd(X, ROWS, kernel=kernel, target="sample")
    assert math.isclose(got**2, of_points.mean() - 2 * between + K.mean(), rel_tol=1e-10)
    cube = X % 1
    got = mmd(cube, cube[:9], kernel="sobolev", target="mean-zero")
    K = reference_kernels.sobolev(cube[:9], cube[:9])
    assert math.isclose(got, math.sqrt(K.mean()), rel_tol=1e-12)


def test_precomputed_and_plain_python():
    K = reference_kernels.gaussian(X, X)
    expected = mmd(X, ROWS, bandwidth=1.0)
    assert math.isclose(mmd(K, ROWS, kernel="precomputed"), expected, rel_tol=1e-12)
    weighted = mmd(K, ROWS, kernel="precomputed", weights=WEIGHTS)
    assert math.isclose(weighted, mmd(X, ROWS, bandwidth=1.0, weights=WEIGHTS), rel_tol=1e-12)

    def own(x, y):
        return math.exp(-0.5 * np.sum((x - y) ** 2))

    with pytest.warns(UserWarning, match="it is called 1275 times") as warned:
        got = mmd(X[:40], X[40:50], kernel=own)
    assert warned[0].filename == __file__  # where the user's call is
    assert math.isclose(got, mmd(X[:40], X[40:50], bandwidth=1.0), rel_tol=1e-12)


def test_unbiased_estimate_is_the_formula():
    x, y = X[:40], X[40:65] + 0.3

    def off_diagonal_mean(K):
        n = len(K)
        return (K.sum() - np.trace(K)) / (n * (n - 1))

    for name in ("gaussian", "laplace", "polynomial", "energy"):
        formula, arguments = (
            getattr(reference_kernels, name),
            ARGUMENTS.get(name, {"bandwidth": 1.3}),
        )
        expected = (
            off_diagonal_mean(formula(x, x, **arguments))
            + off_diagonal_mean(formula(y, y, **arguments))
            - 2 * formula(x, y, **arguments).mean()
        )
        got = mmd2_unbiased(x, y, kernel=KERNELS[name])
        assert math.isclose(got, expected, rel_tol=1e-10)


def test_unbiased_estimate_is_unbiased():
    """The mean over samples of one distribution is zero, where the biased one's is far above."""
    values = [
        mmd2_unbiased(*np.random.default_rng(seed).normal(size=(2, 12, 2)), bandwidth=1.0)
        for seed in range(300)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(300)
    assert min(values) < 0


def test_compare_has_numpys_and_scipys_values():
    x = X * [1.0, 5.0, 0.0] + 3  # a dimension without variance
    coresets = {"first": np.arange(10), "one": [7], "spread": ROWS.tolist()}
    table = compare(x, coresets, kernel="laplace", bandwidth=2.0)
    assert [row.name for row in table] == list(coresets)
    of_points = np.cov(x, rowvar=False, bias=True)
    for row, rows in zip(table, coresets.values(), strict=True):
        part = x[rows]
        assert row.size == len(rows)
        assert row.mmd == mmd(x, rows, kernel="laplace", bandwidth=2.0)
        assert row.energy == mmd(x, rows, kernel=kernels.energy())
        off = np.abs(part.mean(axis=0) - x.mean(axis=0))[:2] / x.std(axis=0)[:2]
        assert math.isclose(row.mean, off.max(), rel_tol=1e-12)
        difference = np.cov(part, rowvar=False, bias=True) - of_points
        relative = np.linalg.norm(difference) / np.linalg.norm(of_points)
        assert math.isclose(row.covariance, relative, rel_tol=1e-12)
    assert table[1].covariance == 1
    line = x[:, :1]
    (row,) = compare(line, {"few": ROWS})
    assert math.isclose(row.energy, energy_distance(line[:, 0], line[ROWS, 0]), rel_tol=1e-12)
    (row,) = compare(np.ones((5, 2)), {"same": [0, 1]}, bandwidth=1.0)
    assert row[2:6] == (0, 0, 0, 0)
    assert row.columns == (("0", 0, 0, 0), ("1", 0, 0, 0))


def test_compare_has_the_errors_of_each_column():
    x = np.column_stack([X[:, 0], 1e4 * X[:, 1], np.ones(150)])
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    with pytest.warns(UserWarning, match=r"left out of the distance: c \(constant\)"):
        (row,) = compare(frame, {"few": ROWS})
    assert [each.column for each in row.columns] == ["a", "b"]
    for i, each in enumerate(row.columns[:2]):
        column, part = x[:, i], x[ROWS, i]
        assert math.isclose(each.mean, abs(part.mean() - column.mean()) / column.std())
        assert math.isclose(each.deviation, abs(part.std() / column.std() - 1))
        off = np.abs(np.quantile(part, [0.05, 0.95]) - np.quantile(column, [0.05, 0.95]))
        assert math.isclose(each.tails, off.max() / column.std())
    assert column_errors(x, x[ROWS], ["a", "b", "c"]) == (*row.columns, ("c", 0, 0, 0))
    (of_array,) = compare(x, {"few": ROWS}, standardize="scale")
    assert [each[1:] for each in of_array.columns] == [
        *(each[1:] for each in row.columns),
        (0, 0, 0),
    ]
    assert row.worst == max(row.columns[:2], key=lambda each: each.mean)
    assert row.mean == row.worst.mean


def test_errors_of_weighted_columns_are_those_of_repeated_rows():
    repeats = np.random.default_rng(5).integers(1, 6, size=len(X))
    weighted = column_errors(X, X[ROWS], "abc", repeats)
    repeated = column_errors(np.repeat(X, repeats, axis=0), X[ROWS], "abc")
    for one, other in zip(weighted, repeated, strict=True):
        assert one[0] == other[0]
        np.testing.assert_allclose(one[1:3], other[1:3], rtol=1e-12)
        assert abs(one.tails - other.tails) < 0.05  # quantiles of repeated rows are interpolated


@pytest.mark.parametrize("kind", [np.asarray, lambda x: pd.DataFrame(x, columns=list("abc"))])
def test_compare_with_weights_is_compare_with_repeated_rows(kind):
    """All but tails, which are interpolated between repeated rows."""
    repeats = np.random.default_rng(5).integers(1, 6, size=len(X))
    x = X * [1.0, 5.0, 2.0]
    often = np.repeat(x, repeats, axis=0)
    chosen = ROWS, np.r_[0, np.cumsum(repeats)][ROWS]
    options = {"kernel": kernels.laplace(2.0)}
    (row,) = compare(kind(x), {"few": chosen[0]}, weights=3 * repeats, **options)
    (other,) = compare(kind(often), {"few": chosen[1]}, **options)
    np.testing.assert_allclose(row[2:6], other[2:6], rtol=1e-9)
    for one, two in zip(row.columns, other.columns, strict=True):
        assert one.column == two.column
        np.testing.assert_allclose(one[1:3], two[1:3], rtol=1e-9)
        assert abs(one.tails - two.tails) < 0.1
    assert row.mmd == mmd(kind(x), ROWS, weights=repeats, **options)
    assert compare(x, {"few": ROWS}, weights=np.full(len(x), 7)) == compare(x, {"few": ROWS})
    stein = kernels.stein(-x)
    (of_density,) = compare(x, {"few": ROWS}, kernel=stein, weights=repeats, standardize=False)
    assert of_density.mmd == mmd(x, ROWS, kernel=stein, standardize=False)  # no part in a KSD
    assert of_density[3:] == compare(x, {"few": ROWS}, weights=repeats)[0][3:]
    with pytest.raises(ValueError, match=r"^weights must be numbers of shape \(150,\)"):
        compare(x, {"few": ROWS}, weights=[1.0])


def test_compare_prints_a_table():
    table = compare(X, {"a": ROWS, "a longer name": [0]}, bandwidth=1.0)
    head, first, second = str(table).splitlines()
    assert head.split() == [
        "coreset", "size", "MMD", "energy", "mean", "tails", "covariance", "worst", "column",
    ]  # fmt: skip
    row = table[0]
    tails = max(each.tails for each in row.columns)
    values = (row.mmd, row.energy, row.mean, tails, row.covariance)
    assert first.split() == ["a", "20", *(f"{value:.5f}" for value in values), row.worst.column]
    assert second.startswith("a longer name       1 ")
    assert len(first) == len(second) == head.index("worst column") + 1
    printed = []
    table._repr_pretty_(type("Printer", (), {"text": printed.append}), False)
    assert printed == [str(table)]


def test_far_from_the_origin():
    """Distances are subtracted first: moving all points changes only what moving rounds."""
    grid = np.round(X * 2**20) / 2**20  # exact after the shift by 2^20
    for kernel in ("gaussian", "laplace", "energy", "matern"):
        here = mmd(grid, ROWS, kernel=kernel, bandwidth=1.0)
        assert mmd(grid + 2.0**20, ROWS, kernel=kernel, bandwidth=1.0) == here
    assert math.isclose(median_distance(grid + 2.0**20), median_distance(grid), rel_tol=1e-12)


def test_units_do_not_matter():
    here = mmd(X, ROWS, bandwidth=1.0)
    assert mmd(X * 2.0**300, ROWS, bandwidth=2.0**300) == here
    assert mmd(X * 2.0**-300, ROWS, bandwidth=2.0**-300) == here
    each = mmd(X * [1, 2, 4], ROWS, bandwidth=[1, 2, 4])
    assert each == here


def test_threads_change_no_bit():
    points = np.random.default_rng(0).normal(size=(1500, 2))
    rows = np.arange(0, 1500, 13)
    results = []
    for threads in (1, 2, 5):
        set_num_threads(threads)
        results.append(
            (
                mmd(points, rows),
                mmd2_unbiased(points, points[rows]),
                *compare(points, {"some": rows})[0][2:6],
            )
        )
    assert results[0] == results[1] == results[2]


def test_chunks_change_no_bit():
    """A point's sum is the same whatever points stand beside it."""
    problem = as_problem(X, kernels.gaussian(1.3))
    every, weights = np.arange(150), WEIGHTS
    whole = embed(problem, every, every, weights)
    parts = [embed(problem, every[i : i + 7], every, weights) for i in range(0, 150, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    sets = np.stack([every, every[::-1]])
    both = square(problem, sets, np.full(150, 1 / 150))
    for i in range(2):
        assert square(problem, sets[i : i + 1], np.full(150, 1 / 150))[0] == both[i]


def test_calls_from_several_threads():
    results = []

    def call():
        results.append(mmd(X, ROWS, bandwidth=1.0))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [mmd(X, ROWS, bandwidth=1.0)] * 4


def test_memory_is_that_of_the_points():
    """No Gram matrix: of 20,000 points it would be 3.2 GB."""
    points = np.random.default_rng(0).normal(size=(20_000, 2))
    tracemalloc.start()
    try:
        mmd(points, np.arange(0, 20_000, 100), bandwidth=1.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * points.nbytes


def test_the_points_are_not_changed():
    points = X.copy()
    points.flags.writeable = False
    mmd(points, ROWS, weights=WEIGHTS)
    mmd2_unbiased(points, points[ROWS])
    compare(points, {"some": ROWS})
    np.testing.assert_array_equal(points, X)


NAN = np.where(X > 2, np.nan, X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mmd(X[0], [0]), ValueError, r"^points must have shape \(n, d\); got shape \(3,\)"),
        (lambda: mmd(NAN, [0]), ValueError, "^points must be finite; it holds NaN or infinity$"),
        (lambda: mmd(NAN, [0], bandwidth=1.0), ValueError, "^points must be finite; it holds NaN"),
        (
            lambda: mmd(X, [150]),
            ValueError,
            "^coreset must hold rows from 0 to 149; got 150 to 150$",
        ),
        (
            lambda: mmd(X, [-1, 3]),
            ValueError,
            "^coreset must hold rows from 0 to 149; got -1 to 3$",
        ),
        (lambda: mmd(X, [0.5]), ValueError, r"^coreset must have shape \(n, d\); got shape \(1,\)"),
        (lambda: mmd(X, []), ValueError, r"^coreset must have shape \(n, d\); got shape \(0,\)"),
        (
            lambda: mmd(X, X[:0]),
            ValueError,
            r"^coreset must have at least one point; got shape \(0",
        ),
        (
            lambda: mmd(X, X[:, :2]),
            ValueError,
            "^coreset must have the 3 dimensions of points; got 2",
        ),
        (lambda: mmd(X, NAN, bandwidth=1.0), ValueError, "^coreset must be finite; it holds NaN"),
        (lambda: mmd(X, "rows"), TypeError, "^coreset must be float16, float32 or float64; got"),
        (
            lambda: mmd(X, [0], target="zero"),
            ValueError,
            "^target must be one of 'auto', 'sample', 'mean-z",
        ),
        (
            lambda: mmd(X, [0], weights=[1, 2]),
            ValueError,
            r"^weights must be numbers of shape \(150,\); got dtype int64, shape \(2,\)$",
        ),
        (
            lambda: mmd(X, [0], weights=np.zeros(150)),
            ValueError,
            "^weights must be finite and have a finite sum, none of them negative and not all zero",
        ),
        (
            lambda: mmd(X, [0], kernel="rbg"),
            ValueError,
            "^kernel must be a Kernel or one of .*'rbg'$",
        ),
        (
            lambda: mmd(X, [0], bandwidth="scott"),
            ValueError,
            "^bandwidth must be a positive number, one for each dimension or 'median'; got 'scott'",
        ),
        (
            lambda: mmd(X, [0], kernel=kernels.gaussian(), bandwidth=1.0),
            ValueError,
            "^bandwidth is part of the kernel 'gaussian', or it has none; got 1.0 besides$",
        ),
        (
            lambda: mmd(X, X[:5], kernel=kernels.stein(-X), target="mean-zero"),
            ValueError,
            r"^coreset must hold rows of points for kernel stein; got .* shape \(5, 3\)$",
        ),
        (
            lambda: mmd(np.eye(9), np.eye(9), kernel="precomputed"),
            ValueError,
            "^coreset must hold rows of points for kernel precomputed; got",
        ),
        (
            lambda: mmd(X, [0], kernel="precomputed"),
            ValueError,
            r"^points must be a Gram matrix \(n, n\) for kernel='precomputed'; got \(150, 3\)$",
        ),
        (
            lambda: mmd(np.triu(np.ones((5, 5))), [0], kernel="precomputed"),
            ValueError,
            "^points must be symmetric; got entries that differ by 1 from their mirror$",
        ),
        (lambda: mmd2_unbiased(X[:1], X), ValueError, "^x must have at least two points; got 1$"),
        (lambda: mmd2_unbiased(X, X[:1]), ValueError, "^y must have at least two points; got 1$"),
        (
            lambda: mmd2_unbiased(X, X[:, 1:]),
            ValueError,
            "^y must have the 3 dimensions of x; got 2$",
        ),
        (
            lambda: mmd2_unbiased(X, X[0]),
            ValueError,
            r"^y must have shape \(n, d\); got shape \(3,\)",
        ),
        (lambda: mmd2_unbiased(X + 1j, X), TypeError, "^x must be float16.*got dtype complex128"),
        (lambda: mmd2_unbiased(NAN, X), ValueError, "^x must be finite; it holds NaN or infinity$"),
        (lambda: mmd2_unbiased(X, NAN), ValueError, "^y must be finite; it holds NaN or infinity$"),
        (
            lambda: compare(X, [ROWS]),
            TypeError,
            "^coresets must be a dict of rows by name; got list$",
        ),
        (
            lambda: compare(X, {"a": X[:5]}),
            ValueError,
            r"^coresets\['a'\] must hold rows of points; got points of its own$",
        ),
        (
            lambda: compare(X, {"a": [0], "b": [150]}),
            ValueError,
            r"^coresets\['b'\] must hold rows from 0 to 149; got 150 to 150$",
        ),
        (
            lambda: median_distance(np.ones((5, 2))),
            ValueError,
            "^bandwidth='median' needs points that differ; all 5 that were looked at are equal$",
        ),
        (
            lambda: mmd(X, ROWS, weights=WEIGHTS, target="mean-zero"),
            ValueError,
            "^weights are of the points, with which target='mean-zero' has no part; leave them "
            "out, or compare with the points: target='sample'$",
        ),
        (lambda: median_distance(X[0]), ValueError, r"^points must have shape \(n, d\); got"),
        (lambda: median_distance(NAN), ValueError, "^points must be finite; it holds NaN or infin"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
