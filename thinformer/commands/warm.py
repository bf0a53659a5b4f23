"""``thinformer warm``: compile the kernels of usual calls, and keep them on the disk."""

from __future__ import annotations

import argparse
from typing import Any

from thinformer.commands.options import kernel_cache

NOTES = """\
Kernels are compiled when they are first called, and kept on the disk. The first call takes 10 to 30
seconds. This command makes the usual calls once, so that no later process waits: in the image of a
container, or before tests. All kernels by name are compiled; a function of your own is not.

What is kept belongs to this processor and this version. `thinformer info` says where it is, and
NUMBA_CACHE_DIR names another folder.
"""


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "warm",
        help="compile the kernels of usual calls once, for images and CI",
        description="Compile the kernels of usual calls once, and keep them on the disk.",
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the calls, and print what each took."""
    from thinformer.measuring.warm import warm

    if kernel_cache() is None:
        raise ValueError(
            "no kernel is kept: no folder for them can be written to, or THINFORMER_CACHE is 0; "
            "NUMBA_CACHE_DIR names a folder"
        )
    for name, seconds in warm():
        print(f"{name:<48}{seconds:6.1f} s", flush=True)
    return 0
