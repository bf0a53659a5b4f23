"""The CUDA kernels as machine code of real GPUs, compiled without one: what they must not hold."""

import re
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
from checkout import ROOT
from machine_code import CAPABILITIES, compiled, resources
from numba import types
from numba.cuda import dispatcher

from thinformer.cpu.pivots import BLOCK
from thinformer.cuda import draw, halve, herd, pivots, run, shared, tiles
from thinformer.cuda.halve import threads_for
from thinformer.cuda.values import Variant
from thinformer.kernels.phi import EXPONENTIAL, GAUSSIAN, LINEAR

pytestmark = pytest.mark.slow
nightly = pytest.mark.nightly  # the same code with other numbers

STATIC_LIMIT = 48 * 1024  # bytes of shared memory that need no opting in
REGISTERS = 64 * 1024  # of a multiprocessor
GEOMETRY = types.NamedUniTuple(types.int64, 7, halve.Geometry)
DOCUMENTED = (ROOT / "docs" / "cuda.md").read_text().splitlines()


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    """A GPU that functions called by kernels are compiled for; the code of both is made of that."""
    gpu = SimpleNamespace(compute_capability=CAPABILITIES[0])
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: gpu)


def halve_signature(stored, computed):
    of = {"float16": types.int16, "bfloat16": types.int16}
    window = of.get(stored, getattr(types, stored, None))[::1]
    number, whole = getattr(types, computed), types.int64
    return (window, GEOMETRY, window, GEOMETRY, number[:, :, ::1], number[:, ::1], whole[::1],
            whole[:, ::1], number[:, ::1], whole, whole, whole,
            number[:, ::1], whole[:, ::1], whole[:, ::1])  # fmt: skip


def shared_signature(stored, computed):
    sharing = types.NamedUniTuple(types.int64, 3, shared.Sharing)
    *before, _, _, _, draws, left, kept = halve_signature(stored, computed)
    return (*before, types.int64, sharing, types.int64, draws, left, kept,
            getattr(types, computed)[::1])  # fmt: skip


def attention_variant(stored, tensor=False):
    terms = run.term(EXPONENTIAL), run.term(LINEAR)
    return Variant("factors", terms, True, run.LOAD[stored], run.COMPUTED_IN[stored], tensor)


def attention_kernel(stored, threads):
    variant = attention_variant(stored)
    return halve.make_kernel(variant, threads), variant.dtype


def check_documented(stored, threads, used):
    """What docs/cuda.md says of registers and shared memory is what the pinned compiler reports."""
    (first, shared, _), (second, _, _) = used
    if version("nvidia-cuda-nvcc").startswith("13.5."):
        row = f"| {stored} | {threads} | {first} | {second} | {shared} |"
        assert row in DOCUMENTED, row


@pytest.mark.parametrize(
    "stored",
    [pytest.param("float16", marks=nightly), pytest.param("bfloat16", marks=nightly), "float32"],
)
def test_attention(stored, tmp_path):
    """Two blocks of 256 threads fit a multiprocessor, all in registers, read as vectors of four."""
    threads, used = threads_for(4096, np.float32), []
    assert threads == 256
    kernel, dtype = attention_kernel(stored, threads)
    for capability, code in compiled(kernel, halve_signature(stored, np.dtype(dtype).name)):
        assert not re.search(r"\.f64\b", code)
        assert ".local" not in code
        # rows and points of a patch, in the product of keys and in that of values; no other way
        assert code.count("ld.shared.v4.f32") == 4
        assert len(re.findall(r"fma\.rn\.f32", code)) >= 2 * 16
        used.append(resources(code, capability, tmp_path))
        registers, shared, spilled = used[-1]
        assert spilled == 0
        assert shared <= STATIC_LIMIT
        assert threads * registers <= REGISTERS // (2 if capability == (9, 0) else 1)
    check_documented(stored, threads, used)


@pytest.mark.parametrize("threads", [64, pytest.param(128, marks=nightly)])
def test_attention_in_small_blocks(threads, tmp_path):
    kernel, _ = attention_kernel("float32", threads)
    used = []
    for capability, code in compiled(kernel, halve_signature("float32", "float32")):
        assert not re.search(r"\.f64\b", code)
        assert code.count("ld.shared.v4.f32") == 4
        used.append(resources(code, capability, tmp_path))
        registers, shared, spilled = used[-1]
        assert spilled == 0
        assert shared <= STATIC_LIMIT // 2
        assert 3 * threads * registers <= REGISTERS
    check_documented("float32", threads, used)


def test_attention_in_float64(tmp_path):
    threads, used = threads_for(4096, np.float64), []
    kernel, _ = attention_kernel("float64", threads)
    for capability, code in compiled(kernel, halve_signature("float64", "float64")):
        assert code.count("ld.shared.v2.f64") == 2 * 4
        assert not re.search(r"(fma|mul|add)(\.rn)?\.f32\b", code)
        used.append(resources(code, capability, tmp_path))
        registers, shared, spilled = used[-1]
        assert spilled == 0
        assert shared <= STATIC_LIMIT
        assert threads * registers <= REGISTERS
    check_documented("float64", threads, used)


