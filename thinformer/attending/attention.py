"""Attention on arrays in the CPU's memory, over the keys and values that are selected.

*Low-Rank Thinning* (arXiv 2502.12063), Algorithm 1. Arrays are query (B, T, H, E), key
(B, S, H, E) and value (B, S, H, D); every head of every sequence is thinned by itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.attending.arguments import check_finite, check_shapes, raise_overflow, softmax_scale
from thinformer.attending.herding import herd_keys
from thinformer.attending.options import KeySelection
from thinformer.attending.softmax import make_result, write_attention, write_landmark_attention
from thinformer.attending.thinned import thin_keys, thin_keys_there
from thinformer.cpu.run import is_finite
from thinformer.halving.draws import Draws, seed_from
from thinformer.halving.plan import PreThin
from thinformer.halving.problem import head_factor
from thinformer.support import checks


def compress_kv(
    key: ArrayLike,
    value: ArrayLike,
    *,
    g: int = 2,
    size: int | None = None,
    scale: float | None = None,
    delta: float = 0.5,
    pre_thin: PreThin = "even",
    rng: int | np.random.Generator | None = None,
    draws: Draws | None = None,
    device: bodies.Device = "auto",
) -> NDArray[np.int64]:
    r"""Choose the keys, with their values, that attention needs most.

    KH-Compress(g) with the attention kernel of *Low-Rank Thinning* (arXiv 2502.12063, Algorithm
    1), :math:`\exp(\beta\langle k, k'\rangle)\,(\langle v, v'\rangle + \|V\|_{\max}^2)` for the
    softmax scale :math:`\beta`.

    Parameters
    ----------
    key : (B, S, H, E) float array
    value : (B, S, H, D) float array
        float32 and float64 are computed in their own precision, float16 in float32. Any strides;
        never modified.
    g : int
        Oversampling: :math:`n_{out} = 2^g \sqrt n` keys are kept, n the largest power of four not
        above S.
    size : int, optional
        The number of keys to keep, instead of the one that g gives, chosen from as many as halve
        evenly to it.
    scale : float, optional
        Softmax scale, positive; 1 / sqrt(E) by default.
    delta : float
        Failure probability, in (0, 1].
    pre_thin : {"even", "stride"}
        How a sequence is brought to a length that halves evenly. "even" takes one token at random
        from each of equal strata, so that all have the same chance. "stride" is the published
        rule: n tokens, every s-th for s = S // n, of which the rest of the sequence is not seen and
        no more than n are kept.
    rng : None, int or numpy.random.Generator
        Where the draws come from (SPEC 7): fresh ones, a seed, or a generator, which is advanced
        by one number. They differ by head but not by sequence, so a sequence keeps the same keys in
        any batch, on any number of threads.
    draws : Draws, optional
        The draws themselves; `rng` is not used then.
    device : {"auto", "cpu", "cuda"}
        Where the keys are chosen. On a GPU, "cuda", with the same draws; arrays go there and the
        positions come back. Arrays that are on a GPU already, of CuPy or any library with
        ``__cuda_array_interface__``, are read there, in place. "auto" is the GPU for those, and the
        CPU otherwise.

    Returns
    -------
    (B, H, n_out) int64 array
        Positions kept, increasing. All of them where S <= n_out and pre_thin is "even". On the GPU
        where the keys are on one: an array of CuPy if they are, otherwise of numba.cuda.

    Raises
    ------
    TypeError, ValueError
        key or value is not a finite float array of the shape above with S >= 1; another argument
        is out of its range; the draws have another shape.
    RuntimeError, MemoryError
        There is no GPU, and why; it has too little memory.

    Notes
    -----
    About :math:`2 r n_{out}^2 (E + D)` multiply-adds a head, :math:`r = \log_2(S / n_{out})`.
    """
    device = bodies.choose(device, key=key, value=value)
    resident = bodies.on_gpu(key)
    key, value = bodies.float_array("key", key), bodies.float_array("value", value)
    checks.one_dtype(key=key.dtype.name, value=value.dtype.name)
    check_shapes(key.shape, value.shape)
    selection = KeySelection(g, size, pre_thin, correction=None, min_length=0)
    given = seed_from(rng) if draws is None else draws
    scale = softmax_scale(scale, key.shape[-1])
    if resident:
        return thin_keys_there(key, value, selection, scale=scale, draws=given, delta=delta)
    key, value = checks.computed(key), checks.computed(value)
    indices, finite = thin_keys(
        key, value, selection, scale=scale, draws=given, delta=delta, device=device
    )
    if not finite.all():
        check_finite(key=key, value=value)
    return indices


def attend(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    selection: KeySelection,
    *,
    scale: float,
    delta: float,
    draws: Draws | int,
    weights: bool,
) -> tuple[NDArray, NDArray | None, NDArray]:
    """Attend to the selected keys, as `thinformer.attention` describes it.

    The arguments are checked but for their numbers. Corrections and herding take draws that are a
    seed. Returns output (B, T, H, D), weights (B, H, T, n_out) if wanted, indices (B, H, n_out).
    """
    given = query.dtype
    query, key, value = map(checks.computed, (query, key, value))
    n_out = selection.plan(key.shape[1], delta).schedule.size
    # before any work: if there is no memory, the error comes at once
    output, of_keys = make_result(query, value, n_out, weights)
    few, seed = n_out < key.shape[1], draws if isinstance(draws, int) else 0
    if few and selection.correction is not None:
        chosen = write_landmark_attention(
            query, key, value, output, of_keys, selection, n_out=n_out, scale=scale, seed=seed
        )
        indices, finite = chosen.indices, chosen.finite
    elif few and selection.method == "herding":
        indices, finite = herd_keys(
            query, key, value, selection, n_out=n_out, scale=scale, seed=seed
        )
    else:
        indices, finite = thin_keys(key, value, selection, scale=scale, draws=draws, delta=delta)
        finite = finite & is_finite(head_factor(query), query.shape[1])
    if not finite.all():
        check_finite(query=query, key=key, value=value)
    if few and selection.correction is not None:
        if not (finite.all() and is_finite(head_factor(output), output.shape[1])):
            raise_overflow(query, key, value, selection)
    else:
        write_attention(query, key, value, indices, scale, output, of_keys)
    if of_keys is not None:
        of_keys = of_keys.astype(given, copy=False)
    return output.astype(given, copy=False), of_keys, indices
