"""Thinformer attention for torch models, and the order of their training examples."""

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
from thinformer.torch.gradients import example_gradients, last_layer_gradients
from thinformer.torch.module import ThinformerAttention
from thinformer.torch.order import ThinnedOrder
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
    "ThinnedOrder",
    "calibrate",
    "convert",
    "example_gradients",
    "last_layer_gradients",
    "load_settings",
    "report",
    "revert",
    "save_settings",
    "thinformer_attention",
]
