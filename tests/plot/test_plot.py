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
from thinformer.thinning.witness import witness

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


def test_a_witness_over_points_of_both_samples():
    names = ["mu", "$tau$ and " + 60 * "x"]
    x, y = pd.DataFrame(X[:200], columns=names), pd.DataFrame(X[200:] + 1, columns=names)
    weights = np.arange(1.0, 101)
    figure = thinformer.plot.witness(x, y, y_weights=weights, names=("a$b$", "b" * 40))
    found = witness(x, y, "gaussian", "median", "auto", None, weights, 0)
    scatter = next(axes for axes in figure.axes if axes.collections)
    (drawn,) = scatter.collections
    order = np.abs(found.values).argsort()
    np.testing.assert_array_equal(drawn.get_offsets(), found.points[order])
    np.testing.assert_array_equal(drawn.get_array(), found.values[order])
    most = np.abs(found.values).max()
    assert drawn.get_clim() == (-most, most)
    below, middle, above = drawn.get_cmap()([0.0, 0.5, 1.0])
    assert below[2] > below[0]  # blue where y has more
    assert above[0] > above[2]
    np.testing.assert_allclose(middle[:3], 0.85, atol=0.01)
    assert scatter.get_xlabel() == "mu"
    assert scatter.get_ylabel() == r"\$tau\$ and " + 20 * "x" + "..."
    assert [text.get_text() for text in figure.legends[0].texts] == [
        r"a\$b\$: 200 rows, more where witness > 0",
        f"{30 * 'b'}...: 100 rows, more where witness < 0",
    ]
    bar = figure.axes[-1]
    assert bar.get_ylabel() == f"witness, kernel gaussian, bandwidth {found.bandwidth:.4g}"
    figure.savefig(io.BytesIO())


def test_histograms_of_both_samples_are_densities_on_common_bins():
    x, y = X[:200], X[200:] * 3 + 1
    weights = np.arange(1.0, 101)
    figure = thinformer.plot.witness(x, y, y_weights=weights, standardize=False)
    lines = [patch.get_xy() for patch in figure.axes[0].patches]
    edges = np.histogram_bin_edges(np.concatenate([x[:, 0], y[:, 0]]), 20)
    for column, share, line in zip((x[:, 0], y[:, 0]), (None, weights), lines, strict=True):
        density, _ = np.histogram(column, edges, weights=share, density=True)
        np.testing.assert_allclose(line[1:-1:2, 1], density)
        np.testing.assert_allclose(np.unique(line[:, 0]), edges)


def test_a_witness_of_one_dimension_is_a_curve():
    x, y = X[:200, :1], X[200:, :1] + 1
    figure = thinformer.plot.witness(x, y, kernel="energy")
    found = witness(x, y, "energy", "median", "auto", None, None, 0)
    histogram, curve, bar = figure.axes
    offsets = np.asarray(curve.collections[0].get_offsets())
    order = offsets[:, 0].argsort()
    expected = np.column_stack([found.points[:, 0], found.values])
    np.testing.assert_array_equal(offsets[order], expected[expected[:, 0].argsort()])
    assert curve.get_ylabel() == "witness"
    assert curve.get_xlabel() == "0"
    assert len(histogram.patches) == 2
    assert bar.get_ylabel().startswith("witness, kernel energy")


def test_a_witness_of_many_dimensions_and_of_equal_samples():
    points = np.column_stack([X, X, X])
    points[:, 0] = 5.0
    figure = thinformer.plot.witness(points, points[::-1], kernel="linear", standardize=False)
    scatters = [axes.collections[0] for axes in figure.axes[:-1] if axes.collections]
    assert len(scatters) == 6
    assert scatters[0].get_clim() == (-1, 1)
    assert not np.any(scatters[0].get_array())
    assert figure.axes[-1].get_ylabel() == "witness, kernel linear"
    figure.savefig(io.BytesIO())


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="thinformer.plot needs matplotlib: pip install matplot"):
        thinformer.plot.coreset(X, [0])
    with pytest.raises(ImportError, match="thinformer.plot needs matplotlib"):
        thinformer.plot.witness(X, X + 1)
