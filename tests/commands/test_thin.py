"""``thinformer thin``: every format, every error, and what it says of itself."""

import contextlib
import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from thinformer import mmd, thin
from thinformer.commands.main import main
from thinformer.cpu.run import embed
from thinformer.files import csv as csv_files
from thinformer.files import thin as thin_files
from thinformer.kernels.catalogue import as_kernel
from thinformer.thinning.arguments import as_problem

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
xr = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")

N = 300
POINTS = np.random.default_rng(3).normal(size=(N, 2)) * [1, 5] + [[2, -1]]
RECORDS = [f'"p, {i}\nsecond ""line""",{x!r}, {y!r} ,é{i}\r\n'
           for i, (x, y) in enumerate(POINTS.tolist())]  # fmt: skip
HEADER = "name,x,y,note\r\n"


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "thinformer", "thin", *map(str, arguments)],
        capture_output=True, timeout=300, check=False, **options,
    )  # fmt: skip


def run(*arguments):
    return main(["thin", *map(str, arguments)])


def succeed(*arguments):
    assert run(*arguments) == 0


def parquet(path):
    table = pa.table(
        {
            "name": [f"p{i}" for i in range(N)],
            "x": POINTS[:, 0],
            "n": pa.array(range(N), pa.int32()),
            "y": pa.array([*POINTS[:, 1]], pa.float64()),
            "list": [[i, i + 1] for i in range(N)],
        },
        metadata={"made": "here"},
    )
    pq.write_table(table, path, row_group_size=64)
    return table


def arviz(path):
    base = importlib.util.find_spec("arviz_base")
    source = Path(base.origin).parent / "example_data/data/centered_eight.nc"
    path.write_bytes(source.read_bytes())


@pytest.fixture
def small(monkeypatch):
    """Chunks of as few rows as are asked for."""
    monkeypatch.setattr(thin_files, "LEAST", 1)


# formats


@pytest.mark.parametrize("chunk", [1000, 97])
def test_csv_is_kept_byte_for_byte(chunk, small, tmp_path):
    # every third record is in Latin 1, not in UTF-8
    records = [r.encode("utf-8" if i % 3 else "latin-1") for i, r in enumerate(RECORDS)]
    header = b"\xef\xbb\xbf" + HEADER.encode()
    (tmp_path / "in.csv").write_bytes(header + b"".join(records))
    succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 200, "--seed", 5,
            "--chunk-rows", chunk, "--report", tmp_path / "r.json")  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    rows = report["row_numbers"]
    assert rows == sorted(set(rows))
    assert len(rows) == 200
    expected = header + b"".join(records[i] for i in rows)
    assert (tmp_path / "out.csv").read_bytes() == expected
    assert report["columns"] == ["x", "y"]
    assert report["unused"] == ["name", "note"]
    if chunk == 1000:
        assert rows == thin(POINTS, 200, rng=5).tolist()
        assert report["chunks"] == 1
    else:
        assert report["chunks"] == 4


def test_csv_row_numbers_and_delimiters(tmp_path):
    lines = [f"{x!r}\t{y!r}\t{i}\n" for i, (x, y) in enumerate(POINTS.tolist())]
    text = "x\ty\ti\n\n" + "".join(lines[:10]) + "\n" + "".join(lines[10:]).rstrip("\n")
    (tmp_path / "in.tsv").write_text(text)
    arguments = ("--size", N - 1, "--row-numbers", "--columns", "x,y", "--seed", 0)
    succeed(tmp_path / "in.tsv", "-o", tmp_path / "out.tsv", *arguments)
    head, *rows = (tmp_path / "out.tsv").read_text().splitlines()
    assert head == "row\tx\ty\ti"
    assert len(rows) == N - 1
    for row in rows:
        number, rest = row.split("\t", 1)
        assert rest + "\n" == lines[int(number)]
    (tmp_path / "in.csv").write_text(text.replace("\t", ";"))
    succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", *arguments, "--delimiter", ";")
    assert (tmp_path / "out.csv").read_text() == (tmp_path / "out.tsv").read_text().replace(
        "\t", ";"
    )


@pytest.mark.parametrize("chunk", [1000, 90])
def test_parquet(chunk, small, tmp_path):
    table = parquet(tmp_path / "in.parquet")
    succeed(tmp_path / "in.parquet", "-o", tmp_path / "out.parquet", "--size", 20,
            "--columns", "x,y", "--row-numbers", "--seed", 0, "--chunk-rows", chunk)  # fmt: skip
    out = pq.read_table(tmp_path / "out.parquet")
    rows = out["row"].to_numpy()
    assert np.all(np.diff(rows) > 0)
    rest = out.drop_columns("row")
    assert rest.equals(table.take(rows))
    assert rest.schema.equals(table.schema)
    assert rest.schema.metadata[b"made"] == b"here"
    if chunk == 1000:
        np.testing.assert_array_equal(rows, thin(POINTS, 20, rng=0))


@pytest.mark.parametrize("dtype", ["float64", "float32", "int32", ">f4"])
def test_npy(dtype, tmp_path):
    array = (100 * np.column_stack([POINTS, np.arange(N)])).astype(dtype)
    np.save(tmp_path / "in.npy", array)
    succeed(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 20, "--columns", "0,1",
            "--row-numbers", "--seed", 0)  # fmt: skip
    out = np.load(tmp_path / "out.npy")
    rows = np.load(tmp_path / "out.rows.npy")
    assert out.dtype == array.dtype
    np.testing.assert_array_equal(out, array[rows])
    points = array[:, :2].astype("f4" if array.dtype.itemsize == 4 and dtype != "int32" else "f8")
    np.testing.assert_array_equal(rows, thin(points, 20, rng=0))


