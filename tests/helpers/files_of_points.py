"""Files of points, and `thinformer thin` on them."""

import subprocess
import sys

import numpy as np
import pytest

from thinformer.commands.main import main

N = 300
POINTS = np.random.default_rng(3).normal(size=(N, 2)) * [1, 5] + [[2, -1]]
RECORDS = [f'"p, {i}\nsecond ""line""",{x!r}, {y!r} ,é{i}\r\n'
           for i, (x, y) in enumerate(POINTS.tolist())]  # fmt: skip
HEADER = "name,x,y,note\r\n"
TABLE = "x,y,name\n" + "".join(f"{i},{i * i % 7}.5,p{i}\n" for i in range(20))


def changed(line, text):
    lines = TABLE.splitlines(keepends=True)
    lines[line - 1] = text + "\n"
    return "".join(lines)


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
    pa, pq = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
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
