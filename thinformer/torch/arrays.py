"""Attention of arrays on a GPU: the keys are chosen by our kernels, all else is torch's.

Arrays that are there are read in place; those of NumPy are copied. When the functions here return,
all is written and errors about values have been raised.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from thinformer.attending.arguments import too_large
from thinformer.attending.options import KeySelection
from thinformer.attending.thinned import thin_keys_there
from thinformer.cuda import arrays
from thinformer.cuda.arrays import OnGpu
from thinformer.cuda.jit import cuda
from thinformer.halving.draws import Draws
from thinformer.support import checks
from thinformer.torch.attend.arguments import Wanted
from thinformer.torch.attend.few import attend_to_few, attend_to_kept
from thinformer.torch.attend.landmarks import attend_to_landmarks
from thinformer.torch.choose import on_gpu
from thinformer.torch.choose.heads import Heads


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
        An array is not finite, or its numbers are too large for the method.
    """
    there = [array for array in (query, key, value) if isinstance(array, OnGpu)]
    with arrays.readable(*there) if there else contextlib.nullcontext():
        heads = Heads(as_tensor(query), as_tensor(key), as_tensor(value), None, scale)
    given = {"query": heads.query, "key": heads.key, "value": heads.value}
    wanted, S = Wanted(weights=weights), heads.key.shape[1]
    n_out = selection.plan(S, delta).schedule.size
    halved = selection.method == "halving" or n_out == S
    with torch.no_grad(), on_gpu.current(heads.key.device):
        for name, tensor in given.items():
            if name == "query" or not halved:  # halving finds the others on its way
                checks.finite(name, bool(tensor.isfinite().all()))
        if halved:
            attended = _attend_to_thinned(heads, selection, delta, draws, wanted)
        else:
            assert isinstance(draws, int)
            bits = int(np.uint64(draws).astype(np.int64))
            seed = torch.full((), bits, device=heads.key.device)
            few = attend_to_few if selection.method == "herding" else attend_to_landmarks
            attended = few(heads, selection, seed, wanted)
        output, of_keys, indices = attended
        if not halved and not bool(output.isfinite().all()):
            largest = {name: float(tensor.abs().max()) for name, tensor in given.items()}
            raise too_large(f"method {selection.method}", query.dtype.name, **largest)
        results = [like(query, x) for x in (output.contiguous(), of_keys, indices)]
        if not isinstance(query, np.ndarray):
            cuda.synchronize()
    return results[0], results[1], results[2]


def _attend_to_thinned(
    heads: Heads, selection: KeySelection, delta: float, draws: Draws | int, wanted: Wanted
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Attend to the keys that halving keeps, or to all of them."""
    (B, _, H, _), device = heads.key.shape, heads.key.device
    key, value = (arrays.from_interface(name, getattr(heads, name)) for name in ("key", "value"))
    kept = thin_keys_there(key, value, selection, scale=heads.scale, draws=draws, delta=delta)
    indices = on_gpu.as_tensor(kept)
    counts = torch.full((B,), indices.shape[2], device=device)
    finite = torch.ones((B, H), dtype=torch.bool, device=device)
    return attend_to_kept(heads, indices, counts, finite, wanted)


def as_tensor(array: NDArray | OnGpu) -> torch.Tensor:
    """Return an array as a tensor on a GPU: in place if it is there.

    An array that runs backwards along some axes is copied, as torch has no negative strides.
    """
    if isinstance(array, np.ndarray):
        native = array.astype(array.dtype.newbyteorder("="), copy=False).ravel()
        words = native.view(np.int16) if native.dtype == np.float16 else native
        return _floats(on_gpu.as_tensor(cuda.to_device(words)), array).reshape(array.shape)
    memory, _ = arrays.flat(array)
    flat = _floats(on_gpu.as_tensor(memory), array)
    tensor = flat.as_strided(array.shape, tuple(map(abs, array.strides)))
    backwards = [axis for axis, stride in enumerate(array.strides) if stride < 0]
    return tensor.flip(backwards) if backwards else tensor


def like(array: NDArray | OnGpu, tensor: torch.Tensor | None) -> Any:
    """Return a tensor as an array where another array is: of NumPy, CuPy or numba.cuda."""
    if tensor is None:
        return None
    if isinstance(array, np.ndarray):
        return tensor.cpu().numpy()
    return arrays.like(array.owner, on_gpu.as_array(tensor))


def _floats(words: torch.Tensor, array: NDArray | OnGpu) -> torch.Tensor:
    """Return the numbers of an array; half precision is given as int16."""
    return words.view(torch.float16) if array.dtype == np.float16 else words
