r"""How close to exact attention, and at what time: Thinformer, its options and simple sampling.

Errors are :math:`\|output - exact\| / \|exact\|` in the Frobenius norm, mean over layers and heads.
All methods and sizes run in one process, in turn, round after round. Every round has another seed:
errors are means over rounds with their standard error, times are medians. Arrays are float32, on
the NumPy path.
"""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.special import softmax

from thinformer.attending.arguments import check_shapes, softmax_scale
from thinformer.attending.attention import attention
from thinformer.attending.softmax import attend
from thinformer.data import installed_activations, load_activations
from thinformer.files.messages import reading
from thinformer.halving.schedule import coreset_size
from thinformer.measuring.demo import relative_error, uniform
from thinformer.support.machine import hardware, versions
from thinformer.support.threads import get_num_threads

EXACT, PLAIN, BEST = "exact attention", "Thinformer", "best rank"
OPTIONS: dict[str, dict[str, Any]] = {  # what `attention` is called with
    PLAIN: {},
    f'{PLAIN}, temperature="auto"': {"temperature": "auto"},
    f'{PLAIN}, correction="nystrom"': {"correction": "nystrom"},
    f'{PLAIN}, correction="queries"': {"correction": "queries"},
}
METHODS = ("uniform sampling", "evenly spaced", *OPTIONS)
# for each method a colour (Okabe & Ito's, for colour-blind readers too), a marker and a line
STYLES = (("#56B4E9", "v", ":"), ("#E69F00", "^", ":"), ("#0072B2", "o", "--"),
          ("#CC79A7", "P", "--"), ("#009E73", "D", "-"), ("#D55E00", "s", "-"))  # fmt: skip
NAME = re.compile(r"(.+)_(query|key|value|heads)")

Case = TypeVar("Case")
Layers = dict[str, list[NDArray]]  # query, key and value, float32


class Line(NamedTuple):
    """One method at one size.

    method : one of `METHODS`, or EXACT or BEST
    kept, keys : number of kept keys, and of all keys
    error : mean over layers, heads and rounds
    standard_error : standard error of that mean over rounds; None where nothing is random
    seconds : time for all layers, median over rounds; None for BEST, which is no method
    ratio : `seconds` divided by the time of Thinformer without options at this size, or None
    layers : the error of each layer
    """

    input: str
    method: str
    kept: int
    keys: int
    error: float
    standard_error: float | None
    seconds: float | None
    ratio: float | None
    layers: dict[str, float]


def packaged() -> dict[str, Layers]:
    """Return the recorded activations of trained encoders, those that are installed."""
    return {
        name: {
            layer: [arrays[role].astype(np.float32) for role in ("query", "key", "value")]
            for layer, arrays in load_activations(name).items()
        }
        for name in installed_activations()
    }


def load(paths: list[Path]) -> dict[str, Layers]:
    """Return the activations in files, by name; without files the packaged ones."""
    if not paths:
        return packaged()
    inputs: dict[str, Layers] = {}
    for path in paths:
        if path.stem in inputs:
            raise ValueError(f"{path}: another file has this name; the table could not tell them")
        inputs[path.stem] = layers = load_file(path)
        first, shape = next((layer, arrays[1].shape[:3]) for layer, arrays in layers.items())
        for layer, (_, key, _) in layers.items():
            if key.shape[:3] != shape:
                raise ValueError(
                    f"{path}: layers must have the same number of sequences, keys and heads; "
                    f"{first} has {shape}, {layer} {key.shape[:3]}"
                )
    return inputs


def load_file(path: Path) -> Layers:
    """Load activations from an .npz file of arrays LAYER_query, LAYER_key and LAYER_value.

    They are (1, tokens, heads, head dim), of float16, float32 or float64. The file may also hold
    arrays LAYER_heads.
    """
    # opened here: NumPy leaves a broken file open
    with path.open("rb") as stream, reading(path, ".npz"):
        file = np.load(stream, allow_pickle=False)
        arrays = {} if isinstance(file, np.ndarray) else {name: file[name] for name in file.files}
    if isinstance(file, np.ndarray):
        raise ValueError(f"{path}: holds a single array; activations are an .npz of named ones")
    found: dict[str, dict[str, NDArray]] = {}
    for name, array in arrays.items():
        match = NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{path}: takes arrays named as in layer0_query; got {name!r}")
        if match[2] != "heads":
            found.setdefault(match[1], {})[match[2]] = _float32(path, name, array)
    if not found:
        raise ValueError(f"{path}: has no arrays named as in layer0_query")
    layers: Layers = {}
    for layer, roles in found.items():
        missing = [role for role in ("query", "key", "value") if role not in roles]
        if missing:
            raise ValueError(f"{path}: has no {layer}_{missing[0]}")
        query, key, value = layers[layer] = [roles[role] for role in ("query", "key", "value")]
        try:
            check_shapes(key.shape, value.shape, query.shape)
        except ValueError as error:
            raise ValueError(f"{path}: {layer}: {error}") from None
    return layers


