"""Rounds as launches, their tables, and what docs/cuda.md counts of them."""

import numpy as np
import pytest
from checkout import ROOT

from thinformer import (
    compress_schedule,
)
from thinformer.attending.herding import CANDIDATES
from thinformer.cpu.pivots import BLOCK
from thinformer.cuda import launches, pivots, run, tiles
from thinformer.cuda.halve import threads_for
from thinformer.cuda.shared import WIDEST, Sharing
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
    shapes = run.workspace(schedule, 3, np.float32, [])
    assert shapes["draws"] == ((3, 98), np.float32)
    assert shapes["memory"] == ((0,), np.float32)


def test_large_buckets_of_few_problems_are_shared():
    """16 heads of 64k tokens: 256 buckets keep all multiprocessors busy, 64 and 16 do not."""
    schedule = compress_schedule(65536, 1024)
    made = run.launches(schedule, 16, 128, H100, np.float32)
    assert [one.shared for one in made] == [
        None, None, None, None, Sharing(512, 1024, 3), Sharing(1024, 2048, 3),
    ]  # fmt: skip
    # stored values, the sums of each 3 tiles of 128 rows, two norms, and the largest b
    numbers = max(64 * (512**2 + 3 * 512 + 3), 16 * (1024**2 + 6 * 1024 + 3))
    assert run.count_memory(made, 16) == numbers
    assert [launches.span_launches(one.shared, 16 * one.share, 256) for one in made[4:]] == [
        [(0, 64 * 16 * 2), (512, 64 * 16 * 3)], [(0, 16 * 32 * 3), (1024, 16 * 32 * 6)],
    ]  # fmt: skip


@pytest.mark.parametrize("problems", [1, 16, 100])
def test_a_way_to_share_fits_the_kernels(problems):
    """A span is whole tiles and fits shared memory; the stored values fit the cache."""
    shared = 0
    for size in [1, 50, 300, 777, 5000, 40000]:
        for round_ in compress_schedule(4 * size, size).rounds:
            for rows in (16, 64, 128):
                way = launches.sharing(round_, problems, 20, H100, rows)
                if way is not None:
                    shared += 1
                    assert way.width % tiles.PANEL == way.width % rows == 0
                    assert way.width <= WIDEST
                    assert way.points == round_.largest_bucket
                    assert 1 <= way.tiles <= way.width // rows
                    assert problems * round_.buckets * way.width**2 <= launches.MOST_STORED
    assert shared >= 3


def test_small_buckets_are_not_shared():
    """Where a launch costs more than it saves, and where there are enough buckets."""
    small, large = compress_schedule(512, 256).rounds[0], compress_schedule(8192, 4096).rounds[0]
    assert launches.sharing(small, 1, 10, H100, 128) is None
    assert launches.sharing(large, 1, 10, H100, 128) is not None
    assert launches.sharing(large, 1000, 10, H100, 128) is None


@pytest.mark.parametrize("pre_thin", ["even", "stride"])
@pytest.mark.parametrize(
    ("g", "size", "min_length"),
    [(0, None, 0), (2, None, 0), (9, None, 0), (1, None, 70), (2, 11, 0), (2, 64, 100),
     (2, 1000, 0), (0, None, 2**62)],
)  # fmt: skip
def test_plans_of_all_lengths(g, size, min_length, pre_thin):
    """Each length has the plan that it has alone, or keeps all tokens; there are few plans."""
    plans, number, kept = launches.plans_by_length(512, g, size, min_length, pre_thin)
    assert number[0] == -1
    assert kept[0] == 0
    for n in range(1, 513):
        alone = plan(n, g, n if n < min_length else size, 0.5, pre_thin)
        assert kept[n] == alone.schedule.size
        if number[n] < 0:
            assert alone.schedule[:2] == (n, n)
        else:
            least, of_length = plans[number[n]]
            assert of_length == alone
            assert least <= n
    assert len(plans) <= 19


