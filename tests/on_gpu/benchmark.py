"""Times beside exact attention and plain torch, with the ratios that are aimed at.

The last stage but one. It is run by pytest, so that the simulator can run it too: there the times
are of the simulator and of torch's CPU, and say nothing.
"""

import time

import numpy as np
import pytest
import torch
from devices import SIMULATED, at
from running import RESULT

from thinformer import set_num_threads, thin
from thinformer.measuring import speed, speed_cuda
from thinformer.measuring.speed import EAGER, EXACT, KEPT, SELECT, WHOLE
from thinformer.measuring.speed_cuda import GRAPH

ROUNDS = at(7, 1)
SHAPES = [  # with the ratios that are aimed at: plain torch in a graph, and exact attention, to it
    ("64k-h16", "bfloat16", 3, 10),
    ("t2t-b64", "float32", None, 5),
    ("t2t-b64", "bfloat16", None, 5),
]
SMALL = {"64k-h16": (1, 16, 16, 1, 2, 2), "t2t-b64": (2, 9, 9, 1, 2, 2)}
POINTS, AIM = at(10**7, 20), 20  # of Compress++, beside two cores of the CPU


def say(words):
    print(f"\n{RESULT}{words}", flush=True)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """In the simulator: tensors and the clock of the CPU, and calls in place of graphs."""
    if not SIMULATED:
        return

    def tensors(dims, dtype):
        B, T, S, H, E, D = dims
        of = {"dtype": getattr(torch, dtype)}
        return [torch.randn(*size, **of) for size in ((B, T, H, E), (B, S, H, E), (B, S, H, D))]

    def time_in_turn(candidates, rounds):
        times = {}
        for name, work in candidates.items():
            begin = time.perf_counter()
            work()
            times[name] = [time.perf_counter() - begin]
        return times

    monkeypatch.setattr(speed_cuda, "tensors", tensors)
    monkeypatch.setattr(speed_cuda, "time_in_turn", time_in_turn)
    monkeypatch.setattr(speed_cuda, "captured", lambda work: work)


@pytest.mark.parametrize(("shape", "dtype", "plain", "exact"), SHAPES)
def test_attention(shape, dtype, plain, exact):
    """Thinformer with g = 2, and what it is compared with."""
    dims = at(speed.SHAPES, SMALL)[shape]
    query, key, value = speed_cuda.tensors(dims, dtype)
    say(f"{speed.NAMES[shape]}, (B, T, S, H, E, D) = {dims}, {dtype}, milliseconds")
    with torch.no_grad():
        candidates = speed_cuda.attention_candidates(query, key, value, 2)
        candidates |= speed_cuda.plain_candidates(key, value, 2, False)
        times = speed_cuda.time_in_turn(candidates, ROUNDS)
    seconds = {name: float(np.median(t)) for name, t in times.items()}
    for name, t in times.items():
        say(f"  {name:<56}{1e3 * seconds[name]:10.3f}  ({1e3 * min(t):.3f} .. {1e3 * max(t):.3f})")
    for called in (WHOLE, WHOLE + GRAPH):
        ratio("exact attention", seconds[EXACT], called, seconds[called], exact)
        of_torch = seconds[EAGER + GRAPH] + seconds[KEPT]
        ratio("plain torch in a CUDA graph and SDPA", of_torch, called, seconds[called], plain)
    share = seconds[SELECT + GRAPH] / seconds[WHOLE + GRAPH]
    say(f"  the selection is {100 * share:.0f} % of the whole in a CUDA graph")


def ratio(name, seconds, called, own, aim):
    found = seconds / own
    words = "" if aim is None else f", aim {aim}"
    if aim is not None and not SIMULATED:
        words += ": reached" if found >= aim else ": NOT REACHED"
    say(f"  {name} / {called}: {found:.2f}{words}")


def test_compress_plus_plus():
    """A tenth of the points on two cores; ten times that is an estimate of the CPU's time."""
    points = np.random.default_rng(0).standard_normal((POINTS, 10), np.float32)
    options = {"size": int(POINTS**0.5), "method": "compress++", "bandwidth": 4.0, "rng": 0}
    size = options.pop("size")
    seconds = timed(lambda: thin(points, size, device="cuda", **options), 2)
    few = points[: POINTS // 10]
    set_num_threads(2)
    of_cpu = 10 * timed(lambda: thin(few, int(len(few) ** 0.5), **options), 1)
    set_num_threads(None)
    say(f"Compress++ of {POINTS:,} points, d = 10: {seconds:.2f} s, copying them included")
    say(f"  ten times a tenth of them on two cores of the CPU: {of_cpu:.2f} s")
    ratio("the CPU", of_cpu, "the GPU", seconds, AIM)


def timed(work, rounds):
    """The shortest time, after a call that compiles."""
    work()
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
