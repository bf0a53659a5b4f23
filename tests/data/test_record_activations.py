"""Activations that are recorded of a model: exact attention of them is that of its layers."""

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL")

import record_activations
from small_encoders import SMALL, TEXT, WORDS, saved, tokenizer
from transformers import (
    BertConfig,
    BertModel,
    BitImageProcessor,
    LlamaConfig,
    LlamaModel,
    ViTConfig,
    ViTModel,
)

from thinformer.measuring import activations, attention_peers

pytestmark = pytest.mark.slow


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["record_activations.py", *map(str, arguments)])
    record_activations.main()


def test_attention_of_a_text(tmp_path, monkeypatch):
    """Four layers, of which 0, 1 and 3 are recorded; the first line of the file is read."""
    config = BertConfig(**TEXT | {"num_hidden_layers": 4})
    model = saved(tmp_path / "model", BertModel, config, tokenizer())
    (tmp_path / "text.txt").write_text(" ".join(WORDS) + "\nw1 w2\n")
    outputs = []
    for i in (0, 1, 3):
        model.encoder.layer[i].attention.self.register_forward_hook(
            lambda module, arguments, output: outputs.append(output[0])
        )
    with torch.inference_mode():
        model(input_ids=torch.arange(len(WORDS))[None])
    run(monkeypatch, tmp_path / "model", tmp_path / "text.txt", tmp_path / "x.npz")
    layers = activations.load_file(tmp_path / "x.npz")
    assert list(layers) == ["layer0", "layer1", "layer3"]
    for layer, expected in zip(layers.values(), outputs, strict=True):
        assert {array.shape for array in layer} == {(1, len(WORDS), 2, 16)}
        found = attention_peers.exact(*map(torch.from_numpy, layer)).flatten(2)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_scale_is_in_the_queries():
    """Of a model that scales by another number than the root of the head dimension."""
    model = BertModel(BertConfig(**TEXT)).eval()
    for layer in model.encoder.layer:
        layer.attention.self.scaling = 0.7
    outputs = []
    model.encoder.layer[0].attention.self.register_forward_hook(
        lambda module, arguments, output: outputs.append(output[0])
    )
    arrays = record_activations.recorded(model, {"input_ids": torch.arange(40)[None]})
    layer = [torch.from_numpy(arrays[f"layer0_{x}"]) for x in ("query", "key", "value")]
    torch.testing.assert_close(attention_peers.exact(*layer).flatten(2), outputs[0])


def test_pixels_make_long_inputs(tmp_path, monkeypatch):
    from PIL import Image

    config = ViTConfig(**SMALL, image_size=64, patch_size=8)
    processor = BitImageProcessor(do_center_crop=True, crop_size=64, size={"shortest_edge": 64})
    saved(tmp_path / "model", ViTModel, config, processor)
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / "photo.png")
    run(monkeypatch, tmp_path / "model", tmp_path / "photo.png", tmp_path / "x.npz")
    layers = activations.load_file(tmp_path / "x.npz")
    assert layers["layer0"][0].shape == (1, 65, 2, 16)
    _, inputs = record_activations.read(str(tmp_path / "model"), tmp_path / "photo.png", 96)
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)


def test_causal_attention_is_refused():
    config = SMALL | {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = LlamaModel(LlamaConfig(**config)).eval()
    with pytest.raises(ValueError, match="no layer can be thinned"):
        record_activations.recorded(model, {"input_ids": torch.arange(40)[None]})
