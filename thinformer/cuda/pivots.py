"""The kernel that chooses pivots, a block of threads for each head: `cpu.pivots` on a GPU.

A candidate is a column of `rows`: its key, and below it its column of the Cholesky factor, which
grows by a row a pivot. A round has a few proposals. Which of them become pivots follows from the
kernel between the proposals alone, less what the earlier pivots account for. So the block computes
these few values first, in shared memory, and decides. Then it appends the new pivots to the factor:
each thread holds some columns of the new rows in registers.

A comment at each ``syncthreads`` says which writes it separates from which reads.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from thinformer.cuda.jit import ALIGNED, cuda, device_function

THREADS = 256
DEPTH = 32  # rows staged at once
COLUMNS = 2  # candidates that a thread computes at once
GROUP = 16  # threads whose sums are added before the groups' sums are


@functools.cache
def make_pivots(dtype: type, block: int, threads: int) -> Any:
    """Return the kernel that chooses pivots, for rounds of `block` proposals.

    A block of threads chooses the pivots of one problem. The kernel's arguments::

        rows  (problems, (E + n_out) * L), rows of L numbers, one a candidate: E rows of the scaled
          keys x, then n_out rows of the Cholesky factor, written
        E, n_out  dimensions of a key, and how many pivots to choose
        h  (problems, L), the candidates' exponents
        weights  (problems, L) float64; a candidate is proposed with a probability in proportion to
          its weight times what is left of its diagonal entry
        uniforms  (heads, proposals, 2) float64; heads of a sequence are neighbouring problems
        nugget  added to the diagonal
        diagonal  (problems, L), written: what is left of the kernel's diagonal
        taken  (problems, L) bool, all False; written, True for the pivots
    """
    ZERO, ONE, NOTHING = dtype(0), dtype(1), np.float64(0)
    propose = make_propose(block, threads)
    residuals_between = make_residuals_between(dtype, block, threads)
    accept = make_accept(dtype, block, threads)
    append = make_append(dtype, block, threads)

    def pivots(rows_of, E, n_out, h_of, weights_of, uniforms_of, nugget, diagonal_of, taken):
        few = cuda.shared.array((DEPTH, block), dtype, ALIGNED)
        own = cuda.shared.array((block, block), dtype)  # the kernel between proposals
        proposed = cuda.shared.array(block, np.int64)
        few_h = cuda.shared.array(block, dtype)
        then = cuda.shared.array(block, dtype)  # proposals' diagonal when the round begins, and now
        now = cuda.shared.array(block, dtype)
        inverse = cuda.shared.array(block, dtype)
        slot = cuda.shared.array(block, np.int64)  # the factor's row of a proposal, or -1

        problem, thread = cuda.blockIdx.x, cuda.threadIdx.x
        rows, h, weights = rows_of[problem], h_of[problem], weights_of[problem]
        uniforms = uniforms_of[problem % uniforms_of.shape[0]]
        diagonal = diagonal_of[problem]
        L = diagonal.size
        for j in range(thread, L, threads):
            diagonal[j] = ONE
        count = 0
        for start in range(0, uniforms.shape[0], block):
            cuda.syncthreads()  # the diagonal before others read it
            total = propose(diagonal, weights, uniforms, start, proposed)
            if count == n_out or not total > NOTHING:  # the same in all threads
                break
            if thread < block:
                few_h[thread] = h[proposed[thread]]
                then[thread] = now[thread] = diagonal[proposed[thread]]
                slot[thread], inverse[thread] = -1, ZERO
            end = E + count  # others read these writes after the barriers of staging
            residuals_between(own, few, rows, L, proposed, few_h, E, end, nugget)
            count = accept(
                own, proposed, uniforms, start, then, now, slot, inverse, taken[problem], E, count,
                n_out,
            )  # fmt: skip
            if E + count > end:
                append(
                    rows, diagonal, few, proposed, few_h, E, end, h, nugget, own, slot, inverse,
                )  # fmt: skip

    return cuda.jit(pivots)


def make_propose(block: int, threads: int) -> Any:
    """Return the function that draws the proposals of a round."""
    GROUPS, NOTHING = threads // GROUP, np.float64(0)

    @device_function
    def propose(diagonal, weights, uniforms, start, proposed):
        """Write the proposals (block,) of a round, a candidate each; return the weighted trace.

        The sum before a candidate adds whole groups of threads, then the threads before in its own
        group, then its thread's candidates. It is the same wherever it is computed, so it never
        decreases, and a number falls on one candidate. Proposals without a number are the last
        candidate.

        diagonal, weights : (L,); uniforms : (proposals, 2), the round's from `start` on
        """
        sums = cuda.shared.array(threads, np.float64)
        of_groups = cuda.shared.array(GROUPS, np.float64)
        thread, L = cuda.threadIdx.x, diagonal.size
        each = (L + threads - 1) // threads
        begin, end = min(thread * each, L), min((thread + 1) * each, L)
        own = NOTHING
        for j in range(begin, end):
            own += diagonal[j] * weights[j]
        sums[thread] = own
        if thread < block:
            proposed[thread] = L - 1
        cuda.syncthreads()  # the threads' sums before they are added
        if thread < GROUPS:
            of_group = NOTHING
            for i in range(GROUP):
                of_group += sums[GROUP * thread + i]
            of_groups[thread] = of_group
        cuda.syncthreads()  # the groups' sums before they are added
        total, before, inside = NOTHING, NOTHING, NOTHING
        for i in range(GROUPS):
            if i == thread // GROUP:
                before = total
            total += of_groups[i]
        for i in range(thread - thread % GROUP, thread):
            inside += sums[i]
        for b in range(min(block, uniforms.shape[0] - start)):
            number = uniforms[start + b, 0] * total
            if before + inside <= number and number < before + (inside + own):
                j, until = begin, diagonal[begin] * weights[begin]
                while not number < before + (inside + until) and j + 1 < end:
                    j += 1
                    until += diagonal[j] * weights[j]
                proposed[b] = j
        cuda.syncthreads()  # the proposals before they are read
        return total

    return propose


def make_stage(block: int, threads: int) -> Any:
    """Return the function that stages some rows of the proposals in shared memory."""

    @device_function
    def stage(few, rows, L, proposed, begin, depth, sign):
        """Write few[d, b] = sign * row `begin + d` of the b-th proposal, for d below `depth`."""
        for i in range(cuda.threadIdx.x, depth * block, threads):
            d, b = i // block, i % block
            few[d, b] = sign * rows[(begin + d) * L + proposed[b]]

    return stage


def make_residuals_between(dtype: type, block: int, threads: int) -> Any:
    """Return the function that computes a round's kernel between its proposals."""
    ZERO, ONE, SQUARE = dtype(0), dtype(1), block * block
    stage = make_stage(block, threads)

    @device_function
    def residuals_between(own, few, rows, L, proposed, few_h, E, end, nugget):
        """Write what the pivots leave of the kernel between proposals to own, (block, block).

        The kernel comes from the E rows of the keys; the rows of the factor, E .. end-1, are
        subtracted.

        few : (DEPTH, block), to stage rows in
        few_h : (block,), the proposals' exponents
        """
        for i in range(cuda.threadIdx.x, SQUARE, threads):
            own[i // block, i % block] = ZERO
        begin = 0
        for part in range(2):
            until = E if part == 0 else end
            for at in range(begin, until, DEPTH):
                depth = min(DEPTH, until - at)
                stage(few, rows, L, proposed, at, depth, ONE)
                cuda.syncthreads()  # staged before it is read
                for i in range(cuda.threadIdx.x, SQUARE, threads):
                    a, b, total = i // block, i % block, ZERO
                    for d in range(depth):
                        total += few[d, a] * few[d, b]
                    own[a, b] += -total if part == 1 else total
                cuda.syncthreads()  # read before it is staged anew
            begin = until
            if part == 0:
                for i in range(cuda.threadIdx.x, SQUARE, threads):
                    a, b = i // block, i % block
                    # only rounding makes an exponent positive
                    own[a, b] = math.exp(min(own[a, b] - few_h[a] - few_h[b], ZERO))
                    if proposed[a] == proposed[b]:
                        own[a, b] += nugget

    return residuals_between


def make_accept(dtype: type, block: int, threads: int) -> Any:
    """Return the function that decides which proposals of a round become pivots."""
    ZERO, ONE, SQUARE = dtype(0), dtype(1), block * block

    @device_function
    def accept(
        own, proposed, uniforms, start, then, now, slot, inverse, taken, E, count, n_out,
    ):  # fmt: skip
        """Decide the proposals of a round in turn; return the number of pivots after it.

        An accepted proposal is eliminated from the proposals after it.

        own : (block, block), what the pivots leave of the kernel between proposals; overwritten
        then, now : (block,), the proposals' diagonal as the round begins, and now, updated
        slot, inverse : (block,), written for pivots: the factor's row, and 1 / sqrt(residual)
        taken : (L,), written, True for pivots
        E, count, n_out : rows of the keys, pivots before, and pivots wanted
        """
        thread = cuda.threadIdx.x
        for b in range(min(block, uniforms.shape[0] - start)):
            cuda.syncthreads()  # this proposal's row of `own` is final, and its diagonal
            residual = own[b, b]
            # every thread takes the decision
            if count < n_out and now[b] > ZERO and uniforms[start + b, 1] * then[b] < residual:
                over = ONE / math.sqrt(residual)
                # only rows of later proposals change, so none is read at the same time
                for i in range(thread, SQUARE, threads):
                    a, c = i // block, i % block
                    if a > b:
                        own[a, c] -= (own[b, a] * over) * (own[b, c] * over)
                if b < thread and thread < block:
                    f = own[b, thread] * over
                    now[thread] = max(now[thread] - f * f, ZERO)
                    if proposed[thread] == proposed[b]:
                        now[thread] = ZERO
                if thread == 0:
                    slot[b], inverse[b] = E + count, over
                    taken[proposed[b]] = True
                count += 1
        return count

    return accept


def make_residuals(dtype: type, block: int, threads: int) -> Any:
    """Return the function that computes a round's kernel between proposals and candidates."""
    ZERO, ONE, PATCH = dtype(0), dtype(1), COLUMNS * block
    stage = make_stage(block, threads)

    @device_function
    def residuals(columns, places, few, rows, proposed, few_h, E, end, h, first):
        """Write what the pivots leave of the kernel between proposals and a thread's candidates.

        columns : (COLUMNS * block,), local memory, written: one candidate after the other, the
            first one `first`, others `threads` apart; without the nugget
        places : (COLUMNS,), local memory to work in
        h : (L,), the candidates' exponents; for the rest, see `residuals_between`
        """
        L = h.size
        for i in range(PATCH):
            columns[i] = ZERO
        begin = 0
        for part in range(2):
            until = E if part == 0 else end
            for at in range(begin, until, DEPTH):
                depth = min(DEPTH, until - at)
                stage(few, rows, L, proposed, at, depth, -ONE if part == 1 else ONE)
                cuda.syncthreads()  # staged before it is read
                for c in range(COLUMNS):
                    places[c] = at * L + min(first + c * threads, L - 1)
                for d in range(depth):
                    for c in range(COLUMNS):
                        value = rows[places[c]]
                        for b in range(block):
                            columns[c * block + b] += value * few[d, b]
                        places[c] += L
                cuda.syncthreads()  # read before it is staged anew
            begin = until
            if part == 0:
                for c in range(COLUMNS):
                    h_of_column = h[min(first + c * threads, L - 1)]
                    for b in range(block):
                        exponent = columns[c * block + b] - few_h[b] - h_of_column
                        columns[c * block + b] = math.exp(min(exponent, ZERO))

    return residuals


def make_append(dtype: type, block: int, threads: int) -> Any:
    """Return the function that appends a round's pivots to the factor."""
    ZERO, SQUARE, PATCH = dtype(0), block * block, COLUMNS * block
    residuals = make_residuals(dtype, block, threads)

    @device_function
    def append(rows, diagonal, few, proposed, few_h, E, end, h, nugget, own, slot, inverse):
        """Write the factor's rows of a round's pivots, and what they leave of the diagonal (L,).

        own, slot, inverse : as `accept` leaves them; for the rest, see `residuals`
        """
        # steps[b, a]: the factor's row of proposal b at proposal b + a; 0 if it is not accepted
        steps = cuda.shared.array((block, block), dtype)
        left = cuda.local.array(COLUMNS, dtype)
        places = cuda.local.array(COLUMNS, np.int64)
        columns = cuda.local.array(PATCH, dtype)
        thread, L = cuda.threadIdx.x, diagonal.size
        for i in range(thread, SQUARE, threads):
            b, a = i // block, i % block
            steps[b, a] = own[b, b + a] * inverse[b] if b + a < block else ZERO
        # others read `steps`, `slot` and `inverse` after the barriers of staging
        for first in range(thread, L + thread, COLUMNS * threads):
            residuals(columns, places, few, rows, proposed, few_h, E, end, h, first)
            for c in range(COLUMNS):
                left[c] = diagonal[min(first + c * threads, L - 1)]
            for b in range(block):
                # its column is the first one, as earlier columns were shifted out: an index that
                # depends on b would move the columns from registers to memory
                for c in range(COLUMNS):
                    j, f = first + c * threads, columns[c * block]
                    if j == proposed[b]:
                        f += nugget
                    f *= inverse[b]
                    left[c] = max(left[c] - f * f, ZERO)
                    if slot[b] >= 0 and j < L:
                        rows[slot[b] * L + j] = f
                        if j == proposed[b]:
                            left[c] = ZERO
                    for a in range(1, block):
                        after = columns[c * block + a] - steps[b, a] * f
                        columns[c * block + a - 1] = after
            for c in range(COLUMNS):
                if first + c * threads < L:
                    diagonal[first + c * threads] = left[c]

    return append
