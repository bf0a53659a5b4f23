"""Clusters of processes: the rows do not depend on the workers, nor on one that dies."""

import os
import signal

import numpy as np
import pytest

from thinformer.commands.main import main
from thinformer.dask import compare, mmd, thin

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
pytestmark = pytest.mark.slow

POINTS = np.random.default_rng(0).normal(size=(51_000, 2)) * [1.0, 2.0]
SETTINGS = {"bandwidth": 2.0, "g": 1, "seed": 3}


def lazy():
    return da.from_array(POINTS, chunks=(8500, 2))


@pytest.fixture(scope="module")
def cluster():
    """Of one worker at first, on ports that are free."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def expected():
    """The rows of tasks on this thread."""
    with dask.config.set(scheduler="synchronous"):
        return thin(lazy(), 50, **SETTINGS)


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_schedulers_of_this_process(scheduler, expected):
    with dask.config.set(scheduler=scheduler, num_workers=3):
        np.testing.assert_array_equal(thin(lazy(), 50, **SETTINGS), expected)


@pytest.mark.parametrize(
    "workers", [4, *(pytest.param(few, marks=pytest.mark.nightly) for few in (1, 2))]
)
def test_any_number_of_workers(workers, cluster, expected):
    cluster.scale(workers)
    with distributed.Client(cluster) as client:
        client.wait_for_workers(workers)
        np.testing.assert_array_equal(thin(lazy(), 50, **SETTINGS), expected)


def test_measures(cluster, expected):
    settings = {"sample": 500, "bandwidth": 2.0}
    found = []
    with distributed.Client(cluster):
        found.append(
            (mmd(lazy(), expected, **settings), compare(lazy(), {"a": expected}, **settings))
        )
    with dask.config.set(scheduler="synchronous"):
        found.append(
            (mmd(lazy(), expected, **settings), compare(lazy(), {"a": expected}, **settings))
        )
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][1][0][1:6], found[1][1][0][1:6], rtol=1e-12)


def test_the_command(cluster, tmp_path):
    """Rows and records are those of a run without a scheduler."""
    pa, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    for k in range(2):
        part = POINTS[k * 9000 : (k + 1) * 9000]
        table = pa.table({"x": part[:, 0], "y": part[:, 1], "name": [f"{i}" for i in range(9000)]})
        pq.write_table(table, tmp_path / f"in-{k}.parquet", row_group_size=4000)
    options = ["thin", f"{tmp_path}/in-*.parquet", "--size", "20", "--g", "1", "--seed", "2",
               "--chunk-rows", "8500", "-o"]  # fmt: skip
    assert main([*options, f"{tmp_path}/plain.parquet"]) == 0
    address = ["--scheduler", cluster.scheduler_address]
    assert main([*options, f"{tmp_path}/spread.parquet", *address]) == 0
    plain, spread = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("plain", "spread"))
    assert spread.num_rows == 20
    assert spread.equals(plain)


def test_a_worker_dies_half_way(cluster, expected, tmp_path):
    """The block that it was reading, and the coresets that it held, are computed again."""
    cluster.scale(2)
    marker = tmp_path / "died"

    def dies_once(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 4 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    with distributed.Client(cluster) as client:
        client.wait_for_workers(2)
        x = lazy().map_blocks(dies_once, dtype=float, meta=np.empty((0, 0)))
        rows = thin(x, 50, **SETTINGS)
    assert marker.exists()
    np.testing.assert_array_equal(rows, expected)
