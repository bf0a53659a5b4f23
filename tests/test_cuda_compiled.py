"""The CUDA kernels as machine code of real GPUs, compiled without one: what they must not hold."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("the compiler is installed on Linux only", allow_module_level=True)

import nvidia
from numba import types
from numba.cuda import dispatcher

from thinformer.cuda import halve, launch, prepare
from thinformer.cuda._numba import cuda
from thinformer.kernels import OF_DISTANCE

CAPABILITIES = [(8, 0), (9, 0)]
STATIC_LIMIT = 48 * 1024  # bytes of shared memory that need no opting in
REGISTERS = 64 * 1024  # of a multiprocessor
GEOMETRY = types.NamedUniTuple(types.int64, 6, halve.Geometry)
(PTXAS,) = (Path(folder) / "cu13" / "bin" / "ptxas" for folder in nvidia.__path__)


@pytest.fixture(params=CAPABILITIES, ids=lambda cc: f"sm_{cc[0]}{cc[1]}")
def capability(request, monkeypatch):
    """A GPU that functions called by kernels are compiled for."""
    gpu = SimpleNamespace(compute_capability=request.param)
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: gpu)
    for make in (halve.make_kernel, prepare.make_draw, prepare.make_measure, prepare.make_scale):
        make.cache_clear()
    return request.param


def ptx(kernel, signature, capability):
    return cuda.compile_ptx(kernel.py_func, signature, cc=capability)[0]


def halve_signature(stored, computed):
    of = {"float16": types.int16, "bfloat16": types.int16}
    window = of.get(stored, getattr(types, stored, None))[::1]
    number, whole = getattr(types, computed), types.int64
    return (window, GEOMETRY, window, GEOMETRY, number[:, :, ::1], number[::1],
            whole[:, ::1], number[:, ::1], whole, whole, whole,
            number[:, ::1], whole[:, ::1], whole[:, ::1])  # fmt: skip


def attention_kernel(stored, threads):
    variant = halve.Variant(launch.PHI[2], launch.PHI[0], False, True, launch.LOAD[stored],
                            launch.COMPUTED_IN[stored])  # fmt: skip
    return halve.make_kernel(variant, threads), variant.dtype


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


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_attention(stored, capability, tmp_path):
    """Two blocks of 256 threads fit a multiprocessor, all in registers, read as vectors of four."""
    threads = launch.threads_for(4096, np.float32)
    assert threads == 256
    kernel, dtype = attention_kernel(stored, threads)
    code = ptx(kernel, halve_signature(stored, np.dtype(dtype).name), capability)
    assert not re.search(r"\.f64\b", code)
    assert ".local" not in code
    # rows and points of a patch, in the product of keys and in that of values; no other way
    assert code.count("ld.shared.v4.f32") == 4
    assert len(re.findall(r"fma\.rn\.f32", code)) >= 2 * 16
    registers, shared, spilled = resources(code, capability, tmp_path)
    assert spilled == 0
    assert shared <= STATIC_LIMIT
    assert threads * registers <= REGISTERS // (2 if capability == (9, 0) else 1)


@pytest.mark.parametrize("threads", [64, 128])
def test_attention_in_small_blocks(threads, capability, tmp_path):
    kernel, _ = attention_kernel("float32", threads)
    code = ptx(kernel, halve_signature("float32", "float32"), capability)
    assert not re.search(r"\.f64\b", code)
    assert code.count("ld.shared.v4.f32") == 4
    registers, shared, spilled = resources(code, capability, tmp_path)
    assert spilled == 0
    assert shared <= STATIC_LIMIT // 2
    assert 3 * threads * registers <= REGISTERS


def test_attention_in_float64(capability, tmp_path):
    threads = launch.threads_for(4096, np.float64)
    kernel, _ = attention_kernel("float64", threads)
    code = ptx(kernel, halve_signature("float64", "float64"), capability)
    assert code.count("ld.shared.v2.f64") == 2 * 4
    assert not re.search(r"(fma|mul|add)(\.rn)?\.f32\b", code)
    registers, shared, spilled = resources(code, capability, tmp_path)
    assert spilled == 0
    assert shared <= STATIC_LIMIT
    assert threads * registers <= REGISTERS


@pytest.mark.parametrize("capability", [(9, 0)], indirect=True)
@pytest.mark.parametrize("tag", launch.PHI)
def test_points(tag, capability, tmp_path):
    """Every phi of the package, in float32 and in registers."""
    load = launch.LOAD["float32"]
    variant = halve.Variant(launch.PHI[tag], None, tag >= OF_DISTANCE, False, load, np.float32)
    kernel = halve.make_kernel(variant, 256)
    code = ptx(kernel, halve_signature("float32", "float32"), capability)
    assert not re.search(r"\.f64\b", code)
    assert ".local" not in code
    assert code.count("ld.shared.v4.f32") == 2
    registers, shared, spilled = resources(code, capability, tmp_path)
    assert spilled == 0
    assert shared <= STATIC_LIMIT
    assert 256 * registers <= REGISTERS


@pytest.mark.parametrize("stored", launch.LOAD)
def test_what_comes_before(stored, capability, tmp_path):
    """Drawing and measuring; positions are drawn in float64 whatever the points are."""
    dtype = launch.COMPUTED_IN[stored]
    computed = np.dtype(dtype).name
    window, _, _, _, parameters, numbers, table, draws, *_ = halve_signature(stored, computed)
    whole, finite, left = types.int64, types.boolean[::1], types.int64[:, ::1]
    draw = ptx(
        prepare.make_draw(dtype),
        (types.int64[::1], whole, table, whole, whole, left, draws, numbers, finite),
        capability,
    )
    assert ".local" not in draw
    measure = ptx(
        prepare.make_measure(launch.LOAD[stored], dtype, prepare.THREADS),
        (window, GEOMETRY, window, GEOMETRY, whole, whole, left, numbers, finite),
        capability,
    )
    scale = ptx(
        prepare.make_scale(dtype), (getattr(types, computed), numbers, parameters), capability
    )
    for code in (measure, scale):
        if dtype is np.float32:
            assert not re.search(r"\.f64\b", code)
        assert resources(code, capability, tmp_path)[2] == 0
