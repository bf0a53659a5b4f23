"""The ``thinformer`` command: arguments and printing only."""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 for a failed check, 2 for an error."""
    parser = argparse.ArgumentParser("thinformer", description="Thinformer attention and thinning.")
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo", help="exact attention and Thinformer on attention of three trained encoders"
    )
    demo.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw error against keys kept (.png, .svg)"
    )
    demo.set_defaults(run=_demo)

    info = commands.add_parser("info", help="versions, threads and devices")
    info.set_defaults(run=_info)

    validate = commands.add_parser(
        "validate", help="check this installation against recorded results"
    )
    validate.add_argument(
        "--upstream", type=Path, metavar="DIR",
        help="also compare live with the published torch module, in a clone at DIR",
    )  # fmt: skip
    validate.set_defaults(run=_validate)

    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except (OSError, ValueError, ImportError) as error:
        print(f"thinformer {arguments.command}: {error}", file=sys.stderr)
        return 2


def _demo(arguments: argparse.Namespace) -> int:
    from thinformer import demo

    if arguments.plot is not None:
        _can_plot(arguments.plot)
    lines: list[demo.Line] = []
    print(demo.HEAD)
    for line in demo.run():
        if line.setting == "exact" and lines:
            print()
        print(demo.format_line(line), flush=True)
        lines.append(line)
    print(
        "\nerror: ||output - exact|| / ||exact||, mean over layers, heads and seeds; beside it,"
        " of as many keys drawn\nuniformly. time: all recorded heads, on the NumPy path."
        " memory: the most held at once beside one layer's inputs."
    )
    if arguments.plot is not None:
        demo.plot(lines, arguments.plot)
        print(f"plot: {arguments.plot}")
    return 0


def _can_plot(path: Path) -> None:
    """Find out before the work whether a plot can be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--plot needs matplotlib: pip install 'thinformer[plot]'")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot takes a file ending in .png, .svg or .pdf; got {path}")
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f"--plot: there is no folder {path.resolve().parent}")


def _info(arguments: argparse.Namespace) -> int:
    from numba import cuda

    from thinformer import cpu
    from thinformer._pool import available_cores, get_num_threads

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    rows = {name: installed(name) for name in ("thinformer", "numpy", "scipy", "numba", "torch")}
    rows["python"] = f"{platform.python_version()} on {platform.platform()}"
    rows["threads"] = f"{get_num_threads()} of {available_cores()} cores"
    rows["threading layer"] = "thinformer's own threads; Numba's layers are not used"
    cache = cpu.halve_buckets.stats.cache_path
    rows["kernel cache"] = cache or "none: compiled at every start"
    names = [gpu.name for gpu in cuda.gpus] if cuda.is_available() else []
    gpus = ", ".join(name.decode() if isinstance(name, bytes) else name for name in names)
    rows["CUDA devices"] = f"{gpus or 'none found'}; thinformer runs on the CPU"
    for name, value in rows.items():
        print(f"{name:<16} {value}")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from thinformer.validate import format_table, validate, validate_upstream

    live = [] if arguments.upstream is None else validate_upstream(arguments.upstream)
    rows = validate() + live
    print(format_table(rows))
    failures = sum(bool(row.failed) for row in rows)
    print(f"\n{'FAIL' if failures else 'PASS'}: {len(rows) - failures} of {len(rows)} rows agree")
    return 1 if failures else 0
