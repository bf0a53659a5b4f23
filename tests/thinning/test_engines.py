"""What the page on many machines shows for Ray and Spark, run as it stands there."""

import re
import sys

import numpy as np
import pytest
from checkout import ROOT

from thinformer import coreset, median_distance, merge

PAGE = (ROOT / "docs" / "howto" / "many-machines.md").read_text()
POINTS = np.random.default_rng(0).normal(size=(30_000, 3))
COLUMNS = ["a", "b", "c"]


def shown(heading):
    """The code under a heading of the page."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return "".join(re.findall(r"^```py\n(.*?)^```$", section, re.M | re.S))


def run_page(heading, **names):
    """Run the code under a heading; return the rows that it chooses, and its names."""
    names |= {
        "coreset": coreset, "merge": merge, "columns": COLUMNS,
        "bandwidth": median_distance(POINTS[:1000], rng=0),
    }  # fmt: skip
    exec(compile(shown(heading), heading, "exec"), names)
    return names["rows"]


def expected(parts):
    """The rows of the same parts on this process."""
    bandwidth = median_distance(POINTS[:1000], rng=0)
    found = [coreset(part, 1000, part=i, bandwidth=bandwidth) for i, part in enumerate(parts)]
    return merge(found).choose(parts=len(parts))


def check(rows, parts):
    for found, wanted in zip(rows, expected(parts), strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert len(rows.rows) == 1000


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray():
    ray = pytest.importorskip("ray")
    pandas = pytest.importorskip("pandas")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        parts = np.array_split(POINTS, 5)
        frames = [pandas.DataFrame(part, columns=COLUMNS) for part in parts]
        check(run_page("With Ray", dataset=ray.data.from_pandas(frames)), parts)
    finally:
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_spark(monkeypatch):
    sql = pytest.importorskip("pyspark.sql")
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)  # read when the workers start
    builder = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    spark = builder.getOrCreate()
    try:
        frame = spark.createDataFrame(pandas.DataFrame(POINTS, columns=COLUMNS)).repartition(3)
        blocks = frame.rdd.glom().collect()  # the rows of each partition
        parts = [np.array(block).reshape(-1, 3) for block in blocks]
        check(run_page("With Spark", frame=frame), parts)
    finally:
        spark.stop()
