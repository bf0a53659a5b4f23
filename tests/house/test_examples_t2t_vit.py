"""The example of T2T-ViT: its model, its miniature, what its commands print and refuse."""

import csv
import re
import sys
import types

import numpy as np
import pytest
import torch
from checkout import ROOT
from PIL import Image

from examples import attention
from examples.t2t_vit import accuracy, digits, images, model, weights

SMALL = model.Config(
    token_width=8, width=16, depth=2, heads=2, classes=3
)  # of the published image size


PUBLISHED_SHAPES = {
    "cls_token": (1, 1, 512),
    "pos_embed": (1, 197, 512),
    "tokens_to_token.attention1.norm1.weight": (147,),
    "tokens_to_token.attention1.norm1.bias": (147,),
    "tokens_to_token.attention1.attn.qkv.weight": (192, 147),
    "tokens_to_token.attention1.attn.proj.weight": (64, 64),
    "tokens_to_token.attention1.attn.proj.bias": (64,),
    "tokens_to_token.attention1.norm2.weight": (64,),
    "tokens_to_token.attention1.norm2.bias": (64,),
    "tokens_to_token.attention1.mlp.fc1.weight": (64, 64),
    "tokens_to_token.attention1.mlp.fc1.bias": (64,),
    "tokens_to_token.attention1.mlp.fc2.weight": (64, 64),
    "tokens_to_token.attention1.mlp.fc2.bias": (64,),
    "tokens_to_token.project.weight": (512, 576),
    "tokens_to_token.project.bias": (512,),
    "norm.weight": (512,),
    "norm.bias": (512,),
    "head.weight": (1000, 512),
    "head.bias": (1000,),
}
PUBLISHED_SHAPES |= {
    name.replace("attention1", "attention2"): tuple(576 if n == 147 else n for n in shape)
    for name, shape in PUBLISHED_SHAPES.items()
    if "attention1" in name
}
PUBLISHED_SHAPES |= {
    f"blocks.{block}.{name}": shape
    for block in range(24)
    for name, shape in {
        "norm1.weight": (512,),
        "norm1.bias": (512,),
        "attn.qkv.weight": (1536, 512),
        "attn.proj.weight": (512, 512),
        "attn.proj.bias": (512,),
        "norm2.weight": (512,),
        "norm2.bias": (512,),
        "mlp.fc1.weight": (1536, 512),
        "mlp.fc1.bias": (1536,),
        "mlp.fc2.weight": (512, 1536),
        "mlp.fc2.bias": (512,),
    }.items()
}


def test_the_published_names_and_shapes_are_loaded(tmp_path):
    # zeros of one element, as large as the tensors look: the file stays small
    state = {name: torch.zeros(1).expand(shape) for name, shape in PUBLISHED_SHAPES.items()}
    state["head.bias"] = torch.arange(1000.0)
    torch.save({"state_dict_ema": state}, tmp_path / "good.pth.tar")
    with torch.device("meta"):
        shapes = model.T2TViT(model.Config())
    assert sum(x.numel() for x in shapes.parameters()) == 64_000_590
    whole = shapes.to_empty(device="cpu")
    weights.load(whole, tmp_path / "good.pth.tar")
    assert whole.head.bias.tolist() == list(range(1000))
    assert whole.blocks[23].mlp.fc2.weight.abs().sum() == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("norm.bias"), "missing: norm.bias$"),
        (lambda state: state.update(new=torch.zeros(1)), "not of this model: new$"),
        (
            lambda state: state.update(
                {"blocks.1.attn.qkv": state.pop("blocks.1.attn.qkv.weight")}
            ),
            "missing: blocks.1.attn.qkv.weight; not of this model: blocks.1.attn.qkv$",
        ),
        (
            lambda state: state.update({"head.weight": torch.zeros(10, 16)}),
            r"of another shape: head.weight \(10, 16\) instead of \(3, 16\)$",
        ),
        (lambda state: state.clear(), r"missing: cls_token, .* and \d+ more$"),
    ],
)
def test_other_names_and_shapes_are_refused(change, says, tmp_path):
    small = model.T2TViT(SMALL)
    state = small.state_dict()
    change(state)
    torch.save({"state_dict_ema": state}, tmp_path / "changed.pth.tar")
    before = small.head.bias.clone()
    with pytest.raises(ValueError, match=says):
        weights.load(small, tmp_path / "changed.pth.tar")
    assert torch.equal(small.head.bias, before)


