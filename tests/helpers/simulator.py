"""Numba's simulator of a GPU, a Python thread for each of its threads, and arrays that are on it.

Threads take turns, each up to its next barrier and in a random order, so a missing barrier shows:
some thread runs ahead and finds what another has not written yet.
"""

import threading

import numpy as np
from numba.cuda.simulator import kernel as simulator
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

THREADS = 32
FLOAT32_TOLERANCE = 1e-4


class Turns(simulator.BlockManager):
    """Runs the threads of a block one at a time, each to its next barrier, in a random order."""

    rng = np.random.default_rng(0)

    def run(self, grid_point, *arguments):
        # a grid has no more than 65,535 blocks along its other axes, and problems may be more
        assert tuple(self._grid_dim[1:]) == (1, 1)
        threads = [
            Thread(lambda: self._f(*arguments), self, grid_point, point, False)
            for point in np.ndindex(*self._block_dim)
        ]
        while threads:
            for i in self.rng.permutation(len(threads)):
                threads[i].take_turn()
            at_barrier = [thread for thread in threads if thread.is_alive()]
            for thread in threads:
                if thread.exception:
                    raise thread.exception[0].with_traceback(thread.exception[1])
            assert len(at_barrier) in (0, len(threads)), "some threads miss a barrier"
            threads = at_barrier


class Thread(simulator.BlockThread):
    """A thread that waits for its turn."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.turn, self.over = threading.Semaphore(0), threading.Semaphore(0)
        self.begun = False

    def take_turn(self):
        if self.begun:
            self.turn.release()
        else:
            self.begun = True
            self.start()
        self.over.acquire()
        if self.finished:
            self.join()

    finished = False

    def run(self):
        with np.errstate(over="ignore", invalid="ignore"):  # random words; points not finite
            super().run()
        self.finished = True
        self.over.release()

    def syncthreads(self):
        self.over.release()
        self.turn.acquire()


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
