"""`attention` on arrays, in the CPU's memory or on a GPU.

On the CPU NumPy and Numba compute it (`thinformer.attending`), on a GPU our kernels and torch
(`thinformer.torch.arrays`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.attending.arguments import check_shapes, softmax_scale
from thinformer.attending.attention import attend as attend_on_cpu
from thinformer.attending.options import Correction, KeySelection
from thinformer.halving.draws import Draws, seed_from
from thinformer.halving.plan import PreThin
from thinformer.support import checks


class Attended(NamedTuple):
    """What `attention` returns.

    Attributes
    ----------
    output : (B, T, H, D) array
        In the inputs' dtype.
    weights : (B, H, T, n_out) array or None
        In the inputs' dtype. None unless ``return_weights=True``.
    indices : (B, H, n_out) int64 array or None
        None unless ``return_indices=True``.
    """

    output: NDArray
    weights: NDArray | None
    indices: NDArray | None


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
    key, value, g, size, scale, delta, pre_thin, rng, draws
        As in `compress_kv`. All arrays have one dtype.
    device : {"auto", "cpu", "cuda"}
        Where all is computed. On a GPU, "cuda", keys are chosen with the same draws, and attention
        is torch's, which must be installed. Arrays go there and the results come back. Arrays that
        are on a GPU already, of CuPy or any library with ``__cuda_array_interface__``, are read
        there, in place. "auto" is the GPU for those, and the CPU otherwise.
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
        ``output`` (B, T, H, D) in the inputs' dtype; ``weights`` and ``indices``, or None. On the
        GPU where the query is on one: arrays of CuPy if it is, otherwise of numba.cuda.

    Raises
    ------
    TypeError, ValueError
        As `compress_kv`, and for a query of another shape, dtype or with NaN or infinity; with a
        correction, also for numbers so large that the output is not finite, such as keys whose
        squared norms overflow; on a GPU so too with a temperature.
    RuntimeError, MemoryError
        There is no GPU, or torch cannot use it, and why; it has too little memory.
    ImportError
        The call is on a GPU, and torch is not installed.

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
    where = bodies.choose(device, query=query, key=key, value=value)
    query, key, value = (
        bodies.float_array(name, array)
        for name, array in (("query", query), ("key", key), ("value", value))
    )
    checks.one_dtype(query=query.dtype.name, key=key.dtype.name, value=value.dtype.name)
    check_shapes(key.shape, value.shape, query.shape)
    scale = softmax_scale(scale, key.shape[-1])
    computed_in: np.dtype = np.dtype(checks.COMPUTED_IN[query.dtype.name])
    if scale > float(np.finfo(computed_in).max):
        raise ValueError(f"scale must be in the range of {computed_in}; got {scale}")
    of_thinning = pre_thin != "even" or delta != 0.5 or draws is not None
    if of_thinning and not (correction is None and temperature is None):
        special = "temperature" if correction is None else "correction"
        raise ValueError(
            f"pre_thin, delta and draws belong to thinning: with a {special} they may not be given"
        )
    selection = KeySelection(g, size, pre_thin, correction, temperature, min_length=0)
    given = seed_from(rng) if draws is None else draws
    attend = attend_on_cpu if where == "cpu" else _on_gpu()
    output, weights, indices = attend(
        query, key, value, selection, scale=scale, delta=delta, draws=given, weights=return_weights
    )
    return Attended(output, weights, indices if return_indices else None)


def _on_gpu() -> Callable:
    """Return the function that attends on a GPU."""
    try:
        from thinformer.torch.arrays import attend  # imports torch
    except ImportError as error:
        raise ImportError(
            f"attention on a GPU is torch's; compress_kv chooses the keys without it ({error})"
        ) from error
    return attend