def test_position_embeddings():
    table = model.sinusoids(5, 4)
    assert table.shape == (1, 5, 4)
    place = np.arange(5)
    expected = [np.sin(place), np.cos(place), np.sin(place / 100), np.cos(place / 100)]
    np.testing.assert_allclose(table[0], np.stack(expected, axis=1), atol=1e-6)


def test_token_attention_is_as_described():
    """The input's dimension sets the scale, and the skip connection adds the values."""
    torch.manual_seed(0)
    layer = model.TokenAttention(18, 8, attention.exact)
    x = torch.randn(2, 10, 18)
    query, key, value = layer.qkv(x).split(8, dim=-1)
    mixed = (query @ key.mT / 18**0.5).softmax(-1) @ value
    torch.testing.assert_close(layer(x), value + layer.proj(mixed))


def test_the_attention_is_an_argument():
    """All of its callers hand over (B, T, 1, E), and use what comes back."""
    seen = []

    def record(query, key, value):
        seen.append((query.shape, key.shape, value.shape))
        return torch.zeros_like(value), None

    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 224, 224)
    own = model.T2TViT(SMALL, (record, record)).eval()
    with torch.inference_mode():
        nothing = own(pixels)
        assert seen == [((1, 3136, 1, 8),) * 3, ((1, 784, 1, 8),) * 3]
        for layer in own.token_attention:
            layer.attend = attention.exact
        everything = own(pixels)
        own.token_attention[0].attend = attention.by_name("thinformer:size=3136")
        own.token_attention[1].attend = attention.by_name("thinformer:size=784")
        torch.testing.assert_close(own(pixels), everything)
    assert not torch.allclose(nothing, everything)


def test_drop_path_is_of_training():
    drop = model.DropPath(0.5)
    x = torch.ones(1000, 1, 1)
    torch.manual_seed(0)
    assert set(drop(x).flatten().tolist()) == {0.0, 2.0}
    assert drop.eval()(x) is x


def test_preparation(tmp_path):
    """A ramp comes out of resize and crop where it should, in ImageNet's units."""
    ramp = np.broadcast_to(np.linspace(0, 255, 512)[None, :, None], (256, 512, 3))
    Image.fromarray(ramp.astype(np.uint8)).save(tmp_path / "ramp.png")
    pixels = images.prepare(tmp_path / "ramp.png", 224)
    assert pixels.shape == (3, 224, 224)
    back = pixels * images.DEVIATION + images.MEAN
    columns = np.arange(144, 368) * 255 / 511 / 255  # no resizing: the middle 224 of 512
    np.testing.assert_allclose(back[1, 100], columns, atol=1 / 255)
    Image.fromarray(ramp.astype(np.uint8)).resize((1024, 512)).save(tmp_path / "twice.png")
    np.testing.assert_allclose(images.prepare(tmp_path / "twice.png", 224), pixels, atol=0.05)
    Image.new("L", (100, 300), 255).save(tmp_path / "grey.png")
    assert images.prepare(tmp_path / "grey.png", 224)[0, 0, 0] == pytest.approx(0.515 / 0.229)


def test_labels_count_in_the_order_of_names(folder):
    data = images.Folder(folder, 224)
    assert (len(data), data.classes) == (9, 3)
    pixels, labels = data.batch(2, 7)
    assert pixels.shape == (5, 3, 224, 224)
    assert labels.tolist() == [0, 1, 1, 1, 2]
    assert [path.parent.name for path, _ in images.Folder(folder, 224, limit=3).files] == [
        "n01", "n02", "n03",
    ]  # fmt: skip


# --- the accuracy command


