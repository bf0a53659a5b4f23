"""`thinformer_attention`: scaled dot-product attention over few keys, a function of tensors."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypedDict, Unpack, overload

import torch

from thinformer.attending.options import Correction, Fallback, KeySelection, LayerOptions
from thinformer.support import checks
from thinformer.torch.attend import ragged
from thinformer.torch.attend.arguments import LAYOUTS, Call, Layout, Wanted
from thinformer.torch.attend.layer import Estimated, checked_attention


class Attended(NamedTuple):
    """The result of `thinformer_attention` with ``return_weights`` or ``return_indices``.

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


class Options(TypedDict, total=False):
    """The keywords of `thinformer_attention` on which the type of its result does not depend."""

    g: int
    size: int | None
    scale: float | None
    key_padding_mask: torch.Tensor | None
    attn_mask: torch.Tensor | None
    is_causal: bool
    enable_gqa: bool
    dropout_p: float
    layout: Layout
    generator: torch.Generator | None
    correction: Correction | None
    temperature: float | Literal["auto"] | None
    fallback: Fallback | None
    error_threshold: float | None


@overload
def thinformer_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    return_weights: Literal[False] = False,
    return_indices: Literal[False] = False,
    return_error_estimate: Literal[False] = False,
    **options: Unpack[Options],
) -> torch.Tensor: ...
@overload
def thinformer_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    return_weights: Literal[True],
    return_indices: bool = False,
    return_error_estimate: Literal[False] = False,
    **options: Unpack[Options],
) -> Attended: ...
@overload
def thinformer_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    return_weights: bool = False,
    return_indices: Literal[True],
    return_error_estimate: Literal[False] = False,
    **options: Unpack[Options],
) -> Attended: ...
@overload
def thinformer_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    return_weights: bool = False,
    return_indices: bool = False,
    return_error_estimate: Literal[True],
    **options: Unpack[Options],
) -> Estimated: ...
@overload
def thinformer_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    return_weights: bool = False,
    return_indices: bool = False,
    return_error_estimate: bool = False,
    **options: Unpack[Options],
) -> torch.Tensor | Attended | Estimated: ...
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
    layout: Layout = "bshd",
    generator: torch.Generator | None = None,
    correction: Correction | None = None,
    temperature: float | Literal["auto"] | None = None,
    return_weights: bool = False,
    return_indices: bool = False,
    return_error_estimate: bool = False,
    fallback: Fallback | None = None,
    error_threshold: float | None = None,
) -> torch.Tensor | Attended | Estimated:
    r"""Approximate softmax attention by attention over few keys.

    The defaults are the published method. In a trained model pass ``correction="queries"`` and
    ``fallback="exact"``: trained keys are peaked, and keys of equal weight miss much of them.

    Thinformer, Algorithm 1 of *Low-Rank Thinning* (arXiv 2502.12063), with the arguments of
    ``torch.nn.functional.scaled_dot_product_attention``. Of every key-value head of every sequence
    :math:`2^g \sqrt n` keys are kept, n the largest power of four not above its number of tokens,
    and all queries attend to these keys. With ``size >= S`` this is exact attention.

    Parameters
    ----------
    query : (B, T, H, E) tensor
    key : (B, S, H_kv, E) tensor
    value : (B, S, H_kv, D) tensor
        float16, bfloat16, float32 or float64, all three the same (under autocast they are brought
        to its dtype where they differ), on the CPU or one CUDA device. With ``layout="bhsd"`` the
        shapes are (B, H, T or S, dim).
    g : int
        Oversampling. The error falls as :math:`2^{-g}`, the time to choose grows as :math:`4^g`.
    size : int, optional
        The number of keys to keep, instead of the one that g gives.
    scale : float, optional
        Softmax scale, positive; 1 / sqrt(E) by default.
    key_padding_mask : (B, S) bool tensor, optional
        **True is padding**, which is left out, as in ``torch.nn.MultiheadAttention``. (The
        ``attention_mask`` of tokenizers means the reverse: pass ``attention_mask == 0``.)
    attn_mask : tensor that broadcasts to (B, H, T, S), optional
        bool, where **True takes part**, or floating, 0 where a key takes part and -inf (or the
        dtype's least number) where it does not, as in ``scaled_dot_product_attention``. It must be
        the same for every query and every head, as a mask of padding is. With both masks, a key
        takes part where both masks allow it.
    is_causal : bool
        Must be False: the kept keys represent all keys, whatever their order.
    enable_gqa : bool
        Let every key-value head serve H / H_kv query heads. Each key-value head selects its keys
        once.
    dropout_p : float
        Probability, in [0, 1), that an attention weight is dropped. Pass 0 in evaluation.
    layout : {"bshd", "bhsd"}
        The order of the tensors' axes, and of the output's. ``scaled_dot_product_attention`` takes
        "bhsd"; the published module takes "bshd", which linear projections return.
    generator : torch.Generator, optional
        The source of one seed; torch's default generator of the tensors' device if None. It must
        be None under `torch.compile`. A generator of the CPU draws the same seed for tensors on a
        GPU.
    correction : {None, "nystrom", "queries"}
        `correction` fits a value and a mass to each kept key, to compensate for the dropped keys,
        as in `thinformer.attention`. With "queries" and T = S, queries of masked positions are not
        sampled. The outputs of sampled queries are exact, except under dropout.
    temperature : float or "auto", optional
        With a correction: the temperature of its kernel on keys; None and "auto" use WildCat's
        formula for each head.

        Without a correction: keys are selected by herding, as in `thinformer.attention`. The output
        is mostly nearer than by default, without a guarantee. "auto" uses the norms of all queries
        of a group of heads; with T = S, queries of masked positions are left out.
    return_weights : bool
        Also return the attention weights, before dropout.
    return_indices : bool
        Also return the positions of the keys kept.
    return_error_estimate : bool
        Also return an estimate of each head's error, from 32 of its queries; see Notes.
    fallback : {None, "exact"}
        What to do for a head of a sequence whose estimated error is above `error_threshold`, or is
        NaN. "exact" computes exact attention for it, and gradients flow through that.
    error_threshold : float, optional
        Not negative; 0.4 by default with a fallback.

    Returns
    -------
    output : (B, T, H, D) tensor
        In the layout of the inputs. If weights or indices are asked for, a named tuple ``output``,
        ``weights`` (B, H, T, n_out), ``indices`` (B, H_kv, n_out), where n_out is the number of
        keys that S tokens keep. A shorter sequence keeps fewer keys: its other weights are 0, and
        its other indices -1. The output is nested where query is nested; T and S are then the
        longest lengths. With ``return_error_estimate`` a fourth field is ``error_estimate`` (B, H),
        without gradient.

    Raises
    ------
    NotImplementedError
        ``is_causal``; an ``attn_mask`` that differs by query or by head, or that is a bias; under
        `torch.compile`, a mask whose values would have to be looked at to know (give it the shape
        (B, 1, 1, S), bool); nested tensors that are not jagged; other devices.
    RuntimeError
        A mask and a correction or a temperature, or nested keys, while a CUDA graph is captured.
    TypeError, ValueError
        Arguments that do not fit; on the CPU, a temperature of herding so low that keys over it
        overflow (on a GPU the output is NaN then);
        weights or indices beside a fallback, as exact attention has those of all keys.

    Notes
    -----
    Masked tokens are never kept and have no influence, whatever they hold. For one seed, a sequence
    keeps the same keys alone and in a padded batch. There is one exception: with a temperature or a
    correction, where nested queries have other lengths than nested keys, queries of other sequences
    have an influence. A sequence that is masked entirely gets zeros. NaN or infinity in an unmasked
    key or value of a head makes the head's output NaN; so does NaN or infinity in its queries with
    a temperature or a correction, which use them. With a correction it is NaN also where finite
    numbers are too large: where squared norms of keys, less their mean and over the temperature,
    overflow (norms above 1.8e19 in float32), or those of queries, which give the temperature if
    none is given. `thinformer.attention` raises then.

    On CUDA tensors with a mask, and a correction or a temperature, the CPU waits for the sequences'
    lengths; otherwise it waits for nothing.

    Gradients flow to the queries and to the kept keys and values; the selection itself is not
    differentiated. Keys are selected in float32 for float16 and bfloat16. `torch.utils.checkpoint`
    recomputes the same selection, but not with a `generator` of your own: torch restores its
    default generators only. Under `torch.vmap`, ``randomness="different"`` draws a seed for each
    member and "same" one for all. A fallback, and a floating mask, need values that a member of
    `torch.vmap` does not have. `torch.jit.trace` cannot trace the function, as the number of keys
    follows from the length; `torch.export.export` can.

    The error estimate is :math:`(\sum_t \|o_t - e_t\|^2 / \sum_t \|e_t\|^2)^{1/2}` for a head's
    output rows :math:`o_t` and the exact rows :math:`e_t`. The sums are over 32 queries, one drawn
    at random from each of 32 equal strata. The estimate may sample queries that the correction was
    fitted to: their rows are part of the output too. The queries are drawn after the keys, so the
    output is the same with and without an estimate. With T = S, queries of masked positions are
    left out. The estimate is the error itself where there are at most 32 queries, 0 where a
    sequence keeps all its keys, and NaN where one of the rows is not finite.

    On the recorded activations at g = 2, nine in ten estimates were within 15 % of the error of all
    queries, and with a correction within a third. An error that only few queries have is missed
    more often than it is overrated. The estimate takes 32 S (E + D) multiplications a head, and a
    fallback T S (E + D) for each head of a sequence.

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
    layer = LayerOptions(selection, fallback, error_threshold, seed=None)
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
