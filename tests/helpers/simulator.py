"""Numba's simulator of a GPU, a greenlet for each of its threads, and arrays that are on it.

The threads of a block take turns, each up to its next barrier and in a random order, so a missing
barrier shows: some thread runs ahead and finds what another has not written yet. Numba's own
simulator takes an operating system's thread for each, and locks at each call of a device function.
"""

import threading
from contextvars import copy_context
from types import SimpleNamespace

import numpy as np
from greenlet import getcurrent, greenlet
from numba import cuda
from numba.cuda.simulator import kernel as simulator
from numba.cuda.simulator import kernelapi
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from numba.cuda.simulator.kernelapi import Dim3

THREADS = 32
FLOAT32_TOLERANCE = 1e-4


class Turns(simulator.BlockManager):
    """Runs the threads of a block one at a time, each to its next barrier, in a random order."""

    rng = np.random.default_rng(0)

    def run(self, grid_point, *arguments):
        # a grid has no more than 65,535 blocks along its other axes, and problems may be more
        assert tuple(self._grid_dim[1:]) == (1, 1)
        with np.errstate(over="ignore", invalid="ignore"):  # random words; points not finite
            threads = [Thread(self._f, grid_point, i) for i in range(self._block_dim[0])]
            while threads:
                for i in self.rng.permutation(len(threads)):
                    threads[i].switch(*arguments)
                at_barrier = [thread for thread in threads if not thread.dead]
                assert len(at_barrier) in (0, len(threads)), "some threads miss a barrier"
                threads = at_barrier


class Thread(greenlet):
    """A thread of a block; kernels ask the current one for its place."""

    def __init__(self, function, block, number):
        super().__init__(function)
        self.gr_context = copy_context()  # NumPy's errstate
        self.blockIdx, self.threadIdx, self.thread_id = Dim3(*block), Dim3(number, 0, 0), number

    def syncthreads(self):
        self.parent.switch()


class Swapped:
    """While a kernel runs, modules of its functions have the simulator in place of `cuda`."""

    lock, depth, modules = threading.RLock(), 0, {}

    def __init__(self, function, simulated):
        self.module, self.simulated = function.__globals__, simulated

    def __enter__(self):
        self.lock.acquire()
        Swapped.depth += 1
        if id(self.module) not in self.modules:
            names = [name for name, value in self.module.items() if value is cuda]
            self.modules[id(self.module)] = self.module, names
            self.module.update(dict.fromkeys(names, self.simulated))

    def __exit__(self, *_):
        Swapped.depth -= 1
        if self.depth == 0:  # the kernel's own: its device functions have returned
            for module, names in self.modules.values():
                module.update(dict.fromkeys(names, cuda))
            self.modules.clear()
        self.lock.release()


def caller_and_callee(frame):
    """The last two lines of a stack, as `traceback.extract_stack` gives them."""
    return [(f.f_code.co_filename, f.f_lineno) for f in (frame.f_back, frame)]


def call(kernel, *arguments, launch=simulator.FakeCUDAKernel.__call__):
    """Launch a kernel, or call a device function, whose module need not be swapped again."""
    if kernel._device and id(kernel.fn.__globals__) in Swapped.modules:
        return kernel.fn(*arguments)
    return launch(kernel, *arguments)


def take_turns(monkeypatch):
    """Let kernels run by these classes."""
    monkeypatch.setattr(simulator, "BlockManager", Turns)
    monkeypatch.setattr(simulator, "swapped_cuda_module", Swapped)
    # kernels index arrays of NumPy themselves; a wrapper around them takes as long as the rest
    monkeypatch.setattr(simulator, "FakeWithinKernelCUDAArray", lambda array: array._ary)
    monkeypatch.setattr(kernelapi, "threading", SimpleNamespace(current_thread=getcurrent))
    # a shared array is known by the line that asks for it; reading the whole stack took a third of
    # the time
    monkeypatch.setattr(kernelapi, "traceback", SimpleNamespace(extract_stack=caller_and_callee))
    monkeypatch.setattr(simulator.FakeCUDAKernel, "__call__", call)


class OnGpu:
    """A NumPy array as another library's array in a GPU's memory."""

    def __init__(self, array, **interface):
        self.array = array
        interface = {"stream": None} | interface
        self.__cuda_array_interface__ = array.__array_interface__ | {"version": 3} | interface


def memory(pointer, span, dtype, owner):
    """The caller's own memory, of which no number but those of `span` can be read."""
    number = np.ctypeslib.as_ctypes_type(dtype)
    return FakeCUDAArray(np.ctypeslib.as_array((number * span).from_address(pointer)))


def host(kept):
    assert isinstance(kept, FakeCUDAArray)
    return kept.copy_to_host()