def choose_sizes(name: str, layers: Layers, sizes: list[int], several: bool) -> list[int]:
    """Return the sizes given, or that of g = 2; if `several`, those of all g that drop keys."""
    keys = next(iter(layers.values()))[1].shape[1]
    if sizes:
        if max(sizes) > keys:
            raise ValueError(
                f"--sizes must be at most the keys of {name}, {keys}; got {max(sizes)}"
            )
        return sorted(set(sizes))
    if not several:
        return [coreset_size(keys, 2)]
    all_of_them = [coreset_size(keys, g) for g in range(keys.bit_length())]
    return sorted({size for size in all_of_them if size < keys}) or [keys]


def measure(
    name: str,
    layers: Layers,
    sizes: list[int],
    rounds: int,
    tell: Callable[[str, float | None], None] = lambda stage, fraction: None,
) -> list[Line]:
    """Return the lines of an input: exact attention, then for each size the methods and BEST.

    It takes at least 2 rounds. tell(stage, fraction) receives the progress.
    """
    keys = next(iter(layers.values()))[1].shape[1]
    exact = [attention(*layer, size=keys).output for layer in layers.values()]
    cases = [(EXACT, keys), *((method, size) for size in sizes for method in METHODS)]
    errors, seconds = interleaved(
        cases,
        lambda case, seed: _outputs(case[0], layers, case[1], seed),
        exact,
        rounds,
        lambda fraction: tell(name, fraction),
    )
    medians = dict(zip(cases, np.median(seconds, axis=1).tolist(), strict=True))
    tell(f"{name}, best rank", None)
    floors = np.array([_best_rank(layer, sizes) for layer in layers.values()])

    def line(method: str, size: int, of_rounds: NDArray, median: float | None) -> Line:
        means = of_rounds.mean(axis=1)
        random = method not in (EXACT, BEST)
        return Line(
            name, method, size, keys, float(means.mean()),
            float(means.std(ddof=1) / np.sqrt(rounds)) if random else None,
            median,
            median / medians[PLAIN, size] if random and median else None,
            dict(zip(layers, of_rounds.mean(axis=0).tolist(), strict=True)),
        )  # fmt: skip

    lines = [line(*case, errors[i], medians[case]) for i, case in enumerate(cases)]
    for i, size in reversed(list(enumerate(sizes))):
        place = 1 + (i + 1) * len(METHODS)
        lines.insert(place, line(BEST, size, floors[None, :, i], None))
    return lines


def interleaved(
    cases: Sequence[Case],
    outputs_of: Callable[[Case, int], list[NDArray]],
    exact: list[NDArray],
    rounds: int,
    tell: Callable[[float], None] = lambda fraction: None,
) -> tuple[NDArray, NDArray]:
    """Return errors (cases, rounds, layers) and seconds (cases, rounds) of cases, run in turn.

    outputs_of(case, seed) returns the outputs of all layers, which are compared with the exact
    outputs. Every round has another seed. An untimed round comes first, because functions are
    compiled or loaded at first use. tell(fraction) receives the progress before each round.
    """
    errors = np.empty((len(cases), rounds, len(exact)))
    seconds = np.empty((len(cases), rounds))
    tell(0.0)
    for case in cases:
        outputs_of(case, 0)
    for seed in range(rounds):
        tell(seed / rounds)
        for i, case in enumerate(cases):
            start = time.perf_counter()
            outputs = outputs_of(case, seed)
            seconds[i, seed] = time.perf_counter() - start
            errors[i, seed] = [
                relative_error([a], [b]) for a, b in zip(outputs, exact, strict=True)
            ]
    return errors, seconds


def format_lines(lines: list[Line]) -> str:
    """Return the table of an input, from its lines."""
    rows, (exact, *others) = [], lines
    rows.append(
        f"{exact.input}: {exact.keys} keys, {len(exact.layers)} layers;"
        f" exact attention {1e3 * exact.seconds:.1f} ms"  # type: ignore[operator]
    )
    width = max(map(len, METHODS))
    for size in dict.fromkeys(line.kept for line in others):
        title = f"{size} of {exact.keys} keys"
        rows.append(f"  {title:<{width}}  {'error':>7}{'':>10}  {'time':>12}  {'ratio':>6}")
        for line in (line for line in others if line.kept == size):
            row = f"  {line.method:<{width}}  {line.error:>7.4f}"
            if line.seconds is not None:
                row += f" +- {line.standard_error:<6.4f}  {1e3 * line.seconds:>9.2f} ms"
                row += f"  {line.ratio:>6.2f}"
            rows.append(row)
    return "\n".join(rows)


NOTES = """\
error: ||output - exact|| / ||exact||, mean over layers, heads and rounds, each with another seed,
+- its standard error. time: of all layers, choosing keys included, median over rounds, all methods
in turn; ratio: to Thinformer's. temperature="auto": herding. nystrom: WildCat's landmarks and
weights, as this package computes them. best rank: of the matrix of that rank nearest to that of
attention; no method, a mark of what so few keys could do."""


