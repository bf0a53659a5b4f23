"""Measuring memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable


def peak_megabytes(work: Callable[[], object]) -> float:
    """The most memory in MB that Python and NumPy hold at once during `work`, beyond before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return (tracemalloc.get_traced_memory()[1] - before) / 1e6
    finally:
        tracemalloc.stop()
