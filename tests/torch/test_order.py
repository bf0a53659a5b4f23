"""`ThinnedOrder`: the specification's order, one for each seed, whatever batches and workers do."""

import doctest
import io
import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from reference.ordering import next_order
from thinformer.halving.draws import head_keys, unit_numbers
from thinformer.torch import ThinnedOrder, example_gradients
from thinformer.torch.walk import PAIRS

DTYPES = (torch.float32, torch.float64)


def normal(m, p, seed=0, dtype=torch.float64):
    return torch.randn(m, p, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def epoch_of(order, gradients, batch=7):
    """Go through an epoch; return the examples in its order."""
    examples = list(order)
    for part in torch.tensor(examples).split(batch):
        order.step(gradients[part])
    return examples


def uniforms(m, epoch, seed=0, rank=0):
    return 2 * unit_numbers(head_keys(seed, rank + 1)[-1:], epoch, m // 2)[0] - 1


def same(a, b):
    """Whether two states are the same bit for bit."""
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


# --- against the specification


def specified(m, gradients, epochs, seed=0, delta=0.5):
    """The orders of all epochs, and the smallest margin of a decision."""
    orders = [np.argsort(unit_numbers(head_keys(seed, 1), 0, m)[0])]
    margins = [np.inf]
    for epoch in range(1, epochs):
        draws = uniforms(m, epoch, seed)
        of_epoch = gradients.double().numpy()[orders[-1]]
        places, trace = next_order(of_epoch, draws, epoch, epochs, delta)
        orders.append(orders[-1][places])
        margins.append(trace.margin.min(initial=np.inf))
    return [order.tolist() for order in orders], min(margins)


@given(
    m=st.integers(1, 90),
    p=st.integers(1, 5),
    batch=st.integers(1, 100),
    seed=st.integers(0, 2**64 - 1),
    delta=st.floats(1e-6, 1),
    largest=st.integers(0, 30),
    dtype=st.sampled_from(DTYPES),
)
def test_as_specified(m, p, batch, seed, delta, largest, dtype):
    """On small integers, whose sums are exact; many gradients are equal if `largest` is small."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    gradients = torch.randint(-largest, largest + 1, (m, p), generator=generator).to(dtype)
    order = ThinnedOrder(m, epochs=4, seed=seed, delta=delta)
    expected, _ = specified(m, gradients, 4, seed, delta)
    assert [epoch_of(order, gradients, batch) for _ in range(4)] == expected


@given(m=st.integers(2, 200), p=st.integers(1, 40), seed=st.integers(0, 1000))
def test_as_specified_with_rounding(m, p, seed):
    gradients = normal(m, p, seed) + 10  # a large mean
    order = ThinnedOrder(m, epochs=3, seed=seed)
    expected, margin = specified(m, gradients, 3, seed)
    if margin > 1e-12:
        assert [epoch_of(order, gradients, 64) for _ in range(3)] == expected


def test_the_specification_by_hand():
    """Two pairs of one number: the walk goes to 1, and the second threshold follows from it."""
    gradients = np.array([[0.0], [1.0], [5.0], [8.0], [2.0]])
    log = np.log(4 / 0.5 * (np.log(3) + 1) * (np.log(2) + 1) * 2 * 1)
    rho = np.sqrt(2 * 1 * log / 9)
    assert rho < 1  # as 9 is much longer than the first step: its threshold is its square
    order, trace = next_order(gradients, np.array([0.5, 0.5]), 1, 3)
    assert order.tolist() == [0, 2, 4, 3, 1]
    np.testing.assert_allclose(trace.alpha, [0, 3])
    np.testing.assert_allclose(trace.a, [1, 9])
    np.testing.assert_allclose(trace.v, [2, 18])
    # 3 > 0.3 * 9: the other way around
    assert next_order(gradients, np.array([0.5, 0.3]), 1, 3)[0].tolist() == [0, 3, 4, 2, 1]
    # a short step behind a long one: rho above 1
    gradients[3] = 6
    gradients[1] = 4
    log = np.log(4 / 0.5 * (np.log(3) + 1) * (np.log(2) + 1) * 2 * 2)
    rho = np.sqrt(2 * 16 * log)
    _, trace = next_order(gradients, np.array([0.5, 0.5]), 2, 3)
    np.testing.assert_allclose(trace.a, [16, rho])
    np.testing.assert_allclose(trace.v, [32, 32 + 2 * max(0, log + 0.5 - rho) / log])


def test_the_walk_is_bounded_as_often_as_delta_says():
    """No |alpha_i| exceeds a_i with probability at least 1 - delta / 2."""
    draws = np.random.default_rng(0)
    gradients = draws.normal(size=(64, 3))
    failures = 0
    for _ in range(200):
        _, trace = next_order(gradients, draws.uniform(-1, 1, 32), 1, 1)
        failures += bool((np.abs(trace.alpha) > trace.a).any())
    assert failures <= 50


# --- what it is for


def discrepancy(gradients, order):
    """The largest norm of a sum of the first centred gradients."""
    centred = gradients - gradients.mean(0)
    return float(centred[torch.tensor(order)].cumsum(0).norm(dim=1).max())


def test_prefixes_are_nearer_to_the_mean_than_those_of_random_orders():
    gradients = normal(2000, 3)
    order = ThinnedOrder(2000, epochs=8, seed=3)
    found = [discrepancy(gradients, epoch_of(order, gradients, 64)) for _ in range(8)]
    generator = torch.Generator().manual_seed(0)
    random = [
        discrepancy(gradients, torch.randperm(2000, generator=generator).tolist())
        for _ in range(50)
    ]
    assert max(found[3:]) < 0.7 * min(random)
    assert min(random) < found[0] < max(random)  # the first order is random too


# --- epochs


@pytest.mark.parametrize("m", [1, 2, 3, 4, 31, 64])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_every_example_once_in_an_epoch(m, batch):
    gradients = normal(m, 3)
    order = ThinnedOrder(m, epochs=6)
    orders = [epoch_of(order, gradients, batch) for _ in range(6)]
    assert [sorted(each) for each in orders] == [list(range(m))] * 6
    assert order.epoch == 6
    if m > 30:
        assert len({tuple(each) for each in orders}) == 6
    if m % 2:
        assert all(after[m // 2] == before[-1] for before, after in itertools.pairwise(orders))


def test_equal_gradients():
    """The first of a pair goes to the front: in the next epoch 0, 2, 4, ..., 5, 3, 1."""
    order = ThinnedOrder(20, epochs=2)
    first = epoch_of(order, torch.ones(20, 3))
    assert list(order) == first[0::2] + first[::-2]


def test_a_seed_has_one_order():
    def orders(seed, **more):
        order = ThinnedOrder(50, epochs=3, seed=seed, **more)
        return [epoch_of(order, normal(50, 4)) for _ in range(3)]

    state = torch.get_rng_state()
    first = orders(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert orders(5) == first
    assert orders(5, delta=1e-12)[0] == first[0]
    assert orders(6)[0] != first[0]
    # a smaller delta has larger thresholds, so more is left to the draws
    assert orders(5, delta=1e-12)[1:] != first[1:]


@pytest.mark.parametrize("thing", [ThinnedOrder, example_gradients])
def test_the_example_of_the_docstring(thing):
    (example,) = doctest.DocTestFinder(recurse=False).find(thing, "example")
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_a_dataset_or_its_length():
    assert list(ThinnedOrder(normal(9, 1), epochs=1)) == list(ThinnedOrder(9, epochs=1))
    assert len(ThinnedOrder(range(9), epochs=1)) == 9


# --- gradients


def test_parts_of_gradients():
    """A dict, tuple or list counts as the parts side by side, whatever their order in a dict."""
    gradients = normal(31, 12)
    parts = {
        "w": gradients[:, :6].reshape(31, 2, 3),
        "v": gradients[:, 6:11],
        "b": gradients[:, 11],
    }
    orders = {}
    for kind, given_as in {
        "tensor": lambda rows: gradients[rows],
        "tensor of more axes": lambda rows: gradients[rows].reshape(-1, 3, 4),
        "dict": lambda rows: {name: part[rows] for name, part in parts.items()},
        "dict in another order": lambda rows: {n: parts[n][rows] for n in ("b", "w", "v")},
        "tuple": lambda rows: tuple(part[rows] for part in parts.values()),
        "list": lambda rows: [part[rows] for part in parts.values()],
        "with a graph": lambda rows: gradients.clone().requires_grad_()[rows] * 1,
    }.items():
        order = ThinnedOrder(31, epochs=2)
        for rows in torch.tensor(list(order)).split(5):
            order.step(given_as(rows))
        orders[kind] = tuple(order)
    assert len(set(orders.values())) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, *DTYPES])
def test_dtypes(dtype):
    """Halves are computed in float32, in autocast too, and float64 in itself."""
    gradients, computed = normal(101, 6).to(dtype), dtype if dtype in DTYPES else torch.float32
    orders = [ThinnedOrder(102, epochs=2) for _ in range(3)]
    for order in orders:
        list(order)
    with torch.autocast("cpu", torch.bfloat16):
        orders[0].step(gradients)
    orders[1].step(gradients.to(computed))
    orders[2].step(gradients.double())
    states = [order.state_dict() for order in orders]
    assert same(*states[:2])
    assert states[0]["walk"].dtype == states[0]["half"].dtype == computed
    assert torch.equal(states[0]["next"], states[2]["next"])
    torch.testing.assert_close(states[0]["walk"].double(), states[2]["walk"], rtol=1e-4, atol=1e-4)


def test_gradients_are_left_alone():
    order = ThinnedOrder(2 * PAIRS + 5, epochs=2)
    gradients = normal(2 * PAIRS + 5, 3)[list(order)]
    before = gradients.clone()
    order.step(gradients[:5])
    half = order.state_dict()["half"]
    gradients[4] = 0  # memory that the caller uses again
    assert torch.equal(order.state_dict()["half"], half)
    gradients[4] = before[4]
    order.step(gradients[5:])
    assert torch.equal(gradients, before)


# --- states


def resumed(order, gradients, **arguments):
    """Another sampler, from the file of a state."""
    file = io.BytesIO()
    torch.save(order.state_dict(), file)
    file.seek(0)
    other = ThinnedOrder(len(gradients), epochs=4, seed=99, **arguments)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@pytest.mark.parametrize("m", [40, 41])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 5])
def test_resumed_at_any_place(m, dtype, batch):
    """Also where more examples were given out than gradients taken."""
    gradients = normal(m, 3, dtype=dtype)

    def states(order, epochs):
        """The states after each step from here on, and the samplers resumed from them."""
        for _ in range(epochs):
            for rows in torch.tensor(list(order)).split(batch):
                order.step(gradients[rows])
                yield order.state_dict()

    order = ThinnedOrder(m, epochs=4, seed=2)
    whole = list(states(order, 4))
    for place in range(0, len(whole), 7):
        order = ThinnedOrder(m, epochs=4, seed=2)
        steps = states(order, 4)
        for _ in range(place + 1):
            next(steps)
        again = resumed(order, gradients)
        rest = list(states(again, 4 - again.epoch))
        assert len(rest) == len(whole) - place - 1
        assert all(map(same, rest, whole[place + 1 :]))


def test_a_state_is_a_copy():
    order = ThinnedOrder(10, epochs=3)
    gradients = normal(10, 2)
    examples = torch.tensor(list(order))
    order.step(gradients[examples[:3]])
    state = order.state_dict()
    kept = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in state.items()}
    order.step(gradients[examples[3:]])
    assert same(state, kept)
    other = ThinnedOrder(10, epochs=3)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="gradients must be of the 0 examples that were given out"):
        other.step(gradients[:1])
    assert list(other) == examples[3:].tolist()
    other.step(gradients[examples[3:]])
    assert same(state, kept)
    assert same(other.state_dict(), order.state_dict())


def test_states_of_other_samplers_are_refused():
    order = ThinnedOrder(10, epochs=3, seed=1)
    before = order.state_dict()
    for other in (
        ThinnedOrder(10, epochs=3, num_replicas=2, seed=1),
        ThinnedOrder(20, epochs=3, num_replicas=2),
        ThinnedOrder(11, epochs=3),
    ):
        with pytest.raises(ValueError, match="^state must be that of 10 examples, num_replicas=1"):
            order.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="^state must be a dict with the keys seed, epoch, given"):
        order.load_state_dict({"seed": 3})
    assert same(order.state_dict(), before)


def test_more_epochs_than_planned():
    gradients = normal(10, 2)
    order = ThinnedOrder(10, epochs=1)
    epoch_of(order, gradients)
    with pytest.raises(RuntimeError, match="all epochs=1 of this ThinnedOrder are complete"):
        iter(order)
    longer = resumed(order, gradients)
    assert [sorted(epoch_of(longer, gradients)) for _ in range(3)] == [list(range(10))] * 3


# --- data loaders


def trained(loader, order, gradients, late=1):
    """Orders of three epochs of a loader; a step comes `late` batches behind its examples."""
    orders = []
    for _ in range(3):
        waiting, examples = [], []
        for rows in loader:
            waiting.append(rows)
            examples += rows.tolist()
            if len(waiting) == late:
                order.step(gradients[waiting.pop(0)])
        for rows in waiting:
            order.step(gradients[rows])
        orders.append(examples)
    return orders


@pytest.mark.parametrize("late", [2, 3, 100])
def test_steps_may_come_late(late):
    gradients = normal(33, 3)

    def orders(late):
        order = ThinnedOrder(33, epochs=3)
        return trained(DataLoader(range(33), batch_size=4, sampler=order), order, gradients, late)

    assert orders(late) == orders(1)


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_fetch_ahead(persistent):
    gradients = normal(33, 3)

    def orders(**more):
        order = ThinnedOrder(33, epochs=3)
        loader = DataLoader(range(33), batch_size=4, sampler=order, **more)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of any fork
            return trained(loader, order, gradients)

    workers = {"num_workers": 2, "prefetch_factor": 4, "persistent_workers": persistent}
    assert orders(**workers) == orders()


def test_missing_gradients():
    """Never a silent epoch of the same order."""
    order = ThinnedOrder(10, epochs=3)
    gradients = normal(10, 2)
    loader = DataLoader(range(10), batch_size=4, sampler=order, drop_last=True)
    examples = []
    for rows in loader:
        order.step(gradients[rows])
        examples += rows.tolist()
    with pytest.raises(RuntimeError, match="got the gradients of 8 of 10 examples of epoch 0; "):
        list(loader)
    order.load_state_dict(order.state_dict())
    left = list(order)
    assert sorted(examples + left) == list(range(10))
    order.step(gradients[left])
    assert sorted(order) == list(range(10))
    assert order.epoch == 1


# --- several processes


@pytest.mark.parametrize(("n", "replicas"), [(40, 4), (42, 4), (3, 4), (41, 2)])
def test_shards(n, replicas):
    gradients = normal(n, 3)
    ranks = [
        ThinnedOrder(n, epochs=3, seed=1, num_replicas=replicas, rank=rank)
        for rank in range(replicas)
    ]
    lengths = {len(rank) for rank in ranks}
    assert lengths == {-(-n // replicas)}
    shards = [epoch_of(rank, gradients) for rank in ranks]
    every = sorted(example for shard in shards for example in shard)
    assert set(every) == set(range(n))
    assert len(every) - n < replicas
    assert max(every.count(example) for example in every) <= 2
    for _ in range(2):
        orders = [epoch_of(rank, gradients) for rank in ranks]
        assert [sorted(order) for order in orders] == [sorted(shard) for shard in shards]


def test_shards_follow_the_specification_with_draws_of_their_own():
    gradients = normal(64, 3)
    for rank in range(2):
        order = ThinnedOrder(64, epochs=2, seed=1, num_replicas=2, rank=rank)
        first = epoch_of(order, gradients)
        draws = uniforms(32, 1, seed=1, rank=rank)
        places, _ = next_order(gradients[first], draws, 1, 2)
        assert list(order) == np.array(first)[places].tolist()
    assert not np.array_equal(uniforms(32, 1, 1, rank=0), uniforms(32, 1, 1, rank=1))


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"dataset": 0}, "^dataset must be an integer of at least 1; got 0"),
        ({"dataset": []}, "^dataset must be an integer of at least 1; got 0"),
        ({"dataset": 2.5}, "^dataset must be an integer of at least 1; got 2.5"),
        ({"dataset": iter([])}, "^dataset must have a length, or be a number of examples; got "),
        ({"epochs": 0}, "^epochs must be an integer of at least 1; got 0"),
        ({"seed": -1}, "^seed must be an integer of at least 0; got -1"),
        ({"seed": 2**64}, "^seed must be below 2.64; got 1844"),
        ({"delta": 0}, r"^delta must lie in \(0, 1\]; got 0"),
        ({"num_replicas": 0}, "^num_replicas must be an integer of at least 1; got 0"),
        ({"rank": 1}, "^rank must be below num_replicas = 1; got 1"),
    ],
)
def test_bad_arguments(arguments, says):
    with pytest.raises((ValueError, TypeError), match=says):
        ThinnedOrder(**{"dataset": 4, "epochs": 2} | arguments)


@pytest.mark.parametrize(
    ("gradients", "error", "says"),
    [
        (torch.ones(3, 2), ValueError, "gradients must be of the 2 examples .*; got 3"),
        (torch.tensor([[1, torch.nan]]), ValueError, "gradients must be finite; it holds NaN"),
        (torch.tensor([[1, -torch.inf]]), ValueError, "gradients must be finite; it holds NaN"),
        (torch.tensor([[1, 1e15]]), ValueError, "gradients must have norms below 1.8e.13 in"),
        (torch.tensor([[1, 1e30]]), ValueError, "gradients must have norms below 1.8e.13 in"),
        (torch.ones(1, 3), ValueError, "gradients must have 2 numbers for each .*; got 3"),
        (torch.ones(1, 2).double(), TypeError, "gradients must be torch.float32, .* torch.float64"),
        (torch.ones(1, 2).long(), TypeError, "gradients must be of one float dtype .*int64 on cpu"),
        (torch.ones(0, 2), ValueError, r"gradients must have one row .*; got \(0, 2\)"),
        (torch.tensor(1.0), ValueError, r"gradients must have one row .*; got \(\)"),
        ([torch.ones(1, 1), torch.ones(2, 1)], ValueError, r"one row .*; got \(1, 1\), \(2, 1\)"),
        ([torch.ones(1, 1), torch.ones(1, 1).half()], TypeError, "one float dtype on one device"),
        ([torch.ones(1, 1), torch.ones(1, 1, device="meta")], TypeError, "float32 on meta"),
        ([], TypeError, r"gradients must be a tensor, or a dict, .*; got list of \[\]"),
        (3, TypeError, "gradients must be a tensor, or a dict, .*; got int of"),
        ({"w": None}, TypeError, r"gradients must be a tensor.*; got dict of \['NoneType'\]"),
    ],
)
def test_bad_gradients_change_nothing(gradients, error, says):
    order = ThinnedOrder(6, epochs=2)
    examples = iter(order)
    for _ in range(5):
        next(examples)
    order.step(torch.randn(3, 2))
    before = order.state_dict()
    with pytest.raises(error, match=f"{says}"):
        order.step(gradients)
    assert same(order.state_dict(), before)


def test_large_and_small_gradients():
    """Up to the limit, and where squares underflow, nothing but examples changes place."""
    for size in (1.7e13, 1e-30, 0.0):
        gradients = normal(50, 1, dtype=torch.float32).sign() * size
        order = ThinnedOrder(50, epochs=3)
        for _ in range(3):
            assert sorted(epoch_of(order, gradients)) == list(range(50))
