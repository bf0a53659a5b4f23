"""The argument `points`: an array, a data frame or a posterior becomes a `Table`.

No data library is imported here. A frame and a posterior are recognised by their methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer import bodies
from thinformer.support import checks
from thinformer.thinning.columns import (
    OF_A_SAMPLER,
    WITHOUT_DRAWS,
    Table,
    check_some,
    is_of_a_sampler,
)
from thinformer.thinning.posterior import (
    draw_dimensions,
    drawn_variables,
    is_variable,
    posterior_group,
    sample_dimensions,
)

# for dates and durations
REMEDY = "; make it a number, as by (t - t.min()) / np.timedelta64(1, 's'), or leave it out"


def as_points(points: Any, name: str = "points") -> NDArray:
    """Return points as a float array (n, d), float32 or float64, with all their columns.

    See `read`.
    """
    return read(points, name, every=True).values


def read(points: Any, name: str = "points", every: bool = False, there: bool = False) -> Table:
    """Return points as a float array (n, d), float32 or float64, with the names of their columns.

    Parameters
    ----------
    points : array-like (n, d), pandas or polars frame, xarray Dataset, DataArray or DataTree, an
        ArviZ posterior, or a dict of arrays
        The columns of a frame are the dimensions. The rows of a posterior are its draws, chain
        after chain; its dimensions are the elements of its variables, in their order; variables
        without draws are left out. A dict holds arrays (chain, draw, ...), or arrays (n, ...) if
        one of them is 1-D.
    name : str
        What error messages call the argument.
    every : bool
        Read columns of a sampler too.
    there : bool
        Take arrays that are on a GPU: the values are a `thinformer.cuda.arrays.OnGpu`.

    Raises
    ------
    TypeError, ValueError
        The points are not numbers, or have another shape; or they are of Dask.
    """
    check_in_memory(points, name)
    if is_frame(points):
        return _of_frame(points, name, every)
    if is_variable(points):  # a DataArray: one variable of a posterior, which was chosen by hand
        points, every = points.to_dataset(name=points.name or "points"), True
    draws = posterior_group(points)
    if hasattr(draws, "data_vars"):
        return _of_dataset(draws, name, every)
    if isinstance(points, Mapping):
        return _of_mapping(points, name, every)
    if bodies.on_gpu(points):
        if not there:
            raise NotImplementedError(
                f"{name} must be in the CPU's memory here; thin, mmd and compare take arrays that"
                " are on a GPU"
            )
        bodies.choose("auto", **{name: points})  # is there a GPU?
        return Table(_two_axes(name, bodies.float_array(name, points)))
    if np.ma.is_masked(points):
        raise ValueError(f"{name} must have no masked entries; drop or fill them")
    array = np.asarray(points.to_numpy() if hasattr(points, "to_numpy") else points)
    return Table(_two_axes(name, _real(name, array)))


def _two_axes(name: str, array: NDArray) -> NDArray:
    """The points, of shape (n, d)."""
    if array.ndim != 2:
        hint = f" (one column is {name}[:, None])" if array.ndim == 1 else ""
        raise ValueError(f"{name} must have shape (n, d); got shape {array.shape}{hint}")
    checks.not_empty(name, array, 0, "point")
    checks.not_empty(name, array, 1, "dimension")
    return array


def check_in_memory(points: Any, name: str) -> None:
    """Raise for a Dask array or frame, or a posterior of such: NumPy would load all of it."""
    if is_of_dask(points):
        raise TypeError(
            f"{name} must be in memory; got a Dask {type(points).__name__}. thinformer.dask.thin, "
            f".mmd and .compare read it block by block; {name}.compute() loads it"
        )


def is_of_dask(points: Any) -> bool:
    """Whether points are an array or frame of Dask, or a posterior with such a variable."""
    if hasattr(type(points), "columns"):  # a frame, whose columns may have any name
        return hasattr(type(points), "__dask_graph__")
    group = posterior_group(points)
    if isinstance(group, Mapping) and not hasattr(group, "coords"):
        return any(map(is_of_dask, group.values()))
    graph = getattr(group, "__dask_graph__", None)
    # xarray has the method always, and answers for its arrays
    return callable(graph) and (not hasattr(group, "coords") or graph() is not None)


def is_frame(points: Any) -> bool:
    """Whether points are a frame of pandas or polars."""
    return hasattr(points, "to_numpy") and hasattr(points, "columns")


def has_columns(points: Any) -> bool:
    """Whether points are a frame, a posterior or a dict, whose columns have names and units."""
    of_xarray = any(hasattr(points, each) for each in ("dims", "children", "posterior"))
    return is_frame(points) or of_xarray or isinstance(points, Mapping)


def are_draws(points: Any) -> bool:
    """Whether rows are draws in a sampler's order.

    They are those of a posterior, of a dict of draws, or of a frame with a column of a sampler.
    """
    if is_frame(points):
        return any(map(is_of_a_sampler, frame_labels(points)))
    if is_variable(points) or isinstance(points, dict):
        return True
    group = posterior_group(points)
    return hasattr(group, "data_vars") and bool(draw_dimensions(group, group.dims))


def frame_labels(frame: Any) -> list[str]:
    """The names of the columns of a frame; empty for a column of pandas without a name."""
    return ["" if label is None else str(label) for label in frame.columns]


def _real(name: str, array: NDArray) -> NDArray:
    """An array of numbers in the dtype of its computation: integers and booleans as float64."""
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    return checks.computed(checks.float_array(name, array))


def _of_frame(frame: Any, name: str, every: bool) -> Table:
    """A data frame as an array (n, d); every column must hold numbers."""
    labels = frame_labels(frame)
    kept = [i for i, label in enumerate(labels) if every or not is_of_a_sampler(label)]
    columns = []
    for i in kept:
        # by position: two columns of a pandas frame may have the same label
        series = frame.iloc[:, i] if hasattr(frame, "iloc") else frame[frame.columns[i]]
        column = series.to_numpy()
        if column.dtype.kind not in "biuf":
            label = frame.columns[i]
            raise TypeError(_not_numbers(f"{name} has a column {label!r}", series.dtype, column))
        columns.append(_real(name, column))
    if not labels:
        raise ValueError(f"{name} must have at least one column")
    left_out = {label: OF_A_SAMPLER for i, label in enumerate(labels) if i not in set(kept)}
    check_some(name, kept, left_out)
    if not len(columns[0]):
        raise ValueError(f"{name} must have at least one row")
    return Table(np.column_stack(columns), labels, np.array(kept), left_out)


def _of_dataset(dataset: Any, name: str, every: bool) -> Table:
    """A Dataset as an array (n, d): one row for each draw, chain after chain.

    A Dataset without chains has one dimension that all its variables share; this gives the rows.
    """
    sample = sample_dimensions(dataset, name)
    drawn, others = drawn_variables(dataset, sample)
    arrays = {}
    for label in drawn:
        array = dataset[label].transpose(*sample, ...)
        rows = array.shape[: len(sample)]
        arrays[label] = array.to_numpy().reshape(int(np.prod(rows)), *array.shape[len(sample) :])
    return _of_variables(arrays, name, every, {str(label): WITHOUT_DRAWS for label in others})


def _of_mapping(points: Mapping, name: str, every: bool) -> Table:
    """A dict of draws as an array (n, d): (chain, draw, ...) as ArviZ reads it, or (n, ...)."""
    if "posterior" in points:  # groups, as `from_dict` of ArviZ takes them
        return read(points["posterior"], name, every)
    arrays = {label: np.asarray(values) for label, values in points.items()}
    if not arrays:
        raise ValueError(f"{name} must have at least one variable")
    leading = _leading(array.shape for array in arrays.values())
    shapes = {array.shape[:leading] for array in arrays.values()}
    shape = shapes.pop()
    # more chains than draws are no chains: draws (n, d) would be read as n chains of d draws
    if shapes or len(shape) < leading or shape[0] > shape[-1]:
        check_variables(arrays, name)  # a group of another kind is no array of numbers
        got = ", ".join(f"{label} {array.shape}" for label, array in arrays.items())
        raise ValueError(
            f"{name} as a dict must hold arrays (chain, draw, ...) with at most as many chains as "
            f"draws, or arrays (n, ...), at least one of them (n,); got {got}. "
            "Draws without chains become one chain by array[None]"
        )
    rows = int(np.prod(shape))
    arrays = {label: array.reshape(rows, *array.shape[leading:]) for label, array in arrays.items()}
    return _of_variables(arrays, name, every, {})


def _of_variables(
    arrays: Mapping[Any, NDArray], name: str, every: bool, left_out: Mapping[str, str]
) -> Table:
    """Variables (n, ...) of draws as an array (n, d); their elements are ``theta[0]``, ..."""
    kept = {label: a for label, a in arrays.items() if every or not is_of_a_sampler(str(label))}
    left_out = {**left_out, **{str(x): OF_A_SAMPLER for x in arrays if x not in kept}}
    check_variables(kept, name)
    check_some(name, kept, left_out)
    names: list[str] = []
    places: list[int] = []
    for label, array in arrays.items():
        elements = element_names(label, array.shape[1:])
        if label in kept:
            places += range(len(names), len(names) + len(elements))
        names += elements
    rows = len(next(iter(kept.values())))
    if rows == 0:
        raise ValueError(f"{name} must have at least one draw")
    columns = [_real(name, array).reshape(rows, -1) for array in kept.values()]
    return Table(np.concatenate(columns, axis=1), names, np.array(places, int), left_out)


def element_names(label: Any, shape: Sequence[int]) -> list[str]:
    """The names of the elements of a variable whose draws have a shape."""
    elements = (",".join(map(str, index)) for index in np.ndindex(*shape))
    return [f"{label}[{index}]" if index else str(label) for index in elements]


def check_variables(arrays: Mapping[Any, NDArray], name: str) -> None:
    """Check that variables hold numbers."""
    for label, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise TypeError(_not_numbers(f"{name} has a variable {label!r}", array.dtype, array))


def _leading(shapes: Iterable[Sequence[int]]) -> int:
    """How many axes of a dict's arrays are of the draws: (n,), or chain and draw."""
    return 1 if any(len(shape) == 1 for shape in shapes) else 2


def _not_numbers(subject: str, dtype: Any, values: NDArray) -> str:
    """The error about a column or a variable that does not hold numbers."""
    return f"{subject} of {dtype}, not of numbers{REMEDY if values.dtype.kind in 'mM' else ''}"