def machine_with_load() -> dict[str, str]:
    """The machine, with the threads in use and the load at this moment."""
    found = hardware() | {"threads": str(get_num_threads()), "python": platform.python_version()}
    if hasattr(os, "getloadavg"):
        found["load"] = f"{os.getloadavg()[0]:.1f}"
    return found | versions("thinformer", "numpy", "numba", "scipy")


def save(lines: list[Line], rounds: int, machine: dict[str, str], path: Path) -> None:
    """Write the figures and the machine as JSON."""
    content = {"machine": machine, "rounds": rounds, "lines": [line._asdict() for line in lines]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def plot(lines: list[Line], path: Path) -> None:
    """Draw error against time, a panel for each input; the ending of `path` is the format."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    inputs = list(dict.fromkeys(line.input for line in lines))
    columns = min(len(inputs), 3)
    rows = -(-len(inputs) // columns)
    with matplotlib.rc_context({"font.size": 11, "axes.spines.top": False,
                                "axes.spines.right": False}):  # fmt: skip
        figure = Figure(figsize=(1 + 4 * columns, 0.8 + 3.6 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(inputs) :]:
            axes.set_visible(False)
        for axes, name in zip(panels, inputs, strict=False):
            exact, *others = [line for line in lines if line.input == name]
            for method, (colour, marker, style) in zip(METHODS, STYLES, strict=True):
                of_method = sorted((x.kept, x) for x in others if x.method == method)
                axes.plot(
                    [1e3 * x.seconds for _, x in of_method], [x.error for _, x in of_method],  # type: ignore[operator]
                    color=colour, marker=marker, linestyle=style, markersize=5, label=method,
                )  # fmt: skip
            axes.axvline(
                1e3 * exact.seconds,  # type: ignore[operator]
                color="black", linewidth=1, label=EXACT,
            )  # fmt: skip
            sizes = sorted({x.kept for x in others})
            axes.set_xscale("log")
            axes.set_yscale("log")
            for axis, subs in ((axes.xaxis, (1, 3)), (axes.yaxis, (1, 2, 5))):
                axis.set_major_locator(LogLocator(subs=subs))
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("")
            listed = ", ".join(map(str, sizes))
            axes.set_title(f"{name}, keys kept:\n{listed} of {exact.keys}", fontsize=11)
            axes.set_xlabel("ms, all layers")
        panels[0].set_ylabel("relative error of the output")
        figure.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
            frameon=False,
        )  # fmt: skip
        figure.savefig(path, dpi=150)


def _outputs(method: str, layers: Layers, size: int, seed: int) -> list[NDArray]:
    """The outputs of all layers by a method."""
    if method == "uniform sampling":
        return uniform(list(layers.values()), size, seed)
    if method == "evenly spaced":
        return _evenly_spaced(layers, size, seed)
    options = {} if method == EXACT else OPTIONS[method]
    return [attention(*layer, size=size, rng=seed, **options).output for layer in layers.values()]


def _evenly_spaced(layers: Layers, size: int, seed: int) -> list[NDArray]:
    """Attention over evenly spaced keys from a random start, which each head draws."""
    rng = np.random.default_rng(seed)
    outputs = []
    for query, key, value in layers.values():
        B, S, H, E = key.shape
        places = (np.arange(size) + rng.random((B, H, 1))) * (S / size)
        indices = np.minimum(places.astype(np.int64), S - 1)
        outputs.append(attend(query, key, value, indices, softmax_scale(None, E), False)[0])
    return outputs


def _best_rank(layer: list[NDArray], sizes: list[int]) -> list[float]:
    """For each rank, the mean error over heads with the nearest matrix of that rank as attention.

    Of attention's matrix P that is P V V^T, with the leading right singular vectors V of P, which
    are eigenvectors of P^T P; in float64.
    """
    S, E = layer[1].shape[1::2]
    q, k, v = (x.astype(np.float64).transpose(0, 2, 1, 3).reshape(-1, *x.shape[1::2])
               for x in layer)  # fmt: skip
    errors = []
    for head in range(len(k)):
        P = softmax(softmax_scale(None, E) * q[head] @ k[head].T, axis=1)
        vectors = eigh(P.T @ P, subset_by_index=(S - max(sizes), S - 1))[1][:, ::-1]
        rows, columns, exact = P @ vectors, vectors.T @ v[head], P @ v[head]
        errors.append([
            np.linalg.norm(rows[:, :r] @ columns[:r] - exact) / np.linalg.norm(exact)
            for r in sizes
        ])  # fmt: skip
    return np.mean(errors, axis=0).tolist()


def _float32(path: Path, name: str, array: NDArray) -> NDArray:
    """The array in float32; raises where it does not hold finite floats."""
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        got = getattr(array, "dtype", "no array")
        raise ValueError(f"{path}: {name} must be of floats; got {got}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: {name} holds NaN, infinity or more than float32 can hold")
    return array
