"""Every kernel against its formula, scikit-learn and SciPy, through the compiled loops."""

import math
import warnings

import numba
import numpy as np
import pytest
from scipy import special, stats
from sklearn.gaussian_process.kernels import Matern, RationalQuadratic
from sklearn.metrics.pairwise import linear_kernel, polynomial_kernel, rbf_kernel

from reference import kernels as reference_kernels
from thinformer import kernels, mmd
from thinformer.cpu.points import diagonal, embed, square
from thinformer.kernels import catalogue, phi
from thinformer.thinning.arguments import as_problem, resolve

PHI = {
    phi.LINEAR: phi.phi_linear,
    phi.POLYNOMIAL: phi.phi_polynomial,
    phi.EXPONENTIAL: phi.phi_exponential,
    phi.GAUSSIAN: phi.phi_gaussian,
    phi.LAPLACE: phi.phi_laplace,
    phi.INVERSE_MULTIQUADRIC: phi.phi_inverse_multiquadric,
    phi.MATERN_3_2: phi.phi_matern_3_2,
    phi.MATERN_5_2: phi.phi_matern_5_2,
    phi.RATIONAL_QUADRATIC: phi.phi_rational_quadratic,
    phi.ENERGY: phi.phi_energy,
}
PARAMETERS = {
    "linear": [{}, {"constant": 2.5}],
    "polynomial": [{}, {"degree": 2, "constant": 0.5, "bandwidth": 1.7}],
    "exponential": [{}, {"bandwidth": 1.7}],
    "gaussian": [{}, {"bandwidth": 0.6}],
    "laplace": [{}, {"bandwidth": 0.6}],
    "inverse_multiquadric": [{}, {"bandwidth": 0.6}],
    "matern": [{}, {"bandwidth": 0.6}, {"nu": 0.5}, {"bandwidth": 0.6, "nu": 2.5}],
    "rational_quadratic": [{}, {"bandwidth": 0.6, "alpha": 2.5}, {"alpha": 0.3}],
    "energy": [{}, {"bandwidth": 0.6}],
    "sobolev": [{}, {"smoothness": 2}, {"smoothness": 3}],
}
# compiled code has no branch on the dtype, and takes 7 s to compile for these sums
SINGLE = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(np.float64, 1e-12, id="float64"),
        pytest.param(np.float32, 2e-5, id="float32", marks=pytest.mark.nightly),
    ],
)
CASES = [(name, parameters) for name, listed in PARAMETERS.items() for parameters in listed]
WITH_BANDWIDTH = sorted(set(catalogue.KERNELS) - set(catalogue.WITHOUT_BANDWIDTH))
N = 70  # more than two panels
X = np.random.default_rng(0).uniform(size=(N, 3))  # in the unit cube, for sobolev
PRECISION = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 2e-5)], ids=["float64", "float32"]
)


def gram(kernel, points=X, dtype=np.float64):
    """The Gram matrix of some points, each entry by the loop that sums kernel values."""
    problem = as_problem(points.astype(dtype, copy=False), kernel)
    every = np.arange(len(points))
    columns = [embed(problem, every, every[j : j + 1], np.ones(1)) for j in every]
    np.testing.assert_array_equal(diagonal(problem, every), np.diagonal(columns))
    return np.column_stack(columns)


def assert_close(got, expected, tolerance):
    """Entries agree relative to the largest: a Stein kernel's cancel."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_phi_is_the_kernel(name, parameters):
    """phi of the scaled points' products and norms is k(x, y) by its definition."""
    kernel = catalogue.KERNELS[name](**parameters)
    expected = getattr(reference_kernels, name)(X[:20], X[:20], **parameters)
    for i in range(20):
        for j in range(20):
            a, b = kernel.scale * X[i], kernel.scale * X[j]
            if name == "sobolev":
                factors = [
                    phi.sobolev_factor(s, t, kernel.coefficients) for s, t in zip(a, b, strict=True)
                ]
                got = math.prod(factors) - 1
            else:
                of_distance = kernel.tag >= phi.OF_DISTANCE
                entry = (a - b) @ (a - b) if of_distance else a @ b
                got = PHI[kernel.tag](entry, kernel.constant, kernel.degree)
            assert math.isclose(got, expected[i, j], rel_tol=1e-12, abs_tol=1e-12)


