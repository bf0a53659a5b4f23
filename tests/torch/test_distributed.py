"""Attention over shards of a sequence: ranks of gloo, against one process that holds all shards."""

from contextlib import contextmanager

import pytest
import ranks
import sharded
import torch
import torch.distributed as dist
from sharded import shards_of
from tensors import equal, exact
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.functional import scaled_dot_product_attention

from reference import torch_version
from thinformer import Draws, make_draws, thinformer_attention
from thinformer.halving.draws import seed_from
from thinformer.torch import KeySelection, LayerOptions
from thinformer.torch.attend.arguments import Call, Wanted, checked_heads
from thinformer.torch.attend.layer import attend
from thinformer.torch.choose.seeds import seed_of_rank
from thinformer.torch.distributed import attend_to_fitted, fit, sharded_attention

CPU = torch.device("cpu")
F32, BF16 = torch.float32, torch.bfloat16
CORRECTED = "nystrom", "queries"


@contextmanager
def group_of_this_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def alone():
    with group_of_this_process():
        yield


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    """What four ranks found. The first two run the cases of two shards.

    This process compiles what they call. Each rank would compile it, at the same time.
    """
    with group_of_this_process():
        for name in COMPILED:
            shards, options = TWO[name]
            sharded_attention(*shards[0], **options)
    cases = {f"two, {name}": case for name, case in TWO.items()}
    cases |= {f"four, {name}": case for name, case in FOUR.items()}
    return ranks.run(4, cases, tmp_path_factory.mktemp("ranks"))


def with_prefix(results, prefix):
    names = [name for name in results if name.startswith(prefix)]
    return {name.removeprefix(prefix): results[name] for name in names}


@pytest.fixture(scope="module")
def of_two(of_ranks):
    return [with_prefix(results, "two, ") for results in of_ranks[:2]]


@pytest.fixture(scope="module")
def of_four(of_ranks):
    return [with_prefix(results, "four, ") for results in of_ranks]


PLAIN = {
    "equal": (shards_of((7, 7), (256, 256)), {"g": 1}),
    "equal, float32": (shards_of((7, 7), (256, 256), dtype=F32), {"g": 1}),
    "unequal": (shards_of((3, 9), (300, 77)), {"size": 20, "seed": 5}),
    "unequal, float32": (shards_of((3, 9), (300, 77), dtype=F32), {"size": 20}),
    "unequal kept": (shards_of((3, 0), (300, 77)), {"g": 0, "scale": 0.5}),
    "one whole": (shards_of((3, 9), (300, 30)), {"size": 40}),
    "grouped": (shards_of((3, 9), (300, 77), H=4, H_kv=2), {"g": 1, "enable_gqa": True}),
}
FAR = shards_of((70, 70), (100, 100))
FAR[1][2] += 10  # values, beyond the range of those of rank 0
FITTED = {
    f"{correction}, {name}": (shards, options | {"correction": correction})
    for correction in CORRECTED
    for name, (shards, options) in {
        "equal": (shards_of((70, 70), (200, 200)), {"g": 1}),
        "unequal": (shards_of((90, 130), (200, 90), D=3), {"size": 30, "seed": 5}),
        "one whole": (shards_of((70, 80), (200, 30)), {"size": 40}),
        "far": (FAR, {"size": 20}),
        "grouped": (shards_of((70, 20), (200, 90), H=4, H_kv=2), {"g": 0, "enable_gqa": True}),
    }.items()
}
GRADED = {
    f"gradients, {correction}, {size}": (
        shards_of((70, 80), (200, 30)),
        {"size": size, "correction": correction, "gradients": "qkv"},
    )
    for correction in (None, *CORRECTED)
    for size in (20, 40)  # with 40 the shorter shard keeps all its keys
}
GRADED["gradients, no queries"] = (
    shards_of((120, 0), (200, 90)),
    {"size": 20, "correction": "queries", "gradients": "qkv"},
)
a, b = shards_of((7, 7), (64, 64))
BAD = {
    "heads": [a, [x[:, :, :1] for x in b]],
    "columns": [a, [b[0], b[1], b[2][..., :3]]],
    "batch": [a, [x[:1] for x in b]],
    "dtype": [a, [x.float() for x in b]],
    "gradients": [a, b],
    "one rank's": [a, [b[0], b[1], b[2][:, :5]]],
}
SAID = {
    "heads": "ValueError: query (B, T, H, E) must have the same lengths but the second on all "
    "ranks; got shape (2, 7, 2, 8) on rank 0 and (2, 7, 1, 8) on rank 1",
    "columns": "ValueError: value (B, S, H, D) must have the same lengths but the second on all "
    "ranks; got shape (2, 64, 2, 5) on rank 0 and (2, 64, 2, 3) on rank 1",
    "batch": "ValueError: query (B, T, H, E) must have the same lengths but the second on all "
    "ranks; got shape (2, 7, 2, 8) on rank 0 and (1, 7, 2, 8) on rank 1",
    "dtype": "ValueError: the dtype must be the same on all ranks; got torch.float64 on rank 0 and "
    "torch.float32 on rank 1",
    "gradients": "ValueError: the tensors that require a gradient must be the same on all ranks; "
    "got query, key on rank 0 and none on rank 1",
}
HALF = {"half": (shards_of((7, 9), (300, 77), dtype=BF16), {"size": 20})}
SETTINGS = {"gradients": {"gradients": "qk", "without": 1}}
TWO = PLAIN | FITTED | GRADED | HALF
TWO |= {name: (shards, SETTINGS.get(name, {})) for name, shards in BAD.items()}
COMPILED = "equal", "equal, float32", "half", "nystrom, equal", "queries, equal"
LENGTHS = (100, 64, 200, 33)
FOUR = {
    "equal": (shards_of((4,) * 4, (64,) * 4), {"g": 0}),
    "unequal": (shards_of((3, 1, 0, 5), LENGTHS), {"g": 1, "seed": 2}),
    "unequal, float32": (shards_of((3, 1, 0, 5), LENGTHS, dtype=F32), {"g": 1}),
    "queries": (shards_of((60, 50, 0, 40), LENGTHS), {"size": 24, "correction": "queries"}),
    "nystrom": (shards_of((6, 5, 2, 4), LENGTHS), {"size": 24, "correction": "nystrom"}),
    "odd": (shards_of((3, 1, 2, 5), LENGTHS), {"size": 24, "odd": True}),
}