def test_npz(tmp_path):
    arrays = {"theta": POINTS, "mu": np.arange(N), "file": np.array([f"p{i}" for i in range(N)]),
              "w": np.linspace(0, 1, N)}  # fmt: skip
    with open(tmp_path / "in.npz", "wb") as stream:
        np.savez(stream, **{k: v for k, v in arrays.items() if k != "file"})
    with zipfile.ZipFile(tmp_path / "in.npz", "a") as archive, archive.open("file.npy", "w") as f:
        np.lib.format.write_array(f, arrays["file"])
    succeed(tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--size", 20, "--columns", "theta",
            "--weights", "w", "--row-numbers", "--seed", 0)  # fmt: skip
    with np.load(tmp_path / "out.npz") as out:
        rows = out["row"]
        assert sorted(out.files) == ["file", "mu", "row", "theta", "w"]
        for name, array in arrays.items():
            np.testing.assert_array_equal(out[name], array[rows])
            assert out[name].dtype == array.dtype
    np.testing.assert_array_equal(rows, thin(POINTS, 20, weights=arrays["w"], rng=0))


def test_arviz_file(tmp_path, capsys):
    arviz(tmp_path / "in.nc")
    succeed(tmp_path / "in.nc", "-o", tmp_path / "out.nc", "--size", 30, "--columns", "mu,tau",
            "--row-numbers", "--seed", 0)  # fmt: skip
    assert "not thinned: 'constant_data', 'observed_data', 'prior', 'prior_predictive'" in (
        capsys.readouterr().out
    )
    with xr.open_datatree(tmp_path / "in.nc", engine="h5netcdf") as before, xr.open_datatree(
        tmp_path / "out.nc", engine="h5netcdf"
    ) as after:  # fmt: skip
        posterior = before["posterior"].dataset
        rows = after["posterior"]["row"].to_numpy()
        points = posterior[["mu", "tau"]].load()
        np.testing.assert_array_equal(rows, thin(points, 30, rng=0))
        assert set(after.children) == set(before.children)
        for name in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive"):
            old = before[name].dataset.stack(sample=("chain", "draw"))
            new = after[name].dataset
            assert set(new.data_vars) == set(old.data_vars)
            assert new.attrs == old.attrs
            np.testing.assert_array_equal(new["chain"], old["chain"][rows])
            np.testing.assert_array_equal(new["draw"], old["draw"][rows])
            for variable in old.data_vars:
                assert new[variable].dtype == old[variable].dtype
                there = new[variable].transpose("sample", ...).to_numpy()
                was = old[variable].transpose("sample", ...).to_numpy()
                np.testing.assert_array_equal(there, was[rows])
        assert after["prior"].dataset.equals(before["prior"].dataset)
        assert after["observed_data"].dataset.equals(before["observed_data"].dataset)


def test_dataset_of_one_dimension(tmp_path):
    dataset = xr.Dataset(
        {"x": ("obs", POINTS[:, 0]), "v": (("obs", "k"), POINTS), "name": ("obs", ["p"] * N)},
        {"obs": np.arange(N) * 10, "k": ["a", "b"]},
        {"made": "here"},
    )
    dataset.to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    succeed(tmp_path / "in.nc", "-o", tmp_path / "out.nc", "--size", 20, "--row-numbers",
            "--seed", 0)  # fmt: skip
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as out:
        rows = out["row"].to_numpy()
        assert out.drop_vars("row").identical(dataset.isel(obs=rows))
    points = np.column_stack([POINTS[:, 0], POINTS])
    np.testing.assert_array_equal(rows, thin(points, 20, rng=0))


# as a program


def test_standard_streams(tmp_path):
    text = (HEADER + "".join(RECORDS)).encode()
    first = command("-", "-o", "-", "--size", "20", "--seed", "4", input=text)
    assert first.returncode == 0, first.stderr
    chosen = thin(POINTS, 20, rng=4)
    assert first.stdout == (HEADER + "".join(RECORDS[i] for i in chosen)).encode()
    chatter = first.stderr.decode()
    assert "300 rows -> 20 rows: standard output" in chatter
    assert "\r" not in chatter  # no bar where there is no terminal
    assert "\x1b" not in chatter


