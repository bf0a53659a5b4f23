"""``thinformer thin --scheduler``: the rows and records of a run without one."""

import json
import sys

import numpy as np
import pytest
from files_of_points import POINTS, N, run, succeed

from thinformer.dask import tasks
from thinformer.files import spread
from thinformer.thinning import merging

pytest.importorskip("dask.array")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

WEIGHTS = np.where(POINTS[:, 0] > 0, 1.0, 0.0)
NAMES = [f"n{i}" for i in range(N)]


@pytest.fixture(autouse=True)
def halved(small, monkeypatch):
    """Chunks of few rows, which are halved."""
    monkeypatch.setattr(merging, "LEAST", 32)


def write(path, rows=slice(None), group=70, more=()):
    columns = {
        "x": POINTS[rows, 0], "id": np.arange(N)[rows],
        "y": POINTS[rows, 1], "w": WEIGHTS[rows],
        "name": pa.array(NAMES[rows], pa.string_view()),
    } | dict(more)  # fmt: skip
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--chunk-rows", 80],
        ["--chunk-rows", 80, "--weights", "w"],
        ["--chunk-rows", 80, "--columns", "y,x", "--bandwidth", "1,2"],
        ["--chunk-rows", 80, "--kernel", "linear", "--row-numbers"],
        ["--chunk-rows", 33, "--method", "standard", "--no-standardize", "--g", 1],
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_the_same_rows_and_records(options, tmp_path):
    options = ["--size", 20, "--seed", 3, *options]
    source = write(tmp_path / "in.parquet")
    reports, tables = [], []
    for name, more in (("plain", []), ("dask", ["--scheduler", "threads"])):
        out, report = tmp_path / f"{name}.parquet", tmp_path / f"{name}.json"
        succeed(source, "-o", out, "--report", report, *options, *more)
        reports.append(json.loads(report.read_text()))
        tables.append(pq.read_table(out))
    assert tables[1].schema.equals(tables[0].schema)
    assert tables[1].equals(tables[0])
    told = [{k: v for k, v in each.items() if k not in ("settings", "seconds", "peak_megabytes")}
            for each in reports]  # fmt: skip
    for key in ("mmd", "standard_mmd"):
        plain, other = (one.pop(key) for one in told)
        assert other == (plain if plain is None else pytest.approx(plain, rel=1e-9, abs=1e-9))
    errors = [[list(each.values())[1:] for each in one.pop("errors")] for one in told]
    np.testing.assert_allclose(*errors, atol=1e-12)
    assert told[1] == told[0]
    assert reports[1]["settings"]["scheduler"] == "threads"


