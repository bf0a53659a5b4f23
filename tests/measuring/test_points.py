"""The benchmark of thinning: what it measures, and what it stores."""

import json

import numpy as np
import pytest
from arviz_base import load_arviz_data

from thinformer import fit_weights, mmd, thin
from thinformer.commands.main import main
from thinformer.kernels import gaussian
from thinformer.measuring import points as measured
from thinformer.thinning.methods import METHODS


def test_the_posterior_is_that_of_the_chains():
    """Independent draws and ArviZ's chains agree within the chains' own error."""
    drawn = measured.eight_schools(20_000, 0)
    posterior = load_arviz_data("centered_eight")["posterior"].dataset
    chains = np.column_stack(
        [posterior[v].to_numpy().reshape(2000, -1) for v in ("mu", "theta", "tau")]
    )
    error = (drawn.mean(axis=0) - chains.mean(axis=0)) / chains.std(axis=0)
    assert np.abs(error).max() < 0.25
    assert drawn.std(axis=0) == pytest.approx(chains.std(axis=0), rel=0.2)
    np.testing.assert_array_equal(drawn, measured.eight_schools(20_000, 0))


@pytest.mark.slow
def test_samples():
    for name, sample in measured.samples().items():
        points = sample(3000, 1) if name == "eight schools*" else sample(500, 1)
        assert np.isfinite(points).all()
        assert not np.array_equal(points, sample(len(points), 2))
        assert sample(10**6, 0) is None or name in ("mixture", "eight schools*")
    assert set(measured.samples()) == {
        "mixture", "eight schools", "eight schools*", "photograph",
    }  # fmt: skip


@pytest.mark.slow
def test_costs():
    found = list(measured.costs(range(3, 6)))
    assert [cost.method for cost in found] == list(METHODS)
    for cost in found:
        assert list(cost.seconds) == [64, 256, 1024]
        assert np.polyfit(np.log(list(cost.seconds)), np.log(list(cost.seconds.values())), 1)[
            0
        ] == pytest.approx(cost.exponent)
        assert f"n^{cost.exponent:.2f}" in measured.format_cost(cost)


def test_errors_are_those_of_the_rows():
    quality = measured._quality("mixture", measured.mixture, 256, "compress++", 2, 2)
    for seed, error in enumerate(quality.errors["thinformer"]):
        points, kernel = measured.mixture(256, 1000 + seed), gaussian(2**0.5)
        rows = thin(points, 16, kernel=kernel, g=2, rng=seed)
        assert error == mmd(points, rows, kernel=kernel)
        weights = fit_weights(points, rows, kernel=kernel)
        weighted = mmd(points, rows, kernel=kernel, coreset_weights=weights)
        assert np.isclose(quality.weighted[seed], weighted, rtol=1e-9)
        assert weighted < error
    assert quality.method == "compress++, g = 2"


def test_a_line_has_the_error_with_weights():
    quality = measured.Quality(
        "mixture", 4096, 64, "kernel-thinning",
        {"thinformer": [0.1, 0.3], "goodpoints": [0.2, 0.2]},
        {"thinformer": 0.5, "goodpoints": 6.0},
    )  # fmt: skip
    line = measured.format_quality(quality)
    assert "weighted" not in line
    quality.weighted = [0.05, 0.15]
    before, after = line.split("     500.0 ms (thinformer)")
    assert measured.format_quality(quality) == (
        f"{before}  0.10000 +- 0.05000 weighted     500.0 ms (thinformer){after}"
    )


def test_a_line_of_the_readme():
    quality = measured.Quality(
        "mixture", 4096, 64, "kernel-thinning",
        {"thinformer": [0.1, 0.3], "goodpoints": [0.2, 0.2]},
        {"thinformer": 0.5, "goodpoints": 6.0},
    )  # fmt: skip
    assert measured.readme_line(quality) == (
        "| mixture | 4,096 | kernel-thinning | 0.2000 ± 0.1000 | 0.2000 ± 0.0000 | 12.0 |"
    )


@pytest.mark.slow
def test_command(tmp_path, capsys):
    path = tmp_path / "points.json"
    arguments = ["--largest", "5", "--sizes", "64", "--seeds", "2", "--json", str(path)]
    assert main(["bench-points", *arguments]) == 0
    stored = json.loads(path.read_text())
    printed = capsys.readouterr().out
    for quality in stored["qualities"]:
        assert measured.format_quality(measured.Quality(**quality)) in printed
    assert stored["machine"]["thinformer"]
    assert stored["qualities"][-1]["n"] == 65536


@pytest.mark.parametrize(
    "arguments",
    [["--largest", "4"], ["--seeds", "1"], ["--sizes", "x"], ["--json", "/nowhere/x.json"]],
)
def test_bad_arguments(arguments, capsys):
    assert main(["bench-points", *arguments]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
