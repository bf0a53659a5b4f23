import math

import numpy as np
import pytest

from reference import kernels as reference_kernels
from thinformer import kernels

PHI = {
    "linear": kernels.phi_linear,
    "polynomial": kernels.phi_polynomial,
    "exponential": kernels.phi_exponential,
    "gaussian": kernels.phi_gaussian,
    "laplace": kernels.phi_laplace,
    "inverse_multiquadric": kernels.phi_inverse_multiquadric,
}
PARAMETERS = {
    "linear": [{}, {"constant": 2.5}],
    "polynomial": [{}, {"degree": 2, "constant": 0.5, "bandwidth": 1.7}],
    "exponential": [{}, {"bandwidth": 1.7}],
    "gaussian": [{}, {"bandwidth": 0.6}],
    "laplace": [{}, {"bandwidth": 0.6}],
    "inverse_multiquadric": [{}, {"bandwidth": 0.6}],
}


@pytest.mark.parametrize("name", kernels.KERNELS)
def test_phi_is_the_kernel(name):
    """phi of the scaled points' products and norms is k(x, y) by its definition."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 20, 3))
    for parameters in PARAMETERS[name]:
        kernel = kernels.KERNELS[name](**parameters)
        expected = getattr(reference_kernels, name)(x, y, **parameters)
        for i in range(20):
            for j in range(20):
                a, b = kernel.scale * x[i], kernel.scale * y[j]
                of_distance = kernel.tag >= kernels.OF_DISTANCE
                entry = (a - b) @ (a - b) if of_distance else a @ b
                got = PHI[name](entry, kernel.constant, kernel.degree)
                assert math.isclose(got, expected[i, j], rel_tol=1e-12)


def test_tags_are_distinct():
    tags = [kernel().tag for kernel in kernels.KERNELS.values()]
    assert sorted(tags) == list(range(len(tags)))


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="kernel must be.*gaussian.*linear.*got 'gausian'"):
        kernels.as_kernel("gausian")


@pytest.mark.parametrize("bandwidth", [0, -1, math.nan, math.inf])
def test_bandwidth_must_be_positive(bandwidth):
    for name in ("gaussian", "laplace", "inverse_multiquadric", "exponential", "polynomial"):
        with pytest.raises(ValueError, match="bandwidth must be positive and finite"):
            kernels.KERNELS[name](bandwidth=bandwidth)
