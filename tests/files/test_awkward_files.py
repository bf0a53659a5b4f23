"""Awkward CSV: which columns and rows are used, what is written, and what the notes say."""

import json
from typing import NamedTuple

import numpy as np
import pytest
from files_of_points import run, succeed

from thinformer.files import csv as csv_files
from thinformer.files.several import open_sources
from thinformer.files.source import Request

N = 12
XY = np.round(np.random.default_rng(5).normal(size=(N, 2)), 6)
WARM = np.round(100 + np.random.default_rng(6).normal(size=(4, 2)), 6)


def table(header, row="{x},{y}", points=XY, end="\n"):
    """A header, and a row for each point; {i} is its number."""
    rows = [row.format(i=i, j=i + 1, x=x, y=y) + end for i, (x, y) in enumerate(points.tolist())]
    return header + end * bool(header) + "".join(rows)


def stan(settings, warm=WARM, rows=XY, end="\n", adapted=True):
    """A file as CmdStan writes it."""
    config = ["# stan_version_major = 2", "# method = sample (Default)", "#   sample",
              *(f"#     {k} = {value}" for k, value in settings.items()), "# id = 1"]  # fmt: skip
    after = ["# Adaptation terminated", "# Step size = 0.8",
             "# Diagonal elements of inverse mass matrix:", "# 0.96, 1.2, 1, 1"]  # fmt: skip
    last = ["# ", "#  Elapsed Time: 0.005 seconds (Warm-up)", "#        0.01 seconds (Total)", "# "]
    before, below = (
        [f"{start}.{i},{x},{y}" for i, (x, y) in enumerate(points.tolist())]
        for start, points in (("-7.1,0", warm), ("-8.1,0", rows))
    )
    lines = [*config, "lp__,accept_stat__,x,y", *before, *(after if adapted else []), *below, *last]
    return "".join(line + end for line in lines)


STAN = table("lp__,accept_stat__,x,y", "-8.1,0.{i},{x},{y}")
SAMPLER = "left out of the distance: {} (of a sampler); --columns takes any"
OF_STAN = SAMPLER.format("lp__, accept_stat__")
INDEX = "left out of the distance: {} (an index); --columns takes any"
NO_HEADER = "no header: columns are named by their places, 0 to 1"
WHOLE = np.round(50 * XY)
WHOLE_ROWS = "".join(f"{int(x)},{int(y)}\n" for x, y in WHOLE.tolist())


class Case(NamedTuple):
    """A file; the options; columns, points and text that are expected, and notes in order."""

    content: str
    options: tuple = ()
    columns: tuple = ("x", "y")
    points: np.ndarray = XY
    out: str | None = None  # None where all is written as it stands
    notes: tuple = ()
    comment: str | None = None
    name: str = "in.csv"


