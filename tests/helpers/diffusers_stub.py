"""Stands in for diffusers, which is not installed: modules whose processors attend.

As in diffusers, a module hands itself and its inputs to its processor, a plain object, and its
masks are additive and hold -10000.
"""

import contextlib
import math
import sys
import types

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, processor, dim=32, heads=2):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.processor = processor

    def forward(self, hidden_states, encoder_hidden_states=None, attention_mask=None):
        return self.processor(self, hidden_states, encoder_hidden_states, attention_mask)

    def projected(self, x, other):
        other = x if other is None else other
        of_each = self.to_q(x), self.to_k(other), self.to_v(other)
        return (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in of_each)


class SDPAProcessor:
    def __call__(self, attn, x, other, mask):
        query, key, value = attn.projected(x, other)
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return output.transpose(1, 2).flatten(2)


class MatmulProcessor:
    def __call__(self, attn, x, other, mask):
        query, key, value = attn.projected(x, other)
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
        return (weights @ value).transpose(1, 2).flatten(2)


for _cls in (Attention, SDPAProcessor, MatmulProcessor):
    _cls.__module__ = "diffusers.stub"


@contextlib.contextmanager
def importable():
    """Let pickle find the classes."""
    package, module = types.ModuleType("diffusers"), types.ModuleType("diffusers.stub")
    module.__dict__.update({cls.__name__: cls for cls in (Attention, SDPAProcessor)})
    before = {name: sys.modules.get(name) for name in ("diffusers", "diffusers.stub")}
    sys.modules |= {"diffusers": package, "diffusers.stub": module}
    try:
        yield
    finally:
        for name, there in before.items():
            if there is None:
                del sys.modules[name]
            else:
                sys.modules[name] = there
