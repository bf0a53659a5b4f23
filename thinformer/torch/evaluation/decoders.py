"""Decoders of transformers, and whole texts from files: for `eval-model`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from thinformer.torch.cache import ThinnedCache
from thinformer.torch.cache.thinned import ThinnedLayer
from thinformer.torch.evaluation.encoders import folder_of, load_model, load_processor, read_file

HEAD = "ForCausalLM"  # the end of the names of classes that predict the next token


class Decoder(NamedTuple):
    """A causal language model of transformers, with its tokenizer."""

    model: Any
    tokenizer: Any

    def tokens_of(self, text: str, special: bool = False) -> torch.Tensor:
        """Return the tokens of a text, (n,); `special` adds those that begin a text."""
        numbers = self.tokenizer(text, add_special_tokens=special)["input_ids"]
        return torch.tensor(numbers, dtype=torch.long, device=self.model.device)

    def logits(self, tokens: torch.Tensor, cache: Any, last: bool = False) -> torch.Tensor:
        """Read tokens (n,) behind those of a cache, and return their logits, (n, V) or (1, V)."""
        with torch.no_grad():
            output = self.model(
                input_ids=tokens[None], cache=cache, use_cache=True, logits_to_keep=int(last)
            )
        return output.logits[0].float()

    def full_cache(self) -> Any:
        """Return an empty cache that keeps all keys."""
        return transformers.DynamicCache(config=self.model.config)

    def thinned_cache(self, **options: Any) -> ThinnedCache:
        """Return an empty `ThinnedCache`."""
        return ThinnedCache(self.model.config, **options)

    @property
    def most_tokens(self) -> int | None:
        """The longest text that the model takes, where its configuration says it."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


def is_decoder(name: str) -> bool:
    """Whether a folder, a package or a name of the hub is a causal language model's.

    Raises
    ------
    FileNotFoundError
        See `folder_of`.
    """
    folder = folder_of(name)
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except Exception:  # who loads the model says what is wrong
        return False
    named = (getattr(config, "architectures", None) or [""])[0]
    return named.endswith(HEAD) and not getattr(config, "is_encoder_decoder", False)


def load_decoder(name: str) -> Decoder:
    """Return a decoder in evaluation mode, in float32.

    Raises
    ------
    ValueError
        Where the model or its tokenizer cannot be loaded.
    """
    folder = folder_of(name)
    tokenizer = load_processor(transformers.AutoTokenizer, folder, "tokenizer")
    return Decoder(load_model(folder), tokenizer)


def read_whole_texts(
    decoder: Decoder, paths: Sequence[Path], max_length: int | None
) -> list[torch.Tensor]:
    """Return the tokens of each file, which is one text, cut to what the model takes."""
    lengths = [length for length in (max_length, decoder.most_tokens) if length is not None]
    texts = []
    for path in paths:
        tokens = decoder.tokens_of(read_file(path), special=True)
        if len(tokens) == 0:
            raise ValueError(f"{path}: there is no text")
        texts.append(tokens[: min(lengths, default=None)])
    return texts


def count_layers(decoder: Decoder, length: int) -> tuple[int, int]:
    """Return how many layers of a model are thinned, and how many are not, with so many tokens.

    Raises
    ------
    ValueError
        Where the model does not take so many, or `ThinnedCache` does not take the model.
    """
    most = decoder.most_tokens
    if most is not None and length > most:
        raise ValueError(
            f"--prompt and --generate make {length:,} tokens, and the model takes {most:,}"
        )
    layers = decoder.thinned_cache().layers
    thinned = sum(isinstance(layer, ThinnedLayer) for layer in layers)
    return thinned, len(layers) - thinned


def thinned_layers(cache: Any) -> list[ThinnedLayer]:
    """Return the layers of a cache that can be thinned; those of a sliding window cannot."""
    return [layer for layer in cache.layers if isinstance(layer, ThinnedLayer)]


def bytes_of(cache: Any) -> int:
    """Return the memory of all tensors of a cache.

    A tensor that is a part of a larger one keeps all of that, so it counts whole.
    """
    storages: dict[int, int] = {}
    for layer in cache.layers:
        for held in vars(layer).values():
            for each in held if isinstance(held, (list, tuple)) else [held]:
                if isinstance(each, torch.Tensor):
                    storage = each.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