@pytest.mark.parametrize(
    ("make", "stored", "threads"),
    [(halve.make_kernel, "bfloat16", 256), (shared.make_collect, "float16", 256),
     *(pytest.param(*more, marks=nightly) for more in (
         (halve.make_kernel, "bfloat16", 64), (halve.make_kernel, "bfloat16", 128),
         (halve.make_kernel, "float16", 256),
         (shared.make_collect, "bfloat16", 128), (shared.make_collect, "bfloat16", 256),
     ))],
)  # fmt: skip
def test_tensor_cores(make, stored, threads, tmp_path):
    """Half precision is multiplied by tensor cores: four times for keys, four times for values."""
    kernel, used = make(attention_variant(stored, tensor=True), threads), []
    signature = halve_signature if make is halve.make_kernel else shared_signature
    for capability, code in compiled(kernel, signature(stored, "float32")):
        assert not re.search(r"\.f64\b", code)
        assert ".local" not in code
        of = {"bfloat16": "bf16", "float16": "f16"}[stored]
        found = code.count(f"mma.sync.aligned.m16n8k16.row.col.f32.{of}.{of}.f32")
        assert found >= 2 * 4
        assert found % (2 * 4) == 0  # loops may be unrolled
        assert not re.search(r"fma\.rn\.f32 .*\n\s*fma\.rn\.f32 .*\n\s*fma\.rn\.f32", code)
        used.append(resources(code, capability, tmp_path))
        registers, smem, spilled = used[-1]
        assert spilled == 0
        assert smem <= STATIC_LIMIT
        few = threads == 256 and (make is halve.make_kernel or stored == "float16")
        blocks = 1 if few else 2
        assert blocks * threads * registers <= REGISTERS
    name = f"{stored}, tensor cores"
    check_documented(name if make is halve.make_kernel else f"`collect`, {name}", threads, used)


@pytest.mark.parametrize(
    "stored",
    [pytest.param("bfloat16", marks=nightly), "float32", pytest.param("float64", marks=nightly)],
)
@pytest.mark.parametrize("make", [shared.make_collect, shared.make_decide_span, shared.make_norms])
def test_shared_buckets(make, stored, tmp_path):
    """The tiles of attention, the decisions and the norms, where many blocks share a bucket."""
    variant = attention_variant(stored)
    threads, computed, used = threads_for(4096, variant.dtype), np.dtype(variant.dtype).name, []
    kernel = make(variant, threads)
    for capability, code in compiled(kernel, shared_signature(stored, computed)):
        assert ".local" not in code
        if computed == "float32":
            assert not re.search(r"\.f64\b", code)
        if make is shared.make_collect:
            vectors = "ld.shared.v4.f32" if computed == "float32" else "ld.shared.v2.f64"
            assert code.count(vectors) == (4 if computed == "float32" else 8)
        elif make is shared.make_decide_span:
            # a full panel's values for a later point are read at once
            assert len(re.findall(r"sub(\.rn)?\.f(32|64)", code)) >= tiles.PANEL // 2
        used.append(resources(code, capability, tmp_path))
        registers, smem, spilled = used[-1]
        assert spilled == 0
        assert smem <= STATIC_LIMIT
        assert threads * registers <= REGISTERS
    name = make.__name__.removeprefix("make_")
    check_documented(f"`{name}`, {stored}", threads, used)


@pytest.mark.parametrize(
    "tags", [pytest.param((GAUSSIAN,), marks=nightly), tuple(run.PHI)], ids=["gaussian", "all"]
)
def test_points(tags, tmp_path):
    """Every phi of the package, in a sum of all, in float32 and in registers."""
    variant = Variant("terms", tuple(map(run.term, tags)), False, run.LOAD["float32"], np.float32)
    for capability, code in compiled(
        halve.make_kernel(variant, 256), halve_signature("float32", "float32")
    ):
        assert not re.search(r"\.f64\b", code)
        assert ".local" not in code
        assert code.count("ld.shared.v4.f32") == 2 * len(tags)
        registers, shared, spilled = resources(code, capability, tmp_path)
        assert spilled == 0
        assert shared <= STATIC_LIMIT
        assert 256 * registers <= REGISTERS


