"""``thinformer eval-model`` of a decoder: what it predicts with a `ThinnedCache`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thinformer.commands.options import can_write, errors_of_models, integers, print_machine

GENERATE, SIZE = 64, "256"  # by default
OF_ENCODERS = ("image", "audio", "settings", "g", "correction", "error_threshold", "min_length",
               "exact")  # fmt: skip
OF_DECODERS = ("prompt", "read", "facts", "generate")

NOTES = """\
KL: mean divergence, in nats, of the distributions of the next token from those with the full cache.
agreement: how often the most likely token is the same. log-likelihood: of the tokens that follow,
in nats a token, minus that with the full cache. Means over tokens and texts. The size counts all
keys of the prompt that a head keeps, with sinks and recent tokens; what is read on is kept too.
All layers have the same size here. `thinformer tune` chooses one for each layer of ThinnedCache."""

FACTS = """\
Each fact is a number in a line of the prompt, which ends with the question for it. The keys are
chosen at the end of the prompt, and all of the answer is read from the keys kept. Recalled: the
most likely continuation begins with the number."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that are for decoders alone."""
    decoders = parser.add_argument_group("options for decoders")
    add_lengths(decoders)
    decoders.add_argument(
        "--generate", type=int, metavar="N",
        help=f"tokens of the generation that is timed (default: {GENERATE})",
    )  # fmt: skip
    decoders.add_argument(
        "--facts", type=int, metavar="N",
        help="numbers to plant in prompts and to ask for; each reads a prompt (default: 0)",
    )  # fmt: skip


def add_lengths(parser: Any) -> None:
    """Add the numbers of tokens that are read of a text."""
    parser.add_argument(
        "--prompt", type=int, metavar="N", help="tokens of a text that are the prompt (default:"
        " 2048, or 3/4 of the shortest text if that is fewer)",
    )  # fmt: skip
    parser.add_argument(
        "--read", type=int, metavar="N",
        help="tokens that are read on after the prompt (default: 128, or what all texts have)",
    )  # fmt: skip


def refuse(arguments: argparse.Namespace, options: Sequence[str], takes: str, this: str) -> None:
    """Raise for options that a model of another kind takes; `this` says what the model is."""
    for option in options:
        if getattr(arguments, option) is not None:
            raise ValueError(f"--{option.replace('_', '-')} is for {takes}; {this}")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the decoder, print each table when it is found, and write the figures."""
    from thinformer.support.progress import progress

    sizes = _checked(arguments)
    from thinformer.measuring import cache_facts, cache_quality, cache_speed, models
    from thinformer.torch.evaluation import decoders

    facts, generate, seed = arguments.facts, arguments.generate, arguments.seed
    with progress() as tell:
        tell("reading", None)
        decoder = decoders.load_decoder(arguments.model)
        texts = decoders.read_whole_texts(decoder, arguments.text, arguments.max_length)
        named = list(zip(names_of(arguments.text), texts, strict=True))
        lengths = cache_quality.lengths_of(named, arguments.prompt, arguments.read)
        prompt, read, _ = lengths
        layers = decoders.count_layers(decoder, prompt + generate)
    machine = models.machine(decoder.model.device.type, "float32")
    print_machine(machine)
    print(f"model: {arguments.model}, {type(decoder.model).__name__}; {_of_layers(*layers)}")
    print(text_of_texts(texts, lengths), end="\n\n", flush=True)
    with progress() as tell, errors_of_models():
        readings = cache_quality.readings(decoder, named, sizes, prompt, read, seed, tell)
    print(cache_quality.format_averages(readings), NOTES, sep="\n\n", end="\n\n")
    print("KL by text: of ThinnedCache, by size, and of the best other method")
    print(cache_quality.format_texts(readings), end="\n\n", flush=True)
    with progress() as tell, errors_of_models():
        recalls = cache_facts.recalls(decoder, texts, sizes, prompt, facts, seed, tell)
    if recalls:
        print(cache_facts.format_recalls(recalls), FACTS, sep="\n\n", end="\n\n", flush=True)
    with progress() as tell, errors_of_models():
        generations = cache_speed.generations(
            decoder, texts[0][:prompt], sizes, generate, arguments.rounds, tell
        )
    rounds = "one round" if arguments.rounds == 1 else f"medians of {arguments.rounds} rounds"
    print(f"{generate} tokens generated after the prompt of {named[0][0]}, {rounds}")
    print(cache_speed.format_generations(generations))
    if arguments.json is not None:
        found: dict[str, Sequence[Any]] = {
            "readings": readings,
            "averages": cache_quality.averages(readings),
            "recalls": recalls,
            "generations": generations,
        }
        figures = {name: [each._asdict() for each in some] for name, some in found.items()}
        common = {"model": arguments.model, "machine": machine, "prompt": prompt, "read": read}
        arguments.json.write_text(json.dumps(common | figures, indent=1), encoding="utf-8")
    return 0


def _checked(arguments: argparse.Namespace) -> list[int]:
    """Check the options, fill in defaults, and return the sizes."""
    from thinformer.attending.cache import SINKS, CacheOptions
    from thinformer.support import checks

    refuse(arguments, OF_ENCODERS, "encoders", f"{arguments.model} is a decoder")
    sizes = integers("--size", arguments.size or SIZE, SINKS + CacheOptions().recent + 1)
    for option, default, least in (
        ("prompt", None, 1), ("read", None, 1), ("facts", 0, 0), ("generate", GENERATE, 2),
        ("rounds", None, 1),
    ):  # fmt: skip
        if getattr(arguments, option) is None:
            setattr(arguments, option, default)
        else:
            checks.integer(f"--{option}", getattr(arguments, option), least)
    if arguments.json is not None:
        can_write(arguments.json)
    return sorted(set(sizes))


def names_of(paths: Sequence[Path]) -> list[str]:
    """The names of files; with their folders, where two are the same."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else list(map(str, paths))


def _of_layers(thinned: int, others: int) -> str:
    exact = f"; {others} with a window of their own stay as they are" if others else ""
    return f"{thinned} layers are thinned{exact}"


def text_of_texts(texts: Sequence[Any], lengths: Any) -> str:
    """How long the texts are, and what is read of them."""
    counts = [len(tokens) for tokens in texts]
    most = "" if min(counts) == max(counts) else f"{min(counts):,} to "
    shorter = "" if lengths.usual else ", for the shortest text has no more room"
    return (
        f"texts: {len(texts)}, of {most}{max(counts):,} tokens; the first {lengths.prompt:,} of "
        f"each are the prompt, the next {lengths.read:,} are read on{shorter}"
    )
