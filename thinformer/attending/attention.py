"""Thinformer attention on NumPy arrays: attention over the keys and values that KH-Compress keeps.

*Low-Rank Thinning* (arXiv 2502.12063), Algorithm 1. Arrays are query (B, T, H, E), key
(B, S, H, E) and value (B, S, H, D); every head of every sequence is thinned by itself.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.attending.arguments import check_finite, check_overflow, check_shapes, softmax_scale
from thinformer.attending.herding import herd_keys
from thinformer.attending.options import Correction, KeySelection
from thinformer.attending.softmax import make_result, write_attention, write_landmark_attention
from thinformer.attending.thinned import thin_keys
from thinformer.cpu.run import is_finite
from thinformer.halving.draws import Draws, seed_from
from thinformer.halving.plan import PreThin
from thinformer.halving.problem import head_factor
from thinformer.support import checks


class Attended(NamedTuple):
    """What `attention` returns.

    Attributes
    ----------
    output : (B, T, H, D) array
        In the inputs' dtype.
    weights : (B, H, T, n_out) array or None
        None unless ``return_weights=True``.
    indices : (B, H, n_out) int64 array or None
        None unless ``return_indices=True``.
    """

    output: NDArray
    weights: NDArray | None
    indices: NDArray | None


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
    if resident:
        from thinformer.cuda import arrays  # imports numba.cuda

        _, S, H, E = key.shape
        halvings = selection.plan(S, delta)
        source = bodies.source_on_gpu(S, halvings, given, (key.shape[0], H))
        strided, scale = pre_thin == "stride", softmax_scale(scale, E)
        return arrays.compress_pairs(key, value, scale, halvings.schedule, strided, source)
    key, value = checks.computed(key), checks.computed(value)
    indices, finite = thin_keys(
        key, value, selection, scale=scale, draws=given, delta=delta, device=device
    )
    if not finite.all():
        check_finite(key=key, value=value)
    return indices


def attention(
    query: ArrayLike,
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
    correction: Correction | None = None,
    temperature: float | Literal["auto"] | None = None,
    return_weights: bool = False,
    return_indices: bool = False,
) -> Attended:
    """Approximate softmax attention by attention over few keys.

    Thinformer, Algorithm 1 of *Low-Rank Thinning* (arXiv 2502.12063): `compress_kv` chooses the
    keys, and every query attends to these keys alone, with equal weights. With S <= n_out keys, for
    instance ``size=S``, this is exact attention (unless ``pre_thin="stride"``).

    Parameters
    ----------
    query : (B, T, H, E) float array
    key, value, g, size, scale, delta, pre_thin, rng, draws, device
        As in `compress_kv`. All arrays have one dtype, and are in the CPU's memory.
    correction : {None, "nystrom", "queries"}
        `correction` fits a value and a mass to each kept key, to compensate for the dropped keys.
        None is the published method: all kept keys have equal weight, and nothing is fitted.
        "nystrom" minimises the error of the worst of all queries. With "queries", a kept key stands
        for a group of keys near to it: it is moved to their mean, and its value and mass are fitted
        to the exact outputs of some queries, which are returned as they are: 96 to 256 a head, all
        if there are fewer. Its error goes to 0 as more keys are kept.
        `thinformer.attending.landmarks` has the formulas.
        `g` and `size` give the number of kept keys; `pre_thin`, `delta` and `draws` belong to
        thinning and may not be given.
    temperature : float or "auto", optional
        With a correction: the temperature of its kernel on keys, positive. By default, and for
        "auto", WildCat's formula gives one for each head (arXiv 2602.10056).

        Without a correction: keys are selected by herding, on centred keys at this temperature.
        With "auto" the norms of keys and queries give one for each head. The kept keys have equal
        weight, as by default. They mostly represent attention better, but without a guarantee.
        `pre_thin`, `delta` and `draws` may not be given. `thinformer.attending.herding` has the
        formulas.
    return_weights : bool
        Also return the attention weights (B, H, T, n_out). With a correction they may be
        negative; they sum to 1, except where masses nearly cancel. A sampled query's weights are
        those of attention to the kept keys, although its output is exact.
    return_indices : bool
        Also return the positions of the kept keys, (B, H, n_out). For "queries" these are the keys
        that groups were made around.

    Returns
    -------
    Attended
        ``output`` (B, T, H, D) in the inputs' dtype; ``weights`` and ``indices``, or None.

    Raises
    ------
    TypeError, ValueError
        As `compress_kv`, and for a query of another shape, dtype or with NaN or infinity; with a
        correction, also for numbers so large that the output is not finite, such as keys whose
        squared norms overflow.
    NotImplementedError
        Arrays on a GPU: the softmax is computed on the CPU.

    Notes
    -----
    Attention takes T n_out (E + D) multiply-adds a head, where exact attention takes T S (E + D).
    Weights that are not returned exist for a few queries at a time.

    The selection takes, in multiply-adds a head:

    - by halving, what `compress_kv` takes;
    - by herding, about (4.5 + 1.5 log2(S / (3 n_out))) n_out^2 (E + D), and 9 n_out^2 numbers of
      memory a thread;
    - for "queries", about (m + 96) S (E + D) + m n_out (E + D + m / 2) + m^2 (m + 4 D), with
      m = min(T, max(96, min(n_out / 2, 256))) sampled queries;
    - for "nystrom", about n_out S (E + D) + n_out^2 (6 E + D + 3 n_out).

    With a correction a thread holds about S (E + D + 67) + n_out (2 E + 2 D + m + 160) + 2 m^2
    numbers, and for "nystrom" 5 n_out^2 + 4 n_out E more.

    Examples
    --------
    >>> import numpy as np
    >>> from thinformer import attention
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.normal(size=(3, 1, 1024, 2, 16))
    >>> output, weights, indices = attention(q, k, v, g=1, rng=0, return_indices=True)
    >>> output.shape, weights, indices.shape
    ((1, 1024, 2, 16), None, (1, 2, 64))
    """
    device = bodies.choose(device, query=query, key=key, value=value)
    if bodies.on_gpu(query):
        raise NotImplementedError(
            "attention takes no arrays on a GPU: compress_kv chooses the keys there, and"
            " thinformer.torch.thinformer_attention attends to them, on torch.as_tensor(key), ..."
        )
    query, key, value, given = _computed(query, key, value)
    scale = softmax_scale(scale, key.shape[-1])
    if scale > float(np.finfo(query.dtype).max):
        raise ValueError(f"scale must be in the range of {query.dtype}; got {scale}")
    if correction is not None or temperature is not None:
        special = "temperature" if correction is None else "correction"
        of_thinning = pre_thin != "even" or delta != 0.5 or draws is not None
        _check_special(special, of_thinning, device)
    selection = KeySelection(g, size, pre_thin, correction, temperature, min_length=0)
    n_out = selection.plan(key.shape[1], delta).schedule.size
    # before any work: if there is no memory, the error comes at once
    output, weights = make_result(query, value, n_out, return_weights)
    seed = seed_from(rng) if draws is None else 0
    few = n_out < key.shape[1]
    if few and correction is not None:
        chosen = write_landmark_attention(
            query, key, value, output, weights, selection, n_out=n_out, scale=scale, seed=seed
        )
        indices, finite = chosen.indices, chosen.finite
    elif few and temperature is not None:
        herded = herd_keys(query, key, value, selection, n_out=n_out, scale=scale, seed=seed)
        indices, finite = herded
    else:
        indices, finite = thin_keys(
            key, value, selection, scale=scale, draws=seed if draws is None else draws,
            delta=delta, device=device,
        )  # fmt: skip
        finite = finite & is_finite(head_factor(query), query.shape[1])
    if not finite.all():
        check_finite(query=query, key=key, value=value)
    if few and correction is not None:
        check_overflow(query, key, value, output)
    else:
        write_attention(query, key, value, indices, scale, output, weights)
    of_keys = None if weights is None else weights.astype(given, copy=False)
    return Attended(output.astype(given, copy=False), of_keys, indices if return_indices else None)


def _check_special(special: str, of_thinning: bool, device: str) -> None:
    """Check that a correction or temperature goes with the other arguments."""
    if of_thinning:
        raise ValueError(
            f"pre_thin, delta and draws belong to thinning: with a {special} they may not be given"
        )
    if device == "cuda":
        raise NotImplementedError(
            f"{special} must be None for device='cuda': it is computed on the CPU, or by"
            " thinformer.torch.thinformer_attention on torch tensors"
        )


def _computed(*given: ArrayLike) -> tuple[NDArray, NDArray, NDArray, np.dtype]:
    """Query, key and value in the dtype they are computed in, and the dtype they had."""
    query, key, value = (
        checks.float_array(name, array)
        for name, array in zip(("query", "key", "value"), given, strict=True)
    )
    checks.one_dtype(query=query.dtype.name, key=key.dtype.name, value=value.dtype.name)
    check_shapes(key.shape, value.shape, query.shape)
    return checks.computed(query), checks.computed(key), checks.computed(value), query.dtype
