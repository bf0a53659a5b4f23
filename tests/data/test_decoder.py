"""The recorded decoder: what is in the file, and that the script records what layers attend to."""

import numpy as np
import pytest
from activation_codes import STEPS
from checkout import ROOT

from thinformer import data

FILE = ROOT / "thinformer" / "data" / "activations" / "decoder.npz"


def test_what_is_recorded():
    """Two layers of float16, tokens first, as the docstring says."""
    layers, _ = data.load_decoder()
    assert list(layers) == ["layer4", "layer14"]
    for roles in layers.values():
        assert {role: array.shape for role, array in roles.items()} == {
            "query": (1, 384, 6, 64), "key": (1, 2176, 2, 64), "value": (1, 2176, 2, 64),
        }  # fmt: skip
        for array in roles.values():
            assert array.dtype == np.float16
            assert np.isfinite(array).all()
    assert FILE.stat().st_size < 1_400_000


def test_the_text_is_ours():
    _, tokens = data.load_decoder()
    assert len(tokens) == 2176
    text = "".join(tokens)
    assert text.startswith("# FAQ\n\n## Samplers and files\n")
    assert "\n# The algorithm\n\n## From halving to attention\n" in text


def test_steps_are_a_thirty_second_of_the_deviation():
    """So coding moves a number by a sixty-fourth of the deviation at most."""
    with np.load(FILE) as file:
        layers, _ = data.load_decoder()
        for layer, roles in layers.items():
            for role, array in roles.items():
                deviation = array.astype(float).std(axis=(0, 1))
                step = file[f"{layer}_{role}_step"]
                np.testing.assert_allclose(step, deviation / STEPS, rtol=3e-3)


def test_layers_attend_as_a_decoder_does():
    """Layer 14 to the first token, which is a sink; layer 4 hardly to it."""
    layers, _ = data.load_decoder()
    first = {}
    for layer, roles in layers.items():
        query, key = (roles[role][0].astype(float) for role in ("query", "key"))
        logits = np.einsum("the,she->hts", query[256:], key[:2048].repeat(3, axis=1)) / 8
        weights = np.exp(logits - logits.max(axis=2, keepdims=True))
        first[layer] = (weights[..., 0] / weights.sum(axis=2)).mean()
    assert first["layer4"] < 0.05
    assert first["layer14"] > 0.6


def test_what_is_not_installed_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "HERE", tmp_path)
    monkeypatch.delenv("THINFORMER_ACTIVATIONS")
    with pytest.raises(FileNotFoundError, match="THINFORMER_ACTIVATIONS to its folder thinformer"):
        data.load_decoder()
    monkeypatch.setenv("THINFORMER_ACTIVATIONS", str(FILE.parent))  # the remedy
    assert len(data.load_decoder()[1]) == 2176


@pytest.mark.slow
def test_the_script_records_what_layers_attend_to():
    """Exact attention of what is recorded is the input of the layer's last projection."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import record_decoder
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=64, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    outputs = []
    model.model.layers[1].self_attn.o_proj.register_forward_hook(
        lambda module, arguments, output: outputs.append(arguments[0])
    )
    arrays = record_decoder.recorded(model, torch.arange(40)[None], (1,), (1,))
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes == {
        "layer1_query": (1, 40, 2, 16),
        "layer1_key": (1, 40, 1, 16),
        "layer1_value": (1, 40, 1, 16),
    }
    query, key, value = (
        torch.from_numpy(arrays[f"layer1_{role}"]).transpose(1, 2) for role in
        ("query", "key", "value")
    )  # fmt: skip
    found = torch.nn.functional.scaled_dot_product_attention(
        query, key.expand_as(query), value.expand_as(query), is_causal=True
    )
    expected = outputs[0].view(1, 40, 4, 16)[:, :, 2:]
    torch.testing.assert_close(found.transpose(1, 2), expected)
