"""The CUDA body where there is no GPU: launches, errors, and the kernels in the simulator."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from thinformer import (
    ThinformerAttention,
    attention,
    compress_kv,
    compress_schedule,
    kernel_halve,
    kh_compress,
    thin,
)
from thinformer.commands.main import main
from thinformer.cpu.pivots import BLOCK
from thinformer.cuda import jit, pivots, run, tiles
from thinformer.halving.plan import plan
from thinformer.halving.steps import simple_factor
from thinformer.measuring import speed, speed_cuda
from thinformer.support.checks import CudaUnavailableError
from thinformer.torch.choose import on_cpu

ROOT = Path(__file__).parents[1]
POINTS = np.random.default_rng(0).standard_normal((64, 2))
KEYS = np.random.default_rng(0).standard_normal((1, 64, 1, 2))


def test_in_the_simulator():
    """Its switch holds for a whole process, and must be set before Numba is imported."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT,
         ROOT / "tests" / "simulated_cuda.py"],
        capture_output=True, text=True, timeout=900, check=False, cwd="/",
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stdout
    (passed,) = re.findall(r"(\d+) passed", result.stdout)
    assert int(passed) > 50


H100 = 132  # multiprocessors


def test_a_round_is_a_launch_of_a_block_for_each_bucket():
    """The rounds of 64k tokens and g = 2, few heads: none is worth doing in one block."""
    schedule = compress_schedule(65536, 1024)
    made = run.launches(schedule, 4, 128, H100, np.float32)
    assert [(one.first_round, one.last_round) for one in made] == [(i, i + 1) for i in range(6)]
    assert [one.share for one in made] == [1024, 256, 64, 16, 4, 1]
    assert [one.threads for one in made] == [64, 128, 128, 256, 256, 256]


def test_rounds_of_many_problems_are_one_launch():
    schedule = compress_schedule(1024, 128)
    (one,) = run.launches(schedule, 2 * H100, 128, H100, np.float32)
    assert one == run.Launch(0, 3, 1, 128)
    assert len(run.launches(schedule, 2 * H100 - 1, 128, H100, np.float32)) == 3


def test_small_rounds_are_one_launch():
    """What takes one block less time than a launch."""
    schedule = compress_schedule(1024, 32)
    assert run.launches(schedule, 1, 4, H100, np.float64) == [run.Launch(0, 5, 1, 64)]
    assert run.launches(compress_schedule(9, 9), 1, 4, H100, np.float64) == []


def test_tables_hold_the_schedule():
    """Factors of both lengths that the buckets of a round have; coins behind the uniforms."""
    schedule = compress_schedule(90, 11)  # 44 pairs in 16 buckets, 22 in 4, 11 in 1
    table, factors = run.round_tables(schedule, np.float64)
    assert table.tolist() == [[44, 16, 77], [22, 4, 93], [11, 1, 97]]
    delta = schedule.rounds[0].delta
    np.testing.assert_array_equal(factors[0], [simple_factor(4, delta), simple_factor(6, delta)])
    assert run.count_draws(schedule) == 98
    assert run.workspace(schedule, 3, np.float32)["draws"] == ((3, 98), np.float32)


@pytest.fixture
def without(monkeypatch):
    """Set what numba.cuda says of the machine."""

    def say(error=None, implementation="NVIDIA", raises=None):
        def is_available():
            if raises:
                raise raises
            return False

        monkeypatch.setattr(jit.cuda, "implementation", implementation)
        monkeypatch.setattr(jit.cuda, "is_available", is_available)
        monkeypatch.setattr(jit.cuda, "cuda_error", lambda: error)

    return say


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        ({"error": "\nCUDA driver library cannot be found.\n:"}, "CUDA driver library cannot be"),
        ({"error": "Call to cuInit: CUDA_ERROR_NO_DEVICE (100)"}, "CUDA_ERROR_NO_DEVICE"),
        ({"raises": RuntimeError("driver version is insufficient")}, "version is insufficient"),
        ({"implementation": "Built-in"}, r"pip install 'thinformer\[cuda13\]'"),
        ({}, "the driver finds no GPU"),
    ],
)
def test_why_there_is_no_gpu(without, machine, message, capsys):
    """Each says what to do; what runs on the CPU runs on."""
    without(**machine)
    for call in (
        lambda: kh_compress(POINTS, device="cuda"),
        lambda: compress_kv(KEYS, KEYS, device="cuda"),
        lambda: attention(KEYS, KEYS, KEYS, device="cuda"),
        lambda: kernel_halve(np.eye(4), device="cuda"),
        lambda: thin(POINTS, 8, method="halving", device="cuda"),
    ):
        with pytest.raises(CudaUnavailableError, match=f'device="cuda" needs a GPU: .*{message}'):
            call()
    assert len(kh_compress(POINTS, g=0)) == 8
    assert main(["info"]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("CUDA devices")]
    assert re.search(f"cannot be used: .*{message}", line)
    for command in ("validate", "bench"):
        assert main([command, "--device", "cuda"]) == 2
        assert re.search(f"{command}: --device cuda needs a GPU: .*{message}.*\n$",
                         capsys.readouterr().err)  # fmt: skip


