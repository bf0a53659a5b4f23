"""Loops over rows of numbers, which the compiler vectorises by itself."""

import numpy as np

from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner


@inner(ELEMENTWISE)
def fill(row, number):
    """Write one number everywhere; in a loop, as a slice assignment takes a second to compile."""
    for i in range(row.size):
        row[i] = number


@inner(STRICT)
def sort_positions(positions, n):
    """Sort distinct positions below n; NumPy's sort takes a second to compile."""
    chosen, s = np.zeros(n, np.bool_), 0
    for i in range(positions.size):
        chosen[positions[i]] = True
    for j in range(n):
        if chosen[j]:
            positions[s] = j
            s += 1


@inner(ELEMENTWISE)
def copy_row(row, out):
    """Copy a row to another, as far as the shorter of them goes."""
    for c in range(min(row.size, out.size)):
        out[c] = row[c]


@inner(ELEMENTWISE)
def copy_within(row, low, high, out):
    """Copy a row to another, and bring each number into its own range low .. high."""
    for d in range(min(row.size, out.size)):
        out[d] = min(max(row[d], low[d]), high[d])


@inner(ELEMENTWISE)
def add(row, total):
    """Add a row to a sum of rows."""
    for i in range(total.size):
        total[i] += row[i]


@inner(ELEMENTWISE)
def multiply(row, factor):
    """Multiply a row by a number."""
    for d in range(row.size):
        row[d] *= factor


@inner(ELEMENTWISE)
def subtract(row, factor, other):
    """Subtract a multiple of another row from a row."""
    for d in range(row.size):
        row[d] -= factor * other[d]
