import numpy as np
import pytest

from thinformer.cpu.exp import exp32, exp64
from thinformer.cpu.jit import ELEMENTWISE, by_dtype, inner, kernel


@pytest.fixture(scope="module")
def vector_exp():
    exp = by_dtype(exp32, exp64)

    @inner(ELEMENTWISE)
    def over(x, out):
        for i in range(x.size):
            out[i] = exp(x[i])

    @kernel
    def loop(x, out):
        over(x, out)

    def call(x):
        out = np.empty_like(x)
        loop(x, out)
        return out

    return call


@pytest.mark.parametrize(
    ("dtype", "low", "high", "stated"), [("f4", -87.3, 88.7, 2e-7), ("f8", -708.3, 709.7, 5e-16)]
)
def test_relative_error(vector_exp, dtype, low, high, stated):
    x = np.random.default_rng(0).uniform(low, high, 200_000).astype(dtype)
    exact = np.exp(x.astype(np.longdouble))
    assert np.max(np.abs(vector_exp(x) - exact) / exact) < stated


@pytest.mark.parametrize(("dtype", "low", "high"), [("f4", -103, -87.4), ("f8", -744, -708.5)])
def test_subnormal_results(vector_exp, dtype, low, high):
    x = np.random.default_rng(0).uniform(low, high, 10_000).astype(dtype)
    exact = np.exp(x.astype(np.longdouble))
    spacing = np.finfo(dtype).smallest_subnormal
    assert np.max(np.abs(vector_exp(x) - exact)) <= 1.5 * spacing


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_special_values(vector_exp, dtype):
    x = np.array([0, -0.0, -1e4, -np.inf, 1e4, np.inf, np.nan], dtype)
    np.testing.assert_array_equal(vector_exp(x), [1, 1, 0, 0, np.inf, np.inf, np.nan])
