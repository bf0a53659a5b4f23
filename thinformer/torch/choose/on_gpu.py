"""The kernels on CUDA tensors: without a copy, on torch's current stream, without waiting.

Only here torch and the CUDA kernels meet. Torch allocates the memory, so its allocator knows what
is in use on which stream. So a CUDA graph can capture a call, after an equal call has compiled the
kernels and copied the schedule's tables to the GPU. Only a mask makes the CPU wait, in `by_length`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from thinformer.cuda import draw, run
from thinformer.cuda.halve import Geometry
from thinformer.cuda.jit import cuda
from thinformer.cuda.pivots import THREADS as PIVOT_THREADS
from thinformer.cuda.pivots import make_pivots
from thinformer.halving.plan import Plan, plan
from thinformer.halving.schedule import Schedule

TORCH = {
    np.float32: torch.float32, np.float64: torch.float64, np.int64: torch.int64,
    np.bool_: torch.bool,
}  # fmt: skip


def select(
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    settings: Plan,
    scale: float,
    seed: torch.Tensor,
    tokens: Tokens | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions (B, H, n_out) int64 of the keys kept, and which heads (B, H) are finite.

    The seed, an int64, and both results are on the tensors' device; the function returns before
    the results are written. With tokens, B is the number of their sequences; other tokens are
    ignored.
    """
    B, S, H, _ = key.shape
    schedule, device = settings.schedule, key.device
    stored = str(key.dtype).removeprefix("torch.")
    dtype = run.COMPUTED_IN[stored]
    if tokens is not None:
        B, S = len(tokens.sequences), tokens.length
    with _current(device):
        table, factors, scales, processors = _constants(schedule, dtype, device)
        dims = key.shape[-1] + value.shape[-1]
        launches = run.launches(schedule, B * H, dims, processors, dtype)
        made = {
            name: torch.empty(shape, dtype=TORCH[of], device=device)
            for name, (shape, of) in run.workspace(schedule, B * H, dtype, launches).items()
        }
        everything = Tokens(*_all_tokens(B, device), S) if tokens is None else tokens
        run.select_pairs(
            stored,
            (_window(key), _geometry(key)),
            (_window(value), _geometry(value)),
            run.Rounds(schedule, _array(table), _array(factors), launches),
            run.Workspace(**{name: _array(tensor) for name, tensor in made.items()}),
            run.Sequences(
                _array(everything.sequences), _array(everything.positions), S,
                settings.pre_thin == "stride", _array(seed.reshape(1)),
            ),
            scale=scale,
            scales=_array(scales),
            stream=_stream(device),
        )  # fmt: skip
    kept = made["kept"] if schedule.rounds else made["left"][:, : schedule.length]
    return kept.reshape(B, H, schedule.size), made["finite"].reshape(B, H)


class Tokens(NamedTuple):
    """The tokens that count in some sequences of a padded batch, the same number in each.

    sequences : (b,) int64
    positions : (B, any) int64; a sequence's row begins with the tokens that count; (0, 0) where all
        tokens count
    length : the number of tokens that count in each sequence
    """

    sequences: torch.Tensor
    positions: torch.Tensor
    length: int