@PRECISION
@pytest.mark.parametrize(("name", "parameters"), CASES)
def test_compiled_values_are_the_formula(name, parameters, dtype, tolerance):
    points = X.astype(dtype).astype(np.float64)
    expected = getattr(reference_kernels, name)(points, points, **parameters)
    assert_close(gram(catalogue.KERNELS[name](**parameters), points, dtype), expected, tolerance)


@PRECISION
@pytest.mark.parametrize(
    ("kernel", "theirs"),
    [
        (kernels.linear(), linear_kernel),
        (kernels.linear(0.5), lambda x: linear_kernel(x) + 0.5),
        (
            kernels.polynomial(4, 0.25, bandwidth=0.7),
            lambda x: polynomial_kernel(x, degree=4, gamma=1 / 0.7**2, coef0=0.25),
        ),
        (kernels.exponential(0.9), lambda x: np.exp(linear_kernel(x) / 0.9**2)),
        (kernels.gaussian(0.7), lambda x: rbf_kernel(x, gamma=1 / (2 * 0.7**2))),
        (kernels.laplace(0.7), Matern(length_scale=0.7, nu=0.5)),
        (kernels.matern(0.7, nu=0.5), Matern(length_scale=0.7, nu=0.5)),
        (kernels.matern(0.7), Matern(length_scale=0.7, nu=1.5)),
        (kernels.matern(0.7, nu=2.5), Matern(length_scale=0.7, nu=2.5)),
        (kernels.inverse_multiquadric(0.7), RationalQuadratic(length_scale=0.7, alpha=0.5)),
        (kernels.rational_quadratic(0.7, 1.7), RationalQuadratic(length_scale=0.7, alpha=1.7)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_scikit_learn_has_the_same(kernel, theirs, dtype, tolerance):
    points = X.astype(dtype).astype(np.float64)
    assert_close(gram(kernel, points, dtype), theirs(points), tolerance)


@PRECISION
@pytest.mark.parametrize("name", WITH_BANDWIDTH)
def test_bandwidths_of_each_dimension(name, dtype, tolerance):
    """One a dimension is the kernel of the points divided by them; equal ones are one number."""
    bandwidths = [0.5, 2.0, 1.25]
    points = X.astype(dtype).astype(np.float64)
    make, formula = catalogue.KERNELS[name], getattr(reference_kernels, name)
    scaled = points / bandwidths
    assert_close(
        gram(make(bandwidth=bandwidths), points, dtype), formula(scaled, scaled), tolerance
    )
    equal = gram(make(bandwidth=np.full(3, 0.75)), points, dtype)
    np.testing.assert_array_equal(equal, gram(make(bandwidth=0.75), points, dtype))


def test_bandwidths_of_each_dimension_are_length_scales():
    lengths = [0.5, 2.0, 1.25]
    theirs = Matern(length_scale=lengths, nu=2.5)(X)
    assert_close(gram(kernels.matern(lengths, nu=2.5)), theirs, 1e-12)


@SINGLE
def test_sums_and_weights(dtype, tolerance):
    gaussian, laplace = kernels.gaussian(1), kernels.laplace([2, 1, 0.5])
    of_gaussian, of_laplace = gram(gaussian, dtype=dtype), gram(laplace, dtype=dtype)
    both = 2.0 * gaussian + laplace
    assert_close(gram(both, dtype=dtype), 2 * of_gaussian + of_laplace, tolerance)
    assert_close(gram(both * 0.5, dtype=dtype), of_gaussian + of_laplace / 2, tolerance)
    three = 3 * both + kernels.sobolev() + kernels.linear(1.0)
    of_others = gram(kernels.sobolev(), dtype=dtype) + gram(kernels.linear(1.0), dtype=dtype)
    expected = 6 * of_gaussian + 3 * of_laplace + of_others
    assert_close(gram(three, dtype=dtype), expected, tolerance)
    assert_close(gram(4 * gaussian, dtype=dtype), 4 * of_gaussian, tolerance)
    assert [term.weight for term in three.summands] == [6, 3, 1, 1]
    assert gaussian.weight == 1  # not changed in place


def test_sums_and_weights_of_the_right_kind():
    with pytest.raises(TypeError, match="unsupported operand"):
        kernels.gaussian() + 1
    for factor in (0, -1.0, math.nan, "2"):
        with pytest.raises(
            ValueError, match=f"^factor must be positive and finite; got {factor!r}"
        ):
            factor * kernels.gaussian()
    for other in (kernels.stein(X), kernels.pairwise(max), kernels.of_products(own_phi)):
        with pytest.raises(ValueError, match="^a sum takes no Stein kernel and no kernel of your"):
            kernels.gaussian() + other


@numba.njit  # noqa: TID251 - as users do
def own_kernel(x, y):
    return math.exp(-0.5 * np.sum((x - y) ** 2))


@numba.njit  # noqa: TID251 - as users do
def own_phi(product, x_norm, y_norm):
    return math.exp(-0.5 * (x_norm + y_norm - 2 * product))


@pytest.mark.slow
@pytest.mark.parametrize(
    "kernel", [kernels.pairwise(own_kernel), kernels.of_products(own_phi)], ids=lambda k: k.name
)
def test_compiled_kernels_of_your_own(kernel):
    problem = as_problem(X, kernel)
    every, weights = np.arange(N), np.random.default_rng(0).normal(size=N)
    got = embed(problem, every, every, weights)
    np.testing.assert_allclose(got, gram(kernels.gaussian()) @ weights, rtol=0, atol=1e-13)


def test_a_python_function_and_a_gram_matrix():
    """Tabulated once: the same values, and half of the calls that a matrix has entries."""
    calls = []

    def function(x, y):
        calls.append(1)
        return own_kernel.py_func(x, y)

    with pytest.warns(UserWarning, match=f"plain Python: it is called {N * (N + 1) // 2} times"):
        of_function = gram(resolve(function, "median", X, 0))
    assert len(calls) == N * (N + 1) // 2 + 64  # and a few in all pairs, to see that it works
    expected = rbf_kernel(X, gamma=0.5)
    np.testing.assert_allclose(of_function, expected, rtol=1e-14)
    expected = (expected + expected.T) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_table = gram(resolve("precomputed", "median", expected, 0), expected)
    np.testing.assert_array_equal(of_table, expected)
    few = expected.astype(np.float32)
    of_table = gram(resolve("precomputed", "median", few, 0), few, np.float32)
    np.testing.assert_array_equal(of_table, few)


def test_energy_is_scipys_energy_distance():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.normal(1.0, 2.0, size=33)
    distance = stats.energy_distance(x, y)
    assert math.isclose(
        mmd(x[:, None], y[:, None], kernel=kernels.energy()), distance, rel_tol=1e-12
    )
    half = mmd(x[:, None], y[:, None], kernel="energy", bandwidth=4.0)
    assert math.isclose(half, distance / 2, rel_tol=1e-12)
    weights = rng.uniform(size=50)
    assert math.isclose(
        mmd(x[:, None], y[:, None], kernel=kernels.energy(), weights=weights),
        stats.energy_distance(x, y, u_weights=weights),
        rel_tol=1e-12,
    )


@pytest.mark.parametrize("smoothness", [1, 2, 3])
def test_sobolev(smoothness):
    """SciPy's Bernoulli numbers, the Fourier series, and a mean of zero over the cube."""
    s, kernel = smoothness, kernels.sobolev(smoothness)
    t = np.linspace(0, 1, 41)
    numbers = special.bernoulli(2 * s)
    polynomial = sum(
        special.comb(2 * s, k) * numbers[k] * t ** (2 * s - k) for k in range(2 * s + 1)
    )
    scale = (-1) ** (s - 1) * (2 * np.pi) ** (2 * s) / special.factorial(2 * s)
    got = gram(kernel, t[:, None])[0]
    np.testing.assert_allclose(
        got, scale * polynomial, rtol=0, atol=1e-9
    )  # SciPy's numbers have 10 digits

    h = np.arange(1, 4000)
    series = 2 * (np.cos(2 * np.pi * np.outer(t, h)) / h ** (2.0 * s)).sum(axis=1)
    np.testing.assert_allclose(got, series, rtol=0, atol=6e-4 if s == 1 else 1e-9)

    # the mean of B_2s over a shifted grid of m numbers is B_2s(m x) / m^2s, which vanishes with m
    m = 16
    grid = np.stack(np.meshgrid(*[np.arange(m) / m] * 2), axis=-1).reshape(-1, 2)
    problem = as_problem(grid, kernel)
    means = embed(problem, np.arange(m * m), np.arange(m * m), np.full(m * m, m**-2.0))
    of_grid = (1 + scale * numbers[2 * s] / m ** (2 * s)) ** 2 - 1
    np.testing.assert_allclose(means, of_grid, rtol=1e-8, atol=1e-13)
    assert np.abs(means).max() < 0.03


def test_sobolev_stays_in_the_cube():
    for points in (X + 0.5, X - 0.5):
        with pytest.raises(
            ValueError, match=r"^points must lie in \[0, 1\] for kernel sobolev; got"
        ):
            gram(kernels.sobolev(), points)


@PRECISION
@pytest.mark.parametrize("bandwidth", [1.0, 0.6])
def test_stein_is_the_formula(bandwidth, dtype, tolerance):
    points = X.astype(dtype).astype(np.float64)
    scores = np.random.default_rng(1).normal(size=X.shape).astype(dtype).astype(np.float64)
    expected = reference_kernels.stein(points, points, scores, scores, bandwidth)
    assert_close(gram(kernels.stein(scores, bandwidth), points, dtype), expected, tolerance)


def test_stein_by_finite_differences():
    """Stein's operator applied to both arguments of the kernel, derivatives by differences."""
    bandwidth, h = 0.8, 1e-3
    scores = np.random.default_rng(1).normal(size=X.shape)

    def k(x, y):
        return (1 + np.sum((x - y) ** 2) / bandwidth**2) ** -0.5

    got = gram(kernels.stein(scores, bandwidth))
    for i, j in [(0, 1), (2, 2), (5, 60)]:
        x, y, s, t = X[i], X[j], scores[i], scores[j]
        expected = k(x, y) * (s @ t)
        for e in h * np.eye(3):
            of_x, of_y = (
                (k(x + e, y) - k(x - e, y)) / (2 * h),
                (k(x, y + e) - k(x, y - e)) / (2 * h),
            )
            expected += (of_x * (t @ e) + of_y * (s @ e)) / h
            corners = k(x + e, y + e) - k(x + e, y - e) - k(x - e, y + e) + k(x - e, y - e)
            expected += corners / (4 * h**2)
        assert math.isclose(got[i, j], expected, rel_tol=2e-5)


def test_stein_has_mean_zero():
    """Under a Gaussian, by the trapezoidal rule, which is exact to rounding for such integrands."""
    mean, deviation = np.array([0.5, -1.0]), np.array([1.0, 2.0])
    ticks = np.linspace(-9, 9, 181)
    standard = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    points = mean + deviation * standard
    weights = stats.norm.pdf(standard).prod(axis=1) * (ticks[1] - ticks[0]) ** 2
    assert math.isclose(weights.sum(), 1, rel_tol=1e-12)
    problem = as_problem(points, kernels.stein(-standard / deviation, 1.5))
    at = np.array([0, 16000, 16380, 18000, 32760])
    every = np.arange(len(points))
    means = embed(problem, at, every, weights)
    np.testing.assert_allclose(means, 0, atol=1e-12)
    assert diagonal(problem, at).min() > 0.5
    off = embed(problem, at, every, np.where(standard[:, 0] > 0, 2 * weights, 0))
    assert np.abs(off).max() > 0.05  # of another measure it is not


def test_squares_are_quadratic_forms():
    rng = np.random.default_rng(0)
    kernel = 2.0 * kernels.gaussian(0.5) + kernels.laplace(2)
    K, weights = gram(kernel), rng.normal(size=45)
    sets = np.array([rng.permutation(N)[:45] for _ in range(3)])
    got = square(as_problem(X, kernel), sets, weights)
    expected = [weights @ K[np.ix_(rows, rows)] @ weights for rows in sets]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_tags_are_distinct():
    made = [
        *(make() for make in catalogue.KERNELS.values()),
        kernels.matern(nu=2.5),
        kernels.stein(X),
        kernels.pairwise(own_kernel),
        kernels.of_products(own_phi),
    ]
    assert sorted(kernel.tag for kernel in made) == [*range(phi.TABLE)]


def test_names():
    for name, make in catalogue.KERNELS.items():
        assert catalogue.as_kernel(name).name == make().name == name == make.__name__
        assert set(PARAMETERS) == set(catalogue.KERNELS)
    assert catalogue.as_kernel("rbf", 3.0).name == "gaussian"
    assert catalogue.as_kernel("imq", 3.0).scale == 1 / 3
    assert catalogue.as_kernel("gaussian", [1.0, 2.0]).scale == kernels.gaussian([1, 2]).scale


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="kernel must be.*gaussian.*linear.*got 'gausian'"):
        catalogue.as_kernel("gausian")
    with pytest.raises(ValueError, match=r"kernel must be a Kernel.*\(call it: matern\(\)\)$"):
        catalogue.as_kernel(kernels.matern)


@pytest.mark.parametrize("bandwidth", [0, -1, math.nan, math.inf])
def test_bandwidth_must_be_positive(bandwidth):
    for name in WITH_BANDWIDTH:
        with pytest.raises(ValueError, match="bandwidth must be positive and finite"):
            catalogue.KERNELS[name](bandwidth=bandwidth)
        with pytest.raises(ValueError, match="bandwidth must be positive and finite"):
            catalogue.KERNELS[name](bandwidth=[1.0, bandwidth])
    with pytest.raises(ValueError, match="bandwidth must be positive and finite"):
        kernels.stein(X, bandwidth)


@pytest.mark.parametrize("bandwidth", [[], [[1.0]], ["1"], [1j], [True]])
def test_bandwidth_must_be_numbers(bandwidth):
    with pytest.raises(
        ValueError, match="^bandwidth must be a number or a sequence of one a dimen"
    ):
        kernels.gaussian(bandwidth)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kernels.matern(nu=2), ValueError, "^nu must be 0.5, 1.5 or 2.5; got 2$"),
        (lambda: kernels.sobolev(4), ValueError, "^smoothness must be 1, 2 or 3; got 4$"),
        (
            lambda: kernels.rational_quadratic(alpha=0),
            ValueError,
            "^alpha must be positive and fin",
        ),
        (lambda: kernels.stein(X[0]), ValueError, r"^scores must have shape \(n, d\); got"),
        (lambda: kernels.stein(X * math.nan), ValueError, "^scores must be finite; it holds NaN"),
        (lambda: kernels.pairwise("k"), TypeError, "^function must be callable; got 'k'"),
        (lambda: kernels.of_products(max), TypeError, "^phi must be compiled by numba.njit; got"),
    ],
)
def test_parameters_out_of_range(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (
            kernels.gaussian([1.0, 2.0]),
            "^bandwidth must have one number for each of 3 dim.*; got 2$",
        ),
        (
            kernels.stein(X[:9]),
            r"^scores must have the shape of the points \(70, 3\); got \(9, 3\)$",
        ),
        (kernels.gaussian(1e-320), "^kernel gaussian has a bandwidth beyond the range of float64"),
        (kernels.exponential(0.01), "^kernel exponential overflows on these points: .* reaches"),
        (kernels.pairwise(lambda x, y: x[0]), "^kernel must be symmetric; got entries that differ"),
        (kernels.pairwise(lambda x, y: math.nan), "^kernel must return finite numbers; on some"),
        (kernels.pairwise(lambda x, y: "k"), "^kernel must return finite numbers; on some"),
        (kernels.pairwise(lambda x, y: x - y), "^kernel must return finite numbers; on some"),
    ],
)
def test_kernels_that_do_not_fit_the_points(kernel, message):
    with pytest.raises(ValueError, match=message):
        as_problem(X, kernel)
