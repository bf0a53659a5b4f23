"""`ThinnedCache`, and the layer of it that keeps few keys."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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

from thinformer.attending.cache import GROWTH, QUERIES, RECENT, CacheOptions
from thinformer.attending.settings import load_sizes
from thinformer.support.table import aligned
from thinformer.torch.cache import attention, on_cpu
from thinformer.torch.cache.cached import Cached
from thinformer.torch.cache.compress import compress

# of the latest queries (B, H, L, E), NaN in padding, what is held, the options and the scale: what
# is kept
Choose = Callable[[torch.Tensor, Cached, CacheOptions, float], Cached]


def choose_keys(query: torch.Tensor, held: Cached, options: CacheOptions, scale: float) -> Cached:
    """Keep few keys, in compiled loops on the CPU, by torch elsewhere; see `compress`."""
    of_device = on_cpu.compress if held.keys.device.type == "cpu" else compress
    return of_device(query, held, options, scale)


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

    keys: Any
    values: Any

    def __init__(self, options: CacheOptions, choose: Choose = choose_keys) -> None:
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
                f"make the cache after the last call of model.set_attn_implementation. Or a call "
                f"before raised an error: go on with a new cache"
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
        if query.shape[2] >= QUERIES:
            self.queries = []  # only the latest are used
        self.queries.append(query[:, :, -QUERIES:].clone())  # a view would hold the whole prompt's
        if self.recent >= self.options.recent + self.options.growth:
            self.compress(mask)

    def compress(self, mask: torch.Tensor | None = None) -> None:
        """Keep few keys for all but the latest tokens; a mask says which tokens are padding."""
        options, keys, values = self.options, self.keys, self.values
        log_masses = keys.new_zeros(keys.shape[:3], dtype=torch.float32)
        if self.log_masses is not None:
            log_masses[..., : self.log_masses.shape[-1]] = self.log_masses
        if mask is not None:
            padding = attention.padding_of(mask)[:, None]
            log_masses[..., -mask.shape[-1] :].masked_fill_(padding, -torch.inf)
        if keys.shape[2] > options.size:
            latest = torch.cat(self.queries, dim=2)[:, :, -QUERIES:]
            if mask is not None:
                of_padding = padding[..., -latest.shape[2] :, None]
                latest = latest.masked_fill(of_padding, torch.nan)
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

    def check_crop(self, tokens_to_remove: int) -> None:
        """Raise where the latest tokens cannot be forgotten, as they are compressed."""
        if self.log_masses is not None and -tokens_to_remove > self.recent:
            raise ValueError(
                f"the cache holds the {self.recent} latest tokens as they are, and so cannot "
                f"forget {-tokens_to_remove}: make it with a larger recent"
            )

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the latest tokens; `tokens_to_remove` is minus their number."""
        self.check_crop(tokens_to_remove)
        number, before = -tokens_to_remove, self.cumulative_length
        super().crop(tokens_to_remove)
        self.cumulative_length = max(0, before - number)
        if number and self.queries:
            latest = torch.cat(self.queries, dim=2)
            left = max(0, latest.shape[2] - number)
            self.queries = [latest[:, :, :left]] if left else []

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
    """A cache of a decoder of transformers that keeps few keys, whatever the length of the text.

    The prompt is read exactly. Then each head keeps `size` keys: the first four tokens, the latest
    ones, those that the end of the prompt attends to, and those from which the rest can best be
    computed for the latest queries. They have fitted values and log masses; see
    `thinformer.compress_cache`. New tokens are added as they are. When they are `growth` more, they
    are compressed too.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        Of the model. Its attention must be ``"sdpa"``, transformers' default. It becomes
        ``"thinned_cache"``, which is the same function where no `ThinnedCache` is used.
    size : int, sequence of int or path
        Keys that a head keeps after a compression; or one number for each layer of the model; or
        the file of such numbers that `thinformer tune` writes.
        Between compressions it holds up to ``size + growth``. Where all tokens are no more than
        `size`, nothing is lost.
    recent : int
        The latest tokens, of `size`, that are kept as they are.
    growth : int
        Tokens that are added before the next compression.

    Raises
    ------
    TypeError, ValueError
        An option is out of its range, the model attends by another function, no layer of it attends
        to all tokens before, or a file has no sizes, or those of another number of layers.
    OSError
        The file cannot be read.
    NotImplementedError
        Layers share their keys. In the forward pass: gradients, dropout, ``output_attentions`` and
        other arguments of attention that it does not take, masks that differ by head, and models
        whose attention is not to what the cache holds, such as DeepSeek's.

    Notes
    -----
    For decoders of transformers 5.24 whose attention is causal, as Llama, Qwen3, Mistral and
    Gemma 3. Layers with a sliding window keep that window. Padding must be on the left, as
    `generate` asks for; a mask of another kind is approximated, as all queries count in the fit.
    Batches, several query heads for a head of keys, beams, several turns and assisted decoding
    work; `crop` takes back tokens that are held as they are, `recent` at least, so let `recent` be
    above the number of candidates of assisted decoding. Masses are added in the model's dtype. The
    cache is not for torch.compile.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from thinformer.torch.cache import ThinnedCache
    >>> config = LlamaConfig(vocab_size=100, hidden_size=32, intermediate_size=64,
    ...     num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
    >>> model = LlamaForCausalLM(config).eval()
    >>> prompt = torch.arange(500)[None] % 100
    >>> cache = ThinnedCache(model.config, size=128)
    >>> tokens = model.generate(prompt, cache=cache, max_new_tokens=8, do_sample=False)
    >>> print(cache.report())
    layer  tokens  keys  share
        0     507   135    27%
        1     507   135    27%
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        size: int | Sequence[int] | str | os.PathLike = 256,
        *,
        recent: int = RECENT,
        growth: int = GROWTH,
    ) -> None:
        if config.is_encoder_decoder:
            raise ValueError("ThinnedCache is for decoders; the model has an encoder too")
        decoder = config.get_text_config(decoder=True)
        attends_by = decoder._attn_implementation
        if attends_by not in (None, "sdpa", attention.NAME):
            raise ValueError(
                f"the model attends by {attends_by!r}, which does not read the masses of "
                f"ThinnedCache: call model.set_attn_implementation('sdpa') first"
            )
        if "reuse" in (getattr(decoder, "kv_sharing_modes", None) or ()):
            raise NotImplementedError("ThinnedCache does not take layers that share their keys")
        kinds, arguments = get_layer_types_and_kwargs(decoder)
        classes = [DYNAMIC_LAYER_TYPE_MAPPING[kind] for kind in kinds]
        if DynamicLayer not in classes:
            raise ValueError("no layer of the model attends to all tokens before it")
        each = _options_of_layers(size, len(kinds), recent, growth)
        super().__init__(
            [
                ThinnedLayer(options) if cls is DynamicLayer else cls(**of_layer)
                for cls, of_layer, options in zip(classes, arguments, each, strict=True)
            ]
        )
        attention.register()
        decoder._attn_implementation = attention.NAME

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the latest tokens of all layers, or of none; see `transformers.Cache.crop`."""
        for layer in self.layers:
            if isinstance(layer, ThinnedLayer):
                layer.check_crop(tokens_to_remove)
        super().crop(tokens_to_remove)

    def report(self) -> CacheReport:
        """Return how many keys each layer holds of how many tokens; printed as a table."""
        rows = []
        for number, layer in enumerate(self.layers):
            if isinstance(layer, DynamicLayer):  # others hold no keys, or in their own way
                held = layer.keys.shape[-2] if layer.is_initialized else 0
                rows.append(CacheRow(number, layer.get_seq_length(), held))
        return CacheReport(rows)