def tolerance(shards, options):
    """Fits solve systems whose matrices have condition numbers of up to 1e8 ("nystrom")."""
    if shards[0][0].dtype == F32:
        return {"rtol": 1e-5, "atol": 1e-5}
    least = {"nystrom": 1e-6, "queries": 1e-9}.get(options.get("correction"), 1e-10)
    return {"rtol": least, "atol": least}


def check(found, name, shards, options):
    expected = sharded.specified(shards, **options)
    for of_rank, output in zip(found, expected, strict=True):
        equal(of_rank[name]["output"], output, **tolerance(shards, options))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*PLAIN, *FITTED])
def test_two_ranks_are_as_one_process(name, of_two):
    check(of_two, name, *TWO[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FOUR if name != "odd"])
def test_four_ranks_are_as_one_process(name, of_four):
    check(of_four, name, *FOUR[name])


@pytest.mark.slow
def test_a_group_is_a_part_of_the_ranks(of_four):
    shards, options = FOUR["odd"]
    members, others = of_four[1::2], of_four[::2]
    check(members, "odd", shards[1::2], {"size": options["size"]})
    for of_rank in others:
        assert of_rank["odd"]["error"].startswith("ValueError: group must have this rank")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("equal", [(2, 2, 32, 13)]),  # 32 keys a head, of 8 + 5 columns
        ("unequal kept", [(2, 2, 16, 13)]),  # 16 of 300, and 8 of 77
        ("grouped", [(2, 2, 32, 13)]),
        ("nystrom, unequal", [(2, 2, 32, 12)]),  # 30 keys, 8 + 3 + 1 columns, two rows of bounds
        ("queries, unequal", [(2, 2, 57, 8), (2, 2, 32, 12)]),  # 96 queries: 39 and 57 of them
    ],
)
def test_only_kept_keys_are_gathered(name, shapes, of_two):
    for of_rank in of_two:
        expected = [[(shape, torch.float64)] * 2 for shape in shapes]
        assert of_rank[name]["gathered"] == expected


