"""`ThinformerAttention`, with the interface of the published torch module."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from thinformer.attending.arguments import softmax_scale
from thinformer.attending.options import (
    PUBLISHED,
    SETTING_NAMES,
    Correction,
    Fallback,
    LayerOptions,
    given_options,
    layer_options,
)
from thinformer.halving.plan import PreThin
from thinformer.support import checks
from thinformer.torch.attend.arguments import (
    Wanted,
    as_autocast,
    check_generator,
    check_tensors,
    shape,
)
from thinformer.torch.attend.layer import attend
from thinformer.torch.choose.heads import Heads
from thinformer.torch.choose.seeds import seed_of_layer
from thinformer.torch.layers import no_script


class ThinformerAttention(nn.Module):
    r"""Softmax attention over few keys and values that represent all keys and values.

    The defaults are the published method. In a trained model use ``options=LayerOptions()``, or
    `convert`: trained keys are peaked, and keys of equal weight miss much of them.

    Thinformer, Algorithm 1 of *Low-Rank Thinning* (arXiv 2502.12063). Every forward pass selects
    :math:`n_{out} = 2^g \sqrt n` keys of every head of every sequence, n the largest power of four
    not above S, and all queries attend to these keys. Where S <= n_out, the result is exact
    attention.

    It is unmasked attention: there is no causal or padding mask, and no parameter to train.

    Parameters
    ----------
    g : int
        Oversampling. The error falls as :math:`2^{-g}`, the time to choose grows as :math:`4^g`.
    scale : float, optional
        Softmax scale, positive; 1 / sqrt(E) by default.
    use_torch_spda : bool
        Attend with ``torch.nn.functional.scaled_dot_product_attention``: faster and in less
        memory, but it returns no weights. (The name is the published module's.)
    size : int, optional
        The number of keys to keep, instead of the one that g gives, chosen from as many as halve
        evenly to it.
    pre_thin : {"even", "stride"}
        How a sequence is brought to a length that halves evenly: by one token at random from each
        of equal strata, or by the published rule, every s-th token for s = S // n.
    correction : {None, "nystrom", "queries"}
        `correction` fits a value and a mass to each kept key, to compensate for the dropped keys,
        as in `thinformer.attention`. The weights may then be negative; they sum to 1, except where
        masses nearly cancel.
    temperature : float or "auto", optional
        With a correction: the temperature of its kernel on keys; None and "auto" use WildCat's
        formula for each head. Without a correction: keys are selected by herding, as in
        `thinformer.attention`: mostly nearer than by default, without a guarantee.
    generator : torch.Generator, optional
        The source of each forward pass's seed; torch's default generator of the tensors' device if
        None, so ``torch.manual_seed`` reproduces a result. A generator of the CPU draws the same
        seeds for tensors on a GPU as for tensors on the CPU.
    estimate_error : bool
        Estimate the error of each head in each forward pass, for `last_error_estimate`.
    fallback : {None, "exact"}
        What to do for a head of a sequence whose estimated error is above `error_threshold`, or is
        NaN. "exact" computes exact attention for it, and gradients flow through that. A fallback
        also estimates the error, and returns no weights, as exact attention has weights of all
        keys.
    error_threshold : float, optional
        Not negative; 0.4 by default with a fallback.
    options : LayerOptions, optional
        All of these settings but `scale`, `use_torch_spda`, `generator` and `estimate_error` as one
        object; they are left out then. Attention over fewer keys than its ``min_length`` is exact;
        without the object, sequences of any length are thinned. In evaluation its ``seed`` is used,
        unless there is a `generator`.

    Attributes
    ----------
    options : LayerOptions
        The settings. Each can also be read and replaced by its name, as in ``module.size = 64``.
    last_error_estimate : (B, H) tensor or None
        The estimated relative error of each head's output in the last forward pass, before any
        fallback: float64 for float64 tensors, else float32, without gradient. None before the first
        pass, and where neither `estimate_error` nor a fallback is set.

    Shape
    -----
    query (B, T, H, E), key (B, S, H, E), value (B, S, H, D) of one floating dtype, on the CPU or
    one CUDA device -> (output (B, T, H, D), weights (B, H, T, n_out) or None). Weights belong to
    the kept keys, in the order of the sequence; they are None with `use_torch_spda` or a fallback.

    Notes
    -----
    Gradients flow to the queries and to the kept keys and values; the selection itself is not
    differentiated. Keys are selected in float32 for float16 and bfloat16. A head with NaN or
    infinity among its keys or values has NaN in its output and weights; other heads do not.

    `thinformer_attention` says what the error estimate is and what it costs. A fallback makes the
    CPU wait for a GPU.

    The module has no parameters from which a seed could follow, as `convert` has. So modules with
    the same ``seed`` in their `options` draw the same numbers: they choose among tokens alike, each
    by its own keys. Give them different seeds where that matters.

    CUDA tensors need ``numba-cuda[cu13]`` or ``[cu12]``. The work runs on torch's current
    stream, and the CPU does not wait for it. The first call compiles; a later call of the same
    shapes can be captured by ``torch.cuda.graph``.

    Raises
    ------
    TypeError, ValueError
        Arguments that do not fit.
    NotImplementedError
        Tensors of another device.
    RuntimeError
        CUDA tensors without the packages that they need; says what to install.

    Examples
    --------
    >>> import torch
    >>> from thinformer import ThinformerAttention
    >>> query, key, value = torch.randn(3, 1, 1024, 2, 16).unbind()
    >>> output, weights = ThinformerAttention(g=1)(query, key, value)
    >>> output.shape, weights.shape
    (torch.Size([1, 1024, 2, 16]), torch.Size([1, 2, 1024, 64]))
    """

    __prepare_scriptable__ = no_script

    def __init__(
        self,
        g: int = 2,
        scale: float | None = None,
        use_torch_spda: bool = False,
        *,
        size: int | None = None,
        pre_thin: PreThin = "even",
        correction: Correction | None = None,
        temperature: float | Literal["auto"] | None = None,
        generator: torch.Generator | None = None,
        estimate_error: bool = False,
        fallback: Fallback | None = None,
        error_threshold: float | None = None,
        options: LayerOptions | None = None,
    ) -> None:
        super().__init__()
        settings: dict[str, Any] = {
            "g": g, "size": size, "pre_thin": pre_thin, "correction": correction,
            "temperature": temperature, "fallback": fallback, "error_threshold": error_threshold,
        }  # fmt: skip
        self.options = given_options(options, PUBLISHED, **settings)
        self.scale = None if scale is None else checks.positive("scale", scale)
        self.use_torch_spda = use_torch_spda
        check_generator(generator)
        self.generator = generator
        self.estimate_error = checks.boolean("estimate_error", estimate_error)
        self.last_error_estimate: torch.Tensor | None = None

    def extra_repr(self) -> str:
        """Say how the module was made."""
        of_layer = {
            name: value for name, value in vars(self.options).items() if name != "selection"
        }
        shown = {
            "g": self.options.selection.g,
            "scale": self.scale,
            "use_torch_spda": self.use_torch_spda,
            **vars(self.options.selection),
            "estimate_error": self.estimate_error,
            **of_layer,
        }
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend: see the class."""
        check_tensors(query, key, value)
        query, key, value = as_autocast(query, key, value)
        if query.shape[2] != key.shape[2]:
            raise ValueError(
                f"query must have shape (B, T, H, E) with the B, H and E of key {shape(key)}; "
                f"got shape {shape(query)}"
            )
        heads = Heads(query, key, value, None, softmax_scale(self.scale, query.shape[-1]))
        weights = not self.use_torch_spda and self.options.fallback is None
        seed = None  # a generator that was given is drawn from
        if self.generator is None:
            seed = seed_of_layer(self, self.options.seed, key.device)
        wanted = Wanted(weights, self.estimate_error, generator=self.generator, seed=seed)
        attended = attend(heads, self.options, wanted)
        self.last_error_estimate = attended.error_estimate
        return attended.output, attended.weights


def _setting(name: str) -> property:
    """A setting of the module's options, which is checked when it is replaced."""

    def read(module: ThinformerAttention) -> Any:
        return module.options.settings()[name]

    def replace(module: ThinformerAttention, value: Any) -> None:
        module.options = layer_options(**{**module.options.settings(), name: value})

    return property(read, replace)


for _name in SETTING_NAMES:
    setattr(ThinformerAttention, _name, _setting(_name))
