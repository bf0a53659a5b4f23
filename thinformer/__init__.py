"""Thinning of point sets and of attention, fast on NumPy arrays and torch tensors.

- `thin` chooses the rows that represent a point set best: kernel thinning, Compress++ and others;
  `KernelThinner` is that for scikit-learn users.
- `mmd`, `mmd2_unbiased` and `compare` say how well; `Comparison`, `Comparisons` are its result.
  `median_distance` is the bandwidth taken where none is given.
- `compress` runs Compress or Compress++ with a halving algorithm of your own, `symmetrize` makes
  one unbiased.
- `kh_compress` is KH-Compress alone, on stacks of point sets; `kernel_halve` keeps one of every two
  points, given their Gram matrix.
- `attention` is softmax attention over few keys that represent all; `compress_kv` chooses them.
- `thinformer_attention` is that on torch tensors, with the arguments of torch's own function;
  `ThinformerAttention` is a module.
- `coreset_size`, `compress_schedule`, `make_draws`: what will be done, and its random numbers.
- `set_num_threads`, `get_num_threads`.

Importing the package loads neither Numba nor torch nor scikit-learn: the first is loaded when
something is computed, the others with what needs them.
"""

from typing import TYPE_CHECKING, Any

from thinformer.attending.attention import Attended, attention, compress_kv
from thinformer.halving.draws import Draws, make_draws
from thinformer.halving.schedule import Schedule, compress_schedule, coreset_size
from thinformer.kernels import Kernel
from thinformer.support.threads import get_num_threads, set_num_threads
from thinformer.thinning.arguments import median_distance
from thinformer.thinning.discrepancy import Comparison, Comparisons, compare, mmd, mmd2_unbiased
from thinformer.thinning.stacks import kernel_halve, kh_compress
from thinformer.thinning.thin import thin
from thinformer.thinning.tree import compress, symmetrize

if TYPE_CHECKING:
    from thinformer.thinning.estimator import KernelThinner
    from thinformer.torch import ThinformerAttention, thinformer_attention

__all__ = [
    "Attended",
    "Comparison",
    "Comparisons",
    "Draws",
    "Kernel",
    "KernelThinner",
    "Schedule",
    "ThinformerAttention",
    "attention",
    "compare",
    "compress",
    "compress_kv",
    "compress_schedule",
    "coreset_size",
    "get_num_threads",
    "kernel_halve",
    "kh_compress",
    "make_draws",
    "median_distance",
    "mmd",
    "mmd2_unbiased",
    "set_num_threads",
    "symmetrize",
    "thin",
    "thinformer_attention",
]


def __getattr__(name: str) -> Any:
    if name in ("ThinformerAttention", "thinformer_attention"):
        from thinformer import torch

        return getattr(torch, name)
    if name == "KernelThinner":
        from thinformer.thinning.estimator import KernelThinner

        return KernelThinner
    if name == "__version__":
        from importlib.metadata import version

        return version("thinformer")
    raise AttributeError(f"module 'thinformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
