"""Thinformer attention on NumPy arrays: attention over the keys and values that KH-Compress keeps.

*Low-Rank Thinning* (arXiv 2502.12063), Algorithm 1. Arrays are query (B, T, H, E), key
(B, S, H, E) and value (B, S, H, D); every head of every sequence is thinned by itself.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from thinformer import bodies
from thinformer.attending.herding import herd_keys
from thinformer.attending.landmarks import CORRECTIONS, LEAST, SHARE, Chosen, Fitted, fit_landmarks
from thinformer.attending.padding import by_length
from thinformer.bodies import run_schedule, source_on_gpu
from thinformer.cpu.run import all_rows, draw_numbers, is_finite, largest_entries, starting_points
from thinformer.halving.draws import Draws, seed_from
from thinformer.halving.plan import plan
from thinformer.halving.problem import CONSTANT, SCALE, Factor, Products, head_factor
from thinformer.kernels import exponential
from thinformer.support import checks


class Attended(NamedTuple):
    """What `attention` returns.

    Attributes
    ----------
    output : (B, T, H, D) array
        In the inputs' dtype.
    weights : (B, H, T, n_out) array or None
        None where they were not asked for.
    indices : (B, H, n_out) int64 array or None
        None where they were not asked for.
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
    pre_thin: str = "even",
    rng: int | np.random.Generator | None = None,
    draws: Draws | None = None,
    device: str = "auto",
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
    if resident:
        from thinformer.cuda import arrays  # imports numba.cuda

        _, S, H, E = key.shape
        settings = plan(S, g, size, delta, pre_thin)
        source = source_on_gpu(
            S, settings, seed_from(rng) if draws is None else draws, (key.shape[0], H)
        )
        strided, scale = settings.pre_thin == "stride", softmax_scale(scale, E)
        return arrays.compress_pairs(key, value, scale, settings.schedule, strided, source)
    key, value = checks.computed(key), checks.computed(value)
    indices, finite = select(
        key, value, g=g, size=size, scale=scale, delta=delta, pre_thin=pre_thin,
        draws=seed_from(rng) if draws is None else draws, device=device,
    )  # fmt: skip
    if not finite.all():
        _check_finite(key=key, value=value)
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
    pre_thin: str = "even",
    rng: int | np.random.Generator | None = None,
    draws: Draws | None = None,
    device: str = "auto",
    correction: str | None = None,
    temperature: float | str | None = None,
    return_weights: bool = False,
    return_indices: bool = False,
) -> Attended:
    """Approximate softmax attention by attention over few keys.

    Thinformer, Algorithm 1 of *Low-Rank Thinning* (arXiv 2502.12063): `compress_kv` chooses the
    keys, and every query attends to those alone, with equal weights. With S <= n_out keys, for
    instance ``size=S``, this is exact attention (unless ``pre_thin="stride"``).

    Parameters
    ----------
    query : (B, T, H, E) float array
    key, value, g, size, scale, delta, pre_thin, rng, draws, device
        As in `compress_kv`. All arrays have one dtype, and are in the CPU's memory.
    correction : {None, "nystrom", "queries"}
        How the keys kept make up for those that are not. None is the published method: they do not.
        Otherwise they are landmarks: keys chosen for it, with values and masses fitted so that
        attention to them comes near attention to all keys, be it for the worst of all queries
        ("nystrom") or for queries like some that are sampled ("queries", which comes
        nearer). Outputs of the sampled queries, at most 160 a head, are exact.
        `thinformer.attending.landmarks` has the formulas. `g` and `size` say how many they are;
        `pre_thin`, `delta` and `draws` belong to thinning and may not be given.
    temperature : float or "auto", optional
        That of a correction's kernel on keys, positive. By default, and for "auto", WildCat's
        formula for each head (arXiv 2602.10056).

        Without a correction it chooses the keys by herding, on centred keys at that temperature or,
        "auto", at one that goes by the norms of keys and queries. They weigh the same, as
        by default, and mostly represent attention better, but there is no guarantee, and their
        choice has no use for `pre_thin`, `delta` and `draws`, which may not be given.
        `thinformer.attending.herding` has the formulas.
    return_weights : bool
        Also return the attention weights (B, H, T, n_out). With a correction they may be
        negative; they sum to 1, save where masses nearly cancel. Those of sampled queries are what
        such a query would pay to landmarks: what it paid to all keys has no place there.
    return_indices : bool
        Also return the positions of the keys they belong to, (B, H, n_out).

    Returns
    -------
    Attended
        ``output`` (B, T, H, D) in the inputs' dtype, ``weights`` and ``indices``, each None
        unless asked for.

    Raises
    ------
    TypeError, ValueError
        As `compress_kv`, and for a query of another shape, dtype or with NaN or infinity.
    NotImplementedError
        Arrays on a GPU: the softmax is computed on the CPU.

    Notes
    -----
    Beside `compress_kv`, T n_out (E + D) multiply-adds a head, against T S (E + D) for exact
    attention. Weights that are not returned are held for a few queries at a time.

    With a temperature alone, about (4.5 + 1.5 log2(S / (3 n_out))) n_out^2 (E + D) in place of
    `compress_kv`; each thread holds 9 n_out^2 numbers.

    With a correction, in place of `compress_kv`, about m S (E + D) + n_out^2 (m / 2 + 4 E + 4 D +
    n_out / 6) for "queries", m = min(T, 160) of them, and n_out S (E + D) + n_out^2 (6 E + D +
    3 n_out) for "nystrom". Each thread holds about S (E + D + 35) + n_out (n_out + E + D + m)
    numbers, and for "nystrom" 4 n_out^2 more.

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
            "attention computes its softmax on the CPU and takes no arrays on a GPU: compress_kv"
            " chooses the keys there, and thinformer_attention attends to them, on torch tensors"
        )
    query, key, value = (
        checks.float_array(name, array)
        for name, array in (("query", query), ("key", key), ("value", value))
    )
    given = query.dtype
    checks.one_dtype(query=given.name, key=key.dtype.name, value=value.dtype.name)
    check_shapes(key.shape, value.shape, query.shape)
    query, key, value = map(checks.computed, (query, key, value))
    scale = softmax_scale(scale, key.shape[-1])
    if scale > float(np.finfo(query.dtype).max):
        raise ValueError(f"scale must be in the range of {query.dtype}; got {scale}")
    n_out = plan(key.shape[1], g, size, delta, pre_thin).schedule.size
    herding = correction is None and temperature is not None
    tau = check_correction(correction, temperature)
    special = "temperature" if herding else "correction"
    published = correction is None and not herding
    if not published and (pre_thin != "even" or delta != 0.5 or draws is not None):
        raise ValueError(
            f"pre_thin, delta and draws belong to thinning: with a {special} they may not be given"
        )
    if not published and device == "cuda":
        raise NotImplementedError(f"{special} is None only on a GPU; use device='cpu'")
    # before any work: if there is no memory, the error comes at once
    output, weights = _places(query, value, n_out, return_weights)
    if correction is not None and n_out < key.shape[1]:
        chosen = _attend_to_landmarks(
            query, key, value, output, weights, n_out=n_out, correction=correction,
            temperature=tau, scale=scale, seed=seed_from(rng),
        )  # fmt: skip
        if not chosen.finite.all():
            _check_finite(query=query, key=key, value=value)
        return _attended(given, output, weights, chosen.indices if return_indices else None)
    if herding and n_out < key.shape[1]:
        indices, finite = herd_keys(
            query, key, value, n_out=n_out, scale=scale, temperature=tau,
            seed=seed_from(rng),
        )  # fmt: skip
        if not finite.all():
            _check_finite(query=query, key=key, value=value)
        _attend(query, key, value, indices, scale, output, weights)
        return _attended(given, output, weights, indices if return_indices else None)
    indices, finite = select(
        key, value, g=g, size=size, scale=scale, delta=delta, pre_thin=pre_thin,
        draws=seed_from(rng) if draws is None else draws, device=device,
    )  # fmt: skip
    if not (finite.all() and is_finite(head_factor(query), query.shape[1])):
        _check_finite(query=query, key=key, value=value)
    _attend(query, key, value, indices, scale, output, weights)
    return _attended(given, output, weights, indices if return_indices else None)


def _attended(
    given: np.dtype, output: NDArray, weights: NDArray | None, indices: NDArray | None
) -> Attended:
    """Results in the dtype of the inputs."""
    few = None if weights is None else weights.astype(given, copy=False)
    return Attended(output.astype(given, copy=False), few, indices)


def select(
    key: NDArray,
    value: NDArray,
    *,
    g: int,
    size: int | None,
    scale: float | None,
    delta: float,
    pre_thin: str,
    draws: Draws | int,
    device: str = "cpu",
    tokens: tuple[NDArray, NDArray] | None = None,
) -> tuple[NDArray, NDArray]:
    """Return the positions (B, H, n_out) of the keys kept, and which heads (B, H) are finite.

    Draws may be given by their seed. A head with NaN or infinity keeps some valid positions. With
    tokens, the numbers (b,) of some sequences and the positions (b, L) of their tokens, it is done
    as if there were no others.
    """
    B, S, H, E = key.shape
    if device == "cuda":
        key, value = np.ascontiguousarray(key), np.ascontiguousarray(value)
    keys = head_factor(key, exponential(bandwidth=softmax_scale(scale, E) ** -0.5))
    values, rows = head_factor(value), all_rows(S)
    if tokens is not None:
        problems = (tokens[0][:, None] * H + np.arange(H)).ravel()
        keys, values = _some(keys, problems), _some(values, problems)
        rows = np.repeat(tokens[1], H, axis=0)
        B, S = tokens[1].shape
    settings = plan(S, g, size, delta, pre_thin)
    if isinstance(draws, int):
        draws = draw_numbers(settings.schedule, draws, max(H, 1))
    index = starting_points(S, settings, draws, (B, H))
    if tokens is not None:
        index = np.take_along_axis(rows, index, axis=1)
    everything = [(keys, rows), (values, rows)]
    if index.shape[1] < S:
        everything.append((values, index))
    largest_key, largest_value, *of_index = largest_entries(*everything)
    (vmax,) = of_index or (largest_value,)
    finite = np.isfinite(largest_key) & np.isfinite(largest_value)
    # exp(<k, k'>) (<v, v'> + vmax^2): the constant of the values' linear kernel is vmax^2, once a
    # power of two, to which halving is blind, has brought vmax below 1 and its square in range
    limit = np.finfo(vmax.dtype).maxexp - 2
    power = np.ldexp(vmax.dtype.type(1), -np.clip(np.frexp(vmax)[1], -limit, limit))
    values.parameters[:, SCALE] = power
    values.parameters[:, CONSTANT] = (vmax * power) ** 2
    problem = Products(keys, values)
    kept = run_schedule(device, problem, settings.schedule, draws, index, (B, H))
    return kept.reshape(B, H, settings.schedule.size), finite.reshape(B, H)


def select_valid(
    key: NDArray, value: NDArray, valid: NDArray, width: int, min_length: int, **settings: Any
) -> tuple[NDArray, NDArray, NDArray]:
    """Select among the tokens that count, valid (B, S) bool: each sequence as it would be alone.

    Returns positions (B, H, width), of which a sequence has the first ones, as many as its length
    earns, and then repeats one of its own; how many those are, (B,); and which heads are finite.
    Sequences of less than `min_length` tokens keep them all. The settings are those of `select`.
    """
    B, _, H, _ = key.shape
    indices, finite = np.zeros((B, H, width), np.int64), np.ones((B, H), bool)
    kept = np.zeros(B, np.int64)
    for sequences, positions in by_length(valid):
        length = positions.shape[1]
        short = {"size": length} if length < min_length else {}
        few, finite[sequences] = select(
            key, value, tokens=(sequences, positions), **settings | short
        )
        kept[sequences] = few.shape[-1]
        indices[sequences] = few[..., :1]
        indices[sequences, :, : few.shape[-1]] = few
    return indices, kept, finite


def attend_to_landmarks(
    query: NDArray, key: NDArray, value: NDArray, weights: bool, **settings: Any
) -> tuple[NDArray, NDArray | None, Chosen]:
    """Return attention to landmarks, its weights if asked, and the landmarks.

    The settings are those of `thinformer.attending.landmarks.fit_landmarks`.
    """
    places = _places(query, value, settings["n_out"], weights)
    return *places, _attend_to_landmarks(query, key, value, *places, **settings)


def _attend_to_landmarks(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    output: NDArray,
    weights: NDArray | None,
    **settings: Any,
) -> Chosen:
    chosen, fitted = fit_landmarks(query, key, value, output, **settings)
    # draws differ by head, not by sequence
    scale, known = settings["scale"], chosen.sampled[0] if len(query) else None
    _attend(query, key, fitted.values, chosen.indices, scale, output, weights, fitted, known)
    return chosen


def attend(
    query: NDArray, key: NDArray, value: NDArray, indices: NDArray, scale: float, weights: bool
) -> tuple[NDArray, NDArray | None]:
    """Return softmax attention over the given positions (B, H, n_out), and its weights if asked."""
    places = _places(query, value, indices.shape[-1], weights)
    _attend(query, key, value, indices, scale, *places)
    return places


def _places(
    query: NDArray, value: NDArray, n_out: int, weights: bool
) -> tuple[NDArray, NDArray | None]:
    """Memory for the output and, if asked, the weights."""
    B, T, H, _ = query.shape
    output = np.empty((B, T, H, value.shape[-1]), query.dtype)
    return output, np.empty((B, H, T, n_out), query.dtype) if weights else None


def _attend(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    indices: NDArray,
    scale: float,
    output: NDArray,
    weights: NDArray | None,
    fitted: Fitted | None = None,
    known: NDArray | None = None,
) -> None:
    from thinformer.cpu.softmax import Landmarks, softmax_attention  # imports Numba

    B, H, n_out = indices.shape
    queries = head_factor(query)
    queries.parameters[:, SCALE] = scale
    every = None if weights is None else weights.reshape(B * H, weights.shape[2], n_out)
    rows = indices.reshape(B * H, n_out)
    of_problems = None
    if fitted is not None:
        masses, low, high = (
            array.reshape(B * H, array.shape[-1])
            for array in (fitted.masses, fitted.low, fitted.high)
        )
        of_problems = Landmarks(masses, low, high, SHARE, LEAST)
    softmax_attention(
        queries, head_factor(key), head_factor(value), rows, output, every, of_problems, known
    )


def check_correction(correction: str | None, temperature: float | str | None) -> float | None:
    """Check both and return the temperature, None where a formula gives it or none is asked for."""
    if correction is not None:
        checks.choice("correction", correction, (None, *CORRECTIONS))
    if temperature is None or (isinstance(temperature, str) and temperature == "auto"):
        return None
    if isinstance(temperature, str):
        raise ValueError(f"temperature must be None, 'auto' or a number; got {temperature!r}")
    return checks.positive("temperature", temperature)


def softmax_scale(scale: float | None, dim: int) -> float:
    """Return the softmax scale, 1 / sqrt(dim) unless given."""
    return 1 / math.sqrt(dim) if scale is None else checks.positive("scale", scale)


def _some(factor: Factor, problems: NDArray) -> Factor:
    """A factor of some of the problems."""
    return factor._replace(first=factor.first[problems], parameters=factor.parameters[problems])


def check_shapes(
    key: tuple[int, ...], value: tuple[int, ...], query: tuple[int, ...] | None = None
) -> None:
    """Check the shapes of key (B, S, H, E), value (B, S, H, D) and query (B, T, H, E)."""
    if len(key) != 4:
        raise ValueError(f"key must have shape (B, S, H, E); got shape {key}")
    if len(value) != 4 or value[:3] != key[:3]:
        raise ValueError(
            f"value must have shape (B, S, H, D) with the B, S and H of key {key}; "
            f"got shape {value}"
        )
    for name, shape in (("key", key), ("value", value)):
        if shape[1] == 0 or shape[3] == 0:
            raise ValueError(f"{name} must have at least one token and column; got shape {shape}")
    if query is not None and (len(query) != 4 or (query[0], *query[2:]) != (key[0], *key[2:])):
        raise ValueError(
            f"query must have shape (B, T, H, E) with the B, H and E of key {key}; "
            f"got shape {query}"
        )


def _check_finite(**arrays: NDArray) -> None:
    """Check that arguments are finite, and name one that is not."""
    for name, array in arrays.items():
        checks.finite(name, is_finite(head_factor(array), array.shape[1]))
