"""Lines of `quality` as tables, as a file and as a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thinformer.measuring.equal_time import Ratio, ratios
from thinformer.measuring.quality import EXACT, NYSTROM, OPTIONS, Line

# other methods in the table of equal time, and what their columns are called
COLUMNS = {
    "uniform sampling": "uniform",
    "evenly spaced": "evenly",
    "pooled neighbours": "pooled",
    "merged keys": "merged",
    "Performer": "Performer",
    "Nystromformer": "Nystromformer",
    NYSTROM: "WildCat",
}
REFERENCE = "evenly spaced"  # what the figure compares with at equal time
# for each method a colour (Okabe & Ito's, for colour-blind readers too), a marker and a line
STYLES = {
    "uniform sampling": ("#56B4E9", "v", ":"),
    "evenly spaced": ("#E69F00", "^", ":"),
    "pooled neighbours": ("#999999", "<", ":"),
    "merged keys": ("#000000", ">", ":"),
    "Performer": ("#999999", "x", "-."),
    "Nystromformer": ("#000000", "+", "-."),
    **dict(zip(OPTIONS, (("#0072B2", "o", "--"), ("#CC79A7", "P", "--"), ("#009E73", "D", "-"),
                         ("#D55E00", "s", "-")), strict=True)),
}  # fmt: skip
NOTES = """\
error: ||output - exact|| / ||exact||, mean over layers, heads and rounds, each with another seed,
+- its standard error. time: of all layers, choosing keys included, median over rounds, all methods
in turn; ratio: to Thinformer's. temperature="auto": herding. nystrom, WildCat: its landmarks and
weights, as this package computes them. best rank: of the matrix of that rank nearest to that of
attention, up to 2,048 keys; no method, a mark of what so few keys could do.

keys: of Performer random features, of Nystromformer landmarks, else those attended to. pooled:
means of neighbouring keys and values. merged: every key joins the nearest of evenly spaced ones by
cosine; means of these groups, weighted by their size.

