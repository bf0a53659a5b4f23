"""Exact attention for the heads whose estimated error is too large.

`torch.compile` and `torch.export` cannot look at how many heads they are, so the fallback of a
graph is an operator, `torch.ops.thinformer.fall_back`, with a gradient of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from thinformer.torch.attend.estimate import exact_attention
from thinformer.torch.choose.heads import COMPUTED_IN, Heads
from thinformer.torch.choose.seeds import under_vmap

TENSORS = (
    "Tensor query, Tensor key, Tensor value, Tensor? valid, float scale, Tensor above, Tensor seed,"
    " float dropout_p"
)


def fall_back(
    heads: Heads, output: torch.Tensor, above: torch.Tensor, seed: torch.Tensor, dropout_p: float
) -> torch.Tensor:
    """Return the output (B, T, H, D) with exact attention where `above`, (B, H) bool.

    Exact attention is computed for these heads of these sequences only, so the CPU reads how many
    they are.
    """
    if torch.compiler.is_compiling():
        query, key, value, valid, scale = heads
        exact = torch.ops.thinformer.fall_back(
            query, key, value, valid, scale, above, seed, dropout_p
        )
        return torch.where(above[:, None, :, None], exact, output)
    if under_vmap():
        raise NotImplementedError(
            "fallback must be None under torch.vmap: how many heads are above error_threshold "
            "would have to be read; give the members as sequences of one batch"
        )
    sequences, chosen = above.nonzero(as_tuple=True)
    if len(sequences) == 0:
        return output
    exact = _of_heads(heads, sequences, chosen, dropout_p).to(output.dtype)
    return output.transpose(1, 2).index_put((sequences, chosen), exact).transpose(1, 2)


def _of_heads(
    heads: Heads, sequences: torch.Tensor, chosen: torch.Tensor, dropout_p: float
) -> torch.Tensor:
    """Exact attention of some heads of some sequences, (n, T, D)."""
    query, key, value, valid, scale = heads
    shared = chosen // heads.group
    return exact_attention(
        query[sequences, None, :, chosen], key[sequences, None, :, shared],
        value[sequences, None, :, shared], None if valid is None else valid[sequences], scale,
        dropout_p,
    )[:, 0]  # fmt: skip


@torch.library.custom_op(
    "thinformer::fall_back",
    mutates_args=(),
    schema=f"({TENSORS}) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),  # the CPU reads how many heads there are
)
def _operator(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    scale: float,
    above: torch.Tensor,
    seed: torch.Tensor,
    dropout_p: float,
) -> torch.Tensor:
    """Exact attention (B, T, H, D) of the heads above, and 0 for the others."""
    heads = Heads(query, key, value, valid, scale)
    output = _empty(query, value).zero_()
    if dropout_p == 0:
        sequences, chosen = above.nonzero(as_tuple=True)
        if len(sequences):
            exact = _of_heads(heads, sequences, chosen, 0.0).to(output.dtype)
            output.transpose(1, 2).index_put_((sequences, chosen), exact)
        return output
    for b, h in above.nonzero().tolist():
        head = _Head(heads, b, h)
        dropped = head.weights * head.kept(seed, dropout_p)
        output[b, :, h] = (dropped @ head.value).to(output.dtype)
    return output


@_operator.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> torch.Tensor:
    return _empty(query, value)


def _empty(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return value.new_empty((*query.shape[:3], value.shape[3]))


@torch.library.custom_op(
    "thinformer::fall_back_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, {TENSORS}) -> (Tensor, Tensor, Tensor)",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _backward_operator(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    scale: float,
    above: torch.Tensor,
    seed: torch.Tensor,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, of the heads above; their weights are made again."""
    heads = Heads(query, key, value, valid, scale)
    wide = COMPUTED_IN[value.dtype]
    of_query, of_key, of_value = (torch.zeros_like(x, dtype=wide) for x in (query, key, value))
    for b, h in above.nonzero().tolist():
        head = _Head(heads, b, h)
        of_output = gradient[b, :, h].to(wide)
        kept = head.kept(seed, dropout_p)
        of_weights = (of_output @ head.value.T) * kept
        of_logits = head.weights * (of_weights - (of_weights * head.weights).sum(-1, keepdim=True))
        of_query[b, :, h] = scale * of_logits @ head.key
        of_key[b, :, head.shared] += scale * of_logits.T @ head.query
        of_value[b, :, head.shared] += (head.weights * kept).T @ of_output
    return of_query.to(query.dtype), of_key.to(key.dtype), of_value.to(value.dtype)


@_backward_operator.register_fake
def _(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class _Head:
    """One head of one sequence: query (T, E), key (S, E), value (S, D) and weights (T, S)."""

    def __init__(self, heads: Heads, b: int, h: int) -> None:
        wide = COMPUTED_IN[heads.value.dtype]
        self.place, self.shared = b * heads.query.shape[2] + h, h // heads.group
        self.query = heads.query[b, :, h].to(wide)
        self.key, self.value = (x[b, :, self.shared].to(wide) for x in (heads.key, heads.value))
        logits = heads.scale * self.query @ self.key.T
        if heads.valid is not None:
            there = heads.valid[b, :, None]
            self.key, self.value = (x.masked_fill(~there, 0) for x in (self.key, self.value))
            logits = logits.masked_fill(~there.T, -torch.inf)
        self.weights = torch.softmax(logits, -1).masked_fill(logits == -torch.inf, 0)

    def kept(self, seed: torch.Tensor, dropout_p: float) -> torch.Tensor | float:
        """What dropout multiplies the weights by, the same whenever it is asked for."""
        if dropout_p == 0:
            return 1.0
        generator = torch.Generator(self.weights.device).manual_seed(int(seed) ^ self.place)
        uniform = torch.rand(self.weights.shape, generator=generator, device=self.weights.device)
        return (uniform >= dropout_p).to(self.weights.dtype) / (1 - dropout_p)


def _keep_inputs(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    query, key, value, valid, ctx.scale, above, seed, ctx.dropout_p = inputs
    ctx.save_for_backward(query, key, value, valid, above, seed)


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple:
    query, key, value, valid, above, seed = ctx.saved_tensors
    gradients = torch.ops.thinformer.fall_back_backward(
        gradient, query, key, value, valid, ctx.scale, above, seed, ctx.dropout_p
    )
    return *gradients, None, None, None, None, None


_operator.register_autograd(_backward, setup_context=_keep_inputs)
