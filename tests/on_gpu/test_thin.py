"""`thin` with methods that end in swaps, `mmd` and `compare`, on the GPU and on the CPU."""

import numpy as np
import pytest
from devices import OnGpu, at, host

from thinformer import compare, kernels, mmd, thin

S, SIZE = at((4096, 64), (8, 2))
POINTS = np.random.default_rng(0).standard_normal((S, 2))


@pytest.mark.parametrize("method", ["kernel-thinning", "compress++", "greedy"])
@pytest.mark.parametrize("kernel", ["gaussian", "matern"])
def test_methods(method, kernel):
    options = {"method": method, "kernel": kernel, "rng": 0}
    kept = thin(POINTS, SIZE, device="cuda", **options)
    np.testing.assert_array_equal(host_or_same(kept), thin(POINTS, SIZE, **options))


def test_stein():
    options = {"method": "kernel-thinning", "kernel": kernels.stein(-POINTS), "rng": 0}
    options["target"] = "sample"
    kept = thin(POINTS, SIZE, device="cuda", **options)
    np.testing.assert_array_equal(host_or_same(kept), thin(POINTS, SIZE, **options))


@pytest.mark.parametrize("method", ["compress++", "kernel-thinning", "kh-compress"])
def test_points_that_are_on_a_gpu(method):
    options = {"method": method, "bandwidth": 1.5, "rng": 0}
    kept = thin(OnGpu(POINTS), SIZE, **options)
    np.testing.assert_array_equal(host_or_same(kept), thin(POINTS, SIZE, **options))


def test_errors_of_coresets():
    rows = thin(POINTS, SIZE, method="halving", rng=0)
    options = {"bandwidth": 1.5}
    expected = mmd(POINTS, rows, **options)
    np.testing.assert_allclose(mmd(OnGpu(POINTS), rows, **options), expected, rtol=1e-9)
    (found,) = compare(OnGpu(POINTS), {"halving": rows}, **options)
    np.testing.assert_allclose(found.mmd, expected, rtol=1e-9)


def host_or_same(kept):
    return kept if isinstance(kept, np.ndarray) else host(kept)