error at equal time: the error divided by that of the other method at the same time, which is
interpolated between its sizes, in logarithms; below 1 is nearer. It is never extrapolated. "<": the
other has no size so fast; the ratio to its fastest is given, the true one is at most that. ">": the
other has no size so slow, short of exact attention; the ratio to its slowest is given, the true one
is at least that. exact: exact attention takes no longer, and its error is 0."""


def format_lines(lines: Sequence[Line]) -> str:
    """Return the table of an input, from its lines."""
    rows, (exact, *others) = [], lines
    rows.append(
        f"{exact.input}: {exact.keys} keys, {len(exact.layers)} layers;"
        f" exact attention {1e3 * exact.seconds:.1f} ms"  # type: ignore[operator]
    )
    width = max(map(len, OPTIONS))
    for size in dict.fromkeys(line.kept for line in others):
        title = f"{size} of {exact.keys} keys"
        rows.append(f"  {title:<{width}}  {'error':>7}{'':>10}  {'time':>12}  {'ratio':>6}")
        for line in (line for line in others if line.kept == size):
            row = f"  {line.method:<{width}}  {line.error:>7.4f}"
            if line.seconds is not None:
                row += f" +- {line.standard_error:<6.4f}  {1e3 * line.seconds:>9.2f} ms"
                row += f"  {line.ratio:>6.2f}" if line.ratio is not None else f"  {'-':>6}"
            rows.append(row)
    return "\n".join(rows)


def format_equal_time(lines: Sequence[Line]) -> str:
    """Return the table of errors at equal time of an input, from its lines."""
    exact, seconds = lines[0], {(line.method, line.kept): line.seconds for line in lines}
    cells: dict[str, dict[int, dict[str, str]]] = {}
    for found in ratios(lines):
        of_size = cells.setdefault(found.method, {}).setdefault(found.kept, {})
        of_size[found.other] = _cell(found)
    shown = [name for name in COLUMNS if name in cells]
    heads = "".join(f"  {COLUMNS[name]:>7}" for name in shown)
    rows = [f"{exact.input}: error at equal time, divided by that of"]
    for method in (method for method in OPTIONS if method in cells):
        rows.append(f"  {method:<32}{heads}")
        for size, row in cells[method].items():
            title = f"{size} keys"
            time = f"{1e3 * seconds[method, size]:.2f} ms"  # type: ignore[operator]
            of_others = (f"  {row.get(name, '-'):>{max(7, len(COLUMNS[name]))}}" for name in shown)
            rows.append(f"  {title:<18}{time:>14}{''.join(of_others)}")
    return "\n".join(rows)


def _cell(found: Ratio) -> str:
    return found.bound if found.ratio is None else f"{found.bound}{found.ratio:.2f}"


def save(
    inputs: Sequence[Sequence[Line]], rounds: int, machine: Mapping[str, str], path: Path
) -> None:
    """Write the figures and the machine as JSON."""
    content = {
        "machine": machine,
        "rounds": rounds,
        "lines": [line._asdict() for lines in inputs for line in lines],
        "equal_time": [found._asdict() for lines in inputs for found in ratios(lines)],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def plot(inputs: Sequence[Sequence[Line]], path: Path) -> None:
    """Draw errors at equal time, and below them errors against time, a column for each input.

    The ending of `path` is the format.
    """
    import matplotlib
    from matplotlib.figure import Figure

    columns = min(len(inputs), 4)
    rows = 2 * -(-len(inputs) // columns)
    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False,
                                "axes.spines.right": False}):  # fmt: skip
        figure = Figure(figsize=(1 + 4 * columns, 1.2 + 3.4 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False)
        for axes in panels.ravel():
            axes.set_visible(False)
        for i, lines in enumerate(inputs):
            row, column = 2 * (i // columns), i % columns
            above, below = panels[row : row + 2, column]
            below.sharex(above)
            _draw_ratios(above, lines)
            _draw_errors(below, lines)
            if column == 0:
                above.set_ylabel(f"error / error of\n{REFERENCE} keys at equal time")
                below.set_ylabel("relative error of the output")
        handles: dict[str, Any] = {}
        for axes in panels.ravel():
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        labels = [label for label in (*STYLES, EXACT) if label in handles]
        figure.legend(
            [handles[label] for label in labels], labels, loc="outside lower center", ncols=4,
            frameon=False,
        )  # fmt: skip
        figure.savefig(path, dpi=150)


def _draw_ratios(axes: Any, lines: Sequence[Line]) -> None:
    """Errors divided by those of REFERENCE at the same time; bounds are hollow."""
    exact, *others = lines
    seconds = {(line.method, line.kept): line.seconds for line in others}
    found = [x for x in ratios(lines) if x.other == REFERENCE and x.ratio is not None]
    for method, (colour, marker, style) in STYLES.items():
        of_method = [x for x in found if x.method == method]
        times = [1e3 * seconds[method, x.kept] for x in of_method]  # type: ignore[operator]
        heights = [x.ratio for x in of_method]
        axes.plot(times, heights, color=colour, linestyle=style, linewidth=1.2)
        for x, time, height in zip(of_method, times, heights, strict=True):
            face = "none" if x.bound else colour
            axes.plot(time, height, marker=marker, color=colour, markerfacecolor=face, markersize=5)
    axes.axhline(1, color=STYLES[REFERENCE][0], linestyle=STYLES[REFERENCE][2])
    axes.set_title(f"{exact.input}, {exact.keys} keys", fontsize=11)
    _finish(axes, exact)


def _draw_errors(axes: Any, lines: Sequence[Line]) -> None:
    """Errors against times."""
    exact, *others = lines
    for method, (colour, marker, style) in STYLES.items():
        of_method = [line for line in others if line.method == method]
        if of_method:
            axes.plot(
                [1e3 * x.seconds for x in of_method], [x.error for x in of_method],  # type: ignore[operator]
                color=colour, marker=marker, linestyle=style, linewidth=1.2, markersize=5,
                label=method,
            )  # fmt: skip
    axes.set_xlabel("ms, all layers")
    _finish(axes, exact, label=EXACT)


def _finish(axes: Any, exact: Line, label: str | None = None) -> None:
    """Mark the time of exact attention, and make the axes logarithmic."""
    from matplotlib.ticker import LogLocator

    time = 1e3 * exact.seconds  # type: ignore[operator]
    axes.axvline(time, color="black", linewidth=1, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis, subs in ((axes.xaxis, (1, 3)), (axes.yaxis, (1, 2, 5))):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.set_visible(True)
