"""Many heads, more than a grid has along its other axes; long sequences; many launches."""

import numpy as np
from devices import OnGpu, at, host

from thinformer import compress_kv, kh_compress


def test_70000_heads():
    H = at(70_000, 3)
    key, value = np.random.default_rng(0).standard_normal((2, 1, 12, H, 2))
    expected = compress_kv(key, value, size=3, rng=0)
    np.testing.assert_array_equal(host(compress_kv(OnGpu(key), OnGpu(value), size=3, rng=0)),
                                  expected)  # fmt: skip
    np.testing.assert_array_equal(compress_kv(key, value, size=3, rng=0, device="cuda"), expected)


def test_70000_sets():
    points = np.random.default_rng(0).random((at(70_000, 3), 8, 2))
    expected = kh_compress(points, size=2, rng=0)
    np.testing.assert_array_equal(host(kh_compress(OnGpu(points), size=2, rng=0)), expected)


def test_64k_tokens():
    S, size = at((65536, 1024), (36, 6))
    key, value = np.random.default_rng(0).standard_normal((2, 1, S, 2, 16))
    expected = compress_kv(key, value, size=size, rng=0)
    np.testing.assert_array_equal(host(compress_kv(OnGpu(key), OnGpu(value), size=size, rng=0)),
                                  expected)  # fmt: skip


def test_a_million_points():
    S, size = at((2**20, 1024), (32, 2))
    points = np.random.default_rng(0).standard_normal((S, 2))
    expected = kh_compress(points, size=size, rng=0)
    np.testing.assert_array_equal(host(kh_compress(OnGpu(points), size=size, rng=0)), expected)


def test_a_batch_of_images():
    """As of T2T-ViT with 64 images: problems enough for rounds that share a launch."""
    B, S, size = at((300, 784, 98), (5, 8, 2))
    key, value = np.random.default_rng(0).standard_normal((2, B, S, 1, 16))
    expected = compress_kv(key, value, size=size, rng=0)
    np.testing.assert_array_equal(
        compress_kv(key, value, size=size, rng=0, device="cuda"), expected
    )
