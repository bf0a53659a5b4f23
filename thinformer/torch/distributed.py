"""Attention over a sequence that is sharded over ranks: ranks exchange kept keys only."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.functional import pad, scaled_dot_product_attention

from thinformer.attending.landmarks import number_of_queries
from thinformer.attending.options import Correction, KeySelection
from thinformer.cpu.run import stratified
from thinformer.support import checks
from thinformer.torch.attend.arguments import Call, Wanted, checked_heads, shape
from thinformer.torch.attend.fitted import take
from thinformer.torch.attend.landmarks import attend_with_masses, fit_landmarks
from thinformer.torch.choose.calls import choose_keys, keys_kept
from thinformer.torch.choose.heads import COMPUTED_IN, Heads
from thinformer.torch.choose.seeds import seed_of_rank

if TYPE_CHECKING:  # a build of torch without distributed has none
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["sharded_attention"]

OF_QUERIES = 1  # sets the draws of sampled queries apart from those of keys


@torch.compiler.disable
def sharded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    g: int = 2,
    size: int | None = None,
    scale: float | None = None,
    correction: Correction | None = None,
    enable_gqa: bool = False,
    group: dist.ProcessGroup | DeviceMesh | None = None,
    seed: int = 0,
) -> torch.Tensor:
    r"""Approximate softmax attention over a sequence whose tokens are spread over ranks.

    Every rank of a process group calls it with its own part of the sequence, and gets the outputs
    of its own queries. A rank selects keys among its own keys, as `thinformer_attention` does. The
    ranks gather the kept keys and values. All queries attend to the kept keys of all ranks. A kept
    key of a rank with :math:`S_r` tokens, of which :math:`n_r` are kept, counts as
    :math:`S_r / n_r` keys: :math:`\log(S_r / n_r)` is added to its logit.

    The attention is not causal, and it has neither mask nor dropout.

    Parameters
    ----------
    query : (B, T_r, H, E) tensor
        T_r may be 0, and it may differ between ranks.
    key : (B, S_r, H_kv, E) tensor
        S_r may differ between ranks. All other lengths, the dtype and what requires a gradient are
        the same on all ranks.
    value : (B, S_r, H_kv, D) tensor
        float16, bfloat16, float32 or float64, all three the same, on the CPU or one CUDA device.
    g : int
        Oversampling. A rank keeps :math:`2^g \sqrt n` of its keys, n the largest power of four not
        above S_r.
    size : int, optional
        The number of keys that each rank keeps, instead of the one that g gives. With a size not
        below all S_r, the attention is exact.
    scale : float, optional
        Softmax scale, positive; 1 / sqrt(E) by default.
    correction : {None, "nystrom", "queries"}
        Each rank fits values and masses of its kept keys to the sums over its own keys, as in
        `thinformer_attention`. With "queries" these are the sums of at most 256 queries, sampled
        from all ranks, which the ranks gather first.
    enable_gqa : bool
        Let every key-value head serve H / H_kv query heads.
    group : torch.distributed.ProcessGroup or DeviceMesh, optional
        The ranks that hold the sequence; all ranks by default. A mesh must have one dimension, as
        ``mesh["sequence"]`` has.
    seed : int
        The seed and the rank's number in the group determine the rank's draws. Pass another number
        in each layer and training step for draws that are independent.

    Returns
    -------
    (B, T_r, H, D) tensor

    Raises
    ------
    RuntimeError
        There is no process group. Another rank's arguments do not fit; says which rank's, and why.
    TypeError, ValueError, NotImplementedError
        Arguments that do not fit, or that differ between ranks. All ranks raise.

    Notes
    -----
    A rank sends B H_kv n_r (E + D) numbers. Where ranks keep different numbers of keys, the parts
    are padded to the largest n_r, and the padding is dropped after the transfer. With a correction
    a part has B H_kv (n_r + 2) (E + D + 1) numbers, in float32 for half precision: it also has the
    masses and the range of the values. "queries" gathers the sampled queries too. In each call
    ranks first exchange their shapes (`torch.distributed.all_gather_object`), so that they raise
    together where these do not fit. With NCCL this needs `torch.cuda.set_device`.

    Gradients flow to the queries and to the kept keys and values of all ranks: backward computes
    the gradient of the sum of all ranks' losses. It is a collective, so all ranks must call it.
    There is no second derivative.

    Unlike in `thinformer_attention`, the outputs of sampled queries are not exact: a rank knows
    its own sums only. NaN or infinity in a key or value of a head, on any rank, makes the head's
    output NaN on all ranks. With "queries" so does NaN or infinity in a sampled query. Under
    `torch.compile` the function runs outside the graph.

    The ranks were tested with gloo on a CPU. NCCL was not tested.
    """
    group = _group(group)
    rank = _rank(group)
    options = {"g": g, "size": size, "correction": correction, "seed": seed}
    call = Call(scale, enable_gqa=enable_gqa)
    own, parts = _agree(query, key, value, call, options, group)
    return _attend(*own, parts, rank, group)


def _attend(
    heads: Heads,
    selection: KeySelection,
    seed: int,
    parts: list[_Part],
    rank: int,
    group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """Keep few keys of this rank, and attend to those of all."""
    drawn = seed_of_rank(seed, rank, heads.key.device)
    if selection.correction is None:
        few = keep(heads, selection, drawn)
        few_of_all = _gather(few, [part.kept for part in parts], group)
        return attend_to_shards(heads, few_of_all, [part.log_weight for part in parts])
    queries = heads.query
    if selection.correction == "queries":
        queries = _sample(heads, parts, rank, seed, group)
    fitted = fit(heads._replace(query=queries), selection, drawn)
    # a rank that keeps all its keys fits nothing; its backward must take part in that of `_sample`
    fitted = fitted + queries[:, :0].sum()
    fitted_of_all = _gather(fitted, [part.kept + 2 for part in parts], group)
    return attend_to_fitted(heads, fitted_of_all)


def keep(heads: Heads, selection: KeySelection, seed: torch.Tensor) -> torch.Tensor:
    """The keys and values that a shard keeps, (B, H_kv, n_out, E + D); keys NaN if not finite."""
    indices, _, finite = choose_keys(heads, selection, seed)
    key, value = (take(x.transpose(1, 2), indices) for x in (heads.key, heads.value))
    key = key.masked_fill(~finite[:, :, None, None], math.nan)
    return torch.cat([key, value], dim=-1)


def fit(heads: Heads, selection: KeySelection, seed: torch.Tensor) -> torch.Tensor:
    """A shard's landmarks with their values and masses: (B, H_kv, 2 + n_out, E + D + 1).

    The first two rows have the least and the largest values of the shard.
    """
    S, wide = heads.key.shape[1], COMPUTED_IN[heads.value.dtype]
    with torch.autocast(heads.key.device.type, enabled=False):
        if keys_kept(S, selection, padded=False) == S:  # each with its own value, and a mass of 1
            few = keep(heads, KeySelection(size=S, correction=None, min_length=0), seed).to(wide)
            rows = pad(few, (0, 1), value=1.0)
            value = heads.value.transpose(1, 2).to(wide)
            low, high = value.amin(2, keepdim=True), value.amax(2, keepdim=True)
        else:
            of_centred = fit_landmarks(heads, selection, seed)
            low, high = of_centred.low, of_centred.high
            keys = of_centred.keys + heads.key.transpose(1, 2).to(wide).mean(2, keepdim=True)
            keys = keys.masked_fill(~of_centred.finite[:, :, None, None], math.nan)
            rows = torch.cat([keys, of_centred.values, of_centred.masses[..., None]], dim=-1)
        bounds = pad(torch.cat([low, high], dim=2), (heads.key.shape[-1], 1))
    return torch.cat([bounds, rows], dim=2)


def attend_to_shards(
    heads: Heads, few: list[torch.Tensor], log_weights: list[float]
) -> torch.Tensor:
    """Attend to what `keep` returns on each rank; the keys of a rank have one weight."""
    E, dtype = heads.query.shape[-1], heads.value.dtype
    query, rows, bias = heads.query.transpose(1, 2), torch.cat(few, dim=2), None
    if len(set(log_weights)) > 1:  # half precision would round weights by a per cent
        query, rows = (x.to(COMPUTED_IN[dtype]) for x in (query, rows))
        bias = torch.cat([
            rows.new_full((x.shape[2],), weight) for x, weight in zip(few, log_weights, strict=True)
        ])[None, None, None]  # fmt: skip
    if heads.group > 1:
        rows = rows.repeat_interleave(heads.group, dim=1)
    with torch.autocast(query.device.type, enabled=False):
        output = scaled_dot_product_attention(
            query, rows[..., :E], rows[..., E:], bias, scale=heads.scale
        )
    return output.transpose(1, 2).to(dtype)


def attend_to_fitted(heads: Heads, fitted: list[torch.Tensor]) -> torch.Tensor:
    """Attend to what `fit` returns on each rank."""
    E, dtype = heads.query.shape[-1], heads.value.dtype
    with torch.autocast(heads.query.device.type, enabled=False):
        query = heads.query.transpose(1, 2).to(fitted[0].dtype)
        if heads.group > 1:
            fitted = [x.repeat_interleave(heads.group, dim=1) for x in fitted]
        rows = torch.cat([x[:, :, 2:] for x in fitted], dim=2)
        bounds = torch.stack([x[:, :, :2, E:-1] for x in fitted])
        low, high = bounds[:, :, :, :1].amin(0), bounds[:, :, :, 1:].amax(0)
        output, _ = attend_with_masses(
            query, rows[..., :E], rows[..., E:-1], rows[..., -1], None, heads.scale, Wanted()
        )
        output = torch.minimum(torch.maximum(output, low), high)
    return output.transpose(1, 2).to(dtype)


class _Part(NamedTuple):
    """What a rank says of its part; where it raises, the message alone."""

    error: str | None
    query: tuple[int, ...] = ()
    key: tuple[int, ...] = ()
    value: tuple[int, ...] = ()
    kept: int = 0
    same: tuple[tuple[str, Any], ...] = ()

    @property
    def log_weight(self) -> float:
        """The logarithm of the number of keys that a kept key stands for."""
        return math.log(self.key[1] / self.kept)


def _group(group: Any) -> dist.ProcessGroup | None:
    """The process group that is meant."""
    if not hasattr(group, "get_group"):  # the group of a rank outside it is a number
        return group
    if group.ndim != 1:
        raise ValueError(
            f"group must be a mesh of one dimension, such as mesh['sequence']; got {group.ndim} "
            f"dimensions: {group.mesh_dim_names or tuple(group.shape)}"
        )
    return group.get_group()


def _rank(group: dist.ProcessGroup | None) -> int:
    """The number of this rank in the group."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "sharded_attention needs a process group, and there is none: call "
            "torch.distributed.init_process_group on every rank"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("group must have this rank among its ranks; it has not")
    return rank


