"""Points to thin, and what holds for any rows of them."""

import numpy as np

X = np.random.default_rng(0).normal(size=(300, 2))
SWAPPED = ("compress++", "kernel-thinning")  # the methods whose rows are refined by swaps


def mixture(n, seed=0):
    """A mixture of eight Gaussians on a circle."""
    rng = np.random.default_rng(seed)
    angle = rng.integers(8, size=n) * np.pi / 4
    centres = 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centres + rng.normal(size=(n, 2))


def assert_rows(rows, n, size, distinct=True):
    assert type(rows) is np.ndarray
    assert rows.dtype == np.int64
    assert rows.shape == (size,)
    assert np.diff(rows).min(initial=1) >= (1 if distinct else 0)
    assert rows[0] >= 0
    assert rows[-1] < n
