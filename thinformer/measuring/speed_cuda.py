"""How fast, on a GPU: Thinformer beside exact attention and the plain torch version.

CUDA events around one call give its time, which includes the launches, except where a CUDA graph is
replayed. All candidates of a shape run in turn, round after round.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from thinformer.attending.attention import compress_kv
from thinformer.halving.draws import make_draws
from thinformer.halving.plan import plan
from thinformer.measuring import speed
from thinformer.measuring.speed import EXACT, KEPT, SELECT, WEIGHTS, WHOLE, Result
from thinformer.torch import ThinformerAttention
from thinformer.torch.choose.on_gpu import select
from thinformer.torch.choose.seeds import draw_seed

GRAPH = " in a CUDA graph"
EAGER, COMPILED = speed.EAGER, speed.COMPILED
LENGTHS = tuple(2**i for i in range(8, 17))


def machine_with_gpu() -> dict[str, str]:
    """The machine, with torch and its first GPU."""
    device = torch.cuda.get_device_properties(0)
    return speed.machine_with_torch() | {
        "GPU": device.name,
        "multiprocessors": str(device.multi_processor_count),
        "CUDA": str(torch.version.cuda),
    }


def run(
    shape: str, dtype: str = "float32", g: int = 2, rounds: int = 9, compiled: bool = False
) -> Result:
    """Check the selection on the first tokens, then time the candidates in turn."""
    B, _, S, H, E, D = speed.SHAPES[shape]
    query, key, value = tensors(speed.SHAPES[shape], dtype)
    schedule = plan(S, g, None, 0.5).schedule
    result = Result(shape, speed.SHAPES[shape], schedule.size, dtype, 0)
    agree(key[:, :1024].double(), value[:, :1024].double())
    candidates = attention_candidates(query, key, value, g)
    if importlib.util.find_spec("reference") is None:
        print("(plain torch is left out: it is in reference/)", file=sys.stderr)
    else:
        candidates |= plain_candidates(key, value, g, compiled)
    with torch.no_grad():
        times = time_in_turn(candidates, rounds)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        candidates[SELECT]()
        result.megabytes = (torch.cuda.max_memory_allocated() - before) / 1e6
        ceilings = time_in_turn({"": matrix_product(dtype)}, 5)[""]
    result.seconds = {name: float(np.median(t)) for name, t in times.items()}
    result.spread = {name: (min(t), max(t)) for name, t in times.items()}
    result.gigaflops = B * H * speed.kernel_flops(schedule, E + D) / result.seconds[SELECT] / 1e9
    result.ceiling = 2 * 4096**3 / min(ceilings) / 1e9
    return result


def crossover(dtype: str = "bfloat16", g: int = 2, rounds: int = 9) -> int | None:
    """Return the power of two from which on Thinformer is faster than exact attention.

    Both attend in one sequence of 16 heads with 64 columns; both are called, not replayed.
    """
    faster = {}
    for n in LENGTHS:
        query, key, value = tensors((1, n, n, 16, 64, 64), dtype)
        candidates = attention_candidates(query, key, value, g)
        with torch.no_grad():
            times = time_in_turn({name: candidates[name] for name in (EXACT, WHOLE)}, rounds)
        faster[n] = np.median(times[WHOLE]) < np.median(times[EXACT])
    slower = [n for n in LENGTHS if not faster[n]]
    later = [n for n in LENGTHS if not slower or n > slower[-1]]
    return later[0] if later else None


def tensors(dims: tuple[int, ...], dtype: str) -> tuple[torch.Tensor, ...]:
    """Return Gaussian query, key and value of a shape (B, T, S, H, E, D)."""
    B, T, S, H, E, D = dims
    generator = torch.Generator("cuda").manual_seed(0)
    return tuple(
        torch.randn(size, generator=generator, device="cuda").to(getattr(torch, dtype))
        for size in ((B, T, H, E), (B, S, H, E), (B, S, H, D))
    )


def attention_candidates(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, g: int
) -> dict[str, Callable[[], object]]:
    """Return exact attention, Thinformer and its parts, by name."""
    settings = plan(key.shape[1], g, None, 0.5)
    size, scale = settings.schedule.size, key.shape[-1] ** -0.5
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    kept_k, kept_v = (tensor[:, :, :size].contiguous() for tensor in (k, v))
    fast, with_weights = ThinformerAttention(g, use_torch_spda=True), ThinformerAttention(g)

    def selection() -> object:
        seed = draw_seed(None, key.device)
        return select(key, value, settings=settings, scale=scale, seed=seed)

    def whole() -> object:
        return fast(query, key, value)

    return {
        EXACT: lambda: scaled_dot_product_attention(q, k, v),
        KEPT: lambda: scaled_dot_product_attention(q, kept_k, kept_v),
        SELECT: selection,
        SELECT + GRAPH: captured(selection),
        WHOLE: whole,
        WHOLE + GRAPH: captured(whole),
        WEIGHTS: lambda: with_weights(query, key, value),
    }


def plain_candidates(
    key: torch.Tensor, value: torch.Tensor, g: int, compiled: bool
) -> dict[str, Callable[[], object]]:
    """Return plain torch's selection: eager, in a CUDA graph, and with `compiled` compiled too."""
    from reference.torch_version import select as plain

    schedule, scale = plan(key.shape[1], g, None, 0.5).schedule, key.shape[-1] ** -0.5
    draws = make_draws(schedule, 0, key.shape[2])
    uniforms, coins = (
        [torch.from_numpy(array).to(key.device) for array in part] for part in draws[:2]
    )
    strata = torch.as_tensor(draws.strata).to(key.device)
    on_gpu: Any = draws._replace(uniforms=uniforms, coins=coins, strata=strata)  # type: ignore[arg-type]

    def eager() -> object:
        return plain(key, value, scale, schedule, on_gpu)

    candidates: dict[str, Callable[[], object]] = {EAGER: eager, EAGER + GRAPH: captured(eager)}
    if compiled:
        program = torch.compile(plain)
        candidates[COMPILED] = lambda: program(key, value, scale, schedule, on_gpu)
    return candidates


