"""Kernel halving, KH-Compress and Thinformer attention, fast on NumPy arrays and torch tensors.

Importing the package loads neither Numba nor torch: the first is loaded when something is
computed, the second with `ThinformerAttention`.
"""

from typing import TYPE_CHECKING, Any

from thinformer._pool import get_num_threads, set_num_threads
from thinformer.attention import attention, compress_kv
from thinformer.draws import Draws, make_draws
from thinformer.kernels import Kernel
from thinformer.points import kernel_halve, kh_compress
from thinformer.schedule import Schedule, compress_schedule, coreset_size

if TYPE_CHECKING:
    from thinformer.torch import ThinformerAttention

__all__ = [
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
