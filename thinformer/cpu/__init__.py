"""The CPU body: loops that Numba compiles, and the threads that run them.

A module that has the name of a module in `thinformer.cuda` is the same step of the algorithm:

- `jit`: the only caller of ``numba.njit``; the options of the compiler, and the cache on disk.
- `tiles`: kernel values of some rows and a panel of points.
- `halve`: halves buckets, panel by panel.
- `draw`: draws random numbers and starting points, and measures keys and values.
- `pivots`: chooses landmarks as pivots of a Cholesky factorisation.
- `run`: hands a schedule and other loops over many problems to the threads.

The other modules exist here only:

- `simd`, `exp`, `rows`: products in vector registers, the exponential function, loops over a row.
- `herd`: keeps points one by one, by kernel herding.
- `greedy`: chooses points one by one, each the one that makes the MMD least.
- `sums`: sums of kernel values over point sets, and swaps that make the MMD smaller.
- `softmax`: attention of many queries to few keys.
- `centring`: keys minus their mean, and the norms that temperatures follow from.
- `drawn`: draws landmarks by the attention weights of sampled queries.
- `cholesky`: the Cholesky factor of the kernel between landmarks, and its solves.
- `landmarks`: chooses the landmarks of each head, and fits their values and masses.
- `cache`, `pursuit`: few keys of a decoder's cache, with fitted values and masses.
- `causal`: attention of a block of tokens to itself and to keys before it.
"""