def captured(work: Callable[[], object]) -> Callable[[], None]:
    """Return a function that replays `work` from a CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(side):
        for _ in range(3):  # compile, and fill caches
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        work()
    return graph.replay


def time_in_turn(candidates: dict[str, Callable[[], object]], rounds: int) -> dict[str, list]:
    """Return `rounds` times of each candidate, in seconds, after three untimed calls."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for work in candidates.values():
        for _ in range(3):
            work()
    for _ in range(rounds):
        for name, work in candidates.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(end) / 1e3)
    return times


def matrix_product(dtype: str) -> Callable[[], object]:
    """Return a product of two matrices of 4096 x 4096, to be timed."""
    a = torch.ones(4096, 4096, dtype=getattr(torch, dtype), device="cuda")
    return lambda: a @ a


def agree(key: torch.Tensor, value: torch.Tensor) -> None:
    """Raise where the GPU keeps other keys than the CPU, in float64."""
    size = max(1, key.shape[1] // 8)
    found, _ = select(
        key, value, settings=plan(key.shape[1], 0, size, 0.5), scale=key.shape[-1] ** -0.5,
        seed=draw_seed(torch.Generator().manual_seed(0), key.device),
    )  # fmt: skip
    seed = int(
        torch.empty((), dtype=torch.int64).random_(generator=torch.Generator().manual_seed(0))
    )
    kept = compress_kv(key.cpu().numpy(), value.cpu().numpy(), size=size, rng=seed)
    if not np.array_equal(found.cpu().numpy(), kept):
        raise RuntimeError(
            "the selection differs from the CPU's; see `thinformer validate --device cuda`"
        )
