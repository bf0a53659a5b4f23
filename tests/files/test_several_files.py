"""Several files as one table, compressed text, folders of Parquet, and arrays beside others."""

import bz2
import gzip
import json
import lzma
import sys

import numpy as np
import pytest
from files_of_points import POINTS, TABLE, N, parquet, run, succeed

from thinformer.files.formats import ending
from thinformer.files.several import open_sources
from thinformer.files.source import Request

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

HEAD = "x,y,name\n"
PARTS = [POINTS[:120], POINTS[120:180], POINTS[180:]]


def rows(points, prefix="", end="\n"):
    return [f"{prefix}{x!r},{y!r},p{end}" for x, y in points.tolist()]


def write(folder, head=HEAD, prefix="", end="\n"):
    """Three files; the last line of each has no end."""
    for k, points in enumerate(PARTS, 1):
        text = head + "".join(rows(points, prefix.format(k), end))
        (folder / f"run-{k}.csv").write_bytes(text.removesuffix("\n").encode())
    return [folder / f"run-{k}.csv" for k in (1, 2, 3)]


def read(paths, columns=None, limit=1000):
    """Columns, points and notes of files."""
    requests = [Request(path, columns, None, limit, False, ",", None) for path in paths]
    with open_sources(requests, ending(paths[0], "IN")) as source:
        chunks = list(source.chunks)
        return source.columns, [chunk.points for chunk in chunks], source


def test_several_files_are_one_table(tmp_path, capsys):
    out = tmp_path / "out.csv"
    paths = write(tmp_path)
    succeed(*paths, "-o", out, "--size", N, "--report", tmp_path / "r.json")
    expected = [row for k, p in enumerate(PARTS, 1) for row in rows(p, f"{k},")]
    assert out.read_text() == f"chain,{HEAD}{''.join(expected)}"
    said = capsys.readouterr().out
    assert "\ncolumn chain added: 1 to 3, one for each file\n" in said
    assert "median distance of all rows" in said
    settings = json.loads((tmp_path / "r.json").read_text())["settings"]
    assert settings["source"] == str(paths[0])
    assert settings["more"] == list(map(str, paths[1:]))
    columns, points, _ = read(paths)
    assert columns == ["x", "y"]
    np.testing.assert_array_equal(np.concatenate(points), POINTS)
    assert len(points) == 1


def test_several_files_are_thinned_as_one(tmp_path):
    whole = tmp_path / "whole.csv"
    whole.write_text(HEAD + "".join(rows(POINTS)))
    for sources, out in (((whole,), "one.csv"), (write(tmp_path), "more.csv")):
        succeed(*sources, "-o", tmp_path / out, "--size", 20, "--seed", 3, "--row-numbers")
    one, more = ((tmp_path / name).read_text().splitlines() for name in ("one.csv", "more.csv"))
    assert more[0] == "row,chain,x,y,name"
    number_of = np.repeat([1, 2, 3], [len(p) for p in PARTS])
    for a, b in zip(one[1:], more[1:], strict=True):
        row, rest = a.split(",", 1)
        assert b == f"{row},{number_of[int(row)]},{rest}"


