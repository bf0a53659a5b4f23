"""Thinning on many machines, on paper: times, memory and traffic from constants measured here.

OPENBLAS_NUM_THREADS=1 python -m examples.many_machines
python -m examples.many_machines --quality

The second command thins points in parts, and all at once. The tables of the first follow the tree
of `thinformer.merge`. What one machine cannot show, many workers and a network, is a model there:
each level of the tree waits for the one below.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from examples.command import count
from thinformer import compare, coreset, merge, set_num_threads, thin
from thinformer.thinning.merging import FULL, GROWING

SIZE, DIM = 1000, 4  # rows to choose, and columns of points in float64
BANDWIDTH = 2.0
PART = 1_000_000  # rows of a part
FEW = 100_000  # rows to measure the choice with, and eight times as many
NETWORK = 1e9  # bytes a second that a worker sends or receives: an assumption

TOKENS, HEADS, WIDTH, KEPT = 2**20, 16, 128, 1024  # attention; KEPT keys on each GPU
HALF, SINGLE = 989e12, 66.9e12  # operations a second of an H100: tensor cores, float32


class Constants(NamedTuple):
    """What is measured, in seconds and bytes.

    coreset : of a row of a part
    halve : of a row of the four coresets that are merged, for one halving
    choose : of the choice from FEW rows
    double : by which the choice takes longer for each doubling of its rows
    size : bytes of a row of a coreset, as it is sent
    left : rows of the coreset of a part
    """

    coreset: float
    halve: float
    choose: float
    double: float
    size: float
    left: int


class Cost(NamedTuple):
    """What thinning many points takes.

    seconds : of the three steps
    memory : bytes of the largest task: a part, or the coresets that are merged or chosen from
    sent : bytes over the network, if no coreset is merged where it was made
    """

    coreset: float
    merge: float
    choose: float
    memory: float
    sent: float


def measure(part: int = PART) -> Constants:
    """Time the three steps on parts of normal points, on one thread."""
    rng = np.random.default_rng(0)
    coreset(rng.normal(size=(20_000, DIM)), SIZE, part=0, bandwidth=BANDWIDTH)  # compiles
    points = rng.normal(size=(part, DIM))
    start = time.perf_counter()
    first = coreset(points, SIZE, part=0, bandwidth=BANDWIDTH)
    of_part = time.perf_counter() - start
    (rows,) = first.nodes.values()
    others = [
        coreset(rng.normal(size=(part, DIM)), SIZE, part=i, bandwidth=BANDWIDTH)
        for i in range(1, FULL)
    ]
    start = time.perf_counter()
    merge([first, *others])
    of_merge = time.perf_counter() - start
    thin(points[:2000], SIZE, bandwidth=BANDWIDTH, rng=0)  # compiles
    seconds = []
    for times in (1, 8):
        few = rng.normal(size=(times * FEW, DIM))
        start = time.perf_counter()
        thin(few, SIZE, bandwidth=BANDWIDTH, rng=0)
        seconds.append(time.perf_counter() - start)
    n, double = len(rows.rows), (seconds[1] - seconds[0]) / 3
    sent = len(pickle.dumps(first)) / n
    return Constants(of_part / part, of_merge / (FULL * n), seconds[0], double, sent, n)


def cost(points: float, workers: int, constants: Constants) -> Cost:
    """Follow the tree of merges, level by level; the last nodes are chosen from by one worker."""
    nodes, rows, union = int(points / PART), constants.left, 0
    of_parts = -(-nodes // workers) * PART * constants.coreset
    merges, sent, memory = 0.0, 0.0, PART * 8.0 * DIM
    level = 0
    while nodes:
        union += nodes % FULL * rows
        parents, halvings = nodes // FULL, 1 if level < GROWING else 2
        if parents:
            seconds = FULL * rows * constants.halve * (2 - 0.5 ** (halvings - 1))
            moved = FULL * rows * constants.size
            merges += -(-parents // workers) * (seconds + moved / NETWORK)
            sent += parents * moved
            memory = max(memory, moved)
        nodes, rows, level = parents, FULL * rows >> halvings, level + 1
    last = union * constants.size
    choice = constants.choose + constants.double * max(0, np.log2(union / FEW)) + last / NETWORK
    return Cost(of_parts, merges, choice, max(memory, last), sent + last)


def points_table(constants: Constants) -> Iterable[str]:
    """Lines of a table: seconds, memory and traffic by number of points and workers."""
    yield "points   workers  coresets s  merges s  choice s  in all s  MB a task  GB sent"
    for points in (1e9, 1e12):
        for workers in (1, 100, 1000, 10_000):
            if workers > points / PART or points / workers > 1e11:
                continue
            found = cost(points, workers, constants)
            yield (
                f"{points:6.0e}  {workers:8,}  {found.coreset:10,.0f}  {found.merge:8,.1f}"
                f"  {found.choose:8.1f}  {sum(found[:3]):8,.0f}  {found.memory / 1e6:9,.0f}"
                f"  {found.sent / 1e9:7,.1f}"
            )


def tokens_table() -> Iterable[str]:
    """Lines of a table: attention of 2^20 tokens over GPUs, by counts and the data sheet's rates.

    Exact attention moves all keys and values to all ranks (ring attention); thinned attention
    gathers KEPT keys of each rank. Selection: half of each Gram matrix, as `docs/cuda.md` counts.
    """
    yield "GPUs  keys  exact: ms  MB received  thinned: ms  MB received  selection: ms"
    for ranks in (8, 16, 32, 64):
        own, keys = TOKENS // ranks, KEPT * ranks
        products = 4 * own * HEADS * WIDTH  # operations for each key: of logits and of outputs
        received = 2 * HEADS * WIDTH * 2  # bytes of a key and its value, in half precision
        exact = [products * TOKENS / HALF, received * (TOKENS - own)]
        thinned = [products * keys / HALF, received * (keys - KEPT)]
        # rounds of halving: buckets of 2 KEPT, KEPT, KEPT / 2, ... tokens, each token once a round
        lengths = (own >> i for i in range((own // KEPT).bit_length() - 1))
        buckets = (2 * KEPT >> i for i in reversed(range((own // KEPT).bit_length() - 1)))
        values = sum(n * b / 2 for n, b in zip(lengths, buckets, strict=True))
        chosen = 4 * WIDTH * HEADS * values / SINGLE
        yield (
            f"{ranks:4}  {keys:6,}  {1e3 * exact[0]:8.1f}  {exact[1] / 1e6:11,.0f}"
            f"  {1e3 * thinned[0]:11.2f}  {thinned[1] / 1e6:11,.0f}  {1e3 * chosen:13.2f}"
        )


def quality(n: int, size: int = 100, seeds: int = 3) -> Iterable[str]:
    """Lines of a table: the MMD of coresets of n points that drift, by the number of parts."""
    rng = np.random.default_rng(0)
    # five normal distributions in three dimensions; later points come from later ones more often
    late = rng.normal(np.arange(n) / n, 0.3)[:, None]
    nearest = np.abs(late - np.linspace(0, 1, 5)).argmin(axis=1)
    points = rng.normal(scale=4.0, size=(5, 3))[nearest] + rng.normal(size=(n, 3))
    bandwidth = 3.0
    found = {f"every {n // size:,}th point": np.arange(n // size - 1, n, n // size)[:size]}
    for seed in range(seeds):
        found[f"thin of all points/{seed}"] = thin(points, size, bandwidth=bandwidth, rng=seed)
        cuts = np.sort(rng.choice(n, 19, replace=False))
        ways = {f"{c} parts of equal length": np.arange(n, step=-(-n // c))[1:] for c in (20, 400)}
        for way, starts in (ways | {"20 parts of random lengths": cuts}).items():
            parts = [
                coreset(part, size, part=i, bandwidth=bandwidth, seed=seed, first_row=first)
                for i, (first, part) in enumerate(
                    zip([0, *starts], np.split(points, starts), strict=True)
                )
            ]
            found[f"{way}/{seed}"] = merge(parts).choose().rows
    errors: dict[str, list[float]] = {}
    for each in compare(points, found, bandwidth=bandwidth):
        errors.setdefault(each.name.split("/")[0], []).append(each.mmd)
    yield f"{n:,} points that drift, to {size} rows: MMD, the mean of {seeds} seeds"
    for way, each in errors.items():
        error = np.std(each, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else 0
        yield f"{way:28}  {np.mean(each):.4f}" + (f" +- {error:.4f}" if error else "")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.many_machines",
        description="What thinning takes on many machines, by constants measured on this one.",
    )
    parser.add_argument("--part", type=count, default=PART, help="rows to measure with")
    parser.add_argument("--quality", action="store_true", help="the MMD by the number of parts")
    parser.add_argument("--points", type=count, default=200_000, help="of the table of MMDs")
    arguments = parser.parse_args(argv)
    if arguments.quality:
        for line in quality(arguments.points):
            print(line, flush=True)
        return
    set_num_threads(1)
    constants = measure(arguments.part)
    print("measured on one thread:")
    print(f"  coreset of a part: {1e6 * constants.coreset:.2f} microseconds a row")
    print(f"  a halving of a merge: {1e6 * constants.halve:.2f} microseconds a row")
    print(f"  choice from {FEW:,} rows: {constants.choose:.1f} s, and", end=" ")
    print(f"{constants.double:.1f} s for each doubling")
    print(f"  a row of a coreset: {constants.size:.0f} bytes")
    print()
    for line in points_table(constants):
        print(line)
    print()
    for line in tokens_table():
        print(line)


if __name__ == "__main__":
    main()
