"""``thinformer demo``: exact attention and Thinformer on activations of trained encoders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thinformer.commands.options import can_plot, print_left_out

if TYPE_CHECKING:
    from thinformer.measuring.demo import Line


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "demo", help="exact attention and Thinformer on attention of trained encoders"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw error against keys kept (.png, .svg)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table line by line, and draw it."""
    from thinformer.measuring import demo

    if arguments.plot is not None:
        can_plot(arguments.plot)
    lines: list[Line] = []
    print(demo.HEAD)
    for line in demo.run():
        if line.setting == "exact" and lines:
            print()
        print(demo.format_line(line), flush=True)
        lines.append(line)
    print(
        "\nerror: ||output - exact|| / ||exact||, mean over layers, heads and seeds; uniform: of as"
        " many keys drawn\nuniformly. time: all recorded heads, on the NumPy path, best of five."
        " memory: the most held at once beside\none layer's inputs."
    )
    print_left_out()
    if arguments.plot is not None:
        demo.plot(lines, arguments.plot)
        print(f"plot: {arguments.plot}")
    return 0