def select_valid(
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor,
    width: int,
    min_length: int,
    *,
    g: int,
    size: int | None,
    pre_thin: str,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Select among the tokens that count, valid (B, S), as `attending.thinned.thin_valid_keys`.

    The launches depend on the sequences' lengths, so the CPU waits for these, once. Sequences of
    one length share their launches.

    Raises
    ------
    RuntimeError
        A CUDA graph is being captured, which allows no waiting.
    """
    B, _, H, _ = key.shape
    counts, parts = by_length(valid, min_length, g, size, pre_thin)
    indices = torch.zeros((B, H, width), dtype=torch.int64, device=key.device)
    finite = torch.ones((B, H), dtype=torch.bool, device=key.device)
    for of_length, tokens in parts:
        some = tokens.sequences
        few, finite[some] = select(key, value, settings=of_length, tokens=tokens, **settings)
        indices[some] = few[..., :1]
        indices[some, :, : few.shape[-1]] = few
    return indices, counts, finite


def by_length(
    valid: torch.Tensor, min_length: int, g: int, size: int | None, pre_thin: str
) -> tuple[torch.Tensor, list[tuple[Plan, Tokens]]]:
    """Return how many keys each sequence of valid (B, S) keeps, and a plan for each length.

    The number of keys is (B,) int64; a plan comes with the tokens of the sequences of its length.

    Raises
    ------
    RuntimeError
        A CUDA graph is being captured.
    """
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a mask cannot be captured in a CUDA graph: what is launched depends on the lengths of"
            " the sequences; capture attention over tokens without padding"
        )
    lengths = np.array(valid.sum(dim=1).tolist(), np.int64)
    plans = {
        length: plan(length, g, length if length < min_length else size, 0.5, pre_thin)
        for length in np.unique(lengths[lengths > 0]).tolist()
    }
    kept = [plans[n].schedule.size if n else 0 for n in lengths.tolist()]
    # copied before the launches, as a copy waits for them
    in_order = np.argsort(lengths, kind="stable")
    counts, sequences = torch.from_numpy(np.array([kept, in_order], np.int64)).to(valid.device)
    ends = np.searchsorted(lengths[in_order], list(plans), side="right").tolist()
    starts = [int((lengths == 0).sum()), *ends]
    positions = torch.argsort((~valid).byte(), dim=1, stable=True)  # tokens that count come first
    return counts, [
        (of_length, Tokens(sequences[start:end], positions, length))
        for (length, of_length), start, end in zip(plans.items(), starts, ends, strict=False)
    ]


def unit_numbers(seed: torch.Tensor, heads: int, stream: int, size: int) -> torch.Tensor:
    """Return numbers in [0, 1), (heads, size) float64, of a numbered stream of every head."""
    numbers = torch.empty((heads, size), dtype=torch.float64, device=seed.device)
    if numbers.numel():
        blocks = -(-numbers.numel() // draw.THREADS)
        with _current(seed.device):
            draw.make_units()[blocks, draw.THREADS, _stream(seed.device)](
                _array(seed.reshape(1)), stream, _array(numbers)
            )
    return numbers


def pivots(
    rows: torch.Tensor,
    dim: int,
    n_out: int,
    exponents: torch.Tensor,
    weights: torch.Tensor,
    uniforms: torch.Tensor,
    *,
    block: int,
    nugget: float,
) -> torch.Tensor:
    """Return which candidates (problems, L) are pivots, at most `n_out` of them.

    The arguments are those of `thinformer.cuda.pivots.make_pivots`, and contiguous: rows
    (problems, any, L) begin with the `dim` rows of the keys.
    """
    problems, _, candidates = rows.shape
    taken = torch.zeros((problems, candidates), dtype=torch.bool, device=rows.device)
    if problems:
        dtype = np.float32 if rows.dtype == torch.float32 else np.float64
        kernel = make_pivots(dtype, block, PIVOT_THREADS)
        diagonal = torch.empty_like(exponents)
        with _current(rows.device):
            rows, exponents, weights, uniforms, diagonal, written = map(
                _array, (rows.flatten(1), exponents, weights, uniforms, diagonal, taken)
            )
            kernel[problems, PIVOT_THREADS, _stream(taken.device)](
                rows, dim, n_out, exponents, weights, uniforms, dtype(nugget), diagonal, written
            )
    return taken


@functools.cache
def _all_tokens(sequences: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `Tokens` without their length, for no padding; kept, as CUDA graphs refer to them."""
    every = torch.from_numpy(np.arange(sequences)).to(device)
    return every, every.new_empty((0, 0))


@functools.cache
def _constants(
    schedule: Schedule, dtype: type, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Return a schedule's tables, the scales, and the processors of a device.

    The arrays have few bytes and are kept for good, as CUDA graphs refer to them.
    """
    arrays: tuple[NDArray, ...] = (*run.round_tables(schedule, dtype), np.zeros((1, 1), dtype))
    table, factors, scales = (torch.from_numpy(array).to(device) for array in arrays)
    return table, factors, scales, torch.cuda.get_device_properties(device).multi_processor_count


def _geometry(tensor: torch.Tensor) -> Geometry:
    """Return where the heads of a tensor (B, S, H, dim) are."""
    batch, row, head, column = tensor.stride()
    return Geometry(0, tensor.shape[2], batch, head, row, column, tensor.shape[3])


def _window(tensor: torch.Tensor) -> Any:
    """Return a tensor's memory from the first number to the last; half precision as int16."""
    tensor = tensor.detach().resolve_neg()
    span = 1 + sum(
        (n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    flat = tensor.as_strided((span if tensor.numel() else 0,), (1,))
    return _array(flat.view(torch.int16) if tensor.dtype.itemsize == 2 else flat)


def _array(tensor: torch.Tensor) -> Any:
    """Return a tensor's memory as an array that kernels take, without waiting."""
    return cuda.as_cuda_array(tensor, sync=False)


@contextlib.contextmanager
def _current(device: torch.device) -> Iterator[None]:
    """Make a device the current one, of torch and of numba.cuda."""
    with torch.cuda.device(device), cuda.gpus[device.index]:
        yield


def _stream(device: torch.device) -> Any:
    """Return torch's current stream, as numba.cuda takes it."""
    handle = torch.cuda.current_stream(device).cuda_stream
    return cuda.external_stream(handle) if handle else 0
