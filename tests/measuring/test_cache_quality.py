"""What a decoder predicts with few keys, against the model itself."""

import copy

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from scipy.special import log_softmax, rel_entr
from small_decoders import looking_up, random_decoder, words_tokenizer
from transformers import DynamicCache

from thinformer.measuring import cache_facts, cache_quality, cache_speed
from thinformer.measuring.cache_quality import METHODS, Reading
from thinformer.torch.evaluation import decoders

pytestmark = pytest.mark.slow

PROMPT, READ = 100, 20


def quiet(stage, fraction):
    assert 0 <= fraction <= 1


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    random_decoder(folder)
    return decoders.load_decoder(str(folder))


@pytest.fixture(scope="module")
def texts():
    numbers = torch.Generator().manual_seed(0)
    return [
        (name, torch.randint(200, (length,), generator=numbers))
        for name, length in (("a.txt", 130), ("b.txt", 160))
    ]


def test_divergence_agreement_and_likelihood():
    rng = np.random.default_rng(0)
    exact, few = 3 * rng.standard_normal((2, 30, 7))
    exact[0, 2] = few[0, 2] = -np.inf  # a token that a model excludes
    targets = rng.integers(3, 7, 30)
    p, q = log_softmax(exact, axis=1), log_softmax(few, axis=1)
    found = cache_quality.compared(
        torch.from_numpy(p), torch.from_numpy(few), torch.from_numpy(targets)
    )
    of_targets = [x[np.arange(30), targets].mean() for x in (p, q)]
    assert found == pytest.approx((
        rel_entr(np.exp(p), np.exp(q)).sum(1).mean(), (p.argmax(1) == q.argmax(1)).mean(),
        of_targets[1], of_targets[1] - of_targets[0],
    ))  # fmt: skip


def test_as_many_keys_as_the_prompt_change_nothing(decoder, texts):
    found = cache_quality.readings(decoder, texts, [PROMPT, 300], PROMPT, READ, 0, quiet)
    assert [(each.text, each.size, each.method) for each in found] == [
        (name, size, method)
        for name, _ in texts for size in (PROMPT, 300) for method in METHODS
    ]  # fmt: skip
    for each in found:
        assert each.kl == pytest.approx(0, abs=1e-6)
        assert each.agreement == 1
        assert each.difference == pytest.approx(0, abs=1e-6)


def test_a_window_is_the_model_with_a_mask(decoder, texts):
    """With a full cache of transformers, and a mask that hides the same keys from what follows."""
    size = 60
    found = cache_quality.readings(decoder, texts, [size], PROMPT, READ, 0, quiet)
    for name, tokens in texts:
        cache = DynamicCache(config=decoder.model.config)
        decoder.logits(tokens[:PROMPT], cache)
        mask = torch.ones(READ, PROMPT + READ, dtype=torch.bool).tril(PROMPT)
        hidden = mask.clone()
        hidden[:, 4 : PROMPT - size + 4] = False
        follows = tokens[PROMPT : PROMPT + READ]
        p, q = (
            decoder.model(
                input_ids=follows[None], cache=held, attention_mask=each[None, None]
            ).logits[0].detach().double().log_softmax(1)
            for each, held in ((mask, copy.deepcopy(cache)), (hidden, copy.deepcopy(cache)))
        )  # fmt: skip
        [line] = (each for each in found if (each.text, each.method) == (name, "window"))
        expected = rel_entr(p.exp().numpy(), q.exp().numpy()).sum(1).mean()
        assert expected > 1e-3
        assert line.kl == pytest.approx(expected, rel=1e-3)
        assert line.agreement == pytest.approx((p.argmax(1) == q.argmax(1)).double().mean())
        targets = tokens[PROMPT + 1 : PROMPT + READ + 1, None]
        assert line.log_likelihood == pytest.approx(float(q.gather(1, targets).mean()), abs=1e-5)
        gap = float((q - p).gather(1, targets).mean())
        assert line.difference == pytest.approx(gap, abs=1e-5)


