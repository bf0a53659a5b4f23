"""``thinformer bench``: times beside exact attention; with --quality, errors at equal time."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from thinformer.commands.options import (
    can_write_figures,
    integers,
    print_left_out,
    print_machine,
    print_sentences,
)

# options that go with the measurement of speed only, and their defaults
SPEED = {"shapes": "t2t,biggan,4k,16k", "g": 2, "dtype": "float32", "device": "cpu",
         "compiled": False}  # fmt: skip


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "bench", help="time exact attention, Thinformer and the plain torch version (needs torch);"
        " with --quality, error and time on activations, beside other fast attention",
    )  # fmt: skip
    parser.add_argument(
        "--quality", nargs="*", type=Path, metavar="FILE.npz",
        help="instead, measure how close to exact attention Thinformer, its corrections and other"
        " methods are at the same time: on activations of trained encoders, or of files with"
        " arrays layerL_query, layerL_key and layerL_value, (1, tokens, heads, head dim); text,"
        " vision and audio name recorded ones",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", metavar="N,..",
        help="with --quality: numbers of keys kept (default: those of all g, for each method as"
        " long as it is not much slower than exact attention)",
    )  # fmt: skip
    parser.add_argument(
        "--shapes",
        help="shapes to time, out of t2t,biggan,4k,16k,64k,t2t-b64,64k-h16 (default: the first 4;"
        " the last 2 are for a GPU)",
    )  # fmt: skip
    parser.add_argument("--g", type=int, help="oversampling (default: 2)")
    parser.add_argument(
        "--dtype", choices=("float32", "float64", "float16", "bfloat16"),
        help="type of the numbers; half precision on a GPU only (default: float32)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, help="threads of all candidates (default: as many as torch takes)"
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="where attention is computed (default: cpu)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    parser.add_argument(
        "--compiled", action="store_true", help="also torch.compile plain torch (takes minutes)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write figures and machine")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw them (.png, .svg)")
    parser.set_defaults(run=run, **SPEED)


def run(arguments: argparse.Namespace) -> int:
    """Measure speed, or quality."""
    if importlib.util.find_spec("torch") is None:
        raise ImportError("bench needs torch: pip install torch")
    if arguments.quality is not None:
        return _quality(arguments)
    if arguments.sizes is not None:
        raise ValueError("--sizes belongs to --quality")
    return _speed(arguments)


def _speed(arguments: argparse.Namespace) -> int:
    import torch

    from thinformer.measuring import speed
    from thinformer.support import checks

    if arguments.device == "cuda":
        from thinformer.cuda.jit import check_available
        from thinformer.measuring import speed_cuda

        check_available("--device cuda")
        measure, machine = speed_cuda.run, speed_cuda.machine_with_gpu
    elif arguments.dtype in ("float16", "bfloat16"):
        raise ValueError(f"--dtype {arguments.dtype} takes --device cuda")
    else:
        measure, machine = speed.run, speed.machine_with_torch
    shapes = arguments.shapes.split(",")
    for shape in shapes:
        checks.choice("--shapes", shape, tuple(speed.SHAPES))
    can_write_figures(arguments)
    rounds = checks.integer("--rounds", arguments.rounds, 1)
    g = checks.integer("--g", arguments.g, 0)
    if arguments.threads is not None:
        torch.set_num_threads(checks.integer("--threads", arguments.threads, 1))
    print_machine(machine())
    results = []
    for shape in shapes:
        result = measure(shape, arguments.dtype, g, rounds, arguments.compiled)
        print(speed.format_result(result), end="\n\n", flush=True)
        results.append(result)
    if arguments.device == "cuda":
        n = speed_cuda.crossover(arguments.dtype, g, rounds)
        print(
            f"faster than exact attention from {n} tokens on" if n else "exact attention is faster"
        )
    if arguments.json is not None:
        speed.save(results, machine(), arguments.json)
    if arguments.plot is not None:
        speed.plot(results, arguments.plot)
    return 0


def _quality(arguments: argparse.Namespace) -> int:
    import torch

    from thinformer.measuring import activations, attention_peers, quality, quality_report
    from thinformer.support import checks
    from thinformer.support.progress import progress
    from thinformer.support.threads import set_num_threads

    for name, default in SPEED.items():
        if getattr(arguments, name) != default:
            raise ValueError(f"--{name} does not go with --quality")
    rounds = checks.integer("--rounds", arguments.rounds, 2)
    sizes = integers("--sizes", arguments.sizes, 1)
    can_write_figures(arguments)
    inputs = activations.load(arguments.quality)
    chosen = {name: quality.chosen_cases(name, layers, sizes)
              for name, layers in inputs.items() if sizes}  # fmt: skip
    if arguments.threads is not None:
        set_num_threads(checks.integer("--threads", arguments.threads, 1))
        torch.set_num_threads(arguments.threads)
    machine = quality.machine_with_load()
    print_machine(machine)
    measured = []
    for name, layers in inputs.items():
        with progress() as tell:
            cases = chosen.get(name) or quality.usual_cases(name, layers, tell)
            lines = quality.measure(name, layers, cases, rounds, tell)
        print(quality_report.format_lines(lines), end="\n\n")
        print(quality_report.format_equal_time(lines), end="\n\n", flush=True)
        measured.append(lines)
    print(quality_report.NOTES)
    reasons = [attention_peers.left_out(layers) for layers in inputs.values()]
    print_sentences(dict.fromkeys(reason for of in reasons for reason in of.values()))
    if not arguments.quality:
        print_left_out()
    if arguments.json is not None:
        quality_report.save(measured, rounds, machine, arguments.json)
    if arguments.plot is not None:
        quality_report.plot(measured, arguments.plot)
    return 0
