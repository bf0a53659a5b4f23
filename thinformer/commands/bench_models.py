"""``thinformer bench-models``: from which length on thinned attention makes models faster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from thinformer.commands.options import (
    can_write,
    check_model_libraries,
    integers,
    print_machine,
)

DESCRIPTION = """\
Time whole encoders of transformers with exact and with Thinformer attention, by number of tokens.
The weights are random, so nothing is downloaded.
"""

NOTES = """\
shapes, with one sequence each:
  bert       width 384, 6 layers, 12 heads of 32, as MiniLM
  bert-base  width 768, 4 layers, 12 heads of 64, as BERT-base, which has 12 layers
  vit        width 384, 12 layers, 6 heads of 64, as DINOv2-small; an image of k x k patches has
             k^2 + 1 tokens, and k is chosen
  whisper    width 384, 4 layers, 6 heads of 64, as the encoder of Whisper tiny

--g, --size and --correction are for the column "thinned". Its other settings are those of
register(), but it thins at every length, and no head falls back to exact attention. All lengths
and shapes take some minutes.

examples:
  thinformer bench-models --shapes bert --tokens 512,1024,2048
  thinformer bench-models --correction none --size 128 --json models.json
"""


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "bench-models",
        help="time of whole encoders with exact and with Thinformer attention, by length",
        description=DESCRIPTION,
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--shapes", default="bert,bert-base,vit,whisper", metavar="NAME,..",
        help="models to time (default: bert,bert-base,vit,whisper)",
    )  # fmt: skip
    parser.add_argument(
        "--tokens", default="512,1024,2048,4096,8192", metavar="N,..",
        help="numbers of tokens (default: 512,1024,2048,4096,8192)",
    )  # fmt: skip
    few = parser.add_mutually_exclusive_group()
    few.add_argument("--g", type=int, default=2, help="oversampling (default: 2)")
    few.add_argument("--size", type=int, metavar="N", help="number of keys to keep, in place of g")
    parser.add_argument(
        "--correction", default="queries", metavar="NAME",
        help="none, nystrom, queries, or herding (default: queries)",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu",
        help="where the models run (default: cpu)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
        help="type of the numbers; half precision on a GPU only (default: float32)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, metavar="N",
        help="threads of the CPU (default: as many as torch takes)",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="timed rounds (default: 5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write times and machine")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print a row for each model and length, then from which length on thinning pays."""
    from thinformer.support import checks
    from thinformer.support.progress import progress

    check_model_libraries(arguments)
    tokens = integers("--tokens", arguments.tokens, 2)
    if not tokens:
        raise ValueError("--tokens must be integers, as in 1,2; got nothing")
    rounds = checks.integer("--rounds", arguments.rounds, 1)
    selection = _selection(arguments)
    if arguments.json is not None:
        can_write(arguments.json)
    _prepare(arguments)

    from thinformer.measuring import models

    shapes = arguments.shapes.split(",")
    for shape in shapes:
        checks.choice("--shapes", shape, tuple(models.NAMES))
    options = models.always_thinned(selection)
    machine = models.machine(arguments.device, arguments.dtype)
    print_machine(machine)
    print(models.format_cells(models.HEAD), flush=True)
    rows = []
    with progress() as tell:
        for row in models.measure(
            shapes, tokens, options, rounds, arguments.device, arguments.dtype, tell
        ):
            print(models.format_cells(models.cells(row)), flush=True)
            rows.append(row)
    print(f"\n{models.format_pays_from(rows)}\n\n{models.NOTES}")
    if arguments.json is not None:
        models.save(rows, options, machine, arguments.json)
    return 0


def _selection(arguments: argparse.Namespace) -> Any:
    """Which keys the column "thinned" keeps, at any length."""
    from thinformer.attending.options import KeySelection
    from thinformer.attending.settings import WAYS
    from thinformer.support import checks

    g = checks.integer("--g", arguments.g, 0)
    size = arguments.size
    if size is not None:
        size = checks.integer("--size", size, 1)
    way = checks.choice("--correction", arguments.correction, tuple(WAYS))
    plain = {"correction": None, "temperature": None}
    return KeySelection(g=g, size=size, min_length=0, **(plain | WAYS[way]))


def _prepare(arguments: argparse.Namespace) -> None:
    """Check the device, and set the threads."""
    import torch

    from thinformer.support import checks

    if arguments.device == "cuda":
        from thinformer.cuda.jit import check_available

        check_available("--device cuda")
    elif arguments.dtype != "float32":
        raise ValueError(f"--dtype {arguments.dtype} takes --device cuda")
    if arguments.threads is not None:
        torch.set_num_threads(checks.integer("--threads", arguments.threads, 1))
