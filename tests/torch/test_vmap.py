"""`torch.vmap`: its `randomness` holds for seeds as for torch's own random numbers."""

import pytest
import torch
from tensors import equal, qkv

from thinformer import ThinformerAttention, thinformer_attention
from thinformer.torch.choose.seeds import draw_seed, uniforms

MEMBERS = 3
# each operator that chooses keys
CHOICES = {
    "select": {"g": 0},
    "stride": {"size": 20},
    "herd": {"g": 0, "temperature": "auto"},
    "nystrom": {"g": 0, "correction": "nystrom"},
    "queries": {"g": 0, "correction": "queries"},
}
EACH_CHOICE = pytest.mark.parametrize("options", CHOICES.values(), ids=CHOICES)
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch's own


def members(alike=True, **shapes):
    """Query, key and value of each member; the same tensors for all of them if they are alike."""
    sets = [qkv(S=100, seed=0 if alike else i, **shapes) for i in range(MEMBERS)]
    return [torch.stack(tensors) for tensors in zip(*sets, strict=True)]


def attend(options):
    def function(*tensors):
        attended = thinformer_attention(*tensors, return_indices=True, **options)
        return attended.output, attended.indices

    return function


@EACH_CHOICE
def test_different_draws_a_seed_for_each_member(options):
    """The members have the seeds that as many calls would draw, one after the other."""
    tensors = members(alike=False)
    torch.manual_seed(5)
    got, indices = torch.vmap(attend(options), randomness="different")(*tensors)
    torch.manual_seed(5)
    for i in range(MEMBERS):
        output, kept = attend(options)(*(x[i] for x in tensors))
        equal(got[i], output)
        assert torch.equal(indices[i], kept)


@EACH_CHOICE
@pytest.mark.parametrize("batched", [(0, 0, 0), (0, None, None), (None, 0, 0)])
def test_members_that_are_alike_differ_by_their_seeds_alone(options, batched, few_sampled_queries):
    tensors = members()
    tensors = [x if dim == 0 else x[0] for x, dim in zip(tensors, batched, strict=True)]
    _, different = torch.vmap(attend(options), batched, randomness="different")(*tensors)
    assert not torch.equal(different[0], different[1])
    _, same = torch.vmap(attend(options), batched, randomness="same")(*tensors)
    assert torch.equal(same[0], same[1])


@EACH_CHOICE
def test_same_draws_what_a_call_draws(options):
    tensors = members(alike=False)
    torch.manual_seed(5)
    got, _ = torch.vmap(attend(options), randomness="same")(*tensors)
    for i in range(MEMBERS):
        torch.manual_seed(5)
        equal(got[i], attend(options)(*(x[i] for x in tensors))[0])


@EACH_CHOICE
@pytest.mark.parametrize("chosen", [{}, {"randomness": "error"}])
def test_error_raises_as_torch_does(options, chosen):
    with pytest.raises(RuntimeError, match="called random operation while in randomness error"):
        torch.vmap(attend(options), **chosen)(*members())


def test_module():
    module, tensors = ThinformerAttention(g=0), members()
    output, _ = torch.vmap(module, randomness="different")(*tensors)
    assert not torch.equal(output[0], output[1])
    output, _ = torch.vmap(module, randomness="same")(*tensors)
    assert torch.equal(output[0], output[1])
    with pytest.raises(RuntimeError, match="called random operation while in randomness error"):
        torch.vmap(module)(*tensors)


def test_a_generator_draws_for_each_member():
    generator, tensors = torch.Generator().manual_seed(3), members()
    function = attend({"g": 0, "generator": generator})
    got, _ = torch.vmap(function, randomness="different")(*tensors)
    generator.manual_seed(3)
    for i in range(MEMBERS):
        equal(got[i], function(*(x[i] for x in tensors))[0])


def test_the_queries_of_an_estimate_differ_too():
    query, key, value = (x[0] for x in members(T=200))

    def estimate(_, **options):
        return thinformer_attention(
            query, key, value, g=0, return_error_estimate=True, **options
        ).error_estimate

    different = torch.vmap(estimate, randomness="different")(torch.zeros(MEMBERS))
    assert not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="called random operation while in randomness error"):
        torch.vmap(lambda _: draw_seed(None, query.device))(torch.zeros(MEMBERS))


@pytest.mark.parametrize("levels", [1, 2])
def test_draws_without_a_batch_are_those_outside(levels):
    def draws(generator):
        seed = draw_seed(generator, generator.device)
        return seed, uniforms(seed, (4,))

    outside = draws(torch.Generator().manual_seed(1))
    inside = lambda _: draws(torch.Generator().manual_seed(1))  # noqa: E731
    for _ in range(levels):
        inside = torch.vmap(inside, randomness="same")
    got = inside(torch.zeros((MEMBERS,) * levels))
    for some, expected in zip(got, outside, strict=True):
        assert torch.equal(some, expected.expand_as(some))


def test_nested():
    tensors = [torch.stack([x, x]) for x in members()]
    function = torch.vmap(attend({"g": 0}), randomness="different")
    _, indices = torch.vmap(function, randomness="different")(*tensors)
    rows = indices.flatten(0, 1).flatten(1)
    assert len(rows.unique(dim=0)) == 2 * MEMBERS


def test_gradients_of_each_member():
    query, key, value = members(alike=False)

    def loss(query, key, value):
        return attend({"g": 0})(query, key, value)[0].square().sum()

    torch.manual_seed(2)
    got = torch.vmap(torch.func.grad(loss), randomness="different")(query, key, value)
    torch.manual_seed(2)
    for i in range(MEMBERS):
        equal(got[i], torch.func.grad(loss)(query[i], key[i], value[i]))


def test_a_fallback_says_what_cannot_be():
    options = {"g": 0, "fallback": "exact", "error_threshold": 0.1}
    function = torch.vmap(lambda *x: thinformer_attention(*x, **options), randomness="same")
    with pytest.raises(NotImplementedError, match=r"^fallback must be None under torch\.vmap"):
        function(*members())


def test_a_generator_of_the_cpu_draws_one_seed_for_a_gpu():
    def draw(_):
        return draw_seed(torch.Generator(), torch.device("cuda"))

    with pytest.raises(NotImplementedError, match=r"^generator must be on cuda under torch\.vmap"):
        torch.vmap(draw, randomness="different")(torch.zeros(MEMBERS))


@pytest.mark.slow
def test_compiled():
    tensors = members()
    function = torch.vmap(attend({"g": 0}), randomness="different")
    _, indices = torch.compile(function, backend="aot_eager", fullgraph=True)(*tensors)
    assert not torch.equal(indices[0], indices[1])


@pytest.mark.slow
def test_a_graph_outside_vmap_draws_as_torch_does():
    """A compiler has random numbers of its own for rand and randint."""
    targets = []

    def backend(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    def draw(x):
        seed = draw_seed(None, x.device)
        return seed, uniforms(seed, (2,))

    drawn = []
    for function in (torch.compile(draw, backend=backend, fullgraph=True), draw):
        torch.manual_seed(0)
        drawn.append(function(torch.zeros(1)))
    assert all(map(torch.equal, *drawn))
    assert "aten.random.default" in targets
