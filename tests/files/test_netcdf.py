"""NetCDF files of samplers: what counts, which rows are draws, and that ArviZ reads the result."""

import json

import numpy as np
import pytest
from files_of_points import POINTS, N, run, succeed

from thinformer import thin

xr = pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")

CHAINS = 3
DRAWS = N // CHAINS


def posterior():
    """Three chains of draws of a number and of a vector."""
    return xr.Dataset(
        {
            "mu": (("chain", "draw"), POINTS[:, 0].reshape(CHAINS, DRAWS)),
            "theta": (("chain", "draw", "school"), POINTS.reshape(CHAINS, DRAWS, -1)),
        },
        {"chain": [1, 2, 3], "draw": 10 * np.arange(DRAWS)},
    )


def save(groups, path):
    xr.DataTree.from_dict(groups).to_netcdf(path, engine="h5netcdf")


def thinned(tmp_path, *arguments, size=20):
    """Thin in.nc; return the tree that was written, and the report."""
    succeed(tmp_path / "in.nc", "-o", tmp_path / "out.nc", "--size", size, "--seed", 0,
            "--report", tmp_path / "r.json", *arguments)  # fmt: skip
    with xr.open_datatree(tmp_path / "out.nc", engine="h5netcdf") as tree:
        return tree.load(), json.loads((tmp_path / "r.json").read_text())