def test_interrupt_and_termination_leave_nothing(tmp_path):
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        if signal.getsignal(number) is signal.SIG_IGN:  # under nohup, as children inherit it
            continue
        process = subprocess.Popen(
            [sys.executable, "-m", "thinformer", "thin", "-", "-o", tmp_path / "out.csv",
             "--size", "10"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        while not list(tmp_path.glob(".thin-*.part")):  # until the file to be written is there
            assert process.poll() is None
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == status
        assert b"Traceback" not in err
        assert not out
        assert not list(tmp_path.iterdir())


def test_a_reader_that_leaves_is_met_with_silence(tmp_path):
    (tmp_path / "in.csv").write_text(HEADER + "".join(RECORDS) * 30)
    process = subprocess.Popen(
        [sys.executable, "-m", "thinformer", "thin", tmp_path / "in.csv", "-o", "-",
         "--size", "8000", "--method", "standard"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert not err


# what it says


def test_report_and_plot(tmp_path, capsys):
    (tmp_path / "in.csv").write_text(HEADER + "".join(RECORDS))
    succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 20, "--standardize",
            "--kernel", "imq", "--report", tmp_path / "r.json",
            "--plot", tmp_path / "p.png")  # fmt: skip
    printed = capsys.readouterr()
    report = json.loads((tmp_path / "r.json").read_text())
    assert not printed.err
    assert (report["rows_in"], report["rows_out"]) == (N, 20)
    points = POINTS / POINTS.std(axis=0)
    rows = np.array(report["row_numbers"])
    np.testing.assert_array_equal(
        rows, thin(points, 20, kernel="imq", rng=report["seed"])
    )  # the seed that was drawn gives the same again
    settings = {"kernel": "imq", "bandwidth": report["bandwidth"]}
    assert report["mmd"] == pytest.approx(mmd(points, rows, **settings))
    even = thin(points, 20, method="standard")
    assert report["standard_mmd"] == pytest.approx(mmd(points, even, **settings))
    assert report["compared_with"] == "all rows"
    assert report["kernel"] == "inverse_multiquadric"
    assert report["standard_deviations"] == pytest.approx(
        dict(zip(["x", "y"], POINTS.std(axis=0), strict=True))
    )
    assert report["settings"]["seed"] is None
    assert report["versions"]["numpy"] == np.__version__
    assert report["peak_megabytes"] > 10
    seconds = report["seconds"]
    parts = sum(seconds[k] for k in ("reading", "thinning", "comparing", "writing"))
    assert 0 < parts <= seconds["total"]
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    lines = printed.out.splitlines()
    assert lines[0] == f"300 rows -> 20 rows: {tmp_path / 'out.csv'}"
    assert f"MMD to all rows: {report['mmd']:.5f}" in printed.out
    assert f"seed {report['seed']}" in printed.out
    assert f"bandwidth {report['bandwidth']:.6g} (median distance of all rows)" in printed.out


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_plots_of_other_formats(ending, tmp_path):
    np.save(tmp_path / "in.npy", POINTS[:, :1])
    plot = tmp_path / f"p.{ending}"
    succeed(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 5, "--plot", plot)
    assert {"svg": b"<svg", "pdf": b"%PDF"}[ending] in plot.read_bytes()


def test_any_name_can_be_printed_and_drawn(tmp_path):
    text = b"price $a$ {x$,na\xefve\n" + "".join(f"{x},{y}\n" for x, y in POINTS.tolist()).encode()
    out = command("-", "-o", tmp_path / "out.csv", "--size", "5", "--plot", tmp_path / "p.png",
                  "--report", tmp_path / "r.json", input=text)  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert rb"columns price $a$ {x$, na\udcefve" in out.stdout
    assert (tmp_path / "out.csv").read_bytes().startswith(text.splitlines()[0])
    assert (tmp_path / "p.png").stat().st_size > 1000


def test_many_rows_are_compared_with_a_sample(tmp_path):
    points = np.random.default_rng(0).normal(size=(60_000, 1))
    np.save(tmp_path / "in.npy", points)
    succeed(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 8, "--seed", 1,
            "--method", "random", "--bandwidth", 1, "--report", tmp_path / "r.json")  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["compared_with"] == "all rows, by 20000 drawn at random"
    x = np.load(tmp_path / "out.npy")
    assert report["mmd"] == pytest.approx(mmd(points, x, bandwidth=1.0), rel=0.02)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_estimate_from_a_sample_is_without_bias(weighted):
    rng = np.random.default_rng(1)
    points, chosen = rng.normal(size=(2000, 2)), rng.normal(0.3, 1, (100, 2))
    weights = rng.exponential(size=2000) if weighted else np.ones(2000)
    squares, margins = [], []
    for _ in range(200):
        rows = rng.choice(2000, 300, replace=False)
        both = np.concatenate([points[rows], chosen])
        problem = as_problem(both, as_kernel("gaussian", 1.0))
        every = thin_files._Sample(np.arange(300), weights[rows] / weights[rows].sum(), 0.15)
        part = thin_files._Sample(300 + np.arange(100), np.full(100, 0.01), 1)
        (one, noise), (other, none) = (
            thin_files._own(problem, *pair) for pair in ((every, part), (part, every))
        )
        between = every.weights @ embed(problem, every.rows, part.rows, part.weights)
        squares.append(one - 2 * between + other)
        margins.append(noise)
        assert none == 0
    true = mmd(points, chosen, bandwidth=1.0, weights=weights) ** 2
    held = []
    for _ in range(20):
        rows = rng.choice(2000, 300, replace=False)
        sample = points[rows], weights[rows]
        value, _ = thin_files._mmd_held(
            as_kernel("gaussian", 1.0), (points, weights), sample, chosen
        )
        held.append(value**2)
    assert np.mean(held) == pytest.approx(true, rel=0.1)
    assert np.std(held) < np.std(squares)
    spread = np.std(squares)
    assert np.mean(squares) == pytest.approx(true, abs=3 * spread / np.sqrt(200))
    assert true > 0.005
    assert 0.8 * spread < np.mean(margins) < 2 * spread


def test_what_is_within_the_noise_is_not_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(thin_files, "EXACT", 2000)
    monkeypatch.setattr(thin_files, "SAMPLE", 1000)
    np.save(tmp_path / "in.npy", np.random.default_rng(0).normal(size=(4000, 2)))
    succeed(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 4000,
            "--seed", 0, "--report", tmp_path / "r.json")  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["mmd"] is None
    assert report["mmd_below"] < 0.1
    assert f"drawn at random: below {report['mmd_below']:.5f}; standard" in capsys.readouterr().out


def test_a_weighted_baseline_is_that_of_thin(tmp_path):
    weights = np.exp(2 * POINTS[:, 0])
    np.savez(tmp_path / "in.npz", x=POINTS, w=weights)
    succeed(tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--size", 9, "--weights", "w",
            "--bandwidth", 1, "--report", tmp_path / "r.json")  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    even = thin(POINTS, 9, method="standard", weights=weights)
    assert report["standard_mmd"] == pytest.approx(
        mmd(POINTS, even, bandwidth=1.0, weights=weights)
    )


def test_few_rows_weigh(tmp_path, small, capsys):
    weights = np.zeros(N)
    weights[::30] = np.arange(1, 11)
    lines = [f"{x},{y},{w}\n" for (x, y), w in zip(POINTS.tolist(), weights, strict=True)]
    (tmp_path / "in.csv").write_text("x,y,w\n" + "".join(lines))
    for chunk in (100, 1000):
        arguments = ("--weights", "w", "--bandwidth", 1, "--chunk-rows", chunk)
        succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 5, *arguments,
                "--report", tmp_path / "r.json")  # fmt: skip
        report = json.loads((tmp_path / "r.json").read_text())
        rows = report["row_numbers"]
        assert weights[rows].all()
        assert report["mmd"] == pytest.approx(mmd(POINTS, rows, bandwidth=1.0, weights=weights))
        said = "is compared in a single chunk only" in capsys.readouterr().out
        assert said == (chunk == 100) == (report["standard_mmd"] is None)


def test_a_comparison_that_fails_is_a_note(tmp_path, capsys):
    np.save(tmp_path / "in.npy", 1e200 * POINTS)
    succeed(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 5, "--kernel", "linear",
            "--method", "random", "--report", tmp_path / "r.json")  # fmt: skip
    printed = capsys.readouterr()
    assert "MMD to all rows: not known\n" in printed.out
    assert "MMD not known: " in printed.out
    assert not printed.err
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["mmd"] is None


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (["--bandwidth", "1,5"], {"bandwidth": [1.0, 5.0]}),
        (["--kernel", "linear"], {"kernel": "linear"}),
        (["--method", "kernel-thinning", "--delta", "0.1"],
         {"method": "kernel-thinning", "delta": 0.1}),
        (["--g", "1"], {"g": 1}),
    ],
)  # fmt: skip
def test_settings_reach_the_thinning(arguments, settings, tmp_path):
    np.save(tmp_path / "in.npy", POINTS)
    succeed(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 7, "--seed", 1, *arguments)
    np.testing.assert_array_equal(
        np.load(tmp_path / "out.npy"), POINTS[thin(POINTS, 7, rng=1, **settings)]
    )


