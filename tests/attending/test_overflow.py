"""Finite numbers with a correction: a finite output, or an error whose remedies work."""

import numpy as np
import pytest
from specified_landmarks import corrections, qkv

from thinformer import attention

LIMITS = {np.float32: (3e19, r"1\.8e\+19"), np.float64: (1e200, r"1\.3e\+154")}
EACH_DTYPE = pytest.mark.parametrize("dtype", LIMITS)


def attend(correction, query, key, value, **options):
    options = {"size": 20, "rng": 0, "correction": correction} | options
    return attention(query, key, value, **options).output


@corrections
@EACH_DTYPE
@pytest.mark.parametrize("temperature", [None, 1.0, 1e30])
def test_keys_whose_squares_overflow(temperature, dtype, correction):
    query, key, value = qkv(dtype=dtype)
    number, limit = LIMITS[dtype]
    key[:, :, 1] *= dtype(number)
    message = rf"^key must have norms below {limit}, .*{np.dtype(dtype)}; got a larger one\. Divide"
    with pytest.raises(ValueError, match=message) as error:
        attend(correction, query, key, value, temperature=temperature)
    assert ("or give float64" in str(error.value)) == (dtype == np.float32)
    scale = float(np.sqrt(number))
    divided = attend(correction, query, key / dtype(scale), value,
                     scale=scale / key.shape[-1] ** 0.5, temperature=number)  # fmt: skip
    assert np.isfinite(divided).all()
    if dtype == np.float32:
        wide = [x.astype(np.float64) for x in (query, key, value)]
        assert np.isfinite(attend(correction, *wide)).all()


@corrections
@EACH_DTYPE
def test_queries_whose_squares_overflow(dtype, correction):
    query, key, value = qkv(dtype=dtype)
    number, limit = LIMITS[dtype]
    query[:, :, 1] *= dtype(number)
    with pytest.raises(ValueError, match=rf"^query must have norms below {limit}, .* temperature"):
        attend(correction, query, key, value)
    assert np.isfinite(attend(correction, query, key, value, temperature=1.0)).all()


@corrections
@EACH_DTYPE
def test_other_sums_that_overflow(dtype, correction):
    """Of values near the largest number, and of queries under a large scale."""
    query, key, value = qkv(dtype=dtype)
    number, _ = LIMITS[dtype]
    with pytest.raises(ValueError, match="^query, key, value and scale are too large for a corre"):
        attend(correction, query, key, value, scale=number)
    assert np.isfinite(
        attend(correction, query, key, value, scale=number, temperature=number)
    ).all()
    value, largest = np.abs(value), np.finfo(dtype).max / dtype(50)  # sums do not cancel
    with pytest.raises(ValueError, match=r"^query, key, value .* divide value by a number"):
        attend(correction, query, key, value * largest)
    assert np.isfinite(attend(correction, query, key, value * (largest / dtype(1e6)))).all()


@EACH_DTYPE
@pytest.mark.parametrize("options", [{}, {"temperature": "auto"}])
@pytest.mark.parametrize("large", [0, 1])
def test_halving_and_herding_stay_finite(large, options, dtype):
    """They need no square of a key: where one overflows, herding looks at the values alone."""
    arrays = qkv(dtype=dtype)
    arrays[large][:, :, 1] *= dtype(LIMITS[dtype][0])
    assert np.isfinite(attention(*arrays, size=20, rng=0, **options).output).all()
