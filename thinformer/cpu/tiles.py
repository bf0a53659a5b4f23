"""Tiles of kernel values, on which the compiled loops work.

A tile holds k(x, y) for some rows x and the PANEL points y of a panel. For `Products` it is a
matrix product and phi, for each of two factors. For `Points` it is squared distances and phi, or a
loop of the kernel's own. `load`, `columns` and `tabulate` choose by the type of the problem, so
each type is compiled without the other.

Products are held in registers (`thinformer.cpu.simd`). Unlike BLAS, this is fast for short rows,
skips the blocks below a panel's diagonal, and starts no threads.
"""

from __future__ import annotations

import numpy as np

from thinformer.cpu.exp import exp32, exp64
from thinformer.cpu.jit import (
    ELEMENTWISE,
    STRICT,
    bind,
    by_dtype,
    by_kind,
    by_tag,
    if_labelled,
    inner,
)
from thinformer.cpu.simd import (
    BYTES,
    PANEL,
    ROWS,
    WIDTH,
    inner_products,
    padded_size,
    squared_norms,
    transpose,
)
from thinformer.halving.problem import (
    ADDED,
    CONSTANT,
    DEGREE,
    FIRST,
    SCALE,
    SQUARED,
    WEIGHT,
    Points,
    Products,
)
from thinformer.kernels import phi
from thinformer.kernels.phi import (
    ENERGY,
    EXPONENTIAL,
    GAUSSIAN,
    INVERSE_MULTIQUADRIC,
    LAPLACE,
    LINEAR,
    MATERN_3_2,
    MATERN_5_2,
    OF_DISTANCE,
    PAIRWISE,
    POLYNOMIAL,
    RATIONAL_QUADRATIC,
    SOBOLEV,
    STEIN,
    TABLE,
)

TILE_ROWS = 64

exp = by_dtype(exp32, exp64)
phi_linear = bind(phi.phi_linear, ELEMENTWISE)
phi_polynomial = bind(phi.phi_polynomial, ELEMENTWISE)
phi_exponential = bind(phi.phi_exponential, ELEMENTWISE, exp=exp)
phi_gaussian = bind(phi.phi_gaussian, ELEMENTWISE, exp=exp)
phi_laplace = bind(phi.phi_laplace, ELEMENTWISE, exp=exp)
phi_inverse_multiquadric = bind(phi.phi_inverse_multiquadric, ELEMENTWISE)
phi_matern_3_2 = bind(phi.phi_matern_3_2, ELEMENTWISE, exp=exp)
phi_matern_5_2 = bind(phi.phi_matern_5_2, ELEMENTWISE, exp=exp)
phi_rational_quadratic = bind(phi.phi_rational_quadratic, ELEMENTWISE, exp=exp)
phi_energy = bind(phi.phi_energy, ELEMENTWISE)
sobolev_factor = bind(phi.sobolev_factor, ELEMENTWISE)
stein_of = bind(phi.stein_of, ELEMENTWISE)


@inner(STRICT)
def load_products(problem, p, positions, free):
    """Gather a bucket's points into free memory.

    Returns what `tabulate` takes (the number of points, and panels and constant of either factor),
    and the memory still free.
    """
    keys, key_constant, rest = gather_factor(problem.keys, p, positions, free)
    values, value_constant, rest = gather_factor(problem.values, p, positions, rest)
    return (positions.size, keys, key_constant, values, value_constant), rest


