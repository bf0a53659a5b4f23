"""`thin` with methods that end in swaps, `mmd` and `compare`, where a device is among their words.

A method that has no kernels on a GPU yet says so; its test is skipped with these words.
"""

import inspect

import numpy as np
import pytest
from devices import OnGpu, at, host

import thinformer
from thinformer import kernels, thin

S, SIZE = at((4096, 64), (32, 4))
POINTS = np.random.default_rng(0).standard_normal((S, 2))


def on_gpu(call):
    """What a call returns; a skipped test where it says that it is not there yet."""
    try:
        return call()
    except NotImplementedError as error:
        pytest.skip(f"not there yet: {error}")


def takes_device(function):
    if "device" not in inspect.signature(function).parameters:
        pytest.skip(f"not there yet: {function.__name__} has no device")


@pytest.mark.parametrize("method", ["kernel-thinning", "compress++", "greedy"])
@pytest.mark.parametrize("kernel", ["gaussian", "matern"])
def test_methods(method, kernel):
    options = {"method": method, "kernel": kernel, "rng": 0}
    kept = on_gpu(lambda: thin(POINTS, SIZE, device="cuda", **options))
    np.testing.assert_array_equal(host_or_same(kept), thin(POINTS, SIZE, **options))


def test_stein():
    options = {"method": "kernel-thinning", "kernel": kernels.stein(-POINTS), "rng": 0}
    options["target"] = "sample"
    kept = on_gpu(lambda: thin(POINTS, SIZE, device="cuda", **options))
    np.testing.assert_array_equal(host_or_same(kept), thin(POINTS, SIZE, **options))


@pytest.mark.parametrize("method", ["compress++", "kernel-thinning", "kh-compress"])
def test_points_that_are_on_a_gpu(method):
    options = {"method": method, "bandwidth": 1.5, "rng": 0}
    kept = on_gpu(lambda: thin(OnGpu(POINTS), SIZE, **options))
    np.testing.assert_array_equal(host_or_same(kept), thin(POINTS, SIZE, **options))


@pytest.mark.parametrize("name", ["mmd", "compare"])
def test_errors_of_coresets(name):
    function = getattr(thinformer, name)
    takes_device(function)
    rows = thin(POINTS, SIZE, method="halving", rng=0)
    if name == "mmd":
        found = on_gpu(lambda: function(POINTS, rows, device="cuda"))
        np.testing.assert_allclose(found, function(POINTS, rows), rtol=1e-9)
    else:
        found = on_gpu(lambda: function(POINTS, {"halving": rows}, device="cuda"))
        expected = function(POINTS, {"halving": rows})
        np.testing.assert_allclose(found[0].mmd, expected[0].mmd, rtol=1e-9)


def host_or_same(kept):
    return kept if isinstance(kept, np.ndarray) else host(kept)
