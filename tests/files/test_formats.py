"""Formats of files of points: what is read is what is written, byte for byte and row for row."""

import csv
import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from files_of_points import HEADER, POINTS, RECORDS, TABLE, N, parquet, run, succeed

from thinformer import thin
from thinformer.files import csv as csv_files

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
xr = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")


def arviz(path):
    base = importlib.util.find_spec("arviz_base")
    source = Path(base.origin).parent / "example_data/data/centered_eight.nc"
    path.write_bytes(source.read_bytes())


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
        assert rows == thin(POINTS, 200, standardize="scale", rng=5).tolist()
        assert report["chunks"] == 1
    else:
        assert report["chunks"] == 4


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_cell_holds_other_separators_of_lines(quote, end, tmp_path):
    """U+2028, U+2029, NEL, form feed, VT, FS, GS and RS end no record."""
    note = f"{quote}a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg\x1dh\x1ei{quote}"
    records = [f"{x!r},{note},{y!r}{end}" for x, y in POINTS.tolist()]
    (tmp_path / "in.csv").write_bytes(f"x,note,y{end}{''.join(records)}".encode())
    succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 20, "--seed", 5,
            "--report", tmp_path / "r.json")  # fmt: skip
    rows = json.loads((tmp_path / "r.json").read_text())["row_numbers"]
    assert rows == thin(POINTS, 20, standardize="scale", rng=5).tolist()
    expected = f"x,note,y{end}{''.join(records[i] for i in rows)}"
    assert (tmp_path / "out.csv").read_bytes() == expected.encode()


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
        np.testing.assert_array_equal(rows, thin(POINTS, 20, standardize="scale", rng=0))


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
    np.testing.assert_array_equal(rows, thin(points, 20, standardize="scale", rng=0))


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
    np.testing.assert_array_equal(
        rows, thin(POINTS, 20, standardize="scale", weights=arrays["w"], rng=0)
    )


@pytest.mark.slow
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
        np.testing.assert_array_equal(rows, thin(points, 30, standardize="scale", rng=0))
        assert set(after.children) == set(before.children)
        for name in ("posterior", "sample_stats", "log_likelihood", "posterior_predictive"):
            old = before[name].dataset.stack(sample=("chain", "draw"))
            new = after[name].dataset
            assert set(new.data_vars) == set(old.data_vars)
            assert new.attrs == old.attrs
            np.testing.assert_array_equal(new["source_chain"], old["chain"][rows])
            np.testing.assert_array_equal(new["source_draw"], old["draw"][rows])
            np.testing.assert_array_equal(new["chain"], [0])
            np.testing.assert_array_equal(new["draw"], np.arange(30))
            for variable in old.data_vars:
                assert new[variable].dtype == old[variable].dtype
                assert new[variable].dims[:2] == ("chain", "draw")
                was = old[variable].transpose("sample", ...).to_numpy()
                np.testing.assert_array_equal(new[variable].to_numpy(), was[rows][None])
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
    np.testing.assert_array_equal(rows, thin(points, 20, standardize="scale", rng=0))


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


@pytest.mark.slow
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
            chosen = old.isel(draw=rows).assign_coords(draw=np.arange(10))
            assert new.drop_vars("row").identical(chosen)
        assert after["prior"].dataset.identical(before["prior"].dataset)
