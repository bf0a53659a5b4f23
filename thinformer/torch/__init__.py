"""Thinformer attention for torch models. The adapter is here and only here."""

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "thinformer.torch needs torch, which is not installed: pip install torch"
    ) from error

from thinformer.attending.options import PUBLISHED, KeySelection, LayerOptions
from thinformer.attending.settings import load_settings
from thinformer.torch.calibrate import Calibration, calibrate
from thinformer.torch.convert import Conversion, convert, revert
from thinformer.torch.functional import thinformer_attention
from thinformer.torch.module import ThinformerAttention
from thinformer.torch.report import Report, report
from thinformer.torch.saved import save_settings

__all__ = [
    "PUBLISHED",
    "Calibration",
    "Conversion",
    "KeySelection",
    "LayerOptions",
    "Report",
    "ThinformerAttention",
    "calibrate",
    "convert",
    "load_settings",
    "report",
    "revert",
    "save_settings",
    "thinformer_attention",
]
