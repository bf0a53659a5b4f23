"""Encoders of known shapes with random weights, to time whole models without a download."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    PreTrainedModel,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

PATCH = 14  # pixels of a side of DINOv2's patches


class Encoder(NamedTuple):
    """A model in evaluation, and one input of so many tokens."""

    model: PreTrainedModel
    inputs: dict[str, torch.Tensor]
    tokens: int


def bert(tokens: int, *, width: int, layers: int, heads: int) -> Encoder:
    """Return a BERT that takes so many tokens; its vocabulary is small."""
    config = BertConfig(
        vocab_size=1000, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=tokens,
    )  # fmt: skip
    words = torch.randint(config.vocab_size, (1, tokens))
    return Encoder(BertModel(config).eval(), {"input_ids": words}, tokens)


def vit(tokens: int, *, width: int, layers: int, heads: int) -> Encoder:
    """Return a DINOv2 and a square image: a patch is a token, and the class is one more."""
    side = max(1, round((tokens - 1) ** 0.5))
    config = Dinov2Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, mlp_ratio=4,
        image_size=side * PATCH, patch_size=PATCH,
    )  # fmt: skip
    image = torch.randn(1, 3, side * PATCH, side * PATCH)
    return Encoder(Dinov2Model(config).eval(), {"pixel_values": image}, side**2 + 1)


def whisper(tokens: int, *, width: int, layers: int, heads: int) -> Encoder:
    """Return Whisper's encoder and a spectrogram: two of its columns are a token."""
    config = WhisperConfig(
        vocab_size=1000, d_model=width, encoder_layers=layers, encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width, max_source_positions=tokens,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    sound = torch.randn(1, config.num_mel_bins, 2 * tokens)
    return Encoder(WhisperEncoder(config).eval(), {"input_features": sound}, tokens)


# width, layers and heads of MiniLM, of BERT-base with 4 of its 12 layers, of DINOv2-small and of
# Whisper tiny
SHAPES: dict[str, tuple[Callable[..., Encoder], dict[str, int]]] = {
    "bert": (bert, {"width": 384, "layers": 6, "heads": 12}),
    "bert-base": (bert, {"width": 768, "layers": 4, "heads": 12}),
    "vit": (vit, {"width": 384, "layers": 12, "heads": 6}),
    "whisper": (whisper, {"width": 384, "layers": 4, "heads": 6}),
}


def make_encoder(shape: str, tokens: int) -> Encoder:
    """Return a model of a shape, and one input of as many tokens as is nearest to `tokens`."""
    make, sizes = SHAPES[shape]
    return make(tokens, **sizes)