CASES = {
    # columns of a sampler
    "posterior of R": Case(
        table(".chain,.iteration,.draw,x,y", "1,{i},{i},{x},{y}"),
        notes=(SAMPLER.format(".chain, .iteration, .draw"),),
    ),
    "names of the draws": Case(
        table("x,chain,iteration,draw,y", "{x},1,{i},{i},{y}"),
        notes=(SAMPLER.format("chain, iteration, draw"),),
    ),
    "capitals": Case(
        table("Chain,ITERATION,Draw,x,y", "1,{i},{i},{x},{y}"),
        notes=(SAMPLER.format("Chain, ITERATION, Draw"),),
    ),
    "underscores": Case(
        table("_chain,chain__,iter__,x,y,lp__", "1,1,{i},{x},{y},-{i}.5"),
        notes=(SAMPLER.format("_chain, chain__, iter__, lp__"),),
    ),
    "spaces": Case(
        table(" chain , lp__ ,x,y", "1,-{i}.5,{x},{y}"),
        notes=("left out of the distance:  chain ,  lp__  (of a sampler)",),
    ),
    "names that only look so": Case(
        table("chains,drawn,lp_", "{x},{y},{i}"),
        columns=("chains", "drawn", "lp_"), points=np.column_stack([XY, np.arange(N)]),
    ),
    "a sampler's column by name": Case(
        table("chain,lp__,x,y", "1,{x},{x},{y}"), ("--columns", "lp__,y"), ("lp__", "y"),
    ),
    "weights of a sampler": Case(
        table("lp__,x,y", "{j},{x},{y}"), ("--weights", "lp__"),
    ),
    # an index
    "index of pandas": Case(table(",x,y", "{i},{x},{y}"), notes=(INDEX.format("''"),)),
    "index of R": Case(table('"","x","y"', '"{j}",{x},{y}'), notes=(INDEX.format("''"),)),
    "index read as a column": Case(
        table("Unnamed: 0,x,y", "{i},{x},{y}"), notes=(INDEX.format("Unnamed: 0"),)
    ),
    "id": Case(table("x,y,ID", "{x},{y},{j}7"), notes=(INDEX.format("ID"),)),
    "index": Case(table("index,x,y", "{i}.0,{x},{y}"), notes=(INDEX.format("index"),)),
    "row": Case(table("row,x,y", "{j},{x},{y}"), notes=(INDEX.format("row"),)),
    "id by name": Case(
        table("id,x,y", "{i},{x},{y}"), ("--columns", "id,x"), ("id", "x"),
        np.column_stack([np.arange(N), XY[:, 0]]),
    ),
    "an index that does not count": Case(
        table("x,index", "{y},{x}"), columns=("x", "index"), points=XY[:, ::-1],
    ),
    "both, and a constant": Case(
        table("id,chain,x,k,y", "{i},2,{x},3.5,{y}"),
        notes=("left out of the distance: chain (of a sampler); id (an index); k (constant); "
               "--columns takes any",),
    ),
    "constant": Case(
        table("x,k,y,l", "{x},1,{y},-0"),
        notes=("left out of the distance: k, l (constant); --columns takes any",),
    ),
    "constant by name": Case(
        table("x,k", "{x},1"), ("--columns", "x,k"), ("x", "k"),
        np.column_stack([XY[:, 0], np.ones(N)]),
    ),
    # comments
    "savetxt": Case(table("# x,y")),
    "savetxt, --comment": Case(table("# x,y"), ("--comment", "#"), comment="#"),
    "savetxt, title": Case("# of 2020, by a, b\n#\n" + table("# x,y"), out=table("# x,y")),
    "savetxt, units": Case(table("# x,y\n# in metres"), out=table("# x,y")),
    "OpenMM": Case(table('#"x","y"')),
    "percent": Case(table("% x,y"), ("--comment", "%"), comment="%"),
    "mark": Case("\ufeff# a\n" + table("x,y"), out="\ufeff" + table("x,y")),
    "mark and names": Case("\ufeff" + table("# x,y")),
    "names with the mark of comments": Case(
        table("#,x,y", "{i},{x},{y}"), columns=("#", "x", "y"),
        points=np.column_stack([np.arange(N), XY]),
    ),
    "comments of another number": Case(
        "# made by a\n" + table("x,y"), out=table("x,y"),
    ),
    "comments and no header": Case(
        "# made by a\n" + table(""), columns=("0", "1"), out=table(""), notes=(NO_HEADER,)
    ),
    "blank lines first": Case("\n\n# a\n\n" + table("x,y"), out=table("x,y")),
    "text first": Case(
        table("# a\nname,x,y", "p{i},{x},{y}") + "# 3 rows\n", out=table("name,x,y", "p{i},{x},{y}")
    ),
    # CmdStan
    "CmdStan": Case(
        stan({"save_warmup": "0 (Default)"}, WARM[:0]), out=STAN,
        notes=(OF_STAN,),
    ),
    "CmdStan, --comment": Case(
        stan({"save_warmup": "0 (Default)"}, WARM[:0]), ("--comment", "#"), out=STAN, comment="#",
        notes=(OF_STAN,),
    ),
    "CmdStan, warm-up": Case(
        stan({"num_warmup": "4", "save_warmup": "1"}), out=STAN,
        notes=(OF_STAN, "warm-up rows left out: 4"),
    ),
    "CmdStan, warm-up, --comment": Case(
        stan({"save_warmup": "1"}), ("--comment", "#"), out=STAN, comment="#",
        notes=("warm-up rows left out: 4",),
    ),
    "CmdStan, warm-up, true": Case(
        stan({"save_warmup": "true", "engaged": "true (Default)"}), out=STAN,
        notes=("warm-up rows left out: 4",),
    ),
    "CmdStan, warm-up, line ends": Case(
        stan({"save_warmup": "1"}, end="\r\n"), out=STAN.replace("\n", "\r\n"),
        notes=("warm-up rows left out: 4",),
    ),
    "CmdStan, fixed": Case(
        stan({"save_warmup": "1", "algorithm": "fixed_param"}, WARM[:0], adapted=False), out=STAN,
        notes=(OF_STAN,),
    ),
    "CmdStan, not adapted": Case(
        stan({"save_warmup": "1", "engaged": "0"}, WARM[:0], adapted=False), out=STAN,
        notes=(OF_STAN,),
    ),
    "CmdStan, not adapted, warm-up": Case(
        stan({"num_warmup": "4", "save_warmup": "1", "engaged": "0"}, adapted=False), out=STAN,
        notes=(OF_STAN, "warm-up rows left out: 4"),
    ),
    "CmdStan, not adapted, warm-up, thinned": Case(  # every third of ten draws, from the first on
        stan({"num_warmup": "10", "save_warmup": "true", "thin": "3 (Default)", "engaged": "false"},
             adapted=False), out=STAN, notes=(OF_STAN, "warm-up rows left out: 4"),
    ),
    "CmdStan, not adapted, quoted": Case(
        stan({"num_warmup": "4", "save_warmup": "1", "engaged": "0"}, adapted=False)
        .replace("-7.1", '"-7.1"'), out=STAN, notes=(OF_STAN, "warm-up rows left out: 4"),
    ),
    "CmdStan, not adapted, joined": Case(
        2 * stan({"num_warmup": "4", "save_warmup": "1", "engaged": "0"}, adapted=False),
        points=np.concatenate([XY, XY]), out=STAN + STAN[STAN.index("\n") + 1 :],
        notes=(OF_STAN, "warm-up rows left out: 8", "repeated headers left out: 1"),
    ),
    "CmdStan, not adapted, of unknown length": Case(
        stan({"save_warmup": "1", "engaged": "0"}, adapted=False),
        points=np.concatenate([WARM, XY]),
        out=STAN.replace("\n", "\n" + table("", "-7.1,0.{i},{x},{y}", WARM), 1),
        notes=(OF_STAN, "warm-up rows may be kept: save_warmup = 1 without adaptation, and no "
               "comment says num_warmup; remove these rows from IN"),
    ),
    "CmdStan, no warm-up": Case(
        stan({"num_warmup": "0", "save_warmup": "1"}, WARM[:0], adapted=False), out=STAN,
        notes=(OF_STAN,),
    ),
    "CmdStan, joined": Case(
        stan({"save_warmup": "1"}, rows=XY[:5]) + stan({"save_warmup": "1"}, rows=XY[5:]),
        out=table("lp__,accept_stat__,x,y", "-8.1,0.{i},{x},{y}", XY[:5])
        + table("", "-8.1,0.{i},{x},{y}", XY[5:]),
        notes=("warm-up rows left out: 8", "repeated headers left out: 1"),
    ),
    # headers
    "no header": Case(table(""), columns=("0", "1"), notes=(NO_HEADER,)),
    "no header, whole numbers": Case(
        WHOLE_ROWS, columns=("0", "1"), points=WHOLE, notes=(NO_HEADER,)
    ),
    "no header, by place": Case(
        WHOLE_ROWS, ("--columns", "1"), ("1",), WHOLE[:, 1:], notes=(NO_HEADER,)
    ),
    "no header, years": Case(
        "1990,1991\n" + WHOLE_ROWS, columns=("0", "1"),
        points=np.concatenate([[[1990, 1991]], WHOLE]), notes=(NO_HEADER,),
    ),
    "no header, counts": Case(
        "".join(f"{i}\n" for i in range(N)), columns=("0",), points=np.arange(N)[:, None],
        notes=("no header: columns are named by their places, 0 to 0",),
    ),
    "numbers as names": Case(table("0,1"), columns=("0", "1")),
    "a number as a name": Case(table("0", "{x}"), columns=("0",), points=XY[:, :1]),
    "two columns without names": Case(
        table(",,x,y", "{i},a,{x},{y}"), ("--columns", "x,y")
    ),
    "two columns without names, by default": Case(
        table(",x,y,", "{i},{x},{y},"), notes=(INDEX.format("''"),)
    ),
    "a name twice elsewhere": Case(table("a,a,x,y", "1,2,{x},{y}"), ("--columns", "x,y")),
    "text twice": Case(table("a,a,x,y", "p,q,{x},{y}")),
    "joined": Case(
        table("x,y", points=XY[:5]) + table("x,y", points=XY[5:9]) + table("x,y", points=XY[9:]),
        out=table("x,y"), notes=("repeated headers left out: 2",),
    ),
    "joined, other line ends": Case(
        table("x,y", points=XY[:5]) + "\ufeff" + table("x,y", points=XY[5:], end="\r\n"),
        out=table("x,y", points=XY[:5]) + table("", points=XY[5:], end="\r\n"),
        notes=("repeated headers left out: 1",),
    ),
    "joined, quoted": Case(
        table('"x","y"', points=XY[:6]) + table('"x","y"', points=XY[6:]),
        out=table('"x","y"'), notes=("repeated headers left out: 1",),
    ),
    "joined, savetxt": Case(
        table("# x,y", points=XY[:5]) + table("# x,y", points=XY[5:]), out=table("# x,y"),
        notes=("repeated headers left out: 1",),
    ),
    "a row like a header of numbers": Case(
        table("0,1") + "0,1\n", columns=("0", "1"), points=np.concatenate([XY, [[0, 1]]])
    ),
    "space": Case(
        table("# x y", "{x} {y}"), ("--delimiter", " "),
    ),
    "tabs": Case(table("# x\ty", "{x}\t{y}"), name="in.tsv"),
}  # fmt: skip


