"""`ThinnedCache`, and the layer of it that keeps few keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

try:
    from transformers import Cache, PreTrainedConfig
    from transformers.cache_utils import (
        DYNAMIC_LAYER_TYPE_MAPPING,
        DynamicLayer,
        get_layer_types_and_kwargs,
    )
except ImportError as error:
    raise ImportError(
        "thinformer.torch.cache needs transformers, 5 or later: pip install 'transformers>=5'"
    ) from error

from thinformer.attending.cache import QUERIES, CacheOptions
from thinformer.torch.cache import attention
from thinformer.torch.cache.compress import Cached, compress

GROWTH = 64  # tokens that join the latest ones before the next compression

# of the latest queries (B, H, L, E), what is held, the options and the scale: what is kept
Choose = Callable[[torch.Tensor, Cached, CacheOptions, float], Cached]


class ThinnedLayer(DynamicLayer):
    """The keys of a layer: landmarks with masses, then the latest tokens as they are.

    Attributes
    ----------
    keys, values : (B, H_kv, n_out + R, E) and (B, H_kv, n_out + R, D) tensors
    log_masses : (B, H_kv, n_out) tensor, optional
        None before the first compression, while all tokens are kept. It is minus infinity where a
        padded sequence has no landmark.
    queries : list of (B, H, t, E) tensors
        The latest queries, which the next compression is fitted to.
    cumulative_length : int
        The number of tokens that the layer has seen.
    """

    def __init__(self, options: CacheOptions, choose: Choose = compress) -> None:
        super().__init__()
        self.options, self.choose, self.scale = options, choose, 0.0
        self.log_masses: torch.Tensor | None = None
        self.queries: list[torch.Tensor] = []
        self.cumulative_length = 0
        self.waits = False  # for the attention function

    @property
    def recent(self) -> int:
        """The number of tokens that are kept as they are."""
        n_out = 0 if self.log_masses is None else self.log_masses.shape[-1]
        return self.keys.shape[-2] - n_out if self.is_initialized else 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add tokens; return all keys and values, and leave word for the attention function."""
        of_attention = kwargs.get("kwargs")
        if of_attention is None:
            raise NotImplementedError(
                "ThinnedCache works with models that pass their attention's arguments to the "
                "cache, as Llama, Qwen3, Mistral and Gemma 3 of transformers 5.24 do; this one "
                "does not"
            )
        if self.waits:
            raise RuntimeError(
                f"the model does not attend by {attention.NAME!r}, which ThinnedCache needs: "
                f"make the cache after the last call of model.set_attn_implementation"
            )
        of_attention[attention.LAYER] = self
        self.waits = True
        self.cumulative_length += key_states.shape[-2]
        return super().update(key_states, value_states)

    def attended(self, query: torch.Tensor, mask: torch.Tensor | None, scale: float) -> None:
        """Note the queries of a call, and compress where more is held than the options allow.

        query : (B, H, T, E) tensor; mask : see `attention.attend`; scale : of the softmax
        """
        self.waits, self.scale = False, scale
        self.queries.append(query[:, :, -QUERIES:])
        if self.recent >= self.options.recent + GROWTH:
            self.compress(mask)

    def compress(self, mask: torch.Tensor | None = None) -> None:
        """Keep few keys for all but the latest tokens; a mask says which tokens are padding."""
        options, keys, values = self.options, self.keys, self.values
        log_masses = keys.new_zeros(keys.shape[:3], dtype=torch.float32)
        if self.log_masses is not None:
            log_masses[..., : self.log_masses.shape[-1]] = self.log_masses
        if mask is not None:
            padding = attention.hidden(mask)[:, None]
            log_masses[..., -mask.shape[-1] :].masked_fill_(padding, -torch.inf)
        if keys.shape[2] > options.size:
            # no more than are kept: where keys are dropped, none of these is of padding
            latest = torch.cat(self.queries, dim=2)[:, :, -min(QUERIES, options.size) :]
            self.keys, self.values, log_masses = self.choose(
                latest, Cached(keys, values, log_masses), options, self.scale
            )
        self.log_masses = log_masses[..., : -options.recent].clone()
        self.queries = []

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of tokens that a mask is of, and the position of the first of them."""
        recent = self.recent
        return recent + query_length, self.cumulative_length - recent

    def get_seq_length(self) -> int:
        """Return the number of tokens that the layer has seen."""
        return self.cumulative_length

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.log_masses, self.queries, self.waits = None, [], False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the latest tokens; `tokens_to_remove` is minus their number."""
        number = -tokens_to_remove
        if number > self.recent and self.log_masses is not None:
            raise ValueError(
                f"the cache holds the {self.recent} latest tokens as they are, and so cannot "
                f"forget {number}"
            )
        before = self.cumulative_length
        super().crop(tokens_to_remove)
        self.cumulative_length = max(0, before - number)
        latest = torch.cat(self.queries, dim=2) if number and self.queries else None
        if latest is not None:
            self.queries = [latest[:, :, : max(0, latest.shape[2] - number)]]

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Take other sequences of the batch."""
        self._each(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every sequence."""
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Take some sequences of the batch."""
        self._each(lambda tensor: tensor[indices])

    def _each(self, of: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if not self.is_initialized:
            return
        self.keys, self.values = of(self.keys), of(self.values)
        self.queries = [of(each) for each in self.queries]
        if self.log_masses is not None:
            self.log_masses = of(self.log_masses)


class ThinnedCache(Cache):
    """TODO"""

    def __init__(self, config: PreTrainedConfig, size: int = 256, **options: Any) -> None:
        decoder = config.get_text_config(decoder=True)
        attends_by = decoder._attn_implementation
        if attends_by not in (None, "sdpa", attention.NAME):
            raise ValueError(
                f"the model attends by {attends_by!r}, and ThinnedCache adds weights to keys, "
                f"which that does not read. Call model.set_attn_implementation('sdpa') first"
            )
        checked = CacheOptions(size=size, **options)
        kinds, arguments = get_layer_types_and_kwargs(decoder)
        classes = [DYNAMIC_LAYER_TYPE_MAPPING[kind] for kind in kinds]
        super().__init__(
            [
                ThinnedLayer(checked) if each is DynamicLayer else each(**of_layer)
                for each, of_layer in zip(classes, arguments, strict=True)
            ]
        )
        attention.register()
        decoder._attn_implementation = attention.NAME