def _options_of_layers(
    size: int | Sequence[int] | str | os.PathLike, layers: int, recent: int, growth: int
) -> list[CacheOptions]:
    """Return the options of each layer; errors name the file and the layer."""
    CacheOptions(2**31, recent, growth)  # no layer and no file is to blame for these two
    sizes: Any = size
    where = ""
    if isinstance(size, str | os.PathLike):
        sizes, where = load_sizes(size), f"{size}: "
    elif isinstance(size, bytes) or not isinstance(size, Sequence):
        return [CacheOptions(sizes, recent, growth)] * layers
    if len(sizes) != layers:
        raise ValueError(
            f"{where}size must be an integer, or one for each of the {layers} layers; "
            f"got {len(sizes)}"
        )
    each = []
    for layer, of_layer in enumerate(sizes):
        try:
            each.append(CacheOptions(of_layer, recent, growth))
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}layer {layer}: {error}") from None
    return each


class CacheRow(NamedTuple):
    """A layer in a `CacheReport`: its number, the tokens that it saw, and the keys it holds."""

    layer: int
    tokens: int
    keys: int


class CacheReport(tuple[CacheRow, ...]):
    """The rows of a cache's layers; printed as a table."""

    def __str__(self) -> str:
        """Align the columns."""
        cells = (
            (f"{row.layer}", f"{row.tokens}", f"{row.keys}", f"{row.keys / max(row.tokens, 1):.0%}")
            for row in self
        )
        return aligned([("layer", "tokens", "keys", "share"), *cells], left=())
