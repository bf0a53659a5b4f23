"""Small models of transformers with random weights, saved as users have them."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64}  # fmt: skip
TEXT = SMALL | {"vocab_size": 50, "max_position_embeddings": 400}
WORDS = [f"w{i}" for i in range(49)]


def saved(folder, cls, config, *processors):
    torch.manual_seed(0)
    model = cls(config).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False).mul_(3)  # attention that is not uniform
    for part in (model, *processors):
        part.save_pretrained(folder)
    return model


def tokenizer():
    words = Tokenizer(models.WordLevel({"?": 49} | {w: i for i, w in enumerate(WORDS)}, "?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)
