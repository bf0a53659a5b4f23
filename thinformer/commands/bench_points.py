"""``thinformer bench-points``: time and error of thinning point sets, beside other packages."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from thinformer.commands.options import can_write, integers, print_machine

LARGEST, SIZES, SEEDS = 10, "256,1024,4096,16384", 10
SIZES_OF_PEERS = "4096,65536"


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "bench-points", help="time and error of thinning point sets, beside goodpoints if"
        " installed; with --peers, beside stein_thinning and coreax too",
    )  # fmt: skip
    parser.add_argument(
        "--largest", type=int, default=LARGEST, metavar="P",
        help=f"time up to 4^P points (default: {LARGEST})",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", metavar="N,..",
        help=f"numbers of points in the comparison of errors (default: {SIZES}; with --peers"
        f" {SIZES_OF_PEERS})",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=int, metavar="N",
        help=f"seeds of that comparison (default: {SEEDS}; with --peers 2 above 16,384 points)",
    )  # fmt: skip
    parser.add_argument(
        "--peers", action="store_true",
        help="instead, compare error, time and memory with goodpoints, stein_thinning and coreax,"
        " where they are installed: each method in a process of its own (takes minutes)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write figures and machine")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare with goodpoints, or with all peers."""
    from thinformer.support import checks

    if arguments.seeds is not None:
        checks.integer("--seeds", arguments.seeds, 2)
    if arguments.json is not None:
        can_write(arguments.json)
    return _peers(arguments) if arguments.peers else _points(arguments)


def _points(arguments: argparse.Namespace) -> int:
    """Print times, then errors, line by line."""
    from thinformer.measuring import points
    from thinformer.support import checks

    largest = checks.integer("--largest", arguments.largest, 5)
    sizes = tuple(integers("--sizes", arguments.sizes or SIZES, 4))
    machine = points.machine_with_goodpoints()
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print("\ntime in ms, n points in two dimensions to sqrt(n)")
    print(f"{'n':<16}{'fit':>8}" + "".join(f"{4**p:>11}" for p in range(5, largest + 1)))
    costs = []
    for cost in points.costs(range(5, largest + 1)):
        print(points.format_cost(cost), flush=True)
        costs.append(cost)
    print(
        "\nMMD (mean and standard error over seeds) of equally weighted rows and of rows with the"
    )
    print("weights of fit_weights, and median time of thinning; Gaussian kernel")
    qualities = []
    for quality in points.qualities(sizes, arguments.seeds or SEEDS):
        print(points.format_quality(quality), flush=True)
        qualities.append(quality)
    qualities.append(points.speed())
    print(points.format_quality(qualities[-1]))
    if arguments.json is not None:
        points.save(costs, qualities, arguments.json)
    return 0


def _peers(arguments: argparse.Namespace) -> int:
    """Print a table for each measure and number of points."""
    from thinformer.measuring import peers
    from thinformer.support.progress import progress

    if arguments.largest != LARGEST:
        raise ValueError("--largest does not go with --peers")
    sizes = integers("--sizes", arguments.sizes or SIZES_OF_PEERS, 32)
    print_machine(peers.machine())
    lines = []
    for measure in peers.METHODS:
        for n in sizes:
            with progress() as tell:
                found = peers.compared(measure, n, arguments.seeds or peers.seeds_for(n), tell)
            print(peers.format_cells(peers.head(measure)))
            for line in found:
                print(peers.format_cells(peers.cells(line)))
            print(flush=True)
            lines += found
    print(peers.NOTES)
    if arguments.json is not None:
        peers.save(lines, arguments.json)
    return 0
