"""Tensor cores: which thread holds what, and half precision at the ends of its range."""

import threading

import numpy as np
import pytest
import torch
from simulator import THREADS

from thinformer.cuda import tensor, tiles
from thinformer.cuda.jit import cuda
from thinformer.halving.plan import plan
from thinformer.torch.choose.operators import select
from thinformer.torch.choose.seeds import bits_of_seed

WORDS = 2 * tensor.STEP


class Emulated:
    """The instruction as the manual of PTX describes it, of a warp whose threads meet twice."""

    def __init__(self, numbers):
        self.numbers, self.given = numbers, {}

    def __call__(self, *registers):
        lane = cuda.threadIdx.x
        self.given[lane] = registers
        cuda.syncthreads()
        A, B, C = np.zeros((16, 16)), np.zeros((16, 8)), np.zeros((16, 8))
        for other, (a0, a1, a2, a3, b0, b1, *sums) in self.given.items():
            group, t = other // 4, other % 4
            for word, row, column in ((a0, 0, 0), (a1, 8, 0), (a2, 0, 8), (a3, 8, 8)):
                A[group + row, column + 2 * t : column + 2 * t + 2] = self.numbers(word)
            for word, row in ((b0, 0), (b1, 8)):
                B[row + 2 * t : row + 2 * t + 2, group] = self.numbers(word)
            C[group, 2 * t : 2 * t + 2] = sums[:2]
            C[group + 8, 2 * t : 2 * t + 2] = sums[2:]
        cuda.syncthreads()
        D, (group, t) = A @ B + C, (lane // 4, lane % 4)
        return tuple(np.float32([*D[group, 2 * t :][:2], *D[group + 8, 2 * t :][:2]]))


def in_words(numbers, of):
    """Numbers (n, columns) as `tensor` stages them, (n, columns / 2), and as they are rounded."""
    if of is tiles.of_float16:
        halves = numbers.astype(np.float16)
        bits, numbers = halves.view(np.uint16).astype(np.uint32), halves.astype(np.float32)
    else:
        bits = numbers.astype(np.float32).view(np.uint32) >> 16
        numbers = (bits << 16).view(np.float32)
    return bits[:, ::2] | bits[:, 1::2] << 16, numbers


@pytest.mark.parametrize("of", [tiles.of_float16, tiles.of_bfloat16])
@pytest.mark.parametrize("emulated", [False, True])
def test_each_thread_holds_its_patch(of, emulated, monkeypatch):
    """All 16 x 32 products of a warp; as the kernel does it, and as the simulator does."""

    def numbers(word):
        both = np.array([word & 0xFFFF, word >> 16], np.uint32)
        if of is tiles.of_float16:
            return both.astype(np.uint16).view(np.float16)
        return (both << 16).view(np.float32)

    if emulated:
        monkeypatch.setattr(tensor, "SIMULATED", False)
        instruction = Emulated(numbers)
        monkeypatch.setattr(tensor, "make_mma", lambda name: instruction)
    multiply = tensor.make_multiply(of)
    rng = np.random.default_rng(0)
    (row_words, x), (point_words, y) = (
        in_words(rng.standard_normal((n, 2 * WORDS)), of) for n in (16, 32)
    )

    def kernel(row_words, point_words, out):
        rows = cuda.shared.array((16, tensor.ROW_WORDS), tensor.WORD)
        panel = cuda.shared.array((32, tensor.PANEL_WORDS), tensor.WORD)
        patch = cuda.local.array(16, np.float32)
        thread = cuda.threadIdx.x
        rows[thread % 16, :WORDS] = row_words[thread % 16]
        panel[thread, :WORDS] = point_words[thread]
        for i in range(16):
            patch[i] = i
        cuda.syncthreads()
        row, point = tensor.corner()
        multiply(patch, rows, panel, row, WORDS)
        for i in range(16):
            out[row + i // 8, tensor.place_in(point, i % 8)] = patch[i] - i

    out = cuda.to_device(np.full((16, 32), np.nan, np.float32))
    cuda.jit(kernel)[1, THREADS](cuda.to_device(row_words), cuda.to_device(point_words), out)
    np.testing.assert_allclose(out.copy_to_host(), x @ y.T, atol=1e-5)
    assert threading.active_count() < 10


@pytest.mark.parametrize(
    ("dtype", "magnitude"),
    [("bfloat16", 1e30), ("bfloat16", 1e-30), ("float16", 1e4), ("float16", 1e-6)],
)
def test_values_at_the_ends_of_their_range(dtype, magnitude, torch_on_the_simulator):
    """Their products would overflow in float32, or underflow; the scale is a power of two."""
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn((2, 1, 40, 1, 18), generator=generator)
    key = (key / 4).to(getattr(torch, dtype))
    value = (magnitude * value).to(getattr(torch, dtype))
    assert value.isfinite().all()
    kept, finite = torch_on_the_simulator.select(
        key, value, settings=plan(40, 2, 20, 0.5), scale=0.7, seed=torch.tensor(bits_of_seed(5))
    )
    expected, _, _ = select(key, value, None, torch.tensor(5), 2, 20, 0.7, "even", 0)
    assert torch.equal(kept, expected)
    assert finite.all()
    assert 5 < int((kept % 2).sum()) < 15
