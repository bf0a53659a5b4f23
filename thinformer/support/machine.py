"""Measuring memory, and on what machine."""

from __future__ import annotations

import platform
import tracemalloc
from collections.abc import Callable
from pathlib import Path


def peak_megabytes(work: Callable[[], object]) -> float:
    """The most memory in MB that Python and NumPy hold at once during `work`, beyond before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return (tracemalloc.get_traced_memory()[1] - before) / 1e6
    finally:
        tracemalloc.stop()


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        if lines:
            return lines[0].split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
