"""Thinformer attention for torch models. The adapter is here and only here."""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "thinformer.torch needs torch, which is not installed: pip install 'thinformer[torch]'"
    ) from error

from thinformer.attending.options import KeySelection, LayerOptions
from thinformer.attending.settings import load_settings
from thinformer.torch.convert import Conversion, convert, revert
from thinformer.torch.functional import thinformer_attention
from thinformer.torch.module import ThinformerAttention

__all__ = [
    "Conversion",
    "KeySelection",
    "LayerOptions",
    "ThinformerAttention",
    "convert",
    "load_settings",
    "revert",
    "thinformer_attention",
]
