"""`convert` and `revert`: swap the attention of an existing model, in place.

A module is swapped by giving it another class, so its weights, hooks and state_dict keys stay.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from thinformer.attending.options import (
    Correction,
    Fallback,
    LayerOptions,
    Unsupported,
    given_options,
)
from thinformer.attending.settings import of_layers
from thinformer.torch.attend.arguments import Call, Wanted
from thinformer.torch.attend.layer import Estimated, checked_attention
from thinformer.torch.choose.seeds import seed_of_layer
from thinformer.torch.layers import (
    REMEDY,
    SDPA,
    attends,
    attention_modules,
    names_in,
    names_in_class,
    no_script,
    path_of,
)
from thinformer.torch.multihead import ThinnedMultiheadAttention
from thinformer.torch.report import note_exact, note_thinned

# a processor of diffusers can be thinned if its code names one of these functions
INTERCEPTED = {SDPA, "dispatch_attention_fn"}
HOLDS = f"modules in it attend, and are thinned; its own calls of {SDPA} stay exact"
# attributes by which modules of timm say that they add a bias to the scores
BIASES = ("relative_position_bias_table", "use_rel_pos", "rel_pos", "rel_pos_bias")


class Conversion(NamedTuple):
    """The result of `convert`: which attention modules were swapped, and which were not.

    Attributes
    ----------
    swapped : list of str
        The names of the modules that are thinned now.
    left : dict of str to str
        The names of the other attention modules, and why each was left.
    """

    swapped: list[str]
    left: dict[str, str]


def convert(
    model: nn.Module,
    settings: str | os.PathLike | Mapping[str, Mapping[str, Any]] | None = None,
    *,
    g: int = 2,
    size: int | None = None,
    min_length: int | Literal["auto"] = "auto",
    correction: Correction | None = "queries",
    temperature: float | Literal["auto"] | None = None,
    fallback: Fallback | None = "exact",
    error_threshold: float | None = None,
    seed: int | None = 0,
    unsupported: Unsupported = "raise",
    options: LayerOptions | None = None,
) -> Conversion:
    """Thin the attention of a model, in place.

    Swaps the modules of timm, diffusers and your own that call ``scaled_dot_product_attention``,
    and ``torch.nn.MultiheadAttention``, also in ``nn.TransformerEncoderLayer`` and in torchvision.
    Weights and state_dict keys stay as they are; `revert` undoes it. (Models of transformers take
    `thinformer.torch.transformers.register` instead, TabPFN `thinformer.torch.tabpfn.register`.)

    Parameters
    ----------
    model : torch.nn.Module
    settings : path or dict, optional
        Settings of each layer by its name: a file that `thinformer tune` wrote, or what
        `load_settings` returns. It must name every attention module that can be swapped and no
        other; the other arguments are left out. A layer that is exact there is not swapped.
    g, size : int
        As in `thinformer.thinformer_attention`.
    min_length : int or "auto"
        Attention over fewer keys stays exact, and so does a sequence with fewer tokens in a batch.
        Attention of a single query is exact too. "auto" thins where it was measured to be faster:
        on a CPU, from 2,048 tokens on.
    correction : {"queries", "nystrom", None}
    temperature : float or "auto", optional
        As in `thinformer.thinformer_attention`; ``correction=None`` is the published method.
    fallback : {"exact", None}
    error_threshold : float, optional
        Attention of a head whose estimated error is above it, 0.4 by default, is computed exactly.
    seed : int, optional
        In evaluation, the same input gives the same output: each layer draws from this seed and its
        own weights. In training, or with None, a call draws from torch's default generator.
    unsupported : {"raise", "exact"}
        What the forward pass does with attention that cannot be thinned; see Notes.
    options : LayerOptions, optional
        All of these settings as one object; they are left out then.

    Returns
    -------
    Conversion
        ``swapped``, the names of the modules that are thinned now, and ``left``, the names of the
        other attention modules with the reason.

    Raises
    ------
    ValueError
        A setting is out of its range, or the settings name other modules than the model has.

    Notes
    -----
    In the forward pass, a layer that is not exact raises NotImplementedError, and names itself, for
    a causal mask, a mask that differs by query, a bias, and tensors with other than four axes; with
    ``unsupported="exact"`` such attention is computed exactly. `report` lists what each layer did.
    ``nn.MultiheadAttention`` keeps its own meaning of boolean masks, where True is left out. It
    returns weights (B, T, S) that are 0 for dropped keys; with a fallback, a call that wants the
    weights (``need_weights``, torch's default) is exact.

    Converting again replaces the settings. Converted models can be copied, pickled and saved whole.
    """
    alone = given_options(
        options, g=g, size=size, min_length=min_length, correction=correction,
        temperature=temperature, fallback=fallback, error_threshold=error_threshold, seed=seed,
        unsupported=unsupported,
    )  # fmt: skip
    revert(model)
    swapped, left = [], {}
    parents = {child: parent for parent in model.modules() for child in parent.children()}
    modules = dict(model.named_modules())
    classes = {name: _thinned(module, parents.get(module)) for name, module in modules.items()}
    for name in modules.keys() - attention_modules(model).keys():
        calls = SDPA in names_in_class(type(modules[name]))  # type: ignore[arg-type]
        classes[name] = None, HOLDS if calls else ""
    names = [name for name, (thinned, _) in classes.items() if thinned is not None]
    each = dict.fromkeys(names, alone) if settings is None else of_layers(settings, alone, names)
    for name, module in modules.items():
        thinned, reason = classes[name]
        if thinned is not None and not each[name].exact:
            _set(module, __class__=thinned, thinformer=each[name])
            swapped.append(name)
        elif thinned is not None:
            _set(module, thinformer=each[name])  # for report and save_settings
            left[name] = "its settings say exact"
        elif reason:
            left[name] = reason
        # torch's fused encoder would pass by the attention module, and hand over nested tensors
        if isinstance(module, nn.TransformerEncoderLayer):
            _set(module, activation_relu_or_gelu=0)
        elif isinstance(module, nn.TransformerEncoder):
            _set(module, use_nested_tensor=False)
    if not names and settings is None:
        known = "; ".join(f"{name or 'the model'}: {reason}" for name, reason in left.items())
        warnings.warn(
            f"convert found no attention to thin in {type(model).__name__}; "
            f"{known[:500] or 'it has no attention module'}",
            stacklevel=2,
        )
    return Conversion(swapped, left)


def revert(model: nn.Module) -> None:
    """Undo `convert`, in place. A model that was not converted stays as it is."""
    for module in model.modules():
        module.__dict__.pop("thinformer_last", None)
        for attribute, before in module.__dict__.pop("_before_thinformer", {}).items():
            if before is None:
                delattr(module, attribute)
            else:
                setattr(module, attribute, before)


def _set(module: nn.Module, **attributes: Any) -> None:
    """Set attributes; `revert` sets them back, or deletes them where there were none."""
    before = {name: getattr(module, name, None) for name in attributes}
    for name, attribute in attributes.items():
        setattr(module, name, attribute)
    module.__dict__["_before_thinformer"] = before


def _thinned(module: nn.Module, parent: nn.Module | None) -> tuple[type | None, str]:
    """The class that a module gets, or None and the reason; "" for a module without attention."""
    cls: Any = type(module)
    if cls is nn.MultiheadAttention:
        if module.bias_k is not None or module.add_zero_attn:
            return None, "it adds keys of its own (add_bias_kv or add_zero_attn)"
        if isinstance(parent, nn.TransformerDecoderLayer) and module is parent.self_attn:
            return None, "the self-attention of a decoder is causal"
        return ThinnedMultiheadAttention, ""
    if not attends(module):
        return None, ""
    if cls.__module__.startswith("transformers."):
        return None, "models of transformers take thinformer.torch.transformers.register"
    if cls.__module__.startswith("diffusers.") and hasattr(module, "processor"):
        processor = type(module.processor)
        if not INTERCEPTED & names_in(processor.__call__):
            return None, f"{processor.__name__} does not call {SDPA}"
        return _through_sdpa(cls), ""
    if not getattr(module, "fused_attn", True):
        return None, f"it does not call {SDPA} (fused_attn is False)"
    if SDPA not in names_in_class(cls):
        return None, f"{cls.__name__} does not call {SDPA}"
    for name in BIASES:
        bias = getattr(module, name, None)
        if bias is not None and bias is not False:
            return None, f"it adds a relative position bias ({name})"
    return _through_sdpa(cls), ""


@functools.cache
def _through_sdpa(cls: type) -> type:
    """A subclass of a module's class in which scaled_dot_product_attention is thinned."""
    return type(f"Thinned{cls.__name__}", (_ThroughSDPA, cls), {})


class _ThroughSDPA:
    thinformer: LayerOptions
    __prepare_scriptable__ = no_script

    def forward(self, *args: Any, **options: Any) -> Any:
        calls = _Instead(self)  # type: ignore[arg-type]
        with calls:
            output = super().forward(*args, **options)  # type: ignore[misc]
        if not (calls.seen or torch.compiler.is_compiling()):  # which does not see what it wrote
            raise NotImplementedError(
                f"{path_of(self)}: it attends without {SDPA} now, so it "  # type: ignore[arg-type]
                f"was not thinned; revert(model) leaves it exact"
            )
        return output

    def __reduce_ex__(self, protocol: Any) -> tuple:
        return _unpickled, (type(self).__bases__[1],), self.__getstate__()


def _unpickled(cls: type) -> Any:
    """A module of a class of `_through_sdpa`, before it gets its state."""
    thinned: Any = _through_sdpa(cls)
    return thinned.__new__(thinned)


class _Instead(TorchFunctionMode):
    """While active, a module's calls of scaled_dot_product_attention are thinned."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if func is scaled_dot_product_attention:
            self.seen = True
            return _attend(self.module, *args, **options)
        if func is torch.Tensor.unflatten:  # which torch.compile cannot follow: it calls super()
            func = torch.unflatten
        return func(*args, **options)


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """scaled_dot_product_attention, thinned where the module's options say so."""
    layer, T, S, device = module.thinformer, query.shape[-2], key.shape[-2], query.device
    reason = None
    if not layer.leaves_exact(T, S, device.type):
        try:
            attended = _thinned_call(
                module, query, key, value,
                Call(scale, None, _as_masks(attn_mask), is_causal, enable_gqa, layout="bhsd"),
                dropout_p,
            )  # fmt: skip
        except NotImplementedError as error:
            reason = str(error)
        else:
            note_thinned(module, layer, T, S, attended)
            return attended.output
    if reason and layer.unsupported == "raise":
        raise NotImplementedError(f"{path_of(module)}: {reason}. {REMEDY}")
    note_exact(module, layer, T, S, device.type, reason)
    return scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _thinned_call(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, call: Call,
    dropout_p: float,
) -> Estimated:  # fmt: skip
    """Attend to few keys; raises NotImplementedError for what cannot be thinned."""
    if query.ndim != 4:
        raise NotImplementedError(
            f"it attends with tensors of {query.ndim} axes, and thinformer takes 4, (B, H, T, E)"
        )
    layer = module.thinformer
    wanted = Wanted(dropout_p=dropout_p, seed=seed_of_layer(module, layer.seed, query.device))
    return checked_attention(query, key, value, layer, call, wanted)


def _as_masks(attn_mask: torch.Tensor | None) -> torch.Tensor | None:
    """The mask of a call; -10,000, which diffusers adds where a key is left out, becomes -inf."""
    if attn_mask is None or not attn_mask.is_floating_point():
        return attn_mask
    return attn_mask.masked_fill(attn_mask == -10_000.0, -torch.inf)  # whose exponential is 0
