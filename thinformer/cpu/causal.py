"""Attention of a block of tokens to the tokens of the block up to their own, and to keys before it.

As in `thinformer.cpu.softmax`, a thread works on PANEL queries of one head at a time. It takes keys
up to the last one that any of them sees, so half of the products with the block's own keys are left
out. The heads that share keys come one after the other, and the keys are gathered once for them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.jit import kernel
from thinformer.cpu.products import tile_of_products
from thinformer.cpu.rows import fill
from thinformer.cpu.simd import PANEL, padded_size
from thinformer.cpu.softmax import (
    add_log_masses,
    divide,
    exponentials,
    gather_columns,
    row_maxima,
    write_columns,
)
from thinformer.cpu.subnormals import cleared
from thinformer.cpu.tiles import gather_factor


def workspace(S: int, E: int, D: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread works in, for S keys."""
    keys, columns = padded_size(S), padded_size(D)
    return cleared(keys * E + S * columns + PANEL * (E + keys + 2 * PANEL + 2), dtype)


@kernel
def attend_block(
    first, last, blocks, t, query, key, value, log_mass, positions, output, place, stride, work
):
    """Write the outputs of units first .. last-1, PANEL queries of a head each.

    blocks : units of a head of queries
    t : tokens of the block, whose keys are the last t of the S keys
    query : Factor of as many heads for each head of keys, with the softmax scale as SCALE
    key, value : Factor; log_mass : (problems, S)
    positions : (max(S, PANEL),), the numbers from 0 on
    output : flat, written; token i of head h of queries is at place[h] + i * stride
    work : see `workspace`
    """
    S, E, D, loaded = log_mass.shape[1], key.dim, value.dim, -1
    top, total, work = work[:PANEL], work[PANEL : 2 * PANEL], work[2 * PANEL :]
    logits, work = work[: padded_size(S) * PANEL], work[padded_size(S) * PANEL :]
    sums, work = work[: PANEL * PANEL], work[PANEL * PANEL :]
    square, work = work[: PANEL * PANEL], work[PANEL * PANEL :]
    heads = query.first.size // key.first.size
    for unit in range(first, last):
        head, start = unit // blocks, unit % blocks * PANEL
        p, chosen = head // heads, positions[start : min(start + PANEL, t)]
        if p != loaded:
            keys, _, rest = gather_factor(key, p, positions[:S], work)
            values, free = gather_columns(value, p, positions[:S], rest)
            loaded = p
        queries, _, _ = gather_factor(query, head, chosen, free)
        own = S - t + start
        n = own + chosen.size
        for row in range(0, n, PANEL):
            tile_of_products(keys, row * E, queries, 0, E, min(PANEL, n - row), logits, row * PANEL)
        add_log_masses(logits, log_mass[p, :n])
        for i in range(chosen.size):
            fill(logits[(own + i) * PANEL : (own + i) * PANEL + i], -np.inf)
        row_maxima(logits, n, top)
        exponentials(logits, n, top, total)
        for i in range(chosen.size):  # exp of minus infinity is tiny
            fill(logits[(own + i) * PANEL : (own + i) * PANEL + i], 0)
        for column in range(0, D, PANEL):
            count = min(PANEL, D - column)
            tile_of_products(values, column * S, logits, 0, n, count, sums, 0)
            divide(sums[: count * PANEL], total)
            at = place[head] + column
            write_columns(sums, count, chosen, positions, output, at, stride, square)
