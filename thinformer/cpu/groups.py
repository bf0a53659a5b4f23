"""Groups of keys around landmarks: which landmark is near to a key, and the sums of a group.

A key joins the group of the landmark that is nearest to it, among those that are near in the order
of keys (`reference.landmarks.nearest_landmarks`). Keys lie in panels (E, PANEL).
"""

from __future__ import annotations

import numpy as np

from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner
from thinformer.cpu.products import tile_of_products
from thinformer.cpu.rows import add, fill
from thinformer.cpu.simd import PANEL, ROWS, squared_norms

NEAR = 32  # landmarks, before and after a block of PANEL keys, that may be the nearest to a key
TIE = 1e-6  # a landmark's squared norm grows by this share for each landmark before it
FLOOR = 1e-12  # the least weight of a key in the mean of its group; the largest is 1


@inner(STRICT)
def merge(x, n, E, weight, values, chosen, few, keys, sums, number, free):
    """Write the mean key, the sums of values and the number of keys of each landmark's group.

    x : panels (E, PANEL) of n keys
    weight : (n,), the roots of the keys' weights in the mean
    values : panels (n, PANEL)
    chosen : (n_out,), the landmarks, increasing
    few : panels (E, PANEL) of the landmarks; overwritten by the mean keys
    keys : (n_out * E,), written: rows of the mean keys
    sums : panels (n_out, PANEL), written
    number : (n_out,), written
    """
    n_out = chosen.size
    group = np.empty(n, np.int64)
    nearest_landmarks(x, n, E, few, chosen, group, free)
    total = free[:n_out]
    fill(keys, 0)
    fill(sums, 0)
    fill(number, 0)
    fill(total, 0)
    least = weight.dtype.type(FLOOR)
    for j in range(n):
        s, w = group[j], max(weight[j] * weight[j], least)
        total[s] += w
        number[s] += 1
        key, row = x[j // PANEL * PANEL * E + j % PANEL :], keys[s * E : (s + 1) * E]
        for d in range(E):
            row[d] += w * key[d * PANEL]
        for panel in range(0, sums.size // n_out, PANEL):
            to = panel * n_out + s * PANEL
            add(values[panel * n + j * PANEL :], sums[to : to + PANEL])
    for s in range(n_out):
        panel, row = few[s // PANEL * PANEL * E + s % PANEL :], keys[s * E : (s + 1) * E]
        for d in range(E):
            row[d] /= total[s]
            panel[d * PANEL] = row[d]


@inner(STRICT)
def nearest_landmarks(x, n, E, few, chosen, group, free):
    """Write the number of each key's landmark to group (n,).

    Distances are |landmark|^2 - 2 <key, landmark>, in tiles of PANEL keys and PANEL landmarks.
    """
    n_out, tile, free = chosen.size, free[: PANEL * PANEL], free[PANEL * PANEL :]
    squares, free = free[: few.size // E], free[few.size // E :]
    least, which = free[:PANEL], free[PANEL : 2 * PANEL]
    for start in range(0, few.size // E, PANEL):
        squared_norms(few, start * E, E, squares, start)
    for s in range(n_out):  # so that it is not rounding that decides between equal distances
        squares[s] *= 1 + TIE * s
    after = 0
    for start in range(0, n, PANEL):
        before = after
        while after < n_out and chosen[after] < start + PANEL:
            after += 1
        first, last = max(before - NEAR, 0), min(after + NEAR, n_out)
        fill(least, np.inf)
        fill(which, first)  # for a key that is not finite
        for panel in range(first // PANEL * PANEL, last, PANEL):
            row = max(first - panel, 0)
            whole, end = row // ROWS * ROWS, min(last - panel, PANEL)
            tile_of_products(few, panel * E + whole, x, start * E, E, end - whole, tile, 0)
            near = tile[(row - whole) * PANEL : (end - whole) * PANEL]
            take_nearest(near, squares[panel + row : panel + end], panel + row, least, which)
        for c in range(min(PANEL, n - start)):
            group[start + c] = int(which[c])
    for s in range(n_out):
        group[chosen[s]] = s


@inner(ELEMENTWISE)
def take_nearest(products, squares, first, least, which):
    """Update the least distance, and the number of its landmark, of PANEL keys.

    products : (landmarks, PANEL); squares : (landmarks,); first : the number of the first landmark
    least, which : (PANEL,); numbers are floats, so that both are vectors of the same length
    """
    for i in range(squares.size):
        row, square = products[i * PANEL : (i + 1) * PANEL], squares[i]
        number = least.dtype.type(first + i)
        for c in range(least.size):
            distance = square - 2 * row[c]
            which[c] = number if distance < least[c] else which[c]
            least[c] = min(distance, least[c])
