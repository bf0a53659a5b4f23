"""BigGAN-deep-512 (Brock et al. 2019) from `pytorch-pretrained-biggan`, with any attention.

It has one self-attention, where the image is 64 x 64 with 512 channels: 4096 queries of 64, and
1024 keys of 64 and values of 256, max-pooled to 32 x 32. The softmax scale is 1.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from examples.attention import Attends, Attention, scaled

# The package imports these to download weights with, which are read from a folder here.
_absent = [name for name in ("boto3", "botocore", "requests") if find_spec(name) is None]
sys.modules |= {name: ModuleType(name) for name in _absent}
if "botocore" in _absent:
    sys.modules["botocore.exceptions"] = ModuleType("botocore.exceptions")
    sys.modules["botocore.exceptions"].ClientError = OSError
    _absent.append("botocore.exceptions")
try:
    from pytorch_pretrained_biggan import BigGAN, BigGANConfig
    from pytorch_pretrained_biggan.model import SelfAttn
finally:
    for _name in _absent:
        del sys.modules[_name]

# (upsample, input, output), in channel widths; the attention comes before the ninth
LAYERS_512 = (
    (False, 16, 16), (True, 16, 16), (False, 16, 16), (True, 16, 8), (False, 8, 8), (True, 8, 8),
    (False, 8, 8), (True, 8, 4), (False, 4, 4), (True, 4, 2), (False, 2, 2), (True, 2, 1),
    (False, 1, 1), (True, 1, 1),
)  # fmt: skip
POWER_ITERATIONS = 5


class SelfAttention(Attends):
    """The package's layer, its weights and all, with another attention in it.

    Attributes
    ----------
    attend : callable
        Of (query, key, value), (B, T, 1, E), (B, S, 1, E), (B, S, 1, D); see `examples.attention`.
    """

    def __init__(self, layer: SelfAttn, attend: Attention):
        super().__init__()
        self.layer = layer
        self.attend = attend

    def forward(self, x):
        """(B, C, h, w) -> (B, C, h, w)."""
        layer, pool = self.layer, self.layer.maxpool
        query = _tokens(layer.snconv1x1_theta(x))
        key = _tokens(pool(layer.snconv1x1_phi(x)))
        value = _tokens(pool(layer.snconv1x1_g(x)))
        output, _ = scaled(self.attend, query, key, value, 1.0)
        image = output.squeeze(2).mT.unflatten(2, x.shape[2:])
        return x + layer.gamma * layer.snconv1x1_o_conv(image)


def _tokens(image: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) to (B, h w, 1, C)."""
    return image.flatten(2).mT[:, :, None]


def swap(model: BigGAN, attend: Attention) -> SelfAttention:
    """Put another attention into a generator, in place; returns its layer."""
    layers = model.generator.layers
    place = model.config.attention_layer_position
    layer = layers[place]
    layers[place] = SelfAttention(getattr(layer, "layer", layer), attend)
    return layers[place]


def load(folder: Path | str) -> BigGAN:
    """The generator from a folder with the published config.json and pytorch_model.bin.

    Raises
    ------
    ValueError
        A file is missing or not what it should be; weights do not fit. The message is one line.
    """
    folder = Path(folder)
    for name in ("config.json", "pytorch_model.bin"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; it must hold the published weights")
    try:
        model = BigGAN(BigGANConfig.from_json_file(folder / "config.json"))
        state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # anything at all, by what the bytes happen to say
        lines = " ".join(line.strip() for line in str(error).splitlines())
        raise ValueError(f"{folder}: the weights do not fit: {lines[:400]}") from error
    return model.eval()


def random(channel_width: int = 128, seed: int = 0) -> BigGAN:
    """A generator that nobody trained, to try the code and to time it.

    The package leaves two of its parameters unset and starts the attention at a weight of 0; its
    spectral norms are right only after steps of their power iteration.
    """
    torch.manual_seed(seed)
    model = BigGAN(
        BigGANConfig(output_dim=512, channel_width=channel_width, layers=list(LAYERS_512))
    )
    nn.init.ones_(model.generator.bn.weight)
    nn.init.zeros_(model.generator.bn.bias)
    nn.init.ones_(model.generator.layers[model.config.attention_layer_position].gamma)
    return settled(model)


def settled(module: nn.Module) -> nn.Module:
    """Let the spectral norms of a module come near to what they are; returns it for evaluation."""
    for part in module.modules():
        for normalise in part._forward_pre_hooks.values():
            for _ in range(POWER_ITERATIONS):
                normalise(part, None)
    return module.eval()
