"""Herding in torch: a temperature without a correction."""

import numpy as np
import pytest
import torch
from compiling import compiled
from tensors import drawn, everything, qkv, seeded

from reference import herding as reference
from thinformer import ThinformerAttention, attention, thinformer_attention
from thinformer.attending import herding
from thinformer.cpu.run import draw_numbers, starting_points
from thinformer.halving.draws import seed_from
from thinformer.halving.plan import Plan
from thinformer.torch.choose.operators import herd

HERDED = {"size": 20, "temperature": "auto"}


def specified(query, key, value, size, tau=None, seed=0):
    """Positions (H, size) that the specification keeps of one sequence, without masks."""
    (S, H, E), schedule = key.shape, herding.candidate_schedule(len(key), size)
    draws = draw_numbers(schedule, seed_from(drawn(seed)), H)
    start = starting_points(S, Plan(schedule, "even"), draws, (1, H)).reshape(H, -1)
    group = query.shape[1] // H
    return [
        reference.select_herded(
            query.numpy()[:, h * group : (h + 1) * group].reshape(-1, E), key.numpy()[:, h],
            value.numpy()[:, h], E**-0.5, size, schedule.rounds, [c[h] for c in draws.coins],
            start[h], tau,
        )
        for h in range(H)
    ]  # fmt: skip


@pytest.mark.parametrize("temperature", ["auto", 0.7, 2])
def test_as_numpy_and_the_specification(temperature):
    tensors = qkv()
    options = {"size": 20, "temperature": temperature}
    got = everything(*tensors, **options)
    expected = attention(
        *(x.numpy() for x in tensors), rng=drawn(), return_weights=True, return_indices=True,
        **options,
    )  # fmt: skip
    np.testing.assert_array_equal(got.indices, expected.indices)
    np.testing.assert_allclose(got.output, expected.output, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got.weights, expected.weights, rtol=1e-12)
    tau = None if temperature == "auto" else temperature
    np.testing.assert_array_equal(got.indices[1], specified(*(x[1] for x in tensors), 20, tau))
    module = ThinformerAttention(generator=torch.Generator().manual_seed(0), **options)
    torch.testing.assert_close(module(*tensors)[0], got.output)
    assert f"temperature={temperature!r}" in repr(module)


def test_queries_of_a_group_count_together():
    query, key, value = qkv(H=4, H_kv=2)
    query *= 0.1  # so that its norms matter
    query[:, :, 1] *= 5
    got = everything(query, key, value, enable_gqa=True, **HERDED)
    for b in range(2):
        np.testing.assert_array_equal(got.indices[b], specified(query[b], key[b], value[b], 20))
    without = everything(query[:, :, ::2], key, value, **HERDED)
    assert not torch.equal(without.indices, got.indices)


@pytest.mark.parametrize("H_kv", [4, 2])
@pytest.mark.parametrize("settings", [{"size": 20}, {"g": 1}])
def test_padded_as_alone(H_kv, settings):
    """With NaN in the padding, of queries too: at T = S those do not count for the temperature."""
    lengths, T = [200, 90, 15, 0, 90], 200
    query, key, value = qkv(B=5, T=T, S=T, H_kv=H_kv)
    query *= 0.1  # so that its norms matter
    generator = torch.Generator().manual_seed(1)
    places = [torch.randperm(T, generator=generator)[:length].sort().values for length in lengths]
    padding = torch.ones(5, T, dtype=torch.bool)
    for row, place in zip(padding, places, strict=True):
        row[place] = False
    for tensor in (query, key, value):
        tensor[padding] = torch.nan
    options = {**settings, "temperature": "auto", "enable_gqa": True}
    got = everything(query, key, value, key_padding_mask=padding, **options)
    for b, place in enumerate(places):
        if len(place) == 0:
            assert (got.output[b].nan_to_num() == 0).all()
            continue
        own = [x[b : b + 1, place] for x in (query, key, value)]
        alone = everything(*own, **options)
        few = alone.indices.shape[-1]
        assert torch.equal(got.indices[b, :, :few], place[alone.indices[0]])
        assert (got.indices[b, :, few:] == -1).all()
        torch.testing.assert_close(got.output[b, place], alone.output[0])
        torch.testing.assert_close(got.weights[b, :, place, :few], alone.weights[0])


def test_nested_as_alone():
    sequences = [0.1 * torch.stack(qkv(B=1, T=S, S=S, D=8, seed=S)) for S in (200, 90)]
    nested = [
        torch.nested.nested_tensor([x[i, 0] for x in sequences], layout=torch.jagged)
        for i in range(3)
    ]
    got = everything(*nested, **HERDED)
    for b, (x, output) in enumerate(zip(sequences, got.output.unbind(), strict=True)):
        alone = everything(*x, **HERDED)
        assert torch.equal(got.indices[b], alone.indices[0])
        torch.testing.assert_close(output, alone.output[0])


def test_short_sequences_keep_all():
    tensors = qkv(T=90, S=90)
    padding = torch.arange(90) >= torch.tensor([[90], [39]])
    arguments = (*tensors, padding.logical_not(), torch.tensor(3), 2, 20, 0.5, None)
    indices, counts, finite = herd(*arguments, 40)
    assert (counts.tolist(), indices.shape) == ([20, 39], (2, 4, 39))
    assert torch.equal(indices[1], torch.arange(39).expand(4, 39))
    assert finite.all()
    indices, counts, _ = herd(*arguments, 39)
    assert (counts.tolist(), indices.shape) == ([20, 20], (2, 4, 38))
    indices, counts, _ = herd(*arguments, 91)
    assert (counts.tolist(), indices.shape) == ([90, 39], (2, 4, 90))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("temperature", ["auto", 1.0])
