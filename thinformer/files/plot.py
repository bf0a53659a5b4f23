"""The plot of ``thinformer thin``: the coreset over all rows, dimension by dimension."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.support.names import brief

DIMENSIONS = 4  # drawn at most
COLOURS = ("0.75", "#D55E00")  # the rows, the coreset


def draw(every: NDArray, chosen: NDArray, labels: list[str], path: Path, ending: str) -> None:
    """Draw the first dimensions against each other; `ending` is the format."""
    import matplotlib
    from matplotlib.figure import Figure

    d = min(DIMENSIONS, len(labels))
    labels = [brief(label).replace("$", r"\$") for label in labels[:d]]  # no formulas
    side = 2.2 * d + 1
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(side, side), layout="constrained")
        grid: Any = figure.subplots(d, d, squeeze=False, sharex="col")
        for i, j in np.ndindex(d, d):
            axes = grid[i, j]
            if i < j:
                axes.remove()
            elif i == j:
                bins = _bins(every[:, i])
                axes.hist(every[:, i], bins, density=True, color=COLOURS[0])
                axes.hist(chosen[:, i], bins, density=True, color=COLOURS[1], histtype="step")
                axes.set_yticks([])
            else:
                axes.scatter(every[:, j], every[:, i], 3, COLOURS[0], linewidths=0, rasterized=True)
                axes.scatter(chosen[:, j], chosen[:, i], 6, COLOURS[1], linewidths=0)
            if i == d - 1:
                axes.set_xlabel(labels[j])
            if j == 0 and i > 0:
                axes.set_ylabel(labels[i])
        handles = [
            matplotlib.lines.Line2D([], [], color=colour, marker="o", linestyle="", label=label)
            for colour, label in zip(
                COLOURS, (f"{len(every)} rows", f"{len(chosen)} chosen"), strict=True
            )
        ]
        figure.legend(handles=handles, loc="outside upper right", frameon=False)
        figure.savefig(path, dpi=150, format=ending[1:])


def _bins(values: NDArray) -> NDArray:
    """Edges of 20 bins; of a single bin where the values hardly differ."""
    try:
        return np.histogram_bin_edges(values, 20)
    except ValueError:
        pad = max(1.0, 1e-3 * float(np.abs(values).max()))
        return np.array([values.min() - pad, values.max() + pad])