def test_gram_matrices(tmp_path):
    """Their entries go from the GPU's memory to registers, past shared memory.

    Of odd matrices, what is kept is written to all but the last column of an array.
    """
    variant = Variant("entries", (), False, run.LOAD["float32"], np.float32)
    kernel = halve.make_kernel(variant, 256)
    inspect = draw.make_inspect(run.LOAD["float32"], np.float32, draw.THREADS)
    numbers, finite = types.float32[::1], types.boolean[::1]
    inspected = (numbers, GEOMETRY, types.int64, types.int64, numbers, numbers, finite)
    for made, signature in (
        (kernel, (*halve_signature("float32", "float32")[:-1], types.int64[:, :])),
        (inspect, inspected),
    ):
        for capability, code in compiled(made, signature):
            assert not re.search(r"\.f64\b", code)
            assert ".local" not in code
            assert "ld.shared.v4.f32" not in code
            registers, shared, spilled = resources(code, capability, tmp_path)
            assert spilled == 0
            assert shared <= STATIC_LIMIT
            assert 256 * registers <= REGISTERS


@pytest.mark.parametrize(
    "stored",
    [name if name == "float32" else pytest.param(name, marks=nightly) for name in run.LOAD],
)
def test_what_comes_before(stored, tmp_path):
    """Drawing and measuring; positions are drawn in float64 whatever the points are."""
    dtype = run.COMPUTED_IN[stored]
    computed = np.dtype(dtype).name
    window, _, _, _, parameters, _, sequences, table, draws, *_ = halve_signature(stored, computed)
    whole, finite, left = types.int64, types.boolean[::1], types.int64[:, ::1]
    numbers, tokens = parameters.dtype[::1], left
    if stored == computed:  # whatever is converted draws the same
        drawn = (sequences, whole, whole, sequences, tokens, sequences, table, whole, whole, left,
                draws, numbers, finite)  # fmt: skip
        scale = getattr(types, computed), numbers, parameters
        for _, code in compiled(draw.make_draw(dtype), drawn):
            assert ".local" not in code
        if stored == "float64":
            units = sequences, whole, parameters.dtype[:, ::1]
            for _, code in compiled(draw.make_units(), units):
                assert ".local" not in code
        check_measure(draw.make_scale(dtype), scale, dtype, tmp_path)
    measure = (window, GEOMETRY, window, GEOMETRY, sequences, tokens, sequences, whole, whole,
               whole, left, numbers, finite)  # fmt: skip
    load = run.LOAD[stored]
    check_measure(draw.make_measure(load, dtype, draw.THREADS), measure, dtype, tmp_path)


@pytest.mark.parametrize("computed", ["float32", pytest.param("float64", marks=nightly)])
def test_pivots(computed, tmp_path):
    """A thread's columns in registers; in float32 what is in doubles is the drawing alone."""
    number, whole, double = getattr(types, computed), types.int64, types.float64
    kernel = pivots.make_pivots(getattr(np, computed), BLOCK, pivots.THREADS)
    signature = (number[:, ::1], whole, whole, number[:, ::1], double[:, ::1], double[:, :, ::1],
                 number, number[:, ::1], types.boolean[:, ::1])  # fmt: skip
    used = []
    for capability, code in compiled(kernel, signature):
        assert ".local" not in code
        # a row of proposals, for all columns of a thread; and as many sums
        bits, vector = (32, 4) if computed == "float32" else (64, 2)
        assert code.count(f"ld.shared.v{vector}.f{bits}") == BLOCK // vector
        assert len(re.findall(rf"fma\.rn\.f{bits}", code)) >= pivots.COLUMNS * BLOCK
        if computed == "float32":
            assert not re.search(r"(div|sqrt|ex2)\S*\.f64\b", code)
            assert len(re.findall(r"fma\.rn\.f64\b", code)) < BLOCK
        used.append(resources(code, capability, tmp_path))
        registers, shared, spilled = used[-1]
        assert spilled == 0
        assert shared <= STATIC_LIMIT
        assert pivots.THREADS * registers <= REGISTERS
    check_documented(f"`pivots`, {computed}", pivots.THREADS, used)


@pytest.mark.parametrize("computed", ["float32", "float64"])
def test_herding(computed, tmp_path):
    """A turn reads two rows and adds; in float32 scores are compared in doubles, and not added."""
    number, whole = getattr(types, computed), types.int64
    signature = (number[:, :, ::1], number[:, ::1], number[:, ::1], types.boolean[:, ::1],
                 whole[:, ::1])  # fmt: skip
    kernel, used = herd.make_herd(getattr(np, computed), herd.THREADS), []
    for capability, code in compiled(kernel, signature):
        assert ".local" not in code
        if computed == "float32":
            assert not re.search(r"(add|sub|mul|fma|div)\S*\.f64\b", code)
        used.append(resources(code, capability, tmp_path))
        registers, shared, spilled = used[-1]
        assert spilled == 0
        assert shared <= STATIC_LIMIT
        assert 2 * herd.THREADS * registers <= REGISTERS
    check_documented(f"`herd`, {computed}", herd.THREADS, used)


def check_measure(kernel, signature, dtype, tmp_path):
    for capability, code in compiled(kernel, signature):
        if dtype is np.float32:
            assert not re.search(r"\.f64\b", code)
        assert resources(code, capability, tmp_path)[2] == 0
