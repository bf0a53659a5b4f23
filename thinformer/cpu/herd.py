"""Kernel herding: keep points one by one, so that their mean is close to the mean of all.

The means are taken in the kernel's Hilbert space.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu import halve
from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner, kernel
from thinformer.cpu.rows import add, sort_positions
from thinformer.cpu.simd import BYTES, PANEL, padded_size, transpose
from thinformer.cpu.subnormals import cleared
from thinformer.cpu.tiles import TILE_ROWS, columns, load, tabulate


def workspace(points: int, dims: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread of `herd` works in: a Gram matrix and three more rows."""
    padded = padded_size(points)
    return cleared(padded * (padded + 3) + halve.workspace(points, dims, dtype).size, dtype)


@kernel
def herd(first, last, problem, index, kept, work):
    """Keep points of problems first .. last-1, with a mean close to that of all points.

    Each step keeps the best of the remaining points. After the last one, each kept point is dropped
    once, in the order in which it was kept, and replaced by the best point then.

    problem : Products or Points
    index : (problems, S) int64, the points
    kept : (problems, n_out) int64, written, increasing
    work : see `workspace`
    """
    points, size = index.shape[1], kept.shape[1]
    padded = padded_size(points)
    gram, work = work[: padded * padded].reshape(padded, padded), work[padded * padded :]
    scores, mean, bars = work[:padded], work[padded : 2 * padded], work[2 * padded : 3 * padded]
    work = work[3 * padded :]
    far = np.finfo(work.dtype).max / 4  # the bar of a kept point, and of places without a point
    lanes, chosen = np.empty(PANEL, work.dtype), np.empty(size, np.int64)
    positions = np.arange(TILE_ROWS)
    for p in range(first, last):
        fill_gram(problem, p, index[p], positions, gram, work)
        mean[:] = 0
        for i in range(points):
            add(gram[i], mean)
        mean /= points
        # score i: K_ii / 2, and K_ij for each kept point j, each minus the mean of row i
        for i in range(points):
            scores[i] = gram[i, i] / 2 - mean[i]
        bars[:points], bars[points:], scores[points:], mean[points:] = 0, far, 0, 0
        low = step(scores, mean, mean, bars, lanes)  # changes nothing: only finds the least score
        for turn in range(2 * size):
            best = 0
            while best < points - 1 and scores[best] + bars[best] != low:
                best += 1
            chosen[turn % size], bars[best] = best, far
            if turn < size - 1:
                low = step(scores, gram[best], mean, bars, lanes)
            elif turn < 2 * size - 1:
                back = chosen[turn - size + 1]
                bars[back] = 0
                low = step(scores, gram[best], gram[back], bars, lanes)
        sort_positions(chosen, points)
        for i in range(size):
            kept[p, i] = index[p, chosen[i]]


@inner(STRICT)
def fill_gram(problem, p, index, positions, gram, work):
    """Write the Gram matrix of some points, in whole panels: one half, and its mirror image.

    positions : (TILE_ROWS,), the numbers from 0 on
    gram : written; both axes are the points, in whole panels
    """
    points, size, apart = index.size, TILE_ROWS * PANEL, gram.shape[1]
    tile, other, free = work[:size], work[size : 2 * size], work[2 * size :]
    loaded, rest = load(problem, p, index, free)
    flat, one, width = gram.ravel(), work.dtype.type(1), BYTES // work.itemsize
    for start in range(0, points, PANEL):
        stop = min(start + PANEL, points)
        panel = columns(problem, loaded, start, rest)
        row = 0
        while row < start:
            end = min(row + TILE_ROWS, start)
            tabulate(problem, p, loaded, row, end, start, panel, tile, other)
            for i in range(row, end):
                for c in range(PANEL):
                    gram[i, start + c] = tile[(i - row) * PANEL + c]
            for i in range(row, end, width):
                at = start * apart + i
                transpose(tile, 0, PANEL, positions, i - row, PANEL, one, flat, at, apart)
            row = end
        tabulate(problem, p, loaded, start, stop, start, panel, tile, other)
        for i in range(start, stop):
            for j in range(i, stop):
                gram[i, j] = gram[j, i] = tile[(i - start) * PANEL + j - start]
    gram[:points, points:] = 0  # so that a place without a point never has the least score


@inner(ELEMENTWISE)
def step(scores, gain, loss, bars, lanes):
    """Add one row to the scores and subtract another; return the least score, with its bar.

    Scores are compared in PANEL lanes side by side.
    """
    for c in range(lanes.size):
        scores[c] += gain[c] - loss[c]
        lanes[c] = scores[c] + bars[c]
    for start in range(PANEL, scores.size, PANEL):
        score, of_bar = scores[start : start + PANEL], bars[start : start + PANEL]
        more, less = gain[start : start + PANEL], loss[start : start + PANEL]
        for c in range(lanes.size):
            moved = score[c] + (more[c] - less[c])
            score[c] = moved
            lanes[c] = min(lanes[c], moved + of_bar[c])
    low = lanes[0]
    for c in range(1, lanes.size):
        low = min(low, lanes[c])
    return low
