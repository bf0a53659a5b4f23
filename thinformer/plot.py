"""Plots of coresets, of their errors and of two samples; matplotlib must be installed.

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
from thinformer.thinning.scales import Standardize
from thinformer.thinning.sizes import ErrorCurve
from thinformer.thinning.tables import read
from thinformer.thinning.witness import Witness
from thinformer.thinning.witness import witness as witness_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["coreset", "error_curve", "witness"]

DIMENSIONS = 4  # drawn at most
COLOURS = ("0.75", "#D55E00")  # the points, the coreset
SHORT = 30  # characters of a name, which fit a panel
OF_SAMPLES = ("#D55E00", "#0072B2")  # apart for every kind of colour vision


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


def witness(
    x: Any,
    y: Any,
    *,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Standardize = "auto",
    x_weights: ArrayLike | None = None,
    y_weights: ArrayLike | None = None,
    names: tuple[str, str] = ("x", "y"),
    rng: int | np.random.Generator | None = 0,
) -> Figure:
    r"""Draw where two samples differ: points of both, coloured by the witness function of the MMD.

    The witness function is :math:`f(z) = \sum_i v_i k(x_i, z) - \sum_j w_j k(y_j, z)` with weights
    of sum 1, by default 1/n and 1/m. It is positive where x has more points, and negative where y
    has more. The mean of f over x minus that over y is the squared MMD of the samples.

    Parameters
    ----------
    x : (n, d) array, data frame or posterior
    y : (m, d) likewise
        Columns that have names in both are the same, in any order.
    kernel, bandwidth, standardize
        See `thinformer.mmd`; a median bandwidth, and scales, are computed from both samples
        together. For the bandwidth of a `KernelResult`, which has the units of standardised points,
        say ``standardize="scale"`` if they were scaled in the test.
    x_weights : (n,) array, optional
    y_weights : (m,) array, optional
        Weights of the points; equal by default.
    names : (str, str)
        What the plot calls the samples.
    rng : int, numpy.random.Generator or None
        Draws the rows for a median bandwidth, and points of large samples.

    Returns
    -------
    matplotlib.figure.Figure
        The first four dimensions: histograms of all points on the diagonal, points below it. Of
        each sample at most 1000 points are drawn, at random and with the odds of their weights. At
        these points f is computed from all points of both samples. Points of a single dimension are
        drawn over f.

    Raises
    ------
    TypeError, ValueError
        As in `thinformer.two_sample_test`; or all points are equal and the bandwidth is "median".
    ImportError
        matplotlib is not installed.

    Notes
    -----
    At most 2000 (n + m) kernel values, O((n + m) d) memory. A point of x counts among the
    :math:`x_i` too, so at a bandwidth far below the distances f is near 1/n there, and near -1/m at
    points of y.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import plot
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.normal(size=(500, 2)), rng.normal(size=(600, 2)) * [1, 1.5]
    >>> plot.witness(x, y).savefig("witness.png")  # doctest: +SKIP
    """
    two = isinstance(names, Sequence) and not isinstance(names, str) and len(names) == 2
    if not (two and all(isinstance(name, str) for name in names)):
        raise ValueError(f"names must be two strings; got {names!r}")
    found = witness_of(x, y, kernel, bandwidth, standardize, x_weights, y_weights, rng)
    return draw_witness(found, names)


def draw_coreset(every: NDArray, chosen: NDArray, labels: Sequence[str]) -> Figure:
    """Draw chosen points (size, d) over others (n, d), the first dimensions against each other."""
    d = min(DIMENSIONS, len(labels))
    names = [_plain(label) for label in labels[:d]]
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


def draw_witness(found: Witness, names: Sequence[str]) -> Figure:
    """Draw a witness function over the first dimensions; `names` are those of the samples."""
    d = min(DIMENSIONS, len(found.labels))
    labels = [_plain(label, SHORT) for label in found.labels[:d]]
    order = np.abs(found.values).argsort()  # what differs lies above
    points, values = found.points[order], found.values[order]
    side = 2.2 * d + 1
    with _figure(figsize=(side + 1.2, side) if d > 1 else (5.5, 4.5)) as figure:
        from matplotlib.colors import LinearSegmentedColormap
        from matplotlib.lines import Line2D

        most = float(np.abs(values).max()) or 1.0
        colours = LinearSegmentedColormap.from_list("", [OF_SAMPLES[1], "0.85", OF_SAMPLES[0]])
        style: Any = {"c": values, "cmap": colours, "vmin": -most, "vmax": most, "linewidths": 0}
        grid: Any = figure.subplots(max(d, 2), d, squeeze=False, sharex="col")
        for i, j in np.ndindex(grid.shape):
            axes = grid[i, j]
            if i < j:
                axes.remove()
            elif i == j:
                _histograms(axes, found, i)
            elif d == 1:
                axes.axhline(0, color="0.4", linewidth=0.8)
                drawn = axes.scatter(points[:, 0], values, 6, rasterized=True, **style)
            else:
                drawn = axes.scatter(points[:, j], points[:, i], 6, rasterized=True, **style)
            if i == len(grid) - 1:
                axes.set_xlabel(labels[j])
            if j == 0 and i > 0:
                axes.set_ylabel("witness" if d == 1 else labels[i])
        bar = figure.colorbar(drawn, ax=figure.axes, aspect=40, shrink=0.8)
        bar.set_label(f"witness, {_kernel(found)}")
        handles = [
            Line2D([], [], color=colour, label=f"{name}: {len(sample)} rows, more where {where}")
            for colour, name, sample, where in zip(
                OF_SAMPLES,
                [_plain(name, SHORT) for name in names],
                found.samples,
                ("witness > 0", "witness < 0"),
                strict=True,
            )
        ]
        figure.legend(handles=handles, loc="outside upper right", frameon=False)
    return figure


def _histograms(axes: Any, found: Witness, dimension: int) -> None:
    """Draw the densities of both samples in a dimension, on common bins."""
    columns = [sample[:, dimension] for sample in found.samples]
    bins = _bins(np.concatenate(columns))
    for column, share, colour in zip(columns, found.shares, OF_SAMPLES, strict=True):
        axes.hist(column, bins, weights=share, density=True, color=colour, histtype="step")
    axes.set_yticks([])


def _kernel(found: Witness) -> str:
    """What is said of the kernel."""
    if found.bandwidth is None:
        return f"kernel {found.kernel.name}"
    lengths = ", ".join(f"{each:.4g}" for each in np.atleast_1d(found.bandwidth))
    return f"kernel {found.kernel.name}, bandwidth {brief(lengths, SHORT)}"


def _plain(name: str, most: int = 60) -> str:
    """A name as it is drawn: short, and never a formula."""
    return brief(name, most).replace("$", r"\$")


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
