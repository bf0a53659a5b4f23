"""Bad files and options: an error of one line, and nothing left behind."""

import bz2
import gzip
import io
import lzma
import os
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from files_of_points import POINTS, TABLE, N, changed, parquet, run

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
xr = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")
NPY = io.BytesIO()
np.save(NPY, POINTS)


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
    "only comments": ("in.csv", "# model = a\n\n# b\n", [],
                      "in.csv: is empty but for comments; it takes a header row and rows"),
    "only counted warm-up": (
        "in.csv", "# num_warmup = 20\n# save_warmup = 1\n# engaged = 0\n" + TABLE, [],
        "in.csv: all of its 20 rows are warm-up, as a comment says save_warmup = 1 and num_warmup "
        "is not less; without the first comment"),
    "only warm-up": ("in.csv", "# save_warmup = 1\n" + TABLE, [],
                     "in.csv: all of its 20 rows are warm-up, as a comment says save_warmup = 1"),
    "a comment that may be a row": ("in.csv", "# a\nt,x\np,1\np,2\n#p,3\n", [],
                                    "in.csv: line 5 begins with # and has as many fields as the "
                                    "header; say --comment '#' if it is a comment, or quote its"),
    "only of a sampler": ("in.csv", "chain,id,lp__,t\n" + "1,2,3,a\n1,3,2,b\n", [],
                          "in.csv: has no column to compute with; 'chain', 'id', 'lp__' are of a "
                          "sampler or an index; --columns takes any"),
    "decimal comma": ("in.csv", "x;t\n1,5;a\n2,5;b\n3;c\n", ["--delimiter", ";"],
                      "in.csv: line 2, column 'x' holds '1,5'; numbers take a point before decimals"
                      " and nothing between thousands: pandas reads others by read_csv(..., "
                      "decimal=',', thousands='.') or read_csv(..., thousands=','), and writes"),
    "decimal comma by name": ("in.csv", "x;t\n1;a\n2,5e-3;b\n3;c\n",
                              ["--delimiter", ";", "--columns", "x"],
                              "line 3, column 'x' holds '2,5e-3'; numbers take a point"),
    "thousands": ("in.csv", 'x,y\n2,"1,234.5"\n3,"-2,000,000"\n', [],
                  "line 2, column 'y' holds '1,234.5'; numbers take a point"),
    "points between thousands": ("in.csv", 'x,y\n2,"1.234,5"\n3,"12.345,6"\n', [],
                                 "line 2, column 'y' holds '1.234,5'; numbers take a point"),
    "space": ("in.csv", "# x y\n1 2\n3 4\n", [],
              "the header has one column, '1 2'; say --delimiter ' ' if that is what separates"),
    "blank names by name": ("in.csv", ",,x\n1,2,3\n", ["--columns", ",x"],
                            "in.csv: the header has columns twice: ''"),
    "gzip": ("in.csv", gzip.compress(TABLE.encode()), [],
             "in.csv: is compressed; its name must end in .csv.gz"),
    "xz": ("in.tsv", lzma.compress(TABLE.encode()), [],
           "in.tsv: is compressed; its name must end in .tsv.xz"),
    "bz2": ("in.csv", bz2.compress(TABLE.encode()), [],
            "in.csv: is compressed; its name must end in .csv.bz2"),
    "no gzip": ("in.csv.gz", TABLE, [], "in.csv.gz: cannot be read: Not a gzipped file"),
    "no bz2": ("in.csv.bz2", TABLE, [], "in.csv.bz2: cannot be read: Invalid data stream"),
    "no xz": ("in.csv.xz", TABLE, [], "in.csv.xz: cannot be read: Input format not supported"),
    "no zst": ("in.csv.zst", TABLE, [], "in.csv.zst: cannot be read: "),
    "truncated gzip": ("in.csv.gz", gzip.compress(TABLE.encode())[:-30], [],
                       "in.csv.gz: cannot be read: Compressed file ended before"),
    "truncated xz": ("in.csv.xz", lzma.compress(TABLE.encode())[:-30], [],
                     "in.csv.xz: cannot be read: Compressed file ended before"),
    "compressed parquet": ("in.parquet.gz", b"x", [],
                           "got {dir}/in.parquet.gz (text may be compressed: .csv.gz, .csv.bz2"),
    "a pattern without a file": ("in.csv", TABLE, ["{dir}/none-*.csv"],
                                 "none-*.csv: there is no such file, and none that it matches"),
    "a file twice": ("in.csv", TABLE, ["{dir}/folder.csv/../in.csv"],
                     "folder.csv/../in.csv twice"),
    "standard input beside a file": ("in.csv", TABLE, ["-"], "IN: - is standard input; it is read"),
    "other endings": ("in.csv", TABLE, ["{dir}/in.tsv"],
                      "IN takes files of one ending, like {dir}/in.csv; got {dir}/in.tsv"),
    "several arrays": ("in.npy", NPY.getvalue(), ["{dir}/other.npy"],
                       "IN takes several files of .csv, .tsv, .parquet, or one of .npy; got "
                       "{dir}/other.npy too: join them first, as by numpy.concatenate"),
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
    "no header": ("in.csv", "1.5,2\n3,4\n", [], "in.csv: --size 3 is more than its 2 rows"),
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
    out = tmp_path / f"out{''.join(source.suffixes)}"
    places = {"dir": str(tmp_path), "out": str(tmp_path / "out")}
    arguments = [a.format(**places) for a in arguments]
    options = ["-o", out, "--size", 3, *arguments]
    if arguments and (arguments[0] == "-" or arguments[0].startswith(str(tmp_path))):
        options = [*arguments, "-o", out, "--size", 3]  # one more IN
    before = sorted(tmp_path.iterdir())
    assert run(source, *options) == 2
    printed = capsys.readouterr()
    assert message.replace("{dir}", str(tmp_path)) in printed.err
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
        np.save(path, 1.7e308 * np.sign(POINTS))  # quartiles further apart than floats go
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
        ("two.nc", [], "dimensions chain and draw, or one that they share; they share ['a', 'b']"),
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


@pytest.mark.parametrize(
    ("module", "name", "message"),
    [
        ("pyarrow", "in.parquet", "Parquet files need pyarrow: pip install pyarrow"),
        ("xarray", "in.nc", "NetCDF files need xarray: pip install xarray h5netcdf"),
        ("h5netcdf", "in.nc", "NetCDF files need h5netcdf: pip install xarray h5netcdf"),
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
