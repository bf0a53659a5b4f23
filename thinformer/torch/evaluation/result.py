"""What `thinformer eval-model` measured, and the tables that it prints."""

from __future__ import annotations

from typing import Any, NamedTuple

MOST_REPORTS = 2  # printed of as many settings


class Result(NamedTuple):
    """An encoder with one setting, compared with exact attention.

    setting : arguments of `thinformer.torch.transformers.configure`
    keys, kept : mean number of keys of a thinned layer, and of the kept keys
    seconds, exact_seconds : time of all inputs, median over rounds
    metric : "cosine", "agreement" or "difference", see `metrics.compared`
    mean, worst : mean and worst value of the metric over inputs and rounds
    attention : error of each layer's attention on exact inputs, mean over heads
    states : error of each layer's output when all layers are thinned; empty where the model
        returns no states
    report : what each layer did with the last input, as `thinformer.torch.report` prints it
    """

    setting: dict[str, Any]
    keys: float
    kept: float
    seconds: float
    exact_seconds: float
    metric: str
    mean: float
    worst: float
    attention: list[float]
    states: list[float]
    report: str = ""


class Evaluation(NamedTuple):
    """An encoder with all settings.

    layers : names of the modules that attend, in the order they are called
    lengths : for each input the largest number of keys of its attentions
    left_out : number of inputs that are too short to be thinned; only `lengths` counts them
    apart : mean cosine between the embeddings of different inputs; None without embeddings
    results : a result for each setting
    """

    layers: list[str]
    lengths: list[int]
    left_out: int
    apart: float | None
    results: list[Result]


def label_of(setting: dict[str, Any]) -> str:
    """Return a setting in few words, without min_length, which all settings have."""
    named = ", ".join(f"{name} = {each}" for name, each in setting.items() if name != "min_length")
    return named or "default"


def format_evaluation(evaluation: Evaluation) -> str:
    """Return the inputs, the time and metric of each setting, and the errors of each layer."""
    results, lengths = evaluation.results, evaluation.lengths
    labels = [f"{i}  {label_of(result.setting)}" for i, result in enumerate(results, 1)]
    wide = max(len(label) for label in [*labels, "exact"])
    metric = results[0].metric
    worst = "largest" if metric == "difference" else "smallest"
    exact = results[0].exact_seconds
    most = "" if min(lengths) == max(lengths) else f"{min(lengths)} to "
    out = f"; {n} too short to be thinned, left out" if (n := evaluation.left_out) else ""
    lines = [
        f"inputs: {len(lengths)}, of {most}{max(lengths)} keys{out}",
        "",
        f"{'setting':<{wide}}  {'keys kept':>13}  {'time':>8}  {'faster':>7}  {metric:>10}  "
        f"{worst:>8}",
        f"{'exact':<{wide}}  {'all':>13}  {_duration(exact):>8}",
    ]
    for label, result in zip(labels, results, strict=True):
        kept = f"{result.kept:.0f} of {result.keys:.0f}"
        lines.append(
            f"{label:<{wide}}  {kept:>13}  {_duration(result.seconds):>8}  "
            f"{exact / result.seconds:>6.2f}x  {result.mean:>10.4f}  {result.worst:>8.4f}"
        )
    if evaluation.apart is not None:
        lines.append(f"\ncosine between different inputs, exact: {evaluation.apart:.4f}")
    lines += _errors_by_layer(evaluation)
    if len(results) > MOST_REPORTS:
        return "\n".join([*lines, "\none or two settings also print what each layer did"])
    for i, result in enumerate(results, 1):
        which = f", with setting {i}" if len(results) > 1 else ""
        lines += [f"\nwhat each layer did with the last input{which}", result.report]
    return "\n".join(lines)


def _errors_by_layer(evaluation: Evaluation) -> list[str]:
    """Lines of a table: a layer a row, a setting a column, in one block or two."""
    results = evaluation.results
    name = max(len(layer) for layer in [*evaluation.layers, "layer"]) + 4
    states = results[0].states
    alone, behind = "attention alone", "all layers thinned"
    width = max(len("0.0000"), -(-len(behind) // len(results)) - 2)
    span = len(results) * (width + 2)
    above = f"{'':<{name}}{alone:>{span}}"
    if states:
        above += f"    {behind:>{span}}"
    heads = "".join(f"  {i:>{width}}" for i in range(1, len(results) + 1))
    lines = ["\nrelative error, by setting", above, f"{'layer':<{name}}{heads}"]
    if states:
        lines[-1] += f"    {heads}"
    for i, layer in enumerate(evaluation.layers):
        row = f"{i:>2}  {layer:<{name - 4}}"
        row += "".join(f"  {result.attention[i]:>{width}.4f}" for result in results)
        if states:
            row += "    " + "".join(f"  {result.states[i]:>{width}.4f}" for result in results)
        lines.append(row)
    return lines


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"
