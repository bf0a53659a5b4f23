"""Files of a sampler as it writes them: the plain command does as well as a call by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from files_of_points import succeed

from thinformer import mmd, thin

NAMES = ("lp__", "accept_stat__", "stepsize__", "mu", "tau", "theta.1", "theta.2")
WARM_UP, DRAWS, CHAINS = 60, 500, 4
COMMENTS = (
    "# method = sample\n#     num_samples = 500\n#     num_warmup = 60\n#     save_warmup = 1\n"
)


def draws_of(chain):
    """One chain, with its warm-up: parameters on scales from 1e-3 to 1e4, and autocorrelated."""
    rng = np.random.default_rng(chain)
    z = np.empty((WARM_UP + DRAWS, 4))
    z[0] = 9  # far from where the chain goes
    for t in range(1, len(z)):
        z[t] = 0.7 * z[t - 1] + np.sqrt(1 - 0.7**2) * rng.normal(size=4)
    parameters = np.column_stack(
        [1e-3 * z[:, 0], 10 * np.exp(0.7 * z[:, 1]), 1e4 * z[:, 2], z[:, 2] + 0.5 * z[:, 3]]
    )
    of_sampler = -50 * (z**2).sum(axis=1) - 4000, rng.uniform(0.7, 1, len(z)), np.full(len(z), 0.3)
    return np.column_stack([*of_sampler, parameters])


@pytest.mark.slow
def test_a_folder_of_cmdstan(tmp_path, capsys):
    kept, files = [], []
    for chain in range(CHAINS):
        table = draws_of(chain)
        lines = [",".join(map(repr, row)) + "\n" for row in table.tolist()]
        files.append(tmp_path / f"output_{chain + 1}.csv")
        files[-1].write_text(
            COMMENTS + ",".join(NAMES) + "\n" + "".join(lines[:WARM_UP])
            + "# Adaptation terminated\n# Step size = 0.3\n" + "".join(lines[WARM_UP:])
            + "# \n#  Elapsed Time: 0.1 seconds (Sampling)\n"
        )  # fmt: skip
        kept.append(table[WARM_UP:])
    few, report = tmp_path / "few.csv", tmp_path / "r.json"
    succeed(*files, "-o", few, "--size", 100, "--seed", 1, "--report", report)
    said = capsys.readouterr().out
    assert (
        "columns mu, tau, theta.1, theta.2, each divided by its robust standard deviation\n" in said
    )
    assert "left out of the distance: lp__, accept_stat__, stepsize__ (of a sampler)" in said
    assert "warm-up rows left out: 240\n" in said

    every = np.concatenate(kept)
    parameters = every[:, 3:]
    rows = np.array(json.loads(report.read_text())["row_numbers"])
    np.testing.assert_array_equal(
        rows, thin(parameters, 100, standardize="scale", rng=1)
    )  # what a call by hand gives
    written = np.loadtxt(few, delimiter=",", skiprows=1)
    np.testing.assert_array_equal(written[:, 1:], every[rows])
    np.testing.assert_array_equal(written[:, 0], 1 + rows // DRAWS)  # the chain

    standardised = (parameters - parameters.mean(axis=0)) / parameters.std(axis=0)
    seeds = range(16)  # the error of one seed is 10 % above or below that of another
    by_hand = [mmd(standardised, thin(standardised, 100, rng=seed)) for seed in seeds]
    frame = pd.DataFrame(parameters, columns=NAMES[3:])
    by_default = [mmd(standardised, thin(frame, 100, rng=seed)) for seed in seeds]
    assert mmd(standardised, rows) == by_default[1]
    assert np.mean(by_default) < 1.1 * np.mean(by_hand)
    evenly = mmd(standardised, np.arange(19, len(every), 20))
    assert mmd(standardised, rows) < 0.3 * evenly
    raw = thin(parameters, 100, standardize=False, rng=1)
    assert mmd(standardised, raw) > 2 * mmd(standardised, rows)
    off = np.abs(parameters[rows].mean(axis=0) - parameters.mean(axis=0)) / parameters.std(axis=0)
    errors = json.loads(report.read_text())["errors"]
    np.testing.assert_allclose([each["mean"] for each in errors], off, rtol=1e-6)
