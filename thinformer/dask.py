"""Thinning of Dask arrays and data frames, which may be larger than memory.

`thin` takes the steps of `thinformer.coreset` and `thinformer.merge` block by block, as tasks of
Dask's scheduler: threads, processes or a cluster.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.kernels.catalogue import WITHOUT_BANDWIDTH
from thinformer.support import checks
from thinformer.thinning.arguments import median_distance
from thinformer.thinning.columns import INDEX, check_some, format_reasons
from thinformer.thinning.distributed import Coresets, coreset, merge
from thinformer.thinning.merging import FULL
from thinformer.thinning.methods import BLIND, Method
from thinformer.thinning.scales import belongs_to_columns, deviations, for_columns
from thinformer.thinning.tables import read

__all__ = ["thin"]

SAMPLE = 1000  # rows of the first blocks, or more, say what the columns, scales and bandwidth are


class Blocks(NamedTuple):
    """Blocks of rows, as tasks.

    values : tasks that return arrays (rows, d); of a frame, frames
    weights : tasks that return (rows,) weights, or None, one for each block
    first_rows : the number of the first row of each block, or None where lengths are not known
    """

    values: list[Any]
    weights: list[Any]
    first_rows: list[int] | None


def thin(
    x: Any,
    size: int,
    *,
    weights: Any = None,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    standardize: Literal["auto", "scale", False] = "auto",
    method: Method = "compress++",
    g: int = 4,
    delta: float = 0.5,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Choose `size` rows of a Dask array or data frame that represent all n.

    Each block of rows is halved to a coreset where it is, four neighbouring coresets are merged and
    halved, and so on. The blocks themselves are never together in memory.

    Parameters
    ----------
    x : dask.array.Array (n, d) or dask.dataframe.DataFrame
        Blocks of less than all columns of an array are joined. Of a frame the columns count that
        `thinformer.thin` would take, but constant ones count too; a warning tells which do not.
    size : int
        Rows to choose, at most n.
    weights : (n,) array or dask.array.Array, or the name of a column of a frame, optional
        See `thinformer.thin`. A column of weights is not compared.
    kernel
        See `thinformer.coreset`.
    bandwidth : float, sequence of d floats, or "median"
        See `thinformer.thin`.
    standardize : {"auto", "scale", False}
        See `thinformer.thin`: "auto" scales the columns of frames, unless the kernel or a bandwidth
        has their units, and takes arrays as they are.
    method, g, delta
        See `thinformer.thin`.
    seed : int
        The source of all random numbers. The rows depend on the array, its blocks of rows and the
        seed. They do not depend on the scheduler or the number of workers.

    Returns
    -------
    (size,) int64 array
        Row numbers in increasing order. For a frame, and for an array whose blocks have unknown
        lengths, (size, 2): the number of the partition and the row in it.

    Raises
    ------
    TypeError, ValueError
        As in `thinformer.coreset`; or `x` is neither of both.

    Warns
    -----
    UserWarning
        Columns of a frame are left out.

    Notes
    -----
    "median", the columns of a frame and their scales come from the first blocks that together have
    1000 rows, which are then computed twice. Give a bandwidth, and ``standardize=False``, if the
    first blocks differ from the others.

    Each task holds a block or four coresets; these have at most 2^l times
    2 max(2^g `size`, 4096) rows on level l of the tree.
    """
    by_name = isinstance(kernel, str) and kernel not in WITHOUT_BANDWIDTH and method not in BLIND
    median = isinstance(bandwidth, str) and bandwidth == "median"
    is_frame = _is_frame(x)
    unit = for_columns(standardize, kernel, bandwidth, is_frame)
    if unit == "whiten":
        raise ValueError(f"standardize must be 'auto', 'scale' or False; got {standardize!r}")
    settings = {
        "kernel": kernel, "bandwidth": None if median else bandwidth, "method": method, "g": g,
        "delta": delta, "seed": seed,
    }  # fmt: skip
    # errors about arguments come before a block is computed
    x = x if is_frame else _checked(x)
    trial = settings | ({"bandwidth": 1.0} if median and by_name else {})
    coreset(np.empty((0, len(x.columns) if is_frame else x.shape[1])), size, part=0, **trial)
    if not is_frame and size > x.shape[0]:
        raise ValueError(f"size must be at most the {x.shape[0]} rows of x; got {size}")
    blocks = _of_frame(x, weights) if is_frame else _of_array(x, weights)
    places, divisors = None, None
    if is_frame or unit == "scale" or (median and by_name):
        every = belongs_to_columns(kernel, bandwidth)
        sample, places = _sample(blocks, weights if is_frame else None, every)
        divisors = deviations(sample) if unit == "scale" else None
        if median and by_name:
            scaled = sample if divisors is None else sample / divisors
            settings["bandwidth"] = median_distance(scaled, seed)
    return _tree(blocks, places, divisors, size, settings).compute()


