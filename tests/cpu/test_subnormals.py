"""Numbers below the normal range: none are computed, and none are in the memory of the loops."""

import numpy as np
import pytest

from thinformer import attention, compress_kv, set_num_threads
from thinformer.cpu import centring, halve, herd, landmarks, softmax, subnormals, sums
from thinformer.cpu.run import without_subnormals
from thinformer.halving.problem import make_factor
from thinformer.kernels import linear

TINY = np.finfo(np.float32).tiny
on_x86 = pytest.mark.skipif(not subnormals.ARE_SLOW, reason="only on x86")


def is_subnormal(array):
    return (array != 0) & (np.abs(array) < np.finfo(array.dtype).tiny)


def product():
    return (np.full(16, TINY) * np.float32(0.25)).max()


@on_x86
@pytest.mark.parametrize("threads", [1, 2])
def test_results_below_the_range_are_zero_in_a_loop_only(threads):
    found = []

    def task(first, last):
        found.extend(product() for _ in range(first, last))

    try:
        set_num_threads(threads)
        without_subnormals(task, 8, 1e12)
    finally:
        set_num_threads(None)
    assert found == [0] * 8
    assert product() == TINY / 4


@on_x86
def test_an_error_and_an_end_restore():
    def fails(first, last):
        raise ZeroDivisionError

    def yields(first, last):
        yield 0.0
        raise ZeroDivisionError

    for task in (fails, yields):
        with pytest.raises(ZeroDivisionError):
            without_subnormals(task, 1, 1.0)
        assert product() == TINY / 4


def test_numbers_that_are_read_stay():
    """Values below the range are scaled before they are summed."""
    rng = np.random.default_rng(0)
    query, key = (rng.normal(size=(1, 40, 1, 8)).astype(np.float32) for _ in range(2))
    value = (rng.normal(size=(1, 40, 1, 8)) * TINY / 8).astype(np.float32)
    assert is_subnormal(value).all()
    few = attention(query, key, value, size=10, rng=0, return_indices=True)
    normal = attention(query, key, value * np.float32(2**60), size=10, rng=0, return_indices=True)
    np.testing.assert_array_equal(few.indices, normal.indices)


@on_x86
@pytest.mark.parametrize("correction", [None, "nystrom", "queries"])
def test_peaked_attention_has_no_subnormal_weights(correction):
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(1, 256, 2, 64)).astype(np.float32) for _ in range(3))
    few = attention(
        25 * query, key, value, size=64, rng=0, correction=correction, return_weights=True
    )
    assert (few.weights == 0).mean() > 0.01
    assert not is_subnormal(few.weights).any()


@pytest.mark.parametrize("far", [9.5, 9.8, 10])
def test_halving_sees_subnormal_kernel_values(far):
    """One key is far from all others: the kernel between these is below the range, and decides."""
    rng = np.random.default_rng(0)
    key, value = 0.7 * rng.normal(size=(1, 64, 1, 8)), rng.normal(size=(1, 64, 1, 8))
    key[0, 5, 0] = np.eye(8)[0] * far
    for seed in range(10):
        in_64, in_32 = (
            compress_kv(key.astype(d), value.astype(d), size=16, scale=1.0, rng=seed)
            for d in (np.float64, np.float32)
        )
        np.testing.assert_array_equal(in_32, in_64)


def dirty(shape, dtype=np.float64, *arguments, **options):
    """Memory as a program may leave it."""
    array = np.zeros(shape, dtype)
    if array.dtype.kind == "f":
        array[...] = np.finfo(dtype).tiny / 3
    return array


def test_memory_of_loops_is_clean(monkeypatch):
    keys = np.ones((50, 3), np.float32)
    factor = make_factor(keys, linear())
    monkeypatch.setattr(np, "empty", dirty)
    assert is_subnormal(np.empty(3)).all()
    memory = [
        halve.workspace(50, 3, np.float32),
        herd.workspace(50, 3, np.float64),
        centring.workspace(factor, 50),
        softmax.workspace(50, 8, 8, np.float32),
        sums.workspace(3, np.float32),
    ]
    for each in memory:
        assert each.size > 50
        assert not is_subnormal(each).any()
    assert landmarks.cleared is subnormals.cleared
