"""``thinformer bench-points``: time and error of thinning point sets, beside goodpoints."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from thinformer.commands.options import can_write


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "bench-points", help="time and error of thinning point sets, beside goodpoints if installed"
    )
    parser.add_argument(
        "--largest", type=int, default=10, metavar="P", help="time up to 4^P points (default: 10)"
    )
    parser.add_argument(
        "--sizes", default="256,1024,4096,16384", metavar="N,..",
        help="numbers of points in the comparison of errors (default: 256,1024,4096,16384)",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, default=10, metavar="N",
        help="seeds of that comparison (default: 10)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write figures and machine")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print times, then errors, line by line."""
    from thinformer.measuring import points
    from thinformer.support import checks

    largest = checks.integer("--largest", arguments.largest, 5)
    seeds = checks.integer("--seeds", arguments.seeds, 2)
    sizes = tuple(checks.integer("--sizes", int(n), 4) for n in arguments.sizes.split(","))
    if arguments.json is not None:
        can_write(arguments.json)
    machine = points.machine_with_goodpoints()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print("\ntime in ms, n points in two dimensions to sqrt(n)")
    print(f"{'n':<16}{'fit':>8}" + "".join(f"{4**p:>11}" for p in range(5, largest + 1)))
    costs = []
    for cost in points.costs(range(5, largest + 1)):
        print(points.format_cost(cost), flush=True)
        costs.append(cost)
    print("\nMMD (mean and standard error over seeds) and median time; Gaussian kernel")
    qualities = []
    for quality in points.qualities(sizes, seeds):
        print(points.format_quality(quality), flush=True)
        qualities.append(quality)
    qualities.append(points.speed())
    print(points.format_quality(qualities[-1]))
    if arguments.json is not None:
        points.save(costs, qualities, arguments.json)
    return 0
