"""Activations as one byte a number, and a second one where they are far from 0.

The step between codes is 1/32 of the standard deviation of a channel of a head, so the error is at
most about 1 % of that deviation, also in a channel with outliers. (A step of the largest magnitude
divided by 127 is as large a file, and 3.4 % in one channel of the audio encoder.)
"""

import numpy as np
from numpy.typing import NDArray

STEPS = 32  # in a standard deviation


def coded(arrays: dict[str, NDArray]) -> dict[str, NDArray]:
    """Return the arrays of a file: float16 as codes, and beside each its steps, NAME_step."""
    stored: dict[str, NDArray] = {}
    for name, array in arrays.items():
        if array.dtype == np.float16:
            stored[name], stored[f"{name}_step"] = encode(array)
        else:
            stored[name] = array
    return stored


def encode(array: NDArray) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the codes (2, 1, tokens, heads, head dim) and the steps (heads, head dim).

    An entry is step * (codes[0] + 256 * codes[1]), as `thinformer.data` decodes it.
    """
    step = (array.astype(np.float64).std(axis=(0, 1)) / STEPS).astype(np.float32)
    rounded = np.rint(array / step.astype(np.float64)).astype(np.int16)
    low = rounded.astype(np.int8)  # wraps around; the high byte is 0 nearly everywhere
    return np.stack([low, ((rounded - low) >> 8).astype(np.int8)]), step
