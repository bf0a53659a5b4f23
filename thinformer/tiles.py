"""Tiles of kernel values, which the compiled loops are made of.

A tile holds k(x, y) for some rows x and the PANEL points y of a panel. One of `Products` is a
matrix product and phi, for each of two factors; one of `Points` is squared distances and phi, or a
loop of the kernel's own. `load`, `columns` and `tabulate` choose by the type of the problem, so
each kind is compiled without the other.

The product is BLAS's: loops in plain Numba reached 14 GFLOP/s where BLAS reaches 110 on tiles of
this size (one Zen 4 core, float32). OpenBLAS runs a product of up to 2^18 multiply-adds on the
calling thread and starts threads of its own above, inside ours, so a tile's product is cut to that,
or to one row (of more than 8192 dimensions).
"""

from __future__ import annotations

import numpy as np

from thinformer import kernels
from thinformer._exp import exp32, exp64
from thinformer._jit import ELEMENTWISE, REDUCTION, STRICT, bind, by_array, by_dtype, by_kind, inner
from thinformer.kernels import (
    ENERGY,
    EXPONENTIAL,
    GAUSSIAN,
    INVERSE_MULTIQUADRIC,
    LAPLACE,
    LINEAR,
    MATERN_3_2,
    MATERN_5_2,
    OF_DISTANCE,
    POLYNOMIAL,
    RATIONAL_QUADRATIC,
    SOBOLEV,
    STEIN,
)
from thinformer.problem import CONSTANT, DEGREE, FIRST, SCALE, WEIGHT, Points, Products

PANEL = 32  # points: two vectors of 16 floats
TILE_ROWS = 128
BLAS_SERIAL = 2**18  # multiply-adds of one product

exp = by_dtype(exp32, exp64)
phi_linear = bind(kernels.phi_linear, ELEMENTWISE)
phi_polynomial = bind(kernels.phi_polynomial, ELEMENTWISE)
phi_exponential = bind(kernels.phi_exponential, ELEMENTWISE, exp=exp)
phi_gaussian = bind(kernels.phi_gaussian, ELEMENTWISE, exp=exp)
phi_laplace = bind(kernels.phi_laplace, ELEMENTWISE, exp=exp)
phi_inverse_multiquadric = bind(kernels.phi_inverse_multiquadric, ELEMENTWISE)
phi_matern_3_2 = bind(kernels.phi_matern_3_2, ELEMENTWISE, exp=exp)
phi_matern_5_2 = bind(kernels.phi_matern_5_2, ELEMENTWISE, exp=exp)
phi_rational_quadratic = bind(kernels.phi_rational_quadratic, ELEMENTWISE, exp=exp)
phi_energy = bind(kernels.phi_energy, ELEMENTWISE)
sobolev_factor = bind(kernels.sobolev_factor, ELEMENTWISE)
stein_of = bind(kernels.stein_of, ELEMENTWISE)


@inner(STRICT)
def load_products(problem, p, positions, free):
    """Gather a bucket's points into free memory.

    Returns what `tabulate` takes, the rows and the constant of either factor, and the memory
    still free.
    """
    key, key_constant, rest = gather_factor(problem.keys, p, positions, free)
    value, value_constant, rest = gather_factor(problem.values, p, positions, rest)
    return (key, key_constant, value, value_constant), rest


