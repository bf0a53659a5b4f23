"""What attention layers of models of transformers see, as arrays."""

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

pytest.importorskip("transformers")

from small_encoders import SMALL
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
)

from thinformer import attention, compress_kv
from thinformer.torch.evaluation.record import as_arrays, record, survey
from thinformer.torch.transformers import configure, register

pytestmark = pytest.mark.slow

TEXT = SMALL | {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LONG, SHORT = ({"input_ids": torch.arange(n)[None] % 50} for n in (300, 20))


def make(cls, config):
    torch.manual_seed(0)
    model = cls(config).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False).mul_(3)  # attention that is not uniform
    return model


def test_arrays_attend_as_the_tensors_do():
    """With a scale of their own and heads that share keys; chosen from as with that scale."""
    generator = torch.Generator().manual_seed(0)
    query, frequency = (torch.randn(2, H, n, 16, generator=generator)
                        for H, n in ((4, 30), (2, 1)))  # fmt: skip
    angle = frequency * torch.arange(128)[:, None] / 10
    key, value = 2 * torch.cos(angle), torch.sin(angle[..., :6])
    arrays = as_arrays(query, key, value, 1.0)
    assert [x.shape for x in arrays] == [(2, 60, 2, 16), (2, 128, 2, 16), (2, 128, 2, 6)]
    assert [x.dtype for x in arrays] == [np.float32] * 3
    expected = scaled_dot_product_attention(query, key, value, scale=1.0, enable_gqa=True)
    output = attention(*arrays, size=128).output  # a group's heads one after the other
    found = output.reshape(2, 2, 30, 2, 6).transpose(0, 3, 1, 2, 4).reshape(2, 4, 30, 6)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    plain = [x.transpose(1, 2).numpy() for x in (key, value)]
    chosen = compress_kv(*plain, size=16, scale=1.0, rng=0)
    np.testing.assert_array_equal(compress_kv(*arrays[1:], size=16, rng=0), chosen)
    assert not np.array_equal(compress_kv(*plain, size=16, rng=0), chosen)


def test_what_is_recorded_is_what_layers_attend_to():
    model = make(BertModel, BertConfig(**TEXT))
    names = [f"encoder.layer.{i}.attention.self" for i in (0, 1)]
    attended, taken = [], []
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, arguments, output: attended.append(output[0].numpy())
        )
    assert survey(model, [LONG, SHORT, LONG], 256) == ({name: [300, 300] for name in names}, {})
    attended.clear()
    record(model, [SHORT, LONG], names, 256, lambda *arrays: taken.append(arrays))
    assert [name for name, *_ in taken] == names
    for (_, *arrays), expected in zip(taken, attended[2:], strict=True):
        found = attention(*arrays, size=300).output.reshape(1, 300, 32)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    record(model, [LONG], names[1:], 256, lambda *arrays: taken.append(arrays))
    assert [name for name, *_ in taken[2:]] == names[1:]


def test_a_layer_that_is_called_twice_counts_twice():
    model = make(AlbertModel, AlbertConfig(**TEXT, embedding_size=16))
    assert list(survey(model, [LONG], 256).calls.values()) == [[300, 300]]


def test_layers_that_cannot_be_thinned_stay_exact():
    """Three of a model with sliding windows; all of a causal one."""
    config = TEXT | {"num_hidden_layers": 4, "cls_token_id": 1, "sep_token_id": 2}
    model = make(ModernBertModel, ModernBertConfig(**config))
    calls, left = survey(model, [LONG], 256)
    assert calls == {"layers.0.attn": [300], "layers.1.attn": [], "layers.2.attn": [],
                     "layers.3.attn": [300]}  # fmt: skip
    assert list(left) == ["layers.1.attn", "layers.2.attn"]
    assert left["layers.1.attn"].startswith("it attends with sliding_window, which thinformer doe")
    register()
    with torch.inference_mode():
        expected = model(**LONG).last_hidden_state
        model.set_attn_implementation("thinformer")
        configure(model, {name: {"exact": True} for name in calls})
        assert torch.equal(model(**LONG).last_hidden_state, expected)
    calls, left = survey(make(LlamaModel, LlamaConfig(**TEXT)), [LONG], 256)
    assert calls == {"layers.0.self_attn": [], "layers.1.self_attn": []}
    assert left["layers.1.self_attn"].startswith("it is causal, and thinformer attention is")


def test_masked_tokens_and_short_inputs():
    model = make(BertModel, BertConfig(**TEXT))
    padded = LONG | {"attention_mask": (torch.arange(300) < 280).long()[None]}
    reasons = survey(model, [LONG, padded], 256).left.values()
    assert list(reasons) == ["it masks tokens, of an input that is by itself"] * 2
    assert set(survey(model, [SHORT], 256).left.values()) == {"never attends over 256 or more keys"}