@pytest.mark.slow
def test_half_precision(of_two):
    """Selected and weighted as in float32, rounded once; gathered as it is."""
    shards, options = HALF["half"]
    expected = sharded.specified([[x.float() for x in shard] for shard in shards], **options)
    for of_rank, output in zip(of_two, expected, strict=True):
        assert of_rank["half"]["gathered"] == [[((2, 2, 20, 13), BF16)] * 2]
        equal(of_rank["half"]["output"], output.to(BF16), rtol=2**-7, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", BAD)
def test_all_ranks_raise(name, of_two):
    got = [of_rank[name]["error"] for of_rank in of_two]
    if name in SAID:
        assert got == [SAID[name]] * 2
        return
    said = "ValueError: value must have shape (B, S, H, D) with the B, S and H of key (2, 64, 2, 8)"
    assert got[1].startswith(said)
    assert got[0].startswith(f"RuntimeError: sharded_attention failed on rank 1: {said}")


def halved(shards, size):
    """One process in torch's own operations, by the specification of the choice."""
    few = []
    for rank, (_, key, value) in enumerate(shards):
        schedule = KeySelection(size=size, correction=None, min_length=0).plan(key.shape[1])[0]
        draws = make_draws(schedule, seed_from(int(seed_of_rank(0, rank, CPU))), heads=2)
        tensors = Draws(*(tuple(map(torch.tensor, part)) for part in draws[:2]),
                        torch.tensor(draws.strata))  # fmt: skip
        kept = torch_version.select(key, value, 8**-0.5, schedule, tensors)[..., None]
        weight = torch.full((kept.shape[2],), key.shape[1] / kept.shape[2]).double().log()
        few.append((*(x.transpose(1, 2).take_along_dim(kept, 2) for x in (key, value)), weight))
    key, value, bias = (
        torch.cat(x, dim) for x, dim in zip(zip(*few, strict=True), (2, 2, 0), strict=True)
    )
    return [
        scaled_dot_product_attention(query.transpose(1, 2), key, value, bias[None]).transpose(1, 2)
        for query, *_ in shards
    ]


def fitted(shards, size, correction):
    selection = KeySelection(size=size, correction=correction, min_length=0)
    heads = [checked_heads(*shard, Call()) for shard in shards]
    queries = [shard.query for shard in heads]
    if correction == "queries":
        kept = [min(size, key.shape[1]) for _, key, _ in shards]
        queries = [sharded.sample(shards, kept, 0)] * len(shards)
    parts = [
        fit(shard._replace(query=few), selection, seed_of_rank(0, rank, CPU))
        for rank, (shard, few) in enumerate(zip(heads, queries, strict=True))
    ]
    return [attend_to_fitted(shard, parts) for shard in heads]


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADED)
def test_gradients_are_those_of_one_process(name, of_two):
    """Of the sum of the ranks' losses."""
    shards, options = GRADED[name]
    leaves = [[x.clone().requires_grad_() for x in shard] for shard in shards]
    if options["correction"] is None:
        outputs = halved(leaves, options["size"])
    else:
        outputs = fitted(leaves, options["size"], options["correction"])
    sum(output.cos().sum() for output in outputs).backward()
    for of_rank, output, shard in zip(of_two, outputs, leaves, strict=True):
        equal(of_rank[name]["output"], output.detach())
        for got, leaf in zip(of_rank[name]["gradients"], shard, strict=True):
            equal(got, leaf.grad, rtol=1e-7, atol=1e-9)


def test_one_rank_is_thinformer_attention(alone):
    """With the rank's seed, which no generator gives; another seed keeps other keys."""
    ((query, key, value),) = shards_of((7,), (300,))
    layer = LayerOptions(KeySelection(size=40, correction=None, min_length=0), fallback=None)
    heads, wanted = checked_heads(query, key, value, Call()), Wanted(seed=seed_of_rank(3, 0, CPU))
    expected = attend(heads, layer, wanted).output
    equal(sharded_attention(query, key, value, size=40, seed=3), expected)
    assert not torch.allclose(sharded_attention(query, key, value, size=40), expected, atol=1e-3)


@pytest.mark.parametrize("correction", [None, *CORRECTED])
def test_sizes_from_the_length_on_are_exact(correction, alone):
    ((query, key, value),) = shards_of((7,), (50,))
    got = sharded_attention(query, key, value, size=50, correction=correction)
    equal(got, exact(query, key, value))


