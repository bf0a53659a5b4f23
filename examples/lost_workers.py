"""Slow and lost workers in the tree of `thinformer.merge`, simulated with real coresets.

python -m examples.lost_workers

A worker that is lost takes its running task along, and the coresets that it holds. Those that are
still needed are computed again, from the parts if need be, as Dask does. Time is simulated; parts,
coresets and the chosen rows are not.
"""

from __future__ import annotations

import argparse
import heapq
from typing import NamedTuple

import numpy as np

from examples.command import count
from thinformer import coreset, merge
from thinformer.thinning.distributed import Coresets
from thinformer.thinning.merging import FULL

SIZE, ROWS = 20, 1000  # rows to choose, and rows of each part
RESTART = 5.0  # until a lost worker is back; a part takes 1
SLOW = 10.0  # times as long takes a task of a straggler

Node = tuple[int, int]  # level and index, as in the tree of merges


class Outcome(NamedTuple):
    """What a run took, and what it gave.

    time : until the last coreset is there, in times of a part
    tasks : that were finished, repeated ones included
    lost : workers that were lost
    rows : (SIZE, 2) parts and rows that were chosen
    """

    time: float
    tasks: int
    lost: int
    rows: np.ndarray


def children(node: Node, parts: int) -> list[Node]:
    """The nodes that a task merges; none for a part."""
    level, index = node
    below = -(-parts // FULL ** (level - 1)) if level else 0
    return [(level - 1, i) for i in range(FULL * index, min(FULL * (index + 1), below))]


def compute(node: Node, found: list[Coresets]) -> Coresets:
    """The coreset of a node, of a part or of its children's."""
    level, part = node
    if level:
        return merge(found)
    points = np.random.default_rng(part).normal([part / 50, 0], size=(ROWS, 2))
    return coreset(points, SIZE, part=part, bandwidth=1.0)


class Run:
    """One run: what is held by which worker, and what is to be done next."""

    def __init__(self, parts: int, workers: int, slow: float, lose: float, seed: int) -> None:
        self.parts, self.slow, self.lose = parts, slow, lose
        self.rng = np.random.default_rng(seed)
        self.root = (int(np.ceil(np.log(parts) / np.log(FULL) - 1e-9)), 0)
        self.held: dict[Node, tuple[int, Coresets]] = {}  # by the worker that holds it
        self.running: dict[int, Node] = {}
        self.idle = list(range(workers))
        self.events: list[tuple[float, int, str, int]] = []
        self.round = [0] * workers  # how often a worker was lost: older events are void
        self.now, self.tasks, self.lost = 0.0, 0, 0
        for worker in range(workers):
            self._expect_loss(worker)

    def _expect_loss(self, worker: int) -> None:
        if self.lose:
            self._at(self.rng.exponential(1 / self.lose), "lost", worker)

    def _at(self, delay: float, what: str, worker: int) -> None:
        heapq.heappush(self.events, (self.now + delay, self.round[worker], what, worker))

    def ready(self, node: Node, found: list[Node]) -> list[Node]:
        """Tasks that can start for a node: of what is missing below it, all inputs are there."""
        if node in self.held or node in self.running.values() or node in found:
            return found
        missing = [child for child in children(node, self.parts) if child not in self.held]
        if not missing:
            found.append(node)
        for child in missing:
            self.ready(child, found)
        return found

    def start(self) -> None:
        """Give idle workers what is ready, the highest levels first: they free most memory."""
        if not self.idle:
            return
        todo = sorted(self.ready(self.root, []), key=lambda node: (-node[0], node[1]))
        for node in todo[: len(self.idle)]:
            worker = self.idle.pop()
            self.running[worker] = node
            seconds = SLOW if self.rng.random() < self.slow else self.rng.uniform(0.8, 1.2)
            self._at(seconds, "done", worker)

    def step(self) -> None:
        """Let the next event happen."""
        self.now, of_round, what, worker = heapq.heappop(self.events)
        if of_round != self.round[worker]:
            return
        if what == "done":
            node = self.running.pop(worker)
            inputs = children(node, self.parts)
            if all(child in self.held for child in inputs):  # else they were lost meanwhile
                made = compute(node, [self.held.pop(child)[1] for child in inputs])
                self.held[node] = worker, made
                self.tasks += 1
            self.idle.append(worker)
        elif what == "lost":
            self.lost += 1
            self.round[worker] += 1
            self.running.pop(worker, None)
            self.idle = [each for each in self.idle if each != worker]
            self.held = {node: at for node, at in self.held.items() if at[0] != worker}
            self._at(RESTART, "back", worker)
        else:
            self.idle.append(worker)
            self._expect_loss(worker)

    def outcome(self) -> Outcome:
        """Run until the root is there."""
        while self.root not in self.held:
            self.start()
            self.step()
        chosen = self.held[self.root][1].choose(self.parts)
        rows = np.stack([chosen.parts, chosen.rows], axis=1)
        return Outcome(self.now, self.tasks, self.lost, rows)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.lost_workers",
        description="What slow and lost workers cost, and that the chosen rows stay the same.",
    )
    parser.add_argument("--parts", type=count, default=256)
    parser.add_argument("--workers", type=count, default=16)
    arguments = parser.parse_args(argv)
    parts, workers = arguments.parts, arguments.workers
    print(f"{parts:,} parts, {workers} workers; a task takes about 1, a slow one {SLOW:g},")
    print(f"and a lost worker is back after {RESTART:g}\n")
    print("slow tasks  lost a worker and time   time  tasks  lost workers  same rows")
    first = None
    for slow, lose in ((0, 0), (0.01, 0), (0.05, 0), (0, 0.005), (0, 0.02), (0.05, 0.02)):
        found = Run(parts, workers, slow, lose, seed=0).outcome()
        first = first or found
        same = "yes" if np.array_equal(found.rows, first.rows) else "NO"
        print(
            f"{slow:10.0%}  {lose:22.1%}  {found.time:5.1f}  {found.tasks:5,}  {found.lost:12}"
            f"  {same:>9}",
            flush=True,
        )


if __name__ == "__main__":
    main()