def request(path, options, comment):
    """What a reader gets of the options."""
    given = dict(zip(options[::2], options[1::2], strict=True))
    columns = given.get("--columns")
    delimiter = "\t" if path.suffix == ".tsv" else given.get("--delimiter", ",")
    return Request(path, columns and columns.split(","), given.get("--weights"), 1000, False,
                   delimiter, comment)  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_columns_rows_notes_and_output(case, tmp_path, capsys):
    case = CASES[case]
    source = tmp_path / case.name
    source.write_bytes(case.content.encode())
    out = tmp_path / f"out{source.suffix}"
    n = len(case.points)
    succeed(source, "-o", out, "--size", n, "--bandwidth", 1, "--report", tmp_path / "r.json",
            *case.options)  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    assert tuple(report["columns"]) == case.columns
    assert report["rows_in"] == n
    assert out.read_bytes() == (case.content if case.out is None else case.out).encode()
    said = capsys.readouterr().out
    places = [said.find("\n" + note) for note in case.notes]
    assert -1 not in places
    assert places == sorted(places)
    if not case.notes:
        assert "left out" not in said
        assert not report["left_out"]
    assert set(report["left_out"]) <= set(report["unused"])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("# x,y", "# row,x,y"),
        ('#"x","y"', '#row,"x","y"'),
        ("\ufeff#  x,y", "\ufeff#  row,x,y"),
        ("", ""),
    ],
)
def test_row_numbers_stand_before_any_header(header, expected, tmp_path):
    (tmp_path / "in.csv").write_bytes(("# a\n" * ("\ufeff" not in header) + table(header)).encode())
    succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", N, "--row-numbers")
    assert (tmp_path / "out.csv").read_bytes() == table(expected, "{i},{x},{y}").encode()


