"""Which modules of a model attend, by which function, and what they are called in errors."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any, NoReturn

import torch
from torch import nn

SDPA = "scaled_dot_product_attention"
REMEDY = "Leave such layers exact with convert(model, unsupported='exact')"  # of a converted layer
BESIDE = ("output", "structure")  # LxmertAttentionOutput and FunnelAttentionStructure do not attend


def names_in(function: Any) -> set[str]:
    """The names that a function mentions."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return set() if code is None else set(code.co_names)


@functools.cache
def names_in_class(cls: Any) -> frozenset[str]:
    """The names that the methods of a class mention, without those of torch's own classes."""
    methods = (
        method
        for each in cls.__mro__
        if not each.__module__.startswith("torch.") and each is not object
        for method in vars(each).values()
        if inspect.isfunction(method)
    )
    return frozenset().union(*map(names_in, methods))


def through_interface(module: nn.Module) -> bool:
    """Whether a module attends through the AttentionInterface of transformers."""
    return "ALL_ATTENTION_FUNCTIONS" in names_in(type(module).forward)


def attends(module: nn.Module) -> bool:
    """Whether a module seems to attend: by its class's name, or by what its methods mention."""
    cls: Any = type(module)
    if isinstance(module, nn.MultiheadAttention) or through_interface(module):
        return True
    if cls.__module__.startswith("torch."):
        return False
    names = names_in_class(cls)
    title = cls.__name__.lower()
    by_name = ("attention" in title or "attn" in title) and not title.endswith(BESIDE)
    return by_name or SDPA in names or {"einsum", "softmax"} <= names


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that attend, by name; of a module and one in it that both seem to, the inner."""
    named = {name: module for name, module in model.named_modules() if attends(module)}
    return {
        name: module
        for name, module in named.items()
        if through_interface(module)
        or not any(other.startswith(f"{name}.") or not name for other in named if other != name)
    }


def path_of(module: nn.Module) -> str:
    """A module's class, and its path in the model whose forward pass is running.

    A module does not know its path. The outermost module on the stack of calls that has it among
    its own is taken for the model; this is for errors, where time does not matter.
    """
    title = type(module).__name__.removeprefix("Thinned")  # the class before `convert`
    if torch.compiler.is_compiling():
        return title
    path, frame = "", sys._getframe()
    while frame is not None:
        outer = frame.f_locals.get("self")
        if isinstance(outer, nn.Module) and outer is not module:
            path = next((n for n, each in outer.named_modules() if each is module), path)
        frame = frame.f_back  # type: ignore[assignment]
    return f"{path} ({title})" if path else title


def no_script(module: nn.Module) -> NoReturn:
    """Raise: the ``__prepare_scriptable__`` of a module, which torch.jit.script calls first."""
    raise NotImplementedError(
        f"{path_of(module)}: torch.jit.script cannot compile thinformer attention. "
        f"Use torch.export.export or torch.compile"
    )
