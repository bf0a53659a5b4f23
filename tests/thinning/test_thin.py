"""`thin`: what holds for any points, weights, threads and methods, and bad input."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from points import SWAPPED, X, assert_rows, mixture

from thinformer import kernels, mmd, set_num_threads, thin
from thinformer.kernels import phi
from thinformer.thinning.methods import BLIND, METHODS

EACH_METHOD = pytest.mark.parametrize("method", METHODS)


def laid_out(array, layout):
    """The same numbers in other places of memory."""
    n, d = array.shape
    if layout == "F":
        return np.asfortranarray(array)
    if layout == "reversed":
        return array[::-1].copy()[::-1]
    if layout == "every third":
        wide = np.zeros((3 * n, 2 * d), array.dtype)
        wide[::3, 1::2] = array
        return wide[::3, 1::2]
    if layout == "swapped":
        return array.astype(array.dtype.newbyteorder())
    return array


@given(st.data())
def test_any_points_any_size_any_method(data):
    n = data.draw(st.integers(1, 300), "n")
    size = data.draw(st.integers(1, n), "size")
    method = data.draw(st.sampled_from(METHODS), "method")
    dtype = data.draw(st.sampled_from(["f2", "f4", "f8", "i4", "?"]), "dtype")
    layout = data.draw(st.sampled_from(["C", "F", "reversed", "every third", "swapped"]), "layout")
    weighted = data.draw(st.booleans(), "weighted")
    settings = {
        "method": method,
        "g": data.draw(st.integers(0, 5), "g"),
        "refine": data.draw(st.booleans(), "refine"),
        "unique": data.draw(st.booleans(), "unique"),
        "kernel": data.draw(st.sampled_from(["gaussian", "laplace", "energy"]), "kernel"),
        "bandwidth": 1.0,
        "rng": data.draw(st.integers(0, 2**32), "rng"),
        "weights": [*np.random.default_rng(n).integers(0, 3, n - 1), 1] if weighted else None,
    }
    points = (3 * np.random.default_rng(n).normal(size=(n, 2))).astype(dtype)
    rows = thin(laid_out(points, layout), size, **settings)
    assert_rows(rows, n, size, settings["unique"])
    np.testing.assert_array_equal(rows, thin(points, size, **settings))  # again, and wherever


@EACH_METHOD
def test_a_seed_gives_the_same_rows(method):
    first = thin(X, 20, method=method, rng=1)
    np.testing.assert_array_equal(first, thin(X, 20, method=method, rng=np.int64(1)))
    np.testing.assert_array_equal(first, thin(X, 20, method=method, rng=np.random.default_rng(1)))
    others = [thin(X, 20, method=method, refine=False, rng=seed) for seed in range(2, 6)]
    if method not in ("greedy", "standard"):  # which draw nothing
        assert any(first.tolist() != other.tolist() for other in others)
    thin(X, 20, method=method)  # fresh numbers


@EACH_METHOD
@pytest.mark.parametrize("size", [20, 300])
def test_a_generator_is_advanced_by_one_number(method, size):
    used, counted = np.random.default_rng(5), np.random.default_rng(5)
    thin(X, size, method=method, rng=used)
    counted.integers(2**64, dtype=np.uint64)
    assert used.bit_generator.state == counted.bit_generator.state


@EACH_METHOD
def test_the_input_is_not_touched(method, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    frozen, weights = X.copy(), np.arange(300.0)
    frozen.flags.writeable = weights.flags.writeable = False
    expected = thin(X, 20, method=method, rng=0, weights=weights)
    for points in (mapped, frozen):
        np.testing.assert_array_equal(
            thin(points, 20, method=method, rng=0, weights=weights), expected
        )
        np.testing.assert_array_equal(points, X)
    np.testing.assert_array_equal(weights, np.arange(300))


@EACH_METHOD
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_threads_change_nothing(method, dtype):
    points = mixture(3000).astype(dtype)
    results = []
    for threads in (1, 2, 5):
        set_num_threads(threads)
        results.append(thin(points, 16, method=method, bandwidth=1.0, rng=0).tolist())
    assert results[0] == results[1] == results[2]


@EACH_METHOD
def test_all_points(method):
    for n in (1, 2, 31):
        rows = thin(X[:n], n, method=method, bandwidth=1.0, rng=0)
        np.testing.assert_array_equal(rows, np.arange(n))


@EACH_METHOD
def test_far_from_the_origin(method):
    """Moving all points by a number that leaves their differences exact changes nothing."""
    grid = np.round(X * 2**20) / 2**20
    here = thin(grid, 20, method=method, bandwidth=1.0, rng=0)
    np.testing.assert_array_equal(
        thin(grid + 2.0**20, 20, method=method, bandwidth=1.0, rng=0), here
    )


@EACH_METHOD
def test_units_do_not_matter(method):
    here = thin(X, 20, method=method, rng=0)
    np.testing.assert_array_equal(thin(X * 2.0**100, 20, method=method, rng=0), here)
    each = thin(X * [1, 8], 20, method=method, bandwidth=[2.0, 16.0], rng=0)
    np.testing.assert_array_equal(each, thin(X, 20, method=method, bandwidth=2.0, rng=0))


@EACH_METHOD
@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "energy"])
def test_points_that_are_all_equal(method, kernel):
    same = np.full((50, 2), 0.1)
    for unique in (True, False):
        rows = thin(same, 12, method=method, kernel=kernel, bandwidth=1.0, unique=unique, rng=0)
        assert_rows(rows, 50, 12, unique)
    if method in BLIND:
        assert_rows(thin(same, 12, method=method, kernel=kernel), 50, 12, True)
        return
    with pytest.raises(ValueError, match="^bandwidth='median' needs points that differ; all 50"):
        thin(same, 12, method=method, kernel=kernel)


def test_pairs_of_equal_points():
    """A point that comes twice stands for two: chosen or not, rows stay distinct."""
    double = np.repeat(X[:100], 2, axis=0)
    for method in METHODS:
        assert_rows(thin(double, 60, method=method, rng=0), 200, 60)


def test_one_point():
    assert thin(X[:1], 1).tolist() == [0]
    assert mmd(X[:1], [0]) == 0


# weights


@EACH_METHOD
def test_equal_weights_are_no_weights(method):
    expected = thin(X, 20, method=method, rng=0)
    for weights in (np.full(300, 0.7), np.ones(300, int), [True] * 300):
        np.testing.assert_array_equal(thin(X, 20, method=method, rng=0, weights=weights), expected)


@EACH_METHOD
def test_a_weighted_sample_is_represented(method):
    """Better than by the rows that are chosen without its weights."""
    points = mixture(1000)
    weights = np.exp(points[:, 0] / 2)
    weighted, unweighted = [], []
    for seed in range(3):
        for errors, given_weights in ((weighted, weights), (unweighted, None)):
            rows = thin(points, 25, method=method, weights=given_weights, rng=seed, bandwidth=1.5)
            errors.append(mmd(points, rows, weights=weights, bandwidth=1.5))
    assert np.mean(weighted) < np.mean(unweighted) / 1.5
    if method in SWAPPED:
        assert np.mean(weighted) < np.mean(unweighted) / 5


@EACH_METHOD
def test_weights_have_no_unit(method):
    weights = np.random.default_rng(0).integers(1, 9, 300).astype(float)
    expected = thin(X, 20, method=method, rng=0, weights=weights)
    np.testing.assert_array_equal(
        thin(X, 20, method=method, rng=0, weights=weights * 2.0**40), expected
    )


@EACH_METHOD
@pytest.mark.parametrize("refine", [True, False])
def test_rows_without_weight_are_not_chosen(method, refine):
    weights = np.zeros(300)
    weighing = np.random.default_rng(0).choice(300, 60, replace=False)
    weights[weighing] = np.random.default_rng(1).uniform(0.5, 1, 60)
    for size in (1, 10, 60):
        rows = thin(X, size, method=method, rng=0, weights=weights, refine=refine)
        assert_rows(rows, 300, size)
        assert set(rows) <= set(weighing)
    rows = thin(X, 70, method=method, rng=0, weights=weights, refine=refine)
    assert_rows(rows, 300, 70)


@EACH_METHOD
def test_rows_repeat_where_they_may(method):
    weights = np.zeros(300)
    weights[[5, 100, 250]] = [3, 2, 1]
    rows = thin(X, 12, method=method, rng=0, weights=weights, unique=False)
    assert_rows(rows, 300, 12, distinct=False)
    assert set(rows) <= {5, 100, 250}
    counts = np.bincount(rows, minlength=300)[[5, 100, 250]]
    if method == "random":
        assert counts.max() > 1
    else:
        assert counts.tolist() == [6, 4, 2]


NAN = np.where(X > 2, np.nan, X)
STEIN = kernels.stein(-X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "^size must be an integer of at least 1; got 0$"),
        ({"size": 2.0}, "^size must be an integer of at least 1; got 2.0$"),
        ({"size": True}, "^size must be an integer of at least 1; got True$"),
        ({"size": 301}, "^size must be at most the 300 points there are; got 301$"),
        ({"points": NAN}, "^points must be finite; it holds NaN or infinity$"),
        ({"points": NAN, "bandwidth": 1.0}, "^points must be finite; it holds NaN or infinity$"),
        ({"points": NAN, "method": "random"}, "^points must be finite; it holds NaN or infinity$"),
        ({"points": X * np.nan}, "^points must be finite; it holds NaN or infinity$"),
        ({"points": X[:, 0]}, r"^points must have shape \(n, d\); got shape \(300,\) \(one column"),
        ({"method": "compress"}, r"^method must be one of 'compress\+\+', .*; got 'compress'$"),
        ({"method": None}, "^method must be one of .*; got None$"),
        ({"target": "zero"}, "^target must be one of 'auto', 'sample', 'mean-zero'; got 'zero'$"),
        ({"device": "tpu"}, "^device must be one of 'auto', 'cpu'.*; got 'tpu'$"),
        ({"g": -1}, "^g must be an integer of at least 0; got -1$"),
        ({"g": 1.5}, "^g must be an integer of at least 0; got 1.5$"),
        ({"delta": 0}, r"^delta must lie in \(0, 1\]; got 0$"),
        ({"delta": 1.5}, r"^delta must lie in \(0, 1\]; got 1.5$"),
        ({"rng": -1}, "^rng must be None, a non-negative int or a numpy.random.Generator; got -1$"),
        (
            {"weights": np.ones(3)},
            r"^weights must be numbers of shape \(300,\); got dtype float64, ",
        ),
        ({"weights": np.ones((300, 1))}, r"^weights must .*, shape \(300, 1\)$"),
        ({"weights": ["a"] * 300}, r"^weights must be numbers of shape \(300,\); got dtype <U1"),
        ({"weights": np.zeros(300)}, "^weights must be finite .* not all zero$"),
        ({"weights": -np.ones(300)}, "^weights must be finite .* none of them negative"),
        ({"weights": NAN[:, 0]}, "^weights must be finite"),
        ({"weights": np.full(300, 1e307)}, "^weights must be finite and have a finite sum"),
        ({"kernel": "gausian"}, "^kernel must be a Kernel or one of energy, .*; got 'gausian'$"),
        ({"kernel": None}, "^kernel must be a Kernel or one of energy, .*; got None$"),
        ({"kernel": kernels.gaussian}, r"^kernel must be .* \(call it: gaussian\(\)\)$"),
        ({"kernel": lambda x, y: x[0]}, "^kernel must be symmetric; got entries that differ by"),
        (
            {"kernel": lambda x, y: "no"},
            "^kernel must return finite numbers; on some of the points",
        ),
        ({"kernel": "precomputed"}, r"^points must be a Gram matrix \(n, n\) .*got \(300, 2\)$"),
        ({"kernel": "sobolev"}, r"^points must lie in \[0, 1\] for kernel sobolev; got -"),
        (
            {"kernel": kernels.stein(-X[:9])},
            r"^scores must have the shape of the points \(300, 2\); got \(9, 2\)$",
        ),
        ({"bandwidth": 0}, "^bandwidth must be positive and finite; got 0$"),
        ({"bandwidth": [1, -1]}, "^bandwidth must be positive and finite; got -1.0$"),
        (
            {"bandwidth": [1, 2, 3]},
            "^bandwidth must have one number for each of 2 dimensions; got 3$",
        ),
        (
            {"bandwidth": "scott"},
            "^bandwidth must be a positive number, .* or 'median'; got 'scott'$",
        ),
        ({"bandwidth": None}, "^bandwidth must be a positive number, .* or 'median'; got None$"),
        (
            {"kernel": "linear", "bandwidth": 1.0},
            "^bandwidth is part of the kernel 'linear', or it ",
        ),
        (
            {"kernel": kernels.gaussian(), "bandwidth": 1.0},
            "^bandwidth is part of the kernel 'gaussian', or it has none; got 1.0 besides$",
        ),
        ({"points": np.ones((9, 2))}, "^bandwidth='median' needs points that differ; all 9 that"),
        (
            {"kernel": STEIN, "target": "mean-zero", "method": "halving"},
            r"^target='mean-zero' takes method 'compress\+\+' or 'kernel-thinning' or 'greedy', "
            "and refine=True; got refine=True, method='halving'$",
        ),
        (
            {"kernel": STEIN, "target": "mean-zero", "refine": False},
            "^target='mean-zero' takes .* got refine=False, method='compress",
        ),
        (
            {"kernel": STEIN, "method": "kh-compress"},
            "^kernel stein has target='mean-zero' unless you say target='sample'. "
            r"target='mean-zero' takes method 'compress\+\+' or .*, method='kh-com",
        ),
        (
            {"kernel": 2.0 * STEIN, "refine": False},
            "^kernel stein has target='mean-zero' unless .* got refine=False, method='compress",
        ),
        (
            {"kernel": "energy", "target": "mean-zero"},
            "^target='mean-zero' takes a positive definite kernel; energy is not$",
        ),
        (
            {"kernel": kernels.gaussian() + kernels.energy(), "target": "mean-zero"},
            "^target='mean-zero' takes a positive definite kernel; energy is not$",
        ),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, dict) else "",
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        thin(**({"points": X, "size": 5} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": X + 1j}, "^points must be float16, float32 or float64; got dtype complex128$"),
        (
            {"points": X.astype(object)},
            "^points must be float16, float32 or float64; got dtype obj",
        ),
        ({"rng": "seed"}, "^rng must be None, a non-negative int or .*; got 'seed'$"),
        ({"rng": np.random.RandomState}, "^rng must be None, a non-negative int or"),
    ],
)
def test_bad_types(arguments, message):
    with pytest.raises(TypeError, match=message):
        thin(**({"points": X, "size": 5} | arguments))


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 400, 1100, 2400])
def test_heavy_and_light_weights(size):
    """Rows that weigh too little for a copy can be chosen, and blocks get their share."""
    rng = np.random.default_rng(0)
    points, weights = rng.normal(size=(9000, 2)), np.exp(3 * rng.normal(size=9000))
    settings = {"weights": weights, "bandwidth": 1.6}
    error = mmd(points, thin(points, size, rng=0, **settings), **settings)
    random = mmd(
        points, thin(points, size, method="random", unique=False, rng=0, **settings), **settings
    )
    assert error < random / 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"refine": "no"}, TypeError, "^refine must be True or False; got 'no'$"),
        ({"unique": None}, TypeError, "^unique must be True or False; got None$"),
        ({"kernel": np.eye(300)}, ValueError, "^kernel must be a Kernel or one of"),
        ({"method": np.array(["a", "b"])}, ValueError, "^method must be one of"),
        (
            {"kernel": "gausian", "method": "random"},
            ValueError,
            "^kernel must be a Kernel or one of .*; got 'gausian'$",
        ),
        (
            {"kernel": kernels.Kernel("t", phi.TABLE, companion=np.eye(5))},
            ValueError,
            "^points must be a Gram matrix",
        ),
        ({"kernel": kernels.Kernel("t", phi.PAIRWISE)}, TypeError, "^kernel must be comp|call"),
    ],
)
def test_more_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        thin(X, 5, rng=0, **arguments)