def _agree(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    call: Call,
    options: dict[str, Any],
    group: dist.ProcessGroup | None,
) -> tuple[tuple[Heads, KeySelection, int], list[_Part]]:
    """Check the arguments of all ranks: where one rank raises, no other may wait for it."""
    parts: list[Any] = [None] * dist.get_world_size(group)
    try:
        seed = checks.integer("seed", options.pop("seed"), 0)
        selection = KeySelection(**options, min_length=0)
        heads = checked_heads(query, key, value, call)
    except (TypeError, ValueError, NotImplementedError) as error:
        dist.all_gather_object(parts, _Part(f"{type(error).__name__}: {error}"), group=group)
        raise
    tensors = {"query": heads.query, "key": heads.key, "value": heads.value}
    graded = [name for name, x in tensors.items() if torch.is_grad_enabled() and x.requires_grad]
    same = {
        "the dtype": str(heads.key.dtype),
        "the type of device": heads.key.device.type,
        "scale": heads.scale,
        "correction": selection.correction,
        "the tensors that require a gradient": ", ".join(graded) or "none",
    }
    kept = keys_kept(heads.key.shape[1], selection, padded=False)
    q, k, v = map(shape, tensors.values())
    own = _Part(None, q, k, v, kept, tuple(same.items()))
    dist.all_gather_object(parts, own, group=group)
    _check(parts)
    return (heads, selection, seed), parts


