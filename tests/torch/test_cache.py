"""`ThinnedCache` in decoders of transformers: Llama, Qwen3, Mistral and Gemma 3, random weights."""

import copy

import pytest
import torch

transformers = pytest.importorskip("transformers")
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    DynamicCache,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from thinformer.attending.settings import save_sizes  # noqa: E402
from thinformer.torch.cache import ThinnedCache  # noqa: E402

SMALL = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
    "max_position_embeddings": 2048, "eos_token_id": None, "bos_token_id": 1,
}  # fmt: skip
CONFIGURATIONS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "gemma3": Gemma3TextConfig(
        **SMALL, sliding_window=32, query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"] * 2, tie_word_embeddings=False,
    ),
}  # fmt: skip
EACH_MODEL = pytest.mark.parametrize("kind", CONFIGURATIONS)


def by_default(*kinds):
    """A test of each model, of which the others are left out of a short run."""
    nightly = pytest.mark.nightly
    each = [pytest.param(kind, marks=() if kind in kinds else nightly) for kind in CONFIGURATIONS]
    return pytest.mark.parametrize("kind", each)


def make(kind, seed=0, dtype=torch.float32):
    """A decoder whose next token depends on what it has read: its weights are not tiny."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGURATIONS[kind])).eval()
    for parameter in model.parameters():
        parameter.data.mul_(6 if parameter.ndim > 1 else 1)
    return model.to(dtype)


def tokens(length, batch=1, seed=0):
    return torch.randint(2, 200, (batch, length), generator=torch.Generator().manual_seed(seed))


def padded(ids, length, total):
    """Tokens of which a sequence has fewer, padded on the left, and the mask of the others."""
    mask = torch.ones_like(ids)
    mask[0, : total - length] = 0
    return ids.masked_fill(mask == 0, 0), mask


def greedy(model, ids, count=64, **options):
    return model.generate(ids, max_new_tokens=count, do_sample=False, **options)[:, ids.shape[1] :]


@torch.no_grad()
def read(model, ids, cache, pieces, mask=None):
    """The logits of all tokens, read in pieces."""
    logits, start = [], 0
    for length in pieces:
        of_piece = None if mask is None else mask[:, : start + length]
        part = model(ids[:, start : start + length], attention_mask=of_piece, cache=cache)
        logits.append(part.logits)
        start += length
    return torch.cat(logits, dim=1)


def thinned(cache):
    return [layer for layer in cache.layers if hasattr(layer, "log_masses")]


@EACH_MODEL
def test_equal_to_the_full_cache_where_all_is_kept(kind):
    model, ids = make(kind), tokens(300, batch=2)
    ids, mask = padded(ids, 110, 300)
    pieces = [200, 1, 1, 70, 1, 20, 7]
    expected = read(model, ids, DynamicCache(config=model.config), pieces, mask)
    cache = ThinnedCache(model.config, size=512)
    logits = read(model, ids, cache, pieces, mask)
    assert all(layer.log_masses is not None for layer in thinned(cache))
    seen = mask.bool()
    torch.testing.assert_close(logits[seen], expected[seen], rtol=1e-5, atol=1e-5)


@by_default("llama", "gemma3")
def test_greedy_generation_token_by_token(kind):
    model = make(kind)
    ids, mask = padded(tokens(300, batch=2), 110, 300)
    expected = greedy(model, ids, attention_mask=mask)
    cache = ThinnedCache(model.config, size=512)
    assert torch.equal(greedy(model, ids, attention_mask=mask, cache=cache), expected)
    assert len(set(expected.flatten().tolist())) > 20  # no loop of one token


@EACH_MODEL
def test_a_padded_batch_equals_the_text_alone(kind):
    model = make(kind)
    ids, mask = padded(tokens(300, batch=2), 200, 300)
    together = ThinnedCache(model.config, size=96)
    alone = ThinnedCache(model.config, size=96)
    pieces = [250, 40, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    of_batch = read(model, ids, together, pieces, mask)[0, 250:]
    of_text = read(model, ids[:1, 100:], alone, [150, *pieces[1:]])[0, 150:]
    torch.testing.assert_close(of_batch, of_text, rtol=1e-4, atol=1e-4)
    full = read(model, ids[:1, 100:], DynamicCache(config=model.config), [200])[0, 150:]
    assert (full - of_text).abs().max() > 0.1  # something was thinned


def test_four_texts_of_four_lengths():
    """Each gives what it gives alone, through two compressions, which come at the same places."""
    model, ids, lengths = make("llama"), tokens(280, batch=4), (280, 250, 210, 180)
    mask = torch.arange(280) >= 280 - torch.tensor(lengths)[:, None]
    cache = ThinnedCache(model.config, size=64)
    together = read(model, ids.masked_fill(~mask, 0), cache, [200, 70, 10], mask.long())
    for i, length in enumerate(lengths):
        alone = ThinnedCache(model.config, size=64)
        expected = read(model, ids[i : i + 1, -length:], alone, [length - 80, 70, 10])[0]
        torch.testing.assert_close(together[i, -length:], expected, rtol=1e-4, atol=1e-4)


@by_default("gemma3")
def test_memory_is_as_size_says(kind):
    model = make(kind)
    for length in (300, 1200):
        cache = ThinnedCache(model.config, size=96)
        read(model, tokens(length), cache, [length])
        for layer in thinned(cache):
            assert layer.keys.shape[2] == layer.values.shape[2] == 96
            assert layer.keys.untyped_storage().nbytes() == 4 * layer.keys.numel()
            assert layer.log_masses.untyped_storage().nbytes() == 4 * layer.log_masses.numel()
        greedy(model, torch.cat([tokens(length), tokens(1)], 1), 140, cache=cache)
        assert all(96 <= layer.keys.shape[2] < 96 + 64 for layer in thinned(cache))
        assert cache.get_seq_length() == length + 140


@pytest.mark.parametrize("kind", [pytest.param("llama", marks=pytest.mark.nightly), "gemma3"])
def test_beam_search_follows_its_sequences(kind):
    model, ids = make(kind), tokens(150)
    options = {"max_new_tokens": 40, "num_beams": 4, "do_sample": False}
    expected = model.generate(ids, **options)
    cache = ThinnedCache(model.config, size=512)
    assert torch.equal(model.generate(ids, **options, cache=cache), expected)
    assert not torch.equal(expected[:, 150:], greedy(model, ids, 40))
    small = ThinnedCache(model.config, size=64)
    assert model.generate(ids, **options, cache=small).shape == (1, 190)
    assert {layer.keys.shape[0] for layer in small.layers} == {4}


def test_operations_on_the_batch():
    """Sequences repeated, selected and put in another order go on as they would alone."""
    model, ids = make("llama"), tokens(250, batch=2)
    alone = []
    for i in range(2):
        cache = ThinnedCache(model.config, size=64)
        alone.append(read(model, ids[i : i + 1], cache, [150, 40, 30, 30])[0])
    cache = ThinnedCache(model.config, size=64)
    read(model, ids[:, :190], cache, [150, 40])  # queries wait for the next compression
    assert cache.layers[0].queries
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.batch_repeat_interleave(2)  # 1, 1, 0, 0
    cache.batch_select_indices(torch.tensor([1, 3]))  # 1, 0
    logits = read(model, ids[[1, 0], 190:], cache, [30, 30])
    assert [each.shape[2] for each in cache.layers[0].queries] == [30]  # compressed between
    torch.testing.assert_close(logits[0], alone[1][190:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[1], alone[0][190:], rtol=1e-4, atol=1e-4)


@by_default("llama", "gemma3")
def test_two_turns_and_a_stop_between(kind):
    """A conversation goes on from a copy of the cache as from the cache."""
    model, ids = make(kind), tokens(400)
    cache = ThinnedCache(model.config, size=96)
    first = greedy(model, ids[:, :200], 20, cache=cache)
    second = torch.cat([ids[:, :200], first, ids[:, 200:]], dim=1)
    stopped = copy.deepcopy(cache)
    expected = greedy(model, second, 20, cache=cache)
    assert torch.equal(greedy(model, second, 20, cache=stopped), expected)
    assert cache.get_seq_length() == 200 + 20 + 200 + 19
    whole = ThinnedCache(model.config, size=1024)
    first = greedy(model, ids[:, :200], 20, cache=whole)
    second = torch.cat([ids[:, :200], first, ids[:, 200:]], dim=1)
    assert torch.equal(greedy(model, second, 20, cache=whole), greedy(model, second, 20))


def test_reset_forgets_everything():
    model, ids = make("llama"), tokens(200)
    cache = ThinnedCache(model.config, size=64)
    expected = read(model, ids, cache, [150, 50])
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(read(model, ids, cache, [150, 50]), expected)


def test_crop():
    """The latest tokens can be forgotten, and no others."""
    model, ids = make("llama"), tokens(300)
    cache = ThinnedCache(model.config, size=64)
    read(model, ids[:, :200], cache, [150, 50])
    expected = copy.deepcopy(cache)
    read(model, torch.cat([tokens(200), tokens(10, seed=1)], dim=1)[:, 200:], cache, [10])
    cache.crop(-10)
    assert cache.get_seq_length() == 200
    cache, expected = (read(model, ids[:, 200:], each, [30, 70]) for each in (cache, expected))
    torch.testing.assert_close(cache, expected)
    cache = ThinnedCache(model.config, size=64)
    read(model, ids[:, :200], cache, [200])
    with pytest.raises(ValueError, match="the 32 latest tokens .* cannot forget 33"):
        cache.crop(-33)
    assert cache.get_seq_length() == 200  # nothing is lost


def test_queries_that_stay_are_those_of_the_tokens_that_stay():
    """A call leaves its latest 256 queries; after a crop none of another place is left."""
    model, ids = make("llama"), tokens(800)
    held = []
    for pieces, crop in (([400, 400], 100), ([400, 400], 300), ([400, 40], 10)):
        cache = ThinnedCache(model.config, size=64, growth=2000)
        read(model, ids, cache, pieces)
        cache.crop(-crop)
        held.append(torch.cat(cache.layers[1].queries, 2) if cache.layers[1].queries else None)
    whole = ThinnedCache(model.config, size=64, growth=2000)
    read(model, ids, whole, [700])
    expected = whole.layers[1].queries[0]
    torch.testing.assert_close(held[0], expected[:, :, -156:], rtol=1e-4, atol=1e-4)
    assert held[1] is None
    assert held[2].shape[2] == 256 + 40 - 10


def test_assisted_decoding():
    model, small, ids = make("llama"), make("llama", seed=1), tokens(150)
    expected = greedy(model, ids, 40)
    cache = ThinnedCache(model.config, size=512)
    assert torch.equal(greedy(model, ids, 40, cache=cache, assistant_model=small), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    model, ids = make("llama", dtype=dtype), tokens(300)
    cache = ThinnedCache(model.config, size=512)
    logits = read(model, ids, cache, [200, 100])
    expected = read(model, ids, DynamicCache(config=model.config), [200, 100])
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.05)
    cache = ThinnedCache(model.config, size=64)
    assert read(model, ids, cache, [200, 100]).isfinite().all()
    assert cache.layers[0].keys.dtype == cache.layers[0].values.dtype == dtype


def test_the_model_is_as_before_without_a_thinned_cache():
    model, ids = make("llama"), tokens(100)
    expected = greedy(model, ids, 20)
    ThinnedCache(model.config)
    assert torch.equal(greedy(model, ids, 20), expected)


def test_wrong_attention():
    model = make("llama")
    model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match=r"'eager'.*set_attn_implementation\('sdpa'\)"):
        ThinnedCache(model.config)
    model.set_attn_implementation("sdpa")
    cache = ThinnedCache(model.config, size=64)
    model.set_attn_implementation("sdpa")
    with pytest.raises(RuntimeError, match="make the cache after"):
        read(model, tokens(100), cache, [90, 10])


def test_a_prompt_read_in_chunks():
    """So a long prompt attends to few keys, too; nothing is lost where all fit."""
    model = make("llama")
    ids, mask = padded(tokens(600, batch=2), 400, 600)
    expected = greedy(model, ids, 20, attention_mask=mask)
    options = {"attention_mask": mask, "prefill_chunk_size": 128}
    whole = ThinnedCache(model.config, size=1024)
    assert torch.equal(greedy(model, ids, 20, cache=whole, **options), expected)
    few = ThinnedCache(model.config, size=128)
    greedy(model, ids, 20, cache=few, **options)
    assert max(row.keys for row in few.report()) < 128 + 64


def test_a_sequence_that_is_all_padding_at_first():
    """It goes on as the text alone, read in the same pieces."""
    model = make("llama")
    ids, mask = padded(tokens(600, batch=2), 200, 600)
    cache, alone = (ThinnedCache(model.config, size=64) for _ in range(2))
    of_batch = read(model, ids, cache, [200, 200, 200], mask)[0, 400:]
    of_text = read(model, ids[:1, 400:], alone, [200])[0]
    torch.testing.assert_close(of_batch, of_text, rtol=1e-4, atol=1e-4)
    more = tokens(3, batch=2, seed=5)
    both = torch.cat([mask, torch.ones(2, 3).long()], dim=1)
    with torch.no_grad():
        of_batch = model(more, attention_mask=both, cache=cache).logits[0]
        of_text = model(more[:1], cache=alone).logits[0]
    torch.testing.assert_close(of_batch, of_text, rtol=1e-4, atol=1e-4)


def test_sizes_in_a_file(tmp_path):
    config, path = make("llama").config, tmp_path / "sizes.json"
    save_sizes(path, [64, 512, 96, 64], {})
    for file in (path, str(path)):
        layers = ThinnedCache(config, file, recent=20).layers
        assert [layer.options.size for layer in layers] == [64, 512, 96, 64]
        assert all(layer.options.recent == 20 for layer in layers)
    for sizes, message in (
        ([64, 64], "size must be an integer, or one for each of the 4 layers; got 2"),
        ([64, 64, 36, 64], "layer 2: size must be at least 37, for the first 4 tokens, "),
    ):
        save_sizes(path, sizes, {})
        with pytest.raises(ValueError) as error:
            ThinnedCache(config, path)
        assert str(error.value).startswith(f"{path}: {message}")
    with pytest.raises(ValueError, match="^growth must be an integer of at least 1; got 0"):
        ThinnedCache(config, path, growth=0)
    with pytest.raises(FileNotFoundError, match="none.json"):
        ThinnedCache(config, tmp_path / "none.json")


def test_sizes_by_layer():
    model, ids = make("llama"), tokens(300)
    cache = ThinnedCache(model.config, size=[64, 512, 96, 64])
    greedy(model, ids, 100, cache=cache)
    assert [layer.log_masses.shape[2] for layer in cache.layers] == [32, 332, 64, 32]
    assert cache.report()[1] == (1, 399, 399)
    with pytest.raises(ValueError, match="one for each of the 4 layers; got 2"):
        ThinnedCache(model.config, size=[64, 64])
    with pytest.raises(ValueError, match="size must be at least 37, .* got 36"):
        ThinnedCache(model.config, size=36)
    with pytest.raises(ValueError, match="layer 1: size must be an integer of at least 1; got 0"):
        ThinnedCache(model.config, size=[64, 0, 64, 64])
    with pytest.raises(ValueError, match="size must be an integer of at least 1; got b'abcd'"):
        ThinnedCache(model.config, size=b"abcd")
    with pytest.raises(ValueError, match="has an encoder too"):
        ThinnedCache(transformers.T5Config())


def test_a_prompt_does_not_stay_alive():
    """Neither by its keys nor by its queries."""
    model = make("llama")
    cache = ThinnedCache(model.config, size=64)
    read(model, tokens(1000), cache, [1000])
    held = [t for layer in cache.layers for t in (layer.keys, layer.values, layer.log_masses)]
    held += [t for layer in cache.layers for t in layer.queries]
    assert sum(t.untyped_storage().nbytes() for t in held) == 4 * 4 * (2 * 2 * 64 * 16 + 2 * 32)
    read(model, tokens(10), cache, [10])
    assert all(t.untyped_storage().nbytes() == 4 * t.numel() for t in cache.layers[0].queries)


def test_what_is_not_supported():
    model, ids = make("llama"), tokens(100)
    with pytest.raises(NotImplementedError, match=r"layers.0.self_attn .*output_attentions"):
        model(ids, cache=ThinnedCache(model.config), output_attentions=True)
    with pytest.raises(NotImplementedError, match="no gradient"):
        model(ids, cache=ThinnedCache(model.config))


def test_attention_of_other_kinds_raises():
    """What is not taken is named; nothing is left out in silence."""
    from thinformer.torch.cache import attention

    q, k, v = torch.randn(3, 1, 2, 100, 8)
    layer = ThinnedCache(copy.deepcopy(CONFIGURATIONS["llama"]), size=64).layers[0]
    options = {"attention_mask": None, "thinned_layer": layer}
    module = torch.nn.Module()
    for name, given in (
        ("softcap", {"softcap": 30.0}),
        ("position_bias", {"position_bias": torch.zeros(1, 2, 100, 100)}),
        ("s_aux", {"s_aux": torch.zeros(2)}),
        ("sliding_window", {"sliding_window": 32}),
        ("dropout", {"dropout": 0.1}),
        ("not causal", {"is_causal": False}),
    ):
        with pytest.raises(NotImplementedError, match=name):
            attention._forward(module, q, k, v, **options, **given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_query_that_sees_nothing_is_finite(dtype):
    """In padding; its keys and values must not become NaN, which 0 does not take away."""
    from thinformer.torch.cache.attention import attend

    query, key, value = torch.randn(3, 1, 2, 40, 8).to(dtype)
    hidden = torch.full((1, 2, 20), -torch.inf)
    output = attend(query[:, :, -5:], key, value, hidden, torch.zeros(1, 1, 5, 20).bool(), 0.3)
    assert output.isfinite().all()


def test_models_that_are_refused():
    """Those that would attend to landmarks without their masses, or to other keys."""
    from transformers import DeepseekV3Config, Gemma3nTextConfig

    with pytest.raises(NotImplementedError, match="share their keys"):
        ThinnedCache(Gemma3nTextConfig(num_hidden_layers=20, num_kv_shared_layers=5))
    with pytest.raises(ValueError, match="no layer of the model attends to all tokens"):
        ThinnedCache(MistralConfig(**SMALL, sliding_window=64))
    config = DeepseekV3Config(
        vocab_size=200, hidden_size=64, intermediate_size=96, moe_intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=16,
        kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16,
        n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(NotImplementedError, match="makes others of them"), torch.no_grad():
        model(tokens(150), cache=ThinnedCache(model.config, size=64))


def test_masks_that_are_refused():
    model, ids = make("llama"), tokens(150)
    causal = torch.ones(150, 150).tril().bool()
    for mask, error in (
        (causal.expand(1, 4, 150, 150), "differs by head"),
        (torch.zeros(1, 1, 150, 150).masked_fill(~causal, -1.5), "numbers besides 0"),
    ):
        with pytest.raises(NotImplementedError, match=error), torch.no_grad():
            model(ids, attention_mask=mask, cache=ThinnedCache(model.config, size=64))


def test_a_crop_that_is_too_large_changes_no_layer():
    model = make("gemma3")
    cache = ThinnedCache(model.config, size=64)
    cache.activate_past_recording()
    read(model, tokens(200), cache, [200])
    with pytest.raises(ValueError, match="cannot forget 40"):
        cache.crop(-40)
    assert {layer.get_seq_length() for layer in cache.layers} == {200}
