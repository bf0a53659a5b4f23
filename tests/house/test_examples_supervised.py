"""The example of regression on few rows: its ways, its fits, and the table that it prints."""

import re

import numpy as np
import pytest

from examples import supervised
from reference import kernels as reference_kernels
from thinformer import ThinnedKernelRidge, ThinnedNadarayaWatson

RNG = np.random.default_rng(3)
X, AT = RNG.uniform(size=(300, 2)), RNG.uniform(size=(50, 2))
Y = np.sin(3 * X[:, 0]) + X[:, 1]


def test_rows_and_fits():
    """Those of the estimators, and the formulas on all rows."""
    rows = supervised.Rows(X, Y, (AT, AT[:, 0]), AT, AT[:, 0])
    model = ThinnedKernelRidge(40, alpha=0.1, bandwidth=0.5, random_state=2).fit(X, Y)
    index = supervised.chosen("rows by x and y", rows, 40, 0.5, 2, ThinnedKernelRidge)
    np.testing.assert_array_equal(index, model.coreset_indices_)
    K = reference_kernels.gaussian(X, X, 0.5) + 0.1 * np.eye(300)
    weights = np.linalg.solve(K, Y - Y.mean())
    expected = reference_kernels.gaussian(AT, X, 0.5) @ weights + Y.mean()
    np.testing.assert_allclose(supervised.ridge(X, Y, 0.5, 0.1)(AT), expected, rtol=1e-9)
    model = ThinnedNadarayaWatson(40, bandwidth=0.1, random_state=2).fit(X, Y)
    index = model.coreset_indices_
    predict = supervised.means(X[index], Y[index], 0.1, None)
    np.testing.assert_allclose(predict(AT), model.predict(AT), rtol=1e-10)
    K = reference_kernels.gaussian(AT, X, 0.1)
    expected = K @ Y / K.sum(axis=1)
    np.testing.assert_allclose(supervised.means(X, Y, 0.1, None)(AT), expected, rtol=1e-10)


@pytest.mark.parametrize("data", supervised.DATA)
def test_rows_are_cut_in_three(data):
    rows = supervised.drawn(data, 200, 0)
    held_out = 1797 // 6 if data == "digits" else 1000
    assert len(rows.test) == len(rows.truth) == len(rows.validation[0]) == held_out
    assert len(rows.X) == len(rows.y) == (1797 - 2 * held_out if data == "digits" else 200)
    again = supervised.drawn(data, 200, 0)
    np.testing.assert_array_equal(rows.X, again.X)
    assert not np.array_equal(rows.X, supervised.drawn(data, 200, 1).X)


def test_the_best_in_validation_is_tested():
    rows = supervised.Rows(X, Y, (AT, 1e-3 * AT[:, 0]), AT, AT[:, 0])
    fits = [(lambda c=c: lambda at: c * at[:, 1], 2.0) for c in (1.0, 0.0, 2.0)]
    result = supervised.best(rows, iter(fits))
    assert result.error == pytest.approx(np.sqrt(np.mean(AT[:, 0] ** 2)) / AT[:, 0].std())
    assert 2.0 < result.seconds < 3.0


@pytest.mark.slow
def test_the_table(capsys):
    arguments = ["--data", "waves, d = 1", "--rows", "600", "--size", "40", "--seeds", "1"]
    supervised.main(arguments)
    head, names, *lines = capsys.readouterr().out.splitlines()
    assert head == "waves, d = 1: 40 of 600 rows"
    assert names.split() == ["ridge", "seconds", "Nadaraya-Watson", "seconds"]
    errors = {}
    for line in lines:
        way, *numbers = re.split(r" {2,}", line.strip())
        errors[way] = [float(number) for number in numbers[::2]]
    assert list(errors) == [*supervised.WAYS, "Nystroem", "all rows"]
    for i in (0, 1):
        few, _, ours = (errors[way][i] for way in supervised.WAYS)
        assert errors["all rows"][i] < ours < 0.75 * few