@inner(STRICT)
def gather_factor(factor, p, positions, free):
    """Gather the points of one factor, times its scale.

    Returns rows (S, dim), filled up with zeros to whole panels, the constant that phi takes in this
    bucket, and the memory still free.
    """
    points, dim = positions.size, factor.dim
    padded = -(-points // PANEL) * PANEL
    rows = free[: padded * dim].reshape(padded, dim)
    rows[points:] = 0
    scale, constant = factor.parameters[p, SCALE], factor.parameters[p, CONSTANT]
    for i in range(points):
        place = factor.first[p] + positions[i] * factor.row
        if factor.column == 1:
            source = factor.window[place : place + dim]
            for c in range(dim):
                rows[i, c] = source[c] * scale
        else:
            for c in range(dim):
                rows[i, c] = factor.window[place + c * factor.column] * scale
    if factor.tag == EXPONENTIAL:
        # the least shift that keeps exp from overflowing in this bucket; KH is blind to it
        constant = largest_norm(rows)
    return rows, constant, free[padded * dim :]


@inner(REDUCTION)
def largest_norm(rows):
    """Max |x|^2 over the rows."""
    largest = rows.dtype.type(0)
    for i in range(rows.shape[0]):
        norm = rows.dtype.type(0)
        for c in range(rows.shape[1]):
            norm += rows[i, c] * rows[i, c]
        largest = max(largest, norm)
    return largest


@inner(STRICT)
def load_points(problem, p, positions, free):
    """Gather a bucket's points into free memory.

    Returns rows (S, dim), filled up to whole panels, and the memory still free.
    """
    points, dim = positions.size, problem.dim
    padded = -(-points // PANEL) * PANEL
    rows = free[: padded * dim].reshape(padded, dim)
    for i in range(padded):  # with the last point again: any kernel can take it
        place = problem.first[p] + positions[min(i, points - 1)] * problem.row
        if problem.column == 1:
            source = problem.window[place : place + dim]
            for c in range(dim):
                rows[i, c] = source[c]
        else:
            for c in range(dim):
                rows[i, c] = problem.window[place + c * problem.column]
    return rows, free[padded * dim :]


@inner(STRICT)
def columns_of_products(problem, loaded, start, free):
    """Copy rows start .. start+PANEL-1 into free memory as the columns of a panel (dim, PANEL).

    BLAS multiplies by such a panel at 110 GFLOP/s, by transposed rows at 75: the copy pays where
    there are rows enough to multiply. Otherwise the panel is empty.
    """
    key, _, value, _ = loaded
    key_panel = worthwhile_columns(key, start, free)
    return key_panel, worthwhile_columns(value, start, free[PANEL * key.shape[1] :])


@inner(STRICT)
def worthwhile_columns(rows, start, free):
    """The panel's columns, or none."""
    dim = rows.shape[1]
    if start + PANEL <= dim // 2:
        return free[:0].reshape(0, PANEL)
    return copy_columns(rows, start, free)


@inner(STRICT)
def columns_of_points(problem, loaded, start, free):
    """Copy rows start .. start+PANEL-1 into free memory as the columns of a panel (dim, PANEL)."""
    return copy_columns(loaded, start, free)


@inner(STRICT)
def copy_columns(rows, start, free):
    """Copy rows start .. start+PANEL-1 into free memory as columns (dim, PANEL)."""
    panel = free[: rows.shape[1] * PANEL].reshape(rows.shape[1], PANEL)
    for d in range(rows.shape[1]):
        for c in range(PANEL):
            panel[d, c] = rows[start + c, d]
    return panel


@inner(STRICT)
def tabulate_products(problem, p, loaded, first, last, start, panels, tile, other):
    """Kernel values of rows first .. last-1 and of the panel at start, into the tile (rows, PANEL).

    loaded, panels : what `load` and `columns` returned
    other : another tile, to work in
    """
    key, key_constant, value, value_constant = loaded
    key_panel, value_panel = panels
    factor = problem.keys
    multiply_rows(key, first, last, start, key_panel, tile)
    size = (last - first) * PANEL
    apply_to_products(factor.tag, tile[:size], key_constant, factor.parameters[p, DEGREE])
    factor = problem.values
    if factor.dim > 0:
        multiply_rows(value, first, last, start, value_panel, other)
        apply_to_products(factor.tag, other[:size], value_constant, factor.parameters[p, DEGREE])
        multiply(tile, other, size)


@inner(STRICT)
def multiply_rows(rows, first, last, start, panel, tile):
    """Inner products of rows first .. last-1 and the panel, into the tile."""
    step = max(1, BLAS_SERIAL // (PANEL * rows.shape[1]))
    for row in range(first, last, step):
        part = rows[row : min(row + step, last)]
        at = (row - first) * PANEL
        out = tile[at : at + part.shape[0] * PANEL].reshape(part.shape[0], PANEL)
        if panel.size > 0:
            np.dot(part, panel, out)
        else:
            np.dot(part, rows[start : start + PANEL].T, out)


@inner(ELEMENTWISE)
def apply_to_products(tag, tile, constant, degree):
    """Turn inner products into kernel values, in loops that vectorise."""
    if tag == LINEAR:
        for i in range(tile.size):
            tile[i] = phi_linear(tile[i], constant, degree)
    elif tag == POLYNOMIAL:
        for i in range(tile.size):
            tile[i] = phi_polynomial(tile[i], constant, degree)
    elif tag == EXPONENTIAL:
        for i in range(tile.size):
            tile[i] = phi_exponential(tile[i], constant, degree)


@inner(ELEMENTWISE)
def multiply(tile, other, size):
    """Multiply a tile by another, entry by entry."""
    for i in range(size):
        tile[i] *= other[i]


@inner(STRICT)
def tabulate_points(problem, p, loaded, first, last, start, panel, tile, other):
    """Kernel values of rows first .. last-1 and of a panel, into the tile (rows, PANEL).

    loaded, panel : what `load` and `columns` returned
    other : another tile, to work in
    """
    tabulate_rows(problem, loaded[first:last], panel, tile, other)


@inner(STRICT)
def tabulate_rows(problem, rows, panel, tile, other):
    """The sum over the kernel's terms of its values for rows (S, dim) and a panel (dim, PANEL)."""
    size = rows.shape[0] * PANEL
    for term in range(problem.tags.size):
        out = tile if term == 0 else other
        tabulate_term(problem, term, rows, panel, out)
        weight = problem.parameters[term, WEIGHT]
        if term > 0:
            add_weighted(tile, other, weight, size)
        elif weight != 1:
            for i in range(size):
                tile[i] *= weight


@inner(ELEMENTWISE)
def add_weighted(tile, other, weight, size):
    """Add a multiple of another tile to a tile."""
    for i in range(size):
        tile[i] += weight * other[i]


@inner(STRICT)
def tabulate_term(problem, term, rows, panel, tile):
    """Values of one term of the kernel."""
    tag, scale, parameters = problem.tags[term], problem.scales[term], problem.parameters[term]
    size = rows.shape[0] * PANEL
    if tag < OF_DISTANCE:
        scaled_products(rows, panel, scale, tile)
        apply_to_products(tag, tile[:size], parameters[CONSTANT], parameters[DEGREE])
    elif tag < SOBOLEV:
        squared_distances(rows, panel, scale, tile)
        apply_to_distances(tag, tile[:size], parameters[CONSTANT], parameters[DEGREE])
    elif tag == SOBOLEV:
        sobolev(rows, panel, parameters[FIRST:], tile)
    elif tag == STEIN:
        stein(rows, panel, scale, parameters[CONSTANT], parameters[DEGREE], tile)
    else:
        by_companion(problem.companion, rows, panel, tile)


@inner(ELEMENTWISE)
def scaled_products(rows, panel, scale, tile):
    """Inner products of the scaled rows and the panel's scaled columns."""
    dim, width = panel.shape
    tile[: rows.shape[0] * width] = 0
    for d in range(dim):
        y, s = panel[d], scale[d]
        for r in range(rows.shape[0]):
            x, at = rows[r, d] * s, r * width
            for c in range(width):
                tile[at + c] += x * (s * y[c])


@inner(ELEMENTWISE)
def squared_distances(rows, panel, scale, tile):
    """Squared distances of the scaled rows and the panel's scaled columns.

    Subtracted before anything is rounded: |x|^2 + |y|^2 - 2 <x, y> would be faster in many
    dimensions, and would cancel all digits between close points that are far from the rest.
    The width is read from the panel: a loop of constant length is unrolled before it could be
    vectorised, 1.0 ns an entry for 0.26 (two dimensions, float64).
    """
    dim, width = panel.shape
    tile[: rows.shape[0] * width] = 0
    for d in range(dim):
        y, s = panel[d], scale[d]
        for r in range(rows.shape[0]):
            x, at = rows[r, d], r * width
            for c in range(width):
                difference = s * (x - y[c])
                tile[at + c] += difference * difference


@inner(ELEMENTWISE)
def apply_to_distances(tag, tile, constant, degree):
    """Turn squared distances into kernel values, in loops that vectorise."""
    if tag == GAUSSIAN:
        for i in range(tile.size):
            tile[i] = phi_gaussian(tile[i], constant, degree)
    elif tag == LAPLACE:
        for i in range(tile.size):
            tile[i] = phi_laplace(tile[i], constant, degree)
    elif tag == INVERSE_MULTIQUADRIC:
        for i in range(tile.size):
            tile[i] = phi_inverse_multiquadric(tile[i], constant, degree)
    elif tag == MATERN_3_2:
        for i in range(tile.size):
            tile[i] = phi_matern_3_2(tile[i], constant, degree)
    elif tag == MATERN_5_2:
        for i in range(tile.size):
            tile[i] = phi_matern_5_2(tile[i], constant, degree)
    elif tag == RATIONAL_QUADRATIC:
        for i in range(tile.size):
            tile[i] = phi_rational_quadratic(tile[i], constant, degree)
    elif tag == ENERGY:
        for i in range(tile.size):
            tile[i] = phi_energy(tile[i], constant, degree)


@inner(ELEMENTWISE)
def sobolev(rows, panel, coefficients, tile):
    """The periodic Sobolev kernel: a product over dimensions, less 1."""
    dim, width = panel.shape
    one, size = rows.dtype.type(1), rows.shape[0] * width
    tile[:size] = one
    for d in range(dim):
        y = panel[d]
        for r in range(rows.shape[0]):
            x, at = rows[r, d], r * width
            for c in range(width):
                tile[at + c] *= sobolev_factor(x, y[c], coefficients)
    for i in range(size):
        tile[i] -= one


@inner(ELEMENTWISE)
def stein(rows, panel, scale, constant, degree, tile):
    """The Stein kernel; the second half of a point's columns are its scores."""
    dim, width = panel.shape[0] // 2, panel.shape[1]
    inverse = scale[0] * scale[0]
    divergence = rows.dtype.type(dim) * inverse  # an integer factor would make it float64
    products, scores = np.empty(width, rows.dtype), np.empty(width, rows.dtype)
    for r in range(rows.shape[0]):
        distance = tile[r * width : (r + 1) * width]
        distance[:] = 0
        products[:] = 0
        scores[:] = 0
        for d in range(dim):
            x, y, s, t = rows[r, d], panel[d], rows[r, dim + d], panel[dim + d]
            for c in range(width):
                difference = x - y[c]
                distance[c] += inverse * difference * difference
                products[c] += inverse * difference * (s - t[c])
                scores[c] += s * t[c]
        for c in range(width):
            distance[c] = stein_of(
                distance[c], products[c], scores[c], divergence, constant, degree
            )


@inner(STRICT)
def values_of_table(table, rows, panel, tile):
    """Entries of a Gram matrix, in which points are row numbers."""
    for r in range(rows.shape[0]):
        row = table[np.int64(rows[r, 0])]
        for c in range(PANEL):
            tile[r * PANEL + c] = row[np.int64(panel[0, c])]


@inner(STRICT)
def values_of_function(function, rows, panel, tile):
    """Values of a user's compiled function of two points, one by one."""
    for c in range(PANEL):
        y = panel[:, c].copy()
        for r in range(rows.shape[0]):
            tile[r * PANEL + c] = function(rows[r], y)


by_companion = by_array(values_of_table, values_of_function)
load = by_kind({Products: load_products, Points: load_points})
columns = by_kind({Products: columns_of_products, Points: columns_of_points})
tabulate = by_kind({Products: tabulate_products, Points: tabulate_points})
