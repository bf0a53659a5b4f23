"""What a measurement takes in memory, and the machine that figures belong to."""

from __future__ import annotations

import platform
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from thinformer.support.threads import available_cores
from thinformer.support.version import version


def peak_megabytes(work: Callable[[], object]) -> float:
    """Return the peak memory in MB of Python and NumPy during `work`, minus the memory before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return (tracemalloc.get_traced_memory()[1] - before) / 1e6
    finally:
        tracemalloc.stop()


def peak_resident_megabytes() -> float | None:
    """The most memory in MB that the process had resident, where the system tells it."""
    peak = status_of_memory("VmHWM")
    if peak is not None:
        return peak * 2**20 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def status_of_memory(name: str) -> float | None:
    """Memory of this process in MiB, by its name in /proc; None on systems without that.

    The peak that `resource` tells begins with that of the process that started this one.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = (line.split() for line in status.read_text().split("\n"))
    return next((int(words[1]) / 1024 for words in lines if words[:1] == [f"{name}:"]), None)


def processor() -> str:
    """Return the processor's name; its architecture if the system has no name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [x for x in cpuinfo.read_text().split("\n") if x.startswith("model name")]
        if lines:
            return lines[0].split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def hardware() -> dict[str, str]:
    """The processor and its cores, by name."""
    return {"processor": processor(), "cores": str(available_cores())}


def versions(*packages: str) -> dict[str, str]:
    """The versions of installed packages, by name."""
    return {package: version(package) for package in packages}
