"""Gradients of examples, against a loop of torch's own backward passes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thinformer.torch import ThinnedOrder, example_gradients, last_layer_gradients


def by_loop(model, loss, inputs, targets):
    """The gradients of all parameters, an example at a time."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    rows = []
    for x, y in zip(inputs, targets, strict=True):
        value = loss(model(x[None]), y[None])
        rows.append(torch.autograd.grad(value, list(parameters.values())))
    columns = zip(*rows, strict=True)
    return dict(zip(parameters, map(torch.stack, columns), strict=True))


def small(bias=True, last=3):
    torch.manual_seed(0)
    layers = nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, last, bias=bias)
    return nn.Sequential(*layers).double(), torch.randn(7, 4).double()


def close(a, b):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=1e-14)


CASES = {
    "cross_entropy": (F.cross_entropy, torch.tensor([0, 1, 2, 0, 1, 2, 0])),
    "mse": (F.mse_loss, torch.arange(21.0).double().reshape(7, 3)),
    "sum": (lambda z, y: (z - y).abs().sum(), torch.ones(7, 3).double()),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bias", [True, False])
def test_as_by_a_loop(case, bias):
    model, inputs = small(bias)
    loss, targets = CASES[case]
    expected = by_loop(model, loss, inputs, targets)
    close(example_gradients(model, loss, inputs, targets), expected)
    for place in ("0", "2"):
        layer = model.get_submodule(place)
        of_layer = {
            name.removeprefix(f"{place}."): gradient
            for name, gradient in expected.items()
            if name.startswith(place)
        }
        close(last_layer_gradients(model, layer, loss, inputs, targets), of_layer)


def test_layers_of_sequences():
    """The layer sees (b, T, width): its gradient sums over T."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Flatten(1)).double()
    inputs, targets = torch.randn(5, 3, 4).double(), torch.randn(5, 6).double()
    expected = by_loop(model, F.mse_loss, inputs, targets)
    found = last_layer_gradients(model, model[1], F.mse_loss, inputs, targets)
    close(found, {"weight": expected["1.weight"], "bias": expected["1.bias"]})


def test_nothing_of_the_model_changes():
    model, inputs = small()
    model[0].weight.requires_grad_(False)
    loss, targets = CASES["cross_entropy"]
    expected = by_loop(model, loss, inputs, targets)
    assert "0.weight" not in expected
    with torch.no_grad():
        close(example_gradients(model, loss, inputs, targets), expected)
        found = last_layer_gradients(model, model[2], loss, inputs, targets)
    close(found, {"weight": expected["2.weight"], "bias": expected["2.bias"]})
    assert all(p.grad is None for p in model.parameters())
    assert not model[2]._forward_hooks
    assert model(inputs).requires_grad
    assert not any(gradient.requires_grad for gradient in found.values())


def test_random_layers_draw_for_each_example():
    model = nn.Sequential(nn.Linear(1, 1000), nn.Dropout(), nn.Linear(1000, 1))
    ones = torch.ones(2, 1)
    gradients = example_gradients(model, F.mse_loss, ones, ones)["2.weight"]
    assert not torch.equal(gradients[0] == 0, gradients[1] == 0)


def test_the_mean_is_the_gradient_of_the_batch_and_step_takes_it():
    model, inputs = small()
    loss, targets = CASES["cross_entropy"]
    order = ThinnedOrder(7, epochs=2)
    rows = list(order)
    gradients = example_gradients(model, loss, inputs[rows], targets[rows])
    loss(model(inputs), targets).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name].mean(0), parameter.grad)
    order.step(gradients)
    assert sorted(order) == list(range(7))


def test_bad_layers():
    model, inputs = small()
    loss, targets = CASES["mse"]
    with pytest.raises(TypeError, match="^layer must be a torch.nn.Linear; got Tanh"):
        last_layer_gradients(model, model[1], loss, inputs, targets)
    with pytest.raises(ValueError, match="^layer must be called once by model; .* 0 times"):
        last_layer_gradients(model, nn.Linear(2, 2), loss, inputs, targets)
    shared = nn.Linear(4, 4).double()
    twice = nn.Sequential(shared, shared)
    with pytest.raises(ValueError, match="^layer must be called once by model; .* 2 times"):
        last_layer_gradients(twice, shared, F.mse_loss, inputs, inputs)
    assert not shared._forward_hooks
