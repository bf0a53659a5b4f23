"""Blocks of rows as tasks: of a Dask array, a data frame or a posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.thinning.columns import (
    OF_A_SAMPLER,
    WITHOUT_DRAWS,
    Table,
    check_some,
    is_of_a_sampler,
)
from thinformer.thinning.posterior import (
    drawn_variables,
    is_variable,
    posterior_group,
    sample_dimensions,
)
from thinformer.thinning.tables import check_variables, element_names, is_of_dask, read


class Blocks(NamedTuple):
    """Blocks of rows, as tasks.

    values : tasks that return arrays (rows, d); of a frame, frames
    weights : tasks that return (rows,) weights, or None, one for each block
    lengths : the number of rows of each block, or None where it is not known
    width : the number of columns
    names : the names of the columns of a posterior; None for an array and for a frame
    left_out : variables that no column is of, and why
    column : the name of a frame's column of weights, or None
    frame : the frame, or None
    """

    values: list[Any]
    weights: list[Any]
    lengths: list[int] | None
    width: int
    names: list[str] | None = None
    left_out: Mapping[str, str] = {}
    column: str | None = None
    frame: Any = None

    @property
    def has_columns(self) -> bool:
        """Whether columns have names and units."""
        return self.frame is not None or self.names is not None

    def table(self, found: Sequence[Any], every: bool, name: str = "x") -> Table:
        """The rows of some blocks, one behind the other, with the columns that are numbers.

        every : whether a frame's columns of a sampler are kept
        name : the name of the argument
        """
        filled = [each for each in found if len(each)] or found[:1]
        if self.frame is None:
            table = read(np.concatenate(filled), name)
            if self.names is None:
                return table
            return Table(table.values, self.names, np.arange(self.width), self.left_out)
        tables = [read(each, name, every) for each in filled]
        table = tables[0]._replace(values=np.concatenate([each.values for each in tables]))
        table = table.without([] if self.column is None else [self.column], "weights")
        check_some(name, table.labels, table.left_out)
        told = {label: why for label, why in table.left_out.items() if label != self.column}
        return table._replace(left_out=told)


def blocks_of(x: Any, weights: Any, every: bool, name: str = "x") -> Blocks:
    """Return the blocks of the argument `x`, whose name is `name`, and the weights of each.

    every : whether a posterior's variables of a sampler are kept
    """
    if hasattr(x, "map_partitions") and hasattr(x, "columns"):
        return _of_frame(x, weights, name)
    if (hasattr(posterior_group(x), "data_vars") or is_variable(x)) and is_of_dask(x):
        array, names, left_out = _of_posterior(x, every, name)
        blocks = _of_array(_checked(array, name), weights, name)
        return blocks._replace(names=names, left_out=left_out)
    return _of_array(_checked(x, name), weights, name)


def _checked(x: Any, name: str) -> Any:
    """The array, in blocks of whole rows."""
    import dask.array as da

    if not isinstance(x, da.Array):
        raise TypeError(
            f"{name} must be a dask.array.Array, a dask.dataframe.DataFrame or a posterior whose "
            f"variables are Dask arrays; got {type(x).__name__} (thinformer.thin takes points in "
            "memory)"
        )
    if isinstance(x._meta, np.ma.MaskedArray):
        raise TypeError(f"{name} must have no mask; dask.array.ma.filled({name}) fills its entries")
    if x.ndim != 2:
        hint = f" (one column is {name}[:, None])" if x.ndim == 1 else ""
        raise ValueError(f"{name} must have shape (n, d); got shape {x.shape}{hint}")
    if not x.shape[0]:
        raise ValueError(f"{name} must have at least one row; got shape {x.shape}")
    return x.rechunk({1: -1}) if len(x.chunks[1]) > 1 else x


def _of_array(x: Any, weights: Any, name: str) -> Blocks:
    """The blocks of an array."""
    values = x.to_delayed().ravel().tolist()
    known = not np.isnan(x.shape[0])
    lengths = [int(n) for n in x.chunks[0]] if known else None
    blocks = Blocks(values, [None] * len(values), lengths, x.shape[1])
    if weights is None:
        return blocks
    import dask.array as da

    array = weights if isinstance(weights, da.Array) else da.from_array(np.asarray(weights))
    if not known:
        raise ValueError(
            f"weights need blocks of known length in {name}; got shape {x.shape}. "
            f"{name}.compute_chunk_sizes() computes them"
        )
    if array.shape != x.shape[:1]:
        raise ValueError(f"weights must have shape {x.shape[:1]}; got {array.shape}")
    return blocks._replace(weights=array.rechunk((x.chunks[0],)).to_delayed().tolist())


def _of_frame(x: Any, weights: Any, name: str) -> Blocks:
    """The partitions of a frame."""
    if x.ndim == 1:
        raise TypeError(f"{name} must be a frame; got a series ({name}.to_frame() makes a frame)")
    values = list(x.to_delayed())
    blocks = Blocks(values, [None] * len(values), None, len(x.columns), frame=x)
    if weights is None:
        return blocks
    if not isinstance(weights, str) or weights not in x.columns:
        raise ValueError(f"weights must be the name of a column of x, for a frame; got {weights!r}")
    return blocks._replace(weights=list(x[weights].to_delayed()), column=weights)


def _of_posterior(x: Any, every: bool, name: str) -> tuple[Any, list[str], dict[str, str]]:
    """The draws as an array (n, d), chain after chain; names of columns, and what is left out."""
    import dask.array as da

    if is_variable(x):  # a DataArray: one variable, which was chosen by hand
        x, every = x.to_dataset(name=x.name or "points"), True
    dataset = posterior_group(x)
    dims = sample_dimensions(dataset, name)
    if not all(dataset.sizes[dim] for dim in dims):
        raise ValueError(f"{name} must have at least one draw")
    drawn, others = drawn_variables(dataset, dims)
    kept = [label for label in drawn if every or not is_of_a_sampler(str(label))]
    left_out = {str(label): WITHOUT_DRAWS for label in others}
    left_out |= {str(label): OF_A_SAMPLER for label in drawn if label not in kept}
    check_some(name, kept, left_out)
    columns, names = [], []
    for label in kept:
        data = da.asarray(dataset[label].transpose(*dims, ...).data)
        check_variables({label: data}, name)
        names += element_names(label, data.shape[len(dims) :])
        data = data.rechunk(dict.fromkeys(range(len(dims), data.ndim), -1))
        if len(dims) == 2:
            data = da.concatenate([data[chain] for chain in range(data.shape[0])])
        columns.append(data.reshape(data.shape[0], -1) if data.ndim > 1 else data[:, None])
    return da.concatenate(columns, axis=1), names, left_out


def lengths_of(blocks: Blocks) -> list[int]:
    """Return the number of rows of each block, which are counted where they are not known."""
    if blocks.lengths is not None:
        return blocks.lengths
    from dask import compute, delayed

    if blocks.frame is not None:  # of the index: files need not be read for it
        return [int(n) for n in blocks.frame.index.map_partitions(len).compute()]
    return list(compute(*[delayed(len)(block) for block in blocks.values]))


def columns_of(block: Any, places: NDArray | None) -> Any:
    """Return columns of a block of an array or a frame, by their places; all for None."""
    if places is None:
        return block
    if hasattr(block, "iloc"):
        return block.iloc[:, places].to_numpy(np.float64)
    return block[:, places]