@pytest.mark.parametrize(
    ("row", "options", "rows"),
    [("#p,3\n", ("--comment", "#"), ["p,1", "p,2"]), ('"#p",3\n', (), ["p,1", '"#p",3', "p,2"])],
)
def test_a_comment_that_may_be_a_row_has_two_remedies(row, options, rows, tmp_path):
    (tmp_path / "in.csv").write_text(f"# a\nt,x\np,1\n{row}p,2\n")
    succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", len(rows), *options)
    assert (tmp_path / "out.csv").read_text().splitlines() == ["t,x", *rows]


@pytest.mark.parametrize("cell", ["1,5", "-2,25", "1,5e-3", "1,234.5", "-12,345,678", "1.234,5"])
def test_what_pandas_converts_is_read(cell, tmp_path, capsys):
    """The remedy of the error about commas in numbers."""
    pd = pytest.importorskip("pandas")
    source = tmp_path / "in.csv"
    source.write_text(f"x;t\n{cell};a\n{cell.replace('5', '6')};b\n")
    arguments = (source, "-o", tmp_path / "out.csv", "--size", 2, "--bandwidth", 1)
    for options in ((), ("--columns", "x")):
        assert run(*arguments, "--delimiter", ";", *options) == 2
        said = capsys.readouterr().err
        assert f"line 2, column 'x' holds '{cell}'; numbers take a point before decimals" in said
    points = {"decimal": ",", "thousands": "."}
    commas = {"thousands": ","} if cell in ("1,234.5", "-12,345,678") else points
    pd.read_csv(source, sep=";", **commas).to_csv(source, index=False)
    succeed(*arguments)
    assert "columns x (not used: t)" in capsys.readouterr().out


@pytest.mark.parametrize("block", [2, 8192])
@pytest.mark.parametrize("case", CASES)
def test_points_are_exact(case, block, tmp_path, monkeypatch):
    monkeypatch.setattr(csv_files, "BLOCK", block)
    case = CASES[case]
    path = tmp_path / case.name
    path.write_bytes(case.content.encode())
    with open_sources([request(path, case.options, case.comment)], path.suffix) as source:
        (chunk,) = source.chunks
        assert tuple(source.columns) == case.columns
    np.testing.assert_array_equal(chunk.points, case.points)
    assert len(chunk.records) == len(case.points)
