"""Thinning of Dask arrays, which may be larger than memory.

`thin` takes the steps of `thinformer.coreset` and `thinformer.merge` block by block, as tasks of
Dask's scheduler: threads, processes or a cluster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.kernels.catalogue import WITHOUT_BANDWIDTH
from thinformer.thinning.arguments import median_distance
from thinformer.thinning.distributed import Coresets, coreset, merge
from thinformer.thinning.merging import FULL
from thinformer.thinning.methods import BLIND, Method

__all__ = ["thin"]

SAMPLE = 1000  # a median bandwidth is that of the first blocks that have so many rows


def thin(
    x: Any,
    size: int,
    *,
    weights: Any = None,
    kernel: Any = "gaussian",
    bandwidth: Any = "median",
    method: Method = "compress++",
    g: int = 4,
    delta: float = 0.5,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Choose `size` rows of a Dask array that represent all n.

    Each block of rows is halved to a coreset where it is, four neighbouring coresets are merged and
    halved, and so on. The blocks themselves are never together in memory.

    Parameters
    ----------
    x : dask.array.Array (n, d)
        Blocks of less than all columns are joined. The lengths of the blocks must be known.
    size : int
        Rows to choose, at most n.
    weights : (n,) array or dask.array.Array, optional
        See `thinformer.thin`.
    kernel
        See `thinformer.coreset`.
    bandwidth : float, sequence of d floats, or "median"
        See `thinformer.thin`; the columns are taken as they are. "median" is computed from the
        first blocks that together have 1000 rows, which are then computed twice.
    method, g, delta
        See `thinformer.thin`.
    seed : int
        The source of all random numbers. The rows depend on the array, its blocks of rows and the
        seed. They do not depend on the scheduler or the number of workers.

    Returns
    -------
    (size,) int64 array
        Row numbers in increasing order.

    Raises
    ------
    TypeError, ValueError
        As in `thinformer.coreset`; `x` is no Dask array, or has blocks of unknown length.

    Notes
    -----
    Each task holds a block or four coresets; these have at most 2^l times
    2 max(2^g `size`, 4096) rows on level l of the tree.
    """
    x = _checked(x)
    named = isinstance(kernel, str) and kernel not in WITHOUT_BANDWIDTH and method not in BLIND
    median = isinstance(bandwidth, str) and bandwidth == "median"
    settings = {
        "kernel": kernel, "bandwidth": None if median else bandwidth, "method": method, "g": g,
        "delta": delta, "seed": seed,
    }  # fmt: skip
    # errors about arguments come before a block is computed
    trial = settings | ({"bandwidth": 1.0} if median and named else {})
    coreset(np.empty((0, x.shape[1])), size, part=0, **trial)
    if size > x.shape[0]:
        raise ValueError(f"size must be at most the {x.shape[0]} rows of x; got {size}")
    shares = _shares(weights, x)
    if median and named:
        settings["bandwidth"] = _median(x, seed)
    return _tree(x, shares, size, settings).compute()


def _tree(x: Any, shares: Any, size: int, settings: dict[str, Any]) -> Any:
    """The task that returns the row numbers, with all that it needs."""
    from dask import delayed

    blocks = x.to_delayed().ravel()
    starts = np.concatenate([[0], np.cumsum(x.chunks[0])]).tolist()
    halve, join, choose = (delayed(function) for function in (coreset, merge, _choose))
    found = [
        halve(block, size, part=part, first_row=starts[part], weights=share, **settings)
        for part, (block, share) in enumerate(zip(blocks, shares, strict=True))
    ]
    while len(found) > 1:
        found = [join(found[i : i + FULL]) for i in range(0, len(found), FULL)]
    return choose(found[0], len(blocks))


def _choose(coresets: Coresets, parts: int) -> NDArray[np.int64]:
    return coresets.choose(parts).rows


def _checked(x: Any) -> Any:
    """The array, in blocks of whole rows."""
    import dask.array as da

    if not isinstance(x, da.Array):
        raise TypeError(
            f"x must be a dask.array.Array; got {type(x).__name__} (thinformer.thin takes arrays "
            "in memory)"
        )
    if x.ndim != 2:
        hint = " (one column is x[:, None])" if x.ndim == 1 else ""
        raise ValueError(f"x must have shape (n, d); got shape {x.shape}{hint}")
    if np.isnan(x.shape).any():
        raise ValueError(
            f"x must have blocks of known length; got shape {x.shape}. "
            "x.compute_chunk_sizes() computes them"
        )
    if not x.shape[0]:
        raise ValueError(f"x must have at least one row; got shape {x.shape}")
    return x.rechunk({1: -1})


def _median(x: Any, seed: int) -> float:
    """The median distance of 1000 rows of the first blocks."""
    ends = np.cumsum(x.chunks[0])
    rows = int(ends[min(int(np.searchsorted(ends, SAMPLE)), len(ends) - 1)])
    return median_distance(x[:rows].compute(), seed)


def _shares(weights: Any, x: Any) -> Any:
    """The weights of each block, as tasks; None for each if there are none."""
    import dask.array as da

    if weights is None:
        return [None] * len(x.chunks[0])
    array = weights if isinstance(weights, da.Array) else da.from_array(np.asarray(weights))
    if array.shape != x.shape[:1]:
        raise ValueError(f"weights must have shape {x.shape[:1]}; got {array.shape}")
    return array.rechunk((x.chunks[0],)).to_delayed()
