"""Thinformer attention for torch models. The adapter is here and only here."""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "thinformer.torch needs torch, which is not installed: pip install 'thinformer[torch]'"
    ) from error

from thinformer.attending.options import PUBLISHED, KeySelection, LayerOptions
from thinformer.attending.settings import load_settings
from thinformer.torch.convert import Conversion, convert, revert
from thinformer.torch.functional import thinformer_attention
from thinformer.torch.module import ThinformerAttention
from thinformer.torch.report import Report, report

__all__ = [
    "PUBLISHED",
    "Conversion",
    "KeySelection",
    "LayerOptions",
    "Report",
    "ThinformerAttention",
    "convert",
    "load_settings",
    "report",
    "revert",
    "thinformer_attention",
]
