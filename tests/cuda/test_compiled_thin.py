"""The kernels of `thin` as machine code of real GPUs, compiled without one."""

import math
import re
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
from checkout import ROOT
from machine_code import CAPABILITIES, compiled, resources
from numba import njit, types  # noqa: TID251
from numba.cuda import dispatcher

from thinformer.cpu.jit import from_products
from thinformer.cuda import extremes, greedy, halve, run, sums
from thinformer.cuda.halve import threads_for
from thinformer.cuda.jit import compiling, user_function
from thinformer.cuda.values import Variant
from thinformer.kernels.phi import GAUSSIAN, STEIN

pytestmark = pytest.mark.slow

STATIC_LIMIT = 48 * 1024  # bytes of shared memory that need no opting in
REGISTERS = 64 * 1024  # of a multiprocessor
WHOLE, DOUBLE = types.int64, types.float64
PLACE = types.UniTuple(WHOLE, 4)
GEOMETRY = types.NamedUniTuple(WHOLE, 7, halve.Geometry)
DOCUMENTED = (ROOT / "docs" / "cuda.md").read_text().splitlines()
KERNELS = {"gaussian": GAUSSIAN, "stein": STEIN}
nightly = pytest.mark.nightly  # the same code with other numbers


each_variant = pytest.mark.parametrize(
    ("name", "computed"),
    [
        ("gaussian", "float32"),
        ("stein", "float32"),
        pytest.param("gaussian", "float64", marks=nightly),
        pytest.param("stein", "float64", marks=nightly),
    ],
)


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    """A GPU that functions called by kernels are compiled for."""
    gpu = SimpleNamespace(compute_capability=CAPABILITIES[0])
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: gpu)


def variant_of(tag, computed, **more):
    dtype = run.COMPUTED_IN[computed]
    return Variant("terms", (run.term(tag),), False, run.LOAD[computed], dtype, **more)


def first_arguments(computed):
    number = getattr(types, computed)
    return number[::1], PLACE, number[:, ::1], number[:, ::1]


def check(kernel, signature, tmp_path, threads, doubles=None, name=None):
    """In registers, within what a block may have; `doubles` bounds double precision in float32.

    A named kernel has a row in docs/cuda.md.
    """
    used = []
    for capability, code in compiled(kernel, signature):
        registers, shared, spilled = resources(code, capability, tmp_path)
        assert ".local" not in code
        assert spilled == 0
        assert shared <= STATIC_LIMIT
        assert threads * registers <= REGISTERS
        if doubles is not None:
            assert len(re.findall(r"(fma|add|sub|mul)\S*\.f64\b", code)) <= doubles
            assert not re.search(r"(div|sqrt|ex2|rcp)\S*\.f64\b", code)
        used.append((registers, shared))
    if name and version("nvidia-cuda-nvcc").startswith("13.5."):
        (first, shared), (second, _) = used
        row = f"| {name} | {threads} | {first} | {second} | {shared} |"
        assert row in DOCUMENTED, row


@each_variant
def test_sums(name, computed, tmp_path):
    """In float32 a patch's four sums of four values are added in double precision, no value is."""
    threads = threads_for(4096, run.COMPUTED_IN[computed])
    variant, number = variant_of(KERNELS[name], computed), getattr(types, computed)
    doubles = 48 if computed == "float32" else None
    embed = (*first_arguments(computed), WHOLE[::1], number[::1], WHOLE, WHOLE, DOUBLE[:, ::1])
    row = f"`embed`, {name}, {computed}"
    check(sums.make_embed(variant, threads), embed, tmp_path, threads, doubles, row)
    square = (*first_arguments(computed), WHOLE[:, ::1], number[::1], WHOLE, WHOLE,
              DOUBLE[:, :, ::1])  # fmt: skip
    check(sums.make_square(variant, threads), square, tmp_path, threads, doubles)


