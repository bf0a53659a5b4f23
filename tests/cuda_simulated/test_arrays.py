"""Arrays of other libraries that are in a GPU's memory."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from simulator import OnGpu, host

from thinformer import (
    compress_kv,
    compress_schedule,
    kernel_halve,
    kh_compress,
    make_draws,
)
from thinformer.cuda import arrays
from thinformer.cuda.jit import cuda
from thinformer.halving.plan import plan
from thinformer.kernels import exponential, gaussian, matern, polynomial, stein

LAYOUTS = {
    "contiguous": lambda x: x,
    "one set": lambda x: x[0, 1],
    "transposed": lambda x: x.transpose(1, 0, 3, 2)[..., ::2, :].transpose(0, 1, 3, 2)[:, :, ::-1],
    "expanded": lambda x: np.broadcast_to(x[0, 0], x.shape),
    "float16": lambda x: x.astype(np.float16),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_points_that_are_on_a_gpu(layout, arrays_on_the_simulator):
    """Read in place, whatever their strides; the result stays there."""
    points = LAYOUTS[layout](np.random.default_rng(0).standard_normal((2, 3, 20, 4)))
    expected = kh_compress(points, size=5, rng=0)
    kept = kh_compress(OnGpu(points), size=5, rng=0)
    np.testing.assert_array_equal(host(kept), expected)
    schedule = compress_schedule(20, 5)
    drawn = (
        make_draws(schedule, 1, points.shape[-3]) if points.ndim > 2 else make_draws(schedule, 1)
    )
    expected = kh_compress(points, size=5, draws=drawn)
    kept = kh_compress(OnGpu(points), size=5, draws=drawn, device="cuda")
    np.testing.assert_array_equal(host(kept), expected)


@pytest.mark.parametrize(
    "kernel", [polynomial(2, bandwidth=[1, 0.5]), gaussian() + 2 * matern([1, 2]), exponential(3)]
)
def test_kernels_of_points_that_are_on_a_gpu(kernel, arrays_on_the_simulator):
    points = np.random.default_rng(0).standard_normal((30, 2))
    expected = kh_compress(points, size=7, kernel=kernel, rng=0)
    kept = kh_compress(OnGpu(points), size=7, kernel=kernel, rng=0)
    np.testing.assert_array_equal(host(kept), expected)


@pytest.mark.parametrize("pre_thin", ["even", "stride"])
def test_keys_that_are_on_a_gpu(pre_thin, arrays_on_the_simulator):
    """Keys and values of different strides, drawn there or given draws."""
    rng = np.random.default_rng(0)
    key, value = rng.standard_normal((2, 3, 22, 2)), rng.standard_normal((2, 22, 3, 6))
    key, value = key.transpose(0, 2, 1, 3), value[..., ::-2]
    draws = make_draws(plan(22, 0, 4, 0.5, pre_thin).schedule, 1, 3)
    for options in ({"rng": 5}, {"draws": draws}):
        options |= {"size": 4, "pre_thin": pre_thin, "scale": 0.7}
        expected = compress_kv(key, value, **options)
        kept = compress_kv(OnGpu(key), OnGpu(value), **options)
        np.testing.assert_array_equal(host(kept), expected)
    everything = host(compress_kv(OnGpu(key), OnGpu(value), size=30))
    np.testing.assert_array_equal(everything, np.broadcast_to(np.arange(22), (2, 3, 22)))
    assert compress_kv(OnGpu(key[:0]), OnGpu(value[:0]), size=4).shape == (0, 3, 4)


def test_cupy_gets_an_array_of_cupy(arrays_on_the_simulator, monkeypatch):
    class OfCuPy(OnGpu):
        __module__ = "cupy"

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(asarray=lambda kept: ("cupy", kept)))
    points = np.random.default_rng(0).standard_normal((20, 2))
    library, kept = kh_compress(OfCuPy(points), size=5, rng=0)
    assert library == "cupy"
    np.testing.assert_array_equal(host(kept), kh_compress(points, size=5, rng=0))


def test_what_is_being_written_is_waited_for(arrays_on_the_simulator, monkeypatch):
    """The stream that the interface names; the whole GPU where it is too old to name one."""
    waited = []
    stream = lambda handle: SimpleNamespace(synchronize=lambda: waited.append(handle))  # noqa: E731
    monkeypatch.setattr(cuda, "external_stream", stream, raising=False)
    monkeypatch.setattr(cuda, "synchronize", lambda: waited.append("all"))
    points = np.random.default_rng(0).standard_normal((8, 2))
    key = points.reshape(1, 8, 1, 2)
    kh_compress(OnGpu(points), size=2)
    assert waited == []
    compress_kv(OnGpu(key, stream=7), OnGpu(key, stream=7), size=2)
    assert waited == [7]
    kh_compress(OnGpu(points, version=2), size=2)
    assert waited == [7, "all"]


def test_bad_arrays_on_a_gpu(arrays_on_the_simulator, monkeypatch):
    points = np.random.default_rng(0).standard_normal((4, 5, 6, 2))
    bad = points.copy()
    bad[1, 2, 3, 1] = np.inf
    far = np.float32([[3e19, 0], [0, 0]])
    key = points[:1]
    spoiled = np.where(key == key.max(), np.nan, key)
    K = np.eye(6)
    skew = K + np.triu(np.full((6, 6), 1e-6), 1)
    square = K.reshape(1, 6, 6)
    for error, message, call in (
        (ValueError, "points must be finite", lambda: kh_compress(OnGpu(bad[1]), size=2)),
        (ValueError, "key must be finite", lambda: compress_kv(OnGpu(spoiled), OnGpu(key), size=2)),
        (ValueError, "value must be finite",
         lambda: compress_kv(OnGpu(key), OnGpu(spoiled), size=2)),
        (ValueError, "K must be symmetric; got entries that differ by 1e-06",
         lambda: kernel_halve(OnGpu(skew))),
        (ValueError, "K must be finite",
         lambda: kernel_halve(OnGpu(np.where(K > 0, np.nan, K)))),
        (ValueError, "K must have shape", lambda: kernel_halve(OnGpu(K[:5]))),
        (ValueError, r"points must have shape \(..., S, d\)", lambda: kh_compress(OnGpu(K[0]))),
        (ValueError, "kernel matern overflows",
         lambda: kh_compress(OnGpu(far), size=1, kernel="matern")),
        (NotImplementedError, "`thin` takes Stein kernels and functions; got stein",
         lambda: kh_compress(OnGpu(points), kernel=stein(points[0, 0]))),
        (NotImplementedError, "leading axes that are not at equal distances",
         lambda: kh_compress(OnGpu(points[:, :3, None].repeat(2, 2)[:, :, ::2]
                                   .swapaxes(0, 1)[:, :3]), size=2)),
        (TypeError, "points must be float16, float32 or float64; got '<i8'",
         lambda: kh_compress(OnGpu(np.arange(8).reshape(4, 2)))),
        (TypeError, "got '<V2'", lambda: kh_compress(OnGpu(points, typestr="<V2"))),
        (ValueError, "points must have no mask", lambda: kh_compress(OnGpu(points, mask=OnGpu(K)))),
        (ValueError, "strides of whole numbers",
         lambda: kh_compress(OnGpu(np.zeros((4, 20), "u1")[:, :16].view(np.float64)))),
        (TypeError, "key must have|key, value must have one dtype",
         lambda: compress_kv(OnGpu(key), OnGpu(key.astype("f4")))),
        (ValueError, "key, value must be in one memory; got value on a GPU, key in the CPU's",
         lambda: compress_kv(key, OnGpu(key))),
        (TypeError, 'points must be in the CPU\'s memory for device="cpu"',
         lambda: kh_compress(OnGpu(points), device="cpu")),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            call()
    assert kernel_halve(OnGpu(square)).shape == (1, 3)
    assert kernel_halve(OnGpu(K + (skew - K) / 1000)).shape == (3,)  # of rounding
    monkeypatch.setattr(arrays, "device_of", lambda pointer: int(pointer == key.ctypes.data))
    with pytest.raises(ValueError, match="key, value must be on one GPU; got key on 1, value on 0"):
        compress_kv(OnGpu(key), OnGpu(spoiled), size=2)


def test_no_memory_for_arrays_on_a_gpu(arrays_on_the_simulator, monkeypatch):
    """The error says how much; the next call works."""

    def no_memory(*shape):
        raise RuntimeError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")

    points = np.random.default_rng(0).standard_normal((16, 2))
    # positions before each round, draws, what is measured, parameters, positions kept
    nbytes = 8 * 2 * 16 + 8 * (12 + 5) + 8 + 1 + 8 * 6 + 8 * 4
    with monkeypatch.context() as patch:
        patch.setattr(cuda, "device_array", no_memory)
        with pytest.raises(MemoryError, match=f"not enough memory for {nbytes} bytes"):
            kh_compress(OnGpu(points), size=4)
    assert kh_compress(OnGpu(points), size=4).shape == (4,)
