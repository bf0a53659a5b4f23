"""Orthogonal matching pursuit: columns of a matrix that span sums over all its columns.

The matrix P (M, n) holds the attention weights of M queries on n keys, in panels (M, PANEL) of its
columns. The sums F (M, columns) lie in one panel, so there are at most PANEL. A round solves for F
by the columns A of P that are kept, with a nugget, and keeps those columns that are nearest in
direction to what is left of F. See `reference.cache.choose`.

A round takes M n columns multiply-adds for the directions, where `columns` are the rows of a tile.
The Gram matrix A^T A grows with A; the fit that follows takes it too.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.cholesky import factorise, substitute_backward, substitute_forward
from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner
from thinformer.cpu.products import tile_of_products
from thinformer.cpu.rows import copy_row, fill, subtract
from thinformer.cpu.simd import BYTES, PANEL, padded_size, transpose

# The least nugget, in rounding units of the trace. With thousands of queries that attend alike the
# nugget is below the rounding errors of the Gram matrix: at 128 units and 32,768 queries one system
# of 23 was not positive.
LEAST_NUGGET = 256
TAKEN, ABSENT = -2.0, -1.0  # scores of a key that is kept, and of one that is padding


class Span(NamedTuple):
    """The columns that are kept, at most `most` of them, in the order in which they were chosen.

    kept : (most,) int64, their positions
    A : panels (M, PANEL) of columns, 0 where none is kept
    rows : panels (most in whole panels, PANEL) of rows, so A^T
    gram : panels (most, PANEL) of the columns of A^T A, on and above the diagonal
    """

    kept: NDArray
    A: NDArray
    rows: NDArray
    gram: NDArray


def size_of_span(M: int, most: int) -> int:
    """Return the numbers of memory that a `Span` takes."""
    return padded_size(most) * (2 * M + most)


@inner(STRICT)
def make_span(M, most, free):
    """Return an empty Span, and the memory still free."""
    padded = padded_size(most)
    A, free = free[: padded * M], free[padded * M :]
    rows, free = free[: padded * M], free[padded * M :]
    gram, free = free[: padded * most], free[padded * most :]
    fill(A, 0)
    return Span(np.empty(most, np.int64), A, rows, gram), free


@inner(STRICT)
def extend(span, before, now, P, M, positions, free):
    """Take columns span.kept[before:now] of P to A, and extend A^T and the Gram matrix."""
    most, one, width = span.kept.size, P.dtype.type(1), BYTES // P.itemsize
    padded, first = padded_size(most), before // PANEL * PANEL
    for i in range(before, now):
        j = span.kept[i]
        column, to = P[j // PANEL * PANEL * M + j % PANEL :], span.A[i // PANEL * PANEL * M :]
        for q in range(M):
            to[q * PANEL + i % PANEL] = column[q * PANEL]
    for panel in range(first, now, PANEL):
        for row in range(0, M, PANEL):
            for i in range(0, PANEL, width):
                at = row * padded + panel * PANEL + i
                place = panel * M + row * PANEL
                transpose(
                    span.A, place, PANEL, positions, i, PANEL, one, span.rows, at, PANEL
                )  # fmt: skip
        for start in range(0, panel + 1, PANEL):
            count = min(PANEL, now - start)
            tile_of_products(span.A, start * M, span.A, panel * M, M, count, free, 0)
            copy_row(free[: count * PANEL], span.gram[panel * most + start * PANEL :])


@inner(STRICT)
def pursue(span, before, P, M, n, m, F, columns, squares, absent, rounds, nugget, positions, free):
    """Keep columns in rounds until span.kept is full; `before` of them are there already.

    m : the number of queries among the M rows, of which others are 0
    F : panel (M, PANEL), the sums; `columns` of its columns count
    squares : (n in whole panels,), the squared norms of the columns of P
    absent : (n,) bool, keys that are none
    """
    most = span.kept.size
    score, free = free[: squares.size], free[squares.size :]
    left, free = free[: M * PANEL], free[M * PANEL :]
    damped, free = free[: squares.size], free[squares.size :]
    damp(squares, absent, damped)
    extend(span, 0, before, P, M, positions, free)
    for i in range(rounds):
        remainder(span, before, M, m, F, nugget, left, free)
        for j in range(0, n, PANEL):
            tile_of_products(left, 0, P, j * M, M, columns, free, 0)
            to_scores(free, columns, damped[j : j + PANEL], score[j : j + PANEL])
        for j in range(n):
            if absent[j]:
                score[j] = ABSENT
        for j in span.kept[:before]:
            score[j] = TAKEN
        now = before + (most - before) // (rounds - i)
        keep_best(score[:n], span.kept[before:now])
        extend(span, before, now, P, M, positions, free)
        before = now


@inner(STRICT)
def damp(squares, absent, damped):
    """Write the squared norms plus their mean, so that keys that hardly count are not taken."""
    total, number = 0.0, 0
    for j in range(absent.size):
        total += squares[j]
        number += not absent[j]
    mean = total / max(number, 1)
    for j in range(squares.size):
        damped[j] = squares[j] + mean if squares[j] + mean > 0 else 1


@inner(STRICT)
def remainder(span, k, M, m, F, nugget, left, free):
    """Write what is left of F by the first k columns that are kept."""
    copy_row(F, left)
    X, free = free[: k * PANEL], free[k * PANEL :]
    for start in range(0, k, PANEL):
        tile_of_products(span.A, start * M, F, 0, M, min(PANEL, k - start), X, start * PANEL)
    roots = np.ones(k, F.dtype)
    if not solve(span, k, m, roots, nugget, X, free):
        return
    padded = padded_size(span.kept.size)
    for row in range(0, M, PANEL):
        tile_of_products(span.rows, row * padded, X, 0, k, PANEL, free, 0)
        subtract(left[row * PANEL : (row + PANEL) * PANEL], 1, free)


@inner(STRICT)
def solve(span, k, m, roots, nugget, X, free):
    """Replace X, panels (k, PANEL), by N^-1 X; return whether there is such a system.

    N has the entries root_i root_j (A^T A)_ij of the first k columns, and on its diagonal also
    `nugget` times the mean over m queries of the squares of A's rows, with these roots.
    """
    most, trace = span.kept.size, 0.0
    for i in range(k):
        of_i = span.gram[i // PANEL * PANEL * most + i * PANEL + i % PANEL]
        trace += np.float64(of_i) * roots[i] * roots[i]
    added = trace * max(nugget / max(m, 1), LEAST_NUGGET * np.finfo(X.dtype).eps)
    if not added > 0:  # the queries attend to none of these keys
        return False
    R, free = free[: padded_size(k) * k], free[padded_size(k) * k :]
    inverses, free = free[: padded_size(k) * PANEL], free[padded_size(k) * PANEL :]
    for panel in range(0, k, PANEL):
        for i in range(min(panel + PANEL, k)):
            at = panel * most + i * PANEL
            row = R[panel * k + i * PANEL : panel * k + (i + 1) * PANEL]
            copy_row(span.gram[at : at + PANEL], row)
            scale_entries(row, roots[i], roots[panel : panel + PANEL])
        for i in range(panel, min(panel + PANEL, k)):
            R[panel * k + i * PANEL + i - panel] += added
    factorise(R, k, inverses, free)
    substitute_forward(R, inverses, k, X, free)
    substitute_backward(R, inverses, k, X, free)
    return True


@inner(ELEMENTWISE)
def scale_entries(row, factor, factors):
    """Multiply the entries of a row by a factor, and each by its own."""
    for c in range(factors.size):
        row[c] *= factor * factors[c]


@inner(ELEMENTWISE)
def to_scores(tile, columns, damped, score):
    """Write the squared norms of a tile's columns over `damped` (PANEL,)."""
    fill(score, 0)
    for i in range(columns):
        row = tile[i * PANEL : (i + 1) * PANEL]
        for c in range(damped.size):
            score[c] += row[c] * row[c]
    for c in range(damped.size):
        score[c] /= damped[c]


