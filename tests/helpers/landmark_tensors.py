"""Tensors and calls for the tests of landmarks in torch."""

from functools import partial

import pytest
import tensors
from tensors import seeded

from thinformer.attending.options import CORRECTIONS

corrections = pytest.mark.parametrize("correction", CORRECTIONS)
weighted = pytest.mark.parametrize("weights", [False, True])
qkv = partial(tensors.qkv, S=200, H=2, E=4, D=3)
equal = partial(tensors.equal, rtol=1e-6, atol=1e-7)


def output_of(*tensors, weights, **options):
    got = seeded(*tensors, return_weights=weights, **options)
    return got.output if weights else got
