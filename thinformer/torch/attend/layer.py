"""Attention of one layer: keys are selected, attended to, and the error is estimated if wanted."""

from __future__ import annotations

from typing import NamedTuple

import torch

from thinformer.attending.options import NEVER, KeySelection, LayerOptions
from thinformer.support import checks
from thinformer.torch.attend.arguments import Call, Wanted, check_generator, checked_heads
from thinformer.torch.attend.estimate import estimate_error
from thinformer.torch.attend.fallback import fall_back
from thinformer.torch.attend.few import attend_to_few
from thinformer.torch.attend.landmarks import attend_to_landmarks
from thinformer.torch.choose.calls import keys_kept
from thinformer.torch.choose.heads import COMPUTED_IN, Heads
from thinformer.torch.choose.seeds import draw_seed

ALL_KEYS = KeySelection(correction=None, min_length=NEVER)


class Estimated(NamedTuple):
    """The result of an attention: `Attended`, and an estimate of the error.

    Attributes
    ----------
    output : (B, T, H, D) tensor
        (B, H, T, D) for the layout "bhsd".
    weights : (B, H, T, n_out) tensor or None
    indices : (B, H_kv, n_out) int64 tensor or None
    error_estimate : (B, H) tensor or None
        float64 for float64 tensors, else float32.
    """

    output: torch.Tensor
    weights: torch.Tensor | None
    indices: torch.Tensor | None
    error_estimate: torch.Tensor | None


def checked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layer: LayerOptions,
    call: Call,
    wanted: Wanted,
) -> Estimated:
    """Check the arguments of a call and attend; the output has the layout of the call.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        As `checked_heads`; dropout out of its range.
    """
    if not 0 <= checks.finite_number("dropout_p", wanted.dropout_p) < 1:
        raise ValueError(f"dropout_p must lie in [0, 1); got {wanted.dropout_p}")
    check_generator(wanted.generator)
    heads = checked_heads(query, key, value, call)
    attended = attend(heads, layer, wanted)
    if call.layout == "bhsd":
        return attended._replace(output=attended.output.transpose(1, 2))
    return attended


def attend(heads: Heads, layer: LayerOptions, wanted: Wanted) -> Estimated:
    """Attend to the keys that the layer selects; where the error is too large, to all keys."""
    device = heads.key.device
    selection = ALL_KEYS if layer.exact else layer.selection.on(device.type)
    (B, _, H, _), S = heads.query.shape, heads.key.shape[1]
    seed = wanted.seed
    if seed is None:
        seed = draw_seed(wanted.generator, device)
    # fitting all keys to themselves would solve for S unknowns; a compiled graph serves any S
    exact = heads.valid is None and not torch.compiler.is_compiling()
    exact = exact and keys_kept(S, selection, padded=False) == S
    to_landmarks = selection.correction is not None and not exact
    attend_to = attend_to_landmarks if to_landmarks else attend_to_few
    output, weights, indices = attend_to(heads, selection, seed, wanted)
    if not wanted.error and layer.threshold is None:
        return Estimated(output, weights, indices, None)
    if exact:
        zeros = heads.query.new_zeros((B, H), dtype=COMPUTED_IN[heads.value.dtype])
        return Estimated(output, weights, indices, zeros)
    estimated = output
    if wanted.dropout_p:  # what is dropped is no error
        with torch.no_grad():
            estimated = attend_to(heads, selection, seed, Wanted())[0]
    error = estimate_error(heads, estimated, indices, seed, _queries_there(heads, wanted))
    if layer.threshold is not None:
        above = ~(error <= layer.threshold)  # NaN is
        output = fall_back(heads, output, above, seed, wanted.dropout_p)
    return Estimated(output, weights, indices, error)


def _queries_there(heads: Heads, wanted: Wanted) -> torch.Tensor | None:
    """Which queries there are, (B, T) bool: those of valid tokens, where they are the keys' own."""
    if wanted.query_mask is None and heads.query.shape[1] == heads.key.shape[1]:
        return heads.valid
    return wanted.query_mask
