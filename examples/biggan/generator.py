"""BigGAN-deep-512 (Brock et al. 2019) from `pytorch-pretrained-biggan`, with any attention.

The generator has one layer of self-attention, on an image of 64 x 64 with 512 channels. The layer
has 4096 queries of dimension 64. Keys and values are max-pooled to 32 x 32: 1024 keys of dimension
64 and values of dimension 256. The softmax scale is 1.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from examples.attention import Attends, Attention, scaled

# The package imports these to download weights. Here weights are read from a folder instead.
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
    """The layer of the package with its weights, and with an attention that can be replaced.

    Attributes
    ----------
    attend : callable
        The attention: a function of query (B, T, 1, E), key (B, S, 1, E) and value (B, S, 1, D);
        see `examples.attention`.
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
    """Put another attention into a generator, in place; return the layer that uses it."""
    layers = model.generator.layers
    place = model.config.attention_layer_position
    layer = layers[place]
    layers[place] = SelfAttention(getattr(layer, "layer", layer), attend)
    return layers[place]


def load(folder: Path | str) -> BigGAN:
    """Load the generator from a folder with the published config.json and pytorch_model.bin.

    Raises
    ------
    ValueError
        A file is missing or cannot be read, or the weights do not fit. The message is one line.
    """
    folder = Path(folder)
    for name in ("config.json", "pytorch_model.bin"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}; it must hold the published weights")
    try:
        model = BigGAN(BigGANConfig.from_json_file(folder / "config.json"))
        state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception as error:  # a damaged file can raise anything
        lines = " ".join(line.strip() for line in str(error).splitlines())
        raise ValueError(f"{folder}: the weights do not fit: {lines[:400]}") from error
    return model.eval()


def random(channel_width: int = 128, seed: int = 0) -> BigGAN:
    """A generator with random weights, to try the code and to time it.

    The package leaves two parameters unset and gives the attention a weight of 0; both are set
    here. The spectral norms are right only after some steps of their power iteration; see
    `settled`.
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
    """Run the power iterations of a module's spectral norms; return the module in eval mode."""
    for part in module.modules():
        for normalise in part._forward_pre_hooks.values():
            for _ in range(POWER_ITERATIONS):
                normalise(part, None)
    return module.eval()
