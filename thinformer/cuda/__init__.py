"""The CUDA body: kernel halving of many buckets on a GPU, one block of threads a bucket.

And pivots of many heads, one block a head.

- `_numba` is the only importer of ``numba.cuda``, and says whether a GPU can be used.
- `tiles` holds what runs inside a block: sums over the columns of points, in registers; `values`
  makes kernel values of them.
- `halve` is the kernel that halves buckets, `prepare` those that draw and measure before it.
- `pivots` is the kernel that chooses landmarks as pivots.
- `launch` hands a schedule to the kernels, `arrays` does so for arrays that are on a GPU.

Importing the package loads nothing; no module of it starts CUDA before something is computed.
"""
