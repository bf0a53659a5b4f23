"""Small models with random weights that attend in each of the ways that adapters take.

A maker returns a model in evaluation, and a function that calls a model with some 300 tokens. Its
attention is not uniform, and it has no dropout.
"""

import torch
from layers import randomised, tokens
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torchvision_stub import torchvision

from thinformer.torch import convert

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64, "hidden_dropout_prob": 0.0,
         "attention_probs_dropout_prob": 0.0}  # fmt: skip
TEXT = SMALL | {"vocab_size": 100, "max_position_embeddings": 512}


def made(cls, config, implementation="sdpa"):
    """A model of transformers."""
    torch.manual_seed(0)
    model = cls(config).eval()
    model.set_attn_implementation(implementation)
    for parameter in model.parameters():
        parameter.requires_grad_(False).mul_(3)
    return model


def text(*lengths, S=300):
    """Tokens and attention mask of a padded batch."""
    ids = torch.randint(5, 100, (len(lengths), S), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(S) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def bert():
    from transformers import BertConfig, BertModel

    return made(BertModel, BertConfig(**TEXT)), lambda m: m(**text(300, 270)).last_hidden_state


def vit():
    from transformers import ViTConfig, ViTModel

    model = made(ViTModel, ViTConfig(**SMALL, image_size=36, patch_size=2))
    return model, lambda m: m(pixel_values=noise(1, 3, 36, 36)).last_hidden_state


def whisper():
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
        num_mel_bins=8, max_source_positions=300, dropout=0.0,
    )  # fmt: skip
    model = made(WhisperEncoder, config)
    return model, lambda m: m(input_features=noise(1, 8, 600)).last_hidden_state


def encoder():
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return randomised(model), lambda m: m(tokens())


def timm():
    with torchvision():
        from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=36, patch_size=2, embed_dim=32, depth=2, num_heads=2, num_classes=5
    )
    return randomised(model), lambda m: m(noise(2, 3, 36, 36))


class Own(nn.Module):
    """Attends by torch's function; what it is called tells nobody."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x, **options):
        query, key, value = (
            y.unflatten(-1, (2, 16)).transpose(1, 2) for y in self.qkv(x).chunk(3, dim=-1)
        )
        attended = scaled_dot_product_attention(query, key, value, **options)
        return self.out(attended.transpose(1, 2).flatten(2))


def own():
    return randomised(nn.Sequential(Own(), Own())), lambda m: m(tokens())


OF_TRANSFORMERS = {"bert": bert, "vit": vit, "whisper": whisper}
OF_CONVERT = {"encoder": encoder, "timm": timm, "own": own}
ALL = OF_TRANSFORMERS | OF_CONVERT


def adapt(name, model, **settings):
    """Let a model of `ALL` attend with settings of its own."""
    if name in OF_CONVERT:
        convert(model, **settings)
        return
    from thinformer.torch.transformers import configure, register

    register("thinformer-small")
    model.set_attn_implementation("thinformer-small")
    configure(model, **settings)
