"""Small decoders of transformers, saved as users have them."""

import torch
from small_encoders import saved
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(199)]
RANDOM = {
    "vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 400,
}  # fmt: skip


def words_tokenizer(words=WORDS):
    """Words and punctuation are tokens; what is no word is the last one."""
    numbers = {word: i for i, word in enumerate([*words, "?"])}
    tokenizer = Tokenizer(models.WordLevel(numbers, "?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def random_decoder(folder, **config):
    """A Llama with random weights."""
    return saved(folder, LlamaForCausalLM, LlamaConfig(**RANDOM | config), words_tokenizer())


def looking_up(folder, words):
    """A Llama that says the words of digits in its cache, those of them that it attends to.

    Tokens are unit vectors. Queries are all the same, and only keys of digits point to them, in a
    dimension that the rotation of positions leaves alone. So the sum of the logits is that of a
    digit's token, if there is one among the keys.
    """
    n = len(words) + 1
    width = n + n % 2
    config = LlamaConfig(
        vocab_size=n, hidden_size=width, num_hidden_layers=1, num_attention_heads=1, head_dim=width,
        intermediate_size=8, max_position_embeddings=400, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e30},
    )  # fmt: skip
    digits = torch.tensor([word.isdigit() for word in words])
    model = LlamaForCausalLM(config).eval()
    attention, still = model.model.layers[0].self_attn, width // 2 - 1
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(n, width))
        attention.q_proj.weight[still] = 1
        attention.k_proj.weight[still, : n - 1][digits] = 5.0
        attention.v_proj.weight.copy_(torch.eye(width))
        attention.o_proj.weight.copy_(10 * torch.eye(width))
    for part in (model, words_tokenizer(words)):
        part.save_pretrained(folder)
    return model
