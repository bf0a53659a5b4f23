"""The kernels on CUDA tensors: without a copy, on torch's current stream, without waiting.

Only here torch and the CUDA kernels meet. Torch allocates the memory, so its allocator knows what
is in use on which stream. So a CUDA graph can capture a call, after an equal call has compiled the
kernels and copied the schedule's tables to the GPU. The lengths of padded sequences stay on the
GPU too (`select_valid`). Only corrections and herding make the CPU wait for them, in
`padding_on_gpu`.
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
from thinformer.cuda.herd import THREADS as HERD_THREADS
from thinformer.cuda.herd import make_herd
from thinformer.cuda.jit import cuda
from thinformer.cuda.launches import plans_by_length
from thinformer.cuda.pivots import THREADS as PIVOT_THREADS
from thinformer.cuda.pivots import make_pivots
from thinformer.halving.plan import Plan
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
    largest: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions (B, H, n_out) int64 of the keys kept, and which heads (B, H) are finite.

    The seed, an int64, and both results are on the tensors' device; the function returns before
    the results are written. With tokens, other tokens are ignored, and the results of sequences
    that are left alone hold anything. With `largest` (B, H), the largest magnitudes of all values,
    these are the greedy halvings before herding: their uniforms are 0, so each pair is decided for
    the shorter walk.
    """
    B, S, H, _ = key.shape
    schedule, device = settings.schedule, key.device
    stored = str(key.dtype).removeprefix("torch.")
    dtype = run.COMPUTED_IN[stored]
    with current(device):
        table, factors, scales, processors = _constants(schedule, dtype, device)
        dims = key.shape[-1] + value.shape[-1]
        launches = run.launches(schedule, B * H, dims, processors, dtype)
        made = {
            name: torch.empty(shape, dtype=TORCH[of], device=device)
            for name, (shape, of) in run.workspace(schedule, B * H, dtype, launches).items()
        }
        rounds = run.Rounds(schedule, as_array(table), as_array(factors), launches)
        work = run.Workspace(**{name: as_array(tensor) for name, tensor in made.items()})
        numbers, positions, counts = map(as_array, tokens or _all_tokens(B, device))
        strided = settings.pre_thin == "stride"
        sequences = run.Sequences(numbers, positions, counts, S, strided, as_array(seed.reshape(1)))
        stream = _stream(device)
        if largest is not None:
            run.draw_all(rounds, work, sequences, dtype, H, H, stream)
            made["draws"][:, : schedule.length - schedule.size].zero_()
            made["largest"].copy_(largest.flatten())  # `measure` can only raise it
            sequences = sequences._replace(seed=None)
        run.select_pairs(
            stored, (_window(key), _geometry(key)), (_window(value), _geometry(value)), rounds,
            work, sequences, scale=scale, scales=as_array(scales), stream=stream,
        )  # fmt: skip
    kept = made["kept"] if schedule.rounds else made["left"][:, : schedule.length]
    return kept.reshape(B, H, schedule.size), made["finite"].reshape(B, H)


