import json
import math

import numpy as np
import pytest
import torch
from checkout import GOLDEN
from hypothesis import given
from hypothesis import strategies as st

from reference import torch_version
from reference.halving import kernel_halving
from reference.kernels import gaussian
from thinformer import Draws, kernel_halve
from thinformer.halving.steps import pair_distance, simple_factor, simple_threshold, swaps

CASES = [
    case
    for case in json.loads((GOLDEN / "thinformer_vectors.json").read_text())
    if case["kind"] == "halve"
]


def halve_by_numpy(K, delta, uniform, coin):
    return kernel_halving(K, delta, uniform, coin)[0]


def halve_by_torch(K, delta, uniform, coin):
    arguments = torch.as_tensor(K), delta, torch.as_tensor(uniform), torch.tensor(bool(coin))
    return torch_version.kernel_halving(*arguments).numpy()


def halve_by_numba(K, delta, uniform, coin):
    return kernel_halve(K, delta=delta, draws=Draws((uniform,), (np.array([coin]),)))


@pytest.fixture(params=[halve_by_numpy, halve_by_torch, halve_by_numba])
def halve(request):
    return request.param


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden(halve, case):
    arrays = np.load(GOLDEN / "thinformer_vectors.npz")
    K, u, expected = (arrays[f"{case['name']}_{field}"] for field in ("K", "u", "idx"))
    np.testing.assert_array_equal(halve(K, case["delta"], u, case["coin"]), expected)


class TestWorkedExample:
    """Eight points on a line under the linear kernel k(x, y) = x y, by hand.

    x     = (0 1) (3 1) (2 5) (4 0)
    f_i   = x_2i - x_2i+1, as a multiple of k(1, .):   -1, 2, -3, 4
    b_i   = |f_i|:                                      1, 2, 3, 4, each the largest so far
    a_i   = b_i^2 c with c = 1/2 + log(2 * 8 / delta);  delta = 16 e^-3.5 makes c = 4
                                                        4, 16, 36, 64
    pair 0 keeps its first point:                       psi = -1
    pair 1: alpha = -1 * 2 = -2;   -1/2 * 16 <= -2, swap:        psi = -1 - 2 = -3
    pair 2: alpha = -3 * -3 = 9;    1/2 * 36 > 9, keep:          psi = -3 - 3 = -6
    pair 3: alpha = -6 * 4 = -24;  -3/8 * 64 = -24, swap (<=):   psi = -6 - 4 = -10
    """

    x = np.array([0.0, 1, 3, 1, 2, 5, 4, 0])
    K = np.outer(x, x)
    delta = 16 * math.exp(-3.5)
    uniform = np.array([0.9, -0.5, 0.5, -0.375 - 1e-9])

    def test_trace(self):
        _, trace = kernel_halving(self.K, self.delta, self.uniform)
        np.testing.assert_allclose(trace.b, [1, 2, 3, 4])
        np.testing.assert_allclose(trace.a, [4, 16, 36, 64])
        np.testing.assert_allclose(trace.alpha, [0, -2, 9, -24])
        # |-8 + 2| over the magnitudes |x_0 + x_1| |x_2 + x_3| + (x_2 + x_3)^2, and so on
        np.testing.assert_allclose(trace.margin[:3], [np.inf, 6 / 20, 9 / 84])

    def test_indices(self, halve):
        assert halve(self.K, self.delta, self.uniform, False).tolist() == [0, 3, 4, 7]
        assert halve(self.K, self.delta, self.uniform, True).tolist() == [1, 2, 5, 6]

    def test_other_draws(self, halve):
        # the draw of pair 0 is not used; those of pairs 1 and 3 fall the other way
        uniform = np.array([-1, -0.1, 0.5, 0.99])
        # psi = -1, +1 (keep 2), alpha_2 = -3: 18 > -3 keep, psi = -2, alpha_3 = -8: keep
        assert halve(self.K, self.delta, uniform, False).tolist() == [0, 2, 4, 6]

    def test_scalar_step(self):
        c = simple_factor(8, self.delta)
        assert c == pytest.approx(4)
        assert pair_distance(9, 3, 3, 1) == 2
        assert pair_distance(1, 1, 1, 1 - 1e-16) == 0
        assert simple_threshold(2, 3, 4) == 24
        assert swaps(-0.5, 16, -2)
        assert not swaps(0.5, 36, 9)
        assert swaps(0.0, 0, 0)


