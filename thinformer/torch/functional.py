"""`thinformer_attention`: what `scaled_dot_product_attention` takes, over the few keys kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import dropout, scaled_dot_product_attention

from thinformer.attending.attention import check_correction, softmax_scale
from thinformer.attending.settings import check_fallback
from thinformer.support import checks
from thinformer.torch.attend import ragged
from thinformer.torch.attend.estimate import estimate_error, fall_back
from thinformer.torch.attend.landmarks import attend_to_landmarks
from thinformer.torch.attend.masks import keys_attended
from thinformer.torch.choose.on_cpu import COMPUTED_IN, draw_seed
from thinformer.torch.choose.operators import herd, keys_kept, select

LAYOUTS = ("bshd", "bhsd")


class Attended(NamedTuple):
    """What `thinformer_attention` returns where weights or indices are asked for.

    Attributes
    ----------
    output : (B, T, H, D) tensor
        (B, H, T, D) for the layout "bhsd".
    weights : (B, H, T, n_out) tensor or None
    indices : (B, H_kv, n_out) int64 tensor or None
    """

    output: torch.Tensor
    weights: torch.Tensor | None
    indices: torch.Tensor | None


class Estimated(NamedTuple):
    """What it returns where an estimate of the error is asked for: `Attended`, and that.

    Attributes
    ----------
    error_estimate : (B, H) tensor or None
        float64 for float64 tensors, else float32.
    """

    output: torch.Tensor
    weights: torch.Tensor | None
    indices: torch.Tensor | None
    error_estimate: torch.Tensor | None


def thinformer_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    g: int = 2,
    size: int | None = None,
    scale: float | None = None,
    key_padding_mask: torch.Tensor | None = None,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
    dropout_p: float = 0.0,
    layout: str = "bshd",
    generator: torch.Generator | None = None,
    correction: str | None = None,
    temperature: float | str | None = None,
    return_weights: bool = False,
    return_indices: bool = False,
    return_error_estimate: bool = False,
    fallback: str | None = None,
    error_threshold: float | None = None,
) -> torch.Tensor | Attended | Estimated:
    r"""Approximate softmax attention by attention over few keys.

    Thinformer, Algorithm 1 of *Low-Rank Thinning* (arXiv 2502.12063), with the arguments of
    ``torch.nn.functional.scaled_dot_product_attention``. Of every key-value head of every sequence
    :math:`2^g \sqrt n` keys are chosen, n the largest power of four not above its number of
    tokens, and all queries attend to those. With ``size >= S`` this is exact attention.

    Parameters
    ----------
    query : (B, T, H, E) tensor
    key : (B, S, H_kv, E) tensor
    value : (B, S, H_kv, D) tensor
        float16, bfloat16, float32 or float64, all three the same (under autocast they are brought
        to its dtype where they differ), on the CPU or one CUDA device. Heads before tokens with
        ``layout="bhsd"``.
    g : int
        Oversampling. The error falls as :math:`2^{-g}`, the time to choose grows as :math:`4^g`.
    size : int, optional
        The number of keys to keep, instead of the one that g gives.
    scale : float, optional
        Softmax scale, positive; 1 / sqrt(E) by default.
    key_padding_mask : (B, S) bool tensor, optional
        **True is padding**, which is ignored: as in ``torch.nn.MultiheadAttention``, where the name
        comes from. (The ``attention_mask`` of tokenizers says the reverse: pass
        ``attention_mask == 0``.)
    attn_mask : tensor that broadcasts to (B, H, T, S), optional
        bool, where **True takes part**, or floating, 0 where a key takes part and -inf (or the
        dtype's least number) where not: as in ``scaled_dot_product_attention``. It must be the same
        for every query and every head, as a mask of padding is. With both masks, a key counts where
        both let it.
    is_causal : bool
        Must be False: a coreset of all keys has no order.
    enable_gqa : bool
        Let every key-value head serve H / H_kv query heads. Keys are chosen once a key-value head.
    dropout_p : float
        Probability, in [0, 1), that an attention weight is dropped. Pass 0 in evaluation.
    layout : {"bshd", "bhsd"}
        The order of the tensors' axes, the output's too. ``scaled_dot_product_attention`` has
        "bhsd"; the published module, and linear projections by themselves, "bshd".
    generator : torch.Generator, optional
        Where one seed is drawn from; torch's default generator of the tensors' device if None, as
        it must be under `torch.compile`. One of the CPU draws the same for tensors on a GPU.
    correction : {None, "nystrom", "queries"}
        How the keys kept make up for those that are not: as in `thinformer.attention`. With
        "queries", the queries of masked positions are not sampled where T = S, and outputs of the
        sampled ones are exact, but under dropout.
    temperature : float or "auto", optional
        That of a correction's kernel on keys; by WildCat's formula for each head if None or "auto".

        Without a correction it chooses the keys by herding, as in `thinformer.attention`, which
        says what that costs: mostly nearer than by default, and without a guarantee. "auto" goes by
        the norms of all queries of a group of heads, with T = S but those of masked positions.
        Not on a GPU.
    return_weights : bool
        Also return the attention weights, before dropout.
    return_indices : bool
        Also return the positions of the keys kept.
    return_error_estimate : bool
        Also return an estimate of each head's error, from 32 of its queries: below.
    fallback : {None, "exact"}
        What to do where that estimate is above `error_threshold`, or is NaN: with "exact", the
        output of that head of that sequence is exact attention, and gradients flow through it.
    error_threshold : float, optional
        Not negative; required by a fallback.

    Returns
    -------
    output : (B, T, H, D) tensor
        In the layout of the inputs. If weights or indices are asked for, a named tuple ``output``,
        ``weights`` (B, H, T, n_out), ``indices`` (B, H_kv, n_out). n_out is what S tokens earn; of
        a sequence with fewer, the weights that are left over are 0 and the indices -1. The output
        is nested where query is; T and S are then the longest. If an estimate is asked for, a
        fourth field is ``error_estimate`` (B, H), without gradient.

    Raises
    ------
    NotImplementedError
        ``is_causal``; an ``attn_mask`` that differs by query or by head, or that is a bias; under
        `torch.compile`, a mask whose values would have to be looked at to know (give it the shape
        (B, 1, 1, S), bool), and a fallback in a graph that may not break; nested tensors that are
        not jagged; a temperature without a correction on a GPU; other devices.
    RuntimeError
        A mask, or nested keys, while a CUDA graph is captured.
    TypeError, ValueError
        Arguments that do not fit; a temperature of herding so low that keys over it overflow;
        dropout beside an estimate or a fallback, as it would count as
        error; weights or indices beside a fallback, as exact attention has those of all keys.

    Notes
    -----
    Masked tokens are never kept and have no influence, whatever they hold. A sequence keeps the
    same keys alone and in a padded batch, for the same seed; not so, with a temperature or a
    correction, where nested queries differ in length and are not the keys' own tokens: some of
    other sequences then count. A sequence that is masked entirely gets zeros. NaN or infinity
    elsewhere among the keys and values of a head makes its output NaN; among its queries too, if
    they have a say, as with a temperature or a correction.
    On CUDA tensors the CPU waits for the sequences' lengths where there is a mask, and for nothing
    otherwise.

    Gradients flow to the queries and to the keys and values kept; the choice itself is not
    differentiated. It is made in float32 for float16 and bfloat16. `torch.utils.checkpoint`
    recomputes the same choice, except from a `generator` of your own: torch restores its default
    ones only.

    The error estimated is :math:`(\sum_t \|o_t - e_t\|^2 / \sum_t \|e_t\|^2)^{1/2}`, of a head's
    rows :math:`o_t` and the exact ones :math:`e_t`, with sums over 32 queries: one at random of
    each of 32 equal strata, whether or not a correction was fitted to it, drawn after the keys (the
    output is the same with and without). With T = S, queries of masked positions do not count. It
    is the error itself where there are at most 32 queries, 0 where all keys of a sequence are kept,
    and NaN where one of those rows is not finite. On the packaged activations at g = 2, nine in ten
    estimates were within 15 % of the error of all queries, and with a correction within a third;
    errors in few queries are missed more often than overrated. It takes 32 S (E + D)
    multiplications a head, and each head of a sequence that falls back T S (E + D).

    Examples
    --------
    >>> import torch
    >>> from thinformer import thinformer_attention
    >>> query, key, value = torch.randn(3, 2, 8, 1024, 16).unbind()  # (B, H, T or S, E)
    >>> padding = torch.arange(1024) >= torch.tensor([[1024], [700]])
    >>> thinformer_attention(query, key, value, key_padding_mask=padding, layout="bhsd").shape
    torch.Size([2, 8, 1024, 16])
    """
    checks.choice("layout", layout, LAYOUTS)
    given = query
    query, key, value, key_padding_mask = ragged.padded(
        query, key, value, key_padding_mask, attn_mask, layout
    )
    if fallback is not None and (return_weights or return_indices):
        name = "return_weights" if return_weights else "return_indices"
        raise ValueError(
            f"{name} must be False with a fallback: exact attention has weights of all keys"
        )
    attended = checked_attention(
        query, key, value, g=g, size=size, scale=scale, key_padding_mask=key_padding_mask,
        attn_mask=attn_mask, is_causal=is_causal, enable_gqa=enable_gqa, dropout_p=dropout_p,
        layout=layout, generator=generator, correction=correction, temperature=temperature,
        with_weights=return_weights, with_error=return_error_estimate, fallback=fallback,
        error_threshold=error_threshold, asked=ragged.asked(given, query, layout),
    )  # fmt: skip
    if given.is_nested:
        attended = attended._replace(
            output=ragged.like(given, attended.output, layout),
            weights=ragged.of_present(given, attended.weights),
        )
    if not return_indices:
        attended = attended._replace(indices=None)
    if return_error_estimate:
        return attended
    if not (return_weights or return_indices):
        return attended.output
    return Attended(*attended[:3])


def checked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    g: int,
    size: int | None,
    scale: float | None = None,
    key_padding_mask: torch.Tensor | None = None,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    enable_gqa: bool = False,
    dropout_p: float = 0.0,
    layout: str = "bshd",
    generator: torch.Generator | None = None,
    correction: str | None = None,
    temperature: float | str | None = None,
    min_length: int = 0,
    with_weights: bool = False,
    with_error: bool = False,
    fallback: str | None = None,
    error_threshold: float | None = None,
    asked: torch.Tensor | None = None,
) -> Estimated:
    """Return output, indices and, if asked for, weights and error of `thinformer_attention`.

    Sequences of less than `min_length` tokens keep all of theirs. asked (B, T) says which queries
    there are, where that is not what the masks say.
    """
    g = checks.integer("g", g, 0)
    size = None if size is None else checks.integer("size", size, 1)
    scale = None if scale is None else checks.positive("scale", scale)
    checks.choice("layout", layout, LAYOUTS)
    if not 0 <= checks.finite_number("dropout_p", dropout_p) < 1:
        raise ValueError(f"dropout_p must lie in [0, 1); got {dropout_p}")
    check_generator(generator)
    check_correction(correction, temperature)
    check_fallback(fallback, error_threshold)
    if dropout_p and (with_error or fallback is not None):
        raise ValueError(
            f"dropout_p must be 0 with an error estimate or a fallback, as what is dropped would "
            f"count as error; got {dropout_p}"
        )
    if checks.boolean("is_causal", is_causal):
        raise NotImplementedError(
            "is_causal must be False: the keys that are kept stand for all of them, whatever their "
            "order; use scaled_dot_product_attention for causal attention"
        )
    check_tensors(query, key, value, layout)
    query, key, value = as_autocast(query, key, value)
    if layout == "bhsd":
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    (B, T, H, _), (S, H_kv) = query.shape, key.shape[1:3]
    if H_kv != H and not checks.boolean("enable_gqa", enable_gqa):
        raise ValueError(
            f"query must have the {H_kv} heads of key unless enable_gqa is True; got {H}"
        )
    if H_kv != H and (H_kv == 0 or H % H_kv):
        raise ValueError(f"query must have a multiple of the {H_kv} heads of key; got {H}")
    valid = keys_attended(key_padding_mask, attn_mask, (B, H, T, S), key.device)
    attended = attend(
        query, key, value, valid, g=g, size=size, scale=scale, generator=generator,
        correction=correction, temperature=temperature, min_length=min_length,
        dropout_p=dropout_p, with_weights=with_weights, with_error=with_error,
        error_threshold=error_threshold, asked=asked,
    )  # fmt: skip
    if layout == "bhsd":
        return attended._replace(output=attended.output.transpose(1, 2))
    return attended


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    *,
    g: int,
    size: int | None,
    scale: float | None,
    generator: torch.Generator | None = None,
    pre_thin: str = "even",
    correction: str | None = None,
    temperature: float | str | None = None,
    min_length: int = 0,
    dropout_p: float = 0.0,
    with_weights: bool = False,
    with_error: bool = False,
    error_threshold: float | None = None,
    asked: torch.Tensor | None = None,
) -> Estimated:
    """Attend, once arguments are checked: query (B, T, H, E), key and value (B, S, H_kv, dim).

    valid (B, S) says which keys there are, asked (B, T) which queries, by valid if None. Sequences
    of less than `min_length` keep all of theirs. Where the error is above `error_threshold`,
    attention is exact.
    """
    herding = correction is None and temperature is not None
    if herding and key.is_cuda:
        raise NotImplementedError(
            f"temperature must be None without a correction on a GPU, where keys are not herded; "
            f"got {temperature!r}. Use temperature=None, or a correction, or tensors on the CPU"
        )
    tau = None if temperature is None or temperature == "auto" else float(temperature)
    scale = softmax_scale(scale, query.shape[-1])
    (B, T, H, _), S = query.shape, key.shape[1]
    # fitting all keys to themselves would solve for S unknowns; a compiled graph serves any S
    exact = valid is None and not torch.compiler.is_compiling()
    exact = exact and keys_kept(S, g, size, pre_thin, min_length, padded=False) == S
    if correction is not None and not exact:
        output, weights, indices = attend_to_landmarks(
            query, key, value, valid, g=g, size=size, scale=scale, correction=correction,
            temperature=tau, generator=generator, min_length=min_length,
            dropout_p=dropout_p, with_weights=with_weights,
        )  # fmt: skip
    else:
        output, weights, indices = _attend_to_few(
            query, key, value, valid, g=g, size=size, scale=scale, generator=generator,
            pre_thin=pre_thin, herding=herding, temperature=tau, min_length=min_length,
            dropout_p=dropout_p, with_weights=with_weights,
        )  # fmt: skip
    if not with_error and error_threshold is None:
        return Estimated(output, weights, indices, None)
    if exact:
        zeros = query.new_zeros((B, H), dtype=COMPUTED_IN[value.dtype])
        return Estimated(output, weights, indices, zeros)
    if asked is None and valid is not None and T == S:
        asked = valid
    error = estimate_error(
        query, key, value, valid, output, indices, scale=scale, generator=generator,
        asked=asked,
    )  # fmt: skip
    if error_threshold is not None:
        above = ~(error <= error_threshold)  # NaN is
        output = fall_back(query, key, value, valid, output, above, scale)
    return Estimated(output, weights, indices, error)


def _attend_to_few(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    *,
    g: int,
    size: int | None,
    scale: float,
    generator: torch.Generator | None,
    pre_thin: str,
    herding: bool,
    temperature: float | None,
    min_length: int,
    dropout_p: float,
    with_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Attend to thinned or herded keys, all of which weigh the same."""
    seed, keys, values = draw_seed(generator, key.device), key.detach(), value.detach()
    if herding:
        indices, counts, finite = herd(
            query.detach(), keys, values, valid, seed, g, size, scale, temperature, min_length
        )
    else:
        indices, counts, finite = select(
            keys, values, valid, seed, g, size, scale, pre_thin, min_length
        )
    key, value = _gather(key, indices), _gather(value, indices)
    used = slots = None
    if valid is not None:
        slot = torch.arange(indices.shape[-1], device=indices.device)
        used = slot < counts[:, None]
        slots = (slot < counts.clamp(min=1)[:, None])[:, None, None]  # of none, one key of zeros
        key, value = (x.masked_fill(~used[:, None, :, None], 0) for x in (key, value))
        indices = indices.masked_fill(~used[:, None], -1)
    # NaN may have stood where no key was kept; one in each key makes the whole output NaN
    key = key.masked_fill(~finite[:, :, None, None], float("nan"))
    query = query.transpose(1, 2)
    if (group := query.shape[1] // max(key.shape[1], 1)) > 1:
        key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    if not with_weights:
        output = scaled_dot_product_attention(
            query, key, value, slots, dropout_p=dropout_p, scale=scale
        )
        return output.transpose(1, 2), None, indices
    # half precision would round logits to a few hundredths; autocast would bring it back
    wide = COMPUTED_IN[value.dtype]
    with torch.autocast(query.device.type, enabled=False):
        logits = query.to(wide) @ (key.to(wide) * scale).mT
        if slots is not None:
            logits = logits.masked_fill(~slots, -torch.inf)
        weights = torch.softmax(logits, dim=-1)
        dropped = dropout(weights, dropout_p) if dropout_p else weights
        output = (dropped @ value.to(wide)).to(value.dtype)
    weights = weights.to(value.dtype)
    if used is not None:
        weights = weights.masked_fill(~used[:, None, None], 0)
    return output.transpose(1, 2), weights, indices


def _gather(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Tokens (B, S, H, dim) at positions (B, H, n_out), as (B, H, n_out, dim)."""
    sequence, head = (
        torch.arange(n, device=indices.device).reshape(shape)
        for n, shape in ((indices.shape[0], (-1, 1, 1)), (indices.shape[1], (1, -1, 1)))
    )
    return tokens[sequence, indices, head]  # in half the time of torch.gather


def as_autocast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Bring tensors of several dtypes to one where autocast is on, as it does for SDPA."""
    device, dtypes = tensors[0].device.type, {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 and torch.float64 not in dtypes and torch.is_autocast_enabled(device):
        return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)
    names = ("query", "key", "value")
    checks.one_dtype(**{n: t.dtype for n, t in zip(names, tensors, strict=True)})
    return tensors


def check_tensors(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: str = "bshd"
) -> None:
    """Check that three tensors make an attention that can be computed here; heads may differ."""
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}")
        if tensor.is_nested:
            raise NotImplementedError(
                f"{name} is a nested tensor, which thinformer_attention takes; here, pad it "
                f"(torch.nested.to_padded_tensor)"
            )
        if tensor.dtype not in COMPUTED_IN:
            raise TypeError(
                f"{name} must be float16, bfloat16, float32 or float64; got dtype {tensor.dtype}"
            )
    devices = {name: str(tensor.device) for name, tensor in tensors.items()}
    if len(set(devices.values())) > 1:
        got = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"query, key, value must be on one device; got {got}")
    if query.device.type not in ("cpu", "cuda"):
        raise NotImplementedError(
            f"query is on device {query.device}; thinformer takes tensors on the CPU, where .cpu() "
            f"moves them, or on a CUDA device"
        )
    axes = {"S": "(B, S, H, {})", "T": "(B, T, H, {})"}
    if layout == "bhsd":
        axes = {"S": "(B, H, S, {})", "T": "(B, H, T, {})"}
    tokens = layout.index("s")
    if key.ndim != 4:
        raise ValueError(f"key must have shape {axes['S'].format('E')}; got shape {shape(key)}")
    if value.ndim != 4 or value.shape[:3] != key.shape[:3]:
        raise ValueError(
            f"value must have shape {axes['S'].format('D')} with the B, S and H of key "
            f"{shape(key)}; got shape {shape(value)}"
        )
    for name, tensor in (("key", key), ("value", value)):
        if tensor.shape[tokens] == 0 or tensor.shape[3] == 0:
            raise ValueError(
                f"{name} must have at least one token and column; got shape {shape(tensor)}"
            )
    if query.ndim != 4 or query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise ValueError(
            f"query must have shape {axes['T'].format('E')} with the B and E of key {shape(key)}; "
            f"got shape {shape(query)}"
        )


def check_generator(generator: torch.Generator | None) -> None:
    """Check that a generator is one of torch, or None."""
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator must be a torch.Generator or None; got {generator!r}")


def shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """A tensor's shape, printed as a tuple."""
    return tuple(tensor.shape)
