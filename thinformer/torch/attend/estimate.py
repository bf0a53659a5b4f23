r"""The error of an attention output, estimated from few queries; and exact attention as fallback.

The relative error of a head, with output rows :math:`o_t` and exact rows :math:`e_t` for all T
queries, is

.. math:: \Big(\sum_t \|o_t - e_t\|^2 \big/ \sum_t \|e_t\|^2\Big)^{1/2}.

Both sums are estimated from the same few queries. All queries are equally likely. The estimate may
sample queries that the correction was fitted to: their rows are part of the output too. The only
condition is that the queries are drawn independently of the random numbers behind the output.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from thinformer.torch.choose.heads import COMPUTED_IN, Heads, grouped
from thinformer.torch.choose.seeds import draw_uniforms, under_vmap

QUERIES = 32  # queries a head; the spread of estimates falls as one over the root


def estimate_error(
    heads: Heads,
    output: torch.Tensor,
    indices: torch.Tensor,
    *,
    generator: torch.Generator | None = None,
    query_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Estimate the relative error of an output: (B, H), float32 or float64, without gradient.

    Parameters
    ----------
    heads : Heads
    output : (B, T, H, D) tensor
    indices : (B, H_kv, n_out) int64 tensor
        The keys kept, -1 for none.
    generator : torch.Generator, optional
        Draws once, and the same for every sequence.
    query_mask : (B, T) bool tensor, optional
        Which queries there are; all of them by default.

    Returns
    -------
    (B, H) tensor
        0 where all keys of a sequence are kept, or no query is there; NaN where a row is not
        finite.

    Notes
    -----
    B H m S (E + D) multiplications for m = `QUERIES`.
    """
    query, key, value, valid, scale = heads
    (B, T, H, _), (S, H_kv) = query.shape, key.shape[1:3]
    wide, group = COMPUTED_IN[value.dtype], max(heads.group, 1)
    if T == 0:
        return output.new_zeros((B, H), dtype=wide)
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        positions, counted = draw_queries(B, T, H, query_mask, generator, query.device)
        few, approximate = (
            torch.take_along_dim(x, positions.transpose(1, 2)[..., None], dim=1)
            for x in (query, output)
        )
        few, keys, values = (x.transpose(1, 2).to(wide) for x in (grouped(few, H_kv), key, value))
        rows = exact_attention(few, keys, values, valid, scale)
        # (B, H_kv, m', D), in which the queries of a group alternate
        rows = rows.unflatten(2, (QUERIES, group)).transpose(2, 3).flatten(1, 2)
        errors = approximate.transpose(1, 2).to(wide) - rows
        difference, norm = (
            torch.linalg.vector_norm(
                x.masked_fill(~counted[:, None, :, None], 0), dim=(2, 3), dtype=torch.float64
            )
            for x in (errors, rows)
        )
        error = torch.where(difference == 0, 0, difference / norm)
        lengths = S if valid is None else valid.sum(-1)[:, None]
        whole = (indices >= 0).sum(-1) == lengths
        return error.masked_fill(whole.repeat_interleave(group, dim=1), 0).to(wide)


def draw_queries(
    B: int,
    T: int,
    H: int,
    query_mask: torch.Tensor | None,
    generator: torch.Generator | None,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw positions (B, H, m), and which of them count (B, m): one of each of m equal strata.

    The strata lie around a ring that begins anywhere, so that all queries are equally likely. A
    sequence with fewer than m queries has strata of no query and of one: each of its queries counts
    once. All sequences share the random numbers, so that a sequence has the queries it has alone.
    """
    uniforms = draw_uniforms((H, QUERIES + 1), generator, device)
    everyone = torch.full((B, 1), T, device=device)
    lengths = everyone if query_mask is None else query_mask.sum(-1, keepdim=True)
    bounds = torch.arange(QUERIES + 1, device=device) * lengths // QUERIES
    widths = bounds.diff()
    start = (uniforms[:, :1] * lengths[:, None]).long()
    inside = (uniforms[:, 1:] * widths[:, None]).long()
    ranks = (start + bounds[:, None, :-1] + inside) % lengths.clamp(min=1)[:, None]
    if query_mask is None:
        return ranks, widths > 0
    order = query_mask.int().argsort(descending=True, stable=True)
    return order[:, None].expand(-1, H, -1).gather(2, ranks), widths > 0


def fall_back(heads: Heads, output: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
    """Return the output (B, T, H, D) with exact attention where `above`, (B, H) bool.

    Exact attention is computed for these heads of these sequences only, so the CPU reads how many
    they are.
    """
    if torch.compiler.is_compiling():
        raise NotImplementedError(
            "fallback must be None in a compiled graph: how many heads are above error_threshold "
            "would have to be known; compile with fullgraph=False, or leave the attention out of "
            "it with torch.compiler.disable"
        )
    if under_vmap():
        raise NotImplementedError(
            "fallback must be None under torch.vmap: how many heads are above error_threshold "
            "would have to be read; give the members as sequences of one batch"
        )
    query, key, value, valid, scale = heads
    sequences, chosen = above.nonzero(as_tuple=True)
    if len(sequences) == 0:
        return output
    shared = chosen // heads.group
    there = None if valid is None else valid[sequences]
    exact = exact_attention(
        query[sequences, None, :, chosen], key[sequences, None, :, shared],
        value[sequences, None, :, shared], there, scale,
    )[:, 0].to(output.dtype)  # fmt: skip
    return output.transpose(1, 2).index_put((sequences, chosen), exact).transpose(1, 2)


def exact_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    valid: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """Softmax attention (B, H, T, D) to the valid keys (B, H, S, E); 0 where none is valid."""
    if valid is None:
        return scaled_dot_product_attention(query, key, value, scale=scale)
    # a masked key may be NaN, and 0 times NaN is not 0
    key, value = (x.masked_fill(~valid[:, None, :, None], 0) for x in (key, value))
    present = valid | ~valid.any(-1, keepdim=True)
    return scaled_dot_product_attention(query, key, value, present[:, None, None], scale=scale)
