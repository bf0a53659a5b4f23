"""`thin` of Dask arrays, data frames and posteriors: coresets of blocks, merged in a tree."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thinformer.dask.blocks import Blocks, blocks_of, columns_of
from thinformer.kernels.catalogue import WITHOUT_BANDWIDTH
from thinformer.support import checks
from thinformer.thinning.arguments import median_distance
from thinformer.thinning.columns import INDEX, check_some, format_reasons
from thinformer.thinning.distributed import Coresets, coreset, merge
from thinformer.thinning.merging import FULL
from thinformer.thinning.methods import BLIND, Method
from thinformer.thinning.scales import belongs_to_columns, deviations, for_columns

SAMPLE = 1000  # rows of the first blocks, or more, say what the columns, scales and bandwidth are


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
    """Choose `size` rows of a Dask array, data frame or posterior that represent all n.

    Each block of rows is halved to a coreset where it is, four neighbouring coresets are merged and
    halved, and so on. The blocks themselves are never together in memory.

    Parameters
    ----------
    x : dask.array.Array (n, d), dask.dataframe.DataFrame, or xarray or ArviZ posterior
        Blocks of less than all columns of an array are joined. A posterior is a Dataset, DataArray,
        DataTree or InferenceData whose variables are Dask arrays, some at least; the draws of one
        chain in one block are a part. Of frames and posteriors the columns count that
        `thinformer.thin` would take, but constant ones count too; a warning tells which do not.
    size : int
        Rows to choose, at most n.
    weights : (n,) array or dask.array.Array, or the name of a column of a frame, optional
        See `thinformer.thin`. A column of weights is not compared. Those of a posterior are in
        the order of its draws, chain after chain.
    kernel
        See `thinformer.coreset`.
    bandwidth : float, sequence of d floats, or "median"
        See `thinformer.thin`.
    standardize : {"auto", "scale", False}
        See `thinformer.thin`: "auto" scales the columns of frames and posteriors, unless the kernel
        or a bandwidth has their units, and takes arrays as they are.
    method, g, delta
        See `thinformer.thin`.
    seed : int
        The source of all random numbers. The rows depend on the array, its blocks of rows and the
        seed. They do not depend on the scheduler or the number of workers.

    Returns
    -------
    (size,) int64 array
        Row numbers in increasing order. Those of a posterior count draws, chain after chain, as
        `thinformer.take_draws` takes them. For a frame, and for an array whose blocks have unknown
        lengths, (size, 2): the number of the partition and the row in it.

    Raises
    ------
    TypeError, ValueError
        As in `thinformer.coreset`; or `x` is nothing of Dask.

    Warns
    -----
    UserWarning
        Columns of a frame or variables of a posterior are left out.

    Notes
    -----
    "median", the columns of frames and posteriors and their scales come from the first blocks that
    together have 1000 rows, which are then computed twice. Give a bandwidth, and
    ``standardize=False``, if the first blocks differ from the others.

    Each task holds a block or four coresets. On level l of the tree these have at most 2^l times
    2 max(2^g `size`, 4096) rows, and above level 3 no more than on level 3.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from thinformer.dask import thin
    >>> x = da.from_array(np.random.default_rng(0).normal(size=(30_000, 2)), chunks=(5000, 2))
    >>> rows = thin(x, 20)
    >>> x[rows].compute().shape
    (20, 2)
    """
    by_name = isinstance(kernel, str) and kernel not in WITHOUT_BANDWIDTH and method not in BLIND
    median = isinstance(bandwidth, str) and bandwidth == "median"
    for_columns(standardize, kernel, bandwidth, False)  # errors come before a block is computed
    every = belongs_to_columns(kernel, bandwidth)
    blocks = blocks_of(x, weights, every)
    unit = for_columns(standardize, kernel, bandwidth, blocks.has_columns)
    if unit == "whiten":
        raise ValueError(f"standardize must be 'auto', 'scale' or False; got {standardize!r}")
    settings = {
        "kernel": kernel, "bandwidth": None if median else bandwidth, "method": method, "g": g,
        "delta": delta, "seed": seed,
    }  # fmt: skip
    trial = settings | ({"bandwidth": 1.0} if median and by_name else {})
    coreset(np.empty((0, blocks.width)), size, part=0, **trial)
    if blocks.lengths is not None and size > sum(blocks.lengths):
        raise ValueError(f"size must be at most the {sum(blocks.lengths)} rows of x; got {size}")
    places, divisors = None, None
    if blocks.has_columns or unit == "scale" or (median and by_name):
        sample, places = _sample(blocks, every)
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

    count, known = len(blocks.values), blocks.lengths is not None
    starts = np.cumsum([0, *(blocks.lengths or [0] * count)]).tolist()
    halve, join, choose = (delayed(function) for function in (_coreset, merge, _choose))
    found = [
        halve(block, places, divisors, size, part=part, first_row=starts[part], weights=share,
              **settings)
        for part, (block, share) in enumerate(zip(blocks.values, blocks.weights, strict=True))
    ]  # fmt: skip
    while len(found) > 1:
        found = [join(found[i : i + FULL]) for i in range(0, len(found), FULL)]
    return choose(found[0], count, known)


def _coreset(
    block: Any, places: NDArray | None, divisors: NDArray | None, size: int, **settings: Any
) -> Coresets:
    """The coreset of a block, of its columns that count in their units."""
    points = columns_of(block, places)
    try:
        return coreset(points if divisors is None else points / divisors, size, **settings)
    except (TypeError, ValueError) as error:
        raise type(error)(f"block {settings['part']} of x: {error}") from None


def _choose(coresets: Coresets, parts: int, numbered: bool) -> NDArray[np.int64]:
    found = coresets.choose(parts)
    return found.rows if numbered else np.stack([found.parts, found.rows], axis=1)


def _sample(blocks: Blocks, every: bool) -> tuple[NDArray, NDArray | None]:
    """The first blocks' points (rows, d), and the places of their columns where they have names.

    every : whether columns count that are no data
    """
    from dask import compute

    found: list[Any] = []
    for block in blocks.values:
        found += compute(block)
        if sum(map(len, found)) >= SAMPLE:
            break
    table = blocks.table(found, every)
    if table.names is None:
        return table.values, None
    table = table.without([] if every else table.indexes(), INDEX)
    check_some("x", table.labels, table.left_out)
    if table.left_out:
        warnings.warn(f"x: {format_reasons(table.left_out)}", stacklevel=checks.depth())
    return table.values, table.places
