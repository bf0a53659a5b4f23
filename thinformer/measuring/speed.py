"""How fast, on this machine: Thinformer beside exact attention and the plain torch version.

All candidates of a shape run in one process, in turn, round after round: other work of the machine
slows them alike. Figures are medians, and comparisons are ratios of medians.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from thinformer.arrays import attention
from thinformer.attending.attention import compress_kv
from thinformer.halving.draws import Draws, make_draws
from thinformer.halving.plan import plan
from thinformer.halving.schedule import Schedule, compress_schedule
from thinformer.support.machine import hardware, peak_megabytes, versions
from thinformer.support.threads import set_num_threads
from thinformer.torch import ThinformerAttention
from thinformer.torch.choose.operators import select
from thinformer.torch.choose.seeds import draw_seed

# (B, T, S, H, E, D)
SHAPES = {
    "t2t": (4, 3136, 3136, 1, 64, 64),
    "biggan": (4, 4096, 1024, 1, 64, 256),
    "4k": (1, 4096, 4096, 8, 64, 64),
    "16k": (1, 16384, 16384, 4, 64, 64),
    "64k": (1, 65536, 65536, 1, 64, 64),
    "t2t-b64": (64, 3136, 3136, 1, 64, 64),  # this and the next are for a GPU
    "64k-h16": (1, 65536, 65536, 16, 64, 64),
}
NAMES = {
    "t2t": "T2T-ViT 1",
    "biggan": "BigGAN",
    "4k": "4k tokens",
    "16k": "16k tokens",
    "64k": "64k tokens",
    "t2t-b64": "T2T-ViT 1, 64 images",
    "64k-h16": "64k tokens, 16 heads",
}
EXACT = "exact attention (SDPA)"
KEPT = "SDPA over the kept keys"
SELECT = "selection"
WHOLE = "Thinformer (SDPA over the kept keys)"
WEIGHTS = "Thinformer with weights"
QUERIES = 'Thinformer, correction="queries"'
NUMPY = "Thinformer on NumPy arrays"
# with peaked attention, whose exponentials leave the normal range, where arithmetic is slow
PEAK = 25  # what the queries are multiplied by
EXACT_PEAKED, WHOLE_PEAKED, QUERIES_PEAKED = (
    f"{name}, peaked" for name in ("exact attention", "Thinformer", QUERIES)
)
EAGER = "selection, plain torch"
COMPILED = "selection, plain torch compiled"
WIDTH = 2 + len(f"{QUERIES}, peaked / not")


@dataclass
class Result:
    """One shape.

    seconds : median time of each candidate
    spread : (fastest, slowest) time of each candidate
    gigaflops : GFLOP/s of the selection; the kernel values it needs are counted, each once
    threads : threads of the CPU; 0 on a GPU
    ceiling : GFLOP/s of a large matrix product in the same dtype on the same threads or GPU
    megabytes : the most memory the selection holds beside its input, as Python and NumPy count it
    """

    shape: str
    dims: tuple[int, ...]
    kept: int
    dtype: str
    threads: int
    seconds: dict[str, float] = field(default_factory=dict)
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    gigaflops: float = 0.0
    ceiling: float = 0.0
    megabytes: float = 0.0

    @property
    def ratios(self) -> dict[str, float]:
        """The comparisons between candidates that were timed."""
        pairs = {
            "exact / Thinformer": (EXACT, WHOLE),
            "exact / Thinformer with weights": (EXACT, WEIGHTS),
            "exact / Thinformer on NumPy": (EXACT, NUMPY),
            "plain torch / selection": (EAGER, SELECT),
            "compiled torch / selection": (COMPILED, SELECT),
            "exact attention, peaked / not": (EXACT_PEAKED, EXACT),
            "Thinformer, peaked / not": (WHOLE_PEAKED, WHOLE),
            f"{QUERIES}, peaked / not": (QUERIES_PEAKED, QUERIES),
        }
        found = {
            name: self.seconds[a] / self.seconds[b]
            for name, (a, b) in pairs.items()
            if a in self.seconds and b in self.seconds
        }
        parts = self.seconds[SELECT] + self.seconds[KEPT]
        return found | {"Thinformer / its parts": self.seconds[WHOLE] / parts}


def machine_with_torch() -> dict[str, str]:
    """The machine, with its system and the version of torch."""
    system = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return hardware() | system | versions("thinformer", "numpy", "numba", "scipy", "torch")


def run(
    shape: str, dtype: str = "float32", g: int = 2, rounds: int = 9, compiled: bool = False
) -> Result:
    """Check the candidates on the first tokens, then time them in turn."""
    B, T, S, H, E, D = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(size, generator=generator, dtype=getattr(torch, dtype))
        for size in ((B, T, H, E), (B, S, H, E), (B, S, H, D))
    )
    schedule = plan(S, g, None, 0.5).schedule
    threads = torch.get_num_threads()
    set_num_threads(threads)
    result = Result(shape, SHAPES[shape], schedule.size, dtype, threads)
    candidates = _candidates(query, key, value, g, schedule, compiled)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    with torch.no_grad():
        for work in candidates.values():
            work()
        for _ in range(rounds):
            for name, work in candidates.items():
                start = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - start)
        ceilings = [_matrix_product(dtype) for _ in range(5)]
    result.seconds = {name: float(np.median(t)) for name, t in times.items()}
    result.spread = {name: (min(t), max(t)) for name, t in times.items()}
    result.gigaflops = B * H * kernel_flops(schedule, E + D) / result.seconds[SELECT] / 1e9
    result.ceiling = max(ceilings)
    result.megabytes = peak_megabytes(candidates[SELECT])
    return result


def format_result(result: Result) -> str:
    """Return the figures of one shape, for a terminal."""
    B, T, S, H, E, D = result.dims
    lines = [
        f"{NAMES[result.shape]}: B {B}, T {T}, S {S}, H {H}, E {E}, D {D}, {result.dtype}, "
        f"{_where(result)}; {result.kept} keys kept"
    ]
    for name, seconds in result.seconds.items():
        low, high = result.spread[name]
        lines.append(
            f"  {name:<{WIDTH}} {1e3 * seconds:>9.2f} ms   ({1e3 * low:.2f} .. {1e3 * high:.2f})"
        )
    lines += [f"  {name:<{WIDTH}} {ratio:>9.2f}" for name, ratio in result.ratios.items()]
    share = 100 * result.gigaflops / result.ceiling
    lines.append(
        f"  {'selection':<{WIDTH}} {result.gigaflops:>9.1f} GFLOP/s, {share:.0f} % of a matrix"
        f" product's {result.ceiling:.0f}; {result.megabytes:.1f} MB beside its input"
    )
    return "\n".join(lines)


def _where(result: Result) -> str:
    return f"{result.threads} threads" if result.threads else "on a GPU"


def save(results: list[Result], machine: dict[str, str], path: Path) -> None:
    """Write the figures and the machine as JSON."""
    content = {
        "machine": machine,
        "results": [asdict(result) | {"ratios": result.ratios} for result in results],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def plot(results: list[Result], path: Path) -> None:
    """Draw the time of exact attention, of Thinformer and of its selection, shape by shape."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(results))
    for i, (name, colour) in enumerate(
        ((EXACT, "#D55E00"), (WHOLE, "#0072B2"), (SELECT, "#009E73"))
    ):
        heights = [1e3 * result.seconds[name] for result in results]
        bars = axes.bar(places + 0.27 * (i - 1), heights, 0.25, color=colour, label=name)
        axes.bar_label(
            bars, labels=[f"{h:,.0f}" if h > 99 else f"{h:.1f}" for h in heights], fontsize=8
        )
    axes.set_xticks(places, [NAMES[result.shape] for result in results])
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(f"{results[0].dtype}, {_where(results[0])}")
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)


