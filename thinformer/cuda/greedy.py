"""Greedy choice: each point in turn is the one that makes the MMD of the set least."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from thinformer.cuda.jit import cuda
from thinformer.cuda.pairs import make_value
from thinformer.cuda.sums import make_best_of_block, precedes
from thinformer.cuda.values import Variant


@functools.cache
def make_extend(variant: Variant, threads: int) -> Any:
    """Return the kernel that chooses points, one after the other; of equal ones the first.

    `thinformer.cpu.greedy.extend` has the formula. Each block has candidates of its own. A launch
    takes the steps first .. last-1 of the `size` + 1 steps: step t adds the point t - 1, which the
    step before found, to the potential, and finds the best candidate of every block for point t.
    So with several blocks a launch is one step; one block can take all steps in one launch.

    The kernel's arguments::

        window, place, parameters, scales, index  as in `sums.make_swap`
        mean  (n,) float64, the target's mean embedding
        potential  (n,) float64, as on the CPU; updated
        chosen  (size,) int64, places in `index`; written
        unique  whether a candidate may be taken only once
        first, last  of this launch
        values, places  (2, blocks), to work in
        total  (1,) float64, to which the least potentials are added
    """
    value = make_value(variant)
    best_of_block = make_best_of_block(threads)

    def extend(window, place, parameters, scales, index, mean, potential, chosen, unique, first,
               last, values, places, total):  # fmt: skip
        block, blocks = cuda.blockIdx.x, cuda.gridDim.x
        own, step = block * threads + cuda.threadIdx.x, blocks * threads
        size, n = chosen.size, index.size
        for t in range(first, last):
            new = np.int64(-1)
            if t > 0:
                cuda.syncthreads()  # what one block found, in a launch of several steps
                turn = (t - 1) % 2
                least, new = np.inf, np.int64(n)
                for b in range(cuda.threadIdx.x, blocks, threads):
                    if precedes(values[turn, b], places[turn, b], least, new, -1):
                        least, new = values[turn, b], places[turn, b]
                least, new = best_of_block(least, new, -1)
                new = min(new, n - 1)  # where no potential is a number
                if own == 0:
                    chosen[t - 1] = new
                    total[0] += least
            if t < size:
                least, best = np.inf, np.int64(n)
                for y in range(own, n, step):
                    if new >= 0:
                        added = value(window, place, index[new], index[y], parameters, scales)
                        potential[y] += np.float64(added) - mean[y]
                        if unique and y == new:
                            potential[y] = np.inf
                    if precedes(potential[y], y, least, best, -1):
                        least, best = potential[y], y
                least, best = best_of_block(least, best, -1)
                if cuda.threadIdx.x == 0:
                    values[t % 2, block], places[t % 2, block] = least, best

    return cuda.jit(extend)
