"""What the attention layers of an encoder of transformers see, and what each does to its output.

For `thinformer tune`: one pass finds the layers that can be thinned, another one hands their
tensors over, and further ones thin a single layer each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from thinformer.torch.attend.masks import OF_TRANSFORMERS, keys_attended
from thinformer.torch.evaluation.metrics import mean
from thinformer.torch.transformers import attention_layers, configure, register, why_exact

PROBE = "thinformer-probe"

# take(name, query, key, value, mask, scale): what a layer's attention is called with
Take = Callable[
    [str, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, float | None], None
]


class Survey(NamedTuple):
    """The attention layers of a model on some inputs.

    calls : for each layer and input the number of keys of each attention; empty where it stays
        exact
    left : for each layer that stays exact the reason
    """

    calls: dict[str, list[list[int]]]
    left: dict[str, str]


def survey(model: nn.Module, inputs: Sequence[dict[str, torch.Tensor]], min_length: int) -> Survey:
    """Run a model and find out which of its attention layers can be thinned.

    Attention of a single query, or over fewer than `min_length` keys, is not counted.
    """
    calls: dict[str, list[list[int]]] = {name: [] for name in attention_layers(model)}
    left: dict[str, str] = {}

    def see(name: str, module: nn.Module, tensors: list[torch.Tensor], options: Any) -> None:
        reason = _why_exact(module, tensors, **options)
        if reason:
            left.setdefault(name, reason)
        elif _long_enough(tensors, min_length):
            calls[name][-1].append(tensors[1].shape[2])

    for x in inputs:
        for of_inputs in calls.values():
            of_inputs.append([])
        _run(model, [x], see)
    for name, of_inputs in calls.items():
        if name in left:
            calls[name] = [[] for _ in inputs]
        elif not any(of_inputs):
            left[name] = f"never attends over {min_length} or more keys"
    return Survey(calls, left)


def record(
    model: nn.Module,
    inputs: Sequence[dict[str, torch.Tensor]],
    layers: Collection[str],
    min_length: int,
    take: Take,
) -> None:
    """Run a model and call `take` for each attention of some layers.

    The tensors are those of the model: query (B, H, T, E), key and value (B, H_kv, S, dim). Only
    attentions that `survey` counts are taken.
    """

    def see(name: str, module: nn.Module, tensors: list[torch.Tensor], options: Any) -> None:
        if name in layers and _long_enough(tensors, min_length):
            query, key, value = tensors
            take(name, query, key, value, options["mask"], options.get("scaling"))

    _run(model, inputs, see)


def effects(
    model: nn.Module,
    inputs: Sequence[dict[str, torch.Tensor]],
    settings: Mapping[str, Mapping[str, Any]],
    tell: Callable[[str, float | None], None] = lambda stage, fraction: None,
) -> dict[str, float]:
    """Return how much each layer that `settings` thin changes the model's output by itself.

    That is the relative error of the last states, or of the logits, while all other layers are
    exact: mean over inputs. tell(stage, fraction) receives the progress.
    """
    exactly = {name: {"exact": True} for name in settings}
    thinned = [name for name, setting in settings.items() if not setting.get("exact")]
    expected = _outputs(model, inputs, "sdpa")
    register(PROBE)
    found = {}
    for i, name in enumerate(thinned):
        tell(f"{name} alone", i / len(thinned))
        model.set_attn_implementation(PROBE)  # type: ignore[operator]
        configure(model, exactly | {name: settings[name]})
        found[name] = mean([
            float((output - exact).norm() / exact.norm())
            for output, exact in zip(_outputs(model, inputs, PROBE), expected, strict=True)
        ])  # fmt: skip
    model.set_attn_implementation("sdpa")  # type: ignore[operator]
    return found


def _outputs(
    model: nn.Module, inputs: Sequence[dict[str, torch.Tensor]], implementation: str
) -> list[torch.Tensor]:
    """The first output of a model for each input: the logits, or the last states."""
    model.set_attn_implementation(implementation)  # type: ignore[operator]
    torch.manual_seed(0)
    with torch.inference_mode():
        return [model(**x)[0] for x in inputs]


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
