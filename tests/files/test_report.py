"""The summary, report and plot of a thinned file: errors, estimates and their noise."""

import json

import numpy as np
import pytest
from files_of_points import HEADER, POINTS, RECORDS, N, command, succeed

from thinformer import mmd, thin
from thinformer.cpu.points import embed
from thinformer.files import comparison
from thinformer.kernels.catalogue import as_kernel
from thinformer.thinning.arguments import as_problem
from thinformer.thinning.moments import column_errors
from thinformer.thinning.scales import deviations


@pytest.mark.slow
def test_report_and_plot(tmp_path, capsys):
    (tmp_path / "in.csv").write_text(HEADER + "".join(RECORDS))
    succeed(tmp_path / "in.csv", "-o", tmp_path / "out.csv", "--size", 20,
            "--kernel", "imq", "--report", tmp_path / "r.json",
            "--plot", tmp_path / "p.png")  # fmt: skip
    printed = capsys.readouterr()
    report = json.loads((tmp_path / "r.json").read_text())
    assert not printed.err
    assert (report["rows_in"], report["rows_out"]) == (N, 20)
    scales = deviations(POINTS)
    points = POINTS / scales
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
    assert report["scales"] == pytest.approx(dict(zip(["x", "y"], scales, strict=True)))
    errors = [each._asdict() for each in column_errors(POINTS, POINTS[rows], ["x", "y"])]
    assert [pytest.approx(each) for each in errors] == report["errors"]
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
    assert ", each divided by its robust standard deviation\n" in printed.out
    mean, tails = (max(errors, key=lambda each: each[name]) for name in ("mean", "tails"))
    assert (
        f"largest error of a mean {mean['mean']:.3f} standard deviations ({mean['column']}), of a "
        f"5 or 95 % quantile {tails['tails']:.3f} ({tails['column']})\n"
    ) in printed.out
    assert f"bandwidth {report['bandwidth']:.6g} (median distance of all rows)" in printed.out


@pytest.mark.parametrize("ending", ["svg", "pdf"])
def test_plots_of_other_formats(ending, tmp_path):
    np.save(tmp_path / "in.npy", POINTS[:, :1])
    plot = tmp_path / f"p.{ending}"
    succeed(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 5, "--plot", plot)
    assert {"svg": b"<svg", "pdf": b"%PDF"}[ending] in plot.read_bytes()


@pytest.mark.slow
def test_any_name_can_be_printed_and_drawn(tmp_path):
    text = b"price $a$ {x$,na\xefve\n" + "".join(f"{x},{y}\n" for x, y in POINTS.tolist()).encode()
    out = command("-", "-o", tmp_path / "out.csv", "--size", "5", "--plot", tmp_path / "p.png",
                  "--report", tmp_path / "r.json", input=text)  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert rb"columns price $a$ {x$, na\udcefve" in out.stdout
    assert (tmp_path / "out.csv").read_bytes().startswith(text.splitlines()[0])
    assert (tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.slow
def test_many_rows_are_compared_with_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "EXACT", 12_000)
    monkeypatch.setattr(comparison, "SAMPLE", 5000)
    points = np.random.default_rng(0).normal(size=(15_000, 1))
    np.save(tmp_path / "in.npy", points)
    succeed(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 8, "--seed", 1,
            "--method", "random", "--bandwidth", 1, "--report", tmp_path / "r.json")  # fmt: skip
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["compared_with"] == "all rows, by 5000 drawn at random"
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
        every = comparison._Sample(np.arange(300), weights[rows] / weights[rows].sum(), 0.15)
        part = comparison._Sample(300 + np.arange(100), np.full(100, 0.01), 1)
        (one, noise), (other, none) = (
            comparison._own(problem, *pair) for pair in ((every, part), (part, every))
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
        value, _ = comparison._mmd_held(
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
    monkeypatch.setattr(comparison, "EXACT", 2000)
    monkeypatch.setattr(comparison, "SAMPLE", 1000)
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
            "--no-standardize", "--method", "random", "--report", tmp_path / "r.json")  # fmt: skip
    printed = capsys.readouterr()
    assert "MMD to all rows: not known\n" in printed.out
    assert "MMD not known: " in printed.out
    assert not printed.err
    text = (tmp_path / "r.json").read_text()
    assert "NaN" not in text
    report = json.loads(text)
    assert report["mmd"] is None
    assert [0 < each["mean"] < 2 for each in report["errors"]] == [True, True]


@pytest.mark.slow
def test_columns_that_hardly_differ_are_drawn(tmp_path, capsys):
    points = np.column_stack([1e16 + 2 * (np.arange(30) % 2), POINTS[:30], np.ones(30)])
    np.save(tmp_path / "in.npy", points)
    succeed(tmp_path / "in.npy", "-o", tmp_path / "out.npy", "--size", 5,
            "--plot", tmp_path / "p.PNG")  # fmt: skip
    assert (tmp_path / "p.PNG").read_bytes().startswith(b"\x89PNG")
    assert not capsys.readouterr().err
