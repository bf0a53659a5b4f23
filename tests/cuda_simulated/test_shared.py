"""Buckets shared between blocks: the same positions as with a block a bucket, and on the CPU."""

import numpy as np
import pytest
from problems import Attention, Points, reference_numpy, smallest_margin
from simulator import THREADS

from thinformer import compress_kv, compress_schedule, kernel_halve, kh_compress, make_draws
from thinformer.cuda import launches, rounds
from thinformer.cuda.shared import Sharing, numbers_a_bucket
from thinformer.kernels import energy, gaussian, polynomial

PANEL, ROWS = 32, THREADS // 2


@pytest.fixture
def share(monkeypatch):
    """Shares the buckets of all rounds; returns what was launched."""
    launched = []
    halve_shared = rounds.halve_shared

    def counted(*arguments):
        launched.append(arguments[2])
        memory = arguments[7]
        memory[:] = np.nan  # what is read must be written before
        halve_shared(*arguments)

    def start(width, tiles=1):
        monkeypatch.setattr(launches, "LAUNCH_FLOPS", 0)
        monkeypatch.setattr(rounds, "halve_shared", counted)
        monkeypatch.setattr(
            launches, "sharing", lambda r, *_: Sharing(width, r.largest_bucket, tiles)
        )
        return launched

    return start


@pytest.mark.parametrize(
    ("S", "size", "width", "tiles"),
    [(64, 32, 32, 1), (66, 33, 32, 1), (62, 31, 32, 3), (130, 65, 64, 2), (104, 26, 32, 1),
     (132, 33, 32, 3), (16, 4, 32, 1)],
)  # fmt: skip
def test_points(S, size, width, tiles, share):
    """Spans that end with a bucket, before it and behind it; buckets of 16 pairs and of 17."""
    rng = np.random.default_rng(0)
    schedule = compress_schedule(S, size)
    problem = Points(rng.standard_normal((schedule.length, 2)), "gaussian")
    draws = make_draws(schedule, 1)
    expected, traces = reference_numpy(problem, schedule, draws)
    assert smallest_margin(traces) > 1e-12
    options = {"size": size, "draws": draws, "device": "cuda"}
    np.testing.assert_array_equal(kh_compress(problem.points, **options), expected)
    launched = share(width, tiles)
    np.testing.assert_array_equal(kh_compress(problem.points, **options), expected)
    assert [one.first_round for one in launched] == list(range(len(schedule.rounds)))


@pytest.mark.parametrize(("S", "size", "width"), [(128, 32, 32), (100, 50, 64)])
def test_attention(S, size, width, share):
    """Three heads, each with draws of its own; the shift is the largest norm of all spans."""
    rng = np.random.default_rng(0)
    schedule = compress_schedule(S, size)
    key = rng.standard_normal((1, S, 3, 3))
    key[:, S // 7, 0] *= 30  # any smaller shift gives infinity
    key[:, 2 * S // 3, 1] *= 30
    problem = Attention(key, rng.standard_normal((1, S, 3, 5)))
    draws = make_draws(schedule, 2, 3)
    expected, traces = reference_numpy(problem, schedule, draws)
    assert smallest_margin(traces) > 1e-12
    options = {"size": size, "draws": draws, "device": "cuda"}
    np.testing.assert_array_equal(compress_kv(*problem, **options), expected)
    launched = share(width)
    np.testing.assert_array_equal(compress_kv(*problem, **options), expected)
    assert len(launched) == len(schedule.rounds)


def test_sums_of_kernels_and_gram_matrices(share):
    points = np.random.default_rng(0).standard_normal((2, 90, 2))
    kernel = gaussian([0.5, 1]) + 0.3 * polynomial(2) + energy()
    expected = kh_compress(points, size=45, kernel=kernel, rng=3)
    K = np.exp(-((points[:, :, :1] - points[:, None, :, 0]) ** 2))
    of_matrices = kernel_halve(K[:, :89, :89], rng=1)
    launched = share(64)
    found = kh_compress(points, size=45, kernel=kernel, rng=3, device="cuda")
    np.testing.assert_array_equal(found, expected)
    found = kernel_halve(K[:, :89, :89], rng=1, device="cuda")
    np.testing.assert_array_equal(found, of_matrices)
    assert len(launched) == 2


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_tensors(dtype, share, torch_on_the_simulator):
    """The memory is torch's; a schedule's rounds take turns in it; by tensor cores too."""
    import torch

    from thinformer.halving.plan import plan
    from thinformer.torch.choose.operators import select
    from thinformer.torch.choose.seeds import bits_of_seed

    launched = share(32)
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn((2, 1, 72, 1, 3), generator=generator).to(getattr(torch, dtype))
    kept, finite = torch_on_the_simulator.select(
        key, value, settings=plan(72, 0, 18, 0.5), scale=0.7, seed=torch.tensor(bits_of_seed(5))
    )
    expected, _, _ = select(key, value, None, torch.tensor(5), 0, 18, 0.7, "even", 0)
    assert torch.equal(kept, expected)
    assert finite.all()
    assert [one.shared.points for one in launched] == [18, 36]


def test_memory_of_a_bucket():
    """Stored values, sums of 5 blocks, 3 norms, the largest b: 70 rows in tiles of 16."""
    sharing = Sharing(32, 70, 1)
    assert numbers_a_bucket(sharing, THREADS) == 32 * 32 + 5 * 32 + 3 + 1
    assert launches.span_launches(sharing, 6, THREADS) == [(0, 6 * 2), (32, 6 * 4), (64, 6 * 5)]
