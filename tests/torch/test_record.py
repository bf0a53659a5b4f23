"""What attention layers of models of transformers see, and do to the output of the model."""

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

from thinformer.torch.evaluation.record import effects, record, survey
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


def test_what_is_recorded_is_what_layers_attend_to():
    model = make(BertModel, BertConfig(**TEXT))
    names = [f"encoder.layer.{i}.attention.self" for i in (0, 1)]
    attended, taken = [], []
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, arguments, output: attended.append(output[0])
        )
    assert survey(model, [LONG, SHORT, LONG], 256) == (
        {name: [[300], [], [300]] for name in names}, {}
    )  # fmt: skip
    attended.clear()
    record(model, [SHORT, LONG], names, 256, lambda *arrays: taken.append(arrays))
    assert [name for name, *_ in taken] == names
    for (_, query, key, value, mask, scale), expected in zip(taken, attended[2:], strict=True):
        found = scaled_dot_product_attention(query, key, value, mask, scale=scale)
        found = found.transpose(1, 2).reshape(1, 300, 32)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    record(model, [LONG], names[1:], 256, lambda *arrays: taken.append(arrays))
    assert [name for name, *_ in taken[2:]] == names[1:]


def test_a_layer_that_is_called_twice_counts_twice():
    model = make(AlbertModel, AlbertConfig(**TEXT, embedding_size=16))
    assert list(survey(model, [LONG], 256).calls.values()) == [[[300, 300]]]


def test_layers_that_cannot_be_thinned_stay_exact():
    """Three of a model with sliding windows; all of a causal one."""
    config = TEXT | {"num_hidden_layers": 4, "cls_token_id": 1, "sep_token_id": 2}
    model = make(ModernBertModel, ModernBertConfig(**config))
    calls, left = survey(model, [LONG], 256)
    assert calls == {"layers.0.attn": [[300]], "layers.1.attn": [[]], "layers.2.attn": [[]],
                     "layers.3.attn": [[300]]}  # fmt: skip
    assert list(left) == ["layers.1.attn", "layers.2.attn"]
    assert left["layers.1.attn"].startswith("it attends with sliding_window, which thinformer doe")
    register()
    with torch.inference_mode():
        expected = model(**LONG).last_hidden_state
        model.set_attn_implementation("thinformer")
        configure(model, {name: {"exact": True} for name in calls})
        assert torch.equal(model(**LONG).last_hidden_state, expected)
    calls, left = survey(make(LlamaModel, LlamaConfig(**TEXT)), [LONG], 256)
    assert calls == {"layers.0.self_attn": [[]], "layers.1.self_attn": [[]]}
    assert left["layers.1.self_attn"].startswith("it is causal, and thinformer attention is")


def test_masked_tokens_and_short_inputs():
    model = make(BertModel, BertConfig(**TEXT))
    padded = LONG | {"attention_mask": (torch.arange(300) < 280).long()[None]}
    reasons = survey(model, [LONG, padded], 256).left.values()
    assert list(reasons) == ["it masks tokens, of an input that is by itself"] * 2
    assert set(survey(model, [SHORT], 256).left.values()) == {"never attends over 256 or more keys"}


def test_effects_are_of_one_layer_alone():
    """Relative error of the output, mean over inputs; layers that are exact have none."""
    model = make(BertModel, BertConfig(**TEXT | {"num_hidden_layers": 3}))
    names = [f"encoder.layer.{i}.attention.self" for i in range(3)]
    size = {"size": 20, "correction": "queries", "min_length": 0, "fallback": None}
    settings = {names[0]: size, names[1]: {"exact": True}, names[2]: size | {"size": 40}}
    inputs = [LONG, {"input_ids": torch.arange(100, 380)[None] % 50}]
    found = effects(model, inputs, settings)
    assert list(found) == [names[0], names[2]]
    register("thinformer-of-test")
    for name, effect in found.items():
        expected = []
        torch.manual_seed(0)
        for x in inputs:
            with torch.inference_mode():
                model.set_attn_implementation("sdpa")
                exact = model(**x).last_hidden_state
                model.set_attn_implementation("thinformer-of-test")
                configure(model, exact=True)
                configure(model.get_submodule(name), **settings[name])
                output = model(**x).last_hidden_state
            expected.append(float((output - exact).norm() / exact.norm()))
        assert min(expected) > 0
        assert effect == pytest.approx(sum(expected) / 2, rel=1e-4)