def _check(parts: list[_Part]) -> None:
    """Raise where a rank has raised, or has other shapes or settings than rank 0."""
    for rank, part in enumerate(parts):
        if part.error is not None:
            raise RuntimeError(f"sharded_attention failed on rank {rank}: {part.error}")
    first = parts[0]
    for rank, part in enumerate(parts):
        for name, axes in (("query", "(B, T, H, E)"), ("key", "(B, S, H, E)"),
                           ("value", "(B, S, H, D)")):  # fmt: skip
            ours, theirs = getattr(first, name), getattr(part, name)
            if (ours[0], *ours[2:]) != (theirs[0], *theirs[2:]):
                raise ValueError(
                    f"{name} {axes} must have the same lengths but the second on all ranks; got "
                    f"shape {ours} on rank 0 and {theirs} on rank {rank}"
                )
        for (name, mine), (_, other) in zip(first.same, part.same, strict=True):
            if mine != other:
                raise ValueError(
                    f"{name} must be the same on all ranks; got {mine} on rank 0 and {other} on "
                    f"rank {rank}"
                )


def _sample(
    heads: Heads,
    parts: list[_Part],
    rank: int,
    seed: int,
    group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """Queries of all ranks, (B, m, H, E): one of each of m strata, as many as a fit needs."""
    lengths = [part.query[1] for part in parts]
    total = sum(lengths)
    wanted = number_of_queries(total * heads.group, max(part.kept for part in parts))
    m = min(total, -(-wanted // heads.group))
    shares, before = [], 0
    for length in lengths:
        shares.append((before + length) * m // max(total, 1) - before * m // max(total, 1))
        before += length
    queries = heads.query[:, :0]
    if shares[rank]:
        drawn = np.random.default_rng([seed, rank, OF_QUERIES]).random((1, shares[rank] + 1))
        positions = torch.from_numpy(stratified(lengths[rank], drawn)[0])
        queries = heads.query[:, positions.to(queries.device)]
    queries = queries.transpose(1, 2)
    return torch.cat(_gather(queries, shares, group), dim=2).transpose(1, 2)


def _gather(
    own: torch.Tensor, rows: list[int], group: dist.ProcessGroup | None
) -> list[torch.Tensor]:
    """The tensors (B, H, rows, dim) of all ranks, which differ in their numbers of rows."""
    most = max(rows)
    if own.shape[2] < most:
        own = pad(own, (0, 0, 0, most - own.shape[2]))
    gathered = _AllGather.apply(own.contiguous(), group)
    return [x[:, :, :n] for x, n in zip(gathered, rows, strict=True)]


class _AllGather(torch.autograd.Function):
    """`torch.distributed.all_gather`, whose gradient sums over the ranks."""

    @staticmethod
    def forward(
        ctx: Any, own: torch.Tensor, group: dist.ProcessGroup | None
    ) -> tuple[torch.Tensor, ...]:
        ctx.group = group
        gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(gathered, own, group=group)
        return tuple(gathered)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        parts = torch.stack(gradients)  # contiguous, which backends take for granted
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, list(parts), group=ctx.group)
        return own, None