class Tokens(NamedTuple):
    """The tokens that count in the sequences of a padded batch.

    sequences : (B,) int64, the number of each sequence, or -1 to leave it alone
    positions : (B, any) int64; a sequence's row begins with the tokens that count; (0, 0) where all
        tokens count
    counts : (B,) int64, how many tokens count in each sequence; (0,) where all tokens count
    """

    sequences: torch.Tensor
    positions: torch.Tensor
    counts: torch.Tensor


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

    The lengths of the sequences stay on the GPU. All plans that a length up to S can have are
    launched for all sequences; a block whose sequence has another plan ends at once.
    """
    (B, S, H, _), device = key.shape, key.device
    lengths = valid.sum(dim=1)
    positions = torch.argsort((~valid).byte(), dim=1, stable=True)  # tokens that count come first
    plans, number, kept = _plans_by_length(_power(S), min_length, g, size, pre_thin, device)
    of_sequence, counts = number[lengths], kept[lengths]
    each, places = torch.arange(B, device=device), torch.arange(width, device=device)
    # all tokens are kept where no plan is run; a sequence without tokens gets position 0
    places = torch.where(places < counts[:, None], places, 0)
    indices = positions.gather(1, places)[:, None].expand(B, H, width)
    unplanned = torch.where((of_sequence < 0) & (lengths > 0), each, -1)
    finite = _finite(key, value, Tokens(unplanned, positions, lengths))
    finite = finite | (unplanned < 0)[:, None]
    for i, (least, of_some) in enumerate(plans):
        if least > S:
            continue
        here = of_sequence == i
        tokens = Tokens(torch.where(here, each, -1), positions, lengths)
        few, good = select(key, value, settings=of_some, tokens=tokens, **settings)
        few = torch.cat([few, few[..., :1].expand(B, H, width - few.shape[-1])], dim=-1)
        indices = torch.where(here[:, None, None], few, indices)
        finite = torch.where(here[:, None], good, finite)
    return indices.contiguous(), counts, finite


def _finite(key: torch.Tensor, value: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Return which heads (B, H) of the sequences that are not left alone are finite."""
    (B, S, H, _), device = key.shape, key.device
    stored = str(key.dtype).removeprefix("torch.")
    dtype = run.COMPUTED_IN[stored]
    finite = torch.ones(B * H, dtype=torch.bool, device=device)
    largest = torch.zeros(B * H, dtype=TORCH[dtype], device=device)
    nothing = torch.empty((B * H, 0), dtype=torch.int64, device=device)
    if B * H:
        with current(device):
            parts = -(-S // draw.MEASURED_ROWS)
            measure = draw.make_measure(run.LOAD[stored], dtype, draw.THREADS)
            measure[B * H * parts, draw.THREADS, _stream(device)](
                _window(key), _geometry(key), _window(value), _geometry(value),
                *map(as_array, tokens), S, 0, parts, *map(as_array, (nothing, largest, finite)),
            )  # fmt: skip
    return finite.reshape(B, H)


@functools.cache
def _plans_by_length(
    longest: int, min_length: int, g: int, size: int | None, pre_thin: str, device: torch.device
) -> tuple[list[tuple[int, Plan]], torch.Tensor, torch.Tensor]:
    """Return `thinformer.cuda.launches.plans_by_length`, with its arrays on a device.

    They have few bytes and are kept for good, as CUDA graphs refer to them; `longest` is a power of
    two, so there are few of them.
    """
    plans, *arrays = plans_by_length(longest, g, size, min_length, pre_thin)
    number, kept = (torch.from_numpy(array).to(device) for array in arrays)
    return plans, number, kept


def _power(length: int) -> int:
    """Return the smallest power of two that is not below a length."""
    return 1 << max(length - 1, 0).bit_length()


def herd(gram: torch.Tensor, n_out: int) -> torch.Tensor:
    """Return places (problems, n_out) int64 of the points that herding keeps, in no order.

    gram (problems, n, n) is contiguous. The function does not wait.
    """
    problems, n, _ = gram.shape
    kept = torch.zeros((problems, n_out), dtype=torch.int64, device=gram.device)
    if problems:
        mean = gram.mean(dim=1)
        taken = torch.zeros((problems, n), dtype=torch.bool, device=gram.device)
        dtype = np.float32 if gram.dtype == torch.float32 else np.float64
        made = make_herd(dtype, HERD_THREADS)
        with current(gram.device):
            arrays = map(as_array, (gram, mean, torch.empty_like(mean), taken, kept))
            made[problems, HERD_THREADS, _stream(gram.device)](*arrays)
    return kept


def unit_numbers(seed: torch.Tensor, heads: int, stream: int, size: int) -> torch.Tensor:
    """Return numbers in [0, 1), (heads, size) float64, of a numbered stream of every head."""
    numbers = torch.empty((heads, size), dtype=torch.float64, device=seed.device)
    if numbers.numel():
        blocks = -(-numbers.numel() // draw.THREADS)
        with current(seed.device):
            draw.make_units()[blocks, draw.THREADS, _stream(seed.device)](
                as_array(seed.reshape(1)), stream, as_array(numbers)
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
        with current(rows.device):
            rows, exponents, weights, uniforms, diagonal, written = map(
                as_array, (rows.flatten(1), exponents, weights, uniforms, diagonal, taken)
            )
            kernel[problems, PIVOT_THREADS, _stream(taken.device)](
                rows, dim, n_out, exponents, weights, uniforms, dtype(nugget), diagonal, written
            )
    return taken


@functools.cache
def _all_tokens(sequences: int, device: torch.device) -> Tokens:
    """Return the tokens of sequences without padding; kept, as CUDA graphs refer to them."""
    every = torch.from_numpy(np.arange(sequences)).to(device)
    return Tokens(every, every.new_empty((0, 0)), every.new_empty(0))


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
    return as_array(flat.view(torch.int16) if tensor.dtype.itemsize == 2 else flat)


def as_array(tensor: torch.Tensor) -> Any:
    """Return a tensor's memory as an array that kernels take, without waiting."""
    return cuda.as_cuda_array(tensor, sync=False)


def as_tensor(array: Any) -> torch.Tensor:
    """Return an array of numba.cuda, which is on the current GPU, as a tensor in place."""
    # another device, such as torch's default device, would make it a copy
    return torch.as_tensor(array, device=torch.device("cuda", cuda.get_current_device().id))


def to_gpu(array: NDArray) -> torch.Tensor:
    """Return a copy of a contiguous, writeable array of NumPy on torch's current GPU."""
    return torch.from_numpy(array).cuda()


@contextlib.contextmanager
def current(device: torch.device) -> Iterator[None]:
    """Make a device the current one, of torch and of numba.cuda."""
    with torch.cuda.device(device), cuda.gpus[device.index]:
        yield


def _stream(device: torch.device) -> Any:
    """Return torch's current stream, as numba.cuda takes it."""
    handle = torch.cuda.current_stream(device).cuda_stream
    return cuda.external_stream(handle) if handle else 0
