"""Other fast attention beside Thinformer's, in operations of torch.

Each is a function of query (B, T, H, E), key (B, S, H, E), value (B, S, H, D), a size and a seed,
and returns (B, T, H, D). The size is the number of keys, groups, landmarks or random features. Each
is written as one writes it for speed; exact attention is SDPA, as in models.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import normalize, scaled_dot_product_attention

from thinformer.measuring.activations import Layers

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, int], torch.Tensor]


def exact(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention over all keys that are given; `bias` (.., S) is added to the logits."""
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


def uniform(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int, seed: int
) -> torch.Tensor:
    """Attention over keys that are drawn uniformly, without replacement, the same for all heads."""
    places = torch.randperm(key.shape[1], generator=torch.Generator().manual_seed(seed))[:size]
    return exact(query, key[:, places], value[:, places])


def evenly_spaced(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int, seed: int
) -> torch.Tensor:
    """Attention over keys at equal distances, from a random start."""
    places = _at_equal_distances(key.shape[1], size, seed)
    return exact(query, key[:, places], value[:, places])


def pooled(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int, seed: int
) -> torch.Tensor:
    """Attention over means of neighbouring keys and values; groups differ by one key at most."""
    B, S = key.shape[:2]
    edges = torch.arange(size + 1) * S // size
    lengths = edges.diff()

    def means(tensor: torch.Tensor) -> torch.Tensor:
        rows = tensor.flatten(2)
        pools = torch.segment_reduce(rows, "mean", lengths=lengths.expand(B, size), axis=1)
        return pools.unflatten(2, tensor.shape[2:])

    bias = None if S % size == 0 else lengths.to(key.dtype).log()[None, None, None]
    return exact(query, means(key), means(value), bias)


def merged(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int, seed: int
) -> torch.Tensor:
    """Attention over the means of groups of similar keys, whose sizes are their weights.

    Evenly spaced keys are centres. Every key, with its value, joins the centre of largest cosine.
    """
    B, S, H, _ = key.shape
    centres = normalize(key[:, _at_equal_distances(S, size, seed)], dim=-1)
    cosines = key.transpose(1, 2) @ centres.permute(0, 2, 3, 1)
    groups = cosines.argmax(3)  # (B, H, S)
    counts = key.new_zeros(B, H, size).scatter_add_(2, groups, key.new_ones(1).expand(B, H, S))

    def means(tensor: torch.Tensor) -> torch.Tensor:
        D = tensor.shape[3]
        sums = tensor.new_zeros(B, H, size, D)
        sums.scatter_add_(2, groups[..., None].expand(-1, -1, -1, D), tensor.transpose(1, 2))
        return (sums / counts.clamp(min=1)[..., None]).transpose(1, 2)

    return exact(query, means(key), means(value), counts.log()[:, :, None])


def performer(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int, seed: int
) -> torch.Tensor:
    """Performer's positive random features of the softmax kernel, as performer-pytorch has them."""
    heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return random_features(key.shape[3], size, seed)(*heads_first).transpose(1, 2)


@functools.cache
def random_features(head_dim: int, size: int, seed: int) -> Any:
    """Performer's attention with its random projection, which a model draws once."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _module("Performer").FastAttention(head_dim, nb_features=size)


def nystromformer(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: int, seed: int
) -> torch.Tensor:
    """Nystromformer's landmarks of queries and keys, as nystrom-attention has them."""
    H, E = key.shape[2:]
    tokens = torch.cat([tensor.flatten(2) for tensor in (query, key, value)], dim=2)
    return _landmarks(H, E, size)(tokens).unflatten(2, (H, E))


@functools.cache
def _landmarks(heads: int, head_dim: int, size: int) -> Any:
    module = _module("Nystromformer").NystromAttention(
        heads * head_dim, head_dim, heads, num_landmarks=size, residual=False
    )
    module.to_qkv = module.to_out = torch.nn.Identity()  # the projections are in the input
    return module


PEERS: dict[str, Attend] = {
    "uniform sampling": uniform,
    "evenly spaced": evenly_spaced,
    "pooled neighbours": pooled,
    "merged keys": merged,
    "Performer": performer,
    "Nystromformer": nystromformer,
}
# the module that a peer needs, and the package to install
PACKAGES = {
    "Performer": ("performer_pytorch", "performer-pytorch"),
    "Nystromformer": ("nystrom_attention", "nystrom-attention"),
}


def left_out(layers: Layers) -> dict[str, str]:
    """Return why peers cannot run on layers: a sentence with the remedy, if there is one."""
    reasons = {}
    for name, (_, package) in PACKAGES.items():
        try:
            _module(name)
        except ImportError as error:
            reasons[name] = f"{name} is left out ({error}): pip install {package}"
    if any(len({array.shape for array in layer}) > 1 for layer in layers.values()):
        name = "Nystromformer"
        reasons[name] = f"{name} is left out: it takes queries, keys and values of one shape"
    return reasons


def _module(name: str) -> Any:
    """The module of a peer's package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names functions of torch that are deprecated
        return importlib.import_module(PACKAGES[name][0])


def _at_equal_distances(S: int, size: int, seed: int) -> slice | torch.Tensor:
    """Places of keys at equal distances from a random start; a slice where S allows it."""
    start = float(torch.rand((), generator=torch.Generator().manual_seed(seed)))
    if S % size == 0:
        return slice(int(start * (S // size)), None, S // size)
    return ((torch.arange(size, dtype=torch.float64) + start) * (S / size)).long()