def check_draws(group, rows, points=POINTS):
    """The group is one chain that holds the rows of the points, and says where they were."""
    np.testing.assert_array_equal(
        group["theta"].transpose("chain", "draw", ...), points[rows][None]
    )
    np.testing.assert_array_equal(group["chain"], [0])
    np.testing.assert_array_equal(group["draw"], np.arange(len(rows)))
    np.testing.assert_array_equal(group["source_chain"], 1 + np.asarray(rows) // DRAWS)
    np.testing.assert_array_equal(group["source_draw"], 10 * (np.asarray(rows) % DRAWS))


ORDERS = {
    "chains first": lambda dataset: dataset,
    "chains last": lambda dataset: dataset.transpose("school", "draw", "chain"),
    "stacked": lambda dataset: dataset.stack(sample=("chain", "draw")).reset_index("sample"),
    "stacked, draws first": lambda dataset: (
        dataset.stack(sample=("chain", "draw")).reset_index("sample").transpose("sample", ...)
    ),
    "stacked under another name": lambda dataset: dataset.stack(s=("chain", "draw")).reset_index(
        "s"
    ),
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_rows_are_draws_in_any_order_of_dimensions(order, tmp_path):
    """A vector alone too: its elements are no rows."""
    own = order(posterior()[["theta"]])
    save({"posterior": own, "log_likelihood": own, "observed_data": xr.Dataset({"y": 1})},
         tmp_path / "in.nc")  # fmt: skip
    tree, report = thinned(tmp_path, "--row-numbers")
    rows = report["row_numbers"]
    np.testing.assert_array_equal(rows, thin(own, 20, standardize="scale", rng=0))
    np.testing.assert_array_equal(rows, thin(POINTS, 20, standardize="scale", rng=0))
    for name in ("posterior", "log_likelihood"):
        check_draws(tree[name], rows)
        np.testing.assert_array_equal(tree[name]["row"], rows)
        assert tree[name]["row"].dims == ("draw",)
    assert report["notes"] == ["groups copied as they are, not thinned: 'observed_data'"]


def test_arviz_reads_what_was_written(tmp_path):
    import arviz_base as base
    import arviz_stats as stats

    save({"posterior": posterior(), "sample_stats": posterior()[["mu"]]}, tmp_path / "in.nc")
    tree, report = thinned(tmp_path)
    np.testing.assert_array_equal(base.extract(tree)["mu"], POINTS[report["row_numbers"], 0])
    assert base.extract(tree, combined=False).sizes == {"chain": 1, "draw": 20, "school": 2}
    assert tree["sample_stats"].sizes == {"chain": 1, "draw": 20}
    mean = stats.summary(tree, var_names=["mu"], round_to="none")["mean"].iloc[0]
    np.testing.assert_allclose(float(mean), POINTS[report["row_numbers"], 0].mean())


def test_draws_of_the_prior_are_not_those_of_the_posterior(tmp_path):
    """Also where their chains and draws have the same numbers."""
    groups = dict.fromkeys(
        ("posterior", "log_prior", "prior", "prior_predictive", "sample_stats_prior",
         "warmup_posterior", "warmup_sample_stats"), posterior())  # fmt: skip
    save(groups, tmp_path / "in.nc")
    tree, report = thinned(tmp_path)
    for name in groups:
        if name in ("posterior", "log_prior"):
            check_draws(tree[name], report["row_numbers"])
        else:
            assert tree[name].dataset.identical(posterior())


HOURS = np.arange(N) * np.timedelta64(1, "h")
TIMES = {
    "durations": (HOURS, "timedelta64"),
    "nanoseconds": (HOURS.astype("m8[ns]") + np.timedelta64(1, "ns"), "timedelta64[ns]"),
    "dates": (np.datetime64("2020-01-01", "ns") + HOURS, "times (hours since 2020-01-01"),
}


@pytest.mark.parametrize(("values", "kind"), TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("dims", [("chain", "draw"), ("obs",)])
def test_dates_and_durations_do_not_count(dims, values, kind, tmp_path, capsys):
    """They are written as they were; in nanoseconds they would outweigh all else."""
    sizes = (CHAINS, DRAWS) if len(dims) == 2 else (N,)
    data = xr.Dataset(
        {"x": (dims, POINTS[:, 0].reshape(sizes)), "t": (dims, values.reshape(sizes))}
    )
    data.to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    tree, report = thinned(tmp_path)
    rows = report["row_numbers"]
    np.testing.assert_array_equal(rows, thin(POINTS[:, :1], 20, standardize="scale", rng=0))
    assert report["columns"] == ["x"]
    assert report["notes"] == ["dates and durations are no numbers and do not count: 't'"]
    np.testing.assert_array_equal(tree["t"].to_numpy().ravel(), values[rows])
    for option in (["--columns", "t"], ["--columns", "x", "--weights", "t"]):
        assert run(tmp_path / "in.nc", "-o", tmp_path / "o.nc", "--size", 2, *option) == 2
        message = f"column 't' is of {kind}"
        assert message in capsys.readouterr().err
    data[["t"]].to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    assert run(tmp_path / "in.nc", "-o", tmp_path / "o.nc", "--size", 2) == 2
    assert "has no column of numbers" in capsys.readouterr().err


def test_numbers_with_units_count(tmp_path):
    """As xarray opens them: a number of seconds is a number."""
    data = xr.Dataset({"x": ("obs", POINTS[:, 0], {"units": "seconds"}), "n": ("obs", range(N))})
    data["n"].attrs["units"] = "days"
    data.to_netcdf(tmp_path / "in.nc", engine="h5netcdf")
    tree, report = thinned(tmp_path)
    assert report["columns"] == ["x", "n"]
    assert tree["x"].attrs == {"units": "seconds"}


@pytest.mark.parametrize("version", ["NETCDF3_CLASSIC", "NETCDF3_64BIT"])
def test_netcdf_3(version, tmp_path):
    """Its numbers are big-endian; it is written as NetCDF 4, with a note."""
    data = posterior().assign(f=(("chain", "draw"), np.arange(N, dtype="f4").reshape(CHAINS, -1)))
    data.to_netcdf(tmp_path / "in.nc", engine="scipy", format=version)
    tree, report = thinned(tmp_path)
    rows = report["row_numbers"]
    columns = [POINTS[:, 0], POINTS, np.arange(N)]
    np.testing.assert_array_equal(
        rows, thin(np.column_stack(columns), 20, standardize="scale", rng=0)
    )
    check_draws(tree, rows)
    np.testing.assert_array_equal(tree["f"], np.asarray(rows, "f4")[None])
    assert report["notes"] == ["IN is of NetCDF 3; OUT is of NetCDF 4"]


BROKEN = {
    "NetCDF 3, truncated": (b"CDF\x01" + bytes(3), "in.nc: cannot be read as NetCDF 3: "),
    "NetCDF 3, 64-bit data": (b"CDF\x05" + bytes(40), "convert it: nccopy -k nc4 IN.nc OUT.nc"),
    "of no kind": (b"CD", "in.nc: cannot be read as NetCDF 4: "),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_files(content, message, tmp_path, capsys):
    (tmp_path / "in.nc").write_bytes(content)
    assert run(tmp_path / "in.nc", "-o", tmp_path / "out.nc", "--size", 2) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.nc"]
