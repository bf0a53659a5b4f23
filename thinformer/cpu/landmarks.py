"""Landmarks of one head after another: which keys they are, and their keys, values and masses.

Landmarks are drawn by the attention weights of sampled queries (`thinformer.cpu.drawn`). Then each
stands for a group of keys (`thinformer.cpu.groups`), whose sums are corrected
(`thinformer.cpu.ridge`). Or landmarks are pivots (`thinformer.cpu.pivots`): their values and masses
are N_ss^-1 N_sn (V, 1), where N_sn (V, 1) is a sum over keys j of
exp(<x_s, x_j> - h_s - top) (v_j, 1). One thread does all steps for a head, so intermediate arrays
are those of one head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.centring import centre, largest_square, measure_keys
from thinformer.cpu.cholesky import factorise, substitute_backward, substitute_forward
from thinformer.cpu.drawn import attend_sampled, draw_landmarks, weigh_keys
from thinformer.cpu.groups import merge
from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner, kernel
from thinformer.cpu.measures import measure_values, temperature
from thinformer.cpu.pivots import BLOCK, choose_pivots, to_exponentials
from thinformer.cpu.products import tile_of_products
from thinformer.cpu.ridge import correct
from thinformer.cpu.rows import add, copy_row, copy_within, fill, multiply, sort_positions
from thinformer.cpu.simd import PANEL, padded_size, squared_norms
from thinformer.cpu.softmax import fill_column, gather_with_mass
from thinformer.cpu.subnormals import cleared
from thinformer.cpu.tiles import exp, gather_factor
from thinformer.halving.problem import SCALE, Factor

CHUNK = 8 * PANEL  # keys at a time, so that their exponentials stay in the nearest cache


class Heads(NamedTuple):
    """The heads that landmarks are chosen for.

    query, key, value : Factor, with T and S tokens; the queries' SCALE is the softmax scale
    T, S, n_out : numbers of queries, keys and landmarks
    positions : (max(T, S, PANEL),), the numbers from 0 on
    temperature : (problems,), written where it is 0
    mean : (problems, E), written: the mean of the keys
    low, high, average : (problems, D), written: the range of the values and their mean
    sums : (problems,), written: not finite if a token is not finite, or if a square overflows
    """

    query: Factor
    key: Factor
    value: Factor
    T: int
    S: int
    n_out: int
    positions: NDArray
    temperature: NDArray
    mean: NDArray
    low: NDArray
    high: NDArray
    average: NDArray
    sums: NDArray


class LandmarkDraws(NamedTuple):
    """Random choices, one row a head.

    queries : (heads, m) int64, the sampled queries, the held-out ones last; m is 0 where landmarks
        are pivots
    candidates : (heads, L) int64, increasing: the keys that may be pivots; L is 0 without pivots
    uniforms : (heads, numbers) float64
    head : (problems,) int64, the row of each problem
    """

    queries: NDArray
    candidates: NDArray
    uniforms: NDArray
    head: NDArray


class Fits(NamedTuple):
    """The landmarks' keys, values and masses, all written.

    keys : (B, n_out, H, E), of keys minus their mean
    values : (B, n_out, H, D)
    masses : (problems, n_out)
    output : (B, T, H, D), only the rows of sampled queries are written
    """

    keys: NDArray
    values: NDArray
    masses: NDArray
    output: NDArray


def workspace(heads: Heads, draws: LandmarkDraws) -> NDArray:
    """Return the memory that one thread works in."""
    E, columns, S, n_out = (
        heads.key.dim,
        padded_size(heads.value.dim + 1),
        padded_size(heads.S),
        padded_size(heads.n_out),
    )
    L, m = padded_size(draws.candidates.shape[1]), padded_size(draws.queries.shape[1])
    of_keys = S * (E + columns + 3 + PANEL)
    of_queries = m * (E + 3 * columns + n_out + 2 * m + 2 * PANEL + 2)
    of_pivots = L * (E + n_out + 2 * BLOCK + 2) + n_out * n_out if m == 0 else 0
    of_landmarks = n_out * (2 * E + 2 * columns + 3 * PANEL + 4)
    few = PANEL * (m + n_out + E + columns + CHUNK + 2 * BLOCK + 5 * PANEL + 8)
    return cleared(of_keys + of_queries + of_pivots + of_landmarks + few, heads.mean.dtype)


@kernel
def choose_drawn(first, last, heads, draws, two_rho, balance, indices, work):
    """Draw the landmarks of problems first .. last-1 by the attention of sampled queries.

    heads, draws : Heads and LandmarkDraws
    two_rho : WildCat's constant, for the temperature
    balance : the trace of the exponential kernel, as a multiple of the trace of the other term
    indices : (problems, n_out) int64, written, increasing
    work : see `workspace`
    """
    for p in range(first, last):
        x, squares, values, to_x, free = load_head(p, heads, two_rho, work)
        sampled, free = load_sampled(p, heads, draws, to_x, free)
        choose_by_queries(
            p, heads, draws, balance, x, squares, to_x, values, 0, sampled, indices[p], free
        )


@kernel
def choose_pivoted(first, last, heads, draws, two_rho, nugget, indices, work):
    """Choose the landmarks of problems first .. last-1 as pivots.

    nugget : added to the diagonal of N
    two_rho, indices, work : see `choose_drawn`
    """
    for p in range(first, last):
        _, _, _, to_x, free = load_head(p, heads, two_rho, work)
        write_pivots(p, heads, draws, to_x, nugget, indices[p], free)


@kernel
def fit_drawn(
    first, last, heads, draws, two_rho, balance, held, nuggets, bound, indices, fits, work
):  # fmt: skip
    """Draw the landmarks of problems first .. last-1, and fit their keys, values and masses.

    held : how many of the sampled queries, the last ones, choose among the nuggets
    nuggets : see `thinformer.cpu.ridge.correct`
    bound : the largest magnitude of masses, and of values over the largest of all keys' values
    fits : Fits
    two_rho, balance, indices, work : see `choose_drawn`
    """
    n_out, E, D, m = heads.n_out, heads.key.dim, heads.value.dim, draws.queries.shape[1]
    columns = padded_size(D + 1)
    sums, work = work[: n_out * columns], work[n_out * columns :]
    keys, work = work[: n_out * E], work[n_out * E :]
    number, work = work[:n_out], work[n_out:]
    for p in range(first, last):
        x, squares, values, to_x, free = load_head(p, heads, two_rho, work)
        sampled, free = load_sampled(p, heads, draws, to_x, free)
        queries, top, total = sampled
        weight, exact, free = choose_by_queries(
            p, heads, draws, balance, x, squares, to_x, values, D + 1, sampled, indices[p], free
        )
        write_known(p, heads, draws, exact, fits.output)
        few, free = load_landmarks(p, heads, to_x, indices[p], free)
        merge(x, heads.S, E, weight, values, indices[p], few, keys, sums, number, free)
        correct(
            few, E, queries, m, top, total, exact, D, number, sums, held, nuggets,
            heads.positions, free,
        )  # fmt: skip
        multiply(keys, keys.dtype.type(1 / to_x))
        write_fits(p, heads, keys, sums, bound, fits)


@kernel
def fit_pivoted(first, last, heads, draws, two_rho, nugget, bound, indices, fits, work):
    """Choose the landmarks of problems first .. last-1 as pivots, and fit them; see `fit_drawn`."""
    n_out, E, columns = heads.n_out, heads.key.dim, padded_size(heads.value.dim + 1)
    sums, work = work[: n_out * columns], work[n_out * columns :]
    keys, work = work[: n_out * E], work[n_out * E :]
    for p in range(first, last):
        x, squares, values, to_x, free = load_head(p, heads, two_rho, work)
        write_pivots(p, heads, draws, to_x, nugget, indices[p], free)
        few, free = load_landmarks(p, heads, to_x, indices[p], free)
        multiply(x, to_x)
        multiply(squares, x.dtype.type(to_x * to_x / 2))
        fit_exponentials(x, heads.S, E, squares, values, indices[p], few, nugget, sums, free)
        for s in range(n_out):
            key = few[s // PANEL * PANEL * E + s % PANEL :]
            for d in range(E):
                keys[s * E + d] = key[d * PANEL] / to_x
        write_fits(p, heads, keys, sums, bound, fits)


@inner(STRICT)
def load_head(p, heads, two_rho, free):
    """Gather a head's keys, minus their mean, and its values; write the head's rows of Heads.

    Returns panels (E, PANEL) of the keys; their squared norms, in whole panels; panels (S, PANEL)
    of the values, with a mass of 1 in column D; the factor that makes scaled keys x of the keys;
    and the memory still free.
    """
    key, value, S, positions = heads.key, heads.value, heads.S, heads.positions
    x, _, free = gather_factor(key, p, positions[:S], free)
    values, rest = gather_with_mass(value, p, positions[:S], free)
    squares, free = rest[: x.size // key.dim], rest[x.size // key.dim :]
    measure_values(values, S, heads.low[p], heads.high[p], heads.average[p])
    measure_keys(x, S, key.dim, heads.mean[p], squares)
    largest_query, total = largest_square(heads.query, p, positions[: heads.T], free)
    largest_key = squares[0]
    for j in range(S):
        largest_key = max(largest_key, squares[j])
        total += squares[j]
    for d in range(value.dim):
        total += heads.average[p, d]
    heads.sums[p] = total
    beta = float(heads.query.parameters[p, SCALE])
    if heads.temperature[p] == 0:
        heads.temperature[p] = temperature(
            math.sqrt(largest_query) / beta, math.sqrt(largest_key), S, beta, two_rho
        )
    to_x = x.dtype.type(math.sqrt(beta) / heads.temperature[p])
    return x, squares, values, to_x, free


@inner(STRICT)
def load_landmarks(p, heads, to_x, indices, free):
    """Gather the scaled keys of landmarks, panels (E, PANEL), 0 beyond the last one."""
    few, _, free = gather_factor(heads.key, p, indices, free)
    centre(few, heads.mean[p], to_x)
    for c in range(indices.size, padded_size(indices.size)):
        panel = few[c // PANEL * PANEL * heads.key.dim + c % PANEL :]
        for d in range(heads.key.dim):
            panel[d * PANEL] = 0
    return few, free


@inner(STRICT)
def load_sampled(p, heads, draws, to_x, free):
    """Gather a head's sampled queries, whose products with scaled keys are logits.

    Returns panels (E, PANEL), 0 where the last panel has no query, with memory for each query's
    largest logit and for its sum of exponentials; and the memory still free.
    """
    m, E = draws.queries.shape[1], heads.key.dim
    padded = padded_size(m)
    queries, _, free = gather_factor(heads.query, p, draws.queries[draws.head[p]], free)
    for c in range(m, padded):
        queries[c // PANEL * PANEL * E + c % PANEL : (c // PANEL + 1) * PANEL * E : PANEL] = 0
    multiply(queries, queries.dtype.type(1 / to_x))  # keys have the root of the softmax scale
    return (queries, free[:padded], free[padded : 2 * padded]), free[2 * padded :]


@inner(STRICT)
def choose_by_queries(
    p, heads, draws, balance, x, squares, to_x, values, columns, sampled, indices, free
):  # fmt: skip
    """Draw the landmarks of one problem by sampled queries; scale its keys to x in place.

    values, columns : panels (S, PANEL), and how many columns are wanted of the queries' outputs and
        masses; 0 for none
    sampled : what `load_sampled` returned; the last two are written
    indices : (n_out,), written

    Returns exp(h - largest h) of all keys (S,), the outputs in panels (m in whole panels, PANEL),
    and the memory still free.
    """
    S, E, m = heads.S, heads.key.dim, draws.queries.shape[1]
    queries, top, total = sampled
    squares = squares[:S]
    multiply(x, to_x)
    multiply(squares, to_x * to_x)
    importance, free = free[:S], free[S:]
    padded, D = padded_size(m), columns - 1
    size = padded * padded_size(columns)
    outputs, free = free[:size], free[size:]
    attend_sampled(
        x, S, E, queries, m, values, D, heads.positions, top, total, importance, outputs, free
    )
    if D >= 0:  # the mass of a query is 1
        if D % PANEL == 0:
            fill(outputs[D * padded :], 0)
        fill_column(outputs, padded, D)
    weigh_keys(importance, squares, balance)
    draw_landmarks(importance, heads.n_out, draws.uniforms[draws.head[p], 0], indices)
    return importance, outputs, free


@inner(STRICT)
def write_known(p, heads, draws, exact, output):
    """Write the sampled queries' outputs, within the range of the values, to their rows."""
    H, queries = output.shape[2], draws.queries[draws.head[p]]
    padded = padded_size(queries.size)
    for q in range(queries.size):
        row = output[p // H, queries[q], p % H]
        for d in range(0, heads.value.dim, PANEL):
            known = exact[d * padded + q * PANEL : d * padded + (q + 1) * PANEL]
            copy_within(known, heads.low[p, d:], heads.high[p, d:], row[d:])


@inner(STRICT)
def write_fits(p, heads, keys, sums, bound, fits):
    """Write keys (n_out * E,), and values and masses of panels (n_out, PANEL), within bounds."""
    n_out, E, D, H = heads.n_out, heads.key.dim, heads.value.dim, fits.values.shape[2]
    bound *= max(1.0, float(-heads.low[p].min()), float(heads.high[p].max()))
    for s in range(n_out):
        copy_row(keys[s * E : (s + 1) * E], fits.keys[p // H, s, p % H])
        for d in range(D + 1):
            z = min(max(sums[(d // PANEL * n_out + s) * PANEL + d % PANEL], -bound), bound)
            if d < D:
                fits.values[p // H, s, p % H, d] = z
            else:
                fits.masses[p, s] = z


@inner(STRICT)
def write_pivots(p, heads, draws, to_x, nugget, indices, free):
    """Write the pivots among the candidates of one problem to indices (n_out,), increasing."""
    key, candidates, uniforms = heads.key, draws.candidates[draws.head[p]], draws.uniforms
    E, L = key.dim, candidates.size
    index = np.empty(padded_size(L), np.int64)
    copy_row(candidates, index[:L])
    fill(index[L:], candidates[L - 1])
    x, _, free = gather_factor(key, p, index, free)
    centre(x, heads.mean[p], to_x)
    h, free = free[: index.size], free[index.size :]
    for start in range(0, index.size, PANEL):
        squared_norms(x, start * E, E, h, start)
    multiply(h, h.dtype.type(0.5))
    numbers = uniforms[draws.head[p]]
    pairs = numbers.reshape(numbers.size // 2, 2)
    pivots = choose_pivots(x, E, h, L, pairs, indices.size, nugget, free)
    sort_positions(pivots, L)
    for i in range(pivots.size):
        indices[i] = candidates[pivots[i]]


@inner(STRICT)
def fit_exponentials(x, S, E, h, values, indices, few, nugget, sums, free):
    """Write N_ss^-1 N_sn (V, 1), times exp(top - h_s), to sums, panels (n_out, PANEL).

    x, h : panels (E, PANEL) of scaled keys, and half their squared norms
    values : panels (S, PANEL), with a mass of 1 in the last column that counts
    few : panels (E, PANEL) of the landmarks
    """
    n_out, top = indices.size, h[0]
    padded = padded_size(n_out)
    of_few, free = free[:padded], free[padded:]
    fill(of_few, 0)
    for j in range(S):
        top = max(top, h[j])
    for s in range(n_out):
        of_few[s] = h[indices[s]]
    add_exponentials(x, S, E, values, of_few, top, few, n_out, sums, free)
    R, free = free[: padded * n_out], free[padded * n_out :]
    inverses, free = free[: padded * PANEL], free[padded * PANEL :]
    for panel in range(0, n_out, PANEL):
        for start in range(0, panel + 1, PANEL):
            count = min(PANEL, n_out - start)
            tile = R[panel * n_out + start * PANEL : panel * n_out + (start + count) * PANEL]
            tile_of_products(few, start * E, few, panel * E, E, count, free, 0)
            copy_row(free, tile)
            to_exponentials(tile, of_few[start : start + count], of_few[panel : panel + PANEL])
        for s in range(panel, min(panel + PANEL, n_out)):
            R[panel * n_out + s * PANEL + s - panel] += nugget
    factorise(R, n_out, inverses, free)
    substitute_forward(R, inverses, n_out, sums, free)
    substitute_backward(R, inverses, n_out, sums, free)
    largest = 0.9 * math.log(np.finfo(h.dtype).max)  # exponent that exp(top - h) may have
    for s in range(n_out):
        factor = h.dtype.type(math.exp(min(float(top - of_few[s]), largest)))
        for panel in range(0, sums.size, n_out * PANEL):
            multiply(sums[panel + s * PANEL : panel + (s + 1) * PANEL], factor)


@inner(STRICT)
def add_exponentials(x, S, E, values, h, top, few, n_out, sums, free):
    """Write the sums over keys j of exp(<x_s, x_j> - h_s - top) (v_j, 1), panels (n_out, PANEL)."""
    shift, rows, free = free[:PANEL], free[PANEL : (CHUNK + 1) * PANEL], free[(CHUNK + 1) * PANEL :]
    fill(sums, 0)
    for start in range(0, n_out, PANEL):
        count = min(PANEL, n_out - start)
        copy_row(h[start : start + PANEL], shift)
        for from_key in range(0, S, CHUNK):
            keys = min(CHUNK, S - from_key)
            for i in range(0, keys, PANEL):
                some = min(PANEL, keys - i)
                tile_of_products(x, (from_key + i) * E, few, start * E, E, some, rows, i * PANEL)
            shifted_exponentials(rows, keys, shift, top)
            for panel in range(0, sums.size, n_out * PANEL):
                at = panel // n_out * S + from_key * PANEL
                tile_of_products(rows, 0, values, at, keys, count, free, 0)
                to = panel + start * PANEL
                add(free, sums[to : to + count * PANEL])


@inner(ELEMENTWISE)
def shifted_exponentials(rows, n, shift, top):
    """Replace n rows x by exp(x - shift - top); only rounding makes an exponent positive."""
    zero = rows.dtype.type(0)
    for i in range(n):
        row = rows[i * PANEL : (i + 1) * PANEL]
        for s in range(shift.size):
            row[s] = exp(min(row[s] - shift[s] - top, zero))
