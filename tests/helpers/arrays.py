"""Arrays for the tests of attention in NumPy."""

import numpy as np


def qkv(rng=0, B=1, T=7, S=300, H=2, E=8, D=5, dtype=np.float64):
    rng = np.random.default_rng(rng)  # a generator stays itself
    shapes = (B, T, H, E), (B, S, H, E), (B, S, H, D)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]
