"""The examples of many machines: what the model counts; no lost worker changes the rows."""

import numpy as np
import pytest

from examples import lost_workers, many_machines
from examples.many_machines import Constants, cost
from thinformer import coreset, get_num_threads, merge, set_num_threads
from thinformer.thinning import merging

CONSTANTS = Constants(
    coreset=1e-6, halve=2e-6, choose=3.0, double=0.5, size=100, left=20_000
)  # fmt: skip


@pytest.fixture(autouse=True)
def threads():
    before = get_num_threads()
    yield
    set_num_threads(before)


def test_one_worker_does_all_parts():
    found = cost(16e6, 1, CONSTANTS)
    assert found.coreset == pytest.approx(16e6 * 1e-6)
    # four merges of four parts, then one of four coresets of twice the rows: each halves once
    moved = [4 * 80_000, 160_000]
    assert found.merge == pytest.approx(sum(moved) * (2e-6 + 100 / 1e9))
    assert found.sent == 100 * (sum(moved) + 80_000)  # the last has 80,000 rows
    assert found.choose == pytest.approx(3.0 + 80_000 * 100 / 1e9)


def test_workers_share_levels():
    one, four = cost(64e6, 1, CONSTANTS), cost(64e6, 4, CONSTANTS)
    assert four.coreset == one.coreset / 4
    assert four.merge < one.merge
    assert four.choose == one.choose
    assert four.sent == one.sent


def test_coresets_stop_growing():
    """From 10^9 to 10^12 points the largest task grows by the levels, not by the parts."""
    assert cost(1e12, 1000, CONSTANTS).memory < 4 * cost(1e9, 1000, CONSTANTS).memory


def test_model_has_the_rows_of_the_tree(monkeypatch):
    """What is left of 70 parts is what the model of 70 million points chooses from."""
    monkeypatch.setattr(merging, "LEAST", 512)  # an eighth, as the parts
    parts = [
        coreset(np.random.default_rng(i).normal(size=(1125, 2)), 25, part=i, bandwidth=1.0)
        for i in range(70)
    ]
    left = len(next(iter(parts[0].nodes.values())).rows)
    found = merge(parts)
    rows = sum(len(each.rows) for each in found.nodes.values())
    constants = Constants(0, 0, 0, 0, size=many_machines.NETWORK, left=left)
    assert cost(70e6, 1, constants).choose == pytest.approx(rows, rel=0.01)


def test_quality(capsys):
    many_machines.main(["--quality", "--points", "10000"])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "10,000 points that drift, to 100 rows: MMD, the mean of 3 seeds"
    errors = {line[:28].strip(): float(line[28:].split()[0]) for line in lines}
    evenly = errors.pop("every 100th point")
    assert len(errors) == 4
    assert max(errors.values()) < evenly / 3
    assert max(errors.values()) < 1.5 * min(errors.values())


def test_tables(capsys, monkeypatch):
    monkeypatch.setattr(many_machines, "FEW", 2000)
    many_machines.main(["--part", "20000"])
    measured, points, tokens = capsys.readouterr().out.strip().split("\n\n")
    assert measured.splitlines()[0] == "measured on one thread:"
    assert points.splitlines()[1].split()[:2] == ["1e+09", "1"]
    # 16 heads of 128: a key and a value in half precision are 8,192 bytes
    first = tokens.splitlines()[1].split()
    assert first[:2] == ["8", "8,192"]
    assert float(first[3].replace(",", "")) == pytest.approx(8192 * 2**20 * 7 / 8 / 1e6, abs=1)
    assert float(first[5]) == pytest.approx(8192 * 7 * 1024 / 1e6, abs=1)


@pytest.mark.parametrize(("slow", "lose"), [(0.1, 0), (0, 0.1), (0.1, 0.1)])
def test_lost_workers_change_nothing(slow, lose):
    parts = 19
    calm = lost_workers.Run(parts, 4, 0, 0, seed=0).outcome()
    found = lost_workers.Run(parts, 4, slow, lose, seed=1).outcome()
    every = [lost_workers.compute((0, part), []) for part in range(parts)]
    chosen = merge(every).choose(parts)
    for outcome in (calm, found):
        assert np.array_equal(outcome.rows, np.stack([chosen.parts, chosen.rows], axis=1))
    assert calm.tasks == 19 + 5 + 2 + 1
    assert (found.lost > 0) == (lose > 0)
    assert found.tasks >= calm.tasks
    assert found.time > calm.time


def test_what_a_lost_worker_held_is_computed_again():
    """A worker that held one part of four is lost before they are merged."""
    run = lost_workers.Run(4, 2, 0, 0, seed=0)
    while len(run.held) < 3:
        run.start()
        run.step()
    worker = next(iter(run.held.values()))[0]
    there = sum(at == worker for at, _ in run.held.values())
    run._at(0, "lost", worker)
    found = run.outcome()
    assert found.lost == 1
    assert found.tasks == 5 + there


def test_command(capsys):
    lost_workers.main(["--parts", "16", "--workers", "4"])
    lines = capsys.readouterr().out.splitlines()[4:]
    assert len(lines) == 6
    assert all(line.endswith("yes") for line in lines)
