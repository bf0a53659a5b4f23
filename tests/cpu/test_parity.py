"""One algorithm, several bodies, one answer."""

import numpy as np
import pytest
from problems import (
    BODIES,
    Attention,
    Points,
    in_domain,
    integers,
    reference_numpy,
    reference_torch_body,
    smallest_margin,
)

from thinformer import compress_kv, compress_schedule, make_draws
from thinformer.halving.plan import plan
from thinformer.kernels.catalogue import KERNELS
from thinformer.measuring.validate import TOLERANCE

SIZES = [(64, 16), (100, 9), (257, 32), (300, 1), (512, 100), (1024, 128)]
FLOAT32_TOLERANCE = TOLERANCE["float32"]


@pytest.fixture(params=BODIES)
def body(request):
    return BODIES[request.param]


def points_problem(rng, kernel, S, size, dtype):
    schedule = compress_schedule(S, size)
    points = in_domain(kernel, rng.standard_normal((schedule.length, 3)).astype(dtype))
    return Points(points, kernel), schedule, make_draws(schedule, int(rng.integers(2**62)))


def attention_problem(rng, shape, S, size, dtype):
    B, H, E, D = shape
    schedule = compress_schedule(S, size)
    problem = Attention(
        rng.standard_normal((B, S, H, E)).astype(dtype),
        rng.standard_normal((B, S, H, D)).astype(dtype),
    )
    return problem, schedule, make_draws(schedule, int(rng.integers(2**62)), H)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("S", "size"), SIZES)
def test_points_float64(body, kernel, S, size):
    rng = np.random.default_rng(S)
    for _ in range(5):
        problem, schedule, draws = points_problem(rng, kernel, S, size, np.float64)
        expected, traces = reference_numpy(problem, schedule, draws)
        assert smallest_margin(traces) > 1e-12
        np.testing.assert_array_equal(body(problem, schedule, draws), expected)


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (2, 3, 8, 5), (1, 2, 64, 100)])
@pytest.mark.parametrize(("S", "size"), SIZES)
def test_attention_float64(body, shape, S, size):
    rng = np.random.default_rng(S)
    for _ in range(3):
        problem, schedule, draws = attention_problem(rng, shape, S, size, np.float64)
        expected, traces = reference_numpy(problem, schedule, draws)
        assert smallest_margin(traces) > 1e-12
        np.testing.assert_array_equal(body(problem, schedule, draws), expected)


@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "inverse_multiquadric"])
@pytest.mark.parametrize(("dtype", "distance"), [("f4", 1e3), ("f4", 1e5), ("f8", 1e7)])
def test_far_clusters(body, kernel, dtype, distance):
    """Points of a cluster are told apart however far the clusters are from each other."""
    rng = np.random.default_rng(0)
    demanded = 0
    for S, size in SIZES * 2:
        schedule = compress_schedule(S, size)
        points = rng.standard_normal((schedule.length, 3))
        points += distance * rng.choice([-1, 1], (schedule.length, 1))
        draws = make_draws(schedule, int(rng.integers(2**62)))
        problem = Points(points.astype(dtype), kernel)
        expected, traces = reference_numpy(problem, schedule, draws)
        if smallest_margin(traces) > FLOAT32_TOLERANCE:
            demanded += 1
            np.testing.assert_array_equal(body(problem, schedule, draws), expected)
    assert demanded > 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-3, 1e15, 1e37])
def test_values_of_any_magnitude(body, dtype, magnitude):
    """vmax^2 neither overflows nor underflows."""
    rng = np.random.default_rng(0)
    problem, schedule, draws = attention_problem(rng, (1, 2, 8, 5), 300, 32, np.float64)
    scaled = Attention(problem.key.astype(dtype), (magnitude * problem.value).astype(dtype))
    expected, traces = reference_numpy(scaled, schedule, draws)
    assert smallest_margin(traces) > FLOAT32_TOLERANCE
    assert 20 < np.sum(expected % 2) < 44  # the walk is alive
    np.testing.assert_array_equal(body(scaled, schedule, draws), expected)


def test_vmax_is_that_of_the_tokens_looked_at(body):
    """||V||_max is taken after the pre-thinning, as published; an entry skipped has no effect."""
    rng = np.random.default_rng(0)
    problem, _, _ = attention_problem(rng, (1, 1, 4, 4), 200, 16, np.float64)
    outlier = Attention(problem.key, problem.value.copy())
    outlier.value[0, 1] = 1e6
    matters = Attention(problem.key, problem.value.copy())
    matters.value[0, 3] = 1e6
    schedule = plan(200, 1, None, 0.5, "stride").schedule  # reads positions 0, 3, ..., 189
    differ = 0
    for seed in range(10):
        draws = make_draws(schedule, seed, heads=1)._replace(strata=None)
        expected, _ = reference_numpy(problem, schedule, draws)
        if body is not reference_torch_body:
            kept = compress_kv(*outlier, g=1, pre_thin="stride", draws=draws)
        else:
            kept = body(outlier, schedule, draws)
        np.testing.assert_array_equal(kept, expected)
        differ += not np.array_equal(reference_numpy(matters, schedule, draws)[0], expected)
    assert differ > 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", ["linear", "polynomial"])
@pytest.mark.parametrize(("S", "size"), SIZES)
def test_integers_bit_for_bit(body, kernel, S, size, dtype):
    rng = np.random.default_rng(S)
    for _ in range(5):
        schedule = compress_schedule(S, size)
        problem = Points(integers(rng, schedule.length, 3, dtype), kernel)
        draws = make_draws(schedule, int(rng.integers(2**62)))
        expected, _ = reference_numpy(problem, schedule, draws)
        np.testing.assert_array_equal(body(problem, schedule, draws), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_differs_from_ties_only(body, kernel):
    rng = np.random.default_rng(0)
    demanded = 0
    for S, size in SIZES * 3:
        problem, schedule, draws = points_problem(rng, kernel, S, size, np.float32)
        expected, traces = reference_numpy(problem, schedule, draws)
        if smallest_margin(traces) > FLOAT32_TOLERANCE:
            demanded += 1
            np.testing.assert_array_equal(body(problem, schedule, draws), expected)
    assert demanded > 6


@pytest.mark.slow
def test_attention_float32_differs_from_ties_only(body):
    rng = np.random.default_rng(0)
    demanded = 0
    for S, size in SIZES * 3:
        problem, schedule, draws = attention_problem(rng, (1, 2, 16, 8), S, size, np.float32)
        expected, traces = reference_numpy(problem, schedule, draws)
        if smallest_margin(traces) > FLOAT32_TOLERANCE:
            demanded += 1
            np.testing.assert_array_equal(body(problem, schedule, draws), expected)
    assert demanded > 6


def test_problems_are_not_degenerate():
    """Some pairs swap and some do not, in every kernel; else parity would show little."""
    rng = np.random.default_rng(0)
    for kernel in KERNELS:
        problem, schedule, draws = points_problem(rng, kernel, 256, 128, np.float64)
        kept, _ = reference_numpy(problem, schedule, draws)
        assert 20 < np.sum(kept % 2) < 108
