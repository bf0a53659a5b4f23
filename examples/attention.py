"""The attentions that the models of the examples can use, by name.

An attention is a callable of query (B, T, H, E), key (B, S, H, E) and value (B, S, H, D). It
returns output (B, T, H, D) and weights, or None for the weights. Its softmax scale is 1 / sqrt(E);
`scaled` is for models that have another scale.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from thinformer import ThinformerAttention

Attention = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]
]


def exact(query, key, value):
    """Attend to all keys."""
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(*heads_first).transpose(1, 2), None


class Uniform:
    """Attend to `size` keys, drawn without replacement for each head in each call."""

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"size must be at least 1; got {size}")
        self.size = size

    def __call__(self, query, key, value):
        """Attend: see the module."""
        B, S, H, _ = key.shape
        kept = torch.rand(B, S, H, device=key.device).topk(min(self.size, S), dim=1).indices
        return exact(query, *(x.take_along_dim(kept[..., None], dim=1) for x in (key, value)))


class Strided:
    """Attend to `size` evenly spaced keys, the same keys in each call."""

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"size must be at least 1; got {size}")
        self.size = size

    def __call__(self, query, key, value):
        """Attend: see the module."""
        S = key.shape[1]
        size = min(self.size, S)
        # the middle keys of `size` equal parts
        kept = (torch.arange(size, device=key.device) * S + S // 2) // size
        return exact(query, key[:, kept], value[:, kept])


class Attends(nn.Module):
    """A layer whose attention can be replaced.

    Attributes
    ----------
    attend : callable
        The attention. It may be set at any time, to a module or to a function.
    """

    def __setattr__(self, name, value):
        if name == "attend" and hasattr(self, name):
            delattr(self, name)  # torch does not allow a function in the place of a module
        super().__setattr__(name, value)


def scaled(attend: Attention, query, key, value, scale: float):
    """Attend with the softmax scale `scale`, which may differ from 1 / sqrt(E).

    Queries and keys are multiplied by the same factor. So the inner products of two keys have the
    scale too, which matters to an approximation that chooses keys by them.
    """
    factor = math.sqrt(scale * math.sqrt(query.shape[-1]))
    return attend(factor * query, factor * key, value)


def by_name(name: str) -> Attention:
    """Make an attention from its name on the command line.

    ``exact``, ``uniform:size=64``, ``strided:size=64``, ``thinformer`` with any argument of
    `ThinformerAttention` (``thinformer:g=2``, ``thinformer:size=64,pre_thin=stride``), or
    ``my_module.my_function``, a callable of (query, key, value).

    Raises
    ------
    ValueError
        The name is unknown, or the attention does not take an argument.
    """
    kind, _, rest = name.partition(":")
    try:
        pairs = (pair.split("=") for pair in rest.split(",") if pair)
        options = {key: _value(value) for key, value in pairs}
        if kind == "exact" and not options:
            return exact
        if kind == "uniform":
            return Uniform(**options)
        if kind == "strided":
            return Strided(**options)
        if kind == "thinformer":
            return ThinformerAttention(use_torch_spda=True, **options)
        if "." in kind and not options:
            module, _, attribute = kind.rpartition(".")
            return getattr(importlib.import_module(module), attribute)
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"attention {name!r}: {error}") from error
    raise ValueError(
        f"attention {name!r} is unknown; it is exact, uniform:size=.., strided:size=.., "
        "thinformer:g=.., or the name of a function in a module"
    )


def draws(name: str) -> bool:
    """Whether an attention is random, so that several seeds give different results."""
    return not name.startswith(("exact", "strided"))


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
