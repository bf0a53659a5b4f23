"""Run thinformer and both specifications over many seeds, and compare the results.

    python -m reference.validate [SEEDS]

This file alone knows both the specification and the package, because it compares them: `Row`,
`TOLERANCE` and the table come from `thinformer.measuring.validate`.

thinformer and torch must be installed. Indices must be equal in every run whose trace, in the NumPy
specification, has no margin within rounding error (see `thinformer.measuring.validate`). The other
runs are counted and left out. The exit status is 1 if anything differs.
"""

import sys

import numpy as np
import torch

from reference import kernels
from reference.attention import thinformer_attention
from reference.compress import kh_compress
from reference.torch_version import select
from thinformer import Draws, attention, compress_schedule, make_draws
from thinformer import kh_compress as fast_kh_compress
from thinformer.kernels.catalogue import KERNELS
from thinformer.measuring.validate import OUTPUT_TOLERANCE, TOLERANCE, Row, format_table

SIZES = [(64, 16), (100, 7), (500, 64), (1024, 128)]


def compare_points(kernel, dtype, seeds):
    """Compare point sets under one kernel; returns a row of the table."""
    failed, left_out, smallest = [], 0, np.inf
    gram = getattr(kernels, kernel)
    for seed in range(seeds):
        S, size = SIZES[seed % len(SIZES)]
        schedule = compress_schedule(S, size)
        points = np.random.default_rng(seed).standard_normal((schedule.length, 3)).astype(dtype)
        points = points % 1 if kernel == "sobolev" else points
        draws = make_draws(schedule, seed)
        expected, traces = kh_compress(
            lambda x: gram(x, x), points, schedule.rounds, draws.uniforms, draws.coins
        )
        kept = fast_kh_compress(points, size=size, kernel=kernel, draws=draws)
        margin = min(trace.margin.min() for trace in traces)
        if margin < TOLERANCE[dtype]:
            left_out += 1
            continue
        smallest = min(smallest, margin)
        if not np.array_equal(kept, expected):
            failed.append(f"seed {seed}")
    compared = seeds - left_out
    return Row(f"points, {kernel}", "numba", dtype, compared, failed, smallest, left_out)


def compare_attention(dtype, seeds):
    """Compare attention; returns a row for each of "numba" and "torch".

    Both are compared with the NumPy specification.
    """
    failed, left_out, smallest = {"numba": [], "torch": []}, 0, np.inf
    for seed in range(seeds):
        S, size = SIZES[seed % len(SIZES)]
        rng = np.random.default_rng(seed)
        query, key, value = (
            rng.standard_normal((2, length, 3, dim)).astype(dtype)
            for length, dim in ((5, 16), (S, 16), (S, 8))
        )
        schedule = compress_schedule(S, size)
        draws = make_draws(schedule, seed, heads=3)
        output, _, expected, traces = thinformer_attention(query, key, value, 0.25, schedule, draws)
        margin = min(trace.margin.min() for of_head in traces.values() for trace in of_head)
        if margin < TOLERANCE[dtype]:
            left_out += 1
            continue
        smallest = min(smallest, margin)
        result = attention(query, key, value, size=size, draws=draws, return_indices=True)
        tensors = Draws(
            tuple(map(torch.tensor, draws.uniforms)),
            tuple(map(torch.tensor, draws.coins)),
            torch.tensor(draws.strata),
        )
        indices = {
            "numba": result.indices,
            "torch": select(
                torch.tensor(key), torch.tensor(value), 0.25, schedule, tensors
            ).numpy(),
        }
        for body, kept in indices.items():
            if not np.array_equal(kept, expected):
                failed[body].append(f"seed {seed}")
        if dtype == "float64" and np.abs(result.output - output).max() > OUTPUT_TOLERANCE:
            failed["numba"].append(f"seed {seed} (output)")
    return [
        Row("attention", body, dtype, seeds - left_out, failed[body], smallest, left_out)
        for body in failed
    ]


def main():
    """Print the table; return 1 if any row fails."""
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    rows = []
    for dtype in TOLERANCE:
        rows += [compare_points(kernel, dtype, seeds) for kernel in KERNELS]
        rows += compare_attention(dtype, seeds)
    print(format_table(rows))
    failures = sum(bool(row.failed) for row in rows)
    print(f"\n{'FAIL' if failures else 'PASS'}: {len(rows) - failures} of {len(rows)} rows agree")
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
