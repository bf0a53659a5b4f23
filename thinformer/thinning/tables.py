"""The argument `points`: an array, a data frame or a posterior becomes a float array (n, d).

No data library is imported here. A frame and a posterior are recognised by their methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.support import checks
from thinformer.thinning.posterior import (
    draw_dimensions,
    is_variable,
    posterior_group,
    sample_dimensions,
)

# for dates and durations
REMEDY = "; make it a number, as by (t - t.min()) / np.timedelta64(1, 's'), or leave it out"


def as_points(points: Any, name: str = "points") -> NDArray:
    """Return points as a float array (n, d), float32 or float64.

    Parameters
    ----------
    points : array-like (n, d), pandas or polars frame, xarray Dataset, DataArray or DataTree, an
        ArviZ posterior, or a dict of arrays
        The columns of a frame are the dimensions. The rows of a posterior are its draws, chain
        after chain; its dimensions are the elements of its variables, in their order. A dict holds
        arrays (chain, draw, ...), or arrays (n, ...) if one of them is 1-D.
    name : str
        What error messages call the argument.

    Raises
    ------
    TypeError, ValueError
        The points are not numbers, or have another shape.
    """
    if hasattr(points, "to_numpy") and hasattr(points, "columns"):
        return _of_frame(points, name)
    if is_variable(points):
        points = points.to_dataset(name="points")  # a DataArray: one variable of a posterior
    draws = posterior_group(points)
    if hasattr(draws, "data_vars"):
        return _stacked(draws, name)
    if isinstance(points, Mapping):
        return _of_mapping(points, name)
    if np.ma.is_masked(points):
        raise ValueError(f"{name} must have no masked entries; drop or fill them")
    array = np.asarray(points.to_numpy() if hasattr(points, "to_numpy") else points)
    array = _real(name, array)
    if array.ndim != 2:
        hint = f" (one column is {name}[:, None])" if array.ndim == 1 else ""
        raise ValueError(f"{name} must have shape (n, d); got shape {array.shape}{hint}")
    checks.not_empty(name, array, 0, "point")
    checks.not_empty(name, array, 1, "dimension")
    return array


def has_columns(points: Any) -> bool:
    """Whether points are a frame, a posterior or a dict, whose columns have names and units."""
    if hasattr(points, "to_numpy") and hasattr(points, "columns"):
        return True
    of_xarray = any(hasattr(points, each) for each in ("dims", "children", "posterior"))
    return of_xarray or isinstance(points, Mapping)


def are_draws(points: Any) -> bool:
    """Whether rows are draws in a sampler's order: those of a posterior, or of a dict of draws."""
    if isinstance(points, Mapping) and not hasattr(points, "data_vars"):
        return True
    if is_variable(points):
        return True
    group = posterior_group(points)
    return hasattr(group, "data_vars") and bool(draw_dimensions(group, group.dims))


def column_names(points: Any, dimensions: int) -> list[str]:
    """The names of the columns that `as_points` gives; numbers where there are none.

    The elements of a posterior's variable are numbered: ``theta[0]``, ``theta[1]``.
    """
    if hasattr(points, "to_numpy") and hasattr(points, "columns"):
        return [str(label) for label in points.columns]
    if is_variable(points):
        points = points.to_dataset(name=points.name or "points")
    draws = posterior_group(points)
    if hasattr(draws, "data_vars"):
        sample = sample_dimensions(draws, "points")
        shapes = {
            label: [size for dim, size in draws[label].sizes.items() if dim not in sample]
            for label in draws.data_vars
        }
    elif isinstance(points, Mapping):
        arrays = points.get("posterior", points)
        shapes = {label: list(np.shape(array)) for label, array in arrays.items()}
        leading = _leading(shapes.values())
        shapes = {label: shape[leading:] for label, shape in shapes.items()}
    else:
        return [str(i) for i in range(dimensions)]
    names: list[str] = []
    for label, shape in shapes.items():
        elements = (",".join(map(str, index)) for index in np.ndindex(*shape))
        names += [f"{label}[{index}]" if index else str(label) for index in elements]
    return names


def _real(name: str, array: NDArray) -> NDArray:
    """An array of numbers in the dtype of its computation: integers and booleans as float64."""
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    return checks.computed(checks.float_array(name, array))


def _of_frame(frame: Any, name: str) -> NDArray:
    """A data frame as an array (n, d); every column must hold numbers."""
    columns = []
    for i, label in enumerate(frame.columns):
        # by position: two columns of a pandas frame may have the same label
        series = frame.iloc[:, i] if hasattr(frame, "iloc") else frame[label]
        column = series.to_numpy()
        if column.dtype.kind not in "biuf":
            raise TypeError(_not_numbers(f"{name} has a column {label!r}", series.dtype, column))
        columns.append(_real(name, column))
    if not columns:
        raise ValueError(f"{name} must have at least one column")
    if not len(columns[0]):
        raise ValueError(f"{name} must have at least one row")
    return np.column_stack(columns)


def _stacked(dataset: Any, name: str) -> NDArray:
    """A Dataset as an array (n, d): one row for each draw, chain after chain.

    A Dataset without chains has one dimension that all its variables share; this gives the rows.
    """
    sample = sample_dimensions(dataset, name)
    variables = {label: dataset[label] for label in dataset.data_vars}
    columns = []
    for label, variable in variables.items():
        array = variable.transpose(*sample, ...).to_numpy()
        if array.dtype.kind not in "biuf":
            raise TypeError(_not_numbers(f"{name} has a variable {label!r}", array.dtype, array))
        rows = int(np.prod(array.shape[: len(sample)]))
        if rows == 0:
            raise ValueError(f"{name} must have at least one draw")
        columns.append(_real(name, array).reshape(rows, -1))
    return np.concatenate(columns, axis=1)


def _of_mapping(points: Mapping, name: str) -> NDArray:
    """A dict of draws as an array (n, d): (chain, draw, ...) as ArviZ reads it, or (n, ...)."""
    if "posterior" in points:  # groups, as `from_dict` of ArviZ takes them
        return as_points(points["posterior"], name)
    arrays = {label: np.asarray(values) for label, values in points.items()}
    if not arrays:
        raise ValueError(f"{name} must have at least one variable")
    for label, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise TypeError(_not_numbers(f"{name} has a variable {label!r}", array.dtype, array))
    leading = _leading(array.shape for array in arrays.values())
    shapes = {array.shape[:leading] for array in arrays.values()}
    shape = shapes.pop()
    # more chains than draws are no chains: draws (n, d) would be read as n chains of d draws
    if shapes or len(shape) < leading or shape[0] > shape[-1]:
        got = ", ".join(f"{label} {array.shape}" for label, array in arrays.items())
        raise ValueError(
            f"{name} as a dict must hold arrays (chain, draw, ...) with at most as many chains as "
            f"draws, or arrays (n, ...), at least one of them (n,); got {got}. "
            "Draws without chains become one chain by array[None]"
        )
    rows = int(np.prod(shape))
    if rows == 0:
        raise ValueError(f"{name} must have at least one draw")
    columns = [_real(name, array).reshape(rows, -1) for array in arrays.values()]
    return np.concatenate(columns, axis=1)


def _leading(shapes: Iterable[Sequence[int]]) -> int:
    """How many axes of a dict's arrays are of the draws: (n,), or chain and draw."""
    return 1 if any(len(shape) == 1 for shape in shapes) else 2


def _not_numbers(subject: str, dtype: Any, values: NDArray) -> str:
    """The error about a column or a variable that does not hold numbers."""
    return f"{subject} of {dtype}, not of numbers{REMEDY if values.dtype.kind in 'mM' else ''}"
