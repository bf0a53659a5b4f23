"""What the examples share: attention by name, and timing."""

import re

import numpy as np
import pytest
import torch

from examples import attention, timing
from examples.t2t_vit import runtime
from thinformer import ThinformerAttention


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return torch.randn(3, 2, 40, 2, 8).unbind()


@pytest.mark.parametrize(
    "name", ["uniform:size=40", "strided:size=40", "thinformer:size=40", "strided:size=99"]
)
def test_keeping_all_keys_is_exact(name, tensors):
    output, _ = attention.by_name(name)(*tensors)
    torch.testing.assert_close(output, attention.exact(*tensors)[0])


def test_exact_is_softmax_attention(tensors):
    query, key, value = tensors
    scores = torch.einsum("bthe,bshe->bhts", query, key) / 8**0.5
    expected = torch.einsum("bhts,bshe->bthe", scores.softmax(-1), value)
    torch.testing.assert_close(attention.exact(*tensors)[0], expected)


def test_strided_keys_are_the_middles_of_equal_parts(tensors):
    query, key, value = tensors
    kept = [5, 15, 25, 35]
    expected = attention.exact(query, key[:, kept], value[:, kept])[0]
    torch.testing.assert_close(attention.Strided(4)(query, key, value)[0], expected)


def test_uniform_keys_are_distinct_and_differ_by_head():
    one_hot = torch.eye(16)[:, None].expand(2, 16, 3, 16)
    torch.manual_seed(0)
    output, _ = attention.Uniform(4)(torch.zeros(2, 1, 3, 16), one_hot, one_hot)
    kept = [tuple(row.nonzero().flatten().tolist()) for row in output.flatten(0, 2)]
    assert set(map(len, kept)) == {4}
    assert len(set(kept)) > 1
    torch.testing.assert_close(output.sum(-1), torch.ones(2, 1, 3))


def test_scaled_is_the_softmax_scale(tensors):
    query, key, value = tensors
    scores = torch.einsum("bthe,bshe->bhts", query, key) * 0.7
    expected = torch.einsum("bhts,bshe->bthe", scores.softmax(-1), value)
    for attend in (attention.exact, ThinformerAttention(size=40)):
        torch.testing.assert_close(attention.scaled(attend, *tensors, 0.7)[0], expected)


def test_scaled_thinformer_chooses_as_with_its_own_scale():
    query, key, value = torch.randn(3, 1, 256, 1, 8).unbind()
    torch.manual_seed(1)
    expected = ThinformerAttention(g=0, scale=0.2)(query, key, value)[0]
    torch.manual_seed(1)
    output = attention.scaled(ThinformerAttention(g=0), query, key, value, 0.2)[0]
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("exakt", "attention 'exakt' is unknown; it is exact, uniform:size=.., "),
        ("uniform", "attention 'uniform': .*'size'"),
        ("strided:size=0", "size must be at least 1; got 0"),
        ("uniform:size", "attention 'uniform:size': "),
        ("thinformer:g=-1", "attention 'thinformer:g=-1': "),
        ("thinformer:h=2", "attention 'thinformer:h=2': .*'h'"),
        ("no_such_module.function", "No module named 'no_such_module'"),
        ("math.no_such", "'no_such'"),
    ],
)
def test_unknown_attention(name, says):
    with pytest.raises(ValueError, match=says):
        attention.by_name(name)


def test_attention_of_a_module():
    name = "torch.nn.functional.scaled_dot_product_attention"
    assert attention.by_name(name) is torch.nn.functional.scaled_dot_product_attention


@pytest.mark.slow
def test_run_times_of_both_layers(capsys):
    arguments = ["--batch", "1", "--batches", "2", "--warmup", "0", "--device", "cpu"]
    runtime.main([*arguments, "--attention", "thinformer:g=2/thinformer:g=4"])
    out = capsys.readouterr().out
    assert "batches of 1, float32; median of 2; 3136 queries and keys of 64 in layer 1" in out
    cells = r" +[\d.]+ +[\d.]+ x +[\d.]+ +[\d.]+ x$"
    assert re.search(rf"^exact{cells}", out, re.MULTILINE)
    assert re.search(rf"^thinformer:g=2/thinformer:g=4{cells}", out, re.MULTILINE)


def test_table_of_times():
    times = {
        "exact": [np.array([1.0, 9.0, 4.0]), np.array([2.0])],
        "other": [np.array([1.0, 3.0, 2.0]), np.array([4.0])],
    }
    text = timing.table(times, ["layer 1", "layer 2"])
    assert text.splitlines()[-1].split() == ["other", "2.00", "2.00", "x", "4.00", "0.50", "x"]
