"""Plots of coresets and of their errors, for which matplotlib must be installed.

``import thinformer.plot``. Each function returns a `matplotlib.figure.Figure`; ``savefig`` writes
it, and a notebook shows it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer.support.names import brief
from thinformer.thinning.sizes import ErrorCurve
from thinformer.thinning.tables import read

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["coreset", "error_curve"]

DIMENSIONS = 4  # drawn at most
COLOURS = ("0.75", "#D55E00")  # the points, the coreset


def coreset(points: Any, rows: ArrayLike) -> Figure:
    """Draw a coreset over all points, the first four dimensions against each other.

    Parameters
    ----------
    points : (n, d) array, data frame, posterior or dict of draws
        As given to `thinformer.thin`. Columns of a sampler are not drawn; an index and constants
        are: ``frame[columns]`` has a choice of columns.
    rows : (size,) array of int
        Row numbers from `thinformer.thin`.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `thinformer.thin`; or rows are out of range.
    ImportError
        matplotlib is not installed.
    """
    table = read(points)
    return draw_coreset(table.values, table.values[np.asarray(rows)], table.labels)


def error_curve(curve: ErrorCurve) -> Figure:
    """Draw errors by size: how many independent draws a coreset of each size is worth.

    Parameters
    ----------
    curve : ErrorCurve
        From `thinformer.error_curve`. Coresets whose MMD is 0 are left out: no finite number of
        draws has it.

    Returns
    -------
    matplotlib.figure.Figure
        Both axes are logarithmic. A grey line shows as many draws as rows, a dotted line the
        effective sample size of the points.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    with _figure(figsize=(5.5, 4)) as figure:
        axes: Any = figure.subplots()
        some = np.isfinite(curve.draws)
        sizes, draws = curve.sizes[some], curve.draws[some]
        axes.loglog(sizes, sizes, color=COLOURS[0], label="as many as rows")
        axes.axhline(curve.ess, color="0.4", linestyle=":", label="all points (ESS)")
        axes.loglog(sizes, draws, color=COLOURS[1], marker="o", label="coreset")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(
            lambda value, _: f"{value:,.3g}" if value < 1 else f"{value:,.0f}"
        )
        axes.set_xlabel("rows")
        axes.set_ylabel("independent draws that they are worth")
        axes.legend(frameon=False)
    return figure


def draw_coreset(every: NDArray, chosen: NDArray, labels: Sequence[str]) -> Figure:
    """Draw chosen points (size, d) over others (n, d), the first dimensions against each other."""
    d = min(DIMENSIONS, len(labels))
    names = [brief(label).replace("$", r"\$") for label in labels[:d]]  # no formulas
    side = 2.2 * d + 1
    with _figure(figsize=(side, side)) as figure:
        from matplotlib.lines import Line2D

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
                axes.set_xlabel(names[j])
            if j == 0 and i > 0:
                axes.set_ylabel(names[i])
        handles = [
            Line2D([], [], color=colour, marker="o", linestyle="", label=label)
            for colour, label in zip(
                COLOURS, (f"{len(every)} rows", f"{len(chosen)} chosen"), strict=True
            )
        ]
        figure.legend(handles=handles, loc="outside upper right", frameon=False)
    return figure


@contextlib.contextmanager
def _figure(figsize: tuple[float, float]) -> Iterator[Any]:
    """An empty figure, and the style to draw in it."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("thinformer.plot needs matplotlib: pip install matplotlib") from error
    style: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(style):
        yield Figure(figsize=figsize, layout="constrained")


def _bins(values: NDArray) -> NDArray:
    """Edges of 20 bins; of a single bin where the values hardly differ."""
    try:
        return np.histogram_bin_edges(values, 20)
    except ValueError:
        pad = max(1.0, 1e-3 * float(np.abs(values).max()))
        return np.array([values.min() - pad, values.max() + pad])
