"""`thinformer tune` of a decoder: sizes by layer, what they are tuned on, what is held out."""

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from scipy.special import rel_entr
from small_decoders import random_decoder, words_tokenizer
from small_encoders import saved
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig

from thinformer.measuring import cache_quality, tune_decoder
from thinformer.measuring.tune_decoder import LEAST, POWERS, Tuned, allocated
from thinformer.torch.cache import ThinnedCache
from thinformer.torch.evaluation import decoders

PROMPT, READ = 150, 40


def quiet(stage, fraction):
    assert 0 <= fraction < 1


@pytest.fixture
def decoder(tmp_path):
    """Three layers, of which the second adds nothing."""
    model = random_decoder(tmp_path, num_hidden_layers=3)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    model.save_pretrained(tmp_path)
    return decoders.load_decoder(str(tmp_path))


def texts(count):
    numbers = torch.Generator().manual_seed(0)
    return [
        (f"{i}.txt", torch.randint(200, (PROMPT + READ + 1,), generator=numbers))
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("effects", "power", "size", "most", "sizes"),
    [
        ([1, 4, 16], 0.5, 112, 500, [48, 96, 192]),
        ([1, 16, 81], 0.25, 100, 500, [50, 100, 150]),
        ([1, 4, 16], 0.0, 112, 500, [112, 112, 112]),
        ([1, 1, 4], 0.5, 101, 500, [76, 76, 151]),  # of 75.75, 75.75 and 151.5
        ([0, 1, 1], 0.5, 100, 500, [LEAST, 126, 126]),
        ([-1e-9, 1, 1], 0.5, 100, 500, [LEAST, 126, 126]),
        ([10000, 1, 1], 0.5, 100, 120, [120, 90, 90]),
        ([0, 1, 4], 0.5, 40, 500, [40, 40, 40]),  # no size is below the mean, if LEAST is above
        ([0, 0, 0], 0.5, 100, 500, [100, 100, 100]),
        ([3], 0.5, 100, 500, [100]),
    ],
)
def test_allocated(effects, power, size, most, sizes):
    assert allocated(effects, power, size, most) == sizes


def test_allocated_keeps_as_many_keys_as_equal_sizes():
    rng = np.random.default_rng(0)
    for _ in range(200):
        n, size = int(rng.integers(1, 40)), int(rng.integers(37, 300))
        effects = np.exp(6 * rng.standard_normal(n)).tolist()
        most = size + int(rng.integers(1, 500))
        found = allocated(effects, float(rng.choice(POWERS)), size, most)
        assert sum(found) == n * size
        assert min(LEAST, size) <= min(found) <= max(found) <= most
        order = np.argsort(effects)
        assert (np.diff(np.array(found)[order]) >= -1).all()  # but for what rounding gave


@pytest.mark.slow
def test_divergences_are_those_of_a_cache_as_users_make_it(decoder):
    _, tokens = texts(1)[0]
    settings = [[60, 90, 50], [PROMPT, 40, PROMPT], [PROMPT] * 3]
    found = tune_decoder.divergences(decoder, tokens, settings, PROMPT, READ, lambda: None)
    follows = tokens[PROMPT : PROMPT + READ]

    def probabilities(cache):
        decoder.logits(tokens[:PROMPT], cache)
        return decoder.logits(follows, cache).double().softmax(1).numpy()

    config = decoder.model.config
    full = probabilities(DynamicCache(config=config))
    for kl, sizes in zip(found, settings, strict=True):
        few = probabilities(ThinnedCache(config, sizes, growth=READ + 1))
        assert kl == pytest.approx(rel_entr(full, few).sum(1).mean(), abs=1e-6)
    assert found[0] > 1e-3
    assert found[1] == pytest.approx(0, abs=1e-6)  # the second layer adds nothing


@pytest.mark.slow
def test_a_copy_has_the_sizes_and_keeps_what_is_read(decoder):
    _, tokens = texts(1)[0]
    cache = cache_quality.prefilled(decoder, tokens[:PROMPT])
    few = tune_decoder.with_sizes(cache, [60, PROMPT, 50], room=40)
    assert [layer.keys.shape[2] for layer in few.layers] == [60, PROMPT, 50]
    decoder.logits(tokens[PROMPT : PROMPT + 40], few)
    assert [layer.keys.shape[2] for layer in few.layers] == [100, PROMPT + 40, 90]
    assert [layer.keys.shape[2] for layer in cache.layers] == [PROMPT] * 3


