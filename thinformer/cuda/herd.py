"""Herding of points by their Gram matrix; `thinformer.cpu.herd` on the CPU.

A block has one problem. A turn adds two rows of the Gram matrix to the scores of all points and
finds the least, so a problem of n points and 2 n_out turns reads about 4 n_out n numbers.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from thinformer.cuda.jit import cuda
from thinformer.cuda.sums import make_best_of_block, precedes

THREADS = 256


@functools.cache
def make_herd(dtype: type, threads: int) -> Any:
    """Return the kernel that keeps points, one by one, with a mean close to that of all.

    After the last one, each kept point is dropped once, in the order in which it was kept, and
    replaced by the best point then. Of equal scores the first point has the least. The kernel's
    arguments::

        gram  (problems, n, n), symmetric
        mean  (problems, n), of the rows of gram
        scores  (problems, n), to work in
        taken  (problems, n) bool, False; to work in
        kept  (problems, n_out) int64, places; written. Where gram has NaN: any places
    """
    HALF = dtype(0.5)
    best_of_block = make_best_of_block(threads)

    def herd(gram, mean, scores, taken, kept):
        problem, thread = cuda.blockIdx.x, cuda.threadIdx.x
        n, size = gram.shape[1], kept.shape[1]
        least, best = np.inf, np.int64(n)
        for i in range(thread, n, threads):
            # K_ii / 2, and K_ij for each kept point j, each minus the mean of row i
            score = HALF * gram[problem, i, i] - mean[problem, i]
            scores[problem, i] = score
            if precedes(np.float64(score), i, least, best, -1):
                least, best = np.float64(score), np.int64(i)
        for turn in range(2 * size):
            least, best = best_of_block(least, best, -1)
            new = min(best, n - 1)  # where no score is a number
            if thread == 0:
                kept[problem, turn % size] = new
            if turn == 2 * size - 1:
                return
            cuda.syncthreads()  # the place before it is read
            old = kept[problem, turn - size + 1] if turn >= size - 1 else np.int64(-1)
            least, best = np.inf, np.int64(n)
            for i in range(thread, n, threads):
                loss = gram[problem, old, i] if old >= 0 else mean[problem, i]
                score = scores[problem, i] + (gram[problem, new, i] - loss)
                scores[problem, i] = score
                if i == new:
                    taken[problem, i] = True
                if i == old:
                    taken[problem, i] = False
                if not taken[problem, i] and precedes(np.float64(score), i, least, best, -1):
                    least, best = np.float64(score), np.int64(i)

    return cuda.jit(herd)
