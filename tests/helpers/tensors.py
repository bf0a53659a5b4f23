"""Tensors for the tests of attention in torch, and calls with a seed."""

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

import thinformer.attending.landmarks
from thinformer import thinformer_attention
from thinformer.attending.options import layer_options
from thinformer.torch.attend.arguments import Call, Wanted
from thinformer.torch.attend.layer import checked_attention
from thinformer.torch.choose import operators


def qkv(B=2, T=7, S=300, H=4, E=8, D=5, H_kv=None, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    H_kv = H_kv or H
    shapes = (B, T, H, E), (B, S, H_kv, E), (B, S, H_kv, D)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
            for shape in shapes]  # fmt: skip


def padding(S, *lengths):
    """(B, S), True for tokens behind the length of each sequence."""
    return torch.arange(S) >= torch.tensor(lengths)[:, None]


def exact(query, key, value, mask=None, **options):
    """As torch has it; without the keys in a mask (B, S), and zeros for a sequence without any."""
    if mask is not None:
        key, value = (x.masked_fill(mask[..., None, None], 0) for x in (key, value))
        options["attn_mask"] = ~mask[:, None, None]
    options = {"enable_gqa": True} | options
    output = scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (query, key, value)), **options
    ).transpose(1, 2)
    return output if mask is None else output.masked_fill(mask.all(1)[:, None, None, None], 0)


def equal(got, expected, **tolerance):
    torch.testing.assert_close(got, expected, **({"rtol": 1e-9, "atol": 1e-12} | tolerance))


def drawn(seed=0):
    """The seed that the first call, or forward pass, with a generator of that seed takes."""
    generator = torch.Generator().manual_seed(seed)
    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True


def sample_at_most(queries, monkeypatch):
    """For a correction: outputs of sampled queries are exact, and small examples have few."""
    for module in (thinformer.attending.landmarks, operators):
        monkeypatch.setattr(module, "QUERIES", queries)


def seeded(*tensors, seed=0, **options):
    return thinformer_attention(*tensors, generator=torch.Generator().manual_seed(seed), **options)


def everything(*tensors, **options):
    return seeded(*tensors, return_weights=True, return_indices=True, **options)


def by_layer(*tensors, mask=None, weights=False, seed=0, **settings):
    """What a layer of a model computes with these settings, which thins from `min_length` on."""
    call = Call(key_padding_mask=mask, enable_gqa=True)
    wanted = Wanted(weights=weights, seed=torch.tensor(seed))
    return checked_attention(*tensors, layer_options(fallback=None, **settings), call, wanted)


def forbidden(*_, **__):
    raise AssertionError("a value was looked at, or copied to the GPU")


class NoValues(TorchDispatchMode):
    """Refuses operations whose results depend on values in their shapes."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "masked_select", "unique"), name
        if name in ("index", "index_put", "index_put_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask as an index"
        return function(*args, **kwargs or {})
