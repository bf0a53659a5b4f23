"""Kernel halving, KH-Compress and Thinformer attention, fast on NumPy arrays and torch tensors.

- `kh_compress` chooses a few points that represent all of an array's rows.
- `kernel_halve` keeps one of every two points, given their Gram matrix.
- `attention` is softmax attention over few keys that represent all; `compress_kv` chooses them.
- `ThinformerAttention` is that as a torch module.
- `coreset_size`, `compress_schedule`, `make_draws`: what will be done, and its random numbers.
- `set_num_threads`, `get_num_threads`.

Importing the package loads neither Numba nor torch: the first is loaded when something is
computed, the second with `ThinformerAttention`.
"""

from typing import TYPE_CHECKING, Any

from thinformer._pool import get_num_threads, set_num_threads
from thinformer.attention import Attended, attention, compress_kv
from thinformer.discrepancy import Comparison, compare, median_distance, mmd, mmd2_unbiased
from thinformer.draws import Draws, make_draws
from thinformer.kernels import Kernel
from thinformer.points import kernel_halve, kh_compress
from thinformer.schedule import Schedule, compress_schedule, coreset_size
from thinformer.thinning import thin

if TYPE_CHECKING:
    from thinformer.torch import ThinformerAttention

__all__ = [
    "Attended",
    "Draws",
    "Kernel",
    "Schedule",
    "ThinformerAttention",
    "attention",
    "compress_kv",
    "compress_schedule",
    "coreset_size",
    "get_num_threads",
    "kernel_halve",
    "kh_compress",
    "make_draws",
    "set_num_threads",
]


def __getattr__(name: str) -> Any:
    if name == "ThinformerAttention":
        from thinformer.torch import ThinformerAttention

        return ThinformerAttention
    if name == "__version__":
        from importlib.metadata import version

        return version("thinformer")
    raise AttributeError(f"module 'thinformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
