"""Attention by name: what the models of the examples attend with.

Each is a callable of (query, key, value) in the layout (B, T, H, E), (B, S, H, E), (B, S, H, D),
that returns (output, weights): output (B, T, H, D), weights or None. Its softmax scale is
1 / sqrt(E); `scaled` brings a model's own scale to that.
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
    """Attend to `size` keys drawn without replacement, anew for each head and each call."""

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
    """Attend to `size` evenly spaced keys, the same ones in each call."""

    def __init__(self, size: int):
        if size < 1:
            raise ValueError(f"size must be at least 1; got {size}")
        self.size = size

    def __call__(self, query, key, value):
        """Attend: see the module."""
        S = key.shape[1]
        size = min(self.size, S)
        kept = (torch.arange(size, device=key.device) * S + S // 2) // size  # middles of the parts
        return exact(query, key[:, kept], value[:, kept])


class Attends(nn.Module):
    """A layer whose attention can be replaced.

    Attributes
    ----------
    attend : callable
        Any, be it a module or not, at any time.
    """

    def __setattr__(self, name, value):
        if name == "attend" and hasattr(self, name):
            delattr(self, name)  # torch does not let a function take the place of a module
        super().__setattr__(name, value)


def scaled(attend: Attention, query, key, value, scale: float):
    """Attend with a softmax scale that is not 1 / sqrt(E).

    Queries and keys share the factor equally, so that key-key products have it too, and an
    approximation that looks at those sees what it would see with that scale.
    """
    factor = math.sqrt(scale * math.sqrt(query.shape[-1]))
    return attend(factor * query, factor * key, value)


def by_name(name: str) -> Attention:
    """Make an attention from what is written on the command line.

    ``exact``, ``uniform:size=64``, ``strided:size=64``, ``thinformer`` with any argument of
    `ThinformerAttention` (``thinformer:g=2``, ``thinformer:size=64,pre_thin=stride``), or
    ``my_module.my_function``, a callable of (query, key, value).

    Raises
    ------
    ValueError
        An unknown name, or arguments that it does not take.
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
    """Say whether an attention is random, so that more than one seed tells something."""
    return not name.startswith(("exact", "strided"))


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
