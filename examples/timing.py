"""The run time of attention, by CUDA events on a GPU and by a clock elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from examples.attention import Attention


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Run a call once; return its time in milliseconds."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end)
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def measure(
    attentions: dict[str, list[Attention]], batches, warmup: int
) -> dict[str, list[np.ndarray]]:
    """Time each attention in each layer; the attentions take turns on each batch.

    Parameters
    ----------
    attentions : dict
        For each name a list, with one attention for each layer.
    batches : iterable
        A batch is a list of (query, key, value), one for each layer.
    warmup : int
        The number of first batches whose times are dropped, because code is compiled in them.

    Returns
    -------
    dict
        For each name a list with one array for each layer: the milliseconds of each batch.
    """
    times = {name: [[] for _ in layers] for name, layers in attentions.items()}
    with torch.inference_mode():
        for number, batch in enumerate(batches):
            for name, layers in attentions.items():
                for attend, inputs, row in zip(layers, batch, times[name], strict=True):
                    # a new draw for each batch; it does not depend on what else is timed
                    torch.manual_seed(number)
                    taken = milliseconds(lambda a=attend, x=inputs: a(*x), inputs[0].device)
                    if number >= warmup:
                        row.append(taken)
    return {name: [np.array(row) for row in layers] for name, layers in times.items()}


def table(times: dict[str, list[np.ndarray]], layers: list[str]) -> str:
    """A table of median times, and of the time of exact attention divided by each."""
    width = max(map(len, [*times, "attention"]))
    head = "".join(f"  {layer + ', ms':>14}  {'exact takes':>12}" for layer in layers)
    lines = [f"{'attention':{width}}{head}"]
    exact = [np.median(row) for row in times["exact"]]
    for name, rows in times.items():
        medians = [np.median(row) for row in rows]
        cells = "".join(
            f"  {own:14.2f}  {base / own:10.2f} x" for own, base in zip(medians, exact, strict=True)
        )
        lines.append(f"{name:{width}}{cells}")
    return "\n".join(lines)
