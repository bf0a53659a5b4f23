"""``thinformer validate``: whether this installation computes the recorded results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from thinformer.commands.options import print_left_out


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "validate", help="check this installation against recorded results"
    )
    parser.add_argument(
        "--upstream", type=Path, metavar="DIR",
        help="also compare live with the published torch module, in a clone at DIR",
    )  # fmt: skip
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what is checked (default: cpu)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the table and the verdict; 1 where a row does not agree."""
    from thinformer.measuring.validate import format_table, validate, validate_upstream

    if arguments.device == "cuda":
        from thinformer.cuda.jit import check_available

        check_available("--device cuda")
    live = [] if arguments.upstream is None else validate_upstream(arguments.upstream)
    rows = validate(arguments.device) + live
    print(format_table(rows))
    failures = sum(bool(row.failed) for row in rows)
    print(
        "\nsmallest margin: how far the closest decision was from going the other way, in units of"
        "\nthe kernel values it adds up; 0 is a tie (repeated points)"
    )
    print_left_out()
    print(f"\n{'FAIL' if failures else 'PASS'}: {len(rows) - failures} of {len(rows)} rows agree")
    return 1 if failures else 0
