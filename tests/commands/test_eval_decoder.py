"""`thinformer eval-model` of decoders: small ones of random weights, saved as users have them."""

import json
from statistics import mean

import numpy as np
import pytest

pytest.importorskip("transformers")

from scipy.special import rel_entr
from small_decoders import WORDS, random_decoder, words_tokenizer
from small_encoders import TEXT, saved, tokenizer
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaModel,
)

from thinformer.commands.main import main
from thinformer.measuring.cache_peers import PEERS
from thinformer.torch.cache import ThinnedCache
from thinformer.torch.evaluation import decoders

pytestmark = pytest.mark.slow


@pytest.fixture
def texts(tmp_path):
    """Two files of several lines, of 130 and 500 tokens; the model takes 400."""
    rng = np.random.default_rng(0)
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, n in zip(paths, (130, 500), strict=True):
        words = rng.choice(WORDS, n)
        lines = [" ".join(words[i : i + 20]) for i in range(0, n, 20)]
        path.write_text("\n".join(lines), encoding="utf-8")
    return paths


@pytest.fixture
def llama(tmp_path):
    return random_decoder(tmp_path / "llama")


def run(*arguments):
    return main(["eval-model", *map(str, arguments)])


def evaluated(tmp_path, *arguments):
    assert run(*arguments, "--rounds", 1, "--json", tmp_path / "figures.json") == 0
    return json.loads((tmp_path / "figures.json").read_text())


def error(capsys, *arguments):
    assert run(*arguments) == 2
    return capsys.readouterr().err.removeprefix("thinformer eval-model: ").rstrip("\n")


@pytest.mark.usefixtures("llama")
def test_figures_are_those_of_the_model(tmp_path, texts, capsys):
    """A file is one text; the divergence is that of a ThinnedCache as users make it."""
    arguments = "--text", *texts, "--prompt", 90, "--read", 30, "--size", "100,50", "--generate", 4
    figures = evaluated(tmp_path, tmp_path / "llama", *arguments)
    methods = ["ThinnedCache", *PEERS]
    assert (figures["prompt"], figures["read"]) == (90, 30)
    assert [(each["size"], each["method"]) for each in figures["averages"]] == [
        (size, method) for size in (50, 100) for method in methods
    ]
    assert all(each["kl"] < 1e-6 for each in figures["readings"] if each["size"] == 100)
    assert figures["recalls"] == []
    decoder = decoders.load_decoder(str(tmp_path / "llama"))
    for path in texts:
        tokens = decoder.tokens_of(path.read_text())
        full = DynamicCache(config=decoder.model.config)
        few = ThinnedCache(decoder.model.config, size=50, growth=30)
        for cache in (full, few):
            decoder.logits(tokens[:90], cache)
        p, q = (
            decoder.logits(tokens[90:120], each).double().log_softmax(1) for each in (full, few)
        )
        [line] = (
            each for each in figures["readings"]
            if (each["text"], each["size"], each["method"]) == (path.name, 50, "ThinnedCache")
        )  # fmt: skip
        expected = rel_entr(p.exp().numpy(), q.exp().numpy()).sum(1).mean()
        assert expected > 1e-3
        assert line["kl"] == pytest.approx(expected, rel=1e-3)
    own = [
        each["kl"] for each in figures["readings"]
        if (each["method"], each["size"]) == ("ThinnedCache", 50)
    ]  # fmt: skip
    assert figures["averages"][0]["kl"] == pytest.approx(mean(own))
    assert [(each["method"], each["size"]) for each in figures["generations"]] == [
        ("full cache", None), ("ThinnedCache", 50), ("ThinnedCache", 100)
    ]  # fmt: skip
    assert figures["generations"][0]["bytes"] == 4 * 2 * 2 * 8 * 2 * 93
    printed = capsys.readouterr().out.split("\n")
    assert printed[2:4] == [
        f"model: {tmp_path / 'llama'}, LlamaForCausalLM; 2 layers are thinned",
        "texts: 2, of 130 to 400 tokens; the first 90 of each are the prompt, the next 30 are "
        "read on",
    ]
    row = next(line for line in printed if line.split()[:2] == ["50", "ThinnedCache"])
    assert row.split()[2] == f"{figures['averages'][0]['kl']:.4f}"
    assert [line.split()[0] for line in printed if ".txt  " in line] == ["a.txt", "b.txt"]
    assert not any("recalled" in line for line in printed)


@pytest.mark.usefixtures("llama")
def test_defaults_fit_the_shortest_text(tmp_path, texts, capsys):
    figures = evaluated(tmp_path, tmp_path / "llama", "--text", *texts, "--generate", 2)
    assert (figures["prompt"], figures["read"]) == (97, 32)
    assert {each["size"] for each in figures["readings"]} == {256}
    printed = capsys.readouterr().out
    assert "the next 32 are read on, for the shortest text has no more room" in printed
    assert "97 of each are the prompt" in printed
    shorter = "--max-length", 101, "--generate", 2
    figures = evaluated(tmp_path, tmp_path / "llama", "--text", *texts, *shorter)
    assert (figures["prompt"], figures["read"]) == (75, 25)


