"""Set-up for the CUDA kernels in Numba's simulator.

    NUMBA_ENABLE_CUDASIM=1 pytest tests/cuda_simulated

The switch holds for a whole process and must be set before Numba is imported, so these tests have
a run of their own; any other run skips them and says so.
"""

import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from simulator import THREADS, memory, take_turns
from tensors import OnCuda

from thinformer.cuda import arrays, draw, launches
from thinformer.cuda.jit import SIMULATED


def pytest_collection_modifyitems(items):
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        return
    command = "NUMBA_ENABLE_CUDASIM=1 pytest tests/cuda_simulated"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=f"runs in a process of its own: {command}"))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    assert SIMULATED
    take_turns(monkeypatch)
    monkeypatch.setattr(launches, "threads_for", lambda largest_bucket, dtype: THREADS)
    monkeypatch.setattr(draw, "THREADS", THREADS)


@pytest.fixture
def arrays_on_the_simulator(monkeypatch):
    monkeypatch.setattr(arrays, "memory", memory)
    return arrays


@pytest.fixture
def torch_on_the_simulator(monkeypatch):
    """Tensors of the CPU as if they were CUDA tensors: all but torch's and Numba's own devices."""
    from thinformer.torch.choose import on_gpu as bridge

    gpu = SimpleNamespace(multi_processor_count=1)
    monkeypatch.setattr(bridge, "current", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(bridge, "_stream", lambda device: 0)
    monkeypatch.setattr(bridge, "as_array", lambda tensor: FakeCUDAArray(tensor.numpy()))
    monkeypatch.setattr(bridge, "as_tensor", lambda array: on_cuda(array.copy_to_host()))
    monkeypatch.setattr(bridge, "to_gpu", on_cuda)
    monkeypatch.setattr(bridge, "PIVOT_THREADS", THREADS)
    monkeypatch.setattr(bridge, "HERD_THREADS", THREADS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return bridge


def on_cuda(array):
    """A tensor of the CPU that says it is on a GPU, so that kernels choose from it."""
    return torch.from_numpy(array).as_subclass(OnCuda)


@pytest.fixture
def poisoned_memory():
    """Memory that torch hands out is full of NaN, so that reading what was not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