@pytest.fixture
def small_model(monkeypatch, tmp_path):
    """The command with a small model in the place of T2T-ViT_t-24."""
    monkeypatch.setattr(accuracy, "Config", lambda: SMALL)
    torch.manual_seed(0)
    path = tmp_path / "small.pth.tar"
    torch.save({"state_dict_ema": model.T2TViT(SMALL).state_dict()}, path)
    return path


def _accuracy(checkpoint, folder, out, *more):
    names = ["--attention", "exact", "--attention", "uniform:size=4/thinformer:size=8"]
    paths = ["--checkpoint", checkpoint, "--images", folder, "--out", out]
    accuracy.main([*map(str, paths), *names, "--batch", "4", "--seeds", "2", *more])


@pytest.mark.slow
def test_a_folder_of_images_interrupted_and_resumed(small_model, folder, tmp_path, capsys):
    _accuracy(small_model, folder, tmp_path / "whole.csv")
    printed = capsys.readouterr().out
    whole = (tmp_path / "whole.csv").read_text()
    rows = list(csv.DictReader(whole.splitlines()))
    assert len(rows) == (1 + 2) * 3  # exact once, the other for two seeds; three batches each
    correct = sum(int(row["correct"]) for row in rows if row["attention"] == "exact")
    assert re.search(rf"^exact +1 +{100 * correct / 9:.2f}$", printed, re.MULTILINE)
    assert re.search(r"^uniform:size=4/thinformer:size=8 +2 .* ± .* ± ", printed, re.MULTILINE)

    class InterruptedError(Exception):
        pass

    def interrupt(self, first, end, batch=images.Folder.batch):
        left[0] -= 1
        if not left[0]:
            raise InterruptedError
        return batch(self, first, end)

    for after in (1, 5):
        left = [after]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(images.Folder, "batch", interrupt)
            with pytest.raises(InterruptedError):
                _accuracy(small_model, folder, tmp_path / "parts.csv")
    part = (tmp_path / "parts.csv").read_text()
    assert whole.startswith(part)
    assert len(part) < len(whole)
    (tmp_path / "parts.csv").write_text(part + whole[len(part) :][:30])  # killed while writing
    _accuracy(small_model, folder, tmp_path / "parts.csv")
    assert (tmp_path / "parts.csv").read_text() == whole
    assert capsys.readouterr().out == printed


@pytest.mark.slow
def test_each_batch_of_each_seed_draws_by_itself(small_model, folder, tmp_path, monkeypatch):
    drawn = []

    def draw(query, key, value):
        drawn.append(torch.rand(1).item())
        return attention.exact(query, key, value)

    monkeypatch.setitem(sys.modules, "mine", types.SimpleNamespace(draw=draw))
    arguments = ["--checkpoint", str(small_model), "--images", str(folder), "--batch", "4"]
    for out in ("a.csv", "b.csv"):
        out = ["--out", str(tmp_path / out), "--attention", "mine.draw", "--seeds", "2"]
        accuracy.main([*arguments, *out])
    assert len(drawn) == 2 * (2 * 3 * 2)  # twice: seeds, batches, layers
    assert len(set(drawn)) == 12
    assert drawn[:12] == drawn[12:]


def test_what_the_accuracy_command_refuses(small_model, folder, tmp_path, capsys):
    def refused(checkpoint=small_model, images=folder, out=tmp_path / "out.csv", more=()):
        with pytest.raises(SystemExit) as stopped:
            _accuracy(checkpoint, images, out, *more)
        assert "\n" not in stopped.value.code
        return stopped.value.code

    assert refused(images=tmp_path / "no").endswith(
        "no does not exist or is not a folder; it must have one a class"
    )
    (tmp_path / "flat").mkdir()
    assert "flat has no folders with .JPEG" in refused(images=tmp_path / "flat")
    assert "no.tar does not exist or is not a file" in refused(checkpoint=tmp_path / "no.tar")
    (tmp_path / "text.tar").write_text("this is not a checkpoint")
    assert "text.tar is no checkpoint that torch can read" in refused(tmp_path / "text.tar")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "other.tar")
    says = "other.tar has no state_dict_ema; it has state_dict, epoch"
    assert refused(tmp_path / "other.tar").endswith(says)
    with pytest.raises(SystemExit):
        _accuracy(small_model, folder, tmp_path / "out.csv", "--limit", "0")
    assert "--limit: must be a whole number of at least 1; got '0'" in capsys.readouterr().err
    assert "error: attention 'exakt' is unknown" in refused(more=("--attention", "exakt"))

    (tmp_path / "corrupt" / "n01").mkdir(parents=True)
    broken = tmp_path / "corrupt" / "n01" / "0.JPEG"
    broken.write_bytes((folder / "n01" / "0.JPEG").read_bytes()[:500])
    assert f"{broken} cannot be read as an image" in refused(images=tmp_path / "corrupt")

    _accuracy(small_model, folder, tmp_path / "out.csv", "--limit", "2")
    assert "out.csv was made with images 2, not 9; name another --out" in refused()
    capsys.readouterr()


