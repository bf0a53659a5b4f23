"""The argument `points`: an array, a data frame or a posterior becomes a float array (n, d).

No data library is imported here. A frame and a posterior are recognised by their methods.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.support import checks


def as_points(points: Any, name: str = "points") -> NDArray:
    """Return points as a float array (n, d), float32 or float64.

    Parameters
    ----------
    points : array-like (n, d), pandas or polars frame, xarray Dataset, DataArray or DataTree, or an
        ArviZ posterior
        The columns of a frame are the dimensions. The rows of a posterior are its draws, chain
        after chain; its dimensions are the elements of its variables, in their order.
    name : str
        What error messages call the argument.

    Raises
    ------
    TypeError, ValueError
        The points are not numbers, or have another shape.
    """
    if hasattr(points, "to_numpy") and hasattr(points, "columns"):
        return _of_frame(points, name)
    if hasattr(points, "to_series") and {"chain", "draw"} <= set(getattr(points, "dims", ())):
        points = points.to_dataset(name="points")  # a DataArray: one variable of a posterior
    draws = _posterior(points)
    if hasattr(draws, "data_vars"):
        return _stacked(draws, name)
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
    """Whether points are a frame or a posterior, whose columns have names and units."""
    if hasattr(points, "to_numpy") and hasattr(points, "columns"):
        return True
    return any(hasattr(points, each) for each in ("dims", "children", "posterior"))


def column_names(points: Any, dimensions: int) -> list[str]:
    """The names of the columns that `as_points` gives; numbers where there are none.

    The elements of a posterior's variable are numbered: ``theta[0]``, ``theta[1]``.
    """
    if hasattr(points, "to_numpy") and hasattr(points, "columns"):
        return [str(label) for label in points.columns]
    draws = _posterior(points)
    if not hasattr(draws, "data_vars"):
        return [str(i) for i in range(dimensions)]
    variables = {label: draws[label] for label in draws.data_vars}
    sample = _sample_dimensions(variables)
    names: list[str] = []
    for label, variable in variables.items():
        shape = [size for dim, size in variable.sizes.items() if dim not in sample]
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
            raise TypeError(f"{name} has a column {label!r} of {series.dtype}, not of numbers")
        columns.append(_real(name, column))
    if not columns:
        raise ValueError(f"{name} must have at least one column")
    if not len(columns[0]):
        raise ValueError(f"{name} must have at least one row")
    return np.column_stack(columns)


def _posterior(points: Any) -> Any:
    """The Dataset in the group "posterior"; a Dataset, and anything else, is returned as it is."""
    if hasattr(points, "data_vars") and points.data_vars:
        return points
    try:
        group = points["posterior"] if hasattr(points, "children") else points.posterior
    except (AttributeError, KeyError):
        return points
    return getattr(group, "dataset", group)


def _stacked(dataset: Any, name: str) -> NDArray:
    """A Dataset as an array (n, d): one row for each draw, chain after chain.

    A Dataset without chains has one dimension that all its variables share; this gives the rows.
    """
    variables = {label: dataset[label] for label in dataset.data_vars}
    if not variables:
        raise ValueError(f"{name} must have at least one variable")
    sample = _sample_dimensions(variables)
    if sample != ("chain", "draw") and len(sample) != 1:
        raise ValueError(
            f"{name} must have variables with dimensions chain and draw, or one that they share; "
            f"they share {sorted(map(str, sample)) or 'none'}"
        )
    columns = []
    for label, variable in variables.items():
        array = variable.transpose(*sample, ...).to_numpy()
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name} has a variable {label!r} of {array.dtype}, not of numbers")
        rows = int(np.prod(array.shape[: len(sample)]))
        if rows == 0:
            raise ValueError(f"{name} must have at least one draw")
        columns.append(_real(name, array).reshape(rows, -1))
    return np.concatenate(columns, axis=1)


def _sample_dimensions(variables: dict[Any, Any]) -> tuple:
    """The dimensions of a draw: chain and draw, or what all variables share."""
    shared = set.intersection(*(set(v.dims) for v in variables.values()))
    return ("chain", "draw") if {"chain", "draw"} <= shared else tuple(sorted(shared))
