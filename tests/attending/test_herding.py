"""Herding: attention with a temperature and no correction."""

import numpy as np
import pytest

from reference import herding as reference
from thinformer import attention, compress_schedule, make_draws, set_num_threads
from thinformer.attending import herding
from thinformer.attending.options import KeySelection
from thinformer.cpu.run import draw_numbers, starting_points
from thinformer.data import load_activations
from thinformer.halving.plan import Plan
from thinformer.measuring.demo import relative_error, uniform

# sequences, keys, queries, heads, dimensions of keys and values, keys kept
SHAPES = [
    (1, 30, 30, 1, 3, 2, 9),  # all keys are candidates
    (2, 100, 40, 2, 4, 5, 16),
    (1, 400, 10, 3, 8, 6, 20),
    (1, 257, 257, 1, 16, 80, 40),
    (1, 11, 11, 1, 2, 2, 1),
    (1, 20, 20, 1, 40, 2, 5),  # more dimensions than tokens
    (1, 40, 40, 1, 64, 3, 10),
]


def arrays(shape, dtype=np.float64, seed=0):
    B, S, T, H, E, D, _ = shape
    rng = np.random.default_rng(seed)
    query, key, value = (
        rng.normal(size=size).astype(dtype) for size in ((B, T, H, E), (B, S, H, E), (B, S, H, D))
    )
    return query, key + 3, value + 1


def chosen(query, key, value, size, temperature="auto", rng=0, **settings):
    return attention(
        query, key, value, size=size, temperature=temperature, rng=rng, return_indices=True,
        **settings,
    ).indices  # fmt: skip


def specified(query, key, value, size, temperature, seed):
    (B, S, H, E) = key.shape
    schedule = herding.candidate_schedule(S, size)
    draws = draw_numbers(schedule, seed, H)
    start = starting_points(S, Plan(schedule, "even"), draws, (B, H)).reshape(B, H, -1)
    return [
        [
            reference.select_herded(
                query[b, :, h], key[b, :, h], value[b, :, h], E**-0.5, size, schedule.rounds,
                [coins[h] for coins in draws.coins], start[b, h], temperature,
            )
            for h in range(H)
        ]
        for b in range(B)
    ]  # fmt: skip


