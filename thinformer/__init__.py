"""Fast thinning of point sets and of attention, on NumPy arrays and torch tensors.

Thinning picks a small subset that represents the whole set.

Point sets:

- `thin` chooses rows of a point set by kernel thinning, Compress++ and other methods.
  `KernelThinner` does the same as a scikit-learn estimator. `take_draws` returns a posterior of
  these rows, for ArviZ.
- `ThinnedKernelRidge` and `ThinnedNadarayaWatson` are kernel regressions, scikit-learn estimators,
  that are fitted to rows which represent points and targets together.
- `coreset` and `merge` thin a point set of many parts, on any number of machines. They return
  `Coresets`, which choose the rows: `WeightedRows`.
- `mmd` and `mmd2_unbiased` compute the error of a subset. `compare` computes several errors of
  several subsets and returns `Comparisons`, a table with one `Comparison` for each subset, which
  has a `ColumnError` for each column.
- `fit_weights` returns the weights of a subset's rows that make its MMD least.
- `debias` returns weights that bring biased points near the density of a Stein kernel.
- `error_curve` returns the errors of coresets by their size, an `ErrorCurve`, in a unit that tells
  how many rows are enough. ``thin(points, "auto")`` takes so many.
- `median_distance` is the default bandwidth of `thin`.
- `two_sample_test` tests whether two samples come from one distribution. It returns a
  `TwoSampleResult`, with one `KernelResult` for each kernel.
- `kh_compress` runs KH-Compress on stacks of point sets. `kernel_halve` keeps one of every two
  points, from their Gram matrix.
- `compress` runs Compress or Compress++ with your own halving algorithm. `symmetrize` makes such an
  algorithm unbiased.

Attention:

- `attention` is softmax attention over a small subset of the keys. `compress_kv` returns this
  subset.
- `compress_cache` keeps few keys of a decoder's cache, with fitted values and masses, a
  `CompressedCache`, for the queries that come next.
- `causal_attention` lets each token attend to the tokens near before it, and to few keys of all
  earlier ones.
- `thinformer_attention` does the same on torch tensors, with the arguments of torch's own
  `scaled_dot_product_attention`. `ThinformerAttention` is the torch module.

Both:

- `coreset_size` and `compress_schedule` tell the size of the subset and the halvings that lead to
  it. `make_draws` makes their random numbers.
- `set_num_threads` and `get_num_threads` are the number of CPU threads.

Importing the package loads neither Numba nor torch nor scikit-learn. Numba is loaded by the first
computation, torch and scikit-learn by the first use of a name that needs them.
"""

from typing import TYPE_CHECKING, Any

from thinformer.arrays import Attended, attention
from thinformer.attending.attention import compress_kv
from thinformer.attending.cache import CompressedCache, compress_cache
from thinformer.attending.causal import causal_attention
from thinformer.halving.draws import Draws, make_draws
from thinformer.halving.schedule import Schedule, compress_schedule, coreset_size
from thinformer.kernels import Kernel
from thinformer.support.threads import get_num_threads, set_num_threads
from thinformer.thinning.arguments import median_distance
from thinformer.thinning.comparison import Comparison, Comparisons, compare
from thinformer.thinning.debiasing import debias
from thinformer.thinning.discrepancy import mmd, mmd2_unbiased
from thinformer.thinning.distributed import Coresets, coreset, merge
from thinformer.thinning.merging import WeightedRows
from thinformer.thinning.moments import ColumnError
from thinformer.thinning.posterior import take_draws
from thinformer.thinning.quadrature import fit_weights
from thinformer.thinning.sizes import ErrorCurve, error_curve
from thinformer.thinning.stacks import kernel_halve, kh_compress
from thinformer.thinning.thin import thin
from thinformer.thinning.tree import compress, symmetrize
from thinformer.thinning.two_sample import two_sample_test
from thinformer.thinning.two_sample_result import KernelResult, TwoSampleResult

if TYPE_CHECKING:
    from thinformer.thinning.estimator import KernelThinner
    from thinformer.thinning.regression import ThinnedKernelRidge, ThinnedNadarayaWatson
    from thinformer.torch import ThinformerAttention, thinformer_attention

__all__ = [
    "Attended",
    "ColumnError",
    "Comparison",
    "Comparisons",
    "CompressedCache",
    "Coresets",
    "Draws",
    "ErrorCurve",
    "Kernel",
    "KernelResult",
    "KernelThinner",
    "Schedule",
    "ThinformerAttention",
    "ThinnedKernelRidge",
    "ThinnedNadarayaWatson",
    "TwoSampleResult",
    "WeightedRows",
    "attention",
    "causal_attention",
    "compare",
    "compress",
    "compress_cache",
    "compress_kv",
    "compress_schedule",
    "coreset",
    "coreset_size",
    "debias",
    "error_curve",
    "fit_weights",
    "get_num_threads",
    "kernel_halve",
    "kh_compress",
    "make_draws",
    "median_distance",
    "merge",
    "mmd",
    "mmd2_unbiased",
    "set_num_threads",
    "symmetrize",
    "take_draws",
    "thin",
    "thinformer_attention",
    "two_sample_test",
]


def __getattr__(name: str) -> Any:
    if name in ("ThinformerAttention", "thinformer_attention"):
        from thinformer import torch

        return getattr(torch, name)
    if name == "KernelThinner":
        from thinformer.thinning.estimator import KernelThinner

        return KernelThinner
    if name in ("ThinnedKernelRidge", "ThinnedNadarayaWatson"):
        from thinformer.thinning import regression

        return getattr(regression, name)
    if name == "__version__":
        from thinformer.support.version import version

        return version("thinformer")
    raise AttributeError(f"module 'thinformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
