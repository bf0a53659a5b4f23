"""`two_sample_test`: the specification, the level, sizes of all kinds, and what it refuses."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit  # noqa: TID251
from specified import Specified

from reference import kernels as formulas
from reference import two_sample as reference
from thinformer import get_num_threads, kernels, set_num_threads, two_sample_test
from thinformer.thinning.arguments import as_problem
from thinformer.thinning.bins import (
    LARGEST,
    NUGGET,
    bins_of,
    compressed,
    paired_bins_of,
    products_of_bins,
    products_on_landmarks,
)
from thinformer.thinning.permutation import (
    in_deviations,
    permuted_weights,
    pvalue,
    squared_distances,
    swapped_weights,
)

KERNELS = {
    "gaussian": (kernels.gaussian(0.8), lambda x, y: formulas.gaussian(x, y, 0.8)),
    "laplace": (kernels.laplace(1.5), lambda x, y: formulas.laplace(x, y, 1.5)),
    "energy": (kernels.energy(), formulas.energy),
    "linear": (kernels.linear(1.0), lambda x, y: formulas.linear(x, y, 1.0)),
    "sum": (
        kernels.gaussian(0.5) + 2.0 * kernels.laplace(),
        lambda x, y: formulas.gaussian(x, y, 0.5) + 2 * formulas.laplace(x, y),
    ),
}
EACH_KERNEL = pytest.mark.parametrize("name", KERNELS)
METHODS = "exact", "landmarks", "compress"


X_LEAST = np.random.default_rng(0).normal(size=(80, 2))[:, 0].min()  # of `pair`


@njit
def nan_somewhere(a, b):
    return np.nan if a[0] == X_LEAST and b[0] > 1.5 else 1.0


def pair(n=80, m=120, d=2, seed=0, factor=1.0):
    """Normal samples; all of y is multiplied by the factor."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), factor * rng.normal(size=(m, d))


def parts(bins):
    """The points of each bin, and their weights."""
    cuts = bins.starts[1:-1]
    return np.split(bins.rows, cuts), np.split(bins.weights, cuts)


@given(st.integers(2, 300), st.integers(2, 300), st.integers(4, 80))
def test_bins_are_of_one_size(n, m, bins):
    made = bins_of(n, m, bins, np.random.default_rng(0))
    rows, weights = parts(made)
    assert np.unique(made.rows).size == made.rows.size == n + m
    assert all(each.max() < n for each in rows[: made.of_x])
    assert all(each.min() >= n for each in rows[made.of_x :])
    assert min(made.of_x, len(rows) - made.of_x) >= 1 + (min(n, m) > 1)
    assert len(rows) <= max(2 * bins, 3 * (n + m) / min(n, m))
    assert np.ptp(made.lengths) <= max(1, 0.5 * made.lengths.max())
    assert np.all(made.totals == pytest.approx(1))
    for each, share in zip(rows, weights, strict=True):
        np.testing.assert_allclose(share, 1 / each.size)


def test_of_a_sample_that_is_far_larger_a_part_is_drawn():
    made = bins_of(30, 100_000, 64, np.random.default_rng(0))
    assert made.lengths.size == LARGEST + 2
    assert made.of_x == 2
    assert set(made.lengths.tolist()) == {15}
    x, y = pair(30, 100_000)
    assert two_sample_test(x, y, rng=0, permutations=19).sizes == (30, 15 * LARGEST)


@given(st.data())
def test_products_of_bins_are_those_of_the_specification(data):
    kernel, formula = KERNELS[data.draw(st.sampled_from(sorted(KERNELS)), "kernel")]
    n, m = data.draw(st.integers(2, 90), "n"), data.draw(st.integers(2, 90), "m")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    points = rng.normal(size=(n + m, 3))
    if data.draw(st.booleans(), "weighted"):
        bins = paired_bins_of((rng.uniform(size=n), rng.uniform(size=m)), 12, rng)
    else:
        bins = bins_of(n, m, data.draw(st.integers(4, 70), "bins"), rng)
    drawn = np.sort(rng.permutation(bins.rows)[: data.draw(st.integers(2, 40), "landmarks")])
    K, problem = formula(points, points), as_problem(points, kernel)
    np.testing.assert_allclose(
        products_of_bins(problem, bins), reference.bin_products(K, *parts(bins)), atol=1e-12
    )
    np.testing.assert_allclose(
        products_on_landmarks(problem, bins, drawn),
        reference.landmark_products(K, *parts(bins), drawn, NUGGET),
        atol=1e-6 * np.abs(K).max(),  # the nugget is 1e-7
    )