@pytest.mark.parametrize("temperature", [None, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_the_specification_chooses(shape, temperature):
    for seed in range(3):
        data = arrays(shape, seed=seed)
        got, finite = herding.herd_keys(
            *data,
            KeySelection(temperature=temperature or "auto"),
            n_out=shape[-1],
            scale=shape[4] ** -0.5,
            seed=seed,
        )
        np.testing.assert_array_equal(got, specified(*data, shape[-1], temperature, seed))
        assert finite.all()


@pytest.mark.parametrize("number", [1e30, -1e30])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_memory_held_before_does_not_matter(shape, number, fill_workspaces):
    """Scores of points that only fill a panel up are never the least."""
    fill_workspaces(number)
    data = arrays(shape)
    got, _ = herding.herd_keys(
        *data, KeySelection(temperature="auto"), n_out=shape[-1], scale=shape[4] ** -0.5, seed=0
    )
    np.testing.assert_array_equal(got, specified(*data, shape[-1], None, 0))


@pytest.mark.parametrize("temperature", ["auto", 1.0])
def test_squares_beyond_the_range(temperature):
    """Finite numbers whose squares are not: no NaN, and no keys chosen at a loss without a word."""
    query, key, value = arrays((1, 64, 8, 2, 4, 3, 16), np.float32)
    key[:, :, 0] *= 1e25
    query[:, :, 0] *= 1e-25
    if temperature == "auto":
        output = attention(query, key, value, size=16, temperature=temperature).output
        assert np.isfinite(output).all()
        return
    message = r"^key must have norms below 1\.8e\+19, .* float32; .* or give float64"
    with pytest.raises(ValueError, match=message):  # whatever the temperature
        attention(query, key, value, size=16, temperature=temperature)


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_chooses_as_well(shape):
    """A tie within rounding may fall either way: distances are compared, not positions."""
    query, key, value = arrays(shape)
    size, scale = shape[-1], shape[4] ** -0.5
    few = chosen(*(x.astype(np.float32) for x in (query, key, value)), size)
    for b, h in np.ndindex(few.shape[:2]):
        tau = reference.temperature(query[b, :, h], key[b, :, h], scale)
        K = reference.herding_kernel(key[b, :, h], value[b, :, h], scale, tau)
        exact = specified(query, key, value, size, None, seed_of(0))[b][h]
        assert distance(K, few[b, h]) < 1.02 * distance(K, exact) + 1e-6 * K.max()


def seed_of(rng):
    from thinformer.halving.draws import seed_from

    return seed_from(rng)


def distance(K, kept):
    """The squared distance of the mean of some from that of all."""
    return K[np.ix_(kept, kept)].mean() - 2 * K[kept].mean() + K.mean()


def test_every_choice_is_the_nearest():
    """From scratch: the distance of each candidate's mean, for every turn of both passes."""
    rng = np.random.default_rng(0)
    for points, size in ((12, 5), (20, 1), (9, 8)):
        x = rng.normal(size=(points, 3))
        K = np.exp(x @ x.T) * (1 + x @ x.T)
        kept = []
        for turn in range(2 * size):
            kept = kept[1:] if turn >= size else kept
            left = [i for i in range(points) if i not in kept]
            kept = [*kept, min(left, key=lambda i, kept=kept: distance(K, [*kept, i]))]
        np.testing.assert_array_equal(reference.herd(K, size), sorted(kept))


def test_shifts_and_scales_that_attention_does_not_see():
    shape = (1, 300, 50, 2, 8, 4, 32)
    query, key, value = arrays(shape)
    few = chosen(query, key, value, 32)
    np.testing.assert_array_equal(chosen(query, key + 5, value, 32), few)
    np.testing.assert_array_equal(chosen(query / 8, 8 * key, value, 32), few)
    np.testing.assert_array_equal(chosen(query, key, 1e200 * value, 32), few)
    half = chosen(query, key, value, 32, 2.0)
    np.testing.assert_array_equal(chosen(query, 4 * key, value, 32, 8.0), half)
    assert not np.array_equal(half, few)


def test_a_sequence_alone_and_threads():
    shape = (3, 200, 50, 2, 8, 4, 32)
    query, key, value = arrays(shape, np.float32)
    together = chosen(query, key, value, 32)
    alone = chosen(query[1:2], key[1:2], value[1:2], 32)
    np.testing.assert_array_equal(alone, together[1:2])
    set_num_threads(1)
    try:
        np.testing.assert_array_equal(chosen(query, key, value, 32), together)
    finally:
        set_num_threads(None)
    assert (np.diff(together) > 0).all()
    assert not np.array_equal(chosen(query, key, value, 32, rng=1), together)


def test_weights_are_equal_and_all_keys_are_exact():
    query, key, value = arrays((1, 60, 20, 2, 4, 3, 12))
    output, weights, indices = attention(
        query, key, value, size=12, temperature="auto", rng=0, return_weights=True,
        return_indices=True,
    )  # fmt: skip
    for h in range(2):
        logits = np.exp(query[0, :, h] @ key[0, indices[0, h], h].T / 2)
        p = logits / logits.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(weights[0, h], p, rtol=1e-12)
        np.testing.assert_allclose(output[0, :, h], p @ value[0, indices[0, h], h], rtol=1e-12)
    exact = attention(query, key, value, size=60).output
    np.testing.assert_array_equal(
        attention(query, key, value, size=60, temperature="auto").output, exact
    )


@pytest.mark.parametrize(("name", "size", "most"), [("text", 64, 0.9), ("vision", 128, 0.92),
                                                    ("audio", 128, 0.9)])  # fmt: skip
def test_nearer_than_uniform_sampling(name, size, most):
    layers = [
        [layer[role].astype(np.float32) for role in ("query", "key", "value")]
        for layer in load_activations(name).values()
    ]
    exact = [attention(*layer, size=layer[1].shape[1]).output for layer in layers]
    ours = [attention(*layer, size=size, temperature="auto", rng=0).output for layer in layers]
    sampled = [relative_error(uniform(layers, size, seed), exact) for seed in range(3)]
    assert relative_error(ours, exact) < most * np.mean(sampled)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nothing_to_choose_by(dtype):
    """Zeros, equal keys and single entries at the end of the range: finite, and distinct keys."""
    query, key, value = arrays((1, 100, 10, 1, 4, 3, 12), dtype)
    huge = np.finfo(dtype).max / 1000  # softmax sums a dozen of them
    spike = key.copy()
    spike[0, 7] = np.sqrt(huge)
    for case in ((0 * query, key, value), (query, 0 * key + 1, value), (query, key, 0 * value),
                 (query, spike, value), (query, key, 0 * value + huge)):  # fmt: skip
        output, _, indices = attention(
            *case, size=12, temperature="auto", rng=0, return_indices=True
        )
        assert np.isfinite(output).all()
        assert (np.diff(indices) > 0).all()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"pre_thin": "stride"}, ValueError, "with a temperature they may not be given"),
        ({"delta": 0.1}, ValueError, "with a temperature they may not be given"),
        ({"draws": make_draws(compress_schedule(64, 16), 0)}, ValueError, "with a temperature"),
        ({"temperature": "warm"}, ValueError, "temperature must be .*auto.*warm"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite; got 0.0"),
        ({"temperature": 1e-300}, ValueError, "temperature must be larger: .*; got 1e-300"),
        ({"device": "cuda"}, (NotImplementedError, RuntimeError), "temperature|GPU"),
    ],
)
def test_errors(settings, error, message):
    data = arrays((1, 64, 8, 1, 4, 3, 16))
    with pytest.raises(error, match=message):
        attention(*data, **{"size": 16, "temperature": "auto"} | settings)


def test_nan_raises():
    query, key, value = arrays((1, 64, 8, 1, 4, 3, 16))
    for name, array in (("query", query), ("key", key), ("value", value)):
        for bad, temperature in ((np.nan, "auto"), (np.inf, "auto"), (np.inf, 1.0)):
            array[0, 3, 0, 1] = bad
            with pytest.raises(ValueError, match=f"^{name} must be finite"):
                attention(query, key, value, size=16, temperature=temperature)
        array[0, 3, 0, 1] = 0


@pytest.mark.parametrize(
    ("points", "size", "length", "rounds"),
    [(1370, 128, 768, [(384, 12)]), (512, 64, 384, [(192, 12)]), (300, 128, 300, []),
     (4096, 256, 3072, [(1536, 48), (768, 12)]), (40, 5, 30, [(15, 7)])],
)  # fmt: skip
def test_halvings_before(points, size, length, rounds):
    schedule = herding.candidate_schedule(points, size)
    assert (schedule.length, schedule.size) == (length, min(points, 3 * size))
    assert [(r.pairs, r.buckets) for r in schedule.rounds] == rounds
