"""``thinformer tune`` of a decoder: how many keys each layer of a `ThinnedCache` keeps."""

from __future__ import annotations

import argparse
from typing import Any

from thinformer.commands.eval_decoder import add_lengths, names_of, refuse, text_of_texts
from thinformer.commands.options import can_write, errors_of_models, print_machine

SIZE = 256  # by default
OPTIONS = ("size", "prompt", "read")
OF_ENCODERS = ("image", "audio", "error_target", "sizes", "correction", "min_length", "rounds")

NOTES = """\
KL: mean divergence, in nats, of the distributions of the next token from those with the full cache.
KL of it alone: where that layer alone is thinned, to half of the mean number of keys; mean over the
texts that the sizes are tuned on."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that are for decoders alone."""
    decoders = parser.add_argument_group("options for decoders")
    decoders.add_argument(
        "--size", type=int, metavar="N",
        help=f"keys that a head keeps, mean over layers (default: {SIZE})",
    )  # fmt: skip
    add_lengths(decoders)


def run(arguments: argparse.Namespace, name: str) -> int:
    """Tune the sizes of a decoder's layers, print them, and write them."""
    from thinformer.attending.cache import SINKS, CacheOptions
    from thinformer.support import checks
    from thinformer.support.progress import progress

    refuse(arguments, OF_ENCODERS, "encoders", f"{name} is a decoder")
    size = SIZE if arguments.size is None else arguments.size
    checks.integer("--size", size, SINKS + CacheOptions().recent + 1)
    for option in ("prompt", "read"):
        if getattr(arguments, option) is not None:
            checks.integer(f"--{option}", getattr(arguments, option), 1)
    if arguments.output is not None:
        can_write(arguments.output)
    from thinformer.attending.settings import save_sizes
    from thinformer.measuring import cache_quality, models, tune_decoder
    from thinformer.torch.evaluation import decoders

    with progress() as tell:
        tell("reading", None)
        decoder = decoders.load_decoder(name)
        texts = decoders.read_whole_texts(decoder, arguments.text, arguments.max_length)
        named = list(zip(names_of(arguments.text), texts, strict=True))
        lengths = cache_quality.lengths_of(named, arguments.prompt, arguments.read)
    machine = models.machine(decoder.model.device.type, "float32")
    print_machine(machine)
    kind = type(decoder.model).__name__
    print(f"model: {name}, {kind}; tuned on {len(texts[::2])} of {len(texts)} texts")
    print(text_of_texts(texts, lengths), end="\n\n", flush=True)
    with progress() as tell, errors_of_models():
        tuned = tune_decoder.tune(decoder, named, size, lengths.prompt, lengths.read, tell)
    print(tune_decoder.format_tuned(tuned), NOTES, sep="\n\n")
    if arguments.output is not None:
        measured: dict[str, Any] = {
            "model": name, "class": kind, "texts": list(map(str, arguments.text)),
            "prompt": lengths.prompt, "read": lengths.read,
        }  # fmt: skip
        measured |= tune_decoder.figures(tuned) | {"machine": machine}
        save_sizes(arguments.output, tuned.of_model(), measured)
        print(f"sizes: {arguments.output}")
    return 0