@pytest.mark.parametrize("correction", [None, *CORRECTED])
def test_no_queries(correction, alone):
    ((query, key, value),) = shards_of((0,), (100,))
    got = sharded_attention(query, key, value, size=20, correction=correction)
    assert got.shape == (2, 0, 2, 5)


@pytest.mark.parametrize("size", [20, 100])
@pytest.mark.parametrize("correction", [None, *CORRECTED])
@pytest.mark.parametrize("role", ["key", "value"])
def test_nan_stays_in_its_head(role, correction, size, alone):
    ((query, key, value),) = shards_of((7,), (100,))
    clean = sharded_attention(query, key, value, size=size, correction=correction)
    (key if role == "key" else value)[1, 5, 0, 2] = float("nan")
    got = sharded_attention(query, key, value, size=size, correction=correction)
    assert got[1, :, 0].isnan().all()
    got[1, :, 0] = clean[1, :, 0]
    equal(got, clean)


def test_nan_in_a_sampled_query(alone):
    ((query, key, value),) = shards_of((7,), (100,))
    query[1, 5, 0, 2] = float("nan")  # all seven are sampled
    got = sharded_attention(query, key, value, size=20, correction="queries")
    assert got.isnan().all(dim=(1, 3)).tolist() == [[False, False], [True, False]]
    assert got.isfinite().all(dim=(1, 3)).tolist() == [[True, True], [False, True]]


def test_a_compiled_function_calls_it(alone):
    tensors = shards_of((7,), (100,))[0]

    def function(*tensors):
        return 2 * sharded_attention(*tensors, size=20)

    compiled = torch.compile(function, backend="eager")
    assert torch.equal(compiled(*tensors), function(*tensors))


def test_second_derivatives_raise(alone):
    tensors = [x.requires_grad_() for x in shards_of((7,), (100,))[0]]
    output = sharded_attention(*tensors, size=20)
    (gradient,) = torch.autograd.grad(output.sum(), tensors[1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_mesh_of_one_dimension(alone):
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("tensor", "sequence"))
    tensors = shards_of((7,), (100,))[0]
    expected = sharded_attention(*tensors, size=20)
    equal(sharded_attention(*tensors, size=20, group=mesh["sequence"]), expected)
    said = r"^group must be a mesh of one dimension.*; got 2 dimensions: \('tensor', 'sequence'\)$"
    with pytest.raises(ValueError, match=said):
        sharded_attention(*tensors, size=20, group=mesh)


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match=r"^sharded_attention needs a process group, and there"):
        sharded_attention(*shards_of((7,), (100,))[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 0}, ValueError, "^size must be"),
        ({"seed": -1}, ValueError, "^seed must be"),
        ({"scale": 0}, ValueError, "^scale must be"),
        ({"correction": "none"}, ValueError, "^correction must be"),
        ({"is_causal": True}, TypeError, "unexpected keyword argument 'is_causal'"),
        ({"attn_mask": None}, TypeError, "unexpected keyword argument 'attn_mask'"),
        ({"dropout_p": 0.1}, TypeError, "unexpected keyword argument 'dropout_p'"),
    ],
)
def test_bad_arguments(options, error, message, alone):
    with pytest.raises(error, match=message):
        sharded_attention(*shards_of((7,), (100,))[0], **options)


@pytest.mark.parametrize("correction", [None, *CORRECTED])
def test_heads_sharded_over_ranks_need_nothing(correction):
    """Tensor parallelism: the first heads alone are as among all; later ones have other draws."""

    def of_heads(tensors):
        generator = torch.Generator().manual_seed(0)
        return thinformer_attention(*tensors, size=20, correction=correction, generator=generator)

    tensors = shards_of((120,), (100,), H=4)[0]
    together = of_heads(tensors)
    equal(of_heads([x[:, :, :2] for x in tensors]), together[:, :, :2])
    # draws go by the position among the heads of the call
    others = of_heads([x[:, :, 2:] for x in tensors])
    assert not torch.allclose(others, together[:, :, 2:], atol=1e-3)
    moved = of_heads([x[:, :, [2, 3, 0, 1]] for x in tensors])
    equal(others, moved[:, :, :2])