# --- the miniature


@pytest.mark.slow
def test_the_miniature_is_right_for_97_percent(tmp_path, capsys):
    """All held-out digits with exact attention: what the stored table says."""
    out = tmp_path / "digits.csv"
    accuracy.main(["--digits", "--attention", "exact", "--out", str(out)])
    stored = (ROOT / "examples" / "t2t_vit" / "digits.txt").read_text()
    line = re.search(r"^exact +1 +([\d.]+)", stored, re.MULTILINE)[1]
    assert re.search(r"^exact +1 +([\d.]+)", capsys.readouterr().out, re.MULTILINE)[1] == line
    assert float(line) >= 97
    assert f"```text\n{stored}```" in (ROOT / "examples" / "t2t_vit" / "README.md").read_text()
    assert digits.WEIGHTS.stat().st_size < 3e6


@pytest.mark.slow
def test_the_table_of_the_miniature(tmp_path, capsys):
    """Reduced: some digits, one size, two seeds."""
    reduced = ["--limit", "60", "--sizes", "32", "--seeds", "2"]
    files = ["--out", str(tmp_path / "digits.csv"), "--plot", str(tmp_path / "plot.png")]
    accuracy.main(["--digits", *reduced, *files])
    printed = capsys.readouterr().out
    found = dict(re.findall(r"^(\S+) +\d +([\d.]+)", printed, re.MULTILINE))
    assert list(found) == ["exact", *(name.format(32) for name in accuracy.FAMILIES)]
    assert float(found["thinformer:size=32"]) > 90
    assert float(found["thinformer:size=32,correction=queries"]) > 95
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size == (900, 600)


def test_training_and_test_digits_are_apart():
    (train, _), (test, labels) = digits.load("train"), digits.load("test")
    assert (len(train), len(test)) == (1347, 450)
    assert labels.bincount().min() >= 43
    same = (train.flatten(1)[:, None] == test.flatten(1)[None]).all(-1)
    assert not same.any()
    assert digits.enlarge(test[:2]).shape == digits.augment(test[:2]).shape == (2, 1, 112, 112)
    np.testing.assert_allclose(  # the middles of the 8 x 8 fields are where they were
        (digits.enlarge(test[:2])[:, :, 7::14, 7::14] + 1) / 2, test[:2], atol=0.12
    )


def test_summary_and_table():
    rows = [
        ["w", "6", "4", "exact", "0", "0", "4"],
        ["w", "6", "4", "exact", "0", "4", "2"],
        ["w", "6", "4", "a", "0", "0", "3"],
        ["w", "6", "4", "a", "0", "4", "0"],
        ["w", "6", "4", "a", "1", "0", "3"],
        ["w", "6", "4", "a", "1", "4", "1"],
        ["w", "6", "4", "a", "2", "0", "3"],  # not complete
    ]
    found = accuracy.summary(rows, 6)
    assert {name: values.tolist() for name, values in found.items()} == {
        "exact": [100.0],
        "a": [50.0, pytest.approx(200 / 3)],
    }
    # mean 58.33, deviation 11.785, over sqrt(2): 8.33
    assert accuracy.table(found).splitlines()[-1].split() == [
        "a", "2", "58.33", "±", "8.33", "41.67", "±", "8.33",
    ]  # fmt: skip
