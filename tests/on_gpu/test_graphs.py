"""CUDA graphs and streams; in the simulator, which has neither, the same calls without them."""

import threading

import pytest
import torch
from devices import at, captured, on_a_stream, torch_device, wait

from thinformer import ThinformerAttention, thinformer_attention
from thinformer.cuda.jit import SIMULATED

THERE = torch_device()
S, SIZE = at((2048, 128), (12, 3))


def drawn(seed, heads=2, tokens=None):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, 1, tokens or S, heads, 8)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(THERE)


def attend(tensors, seed, **options):
    generator = torch.Generator().manual_seed(seed)
    found = thinformer_attention(
        *tensors, size=SIZE, generator=generator, return_indices=True, **options
    )
    return found.output, found.indices


@pytest.mark.parametrize(
    "options",
    [{}, {"correction": "queries"}, {"correction": "nystrom"}, {"temperature": "auto"}],
)
def test_a_graph_computes_what_a_call_does(options):
    """Also of numbers that are written where the graph reads them."""
    tensors = drawn(0)
    replay, (output, indices) = captured(lambda: attend(tensors, 1, **options))
    for seed in (2, 3):
        tensors.copy_(drawn(seed))
        replay()
        expected, kept = attend(tensors, 1, **options)
        assert torch.equal(indices, kept)
        torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(SIMULATED, reason="a graph's own generator needs a GPU")
def test_replays_draw_anew():
    """With torch's generator of the GPU."""
    tensors = drawn(0)

    def work():
        found = thinformer_attention(*tensors, size=SIZE, return_indices=True)
        return found.output, found.indices

    replay, (_, indices) = captured(work)
    kept = []
    for _ in range(3):
        replay()
        kept.append(indices.clone())
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])


def test_a_stream_of_its_own():
    """What is written on the stream before is read, and what is chosen is read there after."""
    expected = attend(drawn(1), 4)
    with on_a_stream():
        tensors = drawn(0)
        for _ in range(50):
            tensors.mul_(1.0001)
        tensors.copy_(drawn(1))
        found = attend(tensors, 4)
        doubled = [2 * x for x in found]
    for one, other in zip(doubled, expected, strict=True):
        torch.testing.assert_close(one, 2 * other, rtol=1e-9, atol=1e-9)


def test_two_tensors_at_once():
    """On two streams, from one thread and from two."""
    inputs = [drawn(1), drawn(2, heads=3, tokens=S - 1)]
    expected = [attend(tensors, seed) for seed, tensors in enumerate(inputs)]
    wait()
    rounds = at(5, 1)
    for _ in range(rounds):
        found = []
        for seed, tensors in enumerate(inputs):
            with on_a_stream():
                found.append(attend(tensors, seed))
        same(found, expected)
    found = [None, None]

    def work(i):
        with on_a_stream():
            found[i] = attend(inputs[i], i)
        wait()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
        if SIMULATED:
            thread.join()
    for thread in threads:
        thread.join()
    same(found, expected)


def same(found, expected):
    wait()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one[1], other[1])
        torch.testing.assert_close(one[0], other[0], rtol=1e-9, atol=1e-9)


def test_a_module_without_waiting():
    """The module in a graph, beside the same module called with the same seed."""
    tensors = drawn(3)
    modules = [
        ThinformerAttention(
            size=SIZE, use_torch_spda=True, generator=torch.Generator().manual_seed(5)
        )
        for _ in range(2)
    ]
    expected = modules[0](*tensors)[0]
    with on_a_stream():
        found = modules[1](*tensors)[0]
    wait()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(SIMULATED, reason="what is captured is known to a GPU only")
def test_a_mask_is_not_captured():
    """The last test of the file: whatever an abandoned graph leaves, no other test meets it."""
    tensors, mask = drawn(0), torch.zeros(1, S, dtype=torch.bool, device=THERE)
    attend(tensors, 0, key_padding_mask=mask)

    def capture():
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            attend(tensors, 0, key_padding_mask=mask)

    with pytest.raises(RuntimeError, match="a mask cannot be captured"):
        capture()
