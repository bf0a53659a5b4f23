"""Few keys of a decoder's cache, with fitted values and masses: `reference.cache`, head by head.

One thread does all steps for a head of keys: the weights of the latest queries, the keys that these
ask for, matching pursuit (`thinformer.cpu.pursuit`), which kept key the others join, and the ridge
regression of values and masses. Keys, queries and weights lie in panels, so each step is a few
products of tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.drawn import add_squares
from thinformer.cpu.groups import take_nearest
from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner, kernel
from thinformer.cpu.products import tile_of_products
from thinformer.cpu.pursuit import (
    ABSENT,
    TAKEN,
    keep_best,
    make_span,
    pursue,
    size_of_span,
    solve,
)
from thinformer.cpu.rows import add, copy_row, fill, multiply, subtract
from thinformer.cpu.simd import BYTES, PANEL, padded_size, squared_norms, transpose
from thinformer.cpu.softmax import add_log_masses, exponentials, gather_with_mass, row_maxima
from thinformer.cpu.subnormals import cleared
from thinformer.cpu.tiles import gather_factor
from thinformer.halving.problem import Factor


class Held(NamedTuple):
    """What the heads of keys hold.

    query : Factor of G heads of queries for each head of keys, L queries each, with the softmax
        scale as SCALE; a query whose first number is NaN is none
    key, value : Factor, S keys each, of which the first n are compressed
    log_mass : (problems, S), minus infinity where there is no key
    positions : (max(L, S, PANEL),), the numbers from 0 on
    """

    query: Factor
    key: Factor
    value: Factor
    log_mass: NDArray
    L: int
    n: int
    positions: NDArray


class Rules(NamedTuple):
    """The constants of `thinformer.attending.cache`."""

    sinks: int
    asking: int
    asked: int
    behind: int
    rounds: int
    folded: int
    joined: float
    nugget: float
    least: float
    stiff: float
    ratio: float


class Needed(NamedTuple):
    """What the latest queries, M with those that fill panels, need of n keys.

    number : of queries
    P : panels (M, PANEL) of the keys' weights
    sums : panels (M, PANEL) of the columns of P (V, 1)
    squares : (n in whole panels,), a key's sum of squared weights
    asked : (n in whole panels,), a key's sum of weights of the very latest queries
    """

    number: int
    P: NDArray
    sums: NDArray
    squares: NDArray
    asked: NDArray


def workspace(held: Held, heads: int, early: int) -> NDArray:
    """Return the memory that one thread works in, for so many heads of queries a head of keys."""
    E, D, S = held.key.dim, held.value.dim, held.log_mass.shape[1]
    rows, n, columns = padded_size(held.L), padded_size(held.n), padded_size(D + 1)
    M, few = heads * rows, padded_size(early)
    of_keys = padded_size(S) * E + S * columns
    of_queries = M * (n + columns + 2 * PANEL) + 6 * n
    of_attention = rows * E + padded_size(S) * PANEL
    of_landmarks = 2 * few * (E + few + 2 * columns + 2 * PANEL + 4)
    size = of_keys + of_queries + of_attention + size_of_span(M, early) + of_landmarks
    return cleared(size + PANEL * (E + 8 * PANEL), held.log_mass.dtype)


@kernel
def compress_heads(first, last, held, rules, indices, values, masses, work):
    """Keep keys of the heads first .. last-1.

    indices : (problems, early) int64, written, increasing
    values : (problems, early, D), written
    masses : (problems, early), written: the factors of the masses that the keys had
    work : see `workspace`
    """
    for p in range(first, last):
        of_keys, n, S = held.log_mass[p], held.n, held.log_mass.shape[1]
        x, _, free = gather_factor(held.key, p, held.positions[:S], work)
        v, free = gather_with_mass(held.value, p, held.positions[:S], free)
        needed, free = attend_latest(p, held, rules.asking, x, v, free)
        absent = np.isinf(of_keys[:n])
        span, asked, free = choose(held, rules, needed, v, absent, indices.shape[1], free)
        order = order_by_position(span.kept, n, indices[p])
        few, _, free = gather_factor(held.key, p, indices[p], free)
        number = np.empty(n, np.int64)
        nearest(x, n, held.key.dim, few, order < asked, order, number, free)
        Z = fit(rules, held.value.dim, needed, span, v, of_keys, number, free)
        write_fit(Z, order, values[p], masses[p])


@inner(STRICT)
def order_by_position(kept, n, indices):
    """Write the positions (early,) below n that are kept, increasing; return their places."""
    place, order, s = np.empty(n, np.int64), np.empty_like(kept), 0
    for j in range(n):
        place[j] = -1
    for i in range(kept.size):
        place[kept[i]] = i
    for j in range(n):
        if place[j] >= 0:
            indices[s], order[s] = j, place[j]
            s += 1
    return order


@inner(STRICT)
def attend_latest(p, held, asking, x, v, free):
    """Return what the latest queries need of a head of keys, and the memory still free.

    x : panels (E, PANEL) of S keys; v : panels (S, PANEL) of their values
    """
    E, D, L, n, log_mass = held.key.dim, held.value.dim, held.L, held.n, held.log_mass[p]
    S, rows, heads = log_mass.size, padded_size(L), held.query.first.size // held.key.first.size
    M, padded = heads * rows, padded_size(n)
    P, free = free[: padded * M], free[padded * M :]
    sums, free = free[: M * padded_size(D + 1)], free[M * padded_size(D + 1) :]
    squares, free = free[:padded], free[padded:]
    asked, free = free[:padded], free[padded:]
    fill(squares, 0)
    fill(asked, 0)
    fill(sums, 0)
    number, positions = 0, held.positions
    for head in range(heads):
        queries, _, rest = gather_factor(held.query, p * heads + head, positions[:L], free)
        logits, rest = rest[: padded_size(S) * PANEL], rest[padded_size(S) * PANEL :]
        there, total, rest = rest[:PANEL], rest[PANEL : 2 * PANEL], rest[2 * PANEL :]
        for start in range(0, rows, PANEL):
            of_panel = queries[start * E : (start + PANEL) * E]
            number += mark_queries(of_panel, L - start, there)
            for row in range(0, S, PANEL):
                count = min(PANEL, S - row)
                tile_of_products(x, row * E, of_panel, 0, E, count, logits, row * PANEL)
            to_weights(logits, log_mass, n, there, total, rest)
            fill(total, 1)
            add_squares(logits, n, total, squares)
            first_asking = max(0, L - asking - start)
            for j in range(n if first_asking < PANEL else 0):
                for q in range(first_asking, min(PANEL, L - start)):
                    asked[j] += logits[j * PANEL + q]
            at = head * rows + start
            write_sums(logits, v, S, n, D, positions, at, M, sums, rest)
            write_weights(logits, padded, positions, at, M, P)
    return Needed(number, P, sums, squares, asked), free


@inner(STRICT)
def mark_queries(queries, count, there):
    """Write 1 for each query of a panel that there is, else 0, and make the others 0; count them.

    queries : (E, PANEL) flat; count : how many lanes are no filling
    """
    number = 0
    for q in range(PANEL):
        there[q] = q < count and not np.isnan(queries[q])
        number += int(there[q])
        if there[q] == 0:
            for d in range(0, queries.size, PANEL):
                queries[d + q] = 0
    return number


@inner(STRICT)
def to_weights(logits, log_mass, n, there, total, free):
    """Replace logits (S, PANEL) by weights on the first n keys; rows that fill the panel are 0."""
    S, top = log_mass.size, free[:PANEL]
    add_log_masses(logits, log_mass)
    row_maxima(logits, S, top)
    exponentials(logits, S, top, total)
    divide_present(logits[: n * PANEL], there, total)
    fill(logits[n * PANEL : padded_size(n) * PANEL], 0)
    for j in range(n):
        if np.isinf(log_mass[j]):
            fill(logits[j * PANEL : (j + 1) * PANEL], 0)


@inner(ELEMENTWISE)
def divide_present(tile, there, total):
    """Divide every column of a tile by its total, and write 0 to those that are not there.

    Without any key a total is NaN, and no query is there.
    """
    zero = total.dtype.type(0)
    for start in range(0, tile.size, PANEL):
        row = tile[start : start + PANEL]
        for q in range(total.size):
            row[q] = row[q] / total[q] if there[q] > zero else zero


@inner(STRICT)
def write_sums(weights, v, S, n, D, positions, at, M, sums, free):
    """Write P (V, 1) of PANEL queries, the rows from `at` on, to panels (M, PANEL) of columns.

    A panel of nothing but masses takes no product: it would be the half of one for 64 values.
    """
    width, one = BYTES // v.itemsize, v.dtype.type(1)
    for start in range(0, D, PANEL):
        tile_of_products(v, start * S, weights, 0, n, PANEL, free, 0)
        for i in range(0, PANEL, width):
            place = start * M + at * PANEL + i
            transpose(free, 0, PANEL, positions, i, PANEL, one, sums, place, PANEL)
    if D % PANEL == 0:
        masses = free[:PANEL]
        fill(masses, 0)
        for j in range(n):
            add(weights[j * PANEL :], masses)
        for q in range(PANEL):
            sums[D * M + (at + q) * PANEL] = masses[q]


@inner(STRICT)
def write_weights(weights, padded, positions, at, M, P):
    """Write the weights of PANEL queries, the rows from `at` on, to panels (M, PANEL) of keys."""
    width, one = BYTES // P.itemsize, P.dtype.type(1)
    for j in range(0, padded, PANEL):
        for i in range(0, PANEL, width):
            place = j * M + at * PANEL + i
            transpose(weights, j * PANEL, PANEL, positions, i, PANEL, one, P, place, PANEL)


@inner(STRICT)
def choose(held, rules, needed, v, absent, early, free):
    """Return the Span of the keys that are kept, of which first come those that none may join.

    Also returns how many these are, and the memory still free.
    """
    n, D = absent.size, held.value.dim
    M, S = needed.P.size // padded_size(n), held.log_mass.shape[1]
    span, free = make_span(M, early, free)
    asked = (early - rules.sinks) // rules.asked
    first = first_keys(absent, rules.sinks)
    score = free[:n]
    for j in range(n):
        best = needed.asked[j]
        for i in range(max(0, j - rules.behind), j):
            best = max(best, needed.asked[i])
        score[j] = ABSENT if absent[j] else best
    for j in first:
        score[j] = TAKEN
    keep_best(score, span.kept[:asked])
    copy_row(first, span.kept[asked : asked + first.size])
    F, free = free[: M * PANEL], free[M * PANEL :]
    columns = fold(needed.sums, M, v, S, D, absent, rules.folded, F)
    pursue(
        span, asked + first.size, needed.P, M, n, needed.number, F, columns, needed.squares,
        absent, rules.rounds, rules.nugget, held.positions, free,
    )  # fmt: skip
    return span, asked, free


@inner(STRICT)
def first_keys(absent, number):
    """Return the positions of the first keys; of padding where there are fewer."""
    first, i = np.empty(number, np.int64), 0
    for padding in (False, True):
        for j in range(absent.size):
            if i < number and absent[j] == padding:
                first[i] = j
                i += 1
    return first


@inner(STRICT)
def fold(sums, M, v, S, D, absent, folded, F):
    """Write sums to few columns of a panel: added in groups, with changing signs, and the masses.

    They are divided by the mean norm of the values, so a mass counts as much as a value. Returns
    the number of columns.
    """
    few, norm, number = min(D, folded), 0.0, 0
    for j in range(absent.size):
        if not absent[j]:
            square, number = 0.0, number + 1
            for d in range(D):
                square += np.float64(v[d // PANEL * PANEL * S + j * PANEL + d % PANEL]) ** 2
            norm += np.sqrt(square)
    inverse = number / norm if norm > 0 else 0.0
    fill(F, 0)
    for q in range(M):
        row = F[q * PANEL : (q + 1) * PANEL]
        for d in range(D):
            of_d = sums[d // PANEL * PANEL * M + q * PANEL + d % PANEL]
            row[d % folded] += of_d * (inverse if d // folded % 2 == 0 else -inverse)
        if norm > 0:
            row[few] = sums[D // PANEL * PANEL * M + q * PANEL + D % PANEL]
    return few + 1


@inner(STRICT)
def nearest(x, n, E, few, asked, order, number, free):
    """Write which kept key each key joins, (n,), in the order in which they were chosen.

    few : panels (E, PANEL) of the kept keys, by position
    asked : (early,), keys that no other may join
    order : (early,), the number of each of them in the order of choice
    """
    early = order.size
    squares, free = free[: padded_size(early)], free[padded_size(early) :]
    least, which, tile = free[:PANEL], free[PANEL : 2 * PANEL], free[2 * PANEL :]
    for start in range(0, early, PANEL):
        squared_norms(few, start * E, E, squares, start)
    for s in range(early):
        if asked[s]:
            squares[s] = np.inf
    for start in range(0, n, PANEL):
        fill(least, np.inf)
        fill(which, 0)
        for panel in range(0, early, PANEL):
            count = min(PANEL, early - panel)
            tile_of_products(few, panel * E, x, start * E, E, count, tile, 0)
            near = tile[: count * PANEL]
            take_nearest(near, squares[panel : panel + count], panel, least, which)
        for c in range(min(PANEL, n - start)):
            number[start + c] = order[int(which[c])]


@inner(STRICT)
def fit(rules, D, needed, span, v, log_mass, number, free):
    """Return the fitted sums Z of the kept keys, panels (early, PANEL) of D values and a mass.

    See `reference.cache.fit`.

    log_mass : (S,); number : (n,), which kept key each key joins
    """
    S = log_mass.size
    early, width = span.kept.size, v.size // S
    Z, free = free[: early * width], free[early * width :]
    roots, free = free[:early], free[early:]
    least, free = free[:early], free[early:]
    join(v, log_mass, number, span.kept, rules.ratio, Z)
    of_masses = Z[D // PANEL * PANEL * early + D % PANEL :]
    for i in range(early):
        roots[i] = np.sqrt(max(of_masses[i * PANEL], rules.stiff))
    multiply(Z, Z.dtype.type(rules.joined))
    for i in range(early):
        for panel in range(0, width, PANEL):
            own = v[panel * S + span.kept[i] * PANEL :]
            at = panel * early + i * PANEL
            add(own, Z[at : at + PANEL])
        least[i] = rules.least * of_masses[i * PANEL]
    move(needed, span, roots, rules.nugget, Z, free)
    for i in range(early):
        of_masses[i * PANEL] = max(of_masses[i * PANEL], least[i])
    return Z


@inner(STRICT)
def join(v, log_mass, number, kept, ratio, joined):
    """Write the sums of the rows of v that join each kept key, panels (early, PANEL).

    Masses are relative to the kept key's own, at most exp(ratio); where that is padding, to the
    largest of all.
    """
    S, early, is_kept = log_mass.size, kept.size, np.zeros(number.size, np.bool_)
    fill(joined, 0)
    for j in kept:
        is_kept[j] = True
    largest = log_mass[0]
    for j in range(number.size):
        largest = max(largest, log_mass[j])
    for j in range(number.size):
        if is_kept[j] or np.isinf(log_mass[j]):
            continue
        i = number[j]
        own = log_mass[kept[i]]
        if np.isinf(own):
            own = largest
        relative = log_mass.dtype.type(np.exp(min(log_mass[j] - own, ratio)))
        for panel in range(0, v.size // S, PANEL):
            to = panel * early + i * PANEL
            subtract(joined[to : to + PANEL], -relative, v[panel * S + j * PANEL :])


@inner(STRICT)
def write_fit(Z, order, values, masses):
    """Write values (early, D) and masses (early,) of sums Z in the order of choice, by position."""
    early, D = values.shape
    for s in range(early):
        row = order[s] * PANEL
        masses[s] = Z[D // PANEL * PANEL * early + row + D % PANEL]
        for d in range(D):
            values[s, d] = Z[d // PANEL * PANEL * early + row + d % PANEL] / masses[s]


@inner(STRICT)
def move(needed, span, roots, nugget, Z, free):
    """Move the sums Z, panels (early, PANEL), so that A Z is near to the sums that are needed.

    needed.sums is overwritten by what A Z leaves of it.
    """
    early = roots.size
    M = needed.sums.size * early // Z.size
    padded, X, free = padded_size(early), free[: Z.size], free[Z.size :]
    for panel in range(0, Z.size // early, PANEL):
        for row in range(0, M, PANEL):
            tile_of_products(span.rows, row * padded, Z, panel * early, early, PANEL, free, 0)
            at = panel * M + row * PANEL
            subtract(needed.sums[at : at + PANEL * PANEL], 1, free)
        for start in range(0, early, PANEL):
            count, at = min(PANEL, early - start), panel * early + start * PANEL
            tile_of_products(span.A, start * M, needed.sums, panel * M, M, count, free, 0)
            copy_row(free[: count * PANEL], X[at:])
        for i in range(early):
            multiply(X[panel * early + i * PANEL : panel * early + (i + 1) * PANEL], roots[i])
    if not solve(span, early, needed.number, roots, nugget, X, free):
        return
    for panel in range(0, Z.size // early, PANEL):
        for i in range(early):
            at = panel * early + i * PANEL
            subtract(Z[at : at + PANEL], -roots[i], X[at : at + PANEL])
