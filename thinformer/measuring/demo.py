"""The main job on real input: attention of three trained encoders, exact and by Thinformer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.arrays import attention
from thinformer.attending.arguments import softmax_scale
from thinformer.attending.softmax import attend
from thinformer.data import installed_activations, load_activations
from thinformer.halving.schedule import coreset_size
from thinformer.support.machine import peak_megabytes

SEEDS = range(5)
COLOURS = ("#0072B2", "#D55E00", "#009E73")  # Okabe & Ito's, for colour-blind readers too


class Line(NamedTuple):
    """One setting on one encoder's activations.

    setting : "exact" or "g = ..."
    kept, keys : number of kept keys, and of all keys
    error : mean over layers, heads and seeds of ||output - exact|| / ||exact||
    uniform_error : the same for an equal number of keys drawn uniformly
    seconds : time for all recorded heads, best of the seeds
    megabytes : the most memory held at once, without the inputs and with the output
    """

    encoder: str
    setting: str
    kept: int
    keys: int
    error: float
    uniform_error: float
    seconds: float
    megabytes: float


def run() -> Iterator[Line]:
    """Yield the lines of the table, encoder by encoder."""
    for encoder in installed_activations():
        layers = [
            [layer[role].astype(np.float32) for role in ("query", "key", "value")]
            for layer in load_activations(encoder).values()
        ]
        keys = layers[0][1].shape[1]
        exact = [attention(*layer, size=keys).output for layer in layers]
        yield _line(encoder, None, layers, exact)
        g = 0
        while coreset_size(keys, g) < keys:
            yield _line(encoder, g, layers, exact)
            g += 1


def format_line(line: Line) -> str:
    """Return one line of the table."""
    kept = f"{line.kept} of {line.keys}"
    errors = (
        f"{line.error:>7.3f}  {line.uniform_error:>7.3f}"
        if line.kept < line.keys
        else f"{'-':>7}  {'-':>7}"
    )
    return (
        f"{line.encoder:<7}  {line.setting:<7}  {kept:>12}  {errors}"
        f"  {1e3 * line.seconds:>7.1f} ms  {line.megabytes:>6.2f} MB"
    )


HEAD = (
    f"{'':<7}  {'':<7}  {'':>12}   {'error of':>16}\n"
    f"{'input':<7}  {'setting':<7}  {'keys kept':>12}  {'ours':>7}  {'uniform':>7}"
    f"  {'time':>7}     {'memory':>6}"
)


def plot(lines: list[Line], path: Path) -> None:
    """Draw error against keys kept; the ending of `path` chooses the format."""
    import matplotlib
    from matplotlib.figure import Figure

    encoders = dict.fromkeys(line.encoder for line in lines)
    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False,
                                "axes.spines.right": False}):  # fmt: skip
        figure = Figure(figsize=(7, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for encoder, colour, marker in zip(encoders, COLOURS, "osD", strict=False):
            chosen = [x for x in lines if x.encoder == encoder and x.kept < x.keys]
            kept = [x.kept for x in chosen]
            label = f"{encoder}, {chosen[0].keys} keys"
            axes.plot(kept, [x.error for x in chosen], marker=marker, color=colour, label=label)
            axes.plot(kept, [x.uniform_error for x in chosen], "--", color=colour, linewidth=1)
        axes.plot([], [], "--", color="grey", linewidth=1, label="uniform sampling")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.set_yticks([0.1, 0.2, 0.5, 1], labels=["0.1", "0.2", "0.5", "1"])
        axes.set_yticks([], minor=True)
        axes.set_xlabel("keys kept")
        axes.set_ylabel("relative error of the output")
        axes.set_title("Thinformer on attention of trained encoders")
        axes.legend(frameon=False)
        figure.savefig(path, dpi=150)


def _line(encoder: str, g: int | None, layers: list[list[NDArray]], exact: list[NDArray]) -> Line:
    """Measure one setting; g = None is exact attention."""
    keys = layers[0][1].shape[1]
    kept = keys if g is None else coreset_size(keys, g)
    settings: dict[str, Any] = {"size": keys} if g is None else {"g": g}

    def thin(seed: int) -> list[NDArray]:
        return [attention(*layer, **settings, rng=seed).output for layer in layers]

    outputs, seconds = [], []
    for seed in SEEDS:
        start = time.perf_counter()
        outputs.append(thin(seed))
        seconds.append(time.perf_counter() - start)
    error = np.mean([relative_error(output, exact) for output in outputs])
    sampled = np.mean([relative_error(uniform(layers, kept, seed), exact) for seed in SEEDS])
    megabytes = peak_megabytes(lambda: attention(*layers[0], **settings, rng=0))
    setting = "exact" if g is None else f"g = {g}"
    return Line(encoder, setting, kept, keys, float(error), float(sampled), min(seconds), megabytes)


def uniform(layers: list[list[NDArray]], kept: int, seed: int) -> list[NDArray]:
    """Return attention over keys that are drawn uniformly, without replacement, for each head."""
    rng = np.random.default_rng(seed)
    outputs = []
    for query, key, value in layers:
        B, S, H, E = key.shape
        indices = np.argsort(rng.random((B, H, S)), axis=-1)[..., :kept]
        outputs.append(attend(query, key, value, indices, softmax_scale(None, E), False)[0])
    return outputs


def relative_error(outputs: list[NDArray], exact: list[NDArray]) -> float:
    """Return the mean over layers and heads of ||output - exact|| / ||exact||, Frobenius norm."""
    norms = [
        np.linalg.norm(a - b, axis=(1, 3)) / np.linalg.norm(b, axis=(1, 3))
        for a, b in zip(outputs, exact, strict=True)
    ]
    return float(np.mean(norms))