def test_the_bar(monkeypatch):
    from thinformer.support import progress

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(progress, "PERIOD", 0.001)
    with progress.progress() as tell:
        tell("reading", 0.5)
        while "50 % reading" not in terminal.getvalue():
            pass
        tell("thinning", None)
        while "\rthinning" not in terminal.getvalue():
            pass
    assert terminal.getvalue().endswith("\r\x1b[K")
    quick = Terminal()
    monkeypatch.setattr(sys, "stderr", quick)
    monkeypatch.setattr(progress, "PATIENCE", 60.0)
    with progress.progress() as tell:
        tell("reading", 0.5)
    assert quick.getvalue() == ""


# errors

TABLE = "x,y,name\n" + "".join(f"{i},{i * i % 7}.5,p{i}\n" for i in range(20))
NPY = io.BytesIO()
np.save(NPY, POINTS)


def changed(line, text):
    lines = TABLE.splitlines(keepends=True)
    lines[line - 1] = text + "\n"
    return "".join(lines)


ERRORS = {
    "text": ("in.csv", TABLE, ["--columns", "x,name"],
             "in.csv: line 2, column 'name' holds 'p0'; columns that are computed with take"),
    "empty cell": ("in.csv", changed(5, "3,,p"), [], "in.csv: line 5, column 'y' holds nothing"),
    "NaN": ("in.csv", changed(5, "NaN,1,p"), [], "in.csv: line 5, column 'x' holds 'NaN'"),
    "NA": ("in.csv", changed(5, "1,NA,p"), [], "in.csv: line 5, column 'y' holds 'NA'"),
    "infinite": ("in.csv", changed(5, "1,-inf,p"), [], "line 5, column 'y' holds '-inf'"),
    "quoted": ("in.csv", changed(5, '1,,"a\nb"'), [], "line 5, column 'y' holds nothing"),
    "slip": ("in.csv", changed(5, "1,l0,p"), [],
             "in.csv: line 5, column 'y' holds 'l0', but most of the column is numbers"),
    "long cell": ("in.csv", changed(5, "1," + "b" * 999 + ",p"), [],
                  "column 'y' holds '" + "b" * 60 + "'..., but most"),
    "line break in a name": ("in.csv", TABLE.replace("name", '"na\nme"'), ["--columns", "z"],
                             "there are 'x', 'y', 'na\\nme'"),
    "line break in an option": ("in.csv", TABLE, ["--columns", '"z\nz"'],
                                "--columns 'z\\nz' is not there"),
    "carriage return in an option": ("in.csv", TABLE, ["--columns", "z\ry"], "--columns 'z'"),
    "Stan": ("in.csv", "# model = a\n# b\n" + TABLE, [],
             "if lines that begin with # are comments, say --comment '#'"),
    "Stan, columns": ("in.csv", "# model = a\n" + TABLE, ["--columns", "x"],
                      "there are '# model = a'; if lines that begin with # are comments"),
    "comment later": ("in.csv", TABLE + "# took 1 s", [],
                      "line 22 has 1 fields; the header has 3; if lines that begin with # are"),
    "empty comment": ("in.csv", TABLE, ["--comment", ""], "--comment takes what lines begin with"),
    "comment of npy": ("in.npy", NPY.getvalue(), ["--comment", "#"], "--comment is of CSV; IN is"),
    "delimiter of npy": ("in.npy", NPY.getvalue(), ["--delimiter", ","], "--delimiter is of CSV"),
    "format of a file": ("in.csv", TABLE, ["--format", "csv"], "--format is of standard input"),
    "report to stdout": ("in.csv", TABLE, ["--report", "-"], "--report takes a file; got -"),
    "plot to stdout": ("in.csv", TABLE, ["--plot", "-"], "--plot takes a file ending in .png"),
    "plot folder": ("in.csv", TABLE, ["--plot", "none/p.png"], "none/p.png: there is no folder"),
    "one name twice": ("in.csv", TABLE, ["--columns", "x, x"], "--columns names 'x' twice"),
    "text later": ("in.csv", changed(9, "1,b,p"), ["--columns", "x,y"],
                   "line 9, column 'y' holds 'b'"),
    "underscore": ("in.csv", changed(9, "1,1_0,p"), ["--columns", "x,y"], "holds '1_0'"),
    "no numbers": ("in.csv", "a\nb\nc\n", [], "in.csv: has no column of numbers; line 2 holds 'b'"),
    "separator": ("in.csv", TABLE.replace(",", ";"), [],
                  "the header has one column, 'x;y;name'; say --delimiter ';'"),
    "tab": ("in.csv", TABLE.replace(",", "\t"), [], "say --delimiter '\\t'"),
    "comma in tsv": ("in.tsv", TABLE, [], "say --delimiter ','"),
    "few fields": ("in.csv", TABLE + "3,4", [],
                   "in.csv: line 22 has 2 fields; the header has 3"),
    "many fields": ("in.csv", changed(3, "1,2,3,4"), [], "line 3 has 4 fields"),
    "open quote": ("in.csv", TABLE + '1,2,"a\n', [], "in.csv: line 22 is not CSV: unexpected end"),
    "too many": ("in.csv", TABLE, ["--size", "21"], "in.csv: --size 21 is more than its 20 rows"),
    "too many, chunks": ("in.csv", TABLE, ["--size", "21", "--chunk-rows", "7"],
                         "in.csv: --size 21 is more than its 20 rows"),
    "no columns": ("in.csv", TABLE, ["--columns", ""], "--columns is empty; it takes names"),
    "unknown column": ("in.csv", TABLE, ["--columns", "x,z"],
                       "in.csv: --columns 'z' is not there; there are 'x', 'y', 'name'"),
    "unknown weights": ("in.csv", TABLE, ["--weights", "w"], "in.csv: --weights 'w' is not there"),
    "column twice": ("in.csv", TABLE, ["--columns", "x,x"], "in.csv: --columns names 'x' twice"),
    "weights too": ("in.csv", TABLE, ["--columns", "x", "--weights", "x"],
                    "--weights 'x' is one of --columns too"),
    "negative weights": ("in.csv", changed(4, "-2,1,p"), ["--weights", "x"],
                         "--weights 'x' must not be negative; it holds -2.0"),
    "equal rows": ("in.csv", "x,y\n" + "1,2\n" * 9, [],
                   "in.csv: bandwidth='median' needs points that differ"),
    "twice": ("in.csv", TABLE.replace("name", "x"), [],
              "in.csv: the header has columns twice: 'x'"),
    "empty": ("in.csv", "", [], "in.csv: is empty"),
    "blank": ("in.csv", "\n\n", [], "in.csv: is empty; it takes a header row"),
    "header only": ("in.csv", "x,y\n", [], "in.csv: has a header and no rows"),
    "no header": ("in.csv", "1.5,2\n3,4\n", [], "in.csv: the first row is numbers"),
    "UTF-16": ("in.csv", TABLE.encode("utf-16"), [], "in.csv: is no UTF-8 text"),
    "missing": ("other.csv", TABLE, [], "in.csv: there is no such file"),
    "ending": ("in.txt", TABLE, [],
               "IN takes a file ending in .csv, .tsv, .parquet, .npy, .npz, .nc; got"),
    "other ending": ("in.tsv", TABLE, ["-o", "{out}.csv"], "-o takes a file ending in .tsv, like"),
    "no folder": ("in.csv", TABLE, ["-o", "{dir}/none/o.csv"], "none/o.csv: there is no folder"),
    "a folder": ("in.csv", TABLE, ["-o", "{dir}/folder.csv"], "folder.csv: is a folder"),
    "long name": ("in.csv", TABLE, ["-o", "{dir}/" + "o" * 300 + ".csv"], "File name too long"),
    "itself": ("in.csv", TABLE, ["-o", "{dir}/in.csv"], "is the file of IN too"),
    "report on itself": ("in.csv", TABLE, ["--report", "{dir}/in.csv"], "--report"),
    "plot ending": ("in.csv", TABLE, ["--plot", "p.txt"], "--plot takes a file ending in .png"),
    "report folder": ("in.csv", TABLE, ["--report", "{dir}/none/r.json"], "there is no folder"),
    "kernel": ("in.csv", TABLE, ["--kernel", "box"], "--kernel must be a Kernel or one of energy"),
    "method": ("in.csv", TABLE, ["--method", "magic"], "--method must be one of 'compress++'"),
    "bandwidth": ("in.csv", TABLE, ["--bandwidth", "wide"], "--bandwidth takes median, a number"),
    "bandwidth 0": ("in.csv", TABLE, ["--bandwidth", "0"], "--bandwidth must be positive"),
    "bandwidths": ("in.csv", TABLE, ["--bandwidth", "1,2,3"],
                   "--bandwidth takes one number or 2, one for each of x, y; got 3"),
    "no bandwidth": ("in.csv", TABLE, ["--kernel", "linear", "--bandwidth", "1"],
                     "--bandwidth: the kernel linear has none"),
    "size": ("in.csv", TABLE, ["--size", "0"], "--size must be an integer of at least 1; got 0"),
    "delta": ("in.csv", TABLE, ["--delta", "2"], "--delta must lie in (0, 1]"),
    "seed": ("in.csv", TABLE, ["--seed", "-1"], "--seed must be an integer of at least 0"),
    "delimiter": ("in.csv", TABLE, ["--delimiter", "ab"], "--delimiter takes one character"),
    "row": ("in.csv", TABLE.replace("name", "row"), ["--row-numbers"], "has a column 'row'"),
    "truncated npy": ("in.npy", NPY.getvalue()[:-100], [], "in.npy: cannot be read as .npy: "),
    "no npy": ("in.npy", b"x" * 300, [], "in.npy: cannot be read as .npy: "),
    "truncated npz": ("in.npz", b"PK\x03\x04" + b"x" * 300, [], "in.npz: cannot be read as .npz: "),
    "truncated parquet": ("in.parquet", b"PAR1" + b"x" * 300, [],
                          "in.parquet: cannot be read as Parquet: "),
    "truncated nc": ("in.nc", b"\x89HDF\r\n\x1a\n" + b"x" * 300, [],
                     "in.nc: cannot be read as NetCDF 4: "),
    "npy to stdout": ("in.npy", NPY.getvalue(), ["-o", "-"], "-o - takes CSV from IN; got"),
    "npy column": ("in.npy", NPY.getvalue(), ["--columns", "2"],
                   "'2' is not there; there are '0', '1'"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_are_one_line_and_leave_nothing(case, tmp_path, capsys, monkeypatch):
    name, content, arguments, message = ERRORS[case]
    content = content if isinstance(content, bytes) else content.encode()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / name).write_bytes(content)
    source = tmp_path / (name if name.startswith("in.") else "in.csv")
    out = tmp_path / f"out{source.suffix}"
    places = {"dir": str(tmp_path), "out": str(tmp_path / "out")}
    arguments = [a.format(**places) for a in arguments]
    options = ["-o", out, "--size", 3, *arguments]
    before = sorted(tmp_path.iterdir())
    assert run(source, *options) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("thinformer thin: ")
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / name).read_bytes() == content