@pytest.mark.parametrize(
    ("longest", "g", "size", "min_length", "setting"),
    [(256, 0, None, 0, "g = 0"), (4096, 2, None, 0, "g = 2"),
     (4096, 2, None, 1024, "g = 2, `min_length=1024`"), (4096, 2, 256, 0, "size 256"),
     (65536, 2, None, 0, "g = 2")],
)  # fmt: skip
def test_the_launches_of_padded_sequences(longest, g, size, min_length, setting):
    """Three launches before the rounds of each schedule, and one for sequences that keep all."""
    plans, _, _ = launches.plans_by_length(longest, g, size, min_length, "even")
    launched = 1
    for _, of_length in plans:
        rounds = run.launches(of_length.schedule, 64, 128, H100, np.float32)
        assert all(one.shared is None for one in rounds) or longest > 4096
        launched += 3 + sum(
            1 if one.shared is None else 1 + 2 * -(-one.shared.points // one.shared.width)
            for one in rounds
        )
    row = f"| {longest} | {setting} | {len(plans)} | {launched} |"
    assert row in (ROOT / "docs" / "cuda.md").read_text().splitlines(), row


# An H100 SXM by its data sheet
FLOAT32 = 66.9e12  # operations a second, not of tensor cores
MEMORY = 3.35e12  # bytes a second
TENSOR = 989e12  # operations a second of tensor cores in half precision


def counted(shape, itemsize):
    """What docs/cuda.md counts of a shape, with g = 2: a row of its table."""
    B, T, S, H, E, D = speed.SHAPES[shape]
    schedule = plan(S, 2, None, 0.5).schedule
    needed = done = numbers = seconds = shared = launched = 0
    rounds = run.launches(schedule, B * H, E + D, H100, np.float32)
    assert len(rounds) == len(schedule.rounds)
    for round_, one in zip(schedule.rounds, rounds, strict=True):
        size = round_.largest_bucket
        tile = threads_for(size, np.float32) // 2  # rows
        ends = np.arange(tiles.PANEL, size + tiles.PANEL, tiles.PANEL)
        computed = 2 * (E + D) * sum(-(-end // tile) * tile * tiles.PANEL for end in ends)
        needed += B * H * round_.buckets * (E + D) * size**2
        done += B * H * round_.buckets * computed
        numbers += B * H * 2 * round_.pairs * (E + D)
        waves = -(-B * H * round_.buckets // H100)
        seconds += waves * computed / (FLOAT32 / H100)
        if one.shared is None:
            launched += 1
            shared += waves * computed / (FLOAT32 / H100)
        else:
            of_round = counted_spans(one, B * H, tile, E + D)
            launched += 1 + 2 * -(-size // one.shared.width)
            shared += of_round
    numbers += B * H * (S * (E + D) + schedule.length * D)  # measuring, before
    floor = max(needed / FLOAT32, numbers * itemsize / MEMORY)
    exact = 2 * B * H * T * S * (E + D) / (TENSOR if itemsize == 2 else FLOAT32)
    return [
        f"{needed / 1e9:.2f}", f"{done / 1e9:.2f}", f"{numbers * itemsize / 1e6:.0f}",
        f"{1e6 * floor:.0f}", f"{1e6 * seconds:.0f}", f"{1e6 * shared:.0f}", str(launched),
        f"{1e6 * exact:.0f}",
    ]  # fmt: skip


def counted_spans(one, problems, tile, dims):
    """Seconds of a round whose buckets are shared: its tiles, and what is stored and read."""
    width, points, tiles_a_block = one.shared
    buckets, seconds = problems * one.share, 0
    of_tile = 2 * dims * tile * tiles.PANEL / (FLOAT32 / H100)
    for begin in range(0, points, width):
        span = min(begin + width, points)
        ends = np.minimum(np.arange(begin + tiles.PANEL, span + tiles.PANEL, tiles.PANEL), span)
        of_panels = -(-ends // tile)
        # all multiprocessors have the same share, but for the largest block
        seconds += of_tile * max(buckets * of_panels.sum() / H100,
                                 min(tiles_a_block, of_panels.max()))  # fmt: skip
        later = (span - begin) * (span - begin + tiles.PANEL) / 2
        waves = -(-buckets // H100)
        seconds += waves * later * launches.STORED_FLOPS / (FLOAT32 / H100)
    return seconds


@pytest.mark.parametrize(
    ("shape", "itemsize"),
    [("t2t", 4), ("t2t-b64", 4), ("biggan", 4), ("4k", 4), ("16k", 4), ("64k-h16", 2)],
)
def test_the_count_on_paper(shape, itemsize):
    dtype = {2: "bfloat16", 4: "float32"}[itemsize]
    line = " | ".join(
        [speed.NAMES[shape], str(speed.SHAPES[shape]), dtype, *counted(shape, itemsize)]
    )
    assert f"| {line} |" in (ROOT / "docs" / "cuda.md").read_text().splitlines(), line


def test_the_count_of_tensor_cores():
    """Clocks of a multiprocessor for each part of the tiles; what torch's products would move."""
    B, _, S, H, E, D = speed.SHAPES["64k-h16"]
    clock, warp, dims = FLOAT32 / (2 * 128 * H100), 32, E + D
    values = products = staged = entries = 0
    for round_ in plan(S, 2, None, 0.5).schedule.rounds:
        size, of_all = round_.largest_bucket, B * H * round_.buckets
        tile = threads_for(size, np.float32) // 2
        ends = np.arange(tiles.PANEL, size + tiles.PANEL, tiles.PANEL)
        made = of_all * sum(-(-end // tile) for end in ends)
        values += made * tile * tiles.PANEL
        # a warp reads 4 words of 16 rows, and 2 words for each 8 points, in 16 columns
        products += made * (tile // 16) * (4 + 2 * tiles.PANEL // 8) * -(-dims // 16)
        # two numbers are read and a word is written
        staged += made * 3 * (tile + tiles.PANEL) * dims / 2 / warp
        entries += of_all * size**2
    seconds = {
        "products, of tensor cores": 2 * dims * values / TENSOR,
        "exponentials, 16 a clock": values / 16 / H100 / clock,
        "reads from shared memory for products": products / H100 / clock,
        "reads and writes to stage columns": staged / H100 / clock,
        "products by torch: two matrices, written and read": entries * 2 * 2 * 4 / MEMORY,
    }
    lines = (ROOT / "docs" / "cuda.md").read_text().splitlines()
    for name, of_part in seconds.items():
        row = f"| {name} | {1e6 * of_part:.0f} |"
        assert row in lines, row


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


def test_the_count_of_herding():
    """Of 64k tokens, as docs/cuda.md gives it: the Gram matrices, two rows of them a turn."""
    heads, n_out, itemsize = 16, 1024, 4
    candidates = CANDIDATES * n_out
    gram = heads * candidates**2 * itemsize
    read = 2 * n_out * 2 * heads * candidates * itemsize
    text = " ".join((ROOT / "docs" / "cuda.md").read_text().split())
    assert f"the Gram matrices have {gram / 1e6:.0f} MB in float32" in text
    assert f"so {read / 1e6:.0f} MB in all: {read / MEMORY * 1e6:.0f} us" in text