def test_each_method_keeps_the_size_and_the_prompt_is_not_changed(decoder, texts):
    """What is read on is kept, even where a ThinnedCache would be compressed again."""
    prompt, read, tokens = 80, 75, texts[1][1]
    cache = cache_quality.prefilled(decoder, tokens[:prompt])
    for method in METHODS:
        few = cache_quality.compressed(cache, method, 50, 0, room=read)
        assert all(layer.keys.shape == (1, 2, 50, 8) for layer in few.layers)
        decoder.logits(tokens[prompt : prompt + read], few)
        assert all(layer.keys.shape == (1, 2, 50 + read, 8) for layer in few.layers)
    for layer in cache.layers:
        assert layer.keys.shape == (1, 2, prompt, 8)
        assert layer.log_masses is None


def test_lengths(texts):
    """Of 130 and 160 tokens: 3/4 of the shortest are the prompt, and one more token is needed."""
    assert cache_quality.lengths_of(texts, None, None) == (97, 32, False)
    assert cache_quality.lengths_of(texts, 100, 29) == (100, 29, True)
    assert cache_quality.lengths_of(texts, 100, None) == (100, 29, False)
    long = [("c.txt", torch.zeros(5000))]
    assert cache_quality.lengths_of(long, None, None) == (2048, 128, True)
    with pytest.raises(ValueError, match=r"a.txt: has 130 tokens .* --prompt 100 with --read 30 n"):
        cache_quality.lengths_of(texts, 100, 30)
    with pytest.raises(ValueError, match=r"a.txt: .* --prompt 130 with --read 1 needs 132"):
        cache_quality.lengths_of(texts, 130, None)


LINES = [
    Reading(text, method, size, kl, agreement, -2.0, difference)
    for text, method, size, kl, agreement, difference in (
        ("a", "ThinnedCache", 64, 0.1, 0.9, -0.2), ("a", "window", 64, 0.4, 0.5, 0.1),
        ("a", "SnapKV", 64, 0.3, 0.6, -0.3),
        ("b", "ThinnedCache", 64, 0.3, 0.7, -0.1), ("b", "window", 64, 0.2, 0.8, 0.3),
        ("b", "SnapKV", 64, 0.5, 0.5, -0.5),
    )
]  # fmt: skip


def test_tables():
    assert [line.split() for line in cache_quality.format_averages(LINES).split("\n")] == [
        ["size", "method", "KL", "agreement", "log-likelihood"],
        ["64", "ThinnedCache", "0.2000", "0.800", "-0.1500"],
        ["64", "window", "0.3000", "0.650", "+0.2000"],
        ["64", "SnapKV", "0.4000", "0.550", "-0.4000"],
    ]
    assert [line.split() for line in cache_quality.format_texts(LINES).split("\n")] == [
        ["text", "64", "best", "other"],
        ["a", "0.1000", "0.3000", "SnapKV"],
        ["b", "0.3000", "0.2000", "window"],
    ]


def test_planted(decoder):
    """The fact's line stands at its depth, the question at the end, and the length is kept."""
    words = ["The", "secret", "number", "of", "Lisbon", "is", "7481", ".", "w"]
    own = decoders.Decoder(decoder.model, words_tokenizer(words))
    fact, text = cache_facts.Fact("Lisbon", "7481"), torch.full((200,), 8)
    for depth, place in ((0, 1), (0.5, 43), (1, 86)):
        tokens = cache_facts.planted(own, text, fact, depth, 100).tolist()
        line, question = list(range(8)), list(range(6))
        assert tokens == [8] * place + line + [8] * (86 - place) + question
    with pytest.raises(ValueError, match="--prompt must be more than 14 with --facts"):
        cache_facts.planted(own, text, fact, 0.5, 14)