def tables(case, path):
    """Files of other formats with something wrong."""
    bad = POINTS.copy()
    bad[200, 1] = np.nan
    if case == "NaN.npy":
        np.save(path, bad)
    elif case == "1-D.npy":
        np.save(path, POINTS[:, 0])
    elif case == "text.npy":
        np.save(path, np.array([["a", "b"]]))
    elif case == "no rows.npy":
        np.save(path, POINTS[:0])
    elif case == "NaN.npz":
        np.savez(path, a=bad)
    elif case == "lengths.npz":
        np.savez(path, a=POINTS, b=np.arange(3))
    elif case == "scalar.npz":
        np.savez(path, a=POINTS, b=np.array(3))
    elif case == "first scalar.npz":
        np.savez(path, a=np.array(3), b=POINTS)
    elif case == "objects.npy":
        np.save(path, np.array([[{}]]), allow_pickle=True)
    elif case == "long double.npy":
        np.save(path, POINTS.astype(np.longdouble))
    elif case == "archive.npy":
        with path.open("wb") as stream:
            np.savez(stream, a=POINTS)
    elif case == "array.npz":
        with path.open("wb") as stream:
            np.save(stream, POINTS)
    elif case == "text.npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif case == "huge.npy":
        np.save(path, 1e300 * POINTS)
    elif case == "weightless.npz":
        np.savez(path, x=POINTS, w=np.zeros(N))
    elif case == "row.npz":
        np.savez(path, row=POINTS)
    elif case == "row.parquet":
        pq.write_table(pa.table({"x": [1.0, 2.0, 3.0], "row": list("abc")}), path)
    elif case == "row coordinate.nc":
        data = xr.Dataset({"x": ("obs", range(N))}, {"row": ("obs", range(N))})
        data.to_netcdf(path, engine="h5netcdf")
    elif case == "row dimension.nc":
        xr.Dataset({"x": ("row", range(N))}).to_netcdf(path, engine="h5netcdf")
    elif case == "none.npz":
        np.savez(path)
    elif case == "wide weights.npz":
        np.savez(path, a=POINTS, w=POINTS)
    elif case == "null.parquet":
        pq.write_table(pa.table({"x": [1.0, None, 3.0, 4.0], "s": list("abcd")}), path)
    elif case == "text.parquet":
        pq.write_table(pa.table({"x": [1.0, 2.0, 3.0], "s": list("abc")}), path)
    elif case == "twice.parquet":
        pq.write_table(pa.Table.from_arrays([pa.array([1.0, 2.0])] * 2, ["x", "x"]), path)
    elif case == "no rows.parquet":
        pq.write_table(pa.table({"x": pa.array([], pa.float64())}), path)
    elif case == "cut.parquet":
        parquet(path)
        path.write_bytes(path.read_bytes()[:-50])
    elif case == "NaN.nc":
        xr.Dataset({"v": (("obs", "k"), bad), "x": ("obs", range(N))}).to_netcdf(
            path, engine="h5netcdf"
        )
    elif case == "two.nc":
        variables = {"v": (("a", "b"), POINTS), "w": (("a", "b"), POINTS)}
        xr.Dataset(variables).to_netcdf(path, engine="h5netcdf")
    elif case == "none.nc":
        xr.Dataset().to_netcdf(path, engine="h5netcdf")