@pytest.mark.slow
def test_a_layer_that_adds_nothing_keeps_the_fewest_keys(decoder):
    told = []
    tuned = tune_decoder.tune(decoder, texts(3), 100, PROMPT, READ, lambda *each: told.append(each))
    assert told[0] == ("one layer at a time: 0.txt", 0)
    assert told[-1] == ("beside equal sizes: 1.txt", pytest.approx(1 - 1 / len(told)))
    assert tuned.layers == [0, 1, 2]
    assert tuned.effects[1] == pytest.approx(0, abs=1e-6)
    assert min(tuned.effects[0], tuned.effects[2]) > 1e-4
    assert tuned.sizes[1] == LEAST
    assert sum(tuned.sizes) == 300
    assert (tuned.size, tuned.tuned_on, tuned.held_out) == (100, 2, 1)
    assert 0 < tuned.kl < tuned.equal_kl
    [(_, held_out)] = texts(3)[1::2]
    settings = [tuned.sizes, [100] * 3]
    found = tune_decoder.divergences(decoder, held_out, settings, PROMPT, READ, lambda: None)
    assert found == [tuned.kl, tuned.equal_kl]
    assert tuned.of_model() == tuned.sizes


@pytest.mark.slow
def test_sizes_are_chosen_on_some_texts_and_measured_on_others(decoder, monkeypatch):
    """A layer thinned alone to half the size has the effects 1, 4 and 16 on texts tuned on."""
    seen = []

    def divergences(decoder, tokens, settings, *others):
        seen.append((int(tokens[0]), settings))
        if int(tokens[0]) % 2:  # held out
            return [0.5, 0.25]
        if len(settings) == 3 and settings[0][0] == 56:
            return [1.0, 4.0, 16.0]
        return [best.index(sizes) for sizes in settings]

    monkeypatch.setattr(tune_decoder, "divergences", divergences)
    numbered = [(f"{i}", torch.tensor([i])) for i in (0, 1, 0, 3)]
    every = [allocated([1, 4, 16], power, 112, PROMPT * 2) for power in POWERS]
    assert every[2] == [48, 96, 192]
    for best in (every, every[::-1]):
        seen.clear()
        tuned = tune_decoder.tune(decoder, numbered, 112, PROMPT * 2, READ, quiet)
        assert tuned.effects == [1, 4, 16]
        assert tuned.sizes == best[0]
        assert (tuned.kl, tuned.equal_kl, tuned.tuned_on, tuned.held_out) == (0.5, 0.25, 2, 2)
        assert [number for number, _ in seen] == [0, 0, 0, 0, 1, 3]
        assert seen[0][1] == [[56, 300, 300], [300, 56, 300], [300, 300, 56]]
        assert seen[-1][1] == [best[0], [112] * 3]
        assert tuned.of_model() == [112] * 3  # it lost more than equal sizes


@pytest.mark.slow
def test_one_text_and_layers_with_a_window_of_their_own(tmp_path):
    config = Gemma3TextConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=64, max_position_embeddings=400,
        sliding_window=40,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    )  # fmt: skip
    saved(tmp_path, Gemma3ForCausalLM, config, words_tokenizer())
    decoder = decoders.load_decoder(str(tmp_path))
    tuned = tune_decoder.tune(decoder, texts(1), 70, PROMPT, READ, quiet)
    assert (tuned.layers, tuned.tuned_on, tuned.held_out) == ([1, 3], 1, 0)
    better = tuned._replace(sizes=[50, 90], kl=0.1, equal_kl=0.2)
    assert better.of_model() == [70, 50, 70, 90]
    ThinnedCache(decoder.model.config, better.of_model())
    with pytest.raises(ValueError, match="--size must be less than the tokens of a prompt, 150; g"):
        tune_decoder.tune(decoder, texts(1), PROMPT, PROMPT, READ, quiet)


def test_what_is_printed():
    tuned = Tuned([1, 3], 4, [0.0125, 0.000001], [160, 40], 100, 2, 3, 0.05, 0.2)
    assert [line.split() for line in tune_decoder.format_tuned(tuned).split("\n")[:4]] == [
        ["layer", "KL", "of", "it", "alone", "keys"],
        ["1", "0.01250", "160"],
        ["3", "0.00000", "40"],
        [],
    ]
    line = "KL on 3 texts that it was not tuned on: 0.0500; with 100 keys in each layer 0.2000"
    assert tune_decoder.format_gain(tuned) == f"{line} (75% less)"
    alone = tuned._replace(tuned_on=1, held_out=0)
    assert tune_decoder.format_gain(alone).startswith(
        "KL on 1 text that it was tuned on, as there is no other one: 0.0500; "
    )
    for worse in (tuned._replace(kl=kl) for kl in (0.195, 0.2, 0.3)):
        assert tune_decoder.format_gain(worse).endswith(
            "0.2000; nothing is gained, so keep equal sizes"
        )
        assert worse.of_model() == [100] * 4
    figures = tune_decoder.figures(tuned)
    assert figures["effects"] == [0.0125, 1e-6]
    assert (figures["kl"], figures["equal_kl"], figures["held_out"]) == (0.05, 0.2, 3)