@pytest.mark.parametrize(
    ("answer", "recalled"),
    [(" 7481.", True), ("7481", True), ("\n7481 people", True), ("74812", False), (" 748", False),
     (" the 7481", False), ("", False)],
)  # fmt: skip
def test_recalled(answer, recalled):
    assert cache_facts.is_recalled(answer, cache_facts.Fact("Lisbon", "7481")) == recalled


def test_answer_with_all_keys(decoder, texts):
    """That of the model without a cache."""
    tokens = prompt = texts[0][1][:PROMPT]
    for _ in range(4):
        tokens = torch.cat([tokens, decoder.model(tokens[None]).logits[0, -1:].argmax(1)])
    expected = [f"w{token}" for token in tokens[PROMPT:].tolist()]
    assert len(set(expected)) > 1
    cache = cache_quality.prefilled(decoder, prompt, can_crop=True)
    assert cache_facts.continuation(decoder, cache, prompt[-1:], 4).split() == expected
    assert cache.get_seq_length() == PROMPT + 3  # no token is there twice, or missing


def test_facts_are_recalled_where_their_keys_are_kept(tmp_path):
    """A decoder that says the digits among its keys, if it has any."""
    count, size, prompt = 8, 50, 100
    facts = cache_facts.make_facts(count, seed=3)
    assert len({fact.number for fact in facts}) == count
    names = [word for fact in facts for word in (fact.city, fact.number)]
    words = ["w", "The", "secret", "number", "of", "is", ".", *names]
    looking_up(tmp_path, words)
    decoder = decoders.load_decoder(str(tmp_path))
    texts = [torch.zeros(prompt, dtype=torch.long)] * 2
    found = cache_facts.recalls(decoder, texts, [size, 120], prompt, count, 3, quiet)
    # a prompt has 86 other tokens; the number is the seventh word of its line. Of the 100
    # tokens, the window has the first 4 and the last 46, from the place of a number on
    places = [max(1, round((i + 0.5) / count * 86)) + 6 for i in range(count)]
    in_window = sum(place >= 100 - (size - 4) for place in places)
    assert 100 - (size - 4) in places
    assert 0 < in_window < count
    recalled = {(each.method, each.size): each.recalled for each in found}
    assert all(each.facts == count for each in found)
    assert recalled["full cache", None] == count
    assert recalled["window", size] == in_window
    assert recalled["SnapKV", size] == count  # its queries attend to nothing but the number
    assert all(recalled[method, 120] == count for method in METHODS)
    printed = [line.split() for line in cache_facts.format_recalls(found).split("\n")]
    assert printed[0] == ["facts", "recalled", "50", "120"]
    assert printed[1] == ["full", "cache", "8", "of", "8", "8", "of", "8"]
    assert printed[3] == ["window", str(in_window), "of", "8", "8", "of", "8"]
    assert cache_facts.recalls(decoder, texts, [size], prompt, 0, 3, quiet) == []


def test_generations(decoder, texts):
    """Bytes are those of keys and values; a generation's first token is that of the prompt."""
    found = cache_speed.generations(decoder, texts[0][1][:PROMPT], [50], 5, 2, quiet)
    full, thinned = found
    assert (full.method, full.size, thinned.method, thinned.size) == (
        "full cache", None, "ThinnedCache", 50
    )  # fmt: skip
    # two layers of two heads of eight numbers, keys and values; the last token is not read
    assert full.bytes == 4 * 2 * 2 * 8 * 2 * (PROMPT + 4)
    assert thinned.bytes > 4 * 2 * 2 * 8 * 2 * (50 + 4)
    assert full.fit == 0 < thinned.fit < thinned.first
    assert min(full.first, full.rate, thinned.rate) > 0
    assert len(cache_speed.format_generations(found).split("\n")) == 3


def test_bytes_count_what_a_view_keeps():
    class Layer:
        def __init__(self, **held):
            self.__dict__.update(held)

    class Cache:
        keys = torch.zeros(10)
        layers = (Layer(keys=keys, queries=[torch.zeros(100)[:3]], size=4), Layer(values=keys[:2]))

    assert decoders.bytes_of(Cache) == 4 * 110