def _candidates(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: int,
    schedule: Schedule,
    compiled: bool,
) -> dict[str, Callable[[], object]]:
    """The functions that are timed, by name."""
    _agree(query[:, :100], key[:, :1024], value[:, :1024])
    arrays = [tensor.numpy() for tensor in (query, key, value)]
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    kept_k, kept_v = (tensor[:, :, : schedule.size].contiguous() for tensor in (k, v))
    fast, with_weights = ThinformerAttention(g, use_torch_spda=True), ThinformerAttention(g)
    corrected = ThinformerAttention(g, use_torch_spda=True, correction="queries")
    peaked = PEAK * query
    peaked_q = peaked.transpose(1, 2)

    seed = draw_seed(None, key.device)
    candidates: dict[str, Callable[[], object]] = {
        EXACT: lambda: scaled_dot_product_attention(q, k, v),
        KEPT: lambda: scaled_dot_product_attention(q, kept_k, kept_v),
        SELECT: lambda: select(key, value, None, seed, g, None, None, "even", 0),
        WHOLE: lambda: fast(query, key, value),
        WEIGHTS: lambda: with_weights(query, key, value),
        NUMPY: lambda: attention(*arrays, g=g, rng=0),
        QUERIES: lambda: corrected(query, key, value),
        EXACT_PEAKED: lambda: scaled_dot_product_attention(peaked_q, k, v),
        WHOLE_PEAKED: lambda: fast(peaked, key, value),
        QUERIES_PEAKED: lambda: corrected(peaked, key, value),
    }
    if importlib.util.find_spec("reference") is None:
        print(
            "(plain torch is left out: it is in reference/; run `python -m thinformer bench` "
            "in a checkout)",
            file=sys.stderr,
        )
        return candidates
    from reference import torch_version

    scale = key.shape[-1] ** -0.5
    draws = _tensors(make_draws(schedule, 0, key.shape[2]))
    _agree_on_selection(torch_version.select, key[:, :1024].double(), value[:, :1024].double())
    candidates[EAGER] = lambda: torch_version.select(key, value, scale, schedule, draws)
    if compiled:
        program = torch.compile(torch_version.select)
        candidates[COMPILED] = lambda: program(key, value, scale, schedule, draws)
    return candidates


