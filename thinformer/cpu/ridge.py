"""The correction of the groups' sums by sampled queries, a ridge regression.

With the weights P (m, n_out) that m sampled queries give to mean keys, the residuals r of their
exact outputs, and D, the diagonal of the groups' numbers of keys less 1, the sums Z_0 become
Z_0 + D P^T (P D P^T + nu)^-1 r. See `reference.landmarks.correct`.
"""

from __future__ import annotations

import numpy as np

from thinformer.cpu.cholesky import factorise, substitute_backward, substitute_forward
from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner
from thinformer.cpu.products import tile_of_products
from thinformer.cpu.rows import add, copy_row, fill, multiply, subtract
from thinformer.cpu.simd import BYTES, PANEL, padded_size, transpose
from thinformer.cpu.tiles import exp

FLAT = 0.01  # the mean of the diagonal is at least this share of that of flat attention
LEAST_MASS = 0.05  # the least predicted mass of a held-out query; its exact mass is 1


@inner(STRICT)
def correct(
    few, E, queries, m, top, total, exact, D, number, sums, held, nuggets, positions, free
):  # fmt: skip
    """Correct the sums of values and masses, panels (n_out, PANEL), in place.

    few : panels (E, PANEL) of the mean keys
    queries, m, top, total : as `drawn.attend_sampled` has them; the last `held` are held out
    exact : panels (m in whole panels, PANEL), the queries' outputs, D columns, and masses
    number : (n_out,), the keys of each group
    nuggets : the numbers nu to choose from, times the mean of the diagonal of P D P^T
    """
    n_out, padded = number.size, padded_size(m)
    rows = padded_size(n_out)
    width, columns = BYTES // few.itemsize, sums.size // n_out
    P, free = free[: padded * rows], free[padded * rows :]
    G, free = free[: padded * m], free[padded * m :]
    r, free = free[: columns * m], free[columns * m :]
    weights_of_landmarks(few, E, queries, m, top, total, n_out, P)
    keys = 0.0
    for s in range(n_out):
        keys += number[s]
    flat = (keys - n_out) / (keys * keys)
    unit = max(gram(P, m, n_out, number, G, free), FLAT * flat)
    if not unit > 0:  # every group is one key
        return
    for panel in range(0, columns, PANEL):
        for first in range(0, m, PANEL):
            count = min(PANEL, m - first)
            here = r[panel * m + first * PANEL : panel * m + (first + count) * PANEL]
            tile_of_products(P, first * rows, sums, panel * n_out, n_out, count, free, 0)
            copy_row(exact[panel * padded + first * PANEL :], here)
            subtract(here, 1, free)
    multiply(G, G.dtype.type(1 / unit))
    solve(G, r, exact, m, D, held, nuggets, free)
    across, free = free[: PANEL * padded], free[PANEL * padded :]
    for start in range(0, n_out, PANEL):
        count = min(PANEL, n_out - start)
        for first in range(0, m, PANEL):
            for i in range(0, PANEL, width):
                at = first * rows + start * PANEL
                to = first * PANEL + i
                transpose(P, at, PANEL, positions, i, PANEL, P.dtype.type(1), across, to, PANEL)
        for panel in range(0, columns, PANEL):
            tile_of_products(across, 0, r, panel * m, m, count, free, 0)
            for i in range(count):
                row = free[i * PANEL : (i + 1) * PANEL]
                multiply(row, (number[start + i] - 1) / unit)
                at = panel * n_out + (start + i) * PANEL
                add(row, sums[at : at + PANEL])


@inner(STRICT)
def weights_of_landmarks(few, E, queries, m, top, total, n_out, P):
    """Write exp(<q, k> - top) / total for mean keys: P, panels (n_out in whole panels, PANEL)."""
    rows = padded_size(n_out)
    for first in range(0, m, PANEL):
        weights = P[first * rows : (first + PANEL) * rows]
        for start in range(0, n_out, PANEL):
            count = min(PANEL, n_out - start)
            at = start * PANEL
            tile_of_products(few, start * E, queries, first * E, E, count, weights, at)
        to_weights(weights, n_out, top[first : first + PANEL], total[first : first + PANEL])