@inner(STRICT)
def keep_best(score, kept):
    """Write the positions of the largest scores (n,); of equal scores the later key's."""
    n, number = score.size, kept.size
    if number == 0:
        return
    for j in range(n):
        if np.isnan(score[j]):  # sums beyond the range of the numbers
            score[j] = 0
    bar, above = select(score.copy(), n - number), 0
    for j in range(n):
        above += score[j] > bar
    i, equal = number, number - above
    for j in range(n - 1, -1, -1):
        if score[j] > bar or (score[j] == bar and equal > 0):
            equal -= score[j] == bar
            i -= 1
            kept[i] = j


@inner(STRICT)
def select(numbers, k):
    """Return the k-th smallest of some numbers, counted from 0, which are put in another order.

    Hoare's selection; np.partition would take six seconds to compile.
    """
    first, last = 0, numbers.size - 1
    while first < last:
        pivot, i, j = numbers[(first + last) // 2], first, last
        while i <= j:
            while numbers[i] < pivot:
                i += 1
            while numbers[j] > pivot:
                j -= 1
            if i <= j:
                numbers[i], numbers[j] = numbers[j], numbers[i]
                i, j = i + 1, j - 1
        if j < k < i:
            break
        first, last = (first, j) if k <= j else (i, last)
    return numbers[k]
