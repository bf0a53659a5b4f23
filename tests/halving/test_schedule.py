import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.compress import published_rounds
from thinformer import compress_schedule, coreset_size
from thinformer.halving.plan import plan
from thinformer.halving.schedule import published_length


@pytest.mark.parametrize("p", range(1, 9))
@pytest.mark.parametrize("g", range(6))
def test_powers_of_four_are_as_published(p, g):
    n = 4**p
    schedule = compress_schedule(n, coreset_size(n, g), delta=0.3)
    published = published_rounds(n, g, delta=0.3)
    assert schedule.length == n
    assert schedule.size == min(n, 2**g * 2**p)
    assert len(schedule.rounds) == len(published)
    for (pairs, buckets, delta), expected in zip(schedule.rounds, published, strict=True):
        assert (pairs, buckets) == expected[:2]
        assert delta == pytest.approx(expected[2], rel=1e-14)


@pytest.mark.slow
def test_sizes_as_promised():
    """n_out = 2^g sqrt(n), n the largest power of four not above S, and never more than S."""
    for S in range(1, 5001):
        n = 1
        while 4 * n <= S:
            n *= 4
        assert published_length(S) == n
        for g in range(6):
            expected = min(S, 2**g * math.isqrt(n))
            assert coreset_size(S, g) == expected
            settings = plan(S, g, None, 0.5)
            assert settings.schedule.size == expected
            assert plan(S, g, None, 0.5, "stride").schedule.size == min(n, 2**g * math.isqrt(n))


@given(st.data(), st.integers(1, 10**6), st.floats(1e-6, 1))
def test_invariants(data, S, delta):
    size = data.draw(st.integers(1, S))
    schedule = compress_schedule(S, size, delta)
    assert schedule.size == size
    assert S / 2 < schedule.length <= S
    left = schedule.length
    failure = 0.0
    for round_ in schedule.rounds:
        assert left == 2 * round_.pairs
        lengths = {
            (b + 1) * round_.pairs // round_.buckets - b * round_.pairs // round_.buckets
            for b in {0, 1 % round_.buckets, round_.buckets // 2, round_.buckets - 1}
        }
        assert min(lengths) >= 1
        assert 2 * max(lengths) <= round_.largest_bucket
        assert max(lengths) - min(lengths) <= 1
        failure += round_.buckets * round_.delta / 2
        left = round_.pairs
    assert left == size
    if schedule.rounds:
        assert schedule.rounds[-1].buckets == 1
        assert failure == pytest.approx(delta / 2)
