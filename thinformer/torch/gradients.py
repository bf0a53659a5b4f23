"""The gradient of each example of a batch, as `ThinnedOrder.step` takes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call, grad, vmap

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def example_gradients(
    model: nn.Module, loss: Loss, inputs: torch.Tensor, targets: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the gradient of the loss of each example by the parameters of a model.

    Parameters
    ----------
    model : torch.nn.Module
        Called with a batch of one example. Layers that mix the examples of a batch, as batch
        normalisation in training, have no gradient of one example; torch raises for most of them.
    loss : callable
        ``loss(outputs, targets)``, a number, as ``torch.nn.functional.cross_entropy``.
    inputs, targets : (b, ...) tensors

    Returns
    -------
    dict
        For each parameter that takes a gradient its name and a tensor (b, ...). Their means
        over b are the gradient of the mean loss. `ThinnedOrder.step` takes it as it is.

    Notes
    -----
    ``torch.func``: one forward and one backward pass of the batch, and b times the memory of the
    parameters. Random layers draw for each example anew.

    Examples
    --------
    >>> import torch
    >>> from thinformer.torch import example_gradients
    >>> model = torch.nn.Linear(3, 1)
    >>> loss = torch.nn.functional.mse_loss
    >>> gradients = example_gradients(model, loss, torch.randn(8, 3), torch.randn(8, 1))
    >>> {name: tuple(gradient.shape) for name, gradient in gradients.items()}
    {'weight': (8, 1, 3), 'bias': (8, 1)}
    """
    trained: dict[str, torch.Tensor] = {}
    fixed: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        (trained if parameter.requires_grad else fixed)[name] = parameter.detach()

    def loss_of_one(
        parameters: dict[str, torch.Tensor], example: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        outputs = functional_call(model, {**fixed, **parameters}, (example[None],))
        return loss(outputs, target[None])

    each = vmap(grad(loss_of_one), in_dims=(None, 0, 0), randomness="different")
    return each(trained, inputs, targets)


def last_layer_gradients(
    model: nn.Module, layer: nn.Linear, loss: Loss, inputs: torch.Tensor, targets: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the gradient of the loss of each example by one linear layer, without vmap of a model.

    Parameters
    ----------
    model : torch.nn.Module
        Called with the batch.
    layer : torch.nn.Linear
        A layer of the model, called once, whose first axis is that of the examples. The nearer it
        is to the outputs, the less there is to compute.
    loss, inputs, targets
        As for `example_gradients`.

    Returns
    -------
    dict
        `weight`, a tensor (b, outputs, inputs), and `bias`, (b, outputs), if the layer has one.

    Raises
    ------
    TypeError
        `layer` is not a linear layer.
    ValueError
        The model does not call the layer, or calls it more than once.

    Notes
    -----
    A forward pass without gradients up to the layer, and backwards from the loss to the layer's
    output z; then dL/dW = sum over positions of (dL/dz) h', for its input h.
    """
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"layer must be a torch.nn.Linear; got {type(layer).__name__}")
    seen = []

    def cut(_: nn.Module, given: tuple[torch.Tensor, ...], z: torch.Tensor) -> torch.Tensor:
        seen.append((given[0].detach(), z.requires_grad_()))
        return seen[-1][1]

    without_graph = {name: parameter.detach() for name, parameter in model.named_parameters()}
    hook = layer.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            outputs = functional_call(model, without_graph, (inputs,))
    finally:
        hook.remove()
    if len(seen) != 1:
        raise ValueError(f"layer must be called once by model; it was called {len(seen)} times")
    h, z = seen[0]
    with torch.enable_grad():
        losses = vmap(lambda o, t: loss(o[None], t[None]))(outputs, targets)
        (slope,) = torch.autograd.grad(losses.sum(), z)
    slope, h = (x.reshape(len(x), -1, x.shape[-1]) for x in (slope, h))
    gradients = {"weight": slope.mT @ h}
    if layer.bias is not None:
        gradients["bias"] = slope.sum(1)
    return gradients
