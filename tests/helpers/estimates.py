"""Calls for the tests of the estimate of an error, and of falling back."""

from functools import partial

import pytest
import tensors
from tensors import seeded

CORRECTIONS = (None, "nystrom", "queries")
corrections = pytest.mark.parametrize("correction", CORRECTIONS)
equal = partial(tensors.equal, rtol=1e-7, atol=1e-9)


def estimated(*tensors, **options):
    return seeded(*tensors, return_error_estimate=True, **options)
