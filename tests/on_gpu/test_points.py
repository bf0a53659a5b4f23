"""Points and Gram matrices: a GPU keeps what the CPU keeps, under every kernel."""

import numpy as np
import pytest
from devices import OnGpu, at, host

from thinformer import kernel_halve, kh_compress, thin
from thinformer.kernels import exponential, gaussian, matern, polynomial, sobolev
from thinformer.kernels.catalogue import KERNELS

THERE = [name for name in KERNELS if name != "sobolev"]  # of points that are on the GPU already


def drawn(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).random(shape).astype(dtype)  # where all kernels are defined


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels(kernel):
    """Buckets of many panels, in blocks of the largest size."""
    S, size = at((2048, 512), (36, 9))
    points = drawn(S, 3)
    options = {"size": size, "kernel": kernel, "rng": 0}
    expected = kh_compress(points, **options)
    np.testing.assert_array_equal(kh_compress(points, device="cuda", **options), expected)
    if kernel in THERE:
        np.testing.assert_array_equal(host(kh_compress(OnGpu(points), **options)), expected)


@pytest.mark.parametrize(
    "kernel",
    [3 * gaussian([2.0] * 35), exponential(3), polynomial(2, bandwidth=[0.5] * 35),
     gaussian(2) + 0.3 * polynomial(2) + 2 * sobolev() + 0.1 * matern([3.0] * 35, nu=2.5)],
    ids=lambda kernel: kernel.name,
)  # fmt: skip
def test_bandwidths_and_sums(kernel):
    """More columns than are staged at once."""
    S, size = at((1024, 64), (12, 6))
    points = drawn(S, 35)
    expected = kh_compress(points, size=size, kernel=kernel, rng=1)
    kept = kh_compress(points, size=size, kernel=kernel, rng=1, device="cuda")
    np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize(
    ("S", "size"), [(2, 1), (3, 2), at((90, 45), (40, 20)), at((5000, 9), (16, 1))]
)
def test_sizes(S, size):
    points = drawn(S, 2)
    expected = kh_compress(points, size=size, rng=2)
    np.testing.assert_array_equal(host(kh_compress(OnGpu(points), size=size, rng=2)), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_integers_bit_for_bit(dtype):
    """Sums of small integers are exact in any order."""
    S, size = at((4096, 256), (32, 16))
    points = np.random.default_rng(0).integers(-2, 3, (S, 3)).astype(dtype)
    options = {"size": size, "kernel": "linear", "rng": 3}
    expected = kh_compress(points, **options)
    np.testing.assert_array_equal(kh_compress(points, device="cuda", **options), expected)
    np.testing.assert_array_equal(host(kh_compress(OnGpu(points), **options)), expected)


def test_stacks_of_any_layout():
    (B, H), S, size = at(((2, 3), 500, 40), ((1, 2), 10, 3))
    points = drawn(B, H, S, 4)
    for array in (points, points[0, 1], points.transpose(1, 0, 2, 3)[..., ::-1],
                  points.transpose(1, 0, 3, 2)[..., ::2, :].transpose(0, 1, 3, 2),
                  np.broadcast_to(points[0, 0], points.shape)):  # fmt: skip
        expected = kh_compress(array, size=size, rng=4)
        np.testing.assert_array_equal(host(kh_compress(OnGpu(array), size=size, rng=4)), expected)
        kept = kh_compress(array, size=size, rng=4, device="cuda")
        np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize(
    ("S", "dtype"), [(at(600, 12), "f8"), (at(33, 7), "f8"), (33, "f4"), (1, "f8")]
)
def test_gram_matrices(S, dtype):
    """A stack of them; an odd last point is carried over."""
    x = drawn(at(2, 1), 2, S)
    K = np.exp(-((x[..., None] - x[..., None, :]) ** 2)).astype(dtype)
    expected = kernel_halve(K, rng=5)
    np.testing.assert_array_equal(kernel_halve(K, rng=5, device="cuda"), expected)
    swapped = host(kernel_halve(OnGpu(K.swapaxes(0, 1)), rng=5))
    np.testing.assert_array_equal(swapped, expected.swapaxes(0, 1))
    if S > 1:
        K[..., 0, 1] += 1
        with pytest.raises(ValueError, match="K must be symmetric"):
            kernel_halve(OnGpu(K))


@pytest.mark.parametrize("method", ["kh-compress", "halving"])
def test_thin(method):
    points = drawn(at(3000, 20), 2)
    expected = thin(points, at(50, 5), method=method, rng=6)
    kept = thin(points, at(50, 5), method=method, rng=6, device="cuda")
    np.testing.assert_array_equal(kept, expected)
