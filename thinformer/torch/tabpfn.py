"""Thinformer as an attention backend of TabPFN, whose sequences are rows of tables."""

from __future__ import annotations

from typing import Any, Literal

import torch

try:
    from tabpfn.architectures.shared.attention_backends import (
        register_attention_backend,
        unregister_attention_backend,
    )
except ImportError as error:
    raise ImportError(
        "thinformer.torch.tabpfn needs tabpfn with attention backends, 9.2 or later: "
        "pip install tabpfn"
    ) from error

from thinformer.attending.options import Correction, Fallback, LayerOptions, given_options
from thinformer.torch.attend.arguments import Call, Wanted
from thinformer.torch.attend.layer import checked_attention
from thinformer.torch.choose.heads import COMPUTED_IN

NAME = "thinformer"


def register(
    *,
    g: int = 2,
    size: int | None = None,
    min_length: int | Literal["auto"] = "auto",
    correction: Correction | None = "queries",
    temperature: float | Literal["auto"] | None = None,
    fallback: Fallback | None = "exact",
    error_threshold: float | None = None,
    seed: int | None = 0,
    options: LayerOptions | None = None,
) -> None:
    """Let TabPFN attend by `thinformer.thinformer_attention`, before its other backends.

    Parameters
    ----------
    g, size : int
        As in `thinformer.thinformer_attention`.
    min_length : int or "auto"
        Attention over fewer keys, and of a single query, is left to TabPFN. "auto" thins where it
        was measured to be faster: on a CPU, from 2,048 rows on.
    correction : {"queries", "nystrom", None}
    temperature : float or "auto", optional
        As in `thinformer.thinformer_attention`; ``correction=None`` is the published method.
    fallback : {"exact", None}
    error_threshold : float, optional
        Attention of a head whose estimated error is above it, 0.4 by default, is computed exactly.
    seed : int, optional
        Without a gradient, all layers draw from this same seed, because TabPFN does not tell a
        backend which layer calls it. With ``seed=None``, or with a gradient, each call draws a seed
        of its own from torch's default generator, which ``torch.manual_seed`` makes repeatable.
    options : LayerOptions, optional
        All of these settings as one object; they are left out then.

    Notes
    -----
    Registering again replaces the settings; `unregister` undoes it. TabPFN attends by itself where
    attention is not thinned.

    `thinformer.torch.report` does not list layers of TabPFN; TabPFN's own logger
    ``tabpfn.architectures.shared.attention_backends`` says at level DEBUG which backend takes each
    call.
    """
    layer = given_options(
        options, g=g, size=size, min_length=min_length, correction=correction,
        temperature=temperature, fallback=fallback, error_threshold=error_threshold, seed=seed,
    )  # fmt: skip
    unregister()
    register_attention_backend(_Backend(layer))


def unregister() -> None:
    """Undo `register`: TabPFN computes all attention itself."""
    unregister_attention_backend(NAME)


class _Backend:
    """The backend that TabPFN calls, after `is_preferred` said that it takes a call."""

    name = NAME

    def __init__(self, layer: LayerOptions) -> None:
        self.layer = layer

    def is_preferred(self, spec: Any) -> bool:
        """Whether a call of these shapes is thinned; TabPFN's own attention takes other calls."""
        if spec.seq_len_q is None or spec.seq_len_kv is None:
            return False
        known = spec.device.type in ("cpu", "cuda") and spec.dtype in COMPUTED_IN
        return known and not self.layer.leaves_exact(
            spec.seq_len_q, spec.seq_len_kv, spec.device.type
        )

    def run(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **context: Any
    ) -> torch.Tensor:
        """Attend: query (B, T, H, E), key and value (B, S, H_kv, E), as TabPFN has them."""
        call, seed = Call(enable_gqa=True), None
        if self.layer.seed is not None and not torch.is_grad_enabled():
            seed = torch.full((), self.layer.seed, device=query.device)
        return checked_attention(query, key, value, self.layer, call, Wanted(seed=seed)).output
