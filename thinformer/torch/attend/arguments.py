"""The arguments of an attention call on tensors: checked, and brought to `Heads`."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch

from thinformer.attending.arguments import softmax_scale
from thinformer.support import checks
from thinformer.torch.attend.masks import OF_SDPA, MaskNames, keys_attended
from thinformer.torch.choose.heads import COMPUTED_IN, Heads

Layout = Literal["bshd", "bhsd"]
LAYOUTS = get_args(Layout)


class Call(NamedTuple):
    """What a call of attention says beside its tensors; checked by `checked_heads`.

    The names are those of ``torch.nn.functional.scaled_dot_product_attention`` and of
    `thinformer.thinformer_attention`; `mask_names` is what the caller calls `attn_mask`.
    """

    scale: float | None = None
    key_padding_mask: torch.Tensor | None = None
    attn_mask: torch.Tensor | None = None
    is_causal: bool = False
    enable_gqa: bool = False
    layout: str = "bshd"
    mask_names: MaskNames = OF_SDPA


class Wanted(NamedTuple):
    """What is wanted of an attention, and what random numbers it may draw.

    Attributes
    ----------
    weights : bool
        The attention weights.
    error : bool
        An estimate of each head's error.
    dropout_p : float
        The probability that a weight is dropped.
    generator : torch.Generator or None
        Where a seed is drawn from; torch's default generator if None.
    seed : int64 tensor without axes, or None
        The seed of all random numbers, instead of one that is drawn.
    query_mask : (B, T) bool tensor or None
        Which queries there are, where the masks of keys do not say it.
    """

    weights: bool = False
    error: bool = False
    dropout_p: float = 0.0
    generator: torch.Generator | None = None
    seed: torch.Tensor | None = None
    query_mask: torch.Tensor | None = None


def checked_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call) -> Heads:
    """Return the heads (B, T or S, H, dim) of an attention call, and which keys take part.

    Raises
    ------
    TypeError, ValueError
        Tensors, masks or other arguments that do not fit.
    NotImplementedError
        Causal attention; a mask that differs by query or by head; another device.
    """
    if call.scale is not None:
        checks.positive("scale", call.scale)
    checks.choice("layout", call.layout, LAYOUTS)
    if checks.boolean("is_causal", call.is_causal):
        raise NotImplementedError(
            "is_causal must be False: the keys that are kept stand for all of them, whatever their "
            "order; use scaled_dot_product_attention for causal attention"
        )
    check_tensors(query, key, value, call.layout)
    query, key, value = as_autocast(query, key, value)
    if call.layout == "bhsd":
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    (B, T, H, E), (S, H_kv) = query.shape, key.shape[1:3]
    if H_kv != H and not checks.boolean("enable_gqa", call.enable_gqa):
        raise ValueError(
            f"query must have the {H_kv} heads of key unless enable_gqa is True; got {H}"
        )
    if H_kv != H and (H_kv == 0 or H % H_kv):
        raise ValueError(f"query must have a multiple of the {H_kv} heads of key; got {H}")
    valid = keys_attended(
        call.key_padding_mask, call.attn_mask, (B, H, T, S), key.device, call.mask_names
    )
    return Heads(query, key, value, valid, softmax_scale(call.scale, E))


def as_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Bring tensors of several dtypes to one where autocast is on, as it does for SDPA."""
    device, dtypes = tensors[0].device.type, {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 and torch.float64 not in dtypes and torch.is_autocast_enabled(device):
        return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)
    names = ("query", "key", "value")
    checks.one_dtype(**{n: t.dtype for n, t in zip(names, tensors, strict=True)})
    return tensors


def check_tensors(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: str = "bshd"
) -> None:
    """Check that three tensors make an attention that can be computed here; heads may differ."""
    if torch.jit.is_tracing():
        raise NotImplementedError(
            "thinformer attention cannot be traced (torch.jit.trace, torch.onnx.export with "
            "dynamo=False): the number of keys that are kept follows from the length, which a "
            "trace makes a tensor. Use torch.export.export. ONNX has no operator that chooses "
            "keys: for ONNX, export the model with exact attention"
        )
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}")
        if tensor.is_nested:
            raise NotImplementedError(
                f"{name} is a nested tensor, which thinformer_attention takes; here, pad it "
                f"(torch.nested.to_padded_tensor)"
            )
        if tensor.dtype not in COMPUTED_IN:
            raise TypeError(
                f"{name} must be float16, bfloat16, float32 or float64; got dtype {tensor.dtype}"
            )
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        got = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"query, key, value must be on one device; got {got}")
    if query.is_meta:
        raise NotImplementedError(
            "query is on device meta; thinformer takes tensors that hold numbers, on the CPU or a "
            "CUDA device. Give the model memory (model.to_empty(device='cpu')) and load its "
            "weights, and make its inputs on that device; for shapes alone, use "
            "torch.export.export or tensors of torch._subclasses.FakeTensorMode"
        )
    if query.device.type not in ("cpu", "cuda"):
        raise NotImplementedError(
            f"query is on device {query.device}; thinformer takes tensors on the CPU, where .cpu() "
            f"moves them, or on a CUDA device"
        )
    axes = {"S": "(B, S, H, {})", "T": "(B, T, H, {})"}
    if layout == "bhsd":
        axes = {"S": "(B, H, S, {})", "T": "(B, H, T, {})"}
    tokens = layout.index("s")
    if key.ndim != 4:
        raise ValueError(f"key must have shape {axes['S'].format('E')}; got shape {shape(key)}")
    if value.ndim != 4 or value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"value must have shape {axes['S'].format('D')} with the B, S and H of key "
            f"{shape(key)}; got shape {shape(value)}"
        )
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape[tokens] == 0 or tensor.shape[3] == 0:
            raise ValueError(
                f"{name} must have at least one token and column; got shape {shape(tensor)}"
            )
    if query.ndim != 4 or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"query must have shape {axes['T'].format('E')} with the B and E of key {shape(key)}; "
            f"got shape {shape(query)}"
        )


def check_generator(generator: torch.Generator | None) -> None:
    """Check that a generator is one of torch, or None."""
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator must be a torch.Generator or None; got {generator!r}")


def shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """A tensor's shape, printed as a tuple."""
    return tuple(tensor.shape)
