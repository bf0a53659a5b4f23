"""The same input gives the same output in evaluation, and another one in training."""

import copy

import numpy as np
import pytest
import small_models
import tabpfn_stub
import torch
from compiling import compiled, graph_breaks
from layers import tokens
from small_models import ALL, Own, adapt
from tensors import qkv
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision_stub import torchvision

from thinformer import ThinformerAttention
from thinformer.halving import draws
from thinformer.torch import KeySelection, LayerOptions, convert
from thinformer.torch.attend import layer as attend_layer
from thinformer.torch.choose.seeds import seed_of_layer, uniforms

pytest.importorskip("transformers")
with torchvision():
    pytest.importorskip("timm")

FEW = {"size": 40, "min_length": 0}
HALVED = FEW | {"correction": None, "fallback": None}
SETTINGS = {
    "default": FEW,
    "without control": FEW | {"fallback": None},
    "some heads fall back": FEW | {"error_threshold": 0.7},
    "published": HALVED,
}
OPTIONS = LayerOptions(KeySelection(**FEW), fallback=None)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", ALL)
def test_evaluation_has_one_output_and_draws_nothing(name, settings):
    model, call = ALL[name]()
    adapt(name, model, **SETTINGS[settings])
    state = torch.get_rng_state()
    first = call(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(call(model), first)


@pytest.mark.parametrize("name", ALL)
def test_training_draws_anew(name):
    """So does seed=None in evaluation; torch.manual_seed reproduces both."""
    model, call = ALL[name]()
    for training, seed in ((True, 0), (False, None)):
        adapt(name, model, **HALVED, seed=seed)
        model.train(training)
        torch.manual_seed(0)
        first, second = call(model), call(model)
        assert not torch.allclose(first, second, atol=1e-4)
        torch.manual_seed(0)
        assert torch.equal(call(model), first)
        assert torch.equal(call(model), second)


@pytest.mark.parametrize("name", ALL)
def test_seeds_follow_the_weights(name):
    """A model that is loaded again has the same output; another seed has another one."""
    model, call = ALL[name]()
    adapt(name, model, **HALVED)
    expected = call(model)
    other, _ = ALL[name]()
    for parameter in other.parameters():
        parameter.detach().mul_(0.5)
    adapt(name, other, **HALVED)
    assert not torch.allclose(call(other), expected, atol=1e-3)
    other.load_state_dict(model.state_dict())
    assert torch.equal(call(other), expected)
    assert torch.equal(call(copy.deepcopy(model)), expected)
    adapt(name, model, **HALVED, seed=1)
    assert not torch.allclose(call(model), expected, atol=1e-4)


def test_layers_of_a_model_keep_different_keys(monkeypatch):
    """Of the same keys: only the first row of a layer's queries, which halving ignores, differs."""
    model = small_models.own()[0]
    model[1].load_state_dict(model[0].state_dict())
    convert(model, **HALVED)
    kept = []

    def attend_to_few(*arguments):
        kept.append(few(*arguments))
        return kept[-1]

    few = attend_layer.attend_to_few
    monkeypatch.setattr(attend_layer, "attend_to_few", attend_to_few)
    for layer in model:
        layer(tokens())
    assert torch.equal(kept[0][2], kept[1][2])  # copies, as in a new nn.TransformerEncoder
    with torch.no_grad():
        model[1].qkv.weight[0] += 1
    model[1](tokens())
    assert kept[2][2].shape == kept[0][2].shape == (3, 2, 40)
    assert (kept[2][2] != kept[0][2]).any(-1).all()


def test_seed_of_layer():
    layer, cpu = Own().eval(), torch.device("cpu")
    seeds = [int(seed_of_layer(layer, seed, cpu)) for seed in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of_layer(layer, 3, cpu).dtype == torch.int64
    assert seed_of_layer(layer, None, cpu) is None
    assert seed_of_layer(layer.train(), 3, cpu) is None
    assert seed_of_layer(nn.Identity().eval(), 3, cpu) == 3  # no weights to follow
    assert seed_of_layer(layer.eval(), 2**63 - 1, cpu) >= 0
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        of_dtype = seed_of_layer(layer.to(dtype), 3, cpu)
        assert of_dtype == seed_of_layer(copy.deepcopy(layer), 3, cpu)


def test_uniforms_are_those_of_splitmix():
    for seed in (0, 7, 2**63 - 1, -5):
        places = np.arange(1, 13, dtype=np.uint64)
        start = np.array(seed, dtype=np.int64).astype(np.uint64)
        with np.errstate(over="ignore"):
            counters = start + np.uint64(draws.GOLDEN) * places
            expected = draws.unit(draws.mix(counters))
        got = uniforms(torch.tensor(seed), (3, 4))
        assert got.dtype == torch.float64
        np.testing.assert_array_equal(got.numpy().ravel(), expected)


def test_the_module_takes_the_seed_of_its_options():
    """In evaluation, and where no generator is given."""
    tensors = qkv(T=300)
    module = ThinformerAttention(options=OPTIONS).eval()
    state = torch.get_rng_state()
    first, _ = module(*tensors)
    assert torch.equal(module(*tensors)[0], first)
    assert torch.equal(torch.get_rng_state(), state)
    same = ThinformerAttention(options=OPTIONS).eval()
    assert torch.equal(same(*tensors)[0], first)  # without weights, the seed is all there is
    same.seed = 1
    assert not torch.allclose(same(*tensors)[0], first, atol=1e-3)
    generator = torch.Generator().manual_seed(0)
    for drawing in (
        ThinformerAttention(options=OPTIONS).train(),
        ThinformerAttention(options=OPTIONS, generator=generator).eval(),
        ThinformerAttention(size=40).eval(),  # the published module
    ):
        assert not torch.allclose(drawing(*tensors)[0], drawing(*tensors)[0], atol=1e-3)


def test_tabpfn(monkeypatch):
    """Its backend names no layer; attention with a gradient draws."""
    adapter = tabpfn_stub.adapter(monkeypatch)
    attend = tabpfn_stub.scaled_dot_product_attention
    tensors = [x.float() for x in qkv(T=300, H_kv=2)]
    adapter.register(**HALVED)
    state = torch.get_rng_state()
    with torch.no_grad():
        first, second = attend(*tensors), attend(*tensors)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(attend(*tensors), attend(*tensors), atol=1e-3)
    adapter.register(**HALVED, seed=1)
    with torch.no_grad():
        assert not torch.allclose(attend(*tensors), first, atol=1e-3)
    adapter.register(**HALVED, seed=None)  # each call its own numbers, which can be repeated
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = attend(*tensors), attend(*tensors)
        torch.manual_seed(0)
        assert torch.equal(attend(*tensors), first)
    assert not torch.allclose(first, second, atol=1e-3)
    adapter.unregister()


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_padded_batch_has_the_outputs_of_each_text_alone(settings):
    """In float64: the fit of a correction enlarges rounding errors, to 4e-5 here in float32."""
    model = small_models.bert()[0].double()
    adapt("bert", model, **SETTINGS[settings])
    inputs = small_models.text(300, 200, 120)
    batch = model(**inputs).last_hidden_state
    for b, length in enumerate((300, 200, 120)):
        alone = model(**{key: x[b : b + 1, :length] for key, x in inputs.items()})
        torch.testing.assert_close(
            batch[b, :length], alone.last_hidden_state[0], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("settings", SETTINGS)
def test_checkpoints_recompute_the_same(settings):
    """In training, where each call draws."""
    gradients = []
    for recompute in (False, True):
        model = small_models.encoder()[0].train()
        convert(model, **SETTINGS[settings])
        x = tokens().requires_grad_()
        torch.manual_seed(0)
        y = x
        for layer in model.layers:
            y = checkpoint(layer, y, use_reentrant=False) if recompute else layer(y)
        torch.rand(3)  # the generator goes on between forward and backward
        y.square().mean().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in model.parameters())])
    assert all(map(torch.equal, *gradients))
    assert gradients[0][0].abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", ["some heads fall back", pytest.param("default", marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("vit", "own") else pytest.param(name, marks=pytest.mark.nightly)
        for name in ALL
    ],
)
def test_compiled_whole_and_exported(name, settings):
    model, call = ALL[name]()
    adapt(name, model, **SETTINGS[settings])
    with torch.no_grad():
        expected = call(model)
        fast, counter = compiled(model)
        for _ in range(2):
            torch.testing.assert_close(call(fast), expected, rtol=1e-3, atol=1e-4)
    assert counter.frame_count == 1
    assert graph_breaks() == 0
    if name in small_models.OF_CONVERT:
        caught = []
        call(lambda *inputs: caught.append(inputs))
        exported = torch.export.export(model, caught[0]).module()
        with torch.no_grad():
            torch.testing.assert_close(call(exported), expected, rtol=1e-3, atol=1e-4)