@pytest.mark.usefixtures("llama")
def test_facts(tmp_path, texts, capsys):
    """A model of random weights recalls nothing; each method has a row."""
    arguments = "--text", *texts, "--prompt", 90, "--size", 50, "--generate", 2, "--facts", 3
    figures = evaluated(tmp_path, tmp_path / "llama", *arguments)
    assert [(each["method"], each["size"]) for each in figures["recalls"]] == [
        ("full cache", None), *((method, 50) for method in ("ThinnedCache", *PEERS))
    ]  # fmt: skip
    assert {(each["recalled"], each["facts"]) for each in figures["recalls"]} == {(0, 3)}
    printed = [line.split() for line in capsys.readouterr().out.split("\n")]
    assert ["SnapKV", "0", "of", "3"] in printed


def test_layers_with_a_window_of_their_own_stay(tmp_path, texts, capsys):
    config = Gemma3TextConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=64, max_position_embeddings=400,
        sliding_window=40, layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    saved(tmp_path / "gemma", Gemma3ForCausalLM, config, words_tokenizer())
    arguments = "--text", *texts, "--prompt", 90, "--size", "40,90", "--generate", 2
    figures = evaluated(tmp_path, tmp_path / "gemma", *arguments, "--facts", 1)
    assert "1 layers are thinned; 1 with a window" in capsys.readouterr().out
    assert all((each["kl"] > 1e-6) == (each["size"] == 40) for each in figures["readings"])


@pytest.mark.usefixtures("llama")
def test_errors_name_the_option(tmp_path, texts, capsys):
    model = tmp_path / "llama"
    of_llama = model, "--text", *texts
    nowhere = tmp_path / "nowhere"
    (tmp_path / "empty.txt").write_text("")
    for arguments, message in [
        ((*of_llama, "--g", "1"), f"--g is for encoders; {model} is a decoder"),
        ((*of_llama, "--correction", "none"), "--correction is for encoders; "),
        ((*of_llama, "--exact", "0"), "--exact is for encoders; "),
        ((*of_llama, "--min-length", "0"), "--min-length is for encoders; "),
        ((*of_llama, "--error-threshold", "1"), "--error-threshold is for encoders; "),
        ((*of_llama, "--settings", "x"), "--settings is for encoders; "),
        ((model, "--image", "x.png"), "--image is for encoders; "),
        ((model, "--audio", "x.wav"), "--audio is for encoders; "),
        ((*of_llama, "--size", "36"), "--size must be an integer of at least 37; got 36"),
        ((*of_llama, "--size", "64,x"), "--size must be integers, as in 1,2; got 64,x"),
        ((*of_llama, "--prompt", "0"), "--prompt must be an integer of at least 1; got 0"),
        ((*of_llama, "--read", "0"), "--read must be an integer of at least 1; got 0"),
        ((*of_llama, "--facts", "-1"), "--facts must be an integer of at least 0; got -1"),
        ((*of_llama, "--generate", "1"), "--generate must be an integer of at least 2; got 1"),
        ((*of_llama, "--rounds", "0"), "--rounds must be an integer of at least 1; got 0"),
        ((*of_llama, "--prompt", "129"), "a.txt: has 130 tokens that the model takes, and --pro"),
        ((*of_llama, "--generate", "350"), "--prompt and --generate make 447 tokens, and the mo"),
        ((*of_llama, "--prompt", "14", "--facts", "1"), "--prompt must be more than 14 "),
        ((*of_llama, "--json", nowhere / "x"), f"{nowhere / 'x'}: there is no folder"),
        ((model, "--text", nowhere), f"[Errno 2] No such file or directory: '{nowhere}'"),
        ((model, "--text", tmp_path / "empty.txt"), f"{tmp_path}/empty.txt: there is no text"),
    ]:
        assert error(capsys, *arguments).startswith(message)


def test_options_of_decoders_and_other_models(tmp_path, texts, capsys):
    saved(tmp_path / "bert", BertModel, BertConfig(**TEXT), tokenizer())
    for option in ("prompt", "read", "facts", "generate"):
        arguments = tmp_path / "bert", "--text", texts[0], f"--{option}", 5
        assert error(capsys, *arguments) == (
            f"--{option} is for decoders; {tmp_path / 'bert'} is an encoder"
        )
    # without a head there are no predictions
    saved(tmp_path / "headless", LlamaModel, LlamaConfig(**TEXT), tokenizer())
    assert "it is causal" in error(capsys, tmp_path / "headless", "--text", texts[0])


@pytest.mark.usefixtures("llama")
def test_files_of_one_name_are_told_apart(tmp_path, texts):
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "a.txt"
    path.write_text(texts[1].read_text(), encoding="utf-8")
    arguments = "--text", texts[0], path, "--prompt", 90, "--size", "50", "--generate", 2
    figures = evaluated(tmp_path, tmp_path / "llama", *arguments)
    assert {each["text"] for each in figures["readings"]} == {str(texts[0]), str(path)}