@pytest.mark.parametrize("limit", [1, 7, 100, 120, 121, 300, 1000])
def test_chunks_do_not_end_with_files(limit, tmp_path):
    _, points, source = read(write(tmp_path), limit=limit)
    assert [len(p) for p in points] == [limit] * (N // limit) + [N % limit] * (N % limit > 0)
    np.testing.assert_array_equal(np.concatenate(points), POINTS)
    assert source.fraction() == 1


@pytest.mark.parametrize("limit", [50, 1000])
def test_weights_of_several_files(limit, small, tmp_path):
    weights = np.arange(N) % 7
    paths = [tmp_path / "a.csv", tmp_path / "b.csv"]
    lines = [f"{w},{x!r},{y!r}\n" for w, (x, y) in zip(weights, POINTS.tolist(), strict=True)]
    for path, part in zip(paths, (lines[:170], lines[170:]), strict=True):
        path.write_text("w,x,y\n" + "".join(part))
    succeed(*paths, "-o", tmp_path / "out.csv", "--size", 40, "--chunk-rows", limit,
            "--weights", "w", "--row-numbers")  # fmt: skip
    head, *kept = (tmp_path / "out.csv").read_text().splitlines(keepends=True)
    assert head == "row,chain,w,x,y\n"
    numbers = [int(line.split(",")[0]) for line in kept]
    assert kept == [f"{i},{1 + (i >= 170)},{lines[i]}" for i in numbers]
    requests = [Request(path, None, "w", limit, False, ",", None) for path in paths]
    with open_sources(requests, ".csv") as source:
        assert source.columns == ["x", "y"]
        found = np.concatenate([chunk.weights for chunk in source.chunks])
    np.testing.assert_array_equal(found, weights)


def test_a_pattern_stands_for_files(tmp_path):
    paths = write(tmp_path)
    texts = set()
    for source in (paths, [tmp_path / "run-*.csv"], [paths[0], tmp_path / "run-[23].csv"]):
        succeed(*source, "-o", tmp_path / "out.csv", "--size", 9, "--seed", 1)
        texts.add((tmp_path / "out.csv").read_text())
    assert len(texts) == 1
    for k in (2, 10, 9):  # their chains are 1, 2, 3, in the order of these numbers
        (tmp_path / f"c{k}.csv").write_text(f"x,y\n{k},1\n{k},2\n")
    succeed(tmp_path / "c*.csv", "-o", tmp_path / "out.csv", "--size", 6)
    lines = (tmp_path / "out.csv").read_text().splitlines()[1:]
    assert lines == ["1,2,1", "1,2,2", "2,9,1", "2,9,2", "3,10,1", "3,10,2"]
    (tmp_path / "a[1].csv").write_text(TABLE)
    succeed(tmp_path / "a[1].csv", "-o", tmp_path / "out.csv", "--size", 20)
    assert (tmp_path / "out.csv").read_text() == TABLE


@pytest.mark.parametrize("name", ["chain", ".chain", "Chain", "chain__", "_chain"])
def test_a_column_chain_stays(name, tmp_path, capsys):
    paths = write(tmp_path, f"{name},{HEAD}", "{}7,")
    succeed(*paths, "-o", tmp_path / "out.csv", "--size", N)
    expected = [row for k, p in enumerate(PARTS, 1) for row in rows(p, f"{k}7,")]
    assert (tmp_path / "out.csv").read_text() == f"{name},{HEAD}{''.join(expected)}"
    said = capsys.readouterr().out
    assert f"left out of the distance: {name} (of a sampler)" in said
    assert "chain added" not in said


def test_several_files_without_a_header(tmp_path, capsys):
    lines = [[f"{x!r},{y!r}\n" for x, y in part.tolist()] for part in PARTS]
    paths = [tmp_path / f"run-{k}.csv" for k in (1, 2, 3)]
    for path, part in zip(paths, lines, strict=True):
        path.write_text("".join(part))
    succeed(*paths, "-o", tmp_path / "out.csv", "--size", N)
    expected = [f"{k},{line}" for k, part in enumerate(lines, 1) for line in part]
    assert (tmp_path / "out.csv").read_text() == "".join(expected)
    assert "\nno header: columns are named by their places, 0 to 1\n" in capsys.readouterr().out
    np.testing.assert_array_equal(np.concatenate(read(paths)[1]), POINTS)


def test_what_is_skipped_is_counted_in_all_files(tmp_path, capsys):
    top = "# save_warmup = 1\n" + HEAD + "9,9,w\n8,8,w\n# Adaptation terminated\n"
    paths = write(tmp_path, top)
    with paths[2].open("a") as stream:
        stream.write(f"\n{HEAD}1,2,p")
    succeed(*paths, "-o", tmp_path / "out.csv", "--size", N + 1)
    said = capsys.readouterr().out
    assert "\nwarm-up rows left out: 6\nrepeated headers left out: 1\n" in said
    np.testing.assert_array_equal(
        np.concatenate(read(paths)[1]), np.concatenate([POINTS, [[1, 2]]])
    )


def test_a_constant_of_one_file_is_none_of_all(tmp_path):
    paths = write(tmp_path, f"k,{HEAD}", "{},")
    columns, points, source = read(paths)
    assert columns == ["k", "x", "y"]
    assert not source.left_out
    np.testing.assert_array_equal(points[0][:, 0], np.repeat([1, 2, 3], [len(p) for p in PARTS]))
    columns, points, source = read(paths[:1])
    assert (columns, source.left_out) == (["x", "y"], {"k": "constant"})


def test_a_constant_of_the_first_chunk_stays(tmp_path):
    (tmp_path / "in.csv").write_text("k,x\n1,2\n1,3\n1,4\n2,5\n")
    for limit, expected in ((2, ["k", "x"]), (3, ["k", "x"]), (4, ["k", "x"])):
        assert read([tmp_path / "in.csv"], limit=limit)[0] == expected
    (tmp_path / "in.csv").write_text("k,x\n1,2\n1,3\n1,4\n1,5\n")
    assert read([tmp_path / "in.csv"], limit=4)[0] == ["x"]
    assert read([tmp_path / "in.csv"], limit=3)[0] == ["k", "x"]


OTHER = {
    "a column less": ("y,name\n1,p\n", "b.csv has no column 'x', which {a} has"),
    "a column more": ("x,z,y,name\n1,2,3,p\n", "{a} has no column 'z', which {b} has"),
    "another name": ("x,Y,name\n1,2,p\n", "b.csv has no column 'y', which {a} has"),
    "another order": ("y,x,name\n1,2,p\n", "column 1 is 'y' here and 'x' there"),
    "no header": ("1,2,3\n", "b.csv has no column 'x', which {a} has"),
}


@pytest.mark.parametrize("case", OTHER)
@pytest.mark.parametrize("options", [(), ("--columns", "x,y")])
def test_files_of_other_columns_are_named(case, options, tmp_path, capsys):
    text, message = OTHER[case]
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    a.write_text(TABLE)
    b.write_text(text)
    assert run(a, b, "-o", tmp_path / "out.csv", "--size", 2, *options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"thinformer thin: {b}: takes the columns of {a}; ")
    assert message.format(a=a, b=b) in said
    assert not (tmp_path / "out.csv").exists()


def test_errors_name_the_file_and_its_line(tmp_path, capsys):
    paths = write(tmp_path)
    with paths[1].open("a") as stream:
        stream.write("\n1,b,p\n")
    assert run(*paths, "-o", tmp_path / "out.csv", "--size", 2) == 2
    assert f"thin: {paths[1]}: line 62, column 'y' holds 'b'" in capsys.readouterr().err
    assert run(*paths, "-o", paths[2], "--size", 2) == 2
    assert f"-o {paths[2]} is the file of IN too" in capsys.readouterr().err
    write(tmp_path)
    assert run(*paths, "-o", tmp_path / "out.csv", "--size", N + 1) == 2
    message = f"{paths[0]} and 2 more: --size 301 is more than its 300 rows"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("limit", [50, 1000])
def test_several_files_of_parquet(limit, small, tmp_path):
    table = parquet(tmp_path / "whole.parquet")
    cuts = [0, 120, 180, N]
    paths = [tmp_path / f"run-{k}.parquet" for k in (1, 2, 3)]
    for k, path in enumerate(paths):
        part = table.slice(cuts[k], cuts[k + 1] - cuts[k])
        pq.write_table(part.replace_schema_metadata({"made": f"in {k}"}), path)
    succeed(*paths, "-o", tmp_path / "out.parquet", "--size", 30, "--chunk-rows", limit,
            "--row-numbers", "--columns", "x,y")  # fmt: skip
    out = pq.read_table(tmp_path / "out.parquet")
    assert out.column_names == ["row", "chain", *table.column_names]
    kept = out["row"].to_numpy()
    assert out.drop_columns(["row", "chain"]).equals(table.take(kept))
    assert out.schema.metadata[b"made"] == b"in 0"
    np.testing.assert_array_equal(out["chain"], np.repeat([1, 2, 3], np.diff(cuts))[kept])


def test_parquet_of_other_types_is_named(tmp_path, capsys):
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, values in zip(paths, ([1.0, 2.0], [1, 2]), strict=True):
        pq.write_table(pa.table({"x": values}), path)
    assert run(*paths, "-o", tmp_path / "out.parquet", "--size", 2) == 2
    message = "column 1 ('x') is of 'int64' here and of 'double' there"
    assert message in capsys.readouterr().err


UNPACK = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress,
          ".zst": lambda data: pa.input_stream(pa.BufferReader(data), "zstd").read()}  # fmt: skip
PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
        ".zst": lambda data: pa.compress(data, "zstd", asbytes=True)}  # fmt: skip


@pytest.mark.parametrize("kind", UNPACK)
@pytest.mark.parametrize("inner", [".csv", ".tsv"])
def test_compressed_text(kind, inner, tmp_path):
    text = TABLE if inner == ".csv" else TABLE.replace(",", "\t")
    source, plain = tmp_path / f"in{inner}{kind.upper()}", tmp_path / f"in{inner}"
    source.write_bytes(PACK[kind](text.encode()))
    plain.write_text(text)
    packed, unpacked = tmp_path / f"out{inner}{kind}", tmp_path / f"out{inner}"
    for given, out in ((source, packed), (source, unpacked), (plain, packed)):
        succeed(given, "-o", out, "--size", 20)
        data = out.read_bytes()
        assert (UNPACK[kind](data) if out == packed else data) == text.encode()
    assert sorted(tmp_path.iterdir()) == sorted([source, plain, packed, unpacked])


def test_compressed_rows_are_the_same_bytes(tmp_path):
    (tmp_path / "in.csv").write_text(TABLE)
    for name in ("a.csv.gz", "b.csv.gz"):
        succeed(tmp_path / "in.csv", "-o", tmp_path / name, "--size", 5, "--seed", 1)
    assert (tmp_path / "a.csv.gz").read_bytes() == (tmp_path / "b.csv.gz").read_bytes()