@inner(STRICT)
def gather_factor(factor, p, positions, free):
    """Gather the points of one factor, times its scale.

    Returns panels (dim, PANEL), one after the other; the constant that phi takes in this bucket;
    and the memory still free. Nothing reads the places of the last panel that have no point.
    """
    points, dim = positions.size, factor.dim
    padded = padded_size(points)
    panels = free[: padded * dim]
    scale, constant = factor.parameters[p, SCALE], factor.parameters[p, CONSTANT]
    width = BYTES // panels.itemsize
    whole = (points // width * width, dim // width * width) if factor.column == 1 else (0, 0)
    for i in range(0, whole[0], width):
        at = i // PANEL * PANEL * dim + i % PANEL
        transpose(
            factor.window, factor.first[p], factor.row, positions, i, whole[1], scale,
            panels, at, PANEL,
        )  # fmt: skip
    for i in range(points):
        panel = panels[i // PANEL * PANEL * dim + i % PANEL :]
        place = factor.first[p] + positions[i] * factor.row
        for d in range(whole[1] if i < whole[0] else 0, dim):
            panel[d * PANEL] = factor.window[place + d * factor.column] * scale
    if factor.tag == EXPONENTIAL:
        # the least shift that keeps exp from overflowing in this bucket; KH keeps the same points
        constant = largest_norm(panels, points, dim, free[padded * dim :])
    return panels, constant, free[padded * dim :]


@inner(STRICT)
def largest_norm(panels, points, dim, norms):
    """Return max |x|^2 over the points of all panels."""
    largest = panels.dtype.type(0)
    for start in range(0, points, PANEL):
        squared_norms(panels, start * dim, dim, norms, 0)
        for i in range(min(PANEL, points - start)):
            largest = max(largest, norms[i])
    return largest


@inner(STRICT)
def load_points(problem, p, positions, free):
    """Gather a bucket's points into free memory.

    Returns rows (S in whole panels, dim), and the memory still free.
    """
    points, dim = positions.size, problem.dim
    padded = padded_size(points)
    rows = free[: padded * dim].reshape(padded, dim)
    for i in range(padded):  # filled up with the last point, whose values exist under any kernel
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
    """Do nothing: products are loaded as panels."""


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
def tabulate_products(problem, p, loaded, first, last, start, panel, tile, other):
    """Write the kernel values of rows first .. last-1 and the panel at start to tile (rows, PANEL).

    loaded : what `load` returned
    other : another tile, to work in
    """
    points, keys, key_constant, values, value_constant = loaded
    factor = problem.keys
    multiply_panels(keys, points, factor.dim, first, last, start, tile)
    size = (last - first) * PANEL
    apply_to_products(factor.tag, tile[:size], key_constant, factor.parameters[p, DEGREE])
    factor = problem.values
    if factor.dim > 0:
        multiply_panels(values, points, factor.dim, first, last, start, other)
        apply_to_products(factor.tag, other[:size], value_constant, factor.parameters[p, DEGREE])
        multiply_entries(tile, other, size)


@inner(STRICT)
def multiply_panels(panels, points, dim, first, last, start, tile):
    """Write inner products of rows first .. last-1 and the panel at start to tile (rows, PANEL).

    Blocks that nothing reads are skipped: below the panel's own diagonal, and after its points.
    """
    width = WIDTH // panels.itemsize
    for row in range(first, last, ROWS):
        rows = row // PANEL * PANEL * dim + row % PANEL
        for column in range(0, PANEL, width):
            if row < start + column + width and start + column < points:
                at = (row - first) * PANEL + column
                inner_products(panels, rows, panels, start * dim + column, dim, False, tile, at)


@inner(ELEMENTWISE)
def apply_to_products(tag, tile, constant, degree):
    """Replace inner products by kernel values, in loops that vectorise."""
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
def multiply_entries(tile, other, size):
    """Multiply a tile by another, entry by entry."""
    for i in range(size):
        tile[i] *= other[i]


@inner(STRICT)
def tabulate_points(problem, p, loaded, first, last, start, panel, tile, other):
    """Write the kernel values of rows first .. last-1 and a panel to tile (rows, PANEL).

    loaded, panel : what `load` and `columns` returned
    other : another tile, to work in
    """
    tabulate_rows(problem, loaded[first:last], panel, tile, other)


@inner(STRICT)
def tabulate_rows(problem, rows, panel, tile, other):
    """Write the kernel values of rows (S, dim) and a panel (dim, width), summed over its terms."""
    size = rows.shape[0] * panel.shape[1]
    for term in range(problem.tags.size):
        out = tile if term == 0 else other
        tabulate_term(problem, term, rows, panel, out)
        weight = problem.parameters[term, WEIGHT]
        if term > 0:
            add_weighted(tile, other, weight, size)
        elif weight != 1:
            for i in range(size):
                tile[i] *= weight
    multiply_by_labels(problem, rows, panel, tile, other)


@inner(ELEMENTWISE)
def add_weighted(tile, other, weight, size):
    """Add a multiple of another tile to a tile."""
    for i in range(size):
        tile[i] += weight * other[i]


@inner(ELEMENTWISE)
def scaled_products(rows, panel, scale, tile):
    """Write the inner products of the scaled rows and the panel's scaled columns to the tile."""
    width = panel.shape[1]
    tile[: rows.shape[0] * width] = 0
    for d in range(scale.size):  # columns behind these are scores or labels
        y, s = panel[d], scale[d]
        for r in range(rows.shape[0]):
            x, at = rows[r, d] * s, r * width
            for c in range(width):
                tile[at + c] += x * (s * y[c])


@inner(ELEMENTWISE)
def squared_distances(rows, panel, scale, tile):
    """Write the squared distances of the scaled rows and the panel's scaled columns to the tile.

    The difference is taken before anything is rounded: |x|^2 + |y|^2 - 2 <x, y> would be faster in
    many dimensions, but would cancel all digits between close points that are far from the others.
    The width is read from the panel, as a loop of constant length is unrolled before it could be
    vectorised: an entry takes 0.26 ns instead of 1.0 (two dimensions, float64).
    """
    width = panel.shape[1]
    tile[: rows.shape[0] * width] = 0
    for d in range(scale.size):
        y, s = panel[d], scale[d]
        for r in range(rows.shape[0]):
            x, at = rows[r, d], r * width
            for c in range(width):
                difference = s * (x - y[c])
                tile[at + c] += difference * difference


@inner(STRICT)
def tabulate_of_products(problem, term, rows, panel, tile):
    """Write phi of inner products to the tile."""
    scaled_products(rows, panel, problem.scales[term], tile)
    constant, degree = problem.parameters[term, CONSTANT], problem.parameters[term, DEGREE]
    apply_to_products(problem.tags[term], tile[: rows.shape[0] * panel.shape[1]], constant, degree)


@inner(STRICT)
def tabulate_of_distances(problem, term, rows, panel, tile):
    """Write phi of squared distances to the tile."""
    squared_distances(rows, panel, problem.scales[term], tile)
    constant, degree = problem.parameters[term, CONSTANT], problem.parameters[term, DEGREE]
    apply_to_distances(problem.tags[term], tile[: rows.shape[0] * panel.shape[1]], constant, degree)


@inner(ELEMENTWISE)
def apply_to_distances(tag, tile, constant, degree):
    """Replace squared distances by kernel values, in loops that vectorise."""
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
def tabulate_sobolev(problem, term, rows, panel, tile):
    """Write the periodic Sobolev kernel to the tile: a product over dimensions, minus 1."""
    dim, width = problem.scales.shape[1], panel.shape[1]
    coefficients = problem.parameters[term, FIRST:]
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
def tabulate_stein(problem, term, rows, panel, tile):
    """Write the Stein kernel to the tile; a point's scores are in the columns behind it."""
    dim, width, scale = problem.scales.shape[1], panel.shape[1], problem.scales[term]
    constant, degree = problem.parameters[term, CONSTANT], problem.parameters[term, DEGREE]
    largest = scale[:dim].max()
    divergence = np.sum(scale[:dim] * scale[:dim])
    spread, products = np.empty(width, rows.dtype), np.empty(width, rows.dtype)
    scores = np.empty(width, rows.dtype)
    for r in range(rows.shape[0]):
        distance = tile[r * width : (r + 1) * width]
        distance[:] = 0
        spread[:] = 0
        products[:] = 0
        scores[:] = 0
        for d in range(dim):
            x, y, s, t = rows[r, d], panel[d], rows[r, dim + d], panel[dim + d]
            inverse, share = scale[d] * scale[d], scale[d] / largest
            share *= share
            for c in range(width):
                difference = x - y[c]
                square = inverse * difference * difference
                distance[c] += square
                spread[c] += share * square
                products[c] += inverse * difference * (s - t[c])
                scores[c] += s * t[c]
        for c in range(width):
            distance[c] = stein_of(
                distance[c], spread[c], products[c], scores[c], divergence, constant, degree
            )


@inner(STRICT)
def tabulate_table(problem, term, rows, panel, tile):
    """Write entries of a Gram matrix to the tile; the points are row numbers of it."""
    width = panel.shape[1]
    for r in range(rows.shape[0]):
        row = problem.companion[np.int64(rows[r, 0])]
        for c in range(width):
            tile[r * width + c] = row[np.int64(panel[0, c])]


@inner(STRICT)
def tabulate_function(problem, term, rows, panel, tile):
    """Write the values of a user's compiled function of two points to the tile, one by one."""
    width = panel.shape[1]
    for c in range(width):
        y = panel[:, c].copy()
        for r in range(rows.shape[0]):
            tile[r * width + c] = problem.companion(rows[r], y)


@inner(STRICT)
def tabulate_labels(problem, rows, panel, tile, other):
    """Multiply kernel values k by squared k + added + <y, y'>; the last columns have the labels."""
    dim, size = problem.scales.shape[1], rows.shape[0] * panel.shape[1]
    first = 2 * dim if problem.tags[0] == STEIN else dim
    products_of_columns(rows, panel, first, other)
    multiply_by_sums(tile, other, size, problem.companion[SQUARED], problem.companion[ADDED])


@inner(ELEMENTWISE)
def products_of_columns(rows, panel, first, tile):
    """Write the inner products of rows and columns, from coordinate `first` on, to the tile."""
    dim, width = panel.shape
    tile[: rows.shape[0] * width] = 0
    for d in range(first, dim):
        y = panel[d]
        for r in range(rows.shape[0]):
            x, at = rows[r, d], r * width
            for c in range(width):
                tile[at + c] += x * y[c]


@inner(ELEMENTWISE)
def multiply_by_sums(tile, products, size, squared, added):
    """Multiply each entry k of a tile by squared k + added + the entry of another tile."""
    for i in range(size):
        tile[i] *= squared * tile[i] + (added + products[i])


multiply_by_labels = if_labelled(tabulate_labels)
tabulate_term = by_tag({
    LINEAR: tabulate_of_products,
    OF_DISTANCE: tabulate_of_distances,
    SOBOLEV: tabulate_sobolev,
    STEIN: tabulate_stein,
    PAIRWISE: tabulate_function,
    TABLE: tabulate_table,
})  # fmt: skip
load = by_kind({Products: load_products, Points: load_points})
columns = by_kind({Products: columns_of_products, Points: columns_of_points})
tabulate = by_kind({Products: tabulate_products, Points: tabulate_points})
