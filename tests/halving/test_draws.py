import numpy as np
import pytest
from scipy import stats

from thinformer import compress_schedule, make_draws
from thinformer.halving.draws import seed_from

SCHEDULE = compress_schedule(1024, 128)


def splitmix64(seed, count):
    """Steele, Lea & Flood's generator in exact integers."""
    out = []
    for i in range(1, count + 1):
        z = (seed + i * 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        out.append(z ^ (z >> 31))
    return out


def mix(z):
    """Its finaliser alone."""
    return splitmix64((z - 0x9E3779B97F4A7C15) % 2**64, 1)[0]


def test_splitmix64_known_answer():
    # the first outputs of the public-domain C code for seed 1234567
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]


def test_values_are_those_of_the_counter():
    draws = make_draws(SCHEDULE, 2**64 - 3, heads=3)
    for head in range(3):
        key = mix((mix(2**64 - 3) + head) % 2**64)
        words = splitmix64(mix((key + 3) % 2**64), 5)  # stream 3: uniforms of round 1
        expected = [2 * (word >> 11) / 2**53 - 1 for word in words]
        assert draws.uniforms[1][head, :5].tolist() == expected
        words = splitmix64(mix((key + 2) % 2**64), SCHEDULE.rounds[0].buckets)
        assert draws.coins[0][head].tolist() == [word >= 2**63 for word in words]
        words = splitmix64(key_of_stream(key, 0), 5)
        assert draws.strata[head, :5].tolist() == [(word >> 11) / 2**53 for word in words]


def key_of_stream(key, stream):
    return mix((key + stream) % 2**64)


def test_shapes_and_ranges():
    draws = make_draws(SCHEDULE, 0, heads=2)
    for round_, uniform, coin in zip(SCHEDULE.rounds, draws.uniforms, draws.coins, strict=True):
        assert uniform.shape == (2, round_.pairs)
        assert coin.shape == (2, round_.buckets)
        assert coin.dtype == bool
        assert uniform.min() >= -1
        assert uniform.max() < 1
    assert draws.strata.shape == (2, SCHEDULE.length + 1)
    assert draws.strata.min() >= 0
    assert draws.strata.max() < 1


def test_one_problem_is_head_zero():
    several, one = make_draws(SCHEDULE, 7, heads=4), make_draws(SCHEDULE, 7)
    for a, b in zip(several.uniforms + several.coins, one.uniforms + one.coins, strict=True):
        np.testing.assert_array_equal(a[0], b)
    np.testing.assert_array_equal(several.strata[0], one.strata)


def test_draws_look_uniform_and_independent():
    """Over seeds, heads, rounds and positions; thresholds leave a right generator a 1e-6 chance."""
    draws = [make_draws(SCHEDULE, seed, heads=8) for seed in range(50)]
    uniforms = np.concatenate([u.ravel() for d in draws for u in d.uniforms])
    assert len(np.unique(uniforms)) == uniforms.size
    assert stats.kstest(uniforms, "uniform", args=(-1, 2)).pvalue > 1e-6
    coins = np.concatenate([c.ravel() for d in draws for c in d.coins])
    assert stats.binomtest(int(coins.sum()), coins.size).pvalue > 1e-6
    first = np.array([d.uniforms[0] for d in draws])  # (seed, head, pair)
    for a, b in ((first[:-1], first[1:]), (first[:, :-1], first[:, 1:]),
                 (first[..., :-1], first[..., 1:])):  # fmt: skip
        correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(a.size)


def test_rng_as_spec_7():
    assert seed_from(3) == seed_from(3) == seed_from(np.random.default_rng(3))
    assert seed_from(3) != seed_from(4)
    assert seed_from(None) != seed_from(None)
    generator = np.random.default_rng(3)
    assert seed_from(generator) != seed_from(generator)
    with pytest.raises(TypeError):
        seed_from("three")
