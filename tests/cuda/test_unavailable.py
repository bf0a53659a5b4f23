"""Where there is no GPU: errors that say what to do, and nothing of CUDA loaded."""

import re
import subprocess
import sys
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
from thinformer.attending.options import KeySelection
from thinformer.commands.main import main
from thinformer.cuda import jit, run
from thinformer.measuring import speed_cuda
from thinformer.support.checks import CudaUnavailableError
from thinformer.torch.choose import on_cpu
from thinformer.torch.choose.heads import Heads

POINTS = np.random.default_rng(0).standard_normal((64, 2))
KEYS = np.random.default_rng(0).standard_normal((1, 64, 1, 2))


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
        (
            {"implementation": "Built-in"},
            r"pip install 'numba-cuda\[cu13\]', or",
        ),
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


def test_numba_cuda_for_another_numba(monkeypatch, capsys):
    """Importing numba.cuda failed; the message repeats why, and the command says it too."""
    monkeypatch.setattr(jit, "cuda", None)
    monkeypatch.setattr(jit, "IMPORT_ERROR", "no attribute 'NPDatetime'")
    message = r"numba-cuda [\d.]+ cannot be imported beside Numba [\d.]+ \(no attribute"
    with pytest.raises(CudaUnavailableError, match=message):
        kh_compress(POINTS, device="cuda")
    monkeypatch.setattr(jit, "SIMULATED", True)
    with pytest.raises(CudaUnavailableError, match=message):
        kh_compress(POINTS, device="cuda")
    assert main(["info"]) == 0
    assert "take numba-cuda 0.30.4 and later" in " ".join(capsys.readouterr().out.split())


def test_few_blocks_are_no_warning():
    """Numba would warn at every launch of a last round.

    In a process of its own: Numba reads its settings again where a variable of the environment has
    changed, as tests of the cache change one.
    """
    code = (
        "import thinformer.cuda.jit; from numba.cuda import dispatcher;"
        "assert dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
    key = SimpleNamespace(is_cuda=True, device="cuda:1")
    with pytest.raises(CudaUnavailableError, match="a tensor on cuda:1 needs a GPU: CUDA driver"):
        on_cpu.select(Heads(None, key, None, None, 1.0), KeySelection(), None, kept=1)
    key.shape, selection = (1, 4, 1, 2), KeySelection(size=2, correction="queries")
    with pytest.raises(CudaUnavailableError, match="a tensor on cuda:1 needs a GPU: CUDA driver"):
        on_cpu.landmarks(Heads(key, key, None, None, 1.0), selection, None, kept=2)


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


@pytest.mark.slow
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
