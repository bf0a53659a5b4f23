"""`thinformer_attention`: what `scaled_dot_product_attention` takes, over the few keys kept."""

from __future__ import annotations

from typing import NamedTuple

import torch

from thinformer.attending.options import KeySelection, LayerOptions
from thinformer.support import checks
from thinformer.torch.attend import ragged
from thinformer.torch.attend.arguments import LAYOUTS, Call, Wanted
from thinformer.torch.attend.layer import Estimated, checked_attention


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
    selection = KeySelection(g, size, correction=correction, temperature=temperature, min_length=0)
    layer = LayerOptions(selection, fallback=fallback, error_threshold=error_threshold)
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
    call = Call(scale, key_padding_mask, attn_mask, is_causal, enable_gqa, layout)
    wanted = Wanted(
        return_weights, return_error_estimate, dropout_p, generator,
        query_mask=ragged.query_mask(given, query, layout),
    )  # fmt: skip
    attended = checked_attention(query, key, value, layer, call, wanted)
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
