"""What docs/cuda.md counts of Compress++ on a GPU."""

import math

import pytest
from checkout import ROOT

from thinformer.cuda import launches
from thinformer.halving.schedule import compress_schedule
from thinformer.thinning.methods import BLOCK, TARGET, halvings_to

# An H100 SXM by its data sheet
FLOAT32 = 66.9e12  # operations a second, not of tensor cores
MEMORY = 3.35e12  # bytes a second
H100 = 132  # multiprocessors
OF_A_COLUMN = 4  # operations: to scale, to subtract, to multiply and add


def values(n, size, g):
    """The kernel values of each step: tree, KT-SPLIT, mean embedding, and a pass of swaps."""
    assert size << g <= BLOCK
    halvings = min(halvings_to(n, size), max(0, round(math.log2(n / size) - g)))
    left = n >> halvings
    rounds = compress_schedule(n, left).rounds
    levels = [2 * rounds[0].pairs, *(round_.pairs for round_ in rounds)]
    target = next(level for level in levels if level <= max(left, TARGET * size))
    tree = sum(r.buckets * r.largest_bucket**2 / 2 for r in rounds)
    split = sum(left**2 / 2 ** (i + 1) for i in range(halvings_to(left, size)))
    rows = sum(2 * r.pairs for r in rounds) + left * (1 + halvings_to(left, size)) + target
    return left, rows, [tree, split, left * target, 2 * size * left]


def counted(n, d, size, g):
    """A row of the table: GFLOP of each step, MB of points, the floor, and a pass in one block."""
    left, rows, steps = values(n, size, g)
    flops = [OF_A_COLUMN * d * step for step in steps]
    numbers = d * rows
    floor = max(sum(flops) / FLOAT32, 4 * numbers / MEMORY)
    alone = flops[-1] / (FLOAT32 / H100)
    several = left * (3 * d + 8) > launches.SPAN_FLOPS
    return [
        *(f"{flop / 1e9:.1f}" for flop in flops), f"{4 * numbers / 1e6:.0f}",
        f"{1e6 * floor:.0f}", f"{1e6 * alone:.0f}", f"{size + 1 if several else 1}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("n", "d", "size", "g"),
    [(100_000, 10, 316, 4), (1_000_000, 10, 1000, 4), (10_000_000, 10, 1000, 4),
     (10_000_000, 100, 1000, 4)],
)  # fmt: skip
def test_the_count_of_compress_plus_plus_on_paper(n, d, size, g):
    line = " | ".join([f"{n:,}", str(d), str(size), *counted(n, d, size, g)])
    assert f"| {line} |" in (ROOT / "docs" / "cuda.md").read_text().splitlines(), line
