"""`thinformer.thin` by the specification: the same stages, draws taken in the same order."""

import numpy as np

from reference.compress import stratified_thin
from reference.thinning import kt_compress_levels, kt_split, kt_swap
from thinformer.halving.draws import make_draws, seed_from
from thinformer.halving.schedule import Round, Schedule, compress_schedule
from thinformer.thinning.methods import PASSES, TARGET


class Specified:
    """One call of `thin`; `margins` are those of its decisions and choices."""

    def __init__(self, points, gram, rng):
        self.K = gram(points, points)
        self.rng = np.random.default_rng(seed_from(rng))
        self.margins = []

    def draws(self, schedule):
        return make_draws(schedule, seed_from(self.rng))

    def gram(self, rows):
        return self.K[np.ix_(rows, rows)]

    def kernel_thinning(self, rows, size, delta, candidates, target):
        rounds = (len(rows) // size).bit_length() - 1
        length = size << rounds
        strata = self.draws(Schedule(length, size, ())).strata
        start = rows[stratified_thin(len(rows), length, strata)]
        uniforms = [
            self.draws(Schedule(length, length // 2, (Round(length // 2, 2**j, delta),))).uniforms[
                0
            ]
            for j in range(rounds)
        ]
        coresets, traces = kt_split(self.gram(start), delta, uniforms)
        standard = rows[(np.arange(size) + 1) * len(rows) // size - 1]
        coresets = np.searchsorted(candidates, np.vstack([start[coresets], standard]))
        mean = self.K[np.ix_(candidates, target)].mean(axis=1)
        coreset, margin = kt_swap(self.gram(candidates), mean, coresets, passes=PASSES)
        self.margins += [margin, *(trace.margin.min() for trace in traces)]
        return np.sort(candidates[coreset])

    def compress_plus_plus(self, size, g, delta):
        n = len(self.K)
        every = np.arange(n)
        halvings = min((n // size).bit_length() - 1, max(0, round(np.log2(n / size) - g)))
        if halvings == 0:
            return self.kernel_thinning(every, size, delta, every, every)
        left = n >> halvings
        m = (left // size).bit_length() - 1
        of_split = m / (m + 2**m * halvings)
        schedule = compress_schedule(n, left, delta * (1 - of_split))
        draws = self.draws(schedule)
        start = stratified_thin(n, schedule.length, draws.strata)
        levels, traces = kt_compress_levels(
            self.gram, start, schedule.rounds, draws.uniforms, draws.coins
        )
        levels = [start[level] for level in levels]
        self.margins += [trace.margin.min() for trace in traces]
        target = next(level for level in levels if len(level) <= max(left, TARGET * size))
        return self.kernel_thinning(levels[-1], size, delta * of_split, levels[-1], target)
