"""The selection of keys as operators of torch: `torch.ops.thinformer.select` and three others.

An operator returns positions, whose number follows from shapes alone. So `torch.compile` and
`torch.export` need no graph break. All that follows (gather, attention, gradients) is plain torch.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from thinformer.attending.arguments import softmax_scale
from thinformer.attending.landmarks import LEAST_QUERIES, QUERIES
from thinformer.attending.options import Correction, KeySelection
from thinformer.halving.plan import PreThin
from thinformer.torch.choose import on_cpu
from thinformer.torch.choose.heads import Heads

LIBRARY = torch.library.Library("thinformer", "FRAGMENT")


def operator(schema: str) -> Callable[[Callable], Any]:
    """Register a function as an operator, which takes no gradient and changes no argument.

    `torch.library.custom_op` imports torch's compiler of graphs at the first call, which then takes
    2.0 s in place of 0.6 s.
    """

    def register(function: Callable) -> Any:
        name = function.__name__
        uncompiled = functools.cache(lambda: torch.compiler.disable(function))

        def call(*arguments: Any) -> Any:
            imported = "torch._dynamo" in sys.modules  # else nothing is compiled here
            return (uncompiled() if imported else function)(*arguments)

        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, call, "CompositeExplicitAutograd")
        return getattr(torch.ops.thinformer, name).default

    return register


@operator(
    "(Tensor key, Tensor value, Tensor? valid, Tensor seed, int g, int? size, float? scale, "
    "str pre_thin, int min_length) -> (Tensor, Tensor, Tensor)"
)
def select(
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    seed: torch.Tensor,
    g: int,
    size: int | None,
    scale: float | None,
    pre_thin: PreThin,
    min_length: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose keys: positions (B, H, n_out), how many of them count (B,), finite heads (B, H).

    key (B, S, H, E), value (B, S, H, D); valid (B, S) bool, True for a token, or None; seed, an
    int64 without axes. A sequence that keeps fewer than n_out keys has their positions first, and
    then repeats one of them (position 0 where it has no token). A sequence of fewer than
    `min_length` tokens keeps all tokens.
    """
    kept = keys_kept(key.shape[1], g, size, pre_thin, min_length, valid is not None)
    no_query = key[:, :0]  # halving does not look at queries
    heads = Heads(no_query, key, value, valid, softmax_scale(scale, key.shape[-1]))
    selection = KeySelection(g, size, pre_thin, correction=None, min_length=min_length)
    return on_cpu.select(heads, selection, seed, kept)


