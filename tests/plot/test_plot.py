"""The figures: what they hold, and that they can be written."""

import io
import sys

import numpy as np
import pandas as pd
import pytest
from points import X

import thinformer.plot
from thinformer import error_curve, thin
from thinformer.thinning.sizes import ErrorCurve

pytest.importorskip("matplotlib")


def test_a_coreset_over_its_points():
    rows = thin(X, 10, rng=0)
    frame = pd.DataFrame(X, columns=["mu", "$tau$ and " + 60 * "x"])
    figure = thinformer.plot.coreset(frame, rows)
    scatter = next(axes for axes in figure.axes if axes.collections)
    every, chosen = (each.get_offsets() for each in scatter.collections)
    np.testing.assert_array_equal(every, X)
    np.testing.assert_array_equal(chosen, X[rows])
    assert scatter.get_xlabel() == "mu"
    assert scatter.get_ylabel() == r"\$tau\$ and " + 50 * "x" + "..."
    assert [text.get_text() for text in figure.legends[0].texts] == ["300 rows", "10 chosen"]
    figure.savefig(io.BytesIO())


def test_four_dimensions_at_most_and_constant_ones():
    points = np.column_stack([X, X, X])
    points[:, 0] = 5.0
    figure = thinformer.plot.coreset(points, [0, 1])
    assert len([axes for axes in figure.axes if axes.collections]) == 6
    figure.savefig(io.BytesIO())


def test_errors_by_size():
    curve = error_curve(X, [1, 4, 16], ess=250)
    figure = thinformer.plot.error_curve(curve)
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_xydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["coreset"], np.column_stack([curve.sizes, curve.draws]))
    np.testing.assert_array_equal(lines["as many as rows"][:, 1], [1, 4, 16])
    np.testing.assert_array_equal(lines["all points (ESS)"][:, 1], [250, 250])
    figure.savefig(io.BytesIO())


def test_a_coreset_without_error_is_not_drawn():
    curve = ErrorCurve(np.array([1, 2]), np.array([0.5, 0.0]), np.array([2.0, np.inf]), 9.0)
    (axes,) = thinformer.plot.error_curve(curve).axes
    np.testing.assert_array_equal(axes.lines[-1].get_xydata(), [[1, 2]])


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="thinformer.plot needs matplotlib: pip install matplot"):
        thinformer.plot.coreset(X, [0])
