"""torch's own threads, for kernels that run between its operations.

After an operation, the threads of torch's OpenMP runtime spin for some milliseconds and wait for
the next operation. Threads of our own would share their cores: right after SDPA, the selection of
keys for the T2T shape took 3.3 ms on two threads of our own, as on one, and 2.4 ms on torch's.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import torch

from thinformer.support.threads import Team

# enters a parallel region, in the runtimes of GNU and of LLVM on Linux; elsewhere there is none
_parallel = getattr(ctypes.CDLL(None), "GOMP_parallel", None) if os.name == "posix" else None
_Work = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_process = os.getpid()


def team() -> Team | None:
    """Return what runs work on torch's threads, or None where that cannot be.

    A forked child has no such threads, though the runtime believes it has and would wait for them.
    Where torch is told to use one thread, as it is in a DataLoader's workers, they are left alone.
    """
    usable = _parallel is not None and os.getpid() == _process and torch.get_num_threads() > 1
    return _run if usable else None


def _run(work: Callable[[], None], threads: int) -> None:
    """Run work, which raises nothing, on that many threads, this one among them."""
    assert _parallel is not None
    threads = min(threads, torch.get_num_threads())
    _parallel(_Work(lambda _: work()), None, ctypes.c_uint(threads), ctypes.c_uint(0))