def test_all_points_as_landmarks_lose_nothing():
    """Of differences of samples; 1e-7 of the mean is added to the diagonal."""
    points = np.random.default_rng(0).normal(size=(60, 2))
    bins = bins_of(25, 35, 12, np.random.default_rng(1))
    weights = permuted_weights(bins.lengths, bins.of_x, 20, np.random.default_rng(2))
    for kernel, _ in KERNELS.values():
        problem = as_problem(points, kernel)
        exact, within = (
            squared_distances([products], weights)
            for products in (
                products_of_bins(problem, bins),
                products_on_landmarks(problem, bins, np.arange(60)),
            )
        )
        np.testing.assert_allclose(within, exact, rtol=1e-4)


@EACH_KERNEL
@pytest.mark.parametrize("g", [0, 1])
def test_bins_are_thinned_as_the_specification_thins_points(name, g):
    kernel, formula = KERNELS[name]
    points = np.random.default_rng(0).normal(size=(530, 2))
    bins = bins_of(265, 265, 8, np.random.default_rng(1))  # of 66 and 67 points
    made = compressed(points, kernel, bins, g, np.random.default_rng(2))
    rows, weights = parts(made)
    rng, decided = np.random.default_rng(2), 0
    for b, each in enumerate(parts(bins)[0]):
        specified = Specified(points[each], formula, rng)
        expected = specified.compress_plus_plus(9 * 2**g - g, 4, 0.5)  # 8.12 and 16.25, rounded up
        if min(specified.margins) > 1e-12:
            decided += 1
            np.testing.assert_array_equal(rows[b], each[expected])
        np.testing.assert_allclose(weights[b], 1 / rows[b].size)
    assert decided >= 6


def test_small_bins_stay_as_they_are():
    points = np.random.default_rng(0).normal(size=(128, 2))
    bins = bins_of(64, 64, 8, np.random.default_rng(1))  # of 16 points
    assert compressed(points, kernels.gaussian(), bins, 2, np.random.default_rng(2)) is bins
    kept = compressed(points, kernels.gaussian(), bins, 1, np.random.default_rng(2))
    assert set(kept.lengths.tolist()) == {8}


def test_the_statistic_and_the_p_value_are_those_of_the_specification():
    rng = np.random.default_rng(0)
    matrices = [m @ m.T for m in rng.normal(size=(3, 12, 12))]
    for weights in (permuted_weights(np.full(12, 5), 4, 99, rng), swapped_weights(6, 99, rng)):
        statistics = in_deviations(squared_distances(matrices, weights)).max(axis=0)
        expected = reference.aggregated_test(matrices, weights)
        np.testing.assert_allclose((statistics[0], pvalue(statistics)), expected)


def test_weights_of_permutations():
    weights = permuted_weights(np.array([2, 3, 5, 4]), 2, 500, np.random.default_rng(0))
    np.testing.assert_allclose(weights[0], [2 / 5, 3 / 5, -5 / 9, -4 / 9])
    np.testing.assert_allclose(weights.sum(axis=1), 0, atol=1e-15)
    assert np.unique((weights[1:] > 0) @ [1, 2, 4, 8]).size == 6  # all pairs of four bins
    weights = swapped_weights(3, 500, np.random.default_rng(0))
    np.testing.assert_allclose(weights[0], np.array([1, 1, 1, -1, -1, -1]) / 3)
    np.testing.assert_array_equal(weights[:, :3], -weights[:, 3:])
    assert np.unique(weights > 0, axis=0).shape == (8, 6)