@given(st.integers(1, 40), st.integers(0, 2**32), st.sampled_from([np.float32, np.float64]))
def test_keeps_one_of_each_pair(S, seed, dtype):
    x = np.random.default_rng(seed).standard_normal((S, 2)).astype(dtype)
    K = gaussian(x, x)
    kept = kernel_halve(K, rng=seed)
    assert kept.dtype == np.int64
    assert kept.shape == (-(-S // 2),)
    np.testing.assert_array_equal(kept[: S // 2] // 2, np.arange(S // 2))
    assert S % 2 == 0 or kept[-1] == S - 1  # an odd last point is carried over


@given(st.integers(1, 20), st.integers(0, 2**32), st.sampled_from([2.0**-40, 8.0, 2.0**100]))
def test_scale_invariance(pairs, seed, c):
    """K -> cK changes nothing; c is a power of four, so that even roots scale exactly."""
    x = np.random.default_rng(seed).standard_normal((2 * pairs, 2))
    K = gaussian(x, x)
    np.testing.assert_array_equal(kernel_halve(K, rng=seed), kernel_halve(c**2 * K, rng=seed))


def test_stacks_and_layouts():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 12, 2))
    K = np.array([[gaussian(y, y) for y in row] for row in x])
    K.flags.writeable = False
    kept = kernel_halve(K, rng=1)
    assert kept.shape == (2, 3, 6)
    for b in range(2):
        for h in range(3):  # each gets what it would get alone
            np.testing.assert_array_equal(kernel_halve(K[b, h], rng=1), kept[b, h])
    wide = np.zeros((2, 3, 12, 24))
    wide[..., ::2] = K
    for same in (K.swapaxes(-1, -2), np.asfortranarray(K), wide[..., ::2], K[::-1][::-1]):
        np.testing.assert_array_equal(kernel_halve(same, rng=1), kept)
    assert kernel_halve(np.empty((0, 4, 4)), rng=0).shape == (0, 2)


def test_memory_is_linear():
    """S = 3000: the matrix has 72 MB, what halving it takes beside it has not."""
    import tracemalloc

    K = np.eye(3000)
    kernel_halve(K, rng=0)
    tracemalloc.start()
    kernel_halve(K, rng=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_identical_points_and_zeros():
    """No differences to balance: valid halves, no NaN, no warning (warnings are errors here)."""
    for K in (np.ones((8, 8)), np.zeros((8, 8)), np.full((8, 8), 1e-320), np.eye(8) * 1e300):
        kept = kernel_halve(K, rng=0)
        np.testing.assert_array_equal(kept // 2, np.arange(4))


def test_rounding_below_zero_is_clamped():
    """A squared norm that rounds below zero must not become NaN and end all swapping."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 2))
    x[10] = x[11]
    K = gaussian(x, x)
    K[10, 11] = K[11, 10] = 1 + 1e-12  # f = k(x, .) - k(x, .) with a squared norm of -2e-12
    draws = Draws((np.full(32, -0.999),), (np.array([False]),))
    kept = kernel_halve(K, draws=draws)
    np.testing.assert_array_equal(kept, kernel_halving(K, 0.5, draws.uniforms[0])[0])
    assert np.sum(kept[8:] % 2) > 10


def test_unbiased():
    """Symmetrised: every point is kept half of the time."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 2))
    runs = 4000
    K = np.broadcast_to(gaussian(x, x), (runs, 16, 16))
    draws = Draws((rng.uniform(-1, 1, (runs, 8)),), (rng.random((runs, 1)) < 0.5,))
    kept = kernel_halve(K, draws=draws)
    share = np.mean(kept % 2, axis=0)
    assert np.all(np.abs(share - 0.5) < 5 * 0.5 / np.sqrt(runs))
