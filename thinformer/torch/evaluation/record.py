"""Queries, keys and values of the attention layers of an encoder of transformers, as arrays.

For `thinformer tune`: one pass finds the layers that can be thinned, another one hands their arrays
over.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from thinformer.attending.arguments import softmax_scale
from thinformer.torch.attend.masks import OF_TRANSFORMERS, keys_attended
from thinformer.torch.transformers import attention_layers, register, why_exact

PROBE = "thinformer-probe"


class Survey(NamedTuple):
    """The attention layers of a model on some inputs.

    calls : for each layer the number of keys of each attention; empty where it stays exact
    left : for each layer that stays exact the reason
    """

    calls: dict[str, list[int]]
    left: dict[str, str]


def survey(model: nn.Module, inputs: Sequence[dict[str, torch.Tensor]], min_length: int) -> Survey:
    """Run a model and find out which of its attention layers can be thinned.

    Attention of a single query, or over fewer than `min_length` keys, is not counted.
    """
    calls: dict[str, list[int]] = {name: [] for name in attention_layers(model)}
    left: dict[str, str] = {}

    def see(name: str, module: nn.Module, tensors: list[torch.Tensor], options: Any) -> None:
        reason = _why_exact(module, tensors, **options)
        if reason:
            left.setdefault(name, reason)
        elif _long_enough(tensors, min_length):
            calls[name].append(tensors[1].shape[2])

    _run(model, inputs, see)
    for name, keys in calls.items():
        if name in left:
            keys.clear()
        elif not keys:
            left[name] = f"never attends over {min_length} or more keys"
    return Survey(calls, left)


def record(
    model: nn.Module,
    inputs: Sequence[dict[str, torch.Tensor]],
    layers: Collection[str],
    min_length: int,
    take: Callable[[str, NDArray, NDArray, NDArray], None],
) -> None:
    """Run a model and call take(name, query, key, value) for each attention of some layers.

    The arrays are as `as_arrays` returns them. Only attentions that `survey` counts are taken.
    """

    def see(name: str, module: nn.Module, tensors: list[torch.Tensor], options: Any) -> None:
        if name in layers and _long_enough(tensors, min_length):
            query, key, value = tensors
            take(name, *as_arrays(query, key, value, options.get("scaling")))

    _run(model, inputs, see)


def as_arrays(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> tuple[NDArray, NDArray, NDArray]:
    """Return float32 arrays of which `thinformer.attention` computes the same with its own scale.

    query (B, H, T, E), key and value (B, H_kv, S, dim) -> query (B, T H / H_kv, H_kv, E), key and
    value (B, S, H_kv, dim). Query heads that share a key head become queries of that head. A factor
    that the scale lacks is divided between queries and keys, so that the keys also compare with
    each other as in the model.
    """
    (B, H, T, E), H_kv = query.shape, key.shape[1]
    query = query.reshape(B, H_kv, H // H_kv * T, E)
    factor = (softmax_scale(scale, E) / softmax_scale(None, E)) ** 0.5
    query, key = (x if factor == 1 else x * factor for x in (query, key))
    query, key, value = (x.transpose(1, 2).float().contiguous() for x in (query, key, value))
    return query.numpy(), key.numpy(), value.numpy()


def through(attend: Callable, model: nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """Run a model with a function in place of its attention."""
    register(PROBE)  # for its masks
    AttentionInterface.register(PROBE, attend)
    model.set_attn_implementation(PROBE)  # type: ignore[operator]
    with torch.inference_mode():
        model(**inputs)


def _run(model: nn.Module, inputs: Sequence[dict[str, torch.Tensor]], see: Callable) -> None:
    """Run a model with exact attention, and call `see` at each attention."""
    names = {module: name for name, module in attention_layers(model).items()}

    def attend(
        module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
        attention_mask: torch.Tensor | None, **options: Any,
    ) -> tuple[torch.Tensor, None]:  # fmt: skip
        if module in names:
            see(names[module], module, [query, key, value], {"mask": attention_mask, **options})
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)

    for x in inputs:
        through(attend, model, x)
    model.set_attn_implementation("sdpa")  # type: ignore[operator]


def _why_exact(
    module: nn.Module,
    tensors: list[torch.Tensor],
    *,
    mask: torch.Tensor | None,
    is_causal: bool | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> str | None:
    """The reason why a call cannot be thinned; None if it can."""
    query, key, _ = tensors
    reason = why_exact(module, query.shape[2], mask, is_causal, options)
    if reason:
        return reason
    try:
        shape = (*query.shape[:3], key.shape[2])
        valid = keys_attended(None, mask, shape, key.device, OF_TRANSFORMERS)
    except NotImplementedError as error:
        return str(error)
    if valid is not None and not valid.all():
        return "it masks tokens, of an input that is by itself"
    return None


def _long_enough(tensors: list[torch.Tensor], min_length: int) -> bool:
    return tensors[0].shape[2] > 1 and tensors[1].shape[2] >= min_length