def test_chunks_cross_row_groups(tmp_path):
    """Batches of a dictionary end where a row group does."""
    source = write(tmp_path / "in.parquet", more={"other": pa.array(NAMES).dictionary_encode()})
    chunks, tables = [], []
    for name, more in (("plain", []), ("dask", ["--scheduler", "threads"])):
        out, report = tmp_path / f"{name}.parquet", tmp_path / f"{name}.json"
        succeed(source, "-o", out, "--report", report, "--size", 20, "--seed", 3,
                "--chunk-rows", 80, *more)  # fmt: skip
        chunks.append(json.loads(report.read_text())["chunks"])
        tables.append(pq.read_table(out))
    assert chunks == [-(-N // 80)] * 2
    assert tables[1].equals(tables[0])


@pytest.mark.parametrize("folder", [False, True], ids=["files", "folder"])
def test_several_files(folder, tmp_path):
    """Several get a column chain, a folder has one by its names; chunks cross the files."""
    places = [slice(0, 120), slice(120, 180), slice(180, N)]
    if folder:
        for i in range(3):
            (tmp_path / "in.parquet" / f"chain={i}").mkdir(parents=True)
        paths = [tmp_path / "in.parquet" / f"chain={i}" / "a.parquet" for i in range(3)]
    else:
        paths = [tmp_path / f"{i}.parquet" for i in range(3)]
    for path, rows in zip(paths, places, strict=True):
        write(path, rows)
    given = [tmp_path / "in.parquet"] if folder else paths
    options = [*given, "--size", 25, "--seed", 1, "--chunk-rows", 90, "--row-numbers"]
    succeed(*options, "-o", tmp_path / "plain.parquet")
    succeed(*options, "-o", tmp_path / "dask.parquet", "--scheduler", "threads")
    plain, other = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("plain", "dask"))
    assert other.equals(plain)
    assert other.num_rows == 25
    assert len(set(other["chain"].to_pylist())) == 3


def test_rows_without_weight_are_not_drawn(tmp_path, monkeypatch):
    """All rows that weigh are compared with, if the sample may have as many."""
    monkeypatch.setattr(spread, "SAMPLE", 3)
    weights = np.zeros(N)
    weights[[7, N - 9]] = 1.0
    source, report = write(tmp_path / "in.parquet", more={"w": weights}), tmp_path / "r.json"
    options = ["--size", 2, "--columns", "x,y", "--weights", "w", "--chunk-rows", 80, "--seed", 0]
    out = tmp_path / "out.parquet"
    succeed(source, "-o", out, *options, "--scheduler", "threads", "--report", report)
    told = json.loads(report.read_text())
    assert told["compared_with"] == "all rows"
    assert told["mmd"] == pytest.approx(0, abs=1e-7)
    assert [each["mean"] for each in told["errors"]] == pytest.approx([0, 0], abs=1e-12)


def test_a_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    source = write(tmp_path / "in.parquet")
    succeed(source, "-o", tmp_path / "out.parquet", "--size", 20, "--chunk-rows", 80,
            "--scheduler", "threads", "--plot", tmp_path / "p.svg")  # fmt: skip
    assert b"<svg" in (tmp_path / "p.svg").read_bytes()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("in.csv", ["--size", 5], "--scheduler reads .parquet files; IN is "),
        ("in.parquet", ["--size", "auto"], "--scheduler takes --size NUMBER and no --curve; got "
         "--size auto"),
        ("in.parquet", ["--size", 5, "--curve", "c.png"], "and no --curve; got --curve"),
        ("in.parquet", ["--size", N + 1], f"--size {N + 1} is more than its {N} rows"),
        ("in.parquet", ["--size", 5, "--scheduler", "yarn"],
         "--scheduler takes threads or an address, tcp://HOST:PORT; got yarn"),
        ("nan.parquet", ["--size", 5, "--columns", "x"],
         "row 171 (the first is 0), column 'x' holds nan"),
        ("negative.parquet", ["--size", 5, "--weights", "w"],
         "negative.parquet: --weights 'w' must not be negative; it holds -1.0"),
    ],
)  # fmt: skip
def test_errors(name, options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / name
    if name.endswith(".csv"):
        source.write_text("x,y\n1,2\n3,4\n")
    else:
        write(source)
        table = pq.read_table(source)
        changed = POINTS[:, 0].copy()
        changed[171] = np.nan if name == "nan.parquet" else changed[171]
        table = table.set_column(0, "x", pa.array(changed))
        weights = -WEIGHTS if name == "negative.parquet" else WEIGHTS
        pq.write_table(table.set_column(3, "w", pa.array(weights)), source, row_group_size=70)
    out = tmp_path / f"out{source.suffix}"
    options = [*options, "--chunk-rows", 80]
    if "--scheduler" not in options:
        options += ["--scheduler", "threads"]
    assert run(source, "-o", out, *options) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("missing", "scheduler", "message"),
    [
        ("dask", "threads", "a scheduler needs dask: pip install dask"),
        (
            "distributed",
            "tcp://127.0.0.1:1",
            "a cluster needs distributed: pip install distributed",
        ),
    ],
)
def test_a_package_is_missing(missing, scheduler, message, tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "in.parquet")
    monkeypatch.setitem(sys.modules, missing, None)
    out = tmp_path / "out.parquet"
    assert run(source, "-o", out, "--size", 5, "--scheduler", scheduler) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_there_is_no_cluster(tmp_path, monkeypatch, capsys):
    pytest.importorskip("distributed")
    monkeypatch.setattr(tasks, "SECONDS", 1)
    out = tmp_path / "out.parquet"
    options = ["-o", out, "--size", 5, "--scheduler", "tcp://127.0.0.1:1"]
    assert run(write(tmp_path / "in.parquet"), *options) == 2
    assert "there is no scheduler at tcp://127.0.0.1:1: " in capsys.readouterr().err
    assert not out.exists()
