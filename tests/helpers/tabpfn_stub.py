"""Stands in for tabpfn, which is not installed: its registry of attention backends."""

import importlib
import sys
import types
from typing import NamedTuple

import torch


class Spec(NamedTuple):
    seq_len_q: int | None
    seq_len_kv: int | None
    dtype: torch.dtype
    device: torch.device


BACKENDS = {}


def register_attention_backend(*backends):
    for backend in backends:
        if BACKENDS.get(backend.name, backend) is not backend:
            raise ValueError(f"A different attention backend is already registered: {backend.name}")
        BACKENDS[backend.name] = backend


def unregister_attention_backend(name):
    BACKENDS.pop(name, None)


def scaled_dot_product_attention(query, key, value):
    """As tabpfn has them: query (B, T, H, E), key and value (B, S, H_kv, E)."""
    spec = Spec(query.shape[1], key.shape[1], query.dtype, query.device)
    for backend in BACKENDS.values():
        if backend.is_preferred(spec):
            return backend.run(query, key, value, quantized_kv=None)
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, enable_gqa=True
    ).transpose(1, 2)


def modules():
    """What makes `tabpfn.architectures.shared.attention_backends` importable, by name."""
    made, names = {}, ["tabpfn", "architectures", "shared", "attention_backends"]
    for i in range(1, 5):
        module = types.ModuleType(".".join(names[:i]))
        module.__path__ = []
        made[module.__name__] = module
    module.register_attention_backend = register_attention_backend
    module.unregister_attention_backend = unregister_attention_backend
    return made


def adapter(monkeypatch):
    """`thinformer.torch.tabpfn`, imported anew beside this."""
    for name, module in modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "thinformer.torch.tabpfn", raising=False)
    return importlib.import_module("thinformer.torch.tabpfn")
