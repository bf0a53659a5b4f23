"""Thinning of Dask arrays, data frames and posteriors, which may be larger than memory.

- `thin` takes the steps of `thinformer.coreset` and `thinformer.merge` block by block.
- `mmd` and `compare` measure coresets by rows that are drawn at random.

All that reads blocks is a task of Dask's scheduler: threads, processes or a cluster.
"""

from thinformer.dask.comparison import compare
from thinformer.dask.discrepancy import mmd
from thinformer.dask.estimates import SampledMMD
from thinformer.dask.thinning import thin

__all__ = ["SampledMMD", "compare", "mmd", "thin"]
