"""The example of BigGAN: its generator with another attention, its images and its scores."""

import re
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from examples import attention


@pytest.fixture(scope="module")
def biggan():
    # its package is in the README's test command; without it these fail, and say what to install
    from examples.biggan import generator

    return generator


@pytest.mark.slow
def test_biggan_attention_equals_the_packages_own(biggan):
    """With its widths, and weights that give the attention a say."""
    torch.manual_seed(0)
    layer = biggan.settled(biggan.SelfAttn(512))
    torch.nn.init.ones_(layer.gamma)
    x = torch.randn(1, 512, 64, 64)
    with torch.inference_mode():
        own = layer(x)
        assert (own - x).std() > 0.1
        for name in ("exact", "thinformer:size=1024", "thinformer:size=2000", "strided:size=1024"):
            other = biggan.SelfAttention(layer, attention.by_name(name))(x)
            torch.testing.assert_close(other, own, atol=1e-5, rtol=0)
        thinned = biggan.SelfAttention(layer, attention.by_name("thinformer:g=2"))(x)
    assert (thinned - own).abs().max() > 1e-3


@pytest.fixture
def tiny_biggan(biggan, monkeypatch):
    """As it is up to the attention, with fewer channels and nothing that enlarges after it."""
    layers = (*biggan.LAYERS_512[:9], (False, 4, 2), (False, 2, 1))
    monkeypatch.setattr(biggan, "LAYERS_512", layers)
    monkeypatch.setattr(biggan, "random", lambda make=biggan.random: make(channel_width=16))
    return biggan


@pytest.mark.slow
def test_the_swapped_generator_equals_the_packages_own(tiny_biggan):
    whole = tiny_biggan.random()
    z, label = torch.randn(1, 128), torch.eye(1000)[[7]]
    with torch.inference_mode():
        own = whole(z, label, 0.4)
        layer = tiny_biggan.swap(whole, attention.by_name("thinformer:size=1024"))
        torch.testing.assert_close(whole(z, label, 0.4), own, atol=1e-5, rtol=0)
        layer.attend = lambda q, k, v: (torch.zeros(*q.shape[:3], v.shape[-1]), None)
        assert (whole(z, label, 0.4) - own).abs().max() > 1e-3


@pytest.mark.slow
def test_images_are_written(tiny_biggan, tmp_path):
    from examples.biggan import generate

    def files(name, *more):
        out = tmp_path / name
        generate.main(["--random", "--out", str(out), "--images", "2", "--batch", "1", *more])
        return {path.name: path.read_bytes() for path in out.iterdir()}

    exact = files("exact")
    assert exact.keys() == {"00000.png", "00001.png", "grid.png"}
    assert exact["00000.png"] != exact["00001.png"]
    with Image.open(tmp_path / "exact" / "00000.png") as image:
        assert image.size == (64, 64)
        assert np.asarray(image).std() > 5
    with Image.open(tmp_path / "exact" / "grid.png") as image:
        assert image.size == (512, 256)
    (tmp_path / "exact" / "00001.png").unlink()
    assert files("exact") == exact  # goes on where it was
    assert files("thinned", "--attention", "thinformer:g=0").keys() == exact.keys()


@pytest.mark.slow
def test_what_generate_refuses(biggan, tmp_path):
    from examples.biggan import generate

    def refused(*arguments):
        with pytest.raises(SystemExit) as stopped:
            generate.main([*map(str, arguments), "--out", str(tmp_path / "out")])
        assert "\n" not in stopped.value.code
        return stopped.value.code

    assert "no config.json; it must hold the published" in refused("--weights", tmp_path)
    assert "'exakt' is unknown" in refused("--random", "--attention", "exakt")
    config = biggan.BigGANConfig(channel_width=4)
    (tmp_path / "config.json").write_text(config.to_json_string())
    made = biggan.BigGAN(config)
    state = made.state_dict()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert torch.equal(biggan.load(tmp_path).embeddings.weight, made.embeddings.weight)
    del state["embeddings.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    says = refused("--weights", tmp_path)
    assert "the weights do not fit" in says
    assert "embeddings.weight" in says
    (tmp_path / "pytorch_model.bin").write_text("no weights")
    assert "the weights do not fit" in refused("--weights", tmp_path)


@pytest.mark.slow
def test_run_time_of_biggans_attention(biggan, capsys):
    from examples.biggan import runtime

    runtime.main(["--batch", "1", "--batches", "1", "--warmup", "0", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "batches of 1, float32; median of 1; 4096 queries and 1024 keys of 64" in out
    for name in ("exact", *runtime.PUBLISHED):
        assert re.search(rf"^{name} +[\d.]+ +[\d.]+ x$", out, re.MULTILINE)


def test_scores(folder, tmp_path, monkeypatch, capsys):
    """What torch-fidelity is asked for, and the table of its answers; it is not run here."""
    from examples.biggan import scores

    (tmp_path / "g2").mkdir()
    for number in range(2):
        Image.new("RGB", (512, 512), (number, 2, 3)).save(tmp_path / "g2" / f"0000{number}.png")
    Image.new("RGB", (512, 256)).save(tmp_path / "g2" / "grid.png")
    arguments = [str(tmp_path / "g2"), "--real", str(folder)]
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # as if it were not installed
    with pytest.raises(SystemExit, match="torch_fidelity.*; pip install torch-fidelity"):
        scores.main(arguments)
    with pytest.raises(SystemExit, match=r"no is no folder with \*.png files in it"):
        scores.main([str(tmp_path / "no"), *arguments[1:]])

    def calculate_metrics(**asked):
        generated, real = asked["input1"], asked["input2"]
        assert (len(generated), len(real)) == (2, 9)
        assert generated[1].dtype == torch.uint8
        assert generated[1][:, 0, 0].tolist() == [1, 2, 3]
        assert {tuple(data[n].shape) for data in (generated, real) for n in (0, 1)} == {
            (3, 512, 512)
        }
        assert (asked["fid"], asked["isc"], asked["isc_splits"]) == (True, True, 10)
        return {
            "frechet_inception_distance": 30.531,
            "inception_score_mean": 56.764,
            "inception_score_std": 0.243,
        }

    stub = types.ModuleType("torch_fidelity")
    stub.calculate_metrics = calculate_metrics
    monkeypatch.setitem(sys.modules, "torch_fidelity", stub)
    scores.main(arguments)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.split() == [str(tmp_path / "g2"), "30.53", "56.76", "0.24"]