@each_variant
def test_swaps_and_greedy_choice(name, computed, tmp_path):
    """In float32 the potentials alone are in double precision."""
    variant, number = variant_of(KERNELS[name], computed), getattr(types, computed)
    doubles = 24 if computed == "float32" else None
    found = DOUBLE[:, ::1], WHOLE[:, ::1]
    swap = (*first_arguments(computed), WHOLE[::1], DOUBLE[::1], number[::1], types.int8[::1],
            WHOLE[::1], DOUBLE, WHOLE, WHOLE, WHOLE, *found, WHOLE[::1], WHOLE[::1])  # fmt: skip
    row = f"`swap`, {name}, {computed}"
    check(sums.make_swap(variant, sums.THREADS), swap, tmp_path, sums.THREADS, doubles, row)
    extend = (*first_arguments(computed), WHOLE[::1], DOUBLE[::1], DOUBLE[::1], WHOLE[::1], WHOLE,
              WHOLE, WHOLE, *found, DOUBLE[::1])  # fmt: skip
    check(greedy.make_extend(variant, sums.THREADS), extend, tmp_path, sums.THREADS, doubles)


@pytest.mark.parametrize("computed", ["float32", pytest.param("float64", marks=nightly)])
@pytest.mark.parametrize("name", [pytest.param("gaussian", marks=nightly), "stein"])
def test_adaptive_thresholds(name, computed, tmp_path):
    threads, number = threads_for(4096, run.COMPUTED_IN[computed]), getattr(types, computed)
    signature = (number[::1], GEOMETRY, number[::1], GEOMETRY, number[:, :, ::1], number[:, ::1],
                 WHOLE[::1], WHOLE[:, ::1], number[:, ::1], WHOLE, WHOLE, WHOLE, number[:, ::1],
                 WHOLE[:, ::1], WHOLE[:, ::1])  # fmt: skip
    kernel = halve.make_kernel(variant_of(KERNELS[name], computed, adaptive=True), threads)
    check(kernel, signature, tmp_path, threads, 0 if computed == "float32" else None)


def test_the_rest(tmp_path):
    """Diagonals, Gram matrices, copies, parts, and extremes of points in half precision."""
    variant, threads = variant_of(STEIN, "float32"), sums.THREADS
    first, half = first_arguments("float32"), types.int16[::1]
    load = run.LOAD["float16"]
    check(sums.make_diagonal(variant), (*first, WHOLE[::1], DOUBLE[::1]), tmp_path, threads, 0)
    check(sums.make_gram(variant), (*first, WHOLE[::1], DOUBLE[:, ::1]), tmp_path, threads, 0)
    check(sums.make_add_up(), (DOUBLE[:, ::1], DOUBLE[::1]), tmp_path, threads)
    copies = (half, PLACE, WHOLE[::1], types.float32[::1], PLACE)
    check(sums.make_gather(load), copies, tmp_path, threads, 0)
    found = DOUBLE[:, :, ::1], WHOLE[:, :, ::1]
    check(extremes.make_extremes(load, np.float32, threads),
          (half, GEOMETRY, WHOLE, WHOLE, WHOLE, types.float32[:, ::1], *found,
           types.boolean[::1]), tmp_path, threads, 0)  # fmt: skip


@njit
def of_square(square):
    return math.exp(-square)


@njit
def own(x, y):
    square = 0.0
    for j in range(x.size):
        square += (x[j] - y[j]) ** 2
    return of_square(square)


@njit
def cubic(product, x_norm, y_norm):
    return (product + 1) ** 3


@njit
def of_arrays(x, y):
    return np.exp(-np.sum((x - y) ** 2))


def test_functions_of_users(tmp_path):
    """With what they call; a function that makes arrays cannot be compiled, and the error says so.

    A patch of their values is in local memory: its loops are not unrolled around a call.
    """

    def kernel(function):
        called = user_function(function)
        return Variant("function", (), False, run.LOAD["float64"], np.float64, function=called)

    first = first_arguments("float64")
    embed = (*first, WHOLE[::1], DOUBLE[::1], WHOLE, WHOLE, DOUBLE[:, ::1])
    for function in (own, from_products(cubic)):
        variant = kernel(function)
        check(sums.make_diagonal(variant), (*first, WHOLE[::1], DOUBLE[::1]), tmp_path, 256)
        for capability, code in compiled(sums.make_embed(variant, 128), embed):
            _, shared, stack = resources(code, capability, tmp_path)
            assert stack == 16 * 8
            assert shared <= STATIC_LIMIT
    refused = pytest.raises(TypeError, match="^kernel cannot be compiled for a GPU: .*array")
    with refused, compiling("kernel"):
        list(compiled(sums.make_diagonal(kernel(of_arrays)), (*first, WHOLE[::1], DOUBLE[::1])))
