"""Thinformer as an attention backend of TabPFN, whose sequences are rows of tables."""

from __future__ import annotations

from typing import Any

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

from thinformer.attending.options import MIN_LENGTH, LayerOptions, given_options
from thinformer.torch.attend.arguments import Call, Wanted
from thinformer.torch.attend.layer import checked_attention
from thinformer.torch.choose.heads import COMPUTED_IN

NAME = "thinformer"


def register(
    *,
    g: int = 2,
    size: int | None = None,
    min_length: int = MIN_LENGTH,
    correction: str | None = None,
    temperature: float | str | None = None,
    fallback: str | None = None,
    error_threshold: float | None = None,
    options: LayerOptions | None = None,
) -> None:
    """Let TabPFN attend by `thinformer.thinformer_attention`, before its other backends.

    Parameters
    ----------
    g, size : int
        As in `thinformer.thinformer_attention`.
    min_length : int
        Attention over fewer keys, and of a single query, is left to TabPFN.
    correction : {None, "nystrom", "queries"}
    temperature : float or "auto", optional
    fallback : {None, "exact"}
    error_threshold : float, optional
        As in `thinformer.thinformer_attention`.
    options : LayerOptions, optional
        All of these settings as one object; they are left out then.

    Notes
    -----
    Registering again replaces the settings; `unregister` undoes it. Each attention draws its seed
    from torch's default generator.
    """
    layer = given_options(
        options, g=g, size=size, min_length=min_length, correction=correction,
        temperature=temperature, fallback=fallback, error_threshold=error_threshold,
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
        return known and not self.layer.leaves_exact(spec.seq_len_q, spec.seq_len_kv)

    def run(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **context: Any
    ) -> torch.Tensor:
        """Attend: query (B, T, H, E), key and value (B, S, H_kv, E), as TabPFN has them."""
        call = Call(enable_gqa=True)
        return checked_attention(query, key, value, self.layer, call, Wanted()).output
