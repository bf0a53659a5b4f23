"""Torch tensors of any layout, with and without padding."""

import pytest
import torch
from tensors import NoValues, OnCuda, forbidden

from thinformer.attending.options import KeySelection
from thinformer.halving.plan import plan
from thinformer.torch.choose import on_cpu, padding_on_gpu
from thinformer.torch.choose.heads import Heads
from thinformer.torch.choose.operators import select
from thinformer.torch.choose.seeds import bits_of_seed


@pytest.mark.parametrize(
    ("dtype", "layout"),
    [*((dtype, "(B, S, H, E)") for dtype in ("bfloat16", "float16", "float32", "float64")),
     ("bfloat16", "(H, S, B, 2 E)"), ("float64", "(H, S, B, 2 E)"), ("float16", "expanded")],
)  # fmt: skip
def test_torch(torch_on_the_simulator, dtype, layout):
    """From tensors of any strides and dtype to tensors, as on the CPU with the same generator."""
    generator = torch.Generator().manual_seed(0)
    of = {"dtype": getattr(torch, dtype)}
    key = torch.randn((1, 20, 2, 3), generator=generator).to(**of)
    value = torch.randn((1, 20, 2, 5), generator=generator).to(**of)
    if layout == "expanded":
        key, value = key[:1, :, :1].expand(1, 20, 2, 3), value[:1, :, :1].expand(1, 20, 2, 5)
    elif layout == "(H, S, B, 2 E)":
        key, value = (x.transpose(0, 2).repeat_interleave(2, 3)[..., ::2].transpose(0, 2)
                      for x in (key, value))  # fmt: skip
    settings = plan(20, 2, 3, 0.5)
    kept, finite = torch_on_the_simulator.select(
        key, value, settings=settings, scale=0.7, seed=torch.tensor(bits_of_seed(5))
    )
    expected, _, _ = select(key, value, None, torch.tensor(5), 2, 3, 0.7, "even", 0)
    assert (kept.shape, kept.dtype, kept.is_contiguous()) == ((1, 2, 3), torch.int64, True)
    assert torch.equal(kept, expected)
    assert finite.tolist() == [[True, True]]


def test_torch_keeps_all_where_nothing_is_thinned(torch_on_the_simulator):
    key = torch.zeros(2, 5, 2, 3)
    kept, finite = torch_on_the_simulator.select(
        key, key, settings=plan(5, 2, None, 0.5), scale=1.0, seed=torch.tensor(0)
    )
    assert torch.equal(kept, torch.arange(5).expand(2, 2, 5))
    assert finite.all()
    kept, finite = torch_on_the_simulator.select(
        key[:0], key[:0], settings=plan(5, 2, 1, 0.5), scale=1.0, seed=torch.tensor(0)
    )
    assert (kept.shape, finite.shape) == ((0, 2, 1), (0, 2))


@pytest.mark.parametrize(("pre_thin", "min_length"), [("even", 0), ("stride", 0), ("even", 12)])
def test_torch_with_padding(torch_on_the_simulator, pre_thin, min_length):
    """Each sequence keeps what it keeps on the CPU, NaN behind the mask included; none, of none."""
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn((2, 6, 20, 2, 3), generator=generator)
    lengths = torch.tensor([20, 9, 0, 17, 9, 2])
    valid = torch.arange(20) < lengths[:, None]
    valid[4] = valid[4].flip(0)  # padding in front
    valid[3] = torch.arange(20) % 7 != 3  # and within
    key[~valid], value[~valid] = torch.nan, torch.inf
    value[1, 4, 1] = torch.nan
    expected = select(key, value, valid, torch.tensor(5), 0, 4, 0.7, pre_thin, min_length)
    kept = expected[0].shape[-1]
    selection = KeySelection(0, 4, pre_thin, correction=None, min_length=min_length)
    heads = Heads(None, key.as_subclass(OnCuda), value, valid, 0.7)
    found = on_cpu.select(heads, selection, torch.tensor(bits_of_seed(5)), kept)
    for one, other in zip(found, expected, strict=True):
        if one.dtype == torch.int64 and one.ndim == 3:
            good = expected[2][..., None].expand_as(other)  # a head with NaN keeps some or other
            one, other = one.where(good, 0), other.where(good, 0)
        assert torch.equal(one, other)
    assert not found[2][1, 1]
    heads = Heads(None, key[:0].as_subclass(OnCuda), value[:0], valid[:0], 0.7)
    none = on_cpu.select(heads, selection, torch.tensor(5), kept)
    assert [(tuple(x.shape), x.dtype) for x in none] == [
        ((0, *x.shape[1:]), x.dtype) for x in expected
    ]


def test_a_mask_does_not_wait(torch_on_the_simulator, monkeypatch):
    """No operation looks at a value, so that a CUDA graph can capture it; all heads are alike."""
    generator = torch.Generator().manual_seed(1)
    key, value = torch.randn((2, 3, 70, 1, 2), generator=generator).double()
    valid = torch.arange(70) < torch.tensor([70, 33, 1])[:, None]
    seed = torch.tensor(bits_of_seed(5))
    expected = select(key, value, valid, torch.tensor(5), 0, None, 0.7, "even", 0)
    settings = {"g": 0, "size": None, "pre_thin": "even", "scale": 0.7, "seed": seed}
    torch_on_the_simulator.select_valid(key, value, valid, 8, 0, **settings)  # copies the tables
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    for name in ("item", "tolist", "__bool__", "__int__", "__index__", "nonzero", "cpu", "to"):
        monkeypatch.setattr(torch.Tensor, name, forbidden)
    monkeypatch.setattr(torch, "from_numpy", forbidden)
    with NoValues():
        found = torch_on_the_simulator.select_valid(key, value, valid, 8, 0, **settings)
    monkeypatch.undo()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert found[1].tolist() == [8, 4, 1]


def test_a_mask_is_not_captured_with_a_correction(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    valid = torch.ones(1, 4, dtype=torch.bool)
    x = torch.zeros(1, 4, 1, 2)
    with pytest.raises(RuntimeError, match="captured in a CUDA graph with a correction"):
        padding_on_gpu.unpadded(x, x, x, valid, min_length=0, g=0, size=2, group=1)


@pytest.mark.parametrize(("E", "D"), [(1, 1), (300, 1), (1, 260)])
def test_few_columns_and_many(E, D, torch_on_the_simulator):
    """More than are staged at once by either factor; one pair in a bucket; infinity in float16."""
    generator = torch.Generator().manual_seed(0)
    key = torch.randn((1, 6, 1, E), generator=generator).half() / E**0.5
    value = torch.randn((1, 6, 1, D), generator=generator).half()
    seed = torch.tensor(bits_of_seed(5))
    for size in (1, 3, 6):
        settings = plan(6, 0, size, 0.5)
        kept, finite = torch_on_the_simulator.select(
            key, value, settings=settings, scale=1.0, seed=seed
        )
        expected, _, _ = select(key, value, None, torch.tensor(5), 0, size, 1.0, "even", 0)
        assert torch.equal(kept, expected)
        assert finite.all()
    value[0, 2, 0, 0] = torch.inf
    kept, finite = torch_on_the_simulator.select(
        key, value, settings=plan(6, 0, 1, 0.5), scale=1.0, seed=seed
    )
    assert not finite.any()
    assert 0 <= int(kept) < 6
