"""Arrays of other libraries that are on the GPU: CuPy's, and tensors as arrays."""

import numpy as np
import pytest
from devices import at, host

from thinformer import attention, compress_kv, kernel_halve, kh_compress
from thinformer.cuda.jit import SIMULATED

pytestmark = pytest.mark.skipif(SIMULATED, reason="CuPy and CUDA tensors need a GPU")
SIZES = at((3000, 60), (20, 5))


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


def test_points_of_cupy(cupy):
    """Read in place, by their strides; the result is CuPy's, and it can be used there."""
    S, size = SIZES
    points = np.random.default_rng(0).standard_normal((S, 6))
    there = cupy.asarray(points)
    for mine, yours in ((points, there), (points[::-1, ::2], there[::-1, ::2]),
                        (points.astype("f4"), there.astype("f4"))):  # fmt: skip
        expected = kh_compress(mine.astype(float), size=size, rng=0)
        kept = kh_compress(yours, size=size, rng=0)
        assert isinstance(kept, cupy.ndarray)
        if mine.dtype == np.float64:
            np.testing.assert_array_equal(kept.get(), expected)
            np.testing.assert_array_equal(yours[kept].get(), mine[expected])
        else:
            assert len(np.unique(kept.get())) == size


def test_keys_of_cupy(cupy):
    S, size = SIZES
    key, value = np.random.default_rng(1).standard_normal((2, 2, S, 3, 8))
    expected = compress_kv(key, value, size=size, rng=0)
    kept = compress_kv(cupy.asarray(key), cupy.asarray(value), size=size, rng=0)
    np.testing.assert_array_equal(kept.get(), expected)


def test_attention_of_cupy(cupy):
    S, size = SIZES
    given = np.random.default_rng(1).standard_normal((3, 2, S, 3, 8))
    options = {"size": size, "correction": "queries", "rng": 0, "return_indices": True}
    expected = attention(*given, **options)
    found = attention(*map(cupy.asarray, given), **options)
    assert isinstance(found.output, cupy.ndarray)
    np.testing.assert_array_equal(found.indices.get(), expected.indices)
    np.testing.assert_allclose(found.output.get(), expected.output, rtol=1e-7, atol=1e-7)


def test_a_stream_of_cupy(cupy):
    """What is still being written there is waited for."""
    S, size = SIZES
    points = np.random.default_rng(2).standard_normal((S, 6))
    expected = kh_compress(points, size=size, rng=0)
    with cupy.cuda.Stream(non_blocking=True):
        there = cupy.zeros((S, 6))
        large = cupy.ones((4096, 4096))
        for _ in range(3):
            large = large @ large / 4096
        there += cupy.asarray(points) + 0 * large[0, 0]
        kept = kh_compress(there, size=size, rng=0)
    np.testing.assert_array_equal(kept.get(), expected)


def test_attention_on_a_stream_of_cupy(cupy):
    S, size = SIZES
    given = np.random.default_rng(1).standard_normal((3, 2, S, 3, 8))
    expected = attention(*given, size=size, rng=0).output
    with cupy.cuda.Stream(non_blocking=True):
        there = cupy.zeros(given.shape)
        large = cupy.ones((4096, 4096))
        for _ in range(3):
            large = large @ large / 4096
        there += cupy.asarray(given) + 0 * large[0, 0]
        output = attention(*there, size=size, rng=0).output
        found = output.get()
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7)


def test_a_gram_matrix_of_cupy(cupy):
    x = np.random.default_rng(3).standard_normal(301)
    K = np.exp(-(np.subtract.outer(x, x) ** 2))
    kept = kernel_halve(cupy.asarray(K), rng=0)
    np.testing.assert_array_equal(kept.get(), kernel_halve(K, rng=0))


def test_tensors_as_arrays():
    torch = pytest.importorskip("torch")
    S, size = SIZES
    points = np.random.default_rng(4).standard_normal((S, 6))
    there = torch.from_numpy(points).cuda()
    kept = kh_compress(there[:, ::2], size=size, rng=0)
    np.testing.assert_array_equal(host(kept), kh_compress(points[:, ::2], size=size, rng=0))
    as_tensor = torch.as_tensor(kept, device="cuda")
    assert as_tensor.is_cuda
    assert as_tensor.tolist() == host(kept).tolist()
