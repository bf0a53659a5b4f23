import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import in_domain

from reference import kernels as reference_kernels
from reference.compress import stratified_thin
from thinformer import (
    Draws,
    compress_schedule,
    coreset_size,
    kh_compress,
    make_draws,
    set_num_threads,
)
from thinformer.cpu.run import starting_points
from thinformer.halving.plan import plan
from thinformer.halving.problem import make_factor
from thinformer.kernels import gaussian
from thinformer.kernels.catalogue import KERNELS


@given(st.integers(1, 400), st.integers(0, 4), st.integers(0, 2**32),
       st.sampled_from(sorted(KERNELS)), st.sampled_from(["f2", "f4", "f8"]))  # fmt: skip
def test_indices_are_distinct_and_in_range(S, g, seed, kernel, dtype):
    points = np.random.default_rng(seed).standard_normal((S, 2)).astype(dtype)
    points = in_domain(kernel, points)
    kept = kh_compress(points, g=g, kernel=kernel, rng=seed)
    assert kept.dtype == np.int64
    assert len(kept) == coreset_size(S, g)
    assert np.all(np.diff(kept) > 0)
    assert kept[0] >= 0
    assert kept[-1] < S


@given(st.data(), st.integers(1, 300))
def test_any_size(data, S):
    size = data.draw(st.integers(1, 2 * S))
    points = np.random.default_rng(S).standard_normal((S, 2))
    kept = kh_compress(points, size=size, rng=0)
    assert len(kept) == min(S, size)
    assert np.all(np.diff(kept) > 0)
    if size >= S:
        np.testing.assert_array_equal(kept, np.arange(S))


@pytest.mark.parametrize(("S", "length"), [(12, 8), (100, 64), (2047, 1024), (2047, 1056)])
def test_pre_thinning_gives_every_token_the_same_chance(S, length):
    """Counted over draws: also one of each stratum, in order, distinct."""
    runs = 4000
    rng = np.random.default_rng(0)
    draws = Draws((), (), rng.random((runs, length + 1)))
    settings = plan(S, 0, length, 0.5)
    settings = settings._replace(schedule=settings.schedule._replace(length=length))
    start = starting_points(S, settings, draws, (runs,))
    assert np.all(np.diff(start, axis=1) > 0)
    counts = np.bincount(start.ravel(), minlength=S)
    assert counts.size == S
    chance = length / S
    deviation = (counts - runs * chance) / np.sqrt(runs * chance * (1 - chance))
    assert np.max(np.abs(deviation)) < 5.5
    assert np.mean(deviation**2) < 1.2