@EACH_KERNEL
def test_mmd2_is_that_of_all_points(name):
    """Where each is its own bin, and pairs of different points count."""
    kernel, formula = KERNELS[name]
    x, y = pair()
    result = two_sample_test(x, y, kernel=kernel, standardize=False, bins=200, rng=0)
    expected = (
        (formula(x, x).sum() - np.trace(formula(x, x))) / (80 * 79)
        + (formula(y, y).sum() - np.trace(formula(y, y))) / (120 * 119)
        - 2 * formula(x, y).mean()
    )
    assert result.kernels[0].mmd2 == pytest.approx(expected)
    assert result.bins == (80, 120)
    assert result.method == "exact"
    assert result.pvalue == result.kernels[0].pvalue
    assert result.kernels[0].bandwidth is None


@pytest.mark.parametrize("method", METHODS)
def test_it_rejects_what_differs_and_not_what_is_equal(method):
    x, y = pair(600, 900)
    equal = two_sample_test(x, y, method=method, rng=0)
    differ = two_sample_test(x, 1.5 * y, method=method, rng=0)
    assert equal.pvalue > 0.05
    assert not equal.reject
    assert differ.pvalue == 0.001
    assert differ.reject
    assert differ.method == method
    assert differ.sizes == (600, 900)
    assert differ.bins == (26, 39)


def rejected(make, pairs=400, **arguments):
    """How many of some pairs the test rejects at level 0.05."""
    rngs = map(np.random.default_rng, range(pairs))
    results = (two_sample_test(*make(rng), permutations=99, rng=rng, **arguments) for rng in rngs)
    return sum(result.reject for result in results)


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (lambda rng: rng.normal(size=(2, 50, 2)), {}),
        (lambda rng: (rng.normal(size=(20, 10)), rng.normal(size=(75, 10))), {}),
        (lambda rng: rng.integers(0, 3, size=(2, 40, 2)), {"kernel": "laplace"}),
        pytest.param(
            lambda rng: rng.standard_cauchy(size=(2, 40, 1)),
            {"kernel": ["energy", "gaussian"]},
            marks=pytest.mark.nightly,
        ),
        (lambda rng: rng.normal(size=(2, 60, 2)), {"bandwidth": "median", "method": "landmarks"}),
        pytest.param(
            lambda rng: rng.normal(size=(2, 128, 2)),
            {"method": "compress", "g": 0, "bins": 8},
            marks=pytest.mark.nightly,
        ),
        (lambda rng: rng.normal(size=(2, 60, 2)), {"bins": 1000, "bandwidth": "median"}),
        (
            lambda rng: (rng.normal(size=(40, 10)), rng.normal(size=(250, 10))),
            {"method": "compress", "g": 0, "bins": 16, "bandwidth": 0.3},
        ),
    ],
    ids=[
        "equal sizes",
        "unequal",
        "ties",
        "heavy tails",
        "landmarks",
        "compress",
        "points",
        "bins",
    ],
)
def test_level(make, arguments):
    """Of 400 pairs from one distribution, 20 are expected, and 8 to 34 in all but .5 % of runs."""
    assert 8 <= rejected(make, **arguments) <= 34


@pytest.mark.parametrize("method", METHODS)
def test_weights_undo_another_distribution(method):
    """Samples of N(0, 1) and N(0.7, 1); weights bring y back to N(0, 1), or to N(0.4, 1)."""

    def pairs_rejected(to):
        count = 0
        for seed in range(100):
            rng = np.random.default_rng(seed)
            x, y = rng.normal(size=(400, 1)), rng.normal(0.7, 1, size=(400, 1))
            weights = None if to is None else np.exp((to - 0.7) * y[:, 0])
            count += two_sample_test(
                x, y, y_weights=weights, permutations=99, rng=0, method=method, bandwidth="median"
            ).reject
        return count

    assert pairs_rejected(0.0) <= 12
    assert pairs_rejected(0.4) >= 80
    assert pairs_rejected(None) == 100


def test_weights_count_in_bins_of_one_point():
    x, y = pair(30, 30, 1)
    weights = np.exp(y[:, 0])
    one, two = (two_sample_test(x, y, y_weights=w, rng=0) for w in (np.ones(30), weights))
    assert one.bins == two.bins == (30, 30)
    assert two.statistic > one.statistic


