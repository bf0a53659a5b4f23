"""What several commands share: options, checks before the work, and errors of models."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


def add_inputs(
    parser: argparse.ArgumentParser, required: bool, texts: str = "texts, one a line, in UTF-8"
) -> None:
    """Add what a model reads; `texts` says what files of texts are."""
    inputs = parser.add_mutually_exclusive_group(required=required)
    inputs.add_argument("--text", type=Path, nargs="+", metavar="FILE", help=texts)
    inputs.add_argument("--image", type=Path, nargs="+", metavar="FILE", help="images")
    inputs.add_argument("--audio", type=Path, nargs="+", metavar="FILE", help=".wav files")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="tokens that a text is cut to (default: all"
        " that the model takes)",
    )  # fmt: skip


def add_csv(parser: argparse.ArgumentParser) -> None:
    """Add how files of CSV are read."""
    parser.add_argument(
        "--delimiter", metavar="C", help="delimiter of CSV (default: comma; tab for .tsv)"
    )
    parser.add_argument(
        "--comment", metavar="C",
        help="lines of CSV that begin with C are no rows (default: #, where the first line begins"
        " with it)",
    )  # fmt: skip


def check_model_libraries(arguments: argparse.Namespace) -> None:
    """Check that the libraries of a command that runs a model are installed."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"{arguments.command} needs {package}, which is not installed: "
                "pip install torch transformers"
            )


def check_model_options(arguments: argparse.Namespace) -> None:
    """Check the options of a command that runs a model on inputs, and its libraries."""
    from thinformer.support import checks

    check_model_libraries(arguments)
    if arguments.max_length is not None:
        checks.integer("--max-length", arguments.max_length, 1)
        if arguments.text is None:
            raise ValueError("--max-length is for --text")


def read_model(arguments: argparse.Namespace, name: str) -> tuple[str, Any, list[dict[str, Any]]]:
    """Return the folder or hub name of a model, the model, and its inputs."""
    from thinformer.torch.evaluation import encoders

    folder = encoders.folder_of(name)
    if arguments.text:
        kind, inputs = "text", encoders.read_texts(folder, arguments.text, arguments.max_length)
    elif arguments.image:
        kind, inputs = "image", encoders.read_images(folder, arguments.image)
    else:
        kind, inputs = "audio", encoders.read_sounds(folder, arguments.audio)
    return folder, encoders.load_encoder(folder, kind), inputs


@contextlib.contextmanager
def errors_of_models() -> Iterator[None]:
    """Turn whatever a model raises into an error of one line."""
    try:
        yield
    except (NotImplementedError, ValueError) as error:
        raise ValueError(_one_line(error)) from error
    except Exception as error:  # models raise errors of every kind
        raise ValueError(f"{type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def integers(name: str, text: str | None, least: int) -> list[int]:
    """Return the integers that an option lists with commas."""
    from thinformer.support import checks

    try:
        numbers = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"{name} must be integers, as in 1,2; got {text}") from None
    return [checks.integer(name, number, least) for number in numbers]


def corrections(text: str) -> list[str]:
    """Return the corrections that --correction lists with commas; herding counts as one."""
    from thinformer.attending.settings import WAYS
    from thinformer.support import checks

    return [checks.choice("--correction", word, tuple(WAYS)) for word in text.split(",")]


def kernel_cache() -> str | None:
    """Return the folder that compiled kernels are kept in; None where they are not."""
    from thinformer.cpu import halve, jit

    return None if jit.why_unavailable() else halve.halve_buckets.stats.cache_path


def can_plot(path: Path, option: str = "--plot") -> None:
    """Raise, before the work, where a plot cannot be drawn or written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(f"{option} needs matplotlib: pip install matplotlib")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"{option} takes a file ending in .png, .svg or .pdf; got {path}")
    can_write(path)


def can_write(path: Path) -> None:
    """Raise, before the work, where a file cannot be written."""
    try:
        folder = path.resolve().parent
    except (OSError, RuntimeError):  # before Python 3.13 a RuntimeError
        raise OSError(f"{path}: is a loop of symbolic links") from None
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {folder}")


def can_write_figures(arguments: argparse.Namespace) -> None:
    """Raise, before the work, where the files of --json and --plot cannot be written."""
    for path in (arguments.json, arguments.plot):
        if path is not None:
            can_write(path)
    if arguments.plot is not None:
        can_plot(arguments.plot)


def print_left_out() -> None:
    """Print which of the recorded activations are not installed, where some are not."""
    from thinformer.data import left_out

    print_sentences([left_out()])


def print_sentences(sentences: Iterable[str]) -> None:
    """Print sentences that are not empty, each after an empty line."""
    for sentence in sentences:
        if sentence:
            print("", *textwrap.wrap(sentence, 100), sep="\n")


def print_machine(machine: Mapping[str, str]) -> None:
    """Print what figures are measured on, and an empty line."""
    print(", ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n")
