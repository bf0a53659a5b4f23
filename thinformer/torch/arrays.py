"""Attention of arrays on a GPU: the keys are chosen by our kernels, all else is torch's.

Arrays that are there are read in place; those of NumPy are copied. When the functions here return,
all is written and errors about values have been raised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thinformer.attending.arguments import too_large
from thinformer.attending.options import KeySelection
from thinformer.attending.thinned import thin_keys_there
from thinformer.cuda import arrays
from thinformer.cuda.arrays import OnGpu
from thinformer.cuda.jit import SIMULATED, cuda
from thinformer.halving.draws import Draws
from thinformer.support import checks
from thinformer.support.checks import CudaUnavailableError
from thinformer.torch.attend.arguments import Wanted
from thinformer.torch.attend.few import attend_to_few, attend_to_kept
from thinformer.torch.attend.landmarks import attend_to_landmarks
from thinformer.torch.choose import on_gpu
from thinformer.torch.choose.heads import Heads
from thinformer.torch.choose.seeds import signed


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raise MemoryError where torch has not enough memory of a GPU."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"the GPU has not enough memory for this attention; take fewer sequences at once"
            f" ({error})"
        ) from error


@memory_errors()
def attend(
    query: NDArray | OnGpu,
    key: NDArray | OnGpu,
    value: NDArray | OnGpu,
    selection: KeySelection,
    *,
    scale: float,
    delta: float,
    draws: Draws | int,
    weights: bool,
) -> tuple[Any, Any, Any]:
    """Attend on a GPU as `thinformer.attending.attention.attend` does on the CPU.

    Results are arrays of NumPy where query, key and value are; of CuPy where the query is; else of
    numba.cuda.

    Raises
    ------
    ValueError
        An array is not finite, or its numbers are too large for a correction or a temperature.
    CudaUnavailableError, MemoryError
        Torch cannot use the GPU; it has too little memory.
    """
    if not (SIMULATED or torch.cuda.is_available()):
        raise CudaUnavailableError(
            f"attention on a GPU needs a torch that can use it; torch {torch.__version__} cannot"
        )
    there = [array for array in (query, key, value) if isinstance(array, OnGpu)]
    with arrays.readable(*there) if there else contextlib.nullcontext():
        heads = Heads(as_tensor(query), as_tensor(key), as_tensor(value), None, scale)
    given = {"query": heads.query, "key": heads.key, "value": heads.value}
    wanted, S, device = Wanted(weights=weights), heads.key.shape[1], heads.key.device
    halved = selection.method == "halving" or selection.plan(S, delta).schedule.size == S
    with torch.autocast(device.type, enabled=False), on_gpu.current(device):
        for name, tensor in given.items():
            if name == "query" or not halved:  # halving finds the others on its way
                checks.finite(name, bool(tensor.isfinite().all()))
        if halved:
            attended = _attend_to_thinned(heads, selection, delta, draws, wanted)
        else:
            assert isinstance(draws, int)
            seed = torch.full((), signed(draws), device=device)
            few = attend_to_few if selection.method == "herding" else attend_to_landmarks
            attended = few(heads, selection, seed, wanted)
        output, of_keys, indices = attended
        if not halved and not bool(output.isfinite().all()):
            largest = {name: float(tensor.abs().max()) for name, tensor in given.items()}
            raise too_large(selection, query.dtype, **largest)
        output = output.contiguous()
        cuda.synchronize()
    return like(query, output), like(query, of_keys), like(query, indices)


def _attend_to_thinned(
    heads: Heads, selection: KeySelection, delta: float, draws: Draws | int, wanted: Wanted
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Attend to the keys that halving keeps, or to all of them."""
    (B, _, H, _), device = heads.key.shape, heads.key.device
    key, value = (arrays.from_interface(name, getattr(heads, name)) for name in ("key", "value"))
    kept = thin_keys_there(key, value, selection, scale=heads.scale, draws=draws, delta=delta)
    cuda.synchronize()  # torch's stream may be another one
    indices = on_gpu.as_tensor(kept)
    counts = torch.full((B,), indices.shape[2], device=device)
    finite = torch.ones((B, H), dtype=torch.bool, device=device)
    return attend_to_kept(heads, indices, counts, finite, wanted)


def as_tensor(array: NDArray | OnGpu) -> torch.Tensor:
    """Return an array as a tensor on a GPU: in place if it is there.

    An array that runs backwards along some axes is copied, as torch has no negative strides.
    """
    if isinstance(array, np.ndarray):
        native = array.astype(array.dtype.newbyteorder("="), copy=False)
        return on_gpu.to_gpu(np.require(native, requirements=["C", "W"]))
    memory, _ = arrays.flat(array)
    words = on_gpu.as_tensor(memory)
    # half precision is given as int16
    flat = words.view(torch.float16) if array.dtype == np.float16 else words
    tensor = flat.as_strided(array.shape, tuple(map(abs, array.strides)))
    backwards = [axis for axis, stride in enumerate(array.strides) if stride < 0]
    return tensor.flip(backwards) if backwards else tensor


def like(array: NDArray | OnGpu, tensor: torch.Tensor | None) -> Any:
    """Return a tensor as an array where another array is: of NumPy, CuPy or numba.cuda."""
    if tensor is None:
        return None
    if isinstance(array, np.ndarray):
        floats = tensor.is_floating_point()
        return tensor.cpu().numpy().astype(array.dtype if floats else np.int64, copy=False)
    return arrays.like(array.owner, on_gpu.as_array(tensor))
