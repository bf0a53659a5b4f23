"""``thinformer test``: what it reads, finds, prints and writes."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter

from thinformer import two_sample_test
from thinformer.commands.main import main
from thinformer.files import samples, two_sample
from thinformer.thinning.ess import of_draws
from thinformer.thinning.scales import deviations
from thinformer.thinning.witness import witness

RNG = np.random.default_rng(8)
X = RNG.normal(size=(120, 2)) * [1, 50]
Y = RNG.normal(size=(90, 2)) * [1, 50] + [0.5, 0]
OF_X = pd.DataFrame(X, columns=["a", "b"])
OF_Y = pd.DataFrame(Y, columns=["a", "b"])


@pytest.fixture
def files(tmp_path):
    """The two samples as CSV; the second has its columns in another order."""
    return written(tmp_path, OF_X, OF_Y[["b", "a"]])


def written(folder, *frames):
    paths = [folder / name for name in ("x.csv", "y.csv")]
    for path, frame in zip(paths, frames, strict=True):
        frame.to_csv(path, index=False)
    return paths


def run(*arguments):
    return main(["test", *map(str, arguments)])


def report_of(folder, *arguments):
    """Run the command with few permutations, and return its report."""
    path = folder / "report.json"
    assert run(*arguments, "--permutations", 99, "--seed", 3, "--report", path) == 0
    return json.loads(path.read_text())


def result_of(x=X, y=Y, standardize="scale", **options):
    return two_sample_test(x, y, standardize=standardize, permutations=99, rng=3, **options)


def assert_found(report, result):
    assert report["pvalue"] == result.pvalue
    assert report["statistic"] == result.statistic
    assert report["kernels"] == [each._asdict() for each in result.kernels]
    assert report["reject"] == result.reject


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ([], {}),
        (["--kernel", "laplace,energy"], {"kernel": ["laplace", "energy"]}),
        (["--bandwidth", "median"], {"bandwidth": "median"}),
        (["--bandwidth", "1.5"], {"bandwidth": 1.5, "standardize": False}),
        (["--bandwidth", "1,70"], {"bandwidth": [1.0, 70.0], "standardize": False}),
        (["--bandwidth", "1.5", "--standardize"], {"bandwidth": 1.5}),
        (["--no-standardize"], {"standardize": False}),
        (["--method", "landmarks", "--bins", "20"], {"method": "landmarks", "bins": 20}),
        (["--method", "compress"], {"method": "compress"}),
        (["--level", "0.5"], {"level": 0.5}),
    ],
)
def test_it_finds_what_the_function_finds(arguments, options, files, tmp_path, capsys):
    report = report_of(tmp_path, *files, *arguments)
    result = result_of(**options)
    assert_found(report, result)
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{result}\n")
    assert not printed.err
    scaled = options.get("standardize", "scale") == "scale"
    unit = "each divided by its robust standard deviation" if scaled else "in their own units"
    assert f"\ncolumns a, b, {unit}\n" in printed.out
    assert "\nseed 3\n" in printed.out
    scales = dict(zip("ab", deviations(np.concatenate([X, Y])), strict=True))
    assert report["scales"] == (pytest.approx(scales) if scaled else None)


def test_a_kernel_of_the_unit_cube_takes_columns_in_their_units(tmp_path):
    rng = np.random.default_rng(1)
    x, y = rng.random((100, 2)), rng.random((80, 2)) ** 2
    files = written(tmp_path, pd.DataFrame(x), pd.DataFrame(y))
    report = report_of(tmp_path, *files, "--kernel", "sobolev")
    assert_found(report, result_of(x, y, kernel="sobolev", standardize=False))
    assert report["scales"] is None


def test_the_seed_that_was_drawn_gives_the_same_again(files, tmp_path):
    path = tmp_path / "r.json"
    assert run(*files, "--report", path) == 0
    report = json.loads(path.read_text())
    result = two_sample_test(X, Y, standardize="scale", rng=report["seed"])
    assert_found(report, result)
    assert report["rows"] == [120, 90]
    assert report["settings"]["sources"] == list(map(str, files))
    assert report["versions"]["numpy"] == np.__version__


def test_the_status_does_not_depend_on_the_outcome(tmp_path, capsys):
    files = written(tmp_path, OF_X, OF_X)
    assert run(*files, "--permutations", 99) == 0
    assert "p-value 1, level 0.05: the distributions may be equal\n" in capsys.readouterr().out


def test_files_of_other_formats(tmp_path):
    pytest.importorskip("pyarrow")
    OF_X.to_parquet(tmp_path / "x.parquet")
    np.savez(tmp_path / "y.npz", b=Y[:, 1], a=Y[:, 0])
    report = report_of(tmp_path, tmp_path / "x.parquet", tmp_path / "y.npz")
    assert_found(report, result_of())
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "y.npy", Y)
    assert_found(report_of(tmp_path, tmp_path / "x.npy", tmp_path / "y.npy"), result_of())
    (tmp_path / "parts").mkdir()
    OF_Y.to_parquet(tmp_path / "parts" / "one.parquet")
    report = report_of(tmp_path, tmp_path / "x.parquet", tmp_path / "parts")
    assert_found(report, result_of())


def test_arrays_of_several_columns_and_a_posterior(tmp_path):
    xr = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    np.savez(tmp_path / "x.npz", theta=X)
    dataset = xr.Dataset({"theta": (("chain", "draw", "k"), Y.reshape(2, 45, 2))})
    tree = xr.DataTree.from_dict({"/posterior": dataset})
    tree.to_netcdf(tmp_path / "y.nc", engine="h5netcdf")
    report = report_of(tmp_path, tmp_path / "x.npz", tmp_path / "y.nc")
    assert_found(report, result_of())
    assert report["columns"] == ["theta[0]", "theta[1]"]
    assert report["ess"] == [None, of_draws(Y)]


def test_text_with_a_delimiter_and_comments(tmp_path):
    for name, points in (("x.csv", X), ("y.csv", Y)):
        lines = [f"{a!r};{b!r}\n%\n" for a, b in points.tolist()]
        (tmp_path / name).write_text("a;b\n" + "".join(lines))
    options = "--delimiter", ";", "--comment", "%"
    assert_found(report_of(tmp_path, tmp_path / "x.csv", tmp_path / "y.csv", *options), result_of())


def test_long_files_are_read_in_parts(files, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "ROWS", 25)
    assert_found(report_of(tmp_path, *files), result_of())


def test_what_does_not_count_is_left_out_and_said(tmp_path, capsys):
    shuffled = np.r_[np.arange(1, 90), 0]
    files = written(
        tmp_path,
        OF_X.assign(id=range(120), same=1.0, other=1.0, note="n", lp__=0.5),
        OF_Y.assign(id=shuffled, same=1.0, other=2.0),
    )
    report = report_of(tmp_path, *files)
    x, y = np.column_stack([X, np.ones(120)]), np.column_stack([Y, np.full(90, 2.0)])
    assert_found(report, result_of(x, y))  # constant in each sample, and the samples differ
    assert report["columns"] == ["a", "b", "other"]
    assert report["left_out"] == {"lp__": "of a sampler", "id": "an index", "same": "constant"}
    printed = capsys.readouterr().out
    assert "columns a, b, other (not used: note), each divided" in printed
    assert (
        "left out of the distance: lp__ (of a sampler); id (an index); same (constant); "
        "--columns takes any\n"
    ) in printed
    report = report_of(tmp_path, *files, "--columns", "same,b")
    assert report["left_out"] == {}
    assert_found(report, result_of(np.column_stack([np.ones(120), X[:, 1]]),
                                np.column_stack([np.ones(90), Y[:, 1]])))  # fmt: skip


def test_columns_of_equal_rows_stay(tmp_path):
    files = written(tmp_path, OF_X * 0, OF_X * 0)
    report = report_of(tmp_path, *files)
    assert report["pvalue"] == 1
    assert report["columns"] == ["a", "b"]
    assert report["left_out"] == {}


def test_weights(tmp_path, capsys):
    rng = np.random.default_rng(2)
    v, w = rng.exponential(size=120), rng.exponential(size=90)
    files = written(tmp_path, OF_X.assign(w=v), OF_Y.assign(w=w))
    report = report_of(tmp_path, *files, "--weights", "w")
    assert_found(report, result_of(x_weights=v, y_weights=w))
    assert report["columns"] == ["a", "b"]
    assert report["weighted"] == [True, True]
    capsys.readouterr()
    files = written(tmp_path, OF_X, OF_Y.assign(w=w))
    report = report_of(tmp_path, *files, "--weights", "w")
    assert_found(report, result_of(y_weights=w))
    assert report["weighted"] == [False, True]
    assert f"{files[0]}: no column w, so rows of equal weight\n" in capsys.readouterr().out


def test_warnings_of_the_test_are_told(tmp_path, capsys):
    heavy = np.where(np.arange(90) < 3, 1000.0, 1.0)
    files = written(tmp_path, OF_X, OF_Y.assign(w=heavy))
    report = report_of(tmp_path, *files, "--weights", "w", "--bins", "4")
    few, least = capsys.readouterr().err.splitlines()
    assert few == (
        f"thinformer test: warning: the weights in {files[1]} of 90 points are worth 3 equal "
        "weights; the test may reject too often"
    )
    assert least.startswith("thinformer test: warning: a p-value can hardly be as small as level=")
    assert report["warnings"] == [line.partition("warning: ")[2] for line in (few, least)]


def chain(n, seed):
    """An autoregressive chain (n, 2)."""
    return lfilter([1], [1, -0.9], np.random.default_rng(seed).normal(size=(n, 2)), axis=0)


def test_draws_of_a_chain_are_warned_of(tmp_path, capsys):
    z = chain(500, 0)
    columns = ["a", "b"]
    files = written(tmp_path, OF_X, pd.DataFrame(z, columns=columns).assign(lp__=1.0))
    report = report_of(tmp_path, *files)
    ess = of_draws(z)
    assert report["ess"] == [None, ess]
    printed = capsys.readouterr()
    step = int(np.ceil(2 * 500 / ess))
    assert printed.err == (
        "thinformer test: warning: draws of a Markov chain are not independent, and the test "
        f"rejects too often. {files[1]} has 500 draws and an effective sample size of {ess:.0f}: "
        f"take one draw in {step}, as by `thinformer thin --method standard --size {500 // step}`\n"
    )
    draws = f"{files[1]}: 500 draws of a sampler, effective sample size {ess:.0f}\n"
    assert draws in printed.out
    both = [pd.DataFrame(chain(400, s), columns=columns).assign(chain=1) for s in (1, 2)]
    report_of(tmp_path, *written(tmp_path, *both))
    warned = capsys.readouterr().err
    assert warned.count("warning") == 1
    assert warned.count("has 400 draws") == 2


def test_independent_draws_are_counted_without_a_warning(tmp_path, capsys):
    files = written(tmp_path, OF_X.assign(chain=1), OF_Y)
    report = report_of(tmp_path, *files)
    assert report["ess"] == [of_draws(X), None]
    assert report["ess"][0] > 0.7 * 120
    printed = capsys.readouterr()
    assert not printed.err
    assert f"120 draws of a sampler, effective sample size {of_draws(X):.0f}\n" in printed.out


def test_the_advice_is_followed(tmp_path, capsys):
    """What `thin` writes as the warning says is compared without one."""
    columns = ["a", "b"]
    frames = [pd.DataFrame(chain(12_000, s), columns=columns).assign(chain=1) for s in (1, 2)]
    files = written(tmp_path, *frames)
    report_of(tmp_path, *files)
    sizes = [int(part.split("`")[0]) for part in capsys.readouterr().err.split("--size ")[1:]]
    kept = [tmp_path / "few-x.csv", tmp_path / "few-y.csv"]
    for source, out, size in zip(files, kept, sizes, strict=True):
        assert main(["thin", str(source), "-o", str(out), "--method", "standard",
                     "--size", str(size)]) == 0  # fmt: skip
    capsys.readouterr()
    assert report_of(tmp_path, *kept)["rows"] == sizes
    assert not capsys.readouterr().err


def test_a_plot_of_where_they_differ(files, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    drawn = []
    draw = two_sample.draw_witness
    monkeypatch.setattr(
        two_sample, "draw_witness", lambda *given: drawn.append(given) or draw(*given)
    )
    plot = tmp_path / "p.png"
    report = report_of(tmp_path, *files, "--plot", plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
    ((found, names),) = drawn
    assert names == ["x.csv", "y.csv"]
    result = result_of()
    best = max(result.kernels, key=lambda each: each.statistic)
    assert report["drawn"] == best._asdict()
    expected = witness(X, Y, "gaussian", best.bandwidth, "scale", None, None, 3)
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.points, np.concatenate([X, Y]))
    assert found.labels == ["a", "b"]
    said = f"witness function of gaussian, bandwidth {best.bandwidth:.4g}: {plot}\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "kernel", "bandwidth"),
    [
        (["--bandwidth", "1,70", "--kernel", "imq"], "inverse_multiquadric", [1.0, 70.0]),
        (["--kernel", "linear", "--no-standardize"], "linear", None),
    ],
)
def test_the_kernel_that_was_asked_for_is_drawn(
    arguments, kernel, bandwidth, tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib")
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    files = [tmp_path / "before" / "d.csv", tmp_path / "after" / "d.csv"]
    OF_X.assign(w=np.arange(120)).to_csv(files[0], index=False)
    OF_Y.to_csv(files[1], index=False)
    drawn = []
    draw = two_sample.draw_witness
    monkeypatch.setattr(
        two_sample, "draw_witness", lambda *given: drawn.append(given) or draw(*given)
    )
    report_of(tmp_path, *files, *arguments, "--weights", "w", "--plot", tmp_path / "p.svg")
    assert (tmp_path / "p.svg").read_bytes().startswith(b"<?xml")
    ((found, names),) = drawn
    assert names == ["A, d.csv", "B, d.csv"]
    assert found.kernel.name == kernel
    assert found.bandwidth == bandwidth
    expected = witness(X, Y, kernel, bandwidth or "median", False, np.arange(120), None, 3)
    np.testing.assert_array_equal(found.values, expected.values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kernel", "cosine"], "--kernel must be one of"),
        (["--bandwidth", "wide"], "--bandwidth takes auto, median, a number, or one a column"),
        (["--bandwidth", "-1"], "--bandwidth must be positive"),
        (["--bandwidth", "1,2,3"], "--bandwidth takes one number or 2, one for each of a, b; got"),
        (["--bandwidth", "1", "--kernel", "linear"], "--bandwidth: the kernel linear has none"),
        (["--bins", "1025"], "--bins must be at most 1024; got 1025"),
        (["--method", "quick"], "--method must be one of 'auto', 'exact', 'landmarks', 'compress'"),
        (["--bins", "3"], "--bins must be an integer of at least 4; got 3"),
        (["--permutations", "0"], "--permutations must be an integer of at least 1; got 0"),
        (["--level", "5"], "--level must be between 0 and 1; got 5.0"),
        (["--seed", "-1"], "--seed must be an integer of at least 0; got -1"),
        (["--columns", "a,z"], "x.csv: --columns 'z' is not there; there are 'a', 'b'"),
        (["--columns", ","], "--columns is empty"),
        (["--delimiter", ";;"], "--delimiter takes one character; got ';;'"),
        (["--weights", "w"], "x.csv: --weights 'w' is not there, nor in {y}"),
        (["--weights", "a"], "x.csv: --weights 'a' must be finite and have a finite sum, none of"),
        (["--plot", "p.txt"], "--plot takes a file ending in .png, .svg or .pdf; got p.txt"),
        (["--plot", "/nowhere/p.png"], "/nowhere/p.png: there is no folder /nowhere"),
        (["--report", "/nowhere/r"], "--report /nowhere/r: there is no folder /nowhere"),
        (["--report", "{y}"], "--report {y} is the file of B too"),
    ],
)
def test_errors_are_one_line_and_nothing_is_written(arguments, message, files, tmp_path, capsys):
    plot = [] if "--plot" in arguments else ["--plot", tmp_path / "p.png"]
    arguments = [each.format(y=files[1]) for each in arguments]
    assert run(*files, *plot, *arguments) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("thinformer test: ")
    assert message.format(y=files[1]) in printed.err
    assert printed.err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["x.csv", "y.csv"]


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ((OF_X.assign(u=X[:, 0]), OF_Y.assign(v=Y[:, 0], w=1)),
         "y.csv: must have the columns of numbers of {x}; only {x} has 'u'; only {y} has 'v', 'w'; "
         "--columns says which to compare"),
        ((OF_X, OF_Y[["a"]]), "must have the columns of numbers of {x}; only {x} has 'b'; --col"),
        ((OF_X, OF_Y[:1]), "y.csv: must have at least two rows; it has 1"),
        ((OF_X, OF_Y.replace(OF_Y.iloc[3, 1], np.nan)), "y.csv: line 5, column 'b'"),
        ((OF_X.assign(id=range(120))[["id"]], OF_Y.assign(id=0)[["id"]]),
         "has no column to compute with"),
        ((OF_X.assign(id=0)[["id"]], OF_Y.assign(id=range(90))[["id", "a"]]),
         "x.csv: has no column to compute with; left out of the distance: id (an index)"),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_compared(frames, message, tmp_path, capsys):
    x, y = written(tmp_path, *frames)
    assert run(x, y) == 2
    printed = capsys.readouterr()
    assert message.format(x=x, y=y) in printed.err
    assert printed.err.count("\n") == 1


def test_files_that_are_not_there(files, tmp_path, capsys):
    assert run(files[0], tmp_path / "z.csv") == 2
    assert "z.csv: there is no such file" in capsys.readouterr().err
    assert run(files[0], tmp_path / "z.txt") == 2
    assert "B takes a file ending in .csv, .tsv, .parquet" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", X)
    assert run(tmp_path / "x.npy", tmp_path / "x.npy", "--comment", "#") == 2
    assert "--comment is of CSV; A is " in capsys.readouterr().err


def test_an_error_of_a_library_is_one_line(files, monkeypatch, capsys):
    def fail(*arguments):
        raise KeyError("a\nb")

    monkeypatch.setattr(two_sample, "run", fail)
    assert run(*files) == 2
    printed = capsys.readouterr().err
    assert "KeyError" in printed
    assert printed.count("\n") == 1


def test_an_interrupt(files, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(two_sample, "run", stop)
    assert run(*files) == 130
    assert capsys.readouterr().err == "thinformer test: interrupted; nothing was written\n"


def test_help_says_what_is_promised(capsys):
    with pytest.raises(SystemExit):
        run("--help")
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "exit status: 0 the test was done, whatever it found",
        "The rows must be independent",
        "2 * rows / ESS",
        "on any number of threads",
        "constant and equal in both",
    ):
        assert words in said
