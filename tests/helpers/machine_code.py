"""The CUDA kernels as machine code of real GPUs, compiled without one."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":  # setup.cfg asks for it nowhere else
    pytest.skip("the compiler is installed on Linux only", allow_module_level=True)

import nvidia
from numba.cuda import compiler

CAPABILITIES = [(8, 0), (9, 0)]
(PTXAS,) = (Path(folder) / "cu13" / "bin" / "ptxas" for folder in nvidia.__path__)


def compiled(kernel, signature):
    """The PTX of a kernel for each capability; what Numba makes of the Python is made once."""
    library, _ = compiler._compile_pyfunc_with_fixup(
        kernel.py_func, signature, device=False, abi="numba", cc=CAPABILITIES[0]
    )
    for capability in CAPABILITIES:
        (code,) = library.get_asm_strs(cc=capability)
        assert f".target sm_{capability[0]}{capability[1]}\n" in code
        yield capability, code


def resources(code, capability, tmp_path):
    """Registers a thread, bytes of shared memory a block, and bytes spilled, as ptxas reports."""
    path = tmp_path / "kernel.ptx"
    path.write_text(code)
    arch = f"-arch=sm_{capability[0]}{capability[1]}"
    done = subprocess.run(
        [PTXAS, "-v", arch, path, "-o", tmp_path / "kernel.cubin"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip

    def found(pattern):
        return sum(int(n) for n in re.findall(pattern, done.stderr))

    return (found(r"Used (\d+) registers"), found(r"(\d+) bytes smem"),
            found(r"(\d+) bytes spill") + found(r"(\d+) bytes stack frame"))  # fmt: skip