@pytest.mark.parametrize(
    ("case", "arguments", "message"),
    [
        ("NaN.npy", [], "row 200 (the first is 0), column '1' holds nan"),
        ("1-D.npy", [], "takes a 2-D array of numbers; got shape (300,) of float64"),
        ("text.npy", [], "takes a 2-D array of numbers; got shape (1, 2) of <U1"),
        ("no rows.npy", [], "has no rows"),
        ("NaN.npz", [], "row 200 (the first is 0), column 'a[1]' holds nan"),
        ("lengths.npz", [], "takes arrays of one length; 'a' has 300, 'b' has 3"),
        ("scalar.npz", [], "'b' is a single value"),
        ("none.npz", [], "has no arrays"),
        ("first scalar.npz", [], "takes arrays of one length; 'a' is a single value"),
        ("objects.npy", [], "it is another kind of file, or holds Python objects"),
        ("long double.npy", [], "long double.npy: points must be float16, float32 or float64"),
        ("archive.npy", [], "holds several arrays; they take a name that ends in .npz"),
        ("array.npz", [], "holds a single array; that takes a name that ends in .npy"),
        ("text.npz", [], "holds 'readme.txt', which is no array"),
        ("huge.npy", ["--standardize"], "column '0' is too large for --standardize"),
        ("weightless.npz", ["--weights", "w"], "weightless.npz: weights must be finite"),
        ("row.npz", ["--row-numbers"], "has a column 'row' already"),
        ("row.parquet", ["--row-numbers"], "has a column 'row' already"),
        ("row coordinate.nc", ["--row-numbers"], "has a column 'row' already"),
        ("row dimension.nc", ["--row-numbers"], "has a column 'row' already"),
        ("wide weights.npz", ["--weights", "w"], "--weights 'w' has more than one number a row"),
        ("null.parquet", [], "row 1 (the first is 0), column 'x' holds nan"),
        ("text.parquet", ["--columns", "s"], "column 's' is of string; --columns and --weights"),
        ("twice.parquet", [], "has columns twice: 'x'"),
        ("no rows.parquet", [], "has no rows"),
        ("cut.parquet", [], "cannot be read as Parquet: "),
        ("NaN.nc", [], "row 200 (the first is 0), column 'v[1]' holds nan"),
        ("two.nc", [], "they share 'a', 'b'"),
        ("none.nc", [], "has no group 'posterior' and no variables"),
    ],
)
def test_errors_of_other_formats(case, arguments, message, tmp_path, capsys):
    path = tmp_path / case
    tables(case, path)
    assert run(path, "-o", tmp_path / f"out{path.suffix}", "--size", 2, *arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("thinformer thin: ")
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


def test_equal_rows_with_a_bandwidth(tmp_path):
    (tmp_path / "in.csv").write_text("x,y\n" + "1,2\n" * 9)
    succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 2, "--bandwidth", 1)
    assert (tmp_path / "out.csv").read_text() == "x,y\n1,2\n1,2\n"


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("pyarrow", "in.parquet", "Parquet files need pyarrow: pip install 'thinformer[files]'"),
        ("xarray", "in.nc", "NetCDF files need xarray: pip install 'thinformer[files]'"),
        ("h5netcdf", "in.nc", "NetCDF files need h5netcdf: pip install 'thinformer[files]'"),
    ],
)
def test_what_is_not_installed_is_named(module, name, message, tmp_path, capsys, monkeypatch):
    (tmp_path / name).write_bytes(b"x")
    for loaded in [m for m in sys.modules if m == module or m.startswith(module + ".")]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.setitem(sys.modules, module, None)
    out = tmp_path / f"out{Path(name).suffix}"
    assert run(tmp_path / name, "-o", out, "--size", 1) == 2
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == [name]