@inner(ELEMENTWISE)
def to_weights(logits, n, top, total):
    """Replace n rows of logits by weights; only rounding makes a logit exceed the largest one."""
    zero = top.dtype.type(0)
    inverse = 1 / total
    for s in range(n):
        row = logits[s * PANEL : (s + 1) * PANEL]
        for q in range(inverse.size):
            row[q] = exp(min(row[q] - top[q], zero)) * inverse[q]


@inner(STRICT)
def gram(P, m, n_out, number, G, free):
    """Write P D P^T, panels (m, PANEL) on and above the diagonal; return the mean of the diagonal.

    P : panels (n_out in whole panels, PANEL), a panel for PANEL queries
    """
    rows, diagonal = padded_size(n_out), 0.0
    apart, free = free[: n_out * PANEL], free[n_out * PANEL :]
    for panel in range(0, m, PANEL):
        copy_row(P[panel * rows : panel * rows + n_out * PANEL], apart)
        for s in range(n_out):
            multiply(apart[s * PANEL : (s + 1) * PANEL], number[s] - 1)
        for first in range(0, panel + 1, PANEL):
            count = min(PANEL, m - first)
            tile_of_products(P, first * rows, apart, 0, n_out, count, free, 0)
            copy_row(free[: count * PANEL], G[panel * m + first * PANEL :])
        for q in range(panel, min(panel + PANEL, m)):
            diagonal += G[panel * m + q * PANEL + q - panel]
    return diagonal / m


@inner(STRICT)
def solve(G, r, exact, m, D, held, nuggets, free):
    """Replace residuals r, panels (m, PANEL), by (G + nu)^-1 r, with the best of the nuggets.

    exact, D, held : see `correct`
    """
    R, free = free[: G.size], free[G.size :]
    inverses, free = free[: padded_size(m) * PANEL], free[padded_size(m) * PANEL :]
    y, free = free[: r.size], free[r.size :]
    least, best = np.inf, nuggets[0]
    for nugget in nuggets:
        factorise_with(G, m, nugget, R, inverses, free)
        copy_row(r, y)
        substitute_forward(R, inverses, m, y, free)
        error = held_out_error(R, y, exact, m, D, held, free)
        if error < least:
            least, best = error, nugget
    if best != nuggets[-1]:
        factorise_with(G, m, best, R, inverses, free)
        copy_row(r, y)
        substitute_forward(R, inverses, m, y, free)
    substitute_backward(R, inverses, m, y, free)
    copy_row(y, r)


@inner(STRICT)
def factorise_with(G, m, nugget, R, inverses, free):
    """Write the Cholesky factor of G plus a nugget on its diagonal to R."""
    copy_row(G, R)
    for q in range(m):
        R[q // PANEL * PANEL * m + q * PANEL + q % PANEL] += nugget
    factorise(R, m, inverses, free)


@inner(STRICT)
def held_out_error(R, y, exact, m, D, held, free):
    """Return the squared error of the last `held` outputs, by the fit to the other queries.

    R, y : the factor of all queries' matrix, and R^-T r. What the fit to the first queries leaves
        of the last residuals is R_hh^T y_h, with the last rows and columns of R.
    """
    error, padded = 0.0, padded_size(m)
    columns = y.size // m
    left = free[:columns]
    for h in range(m - held, m):
        fill(left, 0)
        for k in range(m - held, h + 1):
            factor = -R[h // PANEL * PANEL * m + k * PANEL + h % PANEL]
            for panel in range(0, columns, PANEL):
                row = y[panel * m + k * PANEL : panel * m + (k + 1) * PANEL]
                subtract(left[panel : panel + PANEL], factor, row)
        place = h * PANEL
        mass = exact[D // PANEL * PANEL * padded + place + D % PANEL] - left[D]
        mass = max(mass, exact.dtype.type(LEAST_MASS))
        for d in range(D):
            of_d = exact[d // PANEL * PANEL * padded + place + d % PANEL]
            apart = (of_d - left[d]) / mass - of_d
            error += apart * apart
    return error