@given(st.data(), st.integers(1, 500), st.integers(0, 2**32))
def test_pre_thinning_as_specified(data, S, seed):
    length = data.draw(st.integers(-(-S // 2), S))
    uniform = np.random.default_rng(seed).random(length + 1)
    settings = plan(S, 0, S, 0.5)
    settings = settings._replace(schedule=settings.schedule._replace(length=length))
    got = starting_points(S, settings, Draws((), (), uniform), ())
    np.testing.assert_array_equal(got[0], stratified_thin(S, length, uniform))


@pytest.mark.slow
@pytest.mark.parametrize("S", [64, 100, pytest.param(2047, marks=pytest.mark.nightly)])
def test_every_token_has_the_same_chance(S):
    """To be kept in the end, whatever the points: each stacked problem has draws of its own."""
    runs, size = 4000, 8
    rng = np.random.default_rng(0)
    schedule = compress_schedule(S, size)
    draws = Draws(
        tuple(rng.uniform(-1, 1, (runs, r.pairs)) for r in schedule.rounds),
        tuple(rng.random((runs, r.buckets)) < 0.5 for r in schedule.rounds),
        rng.random((runs, schedule.length + 1)),
    )
    points = np.broadcast_to(np.sort(rng.standard_normal((S, 1)), axis=0), (runs, S, 1))
    kept = kh_compress(points, size=size, draws=draws)
    counts = np.bincount(kept.ravel(), minlength=S)
    expected = runs * size / S
    deviation = (counts - expected) / np.sqrt(expected * (1 - size / S))
    assert np.max(np.abs(deviation)) < 5.5
    assert np.mean(deviation**2) < 1.3


@pytest.mark.parametrize("kernel", ["gaussian", "laplace", "inverse_multiquadric"])
def test_translation_changes_nothing(kernel):
    """Even far from the origin in float32, where |x|^2 would drown |x - y|^2."""
    grid = np.random.default_rng(0).integers(0, 64, (512, 2)) / 64
    near = kh_compress(grid.astype(np.float32), g=1, kernel=kernel, rng=0)
    far = kh_compress((grid + 1000).astype(np.float32), g=1, kernel=kernel, rng=0)
    np.testing.assert_array_equal(near, far)


def test_layouts_dtypes_and_stacks():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((3, 200, 4)).astype(np.float32)
    kept = kh_compress(points, g=1, rng=5)
    copy = points.copy()
    copy.flags.writeable = False
    padded = np.zeros((3, 400, 8), np.float32)
    padded[:, ::2, ::2] = points
    unaligned = np.ndarray(points.shape, np.float32, bytearray(points.nbytes + 1), offset=1)
    unaligned[:] = points
    assert not unaligned.flags.aligned
    same = (copy, padded[:, ::2, ::2], np.asfortranarray(points), points[:, ::-1][:, ::-1],
            unaligned, points.astype(">f4"))  # fmt: skip
    for array in same:
        before = array.copy()
        np.testing.assert_array_equal(kh_compress(array, g=1, rng=5), kept)
        np.testing.assert_array_equal(array, before)
    backwards = np.ascontiguousarray(points[:, ::-1, ::-1])[:, ::-1, ::-1]  # negative strides
    np.testing.assert_array_equal(kh_compress(backwards, g=1, rng=5), kept)
    for i in range(3):
        np.testing.assert_array_equal(kh_compress(points[i], g=1, rng=5), kept[i])
    half = points.astype(np.float16)
    np.testing.assert_array_equal(
        kh_compress(half, g=1, rng=5), kh_compress(half.astype(np.float32), g=1, rng=5)
    )
    assert kh_compress(np.empty((0, 200, 4)), rng=0).shape == (0, 32)


def test_windows_share_memory():
    """Arrays are read in place, whatever their strides."""
    points = np.random.default_rng(0).standard_normal((3, 20, 4))
    for array in (points, points[:, ::-2], points.T, np.broadcast_to(points[0], (5, 20, 4))):
        factor = make_factor(array, gaussian())
        assert np.shares_memory(factor.window, points)
        assert not factor.window.flags.writeable
        place = factor.first[-1] + 3 * factor.row + 2 * factor.column
        assert factor.window[place] == array[(-1,) * (array.ndim - 2) + (3, 2)]


def test_several_threads_are_used(monkeypatch):
    from thinformer.support import threads

    ranges = []
    set_num_threads(4)
    workers, everyone = set(), threading.Barrier(4)

    def meet(first, last):
        workers.add(threading.current_thread())
        everyone.wait(10)  # breaks unless four threads are at work together

    threads.run(meet, 4, 1e9)
    assert len(workers) == 4
    threads.run(lambda first, last: ranges.append((first, last)), 10, 1e9)
    assert sorted(ranges) == [(i, i + 1) for i in range(10)]
    ranges.clear()
    threads.run(lambda first, last: ranges.append((first, last)), 100, 1e9)
    assert sorted(ranges) == [(i, min(i + 6, 100)) for i in range(0, 100, 6)]
    ranges.clear()
    threads.run(lambda first, last: ranges.append((first, last)), 10, 1e3)
    assert ranges == [(0, 10)]  # too little work to hand out

    flops_of_calls, run = [], threads.run

    def recorded(task, units, flops, *of_progress):
        flops_of_calls.append(flops)
        run(task, units, flops, *of_progress)

    monkeypatch.setattr(threads, "run", recorded)
    points = np.random.default_rng(0).standard_normal((4096, 64)).astype(np.float32)
    kh_compress(points, g=2, rng=1)
    assert sum(flops > 4e6 for flops in flops_of_calls) >= 4  # large rounds are handed out


def test_thread_count_changes_nothing():
    points = np.random.default_rng(0).standard_normal((2, 4096, 8)).astype(np.float32)
    results = []
    for threads in (1, 2, 3, 8):
        set_num_threads(threads)
        results.append(kh_compress(points, g=2, rng=1))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_huge_range_is_valid():
    """Magnitudes over which kernels overflow or underflow still give a coreset, silently."""
    rng = np.random.default_rng(0)
    untouched = kh_compress(np.zeros((300, 3)), g=0, rng=0)  # no walk: every decision a tie
    for dtype in (np.float32, np.float64):
        for magnitude in (1e-30, 1, 150, 1e15):
            points = (magnitude * rng.standard_normal((300, 3))).astype(dtype)
            for kernel in KERNELS:
                kept = kh_compress(in_domain(kernel, points), g=0, kernel=kernel, rng=0)
                assert np.all(np.diff(kept) > 0)
                if magnitude == 1:
                    assert not np.array_equal(kept, untouched)
        for points in (np.zeros((300, 3), dtype), np.ones((300, 3), dtype)):
            for kernel in KERNELS:
                assert np.all(np.diff(kh_compress(points, g=0, kernel=kernel, rng=0)) > 0)


class TestStatistics:
    """What kernel halving is for: the error of the kept points falls faster than i.i.d.'s."""

    @staticmethod
    def errors(S, size, runs, rng):
        """P_in f - P_out f of KH-Compress and of i.i.d. samples, over 40 f of unit norm."""
        x = rng.standard_normal((S, 2))
        schedule = compress_schedule(S, size)
        draws = Draws(
            tuple(rng.uniform(-1, 1, (runs, r.pairs)) for r in schedule.rounds),
            tuple(rng.random((runs, r.buckets)) < 0.5 for r in schedule.rounds),
            rng.random((runs, schedule.length + 1)),
        )
        kept = kh_compress(np.broadcast_to(x, (runs, S, 2)), size=size, draws=draws,
                           kernel=gaussian(1.0))  # fmt: skip
        iid = rng.integers(0, S, (runs, size))
        f = reference_kernels.gaussian(x, rng.standard_normal((40, 2)))  # f_z = k(z, .)
        return f[kept].mean(1) - f.mean(0), f[iid].mean(1) - f.mean(0)

    @pytest.mark.slow
    @pytest.mark.parametrize(("g", "share"), [(0, 0.85), (1, 0.7), (2, 0.45)])
    def test_sub_gaussian_parameter(self, g, share):
        """Var(P_in f - P_out f) <= nu^2 |f|^2, with nu^2 summed over the rounds."""
        S = 1024
        size = coreset_size(S, g)
        errors, iid = self.errors(S, size, 1500, np.random.default_rng(g))
        nu_squared = 0.0
        for round_ in compress_schedule(S, size).rounds:
            L = np.log(2 * round_.largest_bucket / round_.delta)
            nu_squared += (0.5 + L) ** 2 / (2 * L * size**2)
        variance = np.mean(errors**2, axis=0)
        assert np.max(variance) < nu_squared
        # and all f together, better than i.i.d. sampling: 0.71, 0.55 and 0.33 were measured
        assert np.mean(variance) < share * np.mean(iid**2)

    @pytest.mark.slow
    def test_rate_of_halving(self):
        """The error falls like log(n_out) / n_out, that of i.i.d. samples like its root."""
        rng = np.random.default_rng(0)
        sizes = np.array([32, 64, 128, 256, 512, 1024])
        ours, iid = np.transpose([
            [np.sqrt(np.mean(e**2)) for e in self.errors(2 * size, size, 200, rng)]
            for size in sizes.tolist()
        ])  # fmt: skip
        L = np.log(4 * sizes / 0.5)
        bound = (0.5 + L) / np.sqrt(2 * L) / sizes
        assert np.all(ours < bound)
        slope = np.polyfit(np.log(sizes), np.log([ours, iid]).T, 1)[0]
        assert slope[0] < -0.8
        assert -0.6 < slope[1] < -0.4
        assert ours[-1] < iid[-1] / 4


def test_draws_by_seed_are_make_draws():
    points = np.random.default_rng(0).standard_normal((500, 2))
    from thinformer.halving.draws import seed_from

    draws = make_draws(compress_schedule(500, 64), seed_from(9))
    np.testing.assert_array_equal(
        kh_compress(points, size=64, rng=9), kh_compress(points, size=64, draws=draws)
    )