def test_an_old_output_survives_an_error_and_is_replaced_otherwise(tmp_path):
    out = tmp_path / "out.csv"
    out.write_text("old")
    (tmp_path / "in.csv").write_text(changed(20, "a,b,c"))
    with contextlib.redirect_stderr(io.StringIO()):
        assert run(tmp_path / "in.csv", "-o", out, "--columns", "x", "--size", 3) == 2
    assert out.read_text() == "old"
    (tmp_path / "in.csv").write_text(TABLE)
    succeed(tmp_path / "in.csv", "-o", out, "--columns", "x", "--size", 3)
    assert out.read_text().startswith("x,y,name\n")


# what was lost, or told wrongly


def test_a_pipe_is_not_replaced(tmp_path, capsys):
    (tmp_path / "in.csv").write_text(TABLE)
    os.mkfifo(tmp_path / "out.csv")
    for option in (["-o", tmp_path / "out.csv"],
                   ["-o", tmp_path / "o.csv", "--report", tmp_path / "out.csv"]):  # fmt: skip
        assert run(tmp_path / "in.csv", *option, "--size", 3) == 2
        assert "out.csv: is no regular file; it is not replaced\n" in capsys.readouterr().err
        assert (tmp_path / "out.csv").is_fifo()
    assert len(os.listdir(tmp_path)) == 2


def test_the_mode_of_an_output_stays_and_its_name_may_be_long(tmp_path):
    (tmp_path / "in.csv").write_text(TABLE)
    out = tmp_path / ("o" * 251 + ".csv")
    out.write_text("old")
    out.chmod(0o640)
    link = tmp_path / "link.csv"
    link.symlink_to(out)
    succeed(tmp_path / "in.csv", "-o", link, "--size", 3)
    assert link.is_symlink()
    assert out.stat().st_mode & 0o777 == 0o640
    assert out.read_text().startswith("x,y,name\n")


@pytest.mark.parametrize("option", ["IN", "-o", "--report", "--plot"])
def test_a_loop_of_links_is_named(option, tmp_path, capsys):
    (tmp_path / "in.csv").write_text(TABLE)
    for name in ("loop.csv", "loop.png"):
        (tmp_path / name).symlink_to(tmp_path / name)
    loop = tmp_path / ("loop.png" if option == "--plot" else "loop.csv")
    source = loop if option == "IN" else tmp_path / "in.csv"
    extra = [] if option == "IN" else [option, loop]
    assert run(source, "-o", tmp_path / "o.csv", "--size", 3, *extra) == 2
    printed = capsys.readouterr().err
    assert "is a loop of symbolic links" in printed or "oo many levels" in printed
    assert str(loop) in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("chunk", [4, 1000])
def test_comments_are_no_rows(chunk, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(csv_files, "BLOCK", 3)
    head, *lines = TABLE.splitlines(keepends=True)
    lines[7] = '7,1.5,"a\n# no comment\n"\n'
    lines[12] = "12,1.5,# p12\n"
    text = "".join(["# model, 1\n#\n", head, "# adapted\n\n", *lines[:5], "#a\n", "#\n" * 4,
                    *lines[5:], "# took\n#"])  # fmt: skip
    (tmp_path / "in.csv").write_text(text)
    arguments = ("-o", tmp_path / "out.csv", "--size", 20, "--chunk-rows", chunk, "--comment", "#")
    succeed(tmp_path / "in.csv", *arguments)
    assert (tmp_path / "out.csv").read_text() == "".join([head, *lines])
    (tmp_path / "in.csv").write_text(text.replace("15,", "b,"))
    assert run(tmp_path / "in.csv", *arguments, "--columns", "x") == 2
    place = text[: text.index("\n15,")].count("\n") + 2
    assert f"line {place}, column 'x' holds 'b'" in capsys.readouterr().err


def test_long_fields(tmp_path):
    text = "x,t\n" + "".join(f'{i},"{"t" * 140_000}"\n' for i in range(4))
    (tmp_path / "in.csv").write_text(text)
    limit = csv.field_size_limit()
    succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 4)
    assert (tmp_path / "out.csv").read_text() == text
    assert csv.field_size_limit() == limit


def test_names_are_matched_with_spaces_or_without(tmp_path):
    (tmp_path / "in.csv").write_text(TABLE.replace("x,y", "x, y"))
    for columns in ("x, y", "y,x ", " y"):
        succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 3, "--columns", columns,
                "--report", tmp_path / "r.json")  # fmt: skip
        used = json.loads((tmp_path / "r.json").read_text())["columns"]
        assert sorted(used) == sorted([" y"] if columns == " y" else ["x", " y"])