@pytest.mark.parametrize("role", [0, 1, 2])
def test_a_head_that_is_not_finite_leaves_the_others(role, temperature, bad):
    tensors = qkv()
    expected = everything(*tensors, size=20, temperature=temperature)
    tensors[role][1, 5, 2, 1] = bad
    got = everything(*tensors, size=20, temperature=temperature)
    assert got.output[1, :, 2].isnan().all()
    assert ((got.indices >= 0) & (got.indices < 300)).all()
    for of_all in (got.output, expected.output):
        of_all[1, :, 2] = 0
    got.indices[1, 2] = expected.indices[1, 2]
    assert torch.equal(got.indices, expected.indices)
    torch.testing.assert_close(got.output, expected.output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_chooses_as_float32(dtype):
    tensors = qkv(dtype=dtype)
    got, same = everything(*tensors, **HERDED), everything(*(x.float() for x in tensors), **HERDED)
    assert torch.equal(got.indices, same.indices)
    assert got.output.dtype == got.weights.dtype == dtype
    torch.testing.assert_close(got.output.float(), same.output, rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_gradcheck():
    tensors = [x.requires_grad_() for x in qkv(B=1, T=3, S=60, H=2, E=3, D=2)]
    assert torch.autograd.gradcheck(
        lambda *x: seeded(*x, size=6, temperature="auto"), tensors, fast_mode=True
    )


@pytest.mark.slow
def test_compiles_whole():
    tensors, mask = qkv(), torch.ones(2, 300, dtype=torch.bool)
    mask[1, 100:] = False

    def forward(query, key, value):
        return thinformer_attention(query, key, value, key_padding_mask=~mask, **HERDED)

    torch.manual_seed(0)
    expected = forward(*tensors)
    function, counter = compiled(forward)
    torch.manual_seed(0)
    torch.testing.assert_close(function(*tensors), expected)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked):
    tensors = qkv(B=2, S=60, H_kv=2)
    valid = torch.arange(60) < torch.tensor([[60], [50]]) if masked else None
    arguments = (*tensors, valid, torch.tensor(3), 2, 20, 0.5, None, 0)
    torch.library.opcheck(herd, arguments, test_utils=("test_schema", "test_faketensor"))


def test_vmap():
    tensors = [torch.stack((x, x + 1)) for x in qkv(B=1, S=60)]
    got = torch.vmap(lambda *x: thinformer_attention(*x, **HERDED), randomness="same")(*tensors)
    torch.manual_seed(3)
    assert got.shape == (2, 1, 7, 4, 5)
    same = torch.vmap(lambda *x: thinformer_attention(*x, **HERDED), randomness="same")
    torch.manual_seed(3)
    expected = thinformer_attention(*(x[1] for x in tensors), **HERDED)
    torch.manual_seed(3)
    torch.testing.assert_close(same(*tensors)[1], expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("temperature", ["auto", 1.0])
def test_empty(axis, temperature):
    """No sequences, no queries, no heads."""
    tensors = [x[:0] if axis == 0 else x for x in qkv()]
    if axis == 1:
        tensors[0] = tensors[0][:, :0]
    elif axis == 2:
        tensors = [x[:, :, :0] for x in tensors]
    got = everything(*tensors, size=20, temperature=temperature)
    assert got.output.shape == (*tensors[0].shape[:3], 5)
    output = attention(*(x.numpy() for x in tensors), size=20, temperature=temperature).output
    assert output.shape == got.output.shape


def test_estimate_and_fallback():
    tensors = qkv(T=20)
    got = everything(*tensors, return_error_estimate=True, **HERDED)
    exact = thinformer_attention(*tensors, size=300)
    error = ((got.output - exact).square().sum((1, 3)) / exact.square().sum((1, 3))).sqrt()
    torch.testing.assert_close(got.error_estimate, error)
    output = seeded(*tensors, fallback="exact", error_threshold=0.0, **HERDED)
    torch.testing.assert_close(output, exact)


@pytest.mark.parametrize("correction", ["nystrom", "queries"])
def test_auto_beside_a_correction_is_its_formula(correction):
    tensors = qkv()
    got = everything(*tensors, size=20, correction=correction, temperature="auto")
    assert torch.equal(got.output, everything(*tensors, size=20, correction=correction).output)
    arrays = [x.numpy() for x in tensors]
    np.testing.assert_array_equal(
        attention(*arrays, size=20, correction=correction, temperature="auto", rng=0).output,
        attention(*arrays, size=20, correction=correction, rng=0).output,
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "warm"}, "^temperature must be None, 'auto' or a number; got 'warm'"),
        ({"temperature": 0.0}, "^temperature must be positive and finite; got 0.0"),
        ({"temperature": True}, "^temperature must be positive and finite; got True"),
    ],
)
def test_bad_temperatures(options, message):
    with pytest.raises(ValueError, match=message):
        thinformer_attention(*qkv(), **options)
    with pytest.raises(ValueError, match=message):
        ThinformerAttention(**options)


def test_a_temperature_that_is_too_small():
    tensors = qkv()
    with pytest.raises(ValueError, match="^temperature must be larger: .*; got 1e-300"):
        thinformer_attention(*tensors, size=20, temperature=1e-300)


def test_the_module_does_not_thin_beside_a_temperature():
    with pytest.raises(ValueError, match="^pre_thin must be 'even' with a temperature"):
        ThinformerAttention(pre_thin="stride", temperature="auto")