def test_few_points_with_nearly_all_weight():
    x, y = pair(200, 200)
    weights = np.ones(200)
    weights[:5] = 100
    with pytest.warns(
        UserWarning, match="^x_weights of 200 points are worth 10 equal weights; the"
    ):
        two_sample_test(x, y, x_weights=weights, rng=0)


def test_a_point_without_weight_is_no_point():
    x, y = pair(40, 40)
    weights = np.ones(50)
    weights[40:] = 0
    more = np.vstack([x, np.full((10, 2), 50.0)])
    one = two_sample_test(x, y, x_weights=np.ones(40), standardize=False, bandwidth=1.0, rng=0)
    two = two_sample_test(more, y, x_weights=weights, standardize=False, bandwidth=1.0, rng=0)
    assert one.kernels == two.kernels
    assert two.sizes == (40, 40)
    assert two.bins == (32, 32)


def test_mmd2_of_weighted_points():
    """Each point is a bin: pairs of different points count, by the product of their weights."""
    x, y = pair(30, 30)
    v, w = np.linspace(1, 2, 30), np.linspace(2, 1, 30)
    one = two_sample_test(x, y, x_weights=v, y_weights=w, standardize=False, bandwidth=1.0, rng=0)
    v, w = v / v.sum(), w / w.sum()
    both, c = np.vstack([x, y]), np.concatenate([v, -w])
    K = formulas.gaussian(both, both, 1.0)
    mean = np.concatenate([v, w]) / 2  # the embedding that all are taken from
    of_mean = K @ mean
    A = K - of_mean[:, None] - of_mean + mean @ of_mean
    pairs = np.outer(c, c) * A
    within = (pairs[:30, :30].sum() - np.trace(pairs[:30, :30])) + (
        pairs[30:, 30:].sum() - np.trace(pairs[30:, 30:])
    )
    expected = within / (1 - 1 / 30) + 2 * pairs[:30, 30:].sum()
    assert one.kernels[0].mmd2 == pytest.approx(expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_order_of_points_does_not_count(weighted):
    """Neither that of sorted samples, nor that landmarks or the median come from x alone."""
    x, y = (np.sort(each, axis=0) for each in pair(1500, 1500, 1))
    weights = np.ones(1500) if weighted else None
    assert two_sample_test(x, y, x_weights=weights, rng=0).pvalue > 0.05
    one, two = two_sample_test(x, 9 * y, rng=0), two_sample_test(9 * y, x, rng=0)
    assert one.kernels[4].bandwidth == pytest.approx(two.kernels[4].bandwidth, rel=0.2)


def test_landmarks_come_from_both_samples():
    """From x alone, whose points are one, no kernel value would tell the places in y."""
    x, y = np.zeros((3000, 1)), np.zeros((3000, 1))
    y[:2000] = np.random.default_rng(0).choice([-50.0, 50.0], size=(2000, 1))
    result = two_sample_test(x, y, bandwidth=1.0, rng=0)
    expected = 1 + (1 + 1 + 1) / 9 - 2 / 3  # thirds of y are at three places far apart
    assert result.method == "landmarks"
    assert result.kernels[0].mmd2 == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("method", METHODS)
def test_equal_points_do_not_differ(method):
    constant = np.ones((70, 3))
    result = two_sample_test(constant, constant[:50], method=method, rng=0)
    assert (result.statistic, result.pvalue) == (0, 1)
    other = two_sample_test(constant, constant[:50] + 1, standardize=False, method=method, rng=0)
    assert other.pvalue == 0.001
    several = ["energy", "gaussian", "linear"]
    assert (
        two_sample_test(constant, constant[:50], kernel=several, method=method, rng=0).pvalue == 1
    )
    weights = np.linspace(1, 2, 70)
    assert (
        two_sample_test(constant, constant[:50], x_weights=weights, method=method, rng=0).pvalue
        == 1
    )


def test_hardly_any_points_differ():
    """So all points of which a median distance would be computed are equal."""
    x, y = np.zeros((2, 50_000, 1))
    x[:3] = 1
    assert two_sample_test(x, y, rng=0).kernels[4].bandwidth == 1


@pytest.mark.parametrize("scale", [1e-140, 1e-30, 1e70, 1e140])
def test_any_unit(scale):
    x, y = pair(factor=1.2)
    for kernel in ("linear", "gaussian"):
        one, two = (two_sample_test(x * s, y * s, kernel=kernel, rng=0) for s in (1, scale))
        assert one.pvalue == two.pvalue
        assert two.statistic == pytest.approx(one.statistic)


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_an_offset_changes_nothing_where_bins_are_of_unlike_size(offset):
    x, y = pair(100, 107)
    y[:, 0] += 0.6
    result = two_sample_test(x + offset, y + offset, kernel="linear", rng=0)
    assert result.pvalue < 0.01
    assert result.statistic == pytest.approx(
        two_sample_test(x, y, kernel="linear", rng=0).statistic, rel=0.01
    )


@pytest.mark.parametrize(("n", "m", "bins"), [(1000, 1000, 1024), (500, 900, 900), (40, 60, 1000)])
def test_as_many_bins_as_points(n, m, bins):
    x, y = pair(n, m, factor=2.0)
    result = two_sample_test(x, y, bins=bins, bandwidth="median", rng=0, method="exact")
    assert result.sizes == (n, m)
    assert sum(result.bins) >= 0.75 * min(bins, n + m)
    assert result.pvalue < 0.01


def test_a_p_value_at_the_level_rejects():
    x, y = pair(factor=3.0)
    result = two_sample_test(x, y, level=0.001, rng=0)
    assert result.pvalue == result.level
    assert result.reject


def test_equal_statistics_count():
    assert pvalue(np.array([1.0, 1 - 1e-13, 1 + 1e-13, 0.9])) == 0.75
    assert pvalue(np.array([-1e-30, -1e-30, 0.0, -1.0])) == 0.75


def test_the_order_of_kernels_changes_nothing():
    x, y = pair(factor=1.2)
    frames = [pd.DataFrame(each * [1, 100], columns=["a", "b"]) for each in (x, y)]
    for kernels_ in (
        ["energy", kernels.gaussian(2.0)],
        ["gaussian", kernels.gaussian([1.0, 90.0])],
    ):
        one, two = (two_sample_test(*frames, kernel=k, rng=0) for k in (kernels_, kernels_[::-1]))
        assert one.statistic == two.statistic
    uniform = np.random.default_rng(0).uniform(size=(2, 60, 2))
    one, two = (
        two_sample_test(*uniform, kernel=k, rng=0) for k in (["gaussian", "sobolev"], ["sobolev"])
    )
    assert one.kernels[-1].mmd2 == two.kernels[0].mmd2


def test_a_number_is_for_the_kernels_that_take_one():
    x, y = pair()
    result = two_sample_test(x, y, kernel=["gaussian", "linear"], bandwidth=1.0, rng=0)
    alone = two_sample_test(x, y, bandwidth=1.0, rng=0)
    assert result.kernels[0] == alone.kernels[0]
    assert result.kernels[1].name == "linear"


def test_the_exponential_kernel_does_not_overflow():
    result = two_sample_test(*pair(factor=2.0), kernel="exponential", rng=0)
    assert len(result.kernels) == 2
    assert result.pvalue < 0.01


@pytest.mark.parametrize("method", METHODS)
def test_oversampling_without_end(method):
    result = two_sample_test(*pair(), g=10**30, method=method, rng=0)
    assert result.kernels[0].mmd2 is not None


def test_a_constant_column_changes_nothing():
    x, y = pair()
    added = [np.column_stack([each, np.full(len(each), 7.0)]) for each in (x, y)]
    assert two_sample_test(*added, rng=0).kernels == two_sample_test(x, y, rng=0).kernels


def test_units_of_columns_change_nothing():
    x, y = pair(factor=1.2)
    unit = np.array([1024.0, 1 / 64])
    one, two = (
        two_sample_test(x * u, y * u, standardize="scale", rng=0) for u in (np.ones(2), unit)
    )
    assert one.pvalue == two.pvalue
    assert one.statistic == pytest.approx(two.statistic)


def test_six_bandwidths_for_each_kernel_by_name():
    x, y = pair()
    result = two_sample_test(x, y, kernel=["gaussian", "energy", kernels.laplace(2.0)], rng=0)
    names = [each.name for each in result.kernels]
    assert names == ["gaussian"] * 6 + ["energy", "laplace"]
    lengths = np.array([each.bandwidth for each in result.kernels[:6]])
    np.testing.assert_allclose(lengths / lengths[4], [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2])
    assert result.pvalue >= min(each.pvalue for each in result.kernels)
    one = two_sample_test(x, y, bandwidth="median", rng=0)
    assert one.kernels[0].bandwidth == lengths[4]


def test_small_bandwidths_see_blobs():
    """Grids of correlated and of uncorrelated normals have nearly the same moments."""
    rng = np.random.default_rng(0)
    x, y, centres = (*rng.normal(size=(2, 800, 2)), 10.0 * rng.integers(0, 3, size=(2, 800, 2)))
    y[:, 1] = 0.8 * y[:, 0] + 0.6 * y[:, 1]
    x, y = x + centres[0], y + centres[1]
    assert two_sample_test(x, y, rng=0).pvalue == 0.001
    assert two_sample_test(x, y, bandwidth="median", rng=0).pvalue > 0.05


def test_features():
    x, y = pair(100, 100, factor=1.6)
    same = two_sample_test(x, y, rng=0, features=lambda z: z, standardize=False)
    assert same.kernels == two_sample_test(x, y, rng=0, standardize=False).kernels
    signs = two_sample_test(x, y, rng=0, features=lambda z: (z > 0).astype(int))
    assert signs.pvalue > 0.05
    small = two_sample_test(x, y, rng=0, features=lambda z: z.astype(np.float16))
    assert small.pvalue < 0.05


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_on_any_number_of_threads(method):
    x, y = pair(3000, 2000)
    before, results = get_num_threads(), []
    try:
        for threads in (1, 2):
            set_num_threads(threads)
            results.append(two_sample_test(x, y, method=method, bandwidth=0.5, rng=3, bins=16))
    finally:
        set_num_threads(before)
    assert results[0] == results[1]
    other = two_sample_test(x, y, method=method, bandwidth=0.5, rng=4, bins=16)
    assert other.statistic != results[0].statistic


def test_few_points_take_all_kernel_values_and_many_landmarks():
    x, y = pair(1024, 1025)
    assert two_sample_test(x, y[1:], rng=0, permutations=19).method == "exact"
    assert two_sample_test(x, y, rng=0, permutations=19).method == "landmarks"


@pytest.mark.parametrize(
    ("arguments", "least"),
    [
        ({"x": pair(2)[0], "y": pair(3, 3)[1]}, 1 / 10),
        ({"bins": 4, "x": pair()[1]}, 1 / 3),  # two and two bins
        ({"bins": 8, "x_weights": np.ones(80)}, 1 / 8),
        ({"permutations": 9}, 1 / 10),
    ],
)
def test_too_few_exchanges_for_the_level(arguments, least):
    x, y = pair()
    arguments = {"x": x, "y": y, "rng": 0} | arguments
    said = f"as small as level=0.05 with so few .*: the smallest is {least:.3g}$"
    with pytest.warns(UserWarning, match=said):
        result = two_sample_test(arguments.pop("x"), arguments.pop("y"), **arguments)
    assert result.least == least
    assert result.pvalue >= 0.7 * least  # of few permutations
    assert f"or differ: a p-value can hardly be below {least:.3g}\n" in str(result)


def test_data_frames():
    x, y = pair()
    frames = pd.DataFrame(x, columns=["a", "b"]), pd.DataFrame(y, columns=["a", "b"])[["b", "a"]]
    result = two_sample_test(*frames, rng=0)
    assert result == two_sample_test(x, y, standardize="scale", rng=0)
    with pytest.raises(ValueError, match="^y must have the columns of x; only x has a and only y"):
        two_sample_test(frames[0], frames[1].rename(columns={"a": "c"}), rng=0)


def test_float32():
    x, y = (each.astype(np.float32) for each in pair(factor=1.2))
    result = two_sample_test(x, y, rng=0)
    wide = two_sample_test(x.astype(float), y.astype(float), rng=0)
    assert result == wide


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", ["linear", "polynomial", "energy", "gaussian"])
def test_landmarks_of_points_far_from_zero(kernel, dtype):
    """Kernels of few features, whose Gram matrix is singular; offsets of 1e4 deviations."""
    x, y = (each + 1e4 for each in pair(300, 500))
    y[:, 0] += 0.5
    x, y = x.astype(dtype), y.astype(dtype)
    exact, within = (
        two_sample_test(x, y, kernel=kernel, bandwidth="median", method=method, rng=0)
        for method in ("exact", "landmarks")
    )
    assert exact.pvalue == within.pvalue == 0.001
    assert within.statistic == pytest.approx(exact.statistic, rel=0.1)


def test_it_prints_a_table():
    x, y = pair(factor=2.0)
    lines = str(two_sample_test(x, y, rng=0)).splitlines()
    assert lines[0] == "p-value 0.001, level 0.05: the distributions differ"
    assert lines[1] == ("80 and 120 points in 26 and 39 bins, 999 permutations, method exact")
    assert lines[2].split() == ["kernel", "bandwidth", "MMD^2", "deviations", "p-value"]
    assert len(lines) == 9
    equal = two_sample_test(*pair(), kernel="energy", level=0.01, rng=0)
    assert "level 0.01: the distributions may be equal" in str(equal)


def test_progress():
    shares = []
    two_sample_test(*pair(), rng=0, progress=lambda stage, share: shares.append((stage, share)))
    assert {stage for stage, _ in shares} == {"kernels"}
    assert shares[-1][1] == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.ones((1, 2))}, ValueError, "^x must have at least two points; got 1"),
        ({"y": np.ones((5, 3))}, ValueError, "y must have"),
        ({"x": np.full((5, 2), np.nan)}, ValueError, "^x must be finite"),
        ({"y": [["a", "b"]] * 5}, TypeError, "^y"),
        ({"kernel": "nonsense"}, ValueError, "^kernel must be"),
        ({"kernel": []}, ValueError, "^kernel must be a kernel, its name or a list"),
        ({"kernel": "precomputed"}, ValueError, "^kernel must compare any two points"),
        ({"kernel": kernels.stein(np.ones((200, 2)))}, ValueError, "^kernel must compare any"),
        ({"kernel": kernels.stein}, ValueError, "^kernel must be"),
        ({"bandwidth": -1}, ValueError, "^bandwidth"),
        ({"bandwidth": "wide"}, ValueError, "^bandwidth"),
        ({"method": "fast"}, ValueError, "^method must be one of 'auto', 'exact', 'landmarks'"),
        ({"bins": 3}, ValueError, "^bins must be"),
        ({"bins": 1025}, ValueError, "^bins must be at most 1024; got 1025"),
        ({"features": 3}, TypeError, "^features must be a function of points; got 3"),
        ({"features": lambda z: z[:, :0]}, ValueError, "^features must return"),
        ({"kernel": nan_somewhere}, ValueError, "^kernel must (have finite values|return finite)"),
        ({"landmarks": 1}, ValueError, "^landmarks must be"),
        ({"g": -1}, ValueError, "^g must be"),
        ({"permutations": 0}, ValueError, "^permutations must be"),
        ({"level": 1}, ValueError, "^level must be between 0 and 1; got 1"),
        ({"level": "a"}, ValueError, "^level must be finite; got 'a'"),
        ({"x_weights": np.ones(3)}, ValueError, "^x_weights"),
        ({"y_weights": -np.ones(120)}, ValueError, "^y_weights"),
        ({"y_weights": np.eye(120)[3]}, ValueError, "^y_weights must be above 0 for at least two"),
        ({"features": lambda z: z[:3]}, ValueError, r"^features must return .*\(200, e\)"),
        ({"features": lambda z: z[:, 0]}, ValueError, "^features must return"),
        ({"features": lambda z: z * np.nan}, ValueError, "^features must be finite"),
        ({"rng": "a"}, TypeError, None),
    ],
)
def test_bad_input(arguments, error, message):
    x, y = pair()
    arguments = {"x": x, "y": y, "rng": 0} | arguments
    before = x.copy(), y.copy()
    with pytest.raises(error, match=message):
        two_sample_test(arguments.pop("x"), arguments.pop("y"), **arguments)
    np.testing.assert_array_equal(before[0], x)
    np.testing.assert_array_equal(before[1], y)
