"""Rounds as launches, their tables, and what docs/cuda.md counts of them."""

import numpy as np
import pytest
from checkout import ROOT

from thinformer import (
    compress_schedule,
)
from thinformer.cpu.pivots import BLOCK
from thinformer.cuda import pivots, run, tiles
from thinformer.cuda.halve import threads_for
from thinformer.halving.plan import plan
from thinformer.halving.steps import simple_factor
from thinformer.measuring import speed

H100 = 132  # multiprocessors


def test_a_round_is_a_launch_of_a_block_for_each_bucket():
    """The rounds of 64k tokens and g = 2, few heads: none is worth doing in one block."""
    schedule = compress_schedule(65536, 1024)
    made = run.launches(schedule, 4, 128, H100, np.float32)
    assert [(one.first_round, one.last_round) for one in made] == [(i, i + 1) for i in range(6)]
    assert [one.share for one in made] == [1024, 256, 64, 16, 4, 1]
    assert [one.threads for one in made] == [64, 128, 128, 256, 256, 256]


def test_rounds_of_many_problems_are_one_launch():
    schedule = compress_schedule(1024, 128)
    (one,) = run.launches(schedule, 2 * H100, 128, H100, np.float32)
    assert one == run.Launch(0, 3, 1, 128)
    assert len(run.launches(schedule, 2 * H100 - 1, 128, H100, np.float32)) == 3


def test_small_rounds_are_one_launch():
    """What takes one block less time than a launch."""
    schedule = compress_schedule(1024, 32)
    assert run.launches(schedule, 1, 4, H100, np.float64) == [run.Launch(0, 5, 1, 64)]
    assert run.launches(compress_schedule(9, 9), 1, 4, H100, np.float64) == []


def test_tables_hold_the_schedule():
    """Factors of both lengths that the buckets of a round have; coins behind the uniforms."""
    schedule = compress_schedule(90, 11)  # 44 pairs in 16 buckets, 22 in 4, 11 in 1
    table, factors = run.round_tables(schedule, np.float64)
    assert table.tolist() == [[44, 16, 77], [22, 4, 93], [11, 1, 97]]
    delta = schedule.rounds[0].delta
    np.testing.assert_array_equal(factors[0], [simple_factor(4, delta), simple_factor(6, delta)])
    assert run.count_draws(schedule) == 98
    assert run.workspace(schedule, 3, np.float32)["draws"] == ((3, 98), np.float32)


# An H100 SXM by its data sheet
FLOAT32 = 66.9e12  # operations a second, not of tensor cores
MEMORY = 3.35e12  # bytes a second
TENSOR = 989e12  # operations a second of tensor cores in half precision


def counted(shape, itemsize):
    """What docs/cuda.md counts of a shape, with g = 2: a row of its table."""
    B, T, S, H, E, D = speed.SHAPES[shape]
    schedule = plan(S, 2, None, 0.5).schedule
    needed = done = numbers = seconds = 0
    for round_ in schedule.rounds:
        size = round_.largest_bucket
        tile = threads_for(size, np.float32) // 2  # rows
        ends = np.arange(tiles.PANEL, size + tiles.PANEL, tiles.PANEL)
        computed = 2 * (E + D) * sum(-(-end // tile) * tile * tiles.PANEL for end in ends)
        needed += B * H * round_.buckets * (E + D) * size**2
        done += B * H * round_.buckets * computed
        numbers += B * H * 2 * round_.pairs * (E + D)
        seconds += -(-B * H * round_.buckets // H100) * computed / (FLOAT32 / H100)
    numbers += B * H * (S * (E + D) + schedule.length * D)  # measuring, before
    floor = max(needed / FLOAT32, numbers * itemsize / MEMORY)
    exact = 2 * B * H * T * S * (E + D) / (TENSOR if itemsize == 2 else FLOAT32)
    return [
        f"{needed / 1e9:.2f}", f"{done / 1e9:.2f}", f"{numbers * itemsize / 1e6:.0f}",
        f"{1e6 * floor:.0f}", f"{1e6 * seconds:.0f}", f"{1e6 * exact:.0f}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "itemsize"),
    [("t2t", 4), ("t2t-b64", 4), ("biggan", 4), ("4k", 4), ("16k", 4), ("64k-h16", 2)],
)
def test_the_count_on_paper(shape, itemsize):
    dtype = {2: "bfloat16", 4: "float32"}[itemsize]
    line = " | ".join(
        [speed.NAMES[shape], str(speed.SHAPES[shape]), dtype, *counted(shape, itemsize)]
    )
    assert f"| {line} |" in (ROOT / "docs" / "cuda.md").read_text().splitlines()


def counted_pivots(heads, L, E, n_out):
    """What docs/cuda.md counts of pivots where every proposal is accepted."""
    tile = pivots.COLUMNS * pivots.THREADS
    needed = done = numbers = 0
    for before in range(0, n_out, BLOCK):
        rows = E + before
        needed += 2 * BLOCK * L * rows
        done += 2 * BLOCK * (-(-L // tile) * tile + BLOCK) * rows
        numbers += (rows + BLOCK) * L + 2 * BLOCK * rows
    seconds = -(-heads // H100) * done / (FLOAT32 / H100)
    return [
        f"{heads * needed / 1e9:.2f}", f"{heads * done / 1e9:.2f}",
        f"{4 * heads * numbers / 1e6:.0f}", f"{1e6 * seconds:.0f}",
        f"{1e6 * 4 * heads * numbers / MEMORY:.0f}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape"),
    [("64 landmarks of 512 keys", (12, 256, 32, 64)), ("128 of 1370", (6, 512, 64, 128)),
     ("the same, 64 images", (384, 512, 64, 128)), ("1024 of 65536", (16, 4096, 64, 1024))],
)  # fmt: skip
def test_the_count_of_pivots_on_paper(name, shape):
    line = " | ".join([name, str(shape), *counted_pivots(*shape)])
    assert f"| {line} |" in (ROOT / "docs" / "cuda.md").read_text().splitlines(), line
