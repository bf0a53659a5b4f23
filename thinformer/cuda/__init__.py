"""The CUDA body: kernel halving of many buckets, and pivots of many heads, on a GPU.

A block of threads halves one bucket, or chooses the pivots of one head. A module that has the name
of a module in `thinformer.cpu` is the same step of the algorithm:

- `jit`: the only importer of ``numba.cuda``; says whether a GPU can be used.
- `tiles`: the columns of points in shared memory, and their products or distances in registers.
- `halve`: halves buckets, panel by panel.
- `draw`: draws random numbers and starting points from a seed, and measures keys and values.
- `pivots`: chooses landmarks as pivots of a Cholesky factorisation.
- `run`: hands a schedule to the kernels, launch after launch.

Three modules exist here only:

- `values`: kernel values of a tile, made of what `tiles` adds up (the CPU's are in `tiles` too).
- `launches`: which rounds share a launch, and the tables that kernels read.
- `arrays`: arrays of other libraries that are on a GPU already.

To import the package loads nothing, and no module starts CUDA before something is computed.
"""
