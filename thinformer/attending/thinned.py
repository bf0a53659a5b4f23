"""Keys of equal weight by KH-Compress: *Low-Rank Thinning* (arXiv 2502.12063), Algorithm 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer import bodies
from thinformer.attending.arguments import softmax_scale
from thinformer.attending.options import KeySelection
from thinformer.attending.padding import by_length
from thinformer.cpu.run import all_rows, draw_numbers, largest_entries, starting_points
from thinformer.halving.draws import Draws
from thinformer.halving.problem import CONSTANT, SCALE, Factor, Products, head_factor
from thinformer.kernels import exponential


def thin_keys(
    key: NDArray,
    value: NDArray,
    selection: KeySelection,
    *,
    scale: float | None,
    draws: Draws | int,
    delta: float = 0.5,
    device: str = "cpu",
    tokens: tuple[NDArray, NDArray] | None = None,
) -> tuple[NDArray, NDArray]:
    """Return the positions (B, H, n_out) of the keys kept, and which heads (B, H) are finite.

    Parameters
    ----------
    key : (B, S, H, E) array
    value : (B, S, H, D) array
    draws : Draws or int
        Or the seed that they are made from.
    tokens : tuple of (b,) and (b, L) int64 arrays, optional
        The numbers of some sequences, and the positions of their tokens. All other sequences and
        tokens are left out: the result is that of the chosen tokens alone.

    Notes
    -----
    A head with NaN or infinity keeps arbitrary valid positions.
    """
    B, S, H, E = key.shape
    if device == "cuda":
        key, value = np.ascontiguousarray(key), np.ascontiguousarray(value)
    keys = head_factor(key, exponential(bandwidth=softmax_scale(scale, E) ** -0.5))
    values, rows = head_factor(value), all_rows(S)
    if tokens is not None:
        problems = (tokens[0][:, None] * H + np.arange(H)).ravel()
        keys, values = _some(keys, problems), _some(values, problems)
        rows = np.repeat(tokens[1], H, axis=0)
        B, S = tokens[1].shape
    halvings = selection.plan(S, delta)
    if isinstance(draws, int):
        draws = draw_numbers(halvings.schedule, draws, max(H, 1))
    index = starting_points(S, halvings, draws, (B, H))
    if tokens is not None:
        index = np.take_along_axis(rows, index, axis=1)
    everything = [(keys, rows), (values, rows)]
    if index.shape[1] < S:
        everything.append((values, index))
    largest_key, largest_value, *of_index = largest_entries(*everything)
    (vmax,) = of_index or (largest_value,)
    finite = np.isfinite(largest_key) & np.isfinite(largest_value)
    problem = Products(keys, value_kernel(values, vmax))
    kept = bodies.run_schedule(device, problem, halvings.schedule, draws, index, (B, H))
    return kept.reshape(B, H, halvings.schedule.size), finite.reshape(B, H)


def thin_valid_keys(
    key: NDArray,
    value: NDArray,
    valid: NDArray,
    width: int,
    selection: KeySelection,
    *,
    scale: float | None,
    draws: Draws | int,
) -> tuple[NDArray, NDArray, NDArray]:
    """Thin the valid tokens, (B, S) bool: each sequence keeps the keys that it keeps alone.

    Returns
    -------
    positions : (B, H, width) int64
        A sequence has its own positions first, as many as its length gives, and then repeats one.
    counts : (B,) int64
        How many positions are a sequence's own.
    finite : (B, H) bool
        Which heads are finite.
    """
    B, _, H, _ = key.shape
    indices, finite = np.zeros((B, H, width), np.int64), np.ones((B, H), bool)
    kept = np.zeros(B, np.int64)
    for sequences, positions in by_length(valid):
        few, finite[sequences] = thin_keys(
            key, value, selection, scale=scale, draws=draws, tokens=(sequences, positions)
        )
        kept[sequences] = few.shape[-1]
        indices[sequences] = few[..., :1]
        indices[sequences, :, : few.shape[-1]] = few
    return indices, kept, finite


def thin_keys_there(
    key: Any, value: Any, selection: KeySelection, *, scale: float, draws: Draws | int, delta: float
) -> Any:
    """Return the positions (B, H, n_out) kept of arrays on a GPU, `OnGpu`s, as an array there.

    Raises
    ------
    ValueError
        A key or value is not finite.
    """
    from thinformer.cuda import arrays  # imports numba.cuda

    B, S, H, _ = key.shape
    halvings = selection.plan(S, delta)
    source = bodies.source_on_gpu(S, halvings, draws, (B, H))
    strided = selection.pre_thin == "stride"
    return arrays.compress_pairs(key, value, scale, halvings.schedule, strided, source)


def _some(factor: Factor, problems: NDArray) -> Factor:
    """A factor of some of the problems."""
    return factor._replace(first=factor.first[problems], parameters=factor.parameters[problems])


def value_kernel(values: Factor, vmax: NDArray) -> Factor:
    """The factor <v, v'> + vmax^2 of the attention kernel exp(<k, k'>) (<v, v'> + vmax^2).

    A power of two, to which halving and herding are blind, brings vmax (problems,) below 1, and so
    its square in range.
    """
    limit = np.finfo(vmax.dtype).maxexp - 2
    power = np.ldexp(vmax.dtype.type(1), -np.clip(np.frexp(vmax)[1], -limit, limit))
    values.parameters[:, SCALE] = power
    values.parameters[:, CONSTANT] = (vmax * power) ** 2
    return values