def test_zst_needs_pyarrow(tmp_path, capsys, monkeypatch):
    (tmp_path / "in.csv.zst").write_bytes(PACK[".zst"](TABLE.encode()))
    (tmp_path / "in.csv").write_text("no header, but an error of its own")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for source, out in (("in.csv.zst", "out.csv"), ("in.csv", "out.csv.zst")):
        assert run(tmp_path / source, "-o", tmp_path / out, "--size", 5) == 2
        message = ".zst files need pyarrow: pip install pyarrow"
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("limit", [40, 1000])
def test_a_folder_of_parquet(limit, small, tmp_path, capsys):
    table = pa.table({
        "x": POINTS[:, 0], "y": POINTS[:, 1],
        "chain": pa.array(np.arange(N) // 150, pa.int32()),
        "dose": pa.array(np.arange(N) // 50 % 3, pa.int32()),
    })  # fmt: skip
    pq.write_to_dataset(table, tmp_path / "runs", partition_cols=["chain", "dose"])
    table = table.select(["x", "y", "chain", "dose"]).sort_by([
        ("chain", "ascending"), ("dose", "ascending")])  # fmt: skip
    for out, more in (("all", ("--size", N)), ("few", ("--size", 30, "--row-numbers"))):
        succeed(tmp_path / "runs", "-o", tmp_path / f"{out}.parquet", "--chunk-rows", limit, *more)
    said = capsys.readouterr().out
    assert "columns x, y, dose, each divided by its robust standard deviation\n" in said
    assert "\nleft out of the distance: chain (of a sampler)" in said
    assert pq.read_table(tmp_path / "all.parquet").equals(table)
    few = pq.read_table(tmp_path / "few.parquet")
    assert few.drop_columns("row").equals(table.take(few["row"].to_numpy()))
    columns, points, _ = read([tmp_path / "runs"], limit=limit)
    assert columns == ["x", "y", "dose"]
    assert [len(p) for p in points] == [limit] * (N // limit) + [N % limit] * (N % limit > 0)
    expected = np.column_stack([table[c] for c in columns])
    np.testing.assert_array_equal(np.concatenate(points), expected)


def test_a_folder_without_parquet_is_told(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "-o", tmp_path / "out.parquet", "--size", 2) == 2
    message = "empty: cannot be read as Parquet: the folder has no files"
    assert message in capsys.readouterr().err
    (tmp_path / "empty" / "a.csv").write_text(TABLE)
    assert run(tmp_path / "empty", "-o", tmp_path / "out.parquet", "--size", 2) == 2
    assert "empty: cannot be read as Parquet: " in capsys.readouterr().err
    (tmp_path / "folder.csv").mkdir()
    assert run(tmp_path / "folder.csv", "-o", tmp_path / "out.csv", "--size", 2) == 2
    assert "folder.csv: is a folder; IN takes a file" in capsys.readouterr().err


EMBEDDED = {"id": range(N), "text": [f"t{i}" for i in range(N)], "v": POINTS.tolist()}


@pytest.mark.parametrize("kind", ["list", "fixed", "large"])
def test_a_list_has_a_remedy_and_an_id_is_no_data(kind, tmp_path, capsys):
    types = {"list": pa.list_(pa.float64()), "fixed": pa.list_(pa.float64(), 2),
             "large": pa.large_list(pa.float64())}  # fmt: skip
    table = pa.table({**EMBEDDED, "v": pa.array(EMBEDDED["v"], types[kind])})
    pq.write_table(table, tmp_path / "in.parquet")
    arguments = (tmp_path / "in.parquet", "-o", tmp_path / "out.parquet", "--size", 9)
    remedy = ("; 'v' holds lists: make a column of each place first, as in "
              "pandas.DataFrame(frame[name].tolist())")  # fmt: skip
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert f"'id' are of a sampler or an index; --columns takes any{remedy}" in said
    assert run(*arguments, "--columns", "v") == 2
    assert f"--columns and --weights take numbers{remedy}" in capsys.readouterr().err
    pd = pytest.importorskip("pandas")  # the remedy
    frame = pd.read_parquet(tmp_path / "in.parquet")
    wide = pd.DataFrame(frame["v"].tolist()).add_prefix("v")
    frame.drop(columns="v").join(wide).to_parquet(tmp_path / "in.parquet")
    succeed(*arguments)
    said = capsys.readouterr().out
    assert (
        "columns v0, v1 (not used: text), each divided by its robust standard deviation\n" in said
    )
    assert "\nleft out of the distance: id (an index)" in said


@pytest.mark.parametrize("values", [range(N), range(5, 3 * N + 5, 3), np.arange(N) / 1.0])
def test_an_index_of_parquet_and_of_arrays(values, tmp_path):
    columns = {"Id": np.array(values), "x": POINTS[:, 0], "lp__": POINTS[:, 1]}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    np.savez(tmp_path / "in.npz", **columns)
    for name in ("in.parquet", "in.npz"):
        used, points, source = read([tmp_path / name])
        assert used == ["x"]
        assert source.left_out == {"lp__": "of a sampler", "Id": "an index"}
        np.testing.assert_array_equal(points[0], POINTS[:, :1])
        used, _, source = read([tmp_path / name], ["x", "lp__"])
        assert (used, source.left_out, source.unused) == (["x", "lp__"], {}, ["Id"])
        assert read([tmp_path / name], ["Id"])[0] == ["Id"]


def test_columns_twice_of_parquet_by_another_name(tmp_path):
    table = pa.Table.from_arrays([pa.array(POINTS[:, j]) for j in (0, 0, 1)], ["a", "a", "x"])
    pq.write_table(table, tmp_path / "in.parquet")
    succeed(tmp_path / "in.parquet", "-o", tmp_path / "out.parquet", "--size", N, "--columns", "x")
    assert pq.ParquetFile(tmp_path / "out.parquet").read().equals(table)


def test_constant_dimensions_of_arrays(tmp_path):
    factor = np.stack([POINTS[:, 0], np.zeros(N), np.ones(N)], axis=1)
    np.savez(tmp_path / "in.npz", L=factor, k=np.full(N, 2), x=POINTS[:, 1])
    used, points, source = read([tmp_path / "in.npz"])
    assert used == ["L", "x"]
    assert source.labels == ["L[0]", "x"]
    assert source.left_out == {"L[1]": "constant", "L[2]": "constant", "k": "constant"}
    assert source.unused == ["k"]
    np.testing.assert_array_equal(points[0], POINTS)
    np.save(tmp_path / "in.npy", factor[:, ::-1])
    used, points, source = read([tmp_path / "in.npy"])
    assert (used, source.left_out) == (["2"], {"0": "constant", "1": "constant"})
    np.testing.assert_array_equal(points[0], POINTS[:, :1])


@pytest.mark.parametrize("first", [True, False])
def test_arrays_of_other_lengths_are_copied(first, tmp_path, capsys):
    other = {"grid": np.arange(7.0), "version": np.array(3), "empty": np.zeros((0, 2))}
    arrays = {"x": POINTS, "w": np.arange(N)}
    np.savez(tmp_path / "in.npz", **(other | arrays if first else arrays | other))
    arguments = (tmp_path / "in.npz", "-o", tmp_path / "out.npz", "--size", 20)
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert "takes arrays of one length; " in said
    assert "where --columns says what to thin, arrays of other lengths are copied as they" in said
    succeed(*arguments, "--columns", "x", "--weights", "w", "--seed", 0, "--row-numbers")
    said = capsys.readouterr().out
    assert "\narrays copied as they are, not thinned: 'grid', 'version', 'empty'\n" in said
    with np.load(tmp_path / "out.npz") as out:
        assert set(out.files) == {"row", *arrays, *other}
        for name, array in other.items():
            np.testing.assert_array_equal(out[name], array)
        for name, array in arrays.items():
            np.testing.assert_array_equal(out[name], array[out["row"]])
    for options in (("--columns", "x,grid"), ("--columns", "x", "--weights", "grid")):
        assert run(*arguments, *options) == 2
        assert "one length; 'x' has 300, 'grid' has 7\n" in capsys.readouterr().err
    assert run(*arguments, "--columns", "version") == 2
    assert "takes arrays of one length; 'version' is a single value" in capsys.readouterr().err