def _agree(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Raise where attention differs from exact attention over the keys that it returns."""
    arrays = [tensor.numpy() for tensor in (query, key, value)]
    size = max(1, key.shape[1] // 4)
    found = attention(*arrays, size=size, rng=0, return_indices=True)
    rows = torch.from_numpy(found.indices).transpose(1, 2)[..., None]
    kept = [tensor.gather(1, rows.expand(-1, -1, -1, tensor.shape[-1])) for tensor in (key, value)]
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, *kept))
    exact = scaled_dot_product_attention(q, k, v).transpose(1, 2)
    if not np.allclose(found.output, exact.numpy(), rtol=1e-3, atol=1e-5):
        raise RuntimeError("attention differs from SDPA over the same keys; see `validate`")


def _agree_on_selection(select: Callable, key: torch.Tensor, value: torch.Tensor) -> None:
    """Raise where the selection differs from that of plain torch, in float64."""
    schedule = compress_schedule(key.shape[1], max(1, key.shape[1] // 4))
    draws = make_draws(schedule, 0, key.shape[2])
    kept = compress_kv(key.numpy(), value.numpy(), size=schedule.size, draws=draws)
    scale = key.shape[-1] ** -0.5
    if not np.array_equal(kept, select(key, value, scale, schedule, _tensors(draws)).numpy()):
        raise RuntimeError("the selection differs from plain torch's; see `thinformer validate`")


def _tensors(draws: Draws) -> Any:
    """Draws as torch tensors."""
    uniforms, coins = ([torch.from_numpy(array) for array in part] for part in draws[:2])
    return draws._replace(uniforms=uniforms, coins=coins, strata=torch.as_tensor(draws.strata))  # type: ignore[arg-type]


def kernel_flops(schedule: Schedule, dims: int) -> float:
    """Return the operations of a problem's kernel values: half of each bucket's Gram matrix."""
    return sum(2.0 * dims * r.buckets * r.largest_bucket**2 / 2 for r in schedule.rounds)


def _matrix_product(dtype: str) -> float:
    """GFLOP/s of a product of two matrices of 2048 x 2048."""
    a = torch.ones(2048, 2048, dtype=getattr(torch, dtype))
    start = time.perf_counter()
    a @ a
    return 2 * 2048**3 / (time.perf_counter() - start) / 1e9
