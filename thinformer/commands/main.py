"""The ``thinformer`` command: its parser, made of those of the single commands, and the call."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from thinformer.commands import (
    bench,
    bench_models,
    bench_points,
    demo,
    eval_model,
    info,
    test,
    thin,
    tune,
    validate,
    warm,
)
from thinformer.support.checks import CompilerUnavailableError, CudaUnavailableError
from thinformer.support.compiling import said_in_pipes
from thinformer.support.version import version

# in the order of the help page; each has add_parser(commands), and a handler that returns a status
COMMANDS = (
    thin,
    test,
    demo,
    bench,
    bench_points,
    bench_models,
    eval_model,
    tune,
    info,
    warm,
    validate,
)

UNAVAILABLE = (CompilerUnavailableError, CudaUnavailableError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 for a failed check, 2 for an error."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        with said_in_pipes():
            return arguments.run(arguments)
    except (OSError, ValueError, ImportError, *UNAVAILABLE) as error:
        print(f"thinformer {arguments.command}: {error}", file=sys.stderr)
        return 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = argparse.ArgumentParser("thinformer", description="Thinformer attention and thinning.")
    parser.add_argument("--version", action="version", version=version("thinformer"))
    commands = parser.add_subparsers(dest="command", metavar="command")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
