"""`thinformer tune` of decoders: what it prints and writes, what reads it, and its errors."""

import json

import numpy as np
import pytest

pytest.importorskip("transformers")

from scipy.special import rel_entr
from small_decoders import WORDS, random_decoder
from small_encoders import TEXT, saved, tokenizer
from transformers import BertConfig, BertModel, DynamicCache

from thinformer.commands.main import main
from thinformer.torch.cache import ThinnedCache
from thinformer.torch.evaluation import decoders

pytestmark = pytest.mark.slow


@pytest.fixture
def texts(tmp_path):
    """Three files, of 300, 250 and 280 tokens."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path, n in zip(paths, (300, 250, 280), strict=True):
        path.write_text(" ".join(rng.choice(WORDS, n)), encoding="utf-8")
    return paths


@pytest.fixture
def llama(tmp_path):
    random_decoder(tmp_path / "llama", num_hidden_layers=3)
    return tmp_path / "llama"


def run(*arguments):
    return main(["tune", *map(str, arguments)])


def error(capsys, *arguments):
    assert run(*arguments) == 2
    return capsys.readouterr().err.removeprefix("thinformer tune: ").rstrip("\n")


def test_a_cache_with_the_sizes_written_has_the_divergence_printed(tmp_path, llama, texts, capsys):
    output = tmp_path / "sizes.json"
    options = "--prompt", 200, "--read", 40, "--size", 80, "-o", output
    assert run(llama, "--text", *texts, *options) == 0
    printed = capsys.readouterr().out
    content = json.loads(output.read_text())
    sizes, measured = content["sizes"], content["measured"]
    assert sum(sizes) == 240
    assert len(set(sizes)) > 1
    assert (measured["prompt"], measured["read"], measured["size"]) == (200, 40, 80)
    assert (measured["tuned_on"], measured["held_out"]) == (2, 1)
    decoder = decoders.load_decoder(str(llama))
    tokens = decoder.tokens_of(texts[1].read_text())

    def probabilities(cache):
        decoder.logits(tokens[:200], cache)
        return decoder.logits(tokens[200:240], cache).double().softmax(1).numpy()

    config = decoder.model.config
    full = probabilities(DynamicCache(config=config))
    found = [
        rel_entr(full, probabilities(ThinnedCache(config, size, growth=41))).sum(1).mean()
        for size in (output, 80)
    ]
    assert [measured["kl"], measured["equal_kl"]] == pytest.approx(found, rel=1e-4)
    assert (
        f"\nKL on 1 text that it was not tuned on: {found[0]:.4f}; with 80 keys in each layer "
        f"{found[1]:.4f} ({1 - found[0] / found[1]:.0%} less)\n" in printed
    )
    assert f"\nmodel: {llama}, LlamaForCausalLM; tuned on 2 of 3 texts\n" in printed
    rows = [line.split() for line in printed.split("layer  KL of it alone  keys\n")[1].split("\n")]
    assert [(row[0], row[2]) for row in rows[:3]] == [(str(i), str(sizes[i])) for i in range(3)]
    assert [float(row[1]) for row in rows[:3]] == pytest.approx(
        measured["effects"], rel=1e-3, abs=1e-5
    )
    assert printed.endswith(f"\nsizes: {output}\n")


def test_equal_sizes_are_written_where_nothing_is_gained(tmp_path, texts, capsys):
    random_decoder(tmp_path / "llama", num_hidden_layers=1)
    output = tmp_path / "sizes.json"
    options = "--prompt", 100, "--read", 20, "--size", 64, "--output", output
    assert run(tmp_path / "llama", "--text", *texts[:1], *options) == 0
    assert json.loads(output.read_text())["sizes"] == [64]
    printed = capsys.readouterr().out
    assert "KL on 1 text that it was tuned on, as there is no other one: " in printed
    assert "; nothing is gained, so keep equal sizes\n" in printed


def test_errors_name_the_option(tmp_path, llama, texts, capsys):
    nowhere = tmp_path / "nowhere"
    of_llama = llama, "--text", *texts
    for arguments, message in [
        ((*of_llama, "--error-target", "1"), f"--error-target is for encoders; {llama} is a dec"),
        ((*of_llama, "--sizes", "50"), "--sizes is for encoders; "),
        ((*of_llama, "--correction", "none"), "--correction is for encoders; "),
        ((*of_llama, "--min-length", "0"), "--min-length is for encoders; "),
        ((*of_llama, "--rounds", "2"), "--rounds is for encoders; "),
        ((llama, "--image", "x.png"), "--image is for encoders; "),
        ((llama, "--audio", "x.wav"), "--audio is for encoders; "),
        ((*of_llama, "--size", "36"), "--size must be an integer of at least 37; got 36"),
        ((*of_llama, "--size", "187"), "--size must be less than the tokens of a prompt, 187; g"),
        ((*of_llama, "--prompt", "0"), "--prompt must be an integer of at least 1; got 0"),
        ((*of_llama, "--read", "0"), "--read must be an integer of at least 1; got 0"),
        ((*of_llama, "--prompt", "250"), "b.txt: has 250 tokens that the model takes, and --pro"),
        ((*of_llama, "-o", nowhere / "x"), f"{nowhere / 'x'}: there is no folder"),
        ((llama, *of_llama), f"takes one model with its inputs; got {llama} {llama}"),
        ((llama, "--text", nowhere), f"[Errno 2] No such file or directory: '{nowhere}'"),
    ]:
        assert error(capsys, *arguments).startswith(message)


def test_options_of_decoders_and_other_sources(tmp_path, texts, capsys):
    saved(tmp_path / "bert", BertModel, BertConfig(**TEXT), tokenizer())
    for option in ("size", "prompt", "read"):
        for source in ((tmp_path / "bert", "--text", texts[0]), ("x.npz",)):
            assert error(capsys, *source, f"--{option}", 50) == (
                f"--{option} is for decoders; {source[0]} is none"
            )
    arguments = tmp_path / "bert", "--text", texts[0], "--output", tmp_path / "x.json"
    assert error(capsys, *arguments).startswith("--output takes --error-target: ")
