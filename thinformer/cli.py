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
    parser.add_argument("--version", action="version", version=version("thinformer"))
    commands = parser.add_subparsers(dest="command", metavar="command")

    demo = commands.add_parser(
        "demo", help="exact attention and Thinformer on attention of three trained encoders"
    )
    demo.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw error against keys kept (.png, .svg)"
    )
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench", help="time exact attention, Thinformer and the plain torch version (needs torch)"
    )
    bench.add_argument(
        "--shapes", default="t2t,biggan,4k,16k", help="of t2t,biggan,4k,16k,64k (default: first 4)"
    )
    bench.add_argument("--g", type=int, default=2, help="oversampling (default: 2)")
    bench.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    bench.add_argument(
        "--threads", type=int, help="threads of all candidates (default: as many as torch takes)"
    )
    bench.add_argument("--device", choices=("cpu",), default="cpu", help="only cpu, so far")
    bench.add_argument("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    bench.add_argument(
        "--compiled", action="store_true", help="also torch.compile plain torch (takes minutes)"
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write figures and machine")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="also draw them (.png, .svg)")
    bench.set_defaults(run=_bench)

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
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
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
        "\nerror: ||output - exact|| / ||exact||, mean over layers, heads and seeds; uniform: of as"
        " many keys drawn\nuniformly. time: all recorded heads, on the NumPy path, best of five."
        " memory: the most held at once beside\none layer's inputs."
    )
    if arguments.plot is not None:
        demo.plot(lines, arguments.plot)
        print(f"plot: {arguments.plot}")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("torch") is None:
        raise ImportError("bench needs torch: pip install 'thinformer[torch]'")
    import torch

    from thinformer import _checks, bench

    shapes = arguments.shapes.split(",")
    for shape in shapes:
        _checks.choice("--shapes", shape, tuple(bench.SHAPES))
    for path in (arguments.json, arguments.plot):
        if path is not None:
            _can_write(path)
    if arguments.plot is not None:
        _can_plot(arguments.plot)
    rounds = _checks.integer("--rounds", arguments.rounds, 1)
    g = _checks.integer("--g", arguments.g, 0)
    if arguments.threads is not None:
        torch.set_num_threads(_checks.integer("--threads", arguments.threads, 1))
    print(", ".join(f"{name} {value}" for name, value in bench.machine().items()), end="\n\n")
    results = []
    for shape in shapes:
        result = bench.run(shape, arguments.dtype, g, rounds, arguments.compiled)
        print(bench.format_result(result), end="\n\n", flush=True)
        results.append(result)
    if arguments.json is not None:
        bench.save(results, arguments.json)
    if arguments.plot is not None:
        bench.plot(results, arguments.plot)
    return 0


def _can_plot(path: Path) -> None:
    """Find out before the work whether a plot can be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--plot needs matplotlib: pip install 'thinformer[plot]'")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot takes a file ending in .png, .svg or .pdf; got {path}")
    _can_write(path)


def _can_write(path: Path) -> None:
    """Find out before the work whether a file can be written."""
    if not path.resolve().parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.resolve().parent}")


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
    print(
        "\nsmallest margin: how near the closest decision was to going the other way, in units of"
        " the kernel\nvalues it adds up; 0 is a tie (repeated points)"
    )
    print(f"\n{'FAIL' if failures else 'PASS'}: {len(rows) - failures} of {len(rows)} rows agree")
    return 1 if failures else 0
