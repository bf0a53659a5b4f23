"""`thinformer eval-model`, on small models with random weights, saved as users have them."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from PIL import Image
from scipy.io import wavfile
from small_encoders import SMALL, TEXT, WORDS, saved, tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPConfig,
    CLIPModel,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from thinformer.commands.main import main
from thinformer.torch.evaluation.encoders import read_sounds
from thinformer.torch.evaluation.metrics import compared
from thinformer.torch.transformers import register

pytestmark = pytest.mark.slow


@pytest.fixture
def texts(tmp_path):
    """Three of them: 300 tokens, 20, and more than the model takes."""
    rng = np.random.default_rng(0)
    path = tmp_path / "texts.txt"
    lines = [" ".join(rng.choice(WORDS, n)) for n in (300, 20, 500)]
    path.write_text("\n\n".join(lines), encoding="utf-8")
    return path


# the published method from 256 tokens on; options that follow replace these
PUBLISHED = ("--correction", "none", "--error-threshold", "none", "--min-length", "256")


def run(*arguments):
    return main(["eval-model", *PUBLISHED, *map(str, arguments), "--rounds", "1"])


def evaluated(tmp_path, *arguments):
    assert run(*arguments, "--json", tmp_path / "figures.json") == 0
    return json.loads((tmp_path / "figures.json").read_text())


def test_figures_are_those_of_the_model(tmp_path, texts, capsys):
    """Each is computed by hand, with the same seed."""
    model = saved(tmp_path / "bert", BertModel, BertConfig(**TEXT), tokenizer())
    figures = evaluated(tmp_path, tmp_path / "bert", "--text", texts, "--g", "0,1", "--seed", 3)
    assert figures["layers"] == [f"encoder.layer.{i}.attention.self" for i in range(2)]
    assert figures["lengths"] == [300, 20, 400]
    assert figures["left_out"] == 1
    lines = texts.read_text().splitlines()
    inputs = [tokenizer()(line, return_tensors="pt")["input_ids"] for line in (lines[0], lines[4])]
    inputs[1] = inputs[1][:, :400]
    attended = []  # (tokens, heads, head dim)
    model.encoder.layer[0].attention.self.register_forward_hook(
        lambda module, arguments, output: attended.append(output[0][0].reshape(-1, 2, 16))
    )
    ends = []
    for g, result in zip((0, 1), figures["results"], strict=True):
        assert result["setting"] == {
            "g": g, "correction": None, "fallback": None, "min_length": 256
        }  # fmt: skip
        assert (result["keys"], result["kept"]) == (350, 16 << g)
        assert result["seconds"] > 0
        cosines, errors, first = [], [], []
        register("by-hand", g=g, correction=None, fallback=None, min_length=256, seed=3)
        for x in inputs:
            states = []
            for implementation in ("sdpa", "by-hand"):
                model.set_attn_implementation(implementation)
                states.append(model(input_ids=x, output_hidden_states=True))
            a, b = (s.last_hidden_state.mean(1)[0] for s in states)
            ends.append(a / a.norm())
            cosines.append(float(a @ b / a.norm() / b.norm()))
            errors.append([float((t - e).norm() / e.norm()) for e, t in
                           zip(states[0].hidden_states[1:], states[1].hidden_states[1:],
                               strict=True)])  # fmt: skip
            exact, thinned = attended[-2:]
            of_heads = (thinned - exact).norm(dim=(0, 2)) / exact.norm(dim=(0, 2))
            first.append(float(of_heads.mean()))
        assert result["metric"] == "cosine"
        assert result["mean"] == pytest.approx(np.mean(cosines), abs=1e-5)
        assert result["worst"] == pytest.approx(min(cosines), abs=1e-5)
        assert result["states"] == pytest.approx(np.mean(errors, axis=0), abs=1e-5)
        assert result["attention"][0] == pytest.approx(np.mean(first), abs=1e-5)
        assert 0.01 < result["attention"][1] < 2
    assert figures["apart"] == pytest.approx(float(ends[0] @ ends[1]), abs=1e-5)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"model: {tmp_path / 'bert'}, BertModel"
    assert printed[1] == "inputs: 3, of 20 to 400 keys; 1 too short to be thinned, left out"
    row = next(line for line in printed if line.startswith("2  g = 1"))
    assert row.split()[10:13] == ["32", "of", "350"]
    assert f"{figures['results'][1]['mean']:.4f}" in row
    row = next(line for line in printed if "encoder.layer.1" in line)
    of_layer = [r[kind][1] for kind in ("attention", "states") for r in figures["results"]]
    assert row.split()[2:] == [f"{error:.4f}" for error in of_layer]


def test_exact_layers_and_sizes(tmp_path, texts):
    saved(tmp_path / "bert", BertModel, BertConfig(**TEXT), tokenizer())
    arguments = tmp_path / "bert", "--text", texts, "--size", "299", "--max-length", 300
    [result] = evaluated(tmp_path, *arguments, "--exact", "0")["results"]
    assert (result["keys"], result["kept"]) == (300, 299)
    assert result["attention"][0] == result["states"][0] == 0
    assert 0 < result["attention"][1] < 0.2  # one key of 300 is left out
    assert 0 < result["states"][1] < 0.05
    assert result["mean"] == pytest.approx(1, abs=0.01)
    assert run(*arguments, "--exact", "0,1") == 2


def test_corrections_and_herding(tmp_path, texts, capsys):
    saved(tmp_path / "bert", BertModel, BertConfig(**TEXT), tokenizer())
    arguments = "--text", texts, "--size", "40", "--correction", "none,herding,queries"
    results = evaluated(tmp_path, tmp_path / "bert", *arguments)["results"]
    common = {"size": 40, "correction": None, "fallback": None, "min_length": 256}
    assert [result["setting"] for result in results] == [
        common, {**common, "temperature": "auto"}, {**common, "correction": "queries"}
    ]  # fmt: skip
    assert len({result["attention"][1] for result in results}) == 3
    printed = capsys.readouterr().out
    assert "size = 40, fallback = None, correction = None, temperature = auto" in printed


def test_images_and_agreement_of_the_largest_logit(tmp_path, capsys):
    images = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for i, path in enumerate(images):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    size = {"height": 64, "width": 64}
    config = ViTConfig(**SMALL, image_size=64, patch_size=4, num_labels=3)
    saved(tmp_path / "vit", ViTForImageClassification, config, ViTImageProcessor(size=size))
    figures = evaluated(tmp_path, tmp_path / "vit", "--image", *images, "--g", "3")
    [result] = figures["results"]
    assert figures["lengths"] == [257, 257]
    assert result["kept"] == 128
    assert result["metric"] == "agreement"
    assert result["mean"] in (0, 0.5, 1)
    assert figures["apart"] is None
    assert "agreement" in capsys.readouterr().out


def test_tower_of_images(tmp_path, texts, capsys):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    config = CLIPConfig(
        text_config=TEXT | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        vision_config=SMALL | {"image_size": 64, "patch_size": 4}, projection_dim=16,
    )  # fmt: skip
    size = {"height": 64, "width": 64}
    saved(tmp_path / "clip", CLIPModel, config, tokenizer(), ViTImageProcessor(size=size))
    figures = evaluated(tmp_path, tmp_path / "clip", "--image", path, "--g", "1")
    assert figures["lengths"] == [257]
    assert figures["results"][0]["metric"] == "cosine"
    assert "CLIPVision" in capsys.readouterr().out
    assert "it is causal" in error(capsys, tmp_path / "clip", "--text", texts)


def test_sounds_of_any_rate_through_the_encoder_alone(tmp_path):
    def tone(rate):
        return np.sin(2 * np.pi * 440 * np.arange(3 * rate) / rate)

    files = {
        "mono": (8000, (32767 * tone(8000)).astype(np.int16)),
        "stereo": (22050, np.stack([tone(22050)] * 2, axis=1)),
        "resampled": (16000, tone(16000)),
    }
    for name, (rate, sound) in files.items():
        wavfile.write(tmp_path / f"{name}.wav", rate, sound)
    config = WhisperConfig(
        d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_layers=1, decoder_attention_heads=1, vocab_size=1, pad_token_id=0,
        max_source_positions=300,
    )  # fmt: skip
    saved(tmp_path / "whisper", WhisperModel, config, WhisperFeatureExtractor(chunk_length=6))
    sounds = [tmp_path / f"{name}.wav" for name in files]
    figures = evaluated(tmp_path, tmp_path / "whisper", "--audio", *sounds, "--g", "2")
    assert figures["lengths"] == [300] * 3
    assert figures["layers"] == ["layers.0.self_attn", "layers.1.self_attn"]
    read = [x["input_features"] for x in read_sounds(str(tmp_path / "whisper"), sounds)]
    loudest = {int(features[0].mean(-1).argmax()) for features in read}
    assert len(loudest) == 1  # the tone is as high
    assert all(x.max() == pytest.approx(float(read[0].max()), abs=0.02) for x in read)


def test_single_logits_are_subtracted():
    """Of a reranker the largest of one logit would always agree."""
    a, b = torch.tensor([1.0]), torch.tensor([-0.5])
    assert compared([a], [b]) == ("difference", [1.5])
    assert compared([torch.tensor([1, 2])], [torch.tensor([1, 3])]) == ("agreement", [0.5])


def error(capsys, *arguments):
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    return printed.err.removeprefix("thinformer eval-model: ").strip()


def test_errors_are_one_line(tmp_path, texts, capsys, monkeypatch):
    bert, nowhere, empty = (tmp_path / name for name in ("bert", "nowhere", "empty"))
    saved(bert, BertModel, BertConfig(**TEXT), tokenizer())
    capsys.readouterr()  # what transformers says of saving, if no other test has silenced it
    empty.mkdir()
    for path, content in (("latin.txt", b"\xe4\xe4"), ("none.txt", b"\n \n"), ("bad.png", b"no"),
                          ("bad.wav", b"no")):  # fmt: skip
        (tmp_path / path).write_bytes(content)
    of_bert = bert, "--text", texts
    nothing = "nothing would be thinned with g = {}, fallback = None, correction = None: no input"
    for arguments, message in [
        ((nowhere, "--text", texts), f"{nowhere}: there is no such folder"),
        ((empty, "--text", texts), f"{empty}: there is no config.json in this folder"),
        (("hypothesis", "--text", texts), "hypothesis is a package without a folder that"),
        ((bert, "--text", nowhere), f"[Errno 2] No such file or directory: '{nowhere}'"),
        ((bert, "--text", tmp_path / "latin.txt"), f"{tmp_path}/latin.txt: is not UTF-8"),
        ((bert, "--text", tmp_path / "none.txt"), f"{tmp_path}/none.txt: there is no text"),
        ((bert, "--image", tmp_path / "bad.png"), f"{bert} has no image processor that can be"),
        ((bert, "--audio", tmp_path / "bad.wav"), f"{bert} has no feature extractor that can be"),
        ((*of_bert, "--g", "1,x"), "--g must be integers, as in 1,2; got 1,x"),
        ((*of_bert, "--g", "-1"), "--g must be an integer of at least 0; got -1"),
        ((*of_bert, "--exact", "2"), "there is no layer 2 to leave exact: 2 attend, from 0 on"),
        ((*of_bert, "--g", "9"), f"{nothing.format(9)} has more than 400 keys, and fewer than 256"),
        ((*of_bert, "--min-length", "401"), f"{nothing.format(2)} has more than 400 keys, and few"),
        ((*of_bert, "--min-length", "auto"), f"{nothing.format(2)} has more than 400 keys, and fe"),
        ((*of_bert, "--min-length", "9,256"), "--min-length must be auto or an integer of at lea"),
        ((*of_bert, "--error-threshold", "low"), "--error-threshold must be a number or none; got"),
        ((*of_bert, "--json", nowhere / "x"), f"{nowhere / 'x'}: there is no folder"),
    ]:  # fmt: skip
        assert error(capsys, *arguments).startswith(message)
    ViTImageProcessor().save_pretrained(bert)
    bad = tmp_path / "bad.png"
    assert error(capsys, bert, "--image", bad) == f"{bad}: is no image that can be read"
    WhisperFeatureExtractor().save_pretrained(bert)
    bad = tmp_path / "bad.wav"
    assert error(capsys, bert, "--audio", bad).startswith(f"{bad}: is no .wav that can be read")
    (bert / "model.safetensors").unlink()
    assert error(capsys, *of_bert).startswith(f"{bert} cannot be loaded: ")
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert error(capsys, *of_bert) == (
        "eval-model needs torch, which is not installed: pip install torch transformers"
    )


def test_models_that_cannot_be_thinned_raise_and_say_why(tmp_path, texts, capsys):
    saved(tmp_path / "llama", LlamaModel, LlamaConfig(**TEXT), tokenizer())
    assert error(capsys, tmp_path / "llama", "--text", texts).startswith(
        "layers.0.self_attn (LlamaAttention): it is causal"
    )
    config = T5Config(vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    saved(tmp_path / "t5", T5Model, config, tokenizer())
    assert "position_bias" in error(capsys, tmp_path / "t5", "--text", texts)


def test_reranker(tmp_path, texts):
    config = BertConfig(**TEXT, num_labels=1)
    saved(tmp_path / "bert", BertForSequenceClassification, config, tokenizer())
    [result] = evaluated(tmp_path, tmp_path / "bert", "--text", texts, "--g", "0")["results"]
    assert result["metric"] == "difference"
    assert result["worst"] >= result["mean"] > 0
