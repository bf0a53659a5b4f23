"""The memory that a call takes, and the name of the processor."""

from __future__ import annotations

import platform
import tracemalloc
from collections.abc import Callable
from pathlib import Path


def peak_megabytes(work: Callable[[], object]) -> float:
    """Return the peak memory in MB of Python and NumPy during `work`, minus the memory before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return (tracemalloc.get_traced_memory()[1] - before) / 1e6
    finally:
        tracemalloc.stop()


def processor() -> str:
    """Return the processor's name; its architecture if the system has no name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        if lines:
            return lines[0].split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
