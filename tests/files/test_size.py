"""``thinformer thin --size auto`` and ``--curve``: the same as in Python, and said."""

import json

import numpy as np
import pytest
from files_of_points import POINTS, run, succeed

from thinformer import thin
from thinformer.files import job
from thinformer.thinning import ess

SMOOTH = np.cumsum(POINTS, axis=0)[:, :2]  # rows that depend on each other


def write(path, table, names, delimiter=","):
    np.savetxt(path, table, delimiter=delimiter, header=delimiter.join(names), comments="")


def outcome(path, *arguments):
    report = path.parent / "r.json"
    out = path.parent / f"o{path.suffix}"
    succeed(path, *arguments, "-o", out, "--seed", 4, "--report", report)
    return json.loads(report.read_text())


def test_independent_rows(tmp_path, capsys):
    np.save(tmp_path / "in.npy", POINTS)
    found = outcome(tmp_path / "in.npy", "--size", "auto")
    rows = thin(POINTS, "auto", standardize="scale", rng=4)
    np.testing.assert_array_equal(found["row_numbers"], rows)
    assert (found["ess"], found["ess_from"]) == (300, "independent rows")
    assert found["settings"]["size"] is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"300 rows -> {rows.size} rows: ")
    assert lines[1] == (
        "the chosen rows are worth 300 independent draws (all rows count as independent; --ess "
        "takes another number)"
    )


def test_a_given_size_of_the_sample(tmp_path, capsys):
    np.save(tmp_path / "in.npy", POINTS)
    found = outcome(tmp_path / "in.npy", "--size", "auto", "--ess", 70)
    rows = thin(POINTS, "auto", ess=70, standardize="scale", rng=4)
    np.testing.assert_array_equal(found["row_numbers"], rows)
    assert (found["ess"], found["ess_from"]) == (70, "given")
    assert "worth 70 independent draws (--ess)\n" in capsys.readouterr().out
    assert outcome(tmp_path / "in.npy", "--size", 9)["ess"] is None


def test_weights(tmp_path):
    weights = np.random.default_rng(0).uniform(1, 2, 300)
    write(tmp_path / "in.csv", np.column_stack([POINTS, weights]), ["x", "y", "w"])
    found = outcome(tmp_path / "in.csv", "--size", "auto", "--weights", "w")
    assert found["ess"] == pytest.approx(weights.sum() ** 2 / (weights @ weights))
    rows = thin(POINTS, "auto", weights=weights, standardize="scale", rng=4)
    np.testing.assert_array_equal(found["row_numbers"], rows)


def test_draws_of_a_sampler(tmp_path, capsys):
    """A column of a sampler, several files, and an ArviZ posterior are draws in their order."""
    own = pytest.approx(ess.of_draws(SMOOTH))
    write(tmp_path / "one.csv", np.column_stack([np.zeros(300), SMOOTH]), ["lp__", "x", "y"])
    found = outcome(tmp_path / "one.csv", "--size", "auto")
    assert (found["ess"], found["ess_from"]) == (own, "autocorrelation")
    assert found["ess"] < 30
    assert "(the effective sample size of the rows in their order)\n" in capsys.readouterr().out
    for i in (0, 1):
        write(tmp_path / f"part{i}.csv", SMOOTH[150 * i : 150 * (i + 1)], ["x", "y"])
    assert outcome(tmp_path / "part0.csv", tmp_path / "part1.csv", "--size", "auto")["ess"] == own
    xr = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    chains = SMOOTH.reshape(2, 150, 2)
    dims = ("chain", "draw", "k")
    xr.Dataset({"m": (dims, chains)}).to_netcdf(tmp_path / "p.nc", engine="h5netcdf")
    assert outcome(tmp_path / "p.nc", "--size", "auto")["ess"] == own
    cells = xr.Dataset({"x": ("cell", SMOOTH[:, 0]), "y": ("cell", SMOOTH[:, 1])})
    cells.to_netcdf(tmp_path / "c.nc", engine="h5netcdf")
    assert outcome(tmp_path / "c.nc", "--size", "auto")["ess"] == 300


def test_the_curve(tmp_path):
    pytest.importorskip("matplotlib")
    np.save(tmp_path / "in.npy", POINTS)
    for size in ("auto", 5):
        outcome(tmp_path / "in.npy", "--size", size, "--ess", 50, "--curve", tmp_path / "c.svg")
        drawn = (tmp_path / "c.svg").read_text()
        assert "<svg" in drawn
        (tmp_path / "c.svg").unlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "many"], "--size takes a number of rows, or auto; got 'many'"),
        (["--size", "2.5"], "--size takes a number of rows, or auto; got '2.5'"),
        (["--size", 5, "--ess", 9], "--ess is for --size auto and --curve; got --size 5"),
        (["--size", "auto", "--ess", 0], "--ess must be"),
        (["--size", 5, "--curve", "c.txt"], "--curve takes a file ending in .png, .svg or .pdf"),
        (["--size", 5, "--curve", "o.npy"], "--curve takes a file ending in"),
    ],
)
def test_errors(arguments, said, tmp_path, capsys):
    np.save(tmp_path / "in.npy", POINTS)
    assert run(tmp_path / "in.npy", "-o", tmp_path / "o.npy", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o.npy").exists()


@pytest.mark.parametrize("arguments", [["--size", "auto"], ["--size", 5, "--curve", "c.png"]])
def test_rows_of_several_chunks(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(job, "LEAST", 100)
    write(tmp_path / "in.csv", POINTS, ["x", "y"])
    arguments = [tmp_path / a if a == "c.png" else a for a in arguments]
    assert run(tmp_path / "in.csv", "-o", tmp_path / "o.csv", "--chunk-rows", 100, *arguments) == 2
    option = "--curve" if "--curve" in arguments else "--size auto"
    assert (
        f"{option} takes rows of one chunk; {tmp_path / 'in.csv'} has more than 100: say "
        "--chunk-rows NUMBER"
    ) in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv"]
