"""Checks that this installation computes the recorded results, and that its bodies agree.

A recorded case is one of four kinds:

halve : a Gram matrix ``K``
points : ``points`` and the name of a kernel, for `kh_compress`
thin : likewise, for `thin`
attention : ``query``, ``key``, ``value``, or the name of recorded activations

It holds the right indices, its settings, the dtype it is computed in, and its draws, as arrays
(``uniforms0``, ``coins0``, ...) or as their seed. It also holds its smallest margin: how far the
closest decision was from going the other way, in units of the kernel values it adds up
(`reference.halving.Trace`). Sums in another order may turn a decision whose margin is within
rounding error, and all later decisions. No recorded case has such a margin, so all results must be
equal.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.arrays import attention
from thinformer.data import installed_activations, load_activations, load_vectors
from thinformer.halving.draws import Draws, make_draws
from thinformer.halving.plan import plan
from thinformer.thinning.stacks import kernel_halve, kh_compress
from thinformer.thinning.thin import thin

# The largest margin that rounding may overcome. An exponent x makes one rounding, 1e-16 or 6e-8, x
# times as large, and x reaches some hundreds in real attention.
TOLERANCE = {"float64": 1e-12, "float32": 1e-4}
OUTPUT_TOLERANCE = 1e-12
SEEDS = range(10)
BODIES = {"cpu": "numba", "cuda": "numba.cuda"}
Device = Literal["cpu", "cuda"]
INPUTS = ("K", "points", "query", "key", "value")


class Row(NamedTuple):
    """One line of the table: a comparison of one body, and its outcome.

    failed : names of the cases that do not agree
    margin : smallest margin of the cases, NaN where it is not known
    left_out : number of further cases, left out because a margin was within rounding error
    """

    checked: str
    body: str
    dtype: str
    cases: int
    failed: list[str]
    margin: float = math.nan
    left_out: int = 0


def validate(device: Device = "cpu") -> list[Row]:
    """Compare a body of this installation with the recorded vectors, and with the torch module.

    Cases of activations that are not installed are left out.
    """
    vectors = load_vectors()
    rows = []
    groups: dict[tuple[str, str], list] = {}
    for case, fields in vectors:
        if case.get("activations") in (None, *installed_activations()):
            groups.setdefault((case["family"], case["dtype"]), []).append((case, fields))
    for (family, dtype), cases in groups.items():
        failed = [_name(case) for case, fields in cases if not _agrees(case, fields, device)]
        margin = min(case["margin"] for case, _ in cases)
        rows.append(Row(family, BODIES[device], dtype, len(cases), failed, margin))
    if importlib.util.find_spec("torch"):
        rows.append(_torch_against_numpy(device))
    return rows


def format_table(rows: list[Row]) -> str:
    """Return the rows as a table with a verdict for each."""
    lines = [("", "checked", "body", "dtype", "cases", "smallest margin", "")]
    for row in rows:
        note = f"differ: {', '.join(row.failed)}" if row.failed else ""
        if row.left_out:
            note = f"{row.left_out} near a tie left out  {note}"
        margin = f"{row.margin:.1e}" if math.isfinite(row.margin) else "-"
        verdict = "FAIL" if row.failed else "PASS"
        lines.append((verdict, *row[:3], str(row.cases), margin, note))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def validate_upstream(folder: Path) -> list[Row]:
    """Compare live with the published torch module, in a clone of its repository at `folder`.

    The module draws from torch's global generator: the same calls after the same seed repeat its
    draws.
    """
    import torch

    upstream = load_upstream(folder)
    rows = []
    for B, T, S, H, E, D, g in ((1, 8, 64, 1, 4, 4, 1), (2, 16, 300, 3, 8, 12, 1),
                                (1, 32, 1024, 2, 16, 16, 2), (2, 8, 2047, 1, 8, 8, 0)):  # fmt: skip
        schedule = plan(S, g, None, 0.5, "stride").schedule
        failed = []
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            query, key = rng.standard_normal((B, T, H, E)), rng.standard_normal((B, S, H, E))
            value = rng.standard_normal((B, S, H, D))
            torch.manual_seed(seed)
            # it is decorated for torch.compile, whose code would draw other numbers
            with torch.compiler.set_stance("force_eager"):
                module = upstream.ThinformerAttention(g=g)
                expected, _ = module(*map(torch.tensor, (query, key, value)))
            torch.manual_seed(seed)
            uniforms, coins = [], []
            for pairs, buckets, delta in schedule.rounds:
                bound = 0.5 + math.log(4 * (pairs // buckets) / delta)
                u = torch.empty(B, buckets, H, pairs // buckets).uniform_(-bound, bound)
                uniforms.append(u.transpose(1, 2).reshape(B, H, pairs).double().numpy() / bound)
                coin = bool(torch.empty(1, dtype=torch.bool).bernoulli_())
                coins.append(np.full(buckets, coin))
            draws = Draws(tuple(uniforms), tuple(coins))
            output = attention(query, key, value, g=g, pre_thin="stride", draws=draws).output
            if np.abs(output - expected.numpy()).max() > OUTPUT_TOLERANCE:
                failed.append(f"seed {seed}")
        rows.append(Row(f"published module, S = {S}, g = {g}", "numba", "float64", len(SEEDS),
                        failed))  # fmt: skip
    return rows


def load_upstream(folder: Path) -> ModuleType:
    """Load the published module under another name than the one it shares with this package."""
    path = folder / "thinformer" / "thinformer.py"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: not a clone of the published repository")
    spec = importlib.util.spec_from_file_location("published_thinformer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _agrees(case: dict[str, Any], fields: dict[str, NDArray], device: Device = "cpu") -> bool:
    """Compute a case and compare it with what was recorded."""
    if "activations" in case:
        fields = fields | load_activations(case["activations"])[case["layer"]]
    inputs = {name: fields[name].astype(case["dtype"]) for name in INPUTS if name in fields}
    indices, output = _compute(case, inputs, fields, device)
    if not np.array_equal(indices, fields["indices"]):
        return False
    return "output" not in fields or np.abs(output - fields["output"]).max() <= OUTPUT_TOLERANCE


def _compute(
    case: dict[str, Any], inputs: dict[str, Any], fields: dict[str, NDArray], device: Device
) -> tuple[NDArray, NDArray | None]:
    """Compute the indices of a case and, for attention, the output."""
    if case["kind"] == "halve":
        draws = _recorded(fields)
        return kernel_halve(**inputs, delta=case["delta"], draws=draws, device=device), None
    if case["kind"] == "points":
        schedule = plan(len(inputs["points"]), 0, case["size"], 0.5).schedule
        draws = make_draws(schedule, case["seed"])
        kernel, size = case["kernel"], case["size"]
        kept = kh_compress(**inputs, size=size, kernel=kernel, draws=draws, device=device)
        return kept, None
    if case["kind"] == "thin":
        chosen = {name: case[name] for name in ("size", "kernel", "bandwidth", "g")}
        return thin(**inputs, **chosen, rng=case["seed"], device=device), None
    settings = {name: case[name] for name in ("g", "size", "delta", "pre_thin")}
    _, S, H, _ = inputs["key"].shape
    if "seed" in case:
        draws = make_draws(plan(S, **settings).schedule, case["seed"], H)
    else:
        draws = _recorded(fields)
    result = attention(**inputs, **settings, draws=draws, device=device, return_indices=True)
    assert result.indices is not None
    return result.indices, result.output


def _recorded(fields: dict[str, NDArray]) -> Draws:
    """The draws that a case holds as arrays."""
    rounds = range(sum(name.startswith("uniforms") for name in fields))
    return Draws(
        tuple(fields[f"uniforms{i}"] for i in rounds), tuple(fields[f"coins{i}"] for i in rounds)
    )


def _name(case: dict[str, Any]) -> str:
    """A name that no other case of its family has."""
    return " ".join(f"{key}={case[key]}" for key in ("id", "kernel", "layer") if key in case)


def _torch_against_numpy(device: Device) -> Row:
    """Compare `ThinformerAttention` on a device with `attention`, seed by seed."""
    import torch

    from thinformer.torch import ThinformerAttention

    failed = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        module = ThinformerAttention(g=1, generator=generator)
        query, key, value = torch.randn(3, 2, 300, 2, 8, dtype=torch.float64, generator=generator)
        state = generator.get_state()
        output, _ = module(query.to(device), key.to(device), value.to(device))
        generator.set_state(state)
        drawn = int(torch.empty((), dtype=torch.int64).random_(generator=generator))
        expected = attention(query.numpy(), key.numpy(), value.numpy(), g=1, rng=drawn).output
        if np.abs(output.cpu().numpy() - expected).max() > OUTPUT_TOLERANCE:
            failed.append(f"seed {seed}")
    body = BODIES[device]
    return Row("torch module = NumPy function", body, "float64", len(SEEDS), failed)
