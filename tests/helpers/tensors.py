"""Tensors for the tests of attention in torch, and calls with a seed."""

import torch

import thinformer.attending.landmarks
from thinformer import thinformer_attention
from thinformer.torch.choose import operators


def qkv(B=2, T=7, S=300, H=4, E=8, D=5, H_kv=None, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    H_kv = H_kv or H
    shapes = (B, T, H, E), (B, S, H_kv, E), (B, S, H_kv, D)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
            for shape in shapes]  # fmt: skip


def sample_at_most(queries, monkeypatch):
    """For a correction: outputs of sampled queries are exact, and small examples have few."""
    for module in (thinformer.attending.landmarks, operators):
        monkeypatch.setattr(module, "QUERIES", queries)


def seeded(*tensors, seed=0, **options):
    return thinformer_attention(*tensors, generator=torch.Generator().manual_seed(seed), **options)


def everything(*tensors, **options):
    return seeded(*tensors, return_weights=True, return_indices=True, **options)
