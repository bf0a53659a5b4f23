"""The example of training orders: its problem, its optimum, what it prints."""

import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("sklearn")

from examples.training_order import compare


def test_batches_have_one_size():
    for name, n in (("digits", 1797), ("cancer", 569)):
        data = compare.examples_of(name, 8)
        assert len(data) == n - n % 8
        assert torch.isfinite(data.tensors[0]).all()
    whole = compare.examples_of("digits", 1).tensors[0]
    spread = whole.std(dim=0, correction=0)
    assert (torch.isclose(spread, torch.ones(64).double()) | (spread == 0)).all()


def test_the_smallest_loss_has_no_gradient_left():
    """Its value, by gradient descent of another kind."""
    data = compare.examples_of("cancer", 8)
    model = compare.new_model(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=1, weight_decay=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
        optimizer.step()
    value = compare.objective(model, data, 0.1).item()
    assert compare.smallest(data, 0.1) == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("order", compare.ORDERS)
def test_orders(order):
    sampler = compare.sampler_of(order, 50, 3, seed=1)
    epochs = []
    for _ in range(3):
        examples = [int(i) for (i,) in DataLoader(range(50), sampler=sampler)]
        if order == "thinned":
            sampler.step(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
        epochs.append(examples)
    assert [sorted(examples) for examples in epochs] == [list(range(50))] * 3
    assert len(set(map(tuple, epochs))) == (1 if order == "shuffled once" else 3)


def test_table():
    falling = np.array([[0.5, 0.1, 0.01], [0.5, 0.3, 0.001]])
    lines = compare.table({"a": falling, "b": 10 * falling[:1]}, 0.02).splitlines()
    assert re.split(r"  +", lines[0]) == ["order", "after 1", "epochs to 0.02"]
    assert re.split(r"  +", lines[1]) == ["a", "5.00e-01 ± 0e+00", "3.0 ± 0.0"]
    assert re.split(r"  +", lines[2]) == ["b", "5.00e+00", "0 of 1 seeds"]


@pytest.mark.slow
@pytest.mark.nightly
def test_the_command(capsys):
    arguments = "--data cancer --epochs 5 --seeds 2 --target 0.03 --learning-rate 0.1 --batch 8"
    compare.main(arguments.split())
    out = capsys.readouterr().out
    assert (
        "cancer: 568 examples, batches of 8, learning rate 0.1, weight decay 0.01, 2 seeds" in out
    )
    for order in compare.ORDERS:
        (row,) = re.findall(rf"^{order}  .*$", out, re.MULTILINE)
        first, fifth = re.findall(r"([\d.]+e-\d\d) ± ", row)
        assert 0 < float(fifth) < float(first) < 0.1
        assert re.search(r"[\d.]+ ± [\d.]+$", row)
