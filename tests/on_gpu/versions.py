"""Versions and the device, and whether a kernel compiles and runs; the first stage."""

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import numpy as np
from running import RESULT

import thinformer
from thinformer.cuda import jit
from thinformer.cuda.jit import cuda
from thinformer.support.machine import hardware
from thinformer.support.version import version

PACKAGES = ("thinformer", "numba", "numba-cuda", "cuda-bindings", "cuda-core", "llvmlite", "numpy",
            "scipy", "torch", "cupy-cuda13x", "cupy-cuda12x", "pytest", "transformers")  # fmt: skip


def installed():
    for name in PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue


def driver():
    """What nvidia-smi says, where it is there."""
    query = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,utilization.gpu"
    try:
        done = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=10, check=False)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error}"
    return (done.stdout or done.stderr).strip()


def double(numbers):
    i = cuda.grid(1)
    if i < numbers.size:
        numbers[i] *= 2


def main():
    print(RESULT + f"Python {platform.python_version()}, {', '.join(installed())}")
    print(RESULT + ", ".join(f"{name} {value}" for name, value in hardware().items()))
    print(f"thinformer is {thinformer.__file__}")
    print(RESULT + driver())
    reason = jit.why_unavailable()
    if reason is not None:
        print(RESULT + f"no GPU can be used: {reason}")
        return 1
    print(RESULT + ", ".join(jit.gpu_names()))
    if not jit.SIMULATED:
        device = cuda.get_current_device()
        print(RESULT + f"{device.MULTIPROCESSOR_COUNT} multiprocessors, compute capability"
              f" {'.'.join(map(str, device.compute_capability))}")  # fmt: skip
        if (problem := cuda.cuda_error()) is not None:
            print(RESULT + str(problem))
    numbers = cuda.to_device(np.arange(5.0))
    cuda.jit(double)[1, 32](numbers)
    if numbers.copy_to_host().tolist() != [0, 2, 4, 6, 8]:
        print(RESULT + f"a kernel that doubles 0 .. 4 gave {numbers.copy_to_host()}")
        return 1
    print(RESULT + "a kernel compiles and runs")
    if not jit.SIMULATED and "CUDA_HOME" in os.environ:
        print(f"CUDA_HOME is {os.environ['CUDA_HOME']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
