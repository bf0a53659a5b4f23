"""`thinformer_attention` as an operator: compiled, exported, mapped, in several processes."""

import subprocess
import sys

import pytest
import torch
from compiling import compiled, graph_breaks
from processes import run
from tensors import equal, padding, qkv

from thinformer import thinformer_attention
from thinformer.halving.plan import plan
from thinformer.torch.choose.operators import keys_kept, select


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked):
    _, key, value = qkv(dtype=torch.float32)
    valid = ~padding(300, 300, 150) if masked else None
    for tensors in ((key, value), (key.half(), value.half())):
        arguments = (*tensors, valid, torch.tensor(5), 1, None, 0.3, "even", 160)
        assert set(torch.library.opcheck(select, arguments).values()) == {"SUCCESS"}


@pytest.mark.slow
def test_shapes_are_as_planned():
    for pre_thin in ("even", "stride"):
        for g in (0, 1, 3):
            for S in range(1, 600):
                for size in (None, 1, 20, 300):
                    planned = plan(S, g, size, 0.5, pre_thin).schedule.size
                    assert keys_kept(S, g, size, pre_thin, 0, False) == planned
    assert keys_kept(300, 2, None, "even", 300, True) == 299
    assert keys_kept(300, 2, None, "even", 300, False) == 64
    assert keys_kept(300, 10**9, None, "even", 0, False) == 300


@pytest.mark.slow
def test_compile_breaks_no_graph():
    query, key, value = qkv()
    mask = padding(300, 300, 150)

    def function(query, key, value, mask):
        return thinformer_attention(query, key, value, g=1, key_padding_mask=mask,
                                    attn_mask=~mask[:, None, None], return_weights=True,
                                    return_indices=True)  # fmt: skip

    fast, counter = compiled(function)
    torch.manual_seed(0)
    expected = function(query, key, value, mask)
    torch.manual_seed(0)
    got = fast(query, key, value, mask)
    assert all(map(torch.equal, got, expected))
    assert counter.frame_count == 1
    assert graph_breaks() == 0


@pytest.mark.slow
def test_compiled_gradients():
    query, key, value = qkv()
    gradients = []
    for function in (thinformer_attention, compiled(thinformer_attention)[0]):
        tensors = [x.clone().requires_grad_() for x in (query, key, value)]
        torch.manual_seed(0)
        function(*tensors).square().sum().backward()
        gradients.append([x.grad for x in tensors])
    for got, expected in zip(*gradients, strict=True):
        equal(got, expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, pytest.param(None, marks=pytest.mark.nightly)])
def test_compile_takes_changing_lengths_without_compiling_again(size):
    """Across powers of four, the size, and where nothing is thinned; with a size also padded."""
    fast, counter = compiled(thinformer_attention, dynamic=True)
    graphs, options = [], {"size": size}
    for S in (300, 700, 1023, 1024, 4100, 101, 99, 64, 17, 2):
        tensors = qkv(S=S)
        if size:
            options["key_padding_mask"] = padding(S, S, S // 2)
        torch.manual_seed(S)
        expected = thinformer_attention(*tensors, **options)
        torch.manual_seed(S)
        equal(fast(*tensors, **options), expected)
        graphs.append(counter.frame_count)
    assert graphs[0] == graphs[-1]


@pytest.mark.slow
def test_compile_does_not_guess_about_masks():
    fast, _ = compiled(thinformer_attention)
    with pytest.raises(Exception, match="cannot be under torch.compile: give it as bool"):
        fast(*qkv(), attn_mask=torch.ones(7, 300, dtype=torch.bool))


@pytest.mark.slow
def test_export_with_a_dynamic_length():
    class Model(torch.nn.Module):
        def forward(self, query, key, value):
            return thinformer_attention(query, key, value, g=1)

    S = torch.export.Dim("S", min=2, max=100_000)
    shapes = ({1: torch.export.Dim("T")}, {1: S}, {1: S})
    exported = torch.export.export(Model(), tuple(qkv()), dynamic_shapes=shapes).module()
    for length in (700, 20, 5000):
        tensors = qkv(S=length, T=9)
        torch.manual_seed(0)
        expected = thinformer_attention(*tensors, g=1)
        torch.manual_seed(0)
        equal(exported(*tensors), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap():
    tensors = [torch.stack([a, b, c]) for a, b, c in zip(*(qkv(seed=i) for i in range(3)),
                                                         strict=True)]  # fmt: skip
    masks = torch.stack([padding(300, 300, n) for n in (10, 200, 0)])

    def function(query, key, value, mask):
        return thinformer_attention(query, key, value, key_padding_mask=mask)

    torch.manual_seed(0)
    got = torch.vmap(function, randomness="same")(*tensors, masks)
    for i in range(3):
        torch.manual_seed(0)
        equal(got[i], function(*(x[i] for x in tensors), masks[i]))


STEP = """
import sys
import torch
from thinformer import thinformer_attention

rank, store, result = int(sys.argv[1]), *sys.argv[2:]
torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 24))
query, key, value = model(torch.randn(2, 300, 4, 8)[rank : rank + 1]).chunk(3, dim=-1)
torch.manual_seed(1)
thinformer_attention(query, key, value).square().mean().backward()
torch.save(model.module.weight.grad, result)
torch.distributed.destroy_process_group()
"""


@pytest.mark.nightly
def test_two_processes_train_as_one(tmp_path):
    """Gradients of two sequences in two processes of DDP, and of both in one.

    This process goes first: it compiles what the others call.
    """
    torch.manual_seed(0)
    project = torch.nn.Linear(8, 24)
    query, key, value = project(torch.randn(2, 300, 4, 8)).chunk(3, dim=-1)
    torch.manual_seed(1)
    thinformer_attention(query, key, value).square().mean().backward()
    store, results = f"file://{tmp_path / 'store'}", [tmp_path / "0", tmp_path / "1"]
    processes = [
        subprocess.Popen([sys.executable, "-c", STEP, str(rank), store, str(result)])
        for rank, result in enumerate(results)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    of_two = [torch.load(result) for result in results]
    assert torch.equal(*of_two)
    equal(of_two[0], project.weight.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_the_first_call_imports_no_compiler_of_graphs():
    """It would take most of the time of a first call whose kernels are on disk."""
    found = run("""
        import sys
        import torch
        from thinformer import thinformer_attention
        q = torch.zeros(1, 64, 1, 8)
        for correction in (None, "queries", "nystrom"):
            thinformer_attention(q, q, q, size=8, correction=correction, fallback="exact")
        print("torch._dynamo" in sys.modules)
    """)
    assert found == "False"
