"""Where thinning pays: the time of whole encoders with exact and with thinned attention.

The weights are random, so nothing is downloaded. Times do not depend on the weights, as long as no
head falls back to exact attention; where all are thinned, none may. All implementations run in one
process on one model, in turn, round after round: other work of the machine slows them alike. A
ratio is the median over rounds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from thinformer.attending.options import KeySelection, LayerOptions
from thinformer.measuring import speed
from thinformer.support.machine import versions
from thinformer.torch.choose.calls import keys_kept
from thinformer.torch.evaluation.shapes import Encoder, make_encoder
from thinformer.torch.transformers import register

NEVER = 1e9  # an error threshold that no estimate reaches
EXACT, THINNED, DEFAULT = COLUMNS = ("exact", "thinned", "default")
NAMES = {
    "bert": "BERT, width 384",
    "bert-base": "BERT, width 768",
    "vit": "ViT, width 384",
    "whisper": "Whisper, width 384",
}
HEAD = ("model", "tokens", "keys kept", "exact", "thinned", "default",
        "exact / thinned", "exact / default")  # fmt: skip
NOTES = """\
exact     attn_implementation="sdpa"
thinned   every layer and head thinned at every length, to the keys kept
default   what register() does without arguments
Times are medians in milliseconds. Ratios are medians of the ratios of a round; above 1, thinned
attention is faster. The weights are random, so attention is nearly uniform, and no head falls back
to exact attention. In a trained model heads may; such a head takes the time of both."""
WIDTHS = (20, 7, 10, 9, 9, 9, 16, 16)


@dataclass
class Row:
    """One model at one length.

    kept : keys kept where attention is thinned
    seconds : for each column the time of each round
    """

    shape: str
    tokens: int
    kept: int
    seconds: dict[str, list[float]]

    def milliseconds(self, column: str) -> float:
        """Return the median time of a column."""
        return 1e3 * float(np.median(self.seconds[column]))

    def ratio(self, column: str) -> float:
        """Return how many times as long exact attention takes: the median over rounds."""
        return float(np.median(np.divide(self.seconds[EXACT], self.seconds[column])))


def always_thinned(selection: KeySelection) -> LayerOptions:
    """Return the options of a layer by default with another selection, without falling back."""
    return without_falling_back(LayerOptions(selection))


def without_falling_back(options: LayerOptions) -> LayerOptions:
    """Return options that estimate errors if they did, but leave no head exact."""
    return options if options.fallback is None else replace(options, error_threshold=NEVER)


def measure(
    shapes: list[str],
    tokens: list[int],
    options: LayerOptions,
    rounds: int,
    device: str = "cpu",
    dtype: str = "float32",
    tell: Callable[[str, float | None], None] = lambda stage, fraction: None,
) -> Iterator[Row]:
    """Time each shape at each number of tokens; `options` are those of the column "thinned"."""
    implementations = {EXACT: "sdpa", THINNED: "thinformer-thinned", DEFAULT: "thinformer-default"}
    register(implementations[THINNED], options=options)
    register(implementations[DEFAULT])
    pairs = [(shape, n) for shape in shapes for n in tokens]
    for i, (shape, n) in enumerate(pairs):
        tell(f"{NAMES[shape]}, {n:,} tokens", i / len(pairs))
        torch.manual_seed(0)
        encoder = on_device(make_encoder(shape, n), device, getattr(torch, dtype))
        kept = keys_kept(encoder.tokens, options.selection, False)
        yield Row(shape, encoder.tokens, kept, times_in_turn(encoder, implementations, rounds))


def on_device(encoder: Encoder, device: str, dtype: torch.dtype) -> Encoder:
    """Return a model and its input on a device, in a dtype; numbers of words stay integers."""
    inputs = {name: tensor.to(device) for name, tensor in encoder.inputs.items()}
    floats = {name: x.to(dtype) for name, x in inputs.items() if x.is_floating_point()}
    return Encoder(encoder.model.to(device, dtype), inputs | floats, encoder.tokens)


def times_in_turn(
    encoder: Encoder, implementations: dict[str, str], rounds: int
) -> dict[str, list[float]]:
    """Return the times of each attention implementation, after an untimed pass of each."""
    seconds: dict[str, list[float]] = {column: [] for column in implementations}
    for name in implementations.values():
        _seconds(encoder, name)
    for i in range(rounds):
        columns = list(implementations)
        for column in columns if i % 2 == 0 else reversed(columns):  # none is always the first
            seconds[column].append(_seconds(encoder, implementations[column]))
    return seconds


def machine(device: str, dtype: str) -> dict[str, str]:
    """The machine, its threads or its GPU, and the type of the numbers."""
    if device == "cuda":
        from thinformer.measuring.speed_cuda import machine_with_gpu

        found = machine_with_gpu()
    else:
        found = speed.machine_with_torch() | {"threads": str(torch.get_num_threads())}
    return found | versions("transformers") | {"dtype": dtype}


def cells(row: Row) -> list[str]:
    """Return the figures of a row as they are printed, in the order of `HEAD`."""
    times = [f"{row.milliseconds(column):,.1f}" for column in COLUMNS]
    ratios = [f"{row.ratio(column):.2f}" for column in (THINNED, DEFAULT)]
    return [NAMES[row.shape], f"{row.tokens:,}", f"{row.kept:,}", *times, *ratios]


def format_cells(texts: list[str] | tuple[str, ...]) -> str:
    """Return a line for a terminal."""
    first, *others = zip(texts, WIDTHS, strict=True)
    return f"{first[0]:<{first[1]}}" + "".join(f"{text:>{width}}" for text, width in others)


def pays_from(rows: list[Row]) -> dict[str, int | None]:
    """Return, by shape, the number of tokens from which on thinned attention is faster.

    It is the least number that was measured, such that thinned attention is faster there and at
    each larger one; None where there is none.
    """
    found: dict[str, int | None] = {}
    for shape in dict.fromkeys(row.shape for row in rows):
        faster = {row.tokens: row.ratio(THINNED) > 1 for row in rows if row.shape == shape}
        largest_slower = max((n for n in faster if not faster[n]), default=0)
        found[shape] = min((n for n in faster if n > largest_slower), default=None)
    return found


def format_pays_from(rows: list[Row]) -> str:
    """Return a line for each shape."""
    return "\n".join(
        f"{NAMES[shape]}: thinned attention is faster {length(tokens)}"
        for shape, tokens in pays_from(rows).items()
    )


def length(tokens: int | None) -> str:
    """Return in words what `pays_from` found."""
    return "at no measured length" if tokens is None else f"from {tokens:,} tokens on"


def save(rows: list[Row], options: LayerOptions, machine: dict[str, str], path: Path) -> None:
    """Write the times, the settings of "thinned" and the machine as JSON."""
    content = {
        "machine": machine,
        "thinned": options.settings(),
        "pays_from": pays_from(rows),
        "models": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def _seconds(encoder: Encoder, implementation: str) -> float:
    encoder.model.set_attn_implementation(implementation)
    on_gpu = encoder.model.device.type == "cuda"
    with torch.inference_mode():
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        encoder.model(**encoder.inputs)
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start
