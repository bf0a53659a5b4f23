"""The CUDA body: halving of buckets, pivots of heads, and sums over points, on a GPU.

A block of threads halves one bucket or a part of it, chooses the pivots of one head, or adds up
kernel values for 32 points. A module that has the name of a module in `thinformer.cpu` is the same
step of the algorithm:

- `jit`: the only importer of ``numba.cuda``; says whether a GPU can be used.
- `tiles`: the columns of points in shared memory, and their products or distances in registers.
- `halve`: halves buckets, panel by panel.
- `draw`: draws random numbers and starting points from a seed, and measures keys and values.
- `pivots`: chooses landmarks as pivots of a Cholesky factorisation.
- `herd`: keeps points one by one, by kernel herding.
- `sums`: sums of kernel values over point sets, and the swaps of KT-SWAP.
- `greedy`: greedy choice of points.
- `run`: hands a schedule to the kernels, launch after launch.
- `points`: what `thin` takes of one point set.

Other modules exist here only:

- `values`: kernel values of a tile, made of what `tiles` adds up (the CPU's are in `tiles` too).
- `launches`: which rounds share a launch, and the tables that kernels read.
- `stein`: values of a Stein kernel in a tile.
- `pairs`: kernel values of two points, each computed by one thread.
- `arrays`: arrays of other libraries that are on a GPU already.
- `resident`: such points under a kernel of `thin`.
- `extremes`: what the checks of arguments must know of them.

To import the package loads nothing, and no module starts CUDA before something is computed.
"""
