"""Which device a call runs on."""

from __future__ import annotations

from typing import Any

from thinformer import _checks

DEVICES = ("auto", "cpu", "cuda")


def on_gpu(array: Any) -> bool:
    """Whether an array is in a GPU's memory."""
    return hasattr(array, "__cuda_array_interface__")


def choose(device: str, **arrays: Any) -> str:
    """Return "cpu" or "cuda" for a call on some arrays, of which none may be on a GPU.

    Raises
    ------
    ValueError
        The device is not one of those there are.
    TypeError
        An argument is on a GPU.
    CudaUnavailableError
        It is "cuda", and there is none; a RuntimeError that says why.
    """
    device = _checks.choice("device", device, DEVICES)
    for name, array in arrays.items():
        if on_gpu(array):
            raise TypeError(
                f"{name} is on a GPU: this takes arrays in the CPU's memory; ThinformerAttention"
                " takes torch tensors on either"
            )
    if device != "cuda":
        return "cpu"
    from thinformer.cuda._numba import check_available  # imports numba.cuda

    check_available('device="cuda"')
    return "cuda"
