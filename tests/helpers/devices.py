"""What tests/on_gpu runs on: a GPU; or Numba's simulator, and torch's CPU in place of CUDA tensors.

In the simulator a test proves its own code and that of the kernels, on a small problem. What only a
GPU has, such as streams and graphs, does nothing there.
"""

import contextlib

import numpy as np

from thinformer.cuda.jit import SIMULATED, cuda

FLOAT32_TOLERANCE = 1e-4  # of margins; see `thinformer.measuring.validate`


def at(on_gpu, simulated):
    """The size of a problem here."""
    return simulated if SIMULATED else on_gpu


class OnGpu:
    """A NumPy array of any layout, copied to a GPU with all that it is a view of."""

    def __init__(self, array, **interface):
        self.array, base = array, array
        while isinstance(base.base, np.ndarray):
            base = base.base
        described = array.__array_interface__
        if not SIMULATED:
            self.memory = cuda.to_device(base.ravel(order="K"))
            there = self.memory.__cuda_array_interface__["data"][0]
            moved = there + described["data"][0] - base.__array_interface__["data"][0]
            described = described | {"data": (moved, False)}
        self.__cuda_array_interface__ = described | {"version": 3, "stream": None} | interface


def host(kept):
    """An array of numba.cuda, CuPy or torch as one of NumPy."""
    for copy in ("copy_to_host", "get"):
        if hasattr(kept, copy):
            return getattr(kept, copy)()
    return kept.cpu().numpy()


def torch_device():
    return "cpu" if SIMULATED else "cuda"


def tensors_to_kernels(monkeypatch):
    """In the simulator: what operators of torch choose on the CPU is chosen by CUDA kernels."""
    import torch
    from tensors import OnCuda

    from thinformer.torch.choose import on_cpu
    from thinformer.torch.choose.seeds import bits_of_seed

    def through(choose):
        def on_gpu(heads, selection, seed, kept):
            if not _there[-1] or heads.key.is_cuda:  # or `attention` put it there
                return choose(heads, selection, seed, kept)
            heads = heads._replace(key=heads.key.as_subclass(OnCuda))
            words = torch.tensor(bits_of_seed(int(seed)))
            found = choose(heads, selection, words, kept)
            return tuple(x.as_subclass(torch.Tensor) for x in found)

        return on_gpu

    for name in ("select", "landmarks", "herd"):
        monkeypatch.setattr(on_cpu, name, through(getattr(on_cpu, name)))


_there = [True]  # whether tensors are thought of as on a GPU


@contextlib.contextmanager
def placed(there):
    """The device of tensors on the CPU, or on the GPU; in the simulator, what chooses for them."""
    _there.append(there)
    try:
        yield torch_device() if there else "cpu"
    finally:
        _there.pop()


@contextlib.contextmanager
def on_a_stream():
    """A stream of its own, which waits for the one before, and is waited for."""
    if SIMULATED:
        yield None
        return
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield stream
    torch.cuda.current_stream().wait_stream(stream)


def captured(work):
    """`work` after a call that compiled it, as (replay, what it returned in the graph)."""
    import torch

    with on_a_stream():
        for _ in range(2):
            found = work()
    if SIMULATED:
        results = list(found)

        def replay():
            for old, new in zip(results, work(), strict=True):
                old.copy_(new)

        return replay, results
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = work()
    return graph.replay, list(found)


def wait():
    """For all that the GPU was told to do."""
    if not SIMULATED:
        import torch

        torch.cuda.synchronize()
