"""The walk over pairs of gradients: kernel halving with a linear kernel, a batch at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from thinformer.support import checks

Gradients = torch.Tensor | Mapping[str, torch.Tensor] | Sequence[torch.Tensor]

PAIRS = 8  # whose differences are in memory together
COMPUTED_IN = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


class Walk:
    """The sum of signed differences of pairs; O(p) memory between batches.

    Attributes
    ----------
    psi : (p,) float32 or float64 tensor
        The walk.
    variance : float
        2 sigma^2, twice its sub-Gaussian variance.
    half : (p,) tensor or None
        The first gradient of a pair whose second is in the next batch.
    """

    def __init__(self, psi: torch.Tensor, variance: float, half: torch.Tensor | None) -> None:
        self.psi, self.variance, self.half = psi, variance, half

    @torch.no_grad()
    def take(self, rows: list[torch.Tensor], uniforms: NDArray, logs: NDArray) -> NDArray[np.bool_]:
        """Walk over the gradients of a batch.

        Parameters
        ----------
        rows : list of (b, numbers) tensors
            Of `rows_of`, checked by `check`.
        uniforms, logs : (at least pairs,) arrays
            The draw in [-1, 1) and log(2 / delta_i) of each pair that becomes complete.

        Returns
        -------
        (pairs,) bool array
            Whether the difference, second minus first, was added.
        """
        self.psi = self.psi.to(rows[0].device)
        dtype, b = self.psi.dtype, len(rows[0])
        signs = []
        first = 0 if self.half is None else 1
        last = b - (b - first) % 2
        with torch.autocast(self.psi.device.type, enabled=False):
            if self.half is not None:
                difference = _joined(rows, 0, dtype) - self.half.to(self.psi.device)
                signs += self._signs(difference[None], uniforms, logs)
                self.half = None
            for start in range(first, last, 2 * PAIRS):
                end = min(start + 2 * PAIRS, last)
                differences = _differences([x[start:end].to(dtype) for x in rows])
                signs += self._signs(differences, uniforms[len(signs) :], logs[len(signs) :])
        if last < b:
            self.half = _joined(rows, last, dtype)
        return np.array(signs, dtype=int) > 0

    def _signs(self, differences: torch.Tensor, uniforms: NDArray, logs: NDArray) -> list[int]:
        """The signs of a block of pairs from their inner products, which are read once."""
        products = torch.column_stack([differences @ differences.T, differences @ self.psi])
        gram, alpha = np.split(products.cpu().double().numpy(), [-1], axis=1)
        signs = []
        for i, row in enumerate(gram):
            threshold, self.variance = _threshold(float(row[i]), self.variance, float(logs[i]))
            signs.append(1 if alpha[i, 0] <= uniforms[i] * threshold else -1)
            alpha[:, 0] += signs[i] * row
        self.psi.addmv_(differences.T, torch.tensor(signs).to(differences))
        return signs


def _threshold(squared: float, variance: float, log: float) -> tuple[float, float]:
    """The swapping threshold of a pair, and 2 sigma^2 after it."""
    if squared == 0:  # equal gradients
        return 0.0, variance
    rho = math.sqrt(variance * log / squared)
    if rho <= 1:
        return squared, 2 * squared
    return rho * squared, variance + 2 * squared * max(0.0, log + 0.5 - rho) / log


def rows_of(gradients: Gradients) -> list[torch.Tensor]:
    """The gradients as tensors (b, numbers) of one dtype on one device."""
    if isinstance(gradients, Mapping):
        tensors = [gradients[name] for name in sorted(gradients)]
    elif isinstance(gradients, torch.Tensor):
        tensors = [gradients]
    else:
        tensors = list(gradients) if isinstance(gradients, (tuple, list)) else []
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise TypeError(
            "gradients must be a tensor, or a dict, tuple or list of tensors; got "
            f"{type(gradients).__name__} of {[type(tensor).__name__ for tensor in tensors]}"
        )
    kinds = {(tensor.dtype, tensor.device) for tensor in tensors}
    if len(kinds) > 1 or tensors[0].dtype not in COMPUTED_IN:
        got = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise TypeError(f"gradients must be of one float dtype on one device; got {got}")
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if len(lengths) > 1 or not min(lengths):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(f"gradients must have one row for each example, (b, ...); got {shapes}")
    return [tensor.detach().reshape(len(tensor), -1) for tensor in tensors]


def length(rows: list[torch.Tensor]) -> int:
    """How many numbers the gradient of an example has, p."""
    return sum(x.shape[1] for x in rows)


def check(rows: list[torch.Tensor], before: Walk | None) -> None:
    """Check the numbers of gradients, and that they continue a walk."""
    dtype = COMPUTED_IN[rows[0].dtype]
    if before is not None:
        if before.psi.dtype != dtype:
            raise TypeError(
                f"gradients must be {before.psi.dtype}, as before in this epoch; got {dtype}"
            )
        if len(before.psi) != length(rows):
            raise ValueError(
                f"gradients must have {len(before.psi)} numbers for each example, as before in "
                f"this epoch; got {length(rows)}"
            )
    # one pass of reading, where isfinite would write as many bytes
    norms = torch.stack([torch.linalg.vector_norm(x, dim=1, dtype=dtype) for x in rows])
    largest = float(norms.amax()) * math.sqrt(len(rows))
    limit = torch.finfo(dtype).max ** 0.5 * 2.0**-20  # for products with a walk of 2^38 pairs
    if not largest <= limit:
        checks.finite("gradients", all(bool(x.isfinite().all()) for x in rows))
        raise ValueError(
            f"gradients must have norms below {limit:.2g} in {dtype}; got up to {largest:.2g}"
        )


def _joined(rows: list[torch.Tensor], place: int, dtype: torch.dtype) -> torch.Tensor:
    """A copy of the gradient of one example, (p,)."""
    return torch.cat([x[place].to(dtype) for x in rows])


def _differences(rows: list[torch.Tensor]) -> torch.Tensor:
    """The second minus the first of each pair, (pairs, p), without a copy of the gradients."""
    widths = [x.shape[1] for x in rows]
    differences = rows[0].new_empty(len(rows[0]) // 2, sum(widths))
    for x, part in zip(rows, differences.split(widths, dim=1), strict=True):
        torch.sub(x[1::2], x[::2], out=part)
    return differences
