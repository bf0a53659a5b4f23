"""Point sets: which rows to keep, and how well they represent all rows.

- `thin`: the public function; `task`, `methods`, `weights`: what it is made of.
- `stacks`: `kernel_halve` and `kh_compress`, on stacks of arrays.
- `arguments`, `tables`: what points, kernel, bandwidth and weights mean.
- `discrepancy`: the MMD, and `compare`.
- `tree`: Compress and Compress++ around a halving of your own.
- `merging`: merge and reduce; `distributed`: `coreset` and `merge`; `streaming`: of a stream.
- `estimator`: `thin` for scikit-learn.
"""
