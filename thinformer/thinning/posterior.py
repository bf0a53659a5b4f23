"""Posteriors of xarray and ArviZ: which dimensions count draws, and a posterior of some draws.

No data library is imported here. A group is an xarray Dataset.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

PAIR = ("chain", "draw")
NAMES = ("draw", "sample")  # of a dimension that counts draws without chains
NOT_OF_THE_SAMPLE = ("prior", "warmup")  # how names of groups with other draws begin


def take_draws(posterior: Any, rows: ArrayLike) -> Any:
    """Return a posterior that holds the given draws, for ArviZ.

    Parameters
    ----------
    posterior : ArviZ posterior (DataTree or InferenceData), xarray Dataset or DataArray
        As given to `thin`.
    rows : (size,) array of int
        Row numbers from `thin`: draws, chain after chain.

    Returns
    -------
    The type of `posterior`
        Its draws are one chain: the dimensions are `chain`, of length 1, `draw`, and those of the
        variables. The coordinates `source_chain` and `source_draw` say where each draw was. All
        groups that have the draws of the posterior, such as `log_likelihood`, hold the same
        draws; other groups are as before. A Dataset whose only shared dimension has a name of its
        own keeps it.

    Raises
    ------
    TypeError, ValueError
        This is no posterior, or `rows` are not among its rows.

    Examples
    --------
    >>> import numpy as np
    >>> import xarray as xr
    >>> from thinformer import take_draws, thin
    >>> x = np.random.default_rng(0).normal(size=(4, 500))
    >>> posterior = xr.Dataset({"mu": (("chain", "draw"), x)})
    >>> few = take_draws(posterior, thin(posterior, 20, rng=0))
    >>> dict(few.sizes)
    {'chain': 1, 'draw': 20}
    """
    if is_variable(posterior):
        dataset = posterior.to_dataset(name="points")
        return take_draws(dataset, rows)["points"].rename(posterior.name)
    main = posterior_group(posterior)
    if not hasattr(main, "data_vars"):
        raise TypeError(
            "posterior must be an ArviZ posterior, or a Dataset or DataArray of xarray; "
            f"got {type(posterior).__name__}. Rows of an array are points[rows], "
            "those of a pandas frame are frame.iloc[rows]"
        )
    dims = sample_dimensions(main, "posterior")
    numbers = _checked(rows, math.prod(main.sizes[dim] for dim in dims))

    def taken(name: str, group: Any) -> Any:
        return chosen_draws(group, dims, numbers) if same_draws(name, group, main, dims) else group

    if hasattr(type(posterior), "subtree"):  # a Dataset may have a variable of this name
        tree = posterior.copy()  # of a part of a tree, a tree of its own
        place = "/" if tree.data_vars else "/posterior"
        groups = {node.path: node.to_dataset(inherit=False) for node in tree.subtree}
        taken_groups = {name: taken(name, group) for name, group in groups.items()}
        taken_groups[place] = chosen_draws(groups[place], dims, numbers)
        return type(posterior).from_dict(taken_groups, name=posterior.name)
    if hasattr(posterior, "data_vars"):
        return chosen_draws(posterior, dims, numbers)
    groups = {name: taken(name, posterior[name]) for name in posterior.groups()}
    groups["posterior"] = chosen_draws(main, dims, numbers)
    return type(posterior)(attrs=posterior.attrs, **groups)


def _checked(rows: ArrayLike, n: int) -> NDArray:
    """Row numbers as an array; they must be integers from 0 to n - 1."""
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise TypeError(
            "rows must be row numbers of shape (size,), as `thin` returns them; "
            f"got dtype {numbers.dtype}, shape {numbers.shape}"
        )
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < n:
        raise ValueError(
            f"rows must be from 0 to {n - 1}, as the posterior has {n} draws; "
            f"got {numbers.min()} to {numbers.max()}"
        )
    return numbers


def is_variable(points: Any) -> bool:
    """Whether this is a DataArray whose dimensions include draws, in any order."""
    return hasattr(points, "to_series") and bool(
        draw_dimensions(points, getattr(points, "dims", ()))
    )


def posterior_group(points: Any) -> Any:
    """The Dataset in the group "posterior"; a Dataset, and anything else, is returned as it is."""
    if hasattr(points, "data_vars") and points.data_vars:
        return points
    try:
        group = points["posterior"] if hasattr(points, "children") else points.posterior
    except (AttributeError, KeyError):
        return points
    return getattr(group, "dataset", group)


def sample_dimensions(dataset: Any, name: str) -> tuple[str, ...]:
    """The dimensions that count the draws of a Dataset: those of draws, or the only shared one.

    Variables of a posterior may lack them: they are no draws.
    """
    if not dataset.data_vars:
        raise ValueError(f"{name} must have at least one variable")
    shared = set.intersection(*(set(dataset[label].dims) for label in dataset.data_vars))
    dims = _of_chains(dataset, dataset.dims)
    dims = dims or draw_dimensions(dataset, shared or dataset.dims) or tuple(shared)
    drawn = any(set(dims) <= set(dataset[label].dims) for label in dataset.data_vars)
    if not drawn or (dims != PAIR and len(dims) != 1):
        raise ValueError(
            f"{name} must have variables with dimensions chain and draw, or one that they share; "
            f"they share {sorted(map(str, shared)) or 'none'}"
        )
    return dims


def drawn_variables(dataset: Any, dims: Collection[str]) -> tuple[list[str], list[str]]:
    """The names of the variables that have the dimensions of draws, and of those that lack them."""
    drawn = [label for label in dataset.data_vars if set(dims) <= set(dataset[label].dims)]
    return drawn, [label for label in dataset.data_vars if label not in drawn]


def draw_dimensions(data: Any, dims: Collection[str]) -> tuple[str, ...]:
    """The dimensions among `dims` that count draws; () where none does.

    They are `chain` and `draw`; or the dimension that these two were stacked to, which has both as
    coordinates; or `draw` or `sample` alone.
    """
    return _of_chains(data, dims) or tuple(name for name in NAMES if name in dims)[:1]


def _of_chains(data: Any, dims: Collection[str]) -> tuple[str, ...]:
    """`chain` and `draw`, or the dimension that they were stacked to, if they are among `dims`."""
    if set(PAIR) <= set(dims):
        return PAIR
    return tuple(dim for dim in dims if _is_stacked(data, dim))[:1]


def _is_stacked(data: Any, dim: str) -> bool:
    """Whether a dimension has coordinates `chain` and `draw`, and so holds draws of all chains."""
    return all(c in data.coords and data.coords[c].dims == (dim,) for c in PAIR)


def same_draws(name: str, group: Any, main: Any, dims: tuple[str, ...]) -> bool:
    """Whether a group holds the draws of the group `main`, whose dimensions of draws are `dims`."""
    name = name.strip("/")
    if name.startswith(NOT_OF_THE_SAMPLE) or name == "sample_stats_prior":
        return False
    if dims == PAIR:
        return all(d in group.dims and group[d].equals(main[d]) for d in dims)
    # stacked, or a dataset: equal coordinates mean equal rows
    (dim,) = dims
    labels = [c for c in main.coords if dim in main[c].dims]
    return (
        bool(labels)
        and dim in group.dims
        and all(c in group.coords and group[c].equals(main[c]) for c in labels)
    )


def chosen_draws(group: Any, dims: tuple[str, ...], rows: NDArray) -> Any:
    """The rows of a group: one chain, or for a dimension of another kind these along it."""
    if dims == PAIR:
        places = dict(zip(PAIR, np.divmod(rows, group.sizes["draw"]), strict=True))
    elif _is_stacked(group, dims[0]) or dims == ("draw",):
        places = {dims[0]: rows}
    else:
        return group.isel({dims[0]: rows})
    source = {}
    for name in PAIR:
        if name in group.coords or name in group.dims:
            at = [places[dim] for dim in group[name].dims]
            source[f"source_{name}"] = np.broadcast_to(group[name].to_numpy()[*at], rows.shape)
    if not set(source).isdisjoint(group.variables):
        source = {}  # taken before: the draws carry where they came from
    group = group.drop_vars([*PAIR, *dims], errors="ignore")
    group = group.isel({dim: ("draw", place) for dim, place in places.items()})
    chain = {
        label: group[label].expand_dims("chain").transpose(*PAIR, ...)
        for label in group.data_vars
        if "draw" in group[label].dims
    }
    numbered = {"chain": [0], "draw": np.arange(rows.size)}
    return group.assign(chain).assign_coords(
        numbered | {name: ("draw", values) for name, values in source.items()}
    )