def test_the_index_of_a_data_frame_is_no_dimension(tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(POINTS, columns=["x", "y"]).iloc[np.flatnonzero(POINTS[:, 0] > 2)]
    for name in (None, "id"):
        frame.index.name = name
        frame.to_parquet(tmp_path / "in.parquet")
        succeed(tmp_path / "in.parquet", "-o", tmp_path / "out.parquet", "--size", 10, "--seed", 0,
                "--report", tmp_path / "r.json")  # fmt: skip
        report = json.loads((tmp_path / "r.json").read_text())
        assert report["columns"] == ["x", "y"]
        expected = frame.iloc[report["row_numbers"]]
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "out.parquet"), expected)


def test_parquet_of_views_and_any_number_of_rows_at_once(small, tmp_path):
    table = pa.table(
        {"x": POINTS[:, 0], "s": pa.array([f"é{i}" for i in range(N)]).cast("string_view")}
    )
    pq.write_table(table, tmp_path / "in.parquet")
    table = pq.read_table(tmp_path / "in.parquet")
    for chunk in (50, 10**20):
        succeed(tmp_path / "in.parquet", "-o", tmp_path / "out.parquet", "--size", 10,
                "--chunk-rows", chunk, "--report", tmp_path / "r.json")  # fmt: skip
        rows = json.loads((tmp_path / "r.json").read_text())["row_numbers"]
        out = pq.read_table(tmp_path / "out.parquet")
        assert out.schema.equals(table.schema)
        assert out["s"].to_pylist() == [f"é{i}" for i in rows]


def test_a_posterior_thinned_before_is_thinned_in_all_groups(tmp_path):
    arviz(tmp_path / "in.nc")
    succeed(tmp_path / "in.nc", "-o", tmp_path / "one.nc", "--size", 30)
    succeed(tmp_path / "one.nc", "-o", tmp_path / "two.nc", "--size", 10, "--row-numbers")
    with xr.open_datatree(tmp_path / "one.nc", engine="h5netcdf") as before, xr.open_datatree(
        tmp_path / "two.nc", engine="h5netcdf"
    ) as after:  # fmt: skip
        rows = after["posterior"]["row"].to_numpy()
        for name in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive"):
            old, new = (tree[name].dataset for tree in (before, after))
            assert new.drop_vars("row").identical(old.isel(sample=rows))
        assert after["prior"].dataset.identical(before["prior"].dataset)


class Full(io.StringIO):
    encoding = "ascii"

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        text.encode(self.encoding)
        if self.error is not None:
            raise self.error
        return super().write(text)

    def fileno(self):
        raise io.UnsupportedOperation


@pytest.mark.parametrize(
    ("error", "status"), [(None, 0), (BrokenPipeError(), 0), (OSError(28, "No space left"), 1)]
)
def test_a_summary_that_cannot_be_printed_is_no_failure(
    error, status, tmp_path, monkeypatch, capsys
):
    (tmp_path / "in.csv").write_text(TABLE.replace("x,", "é\u2028,"), encoding="utf-8")
    stream = Full(error)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        assert run(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 3) == status
    assert (tmp_path / "out.csv").exists()
    assert ("the files are written; the summary is not" in capsys.readouterr().err) == status
    if error is None:
        assert "columns \\xe9\\u2028, y" in stream.getvalue()


def test_closed_streams(tmp_path, monkeypatch, capsys):
    (tmp_path / "in.csv").write_text(TABLE)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", None)
        assert run("-", "-o", tmp_path / "out.csv", "--size", 3) == 2
    assert "standard input: is closed" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert run(tmp_path / "in.csv", "-o", "-", "--size", 3) == 2
        assert run(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 3) == 0
    assert "-o -: standard output is closed" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 3)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("odd")])
def test_a_file_that_cannot_be_written_is_named(error, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "in.npy", POINTS)

    def save(*arguments):
        raise error

    monkeypatch.setattr(np, "save", save)
    assert run(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 3) == 2
    reason = error.strerror if isinstance(error, OSError) else "'odd'"
    assert f"out.npy: cannot be written: {reason}\n" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in.npy"]


def test_whatever_is_raised_is_one_line(tmp_path, monkeypatch, capsys):
    def fail(*arguments):
        raise KeyError("a\nb")

    monkeypatch.setattr(thin_files, "run", fail)
    assert run(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 3) == 2
    printed = capsys.readouterr().err
    assert "KeyError" in printed
    assert printed.count("\n") == 1


def test_columns_that_hardly_differ_are_drawn(tmp_path, capsys):
    points = np.column_stack([1e16 + 2 * (np.arange(30) % 2), POINTS[:30], np.ones(30)])
    np.save(tmp_path / "in.npy", points)
    succeed(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 5,
            "--plot", tmp_path / "p.PNG")  # fmt: skip
    assert (tmp_path / "p.PNG").read_bytes().startswith(b"\x89PNG")
    assert not capsys.readouterr().err


def test_a_first_chunk_of_equal_rows(tmp_path, capsys):
    tail = "".join(f"{x},{y}\n" for x, y in POINTS.tolist())
    (tmp_path / "in.csv").write_text("x,y\n" + "1,2\n" * 4096 + tail)
    arguments = (tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 3)
    assert run(*arguments, "--chunk-rows", 1) == 2  # 4096 are read at once
    assert "(of the first 4096 rows); say --bandwidth NUMBER" in capsys.readouterr().err
    for method in ("standard", "random"):
        succeed(*arguments, "--chunk-rows", 1, "--method", method)
        assert "MMD not known: " in capsys.readouterr().out
    succeed(*arguments, "--chunk-rows", 1, "--bandwidth", 1)
    succeed(*arguments, "--columns", "y", "--bandwidth", 1)
    assert "read in" not in capsys.readouterr().out.splitlines()[-1]


def test_help_says_what_is_promised(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "on any number of threads",
        "exit status",
        "do not apply the column of --weights",
        "chain after chain",
        "at least 4096",
        "overwritten",
        "--comment '#'",
    ):
        assert words in said
