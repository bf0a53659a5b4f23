"""Record the golden vectors: what the published torch code returns.

    python tests/data/record_golden.py CLONE

CLONE is a clone of microsoft/thinformer; commit f5b1f26 of July 2025 was recorded. The files in
``golden/`` beside this file list the cases and have their inputs and draws, which stay. Inputs are
numbers of float16, widened to float64: they take a quarter of the room. The published code gets the
draws in place of random numbers, and what it returns is written.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from thinformer.measuring.validate import load_upstream

GOLDEN = Path(__file__).resolve().parent / "golden"
INPUTS = ("K", "query", "key", "value")


class Drawn:
    """What the published code fills with random numbers: here with those of the file."""

    def __init__(self, numbers: NDArray):
        self.numbers = torch.tensor(numbers)

    def uniform_(self, low: float, high: float) -> torch.Tensor:
        """Draws in [-1, 1) as draws in [low, high), which is [-high, high)."""
        return self.numbers * high

    def bernoulli_(self) -> torch.Tensor:
        """One coin for everything."""
        return self.numbers


def replay(published: ModuleType, uniforms: list[NDArray], coins: list[bool]) -> None:
    """Let the published code draw these, in its order: `halve_K` makes three arrays a round."""

    def arrays() -> Iterator[Drawn | torch.Tensor]:
        for u, coin in zip(uniforms, coins, strict=True):
            yield Drawn(u)
            yield torch.empty(u.shape, dtype=torch.bool)
            yield Drawn(np.array([coin]))

    empty = arrays()
    published.empty = lambda *shape, **options: next(empty)  # type: ignore[attr-defined]


def halved(published: ModuleType, case: dict, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    """The result for a Gram matrix."""
    replay(published, [arrays["u"][None, None, None]], [case["coin"]])
    K = torch.tensor(arrays["K"])[None, None, None]
    kept = published.halve_K(K, case["delta"], case["symmetrize"])
    return {"idx": kept[0, 0, 0].numpy()}


def attended(published: ModuleType, case: dict, arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    """What the module returns, and the positions of the keys that it keeps."""
    query, key, value = (torch.tensor(arrays[role]) for role in ("query", "key", "value"))
    uniforms = [arrays[f"u{i}"] for i in range(case["rounds"])]
    replay(published, uniforms, case["coins"])
    out, weights = published.ThinformerAttention(g=case["g"])(query, key, value)
    replay(published, uniforms, case["coins"])
    scaled, rounds = key * key.shape[-1] ** -0.25, published.log4_largest_power_of_four(case["S"])
    kept, _ = published.khcompress(scaled, value, rounds, case["g"], case["delta"])
    same = (kept[:, :, None] == scaled[:, None]).all(-1)  # (B, n_out, S, H): no two keys are equal
    indices = same.int().argmax(2).transpose(1, 2)
    return {"out": out.numpy(), "weights": weights.numpy(), "indices": indices.numpy()}


def main() -> None:
    """Write the file."""
    published = load_upstream(Path(sys.argv[1]))
    arrays = dict(np.load(GOLDEN / "thinformer_vectors.npz"))
    for case in json.loads((GOLDEN / "thinformer_vectors.json").read_text()):
        prefix = f"{case['name']}_"
        fields = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
        for name in fields.keys() & set(INPUTS):
            fields[name] = fields[name].astype(np.float16).astype(np.float64)
        record = halved if case["kind"] == "halve" else attended
        with torch.compiler.set_stance("force_eager"):  # compiled, it would draw by itself
            fields |= record(published, case, fields)
        arrays |= {prefix + name: array for name, array in fields.items()}
    np.savez_compressed(GOLDEN / "thinformer_vectors.npz", **arrays)


if __name__ == "__main__":
    main()