def _tree(
    blocks: Blocks, places: NDArray | None, divisors: NDArray | None, size: int,
    settings: dict[str, Any],
) -> Any:  # fmt: skip
    """The task that returns the rows, with all that it needs."""
    from dask import delayed

    count = len(blocks.values)
    starts = blocks.first_rows or [0] * count
    halve, join, choose = (delayed(function) for function in (_coreset, merge, _choose))
    found = [
        halve(block, places, divisors, size, part=part, first_row=starts[part], weights=share,
              **settings)
        for part, (block, share) in enumerate(zip(blocks.values, blocks.weights, strict=True))
    ]  # fmt: skip
    while len(found) > 1:
        found = [join(found[i : i + FULL]) for i in range(0, len(found), FULL)]
    return choose(found[0], count, blocks.first_rows is not None)


def _coreset(
    block: Any, places: NDArray | None, divisors: NDArray | None, size: int, **settings: Any
) -> Coresets:
    """The coreset of a block, of its columns that count in their units."""
    points = block if places is None else _columns(block, places)
    return coreset(points if divisors is None else points / divisors, size, **settings)


def _columns(frame: Any, places: NDArray) -> NDArray[np.float64]:
    return frame.iloc[:, places].to_numpy(np.float64)


def _choose(coresets: Coresets, parts: int, numbered: bool) -> NDArray[np.int64]:
    found = coresets.choose(parts)
    return found.rows if numbered else np.stack([found.parts, found.rows], axis=1)


def _is_frame(x: Any) -> bool:
    return hasattr(x, "map_partitions") and hasattr(x, "columns")


def _checked(x: Any) -> Any:
    """The array, in blocks of whole rows."""
    import dask.array as da

    if not isinstance(x, da.Array):
        raise TypeError(
            f"x must be a dask.array.Array or a dask.dataframe.DataFrame; got {type(x).__name__} "
            "(thinformer.thin takes arrays in memory)"
        )
    if x.ndim != 2:
        hint = " (one column is x[:, None])" if x.ndim == 1 else ""
        raise ValueError(f"x must have shape (n, d); got shape {x.shape}{hint}")
    if not x.shape[0]:
        raise ValueError(f"x must have at least one row; got shape {x.shape}")
    return x.rechunk({1: -1}) if len(x.chunks[1]) > 1 else x


def _of_array(x: Any, weights: Any) -> Blocks:
    """The blocks of an array, and the weights of each."""
    values = x.to_delayed().ravel().tolist()
    known = not np.isnan(x.shape[0])
    starts = np.cumsum([0, *x.chunks[0][:-1]]).tolist() if known else None
    if weights is None:
        return Blocks(values, [None] * len(values), starts)
    import dask.array as da

    array = weights if isinstance(weights, da.Array) else da.from_array(np.asarray(weights))
    if not known:
        raise ValueError(
            f"weights need blocks of known length in x; got shape {x.shape}. "
            "x.compute_chunk_sizes() computes them"
        )
    if array.shape != x.shape[:1]:
        raise ValueError(f"weights must have shape {x.shape[:1]}; got {array.shape}")
    return Blocks(values, array.rechunk((x.chunks[0],)).to_delayed().tolist(), starts)


def _of_frame(x: Any, weights: Any) -> Blocks:
    """The partitions of a frame, and the weights of each."""
    values = list(x.to_delayed())
    if weights is None:
        return Blocks(values, [None] * len(values), None)
    if not isinstance(weights, str) or weights not in x.columns:
        raise ValueError(f"weights must be the name of a column of x, for a frame; got {weights!r}")
    return Blocks(values, list(x[weights].to_delayed()), None)


def _sample(blocks: Blocks, weights: str | None, every: bool) -> tuple[NDArray, NDArray | None]:
    """The first blocks' points (rows, d), and the places of their columns in a frame.

    every : whether a frame's columns count that are no data
    """
    from dask import compute

    found: list[Any] = []
    for block in blocks.values:
        found += compute(block)
        if sum(map(len, found)) >= SAMPLE:
            break
    found = [each for each in found if len(each)] or found[:1]
    if not hasattr(found[0], "columns"):
        return np.concatenate(found), None
    tables = [read(each, "x", every) for each in found]
    table = tables[0]._replace(values=np.concatenate([each.values for each in tables]))
    table = table.without([] if every else table.indexes(), INDEX)
    table = table.without([] if weights is None else [weights], "weights")
    check_some("x", table.labels, table.left_out)
    told = {name: why for name, why in table.left_out.items() if name != weights}
    if told:
        warnings.warn(f"x: {format_reasons(told)}", stacklevel=checks.depth())
    return table.values, table.places