@torch.library.register_fake("thinformer::select", lib=LIBRARY)
def _(
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    seed: torch.Tensor,
    g: int,
    size: int | None,
    scale: float | None,
    pre_thin: PreThin,
    min_length: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _chosen(key, keys_kept(key.shape[1], g, size, pre_thin, min_length, valid is not None))


@torch.library.register_vmap("thinformer::select", lib=LIBRARY)
def _(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
    return _one_by_one(torch.ops.thinformer.select, info, in_dims, arguments)


@operator(
    "(Tensor query, Tensor key, Tensor value, Tensor? valid, Tensor seed, int g, int? size, "
    "float scale, float? temperature, int min_length) -> (Tensor, Tensor, Tensor)"
)
def herd(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    seed: torch.Tensor,
    g: int,
    size: int | None,
    scale: float,
    temperature: float | None,
    min_length: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Choose keys as `select` does, but by `thinformer.attending.herding`.

    query (B, T, H, E), where a group of heads shares a head of the keys; temperature, given by the
    formula for each head if None.
    """
    kept = keys_kept(key.shape[1], g, size, "even", min_length, valid is not None)
    heads = Heads(query, key, value, valid, scale)
    selection = KeySelection(
        g, size, correction=None, temperature="auto" if temperature is None else temperature,
        min_length=min_length,
    )  # fmt: skip
    return on_cpu.herd(heads, selection, seed, kept)


@torch.library.register_fake("thinformer::herd", lib=LIBRARY)
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    seed: torch.Tensor,
    g: int,
    size: int | None,
    scale: float,
    temperature: float | None,
    min_length: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _chosen(key, keys_kept(key.shape[1], g, size, "even", min_length, valid is not None))


@torch.library.register_vmap("thinformer::herd", lib=LIBRARY)
def _(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
    return _one_by_one(torch.ops.thinformer.herd, info, in_dims, arguments)


def _chosen(key: torch.Tensor, kept: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `select` returns, without values."""
    B, _, H, _ = key.shape
    return (
        key.new_empty((B, H, kept), dtype=torch.int64),
        key.new_empty((B,), dtype=torch.int64),
        key.new_empty((B, H), dtype=torch.bool),
    )


def _one_by_one(operator: Any, info: Any, in_dims: tuple, arguments: tuple) -> tuple:
    """`torch.vmap` of an operator: one call a member, as members differ in seed and mask."""
    calls = [
        operator(
            *(
                argument if dim is None else argument.select(dim, i)
                for argument, dim in zip(arguments, in_dims, strict=True)
            )
        )
        for i in range(info.batch_size)
    ]
    stacked = tuple(map(torch.stack, zip(*calls, strict=True)))
    return stacked, (0,) * len(stacked)


@operator(
    "(Tensor query, Tensor key, Tensor value, Tensor? valid, Tensor seed, int g, int? size, "
    "float scale, str correction, float? temperature, int min_length) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
def landmarks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    seed: torch.Tensor,
    g: int,
    size: int | None,
    scale: float,
    correction: Correction,
    temperature: float | None,
    min_length: int,
) -> tuple[torch.Tensor, ...]:
    """Choose landmarks; see `thinformer.attending.landmarks.choose_valid_landmarks`.

    Positions (B, H_kv, n_out), how many of them count (B,), finite heads (B, H_kv), sampled queries
    (B, H_kv, m) among those of a head's group, and temperatures (B, H_kv).
    """
    kept = keys_kept(key.shape[1], g, size, "even", min_length, valid is not None)
    heads = Heads(query, key, value, valid, scale)
    selection = KeySelection(
        g, size, correction=correction, temperature=temperature, min_length=min_length
    )
    return on_cpu.landmarks(heads, selection, seed, kept)


@torch.library.register_fake("thinformer::landmarks", lib=LIBRARY)
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    seed: torch.Tensor,
    g: int,
    size: int | None,
    scale: float,
    correction: Correction,
    temperature: float | None,
    min_length: int,
) -> tuple[torch.Tensor, ...]:
    (B, T, H_all, _), (S, H) = query.shape, key.shape[1:3]
    kept = keys_kept(S, g, size, "even", min_length, valid is not None)
    queries = correction == "queries" and T > 0
    few = torch.sym_min(QUERIES, torch.sym_max(LEAST_QUERIES, kept // 2))
    m = torch.sym_min(T * (H_all // H), few) if queries else 0
    return (
        key.new_empty((B, H, kept), dtype=torch.int64),
        key.new_empty((B,), dtype=torch.int64),
        key.new_empty((B, H), dtype=torch.bool),
        key.new_empty((B, H, m), dtype=torch.int64),
        key.new_empty((B, H), dtype=torch.float64),
    )


@torch.library.register_vmap("thinformer::landmarks", lib=LIBRARY)
def _(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
    return _one_by_one(torch.ops.thinformer.landmarks, info, in_dims, arguments)


@operator(
    "(Tensor query, Tensor key, Tensor value, Tensor? valid, Tensor seed, int g, int? size, "
    "float scale, str correction, float? temperature, int min_length, bool with_weights) "
    "-> (Tensor, Tensor, Tensor)"
)
def attend_to_landmarks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    seed: torch.Tensor,
    g: int,
    size: int | None,
    scale: float,
    correction: Correction,
    temperature: float | None,
    min_length: int,
    with_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend to landmarks on the CPU, without a gradient.

    Output (B, T, H, D), weights (B, H, T, n_out) or an empty tensor, positions (B, H_kv, n_out).
    """
    kept = keys_kept(key.shape[1], g, size, "even", min_length, valid is not None)
    heads = Heads(query, key, value, valid, scale)
    selection = KeySelection(
        g, size, correction=correction, temperature=temperature, min_length=min_length
    )
    return on_cpu.attend_to_landmarks(heads, selection, seed, kept, with_weights)


@torch.library.register_fake("thinformer::attend_to_landmarks", lib=LIBRARY)
def _(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    seed: torch.Tensor,
    g: int,
    size: int | None,
    scale: float,
    correction: Correction,
    temperature: float | None,
    min_length: int,
    with_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    (B, T, H, _), (S, H_kv) = query.shape, key.shape[1:3]
    kept = keys_kept(S, g, size, "even", min_length, valid is not None)
    return (
        value.new_empty((B, T, H, value.shape[3])),
        value.new_empty((B, H, T, kept) if with_weights else (0,)),
        key.new_empty((B, H_kv, kept), dtype=torch.int64),
    )


@torch.library.register_vmap("thinformer::attend_to_landmarks", lib=LIBRARY)
def _(info: Any, in_dims: tuple, *arguments: Any) -> tuple:
    return _one_by_one(torch.ops.thinformer.attend_to_landmarks, info, in_dims, arguments)


def keys_kept(
    S: int, g: int, size: int | None, pre_thin: str, min_length: int, padded: bool
) -> int:
    """Return how many keys are kept of S tokens; with padding, the most that a sequence keeps.

    The number is that of `thinformer.halving.plan`, in operations that take a symbolic S without
    a guard on its value: one compiled graph serves every S on its side of `min_length`.
    """
    if min_length > S:
        return S
    # 2^p, where 4^p <= S < 4^(p + 1)
    root = 1 + sum(2**p * torch.sym_min(1, S // 4 ** (p + 1)) for p in range(20))
    length = root * root if pre_thin == "stride" else S
    if size is None:
        size = root * 2**g if g < 32 else length
    kept = torch.sym_min(size, length)
    return torch.sym_max(kept, min_length - 1) if padded else kept
