"""``thinformer info``: versions, threads and devices, one fact a line."""

from __future__ import annotations

import argparse
import platform
import textwrap
from importlib.metadata import PackageNotFoundError
from typing import Any

from thinformer.commands.options import kernel_cache
from thinformer.support.version import version

PACKAGES = ("thinformer", "numpy", "scipy", "numba", "numba-cuda", "torch")
NAME, LINE = 17, 100  # columns of the names, and of a line


def add_parser(commands: Any) -> None:
    """Add the command."""
    parser = commands.add_parser("info", help="versions, threads and devices")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the facts."""
    for name, values in _facts().items():
        print(_format(name, values))
    return 0


def _facts() -> dict[str, list[str]]:
    """What is known of this installation, by name."""
    from thinformer.cpu import jit
    from thinformer.cuda.jit import gpu_names, why_unavailable
    from thinformer.support.threads import available_cores, get_num_threads

    no_kernels, reason, cache = jit.why_unavailable(), why_unavailable(), kernel_cache()
    return {
        **{name: [_version(name)] for name in PACKAGES},
        "python": [platform.python_version()],
        "system": [platform.platform()],
        "threads": [f"{get_num_threads()} of {available_cores()} cores"],
        "threading layer": ["thinformer's own threads; Numba's layers are not used"],
        "kernel cache": [cache or f"none: {no_kernels or 'compiled at every start'}"],
        "CUDA devices": _wrapped(f"cannot be used: {reason}") if reason else gpu_names(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _wrapped(sentence: str) -> list[str]:
    return textwrap.wrap(sentence, LINE - NAME, break_long_words=False, break_on_hyphens=False)


def _format(name: str, values: list[str]) -> str:
    """A name, and its values below each other."""
    names = [name, *[""] * (len(values) - 1)]
    return "\n".join(f"{a:<{NAME}}{b}" for a, b in zip(names, values, strict=True))