def test_numba_without_cuda(monkeypatch):
    monkeypatch.setattr(jit, "cuda", None)
    with pytest.raises(CudaUnavailableError, match="numba-cuda is not installed"):
        kh_compress(POINTS, device="cuda")


def test_half_precision_is_benched_on_a_gpu(capsys):
    assert main(["bench", "--dtype", "bfloat16"]) == 2
    assert "--dtype bfloat16 takes --device cuda" in capsys.readouterr().err


def test_unknown_devices():
    with pytest.raises(ValueError, match="device must be one of 'auto', 'cpu', 'cuda'; got 'gpu'"):
        kh_compress(POINTS, device="gpu")
    np.testing.assert_array_equal(
        kh_compress(POINTS, rng=0, device="auto"), kh_compress(POINTS, rng=0, device="cpu")
    )


class OnGpu:
    """An array that says it is on a GPU."""

    __cuda_array_interface__ = {"shape": (64, 2), "version": 3}  # noqa: RUF012


def test_arrays_on_a_gpu_that_cannot_be_used(without):
    """They cannot be computed elsewhere, and the argument is named."""
    without(error="CUDA driver library cannot be found")
    message = "on a GPU, needs a GPU: CUDA driver library cannot be found"
    for device in ("auto", "cuda"):
        with pytest.raises(CudaUnavailableError, match=f"points, which is {message}"):
            kh_compress(OnGpu(), device=device)
        with pytest.raises(CudaUnavailableError, match=f"key, which is {message}"):
            compress_kv(OnGpu(), OnGpu(), device=device)
        with pytest.raises(CudaUnavailableError, match=f"K, which is {message}"):
            kernel_halve(OnGpu(), device=device)
    with pytest.raises(CudaUnavailableError, match="a tensor on cuda:1 needs a GPU: CUDA driver"):
        on_cpu.select(SimpleNamespace(is_cuda=True, device="cuda:1"), *(None,) * 3, g=0, size=None,
                  scale=None, pre_thin="even", min_length=0, kept=1)  # fmt: skip
    key = SimpleNamespace(is_cuda=True, device="cuda:1", shape=(1, 4, 1, 2))
    with pytest.raises(CudaUnavailableError, match="a tensor on cuda:1 needs a GPU: CUDA driver"):
        on_cpu.landmarks(key, key, *(None,) * 3, g=0, size=2, width=2, min_length=0)


def test_arrays_in_several_memories_are_named():
    for call, message in (
        (lambda: compress_kv(KEYS, OnGpu()), "got value on a GPU, key in the CPU's"),
        (lambda: attention(OnGpu(), KEYS, KEYS), "got query on a GPU, key, value in the CPU's"),
    ):
        with pytest.raises(ValueError, match=f"must be in one memory; {message}"):
            call()


def test_the_gpu_of_an_address(monkeypatch):
    """As the driver says, asked by what cuda-bindings has."""
    asked = []

    def attribute(*arguments):
        asked.append(arguments)
        return 3

    monkeypatch.setattr(
        jit.cuda.cudadrv.driver, "driver", SimpleNamespace(cuPointerGetAttribute=attribute)
    )
    assert jit.device_of(4096) == 3
    ((name, pointer),) = asked
    assert (name.name, int(pointer)) == ("CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL", 4096)


def test_mixed_devices():
    here, there = torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2, device="meta")
    message = "must be on one device; got query on cpu, key on meta, value on cpu"
    with pytest.raises(ValueError, match=message):
        ThinformerAttention()(here, there, here)


