"""The tensors of a layer's cache, as all of `thinformer.torch.cache` takes them."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Cached(NamedTuple):
    """What a layer holds.

    keys, values : (B, H_kv, n, E) and (B, H_kv, n, D) tensors
    log_masses : (B, H_kv, n) float32 tensor
        What is added to the logits of a key: 0 of a token, minus infinity of padding.
    """

    keys: torch.Tensor
    values: torch.Tensor
    log_masses: torch.Tensor
