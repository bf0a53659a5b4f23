"""The training loss of a logistic regression by epoch, for three orders of its examples.

python -m examples.training_order

All orders train the same model at the same learning rate with batches of one size; seeds differ in
the first order. The loss is that of all examples after an epoch, above the smallest there is.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from sklearn import datasets
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, RandomSampler, TensorDataset
from tqdm import tqdm

from examples.command import count
from thinformer.torch import ThinnedOrder, last_layer_gradients

DATA = {"digits": datasets.load_digits, "cancer": datasets.load_breast_cancer}
ORDERS = ("thinned", "shuffled each epoch", "shuffled once")
SHOWN = (1, 5, 10, 20, 50)  # epochs


def examples_of(name: str, batch: int) -> TensorDataset:
    """Standardised inputs and classes; so many that all batches have one size."""
    inputs, classes = DATA[name](return_X_y=True)
    spread = inputs.std(axis=0)
    inputs = (inputs - inputs.mean(axis=0)) / np.where(spread > 0, spread, 1)
    end = len(inputs) - len(inputs) % batch
    return TensorDataset(torch.tensor(inputs[:end]), torch.tensor(classes[:end]))


def new_model(data: TensorDataset) -> nn.Linear:
    """A logistic regression, all of it zero."""
    inputs, classes = data.tensors
    model = nn.Linear(inputs.shape[1], int(classes.max()) + 1, dtype=inputs.dtype)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def objective(model: nn.Module, data: TensorDataset, decay: float) -> torch.Tensor:
    """The loss of all examples, with the weight decay that SGD adds to its gradient."""
    inputs, classes = data.tensors
    squares = sum(parameter.square().sum() for parameter in model.parameters())
    return cross_entropy(model(inputs), classes) + decay / 2 * squares


def smallest(data: TensorDataset, decay: float) -> float:
    """The smallest value of the objective."""
    model = new_model(data)
    solver = torch.optim.LBFGS(
        model.parameters(), max_iter=2000, tolerance_grad=1e-9, tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def value() -> torch.Tensor:
        solver.zero_grad()
        loss = objective(model, data, decay)
        loss.backward()
        return loss

    solver.step(value)
    return value().item()


def sampler_of(order: str, n: int, epochs: int, seed: int):
    """The sampler of a data loader."""
    generator = torch.Generator().manual_seed(seed)
    if order == "thinned":
        return ThinnedOrder(n, epochs=epochs, seed=seed)
    if order == "shuffled each epoch":
        return RandomSampler(range(n), generator=generator)
    return torch.randperm(n, generator=generator).tolist()


def losses(order: str, data: TensorDataset, options: argparse.Namespace, seed: int) -> list[float]:
    """Train with one order; return the objective after each epoch."""
    model = new_model(data)
    rate, decay = options.learning_rate, options.weight_decay
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay)
    sampler = sampler_of(order, len(data), options.epochs, seed)
    loader = DataLoader(data, batch_size=options.batch, sampler=sampler)
    values = []
    for _ in range(options.epochs):
        for inputs, classes in loader:
            if order == "thinned":
                # the model is its last layer, so these are all gradients
                gradients = last_layer_gradients(model, model, cross_entropy, inputs, classes)
                sampler.step(gradients)
                for name, parameter in model.named_parameters():
                    parameter.grad = gradients[name].mean(dim=0)
            else:
                optimizer.zero_grad()
                cross_entropy(model(inputs), classes).backward()
            optimizer.step()
        with torch.no_grad():
            values.append(objective(model, data, decay).item())
    return values


def table(excess: dict[str, np.ndarray], target: float) -> str:
    """A row for each order: mean ± standard error over seeds; excess losses are (seeds, epochs)."""
    epochs = next(iter(excess.values())).shape[1]
    shown = [epoch for epoch in SHOWN if epoch <= epochs]
    head = [f"after {epoch}" for epoch in shown] + [f"epochs to {target:g}"]
    lines = [f"{'order':<20}" + "".join(f"{cell:>20}" for cell in head)]
    for order, values in excess.items():
        cells = [_mean(values[:, epoch - 1], ".2e", ".0e") for epoch in shown]
        below = values <= target
        reached = below.any(axis=1)
        first = _mean(1 + below.argmax(axis=1), ".1f", ".1f")
        cells.append(first if reached.all() else f"{reached.sum()} of {len(values)} seeds")
        lines.append(f"{order:<20}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def _mean(values: np.ndarray, form: str, form_of_error: str) -> str:
    mean = f"{values.mean():{form}}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {values.std(ddof=1) / len(values) ** 0.5:{form_of_error}}"


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.training_order",
        description="The training loss of a logistic regression, for three orders of its examples.",
    )
    parser.add_argument("--data", choices=DATA, default="digits")
    parser.add_argument("--epochs", type=count, default=50)
    parser.add_argument("--seeds", type=count, default=10)
    parser.add_argument("--batch", type=count, default=16)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--target", type=float, default=1e-3, help="loss above the smallest one")
    options = parser.parse_args(argv)
    data = examples_of(options.data, options.batch)
    least = smallest(data, options.weight_decay)
    runs = [(order, seed) for order in ORDERS for seed in range(options.seeds)]
    excess: dict[str, list] = {order: [] for order in ORDERS}
    for order, seed in tqdm(runs, unit=" runs"):
        excess[order].append(losses(order, data, options, seed))
    print(
        f"{options.data}: {len(data)} examples, batches of {options.batch}, learning rate "
        f"{options.learning_rate:g}, weight decay {options.weight_decay:g}, {options.seeds} seeds; "
        f"loss above {least:.4f}, the smallest there is\n"
    )
    print(table({order: np.array(rows) - least for order, rows in excess.items()}, options.target))