def test_not_enough_memory_says_how_much(monkeypatch):
    """And is an error of one call; the next one finds a GPU that works."""

    def to_device(array):
        raise RuntimeError("[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(jit, "why_unavailable", lambda: None)
    monkeypatch.setattr(run.cuda, "to_device", to_device)
    monkeypatch.setattr(run, "processors", lambda: 1)
    # 64 points of 2 numbers, 10 parameters, 2 scales, uniforms and coins; a sequence's number, ...
    # 2 * 64 positions, and 8 kept
    schedule = compress_schedule(64, 8)
    numbers = 64 * 2 + 10 + 2 + run.count_draws(schedule) + 2 * len(schedule.rounds)
    whole = 1 + 3 * len(schedule.rounds) + 2 * 64 + 8
    with pytest.raises(MemoryError, match=f"for {8 * (numbers + whole):,} bytes"):
        kh_compress(POINTS, g=0, device="cuda")
    monkeypatch.setattr(run.cuda, "to_device", lambda array: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kh_compress(POINTS, g=0, device="cuda")


def test_crossover_is_where_it_stays_faster(monkeypatch):
    seconds = {256: (1, 2), 512: (3, 2), 1024: (1, 2)} | {2**i: (3, 2) for i in range(11, 17)}
    monkeypatch.setattr(speed_cuda, "tensors", lambda dims, dtype: (dims[1],) * 3)
    monkeypatch.setattr(
        speed_cuda, "attention_candidates",
        lambda query, key, value, g: {speed_cuda.EXACT: seconds[key][0],
                                      speed_cuda.WHOLE: seconds[key][1]},
    )  # fmt: skip
    monkeypatch.setattr(speed_cuda, "time_in_turn",
                        lambda work, rounds: {name: [t] for name, t in work.items()})  # fmt: skip
    assert speed_cuda.crossover() == 2048
    seconds[2**16] = (1, 2)
    assert speed_cuda.crossover() is None


def test_nothing_of_cuda_is_loaded_before_it_is_used():
    code = (
        "import sys, thinformer, thinformer.torch, numpy as np;"
        "thinformer.kh_compress(np.zeros((16, 1)), g=0);"
        "loaded = [m for m in sys.modules if m.startswith(('numba.cuda', 'thinformer.cuda'))];"
        "print(loaded)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert result.stdout.strip() == "[]", result.stdout


# An H100 SXM by its data sheet
FLOAT32 = 66.9e12  # operations a second, not of tensor cores
MEMORY = 3.35e12  # bytes a second
TENSOR = 989e12  # operations a second of tensor cores in half precision


def counted(shape, itemsize):
    """What docs/cuda.md counts of a shape, with g = 2: a row of its table."""
    B, T, S, H, E, D = speed.SHAPES[shape]
    schedule = plan(S, 2, None, 0.5).schedule
    needed = done = numbers = seconds = 0
    for round_ in schedule.rounds:
        size = round_.largest_bucket
        tile = run.threads_for(size, np.float32) // 2  # rows
        ends = np.arange(tiles.PANEL, size + tiles.PANEL, tiles.PANEL)
        computed = 2 * (E + D) * sum(-(-end // tile) * tile * tiles.PANEL for end in ends)
        needed += B * H * round_.buckets * (E + D) * size**2
        done += B * H * round_.buckets * computed
        numbers += B * H * 2 * round_.pairs * (E + D)
        seconds += -(-B * H * round_.buckets // H100) * computed / (FLOAT32 / H100)
    numbers += B * H * (S * (E + D) + schedule.length * D)  # measuring, before
    floor = max(needed / FLOAT32, numbers * itemsize / MEMORY)
    exact = 2 * B * H * T * S * (E + D) / (TENSOR if itemsize == 2 else FLOAT32)
    return [
        f"{needed / 1e9:.2f}", f"{done / 1e9:.2f}", f"{numbers * itemsize / 1e6:.0f}",
        f"{1e6 * floor:.0f}", f"{1e6 * seconds:.0f}", f"{1e6 * exact:.0f}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "itemsize"),
    [("t2t", 4), ("t2t-b64", 4), ("biggan", 4), ("4k", 4), ("16k", 4), ("64k-h16", 2)],
)
def test_the_count_on_paper(shape, itemsize):
    dtype = {2: "bfloat16", 4: "float32"}[itemsize]
    line = " | ".join(
        [speed.NAMES[shape], str(speed.SHAPES[shape]), dtype, *counted(shape, itemsize)]
    )
    assert f"| {line} |" in (ROOT / "docs" / "cuda.md").read_text().splitlines()


def counted_pivots(heads, L, E, n_out):
    """What docs/cuda.md counts of pivots where every proposal is accepted."""
    tile = pivots.COLUMNS * pivots.THREADS
    needed = done = numbers = 0
    for before in range(0, n_out, BLOCK):
        rows = E + before
        needed += 2 * BLOCK * L * rows
        done += 2 * BLOCK * (-(-L // tile) * tile + BLOCK) * rows
        numbers += (rows + BLOCK) * L + 2 * BLOCK * rows
    seconds = -(-heads // H100) * done / (FLOAT32 / H100)
    return [
        f"{heads * needed / 1e9:.2f}", f"{heads * done / 1e9:.2f}",
        f"{4 * heads * numbers / 1e6:.0f}", f"{1e6 * seconds:.0f}",
        f"{1e6 * 4 * heads * numbers / MEMORY:.0f}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape"),
    [("64 landmarks of 512 keys", (12, 256, 32, 64)), ("128 of 1370", (6, 512, 64, 128)),
     ("the same, 64 images", (384, 512, 64, 128)), ("1024 of 65536", (16, 4096, 64, 1024))],
)  # fmt: skip
def test_the_count_of_pivots_on_paper(name, shape):
    line = " | ".join([name, str(shape), *counted_pivots(*shape)])
    assert f"| {line} |" in (ROOT / "docs" / "cuda.md").read_text().splitlines(), line
