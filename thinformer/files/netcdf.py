"""NetCDF: a posterior of ArviZ, or a dataset of xarray; the chosen draws go back to ArviZ."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinformer.files.columns import default_columns
from thinformer.files.messages import listed, not_numbers, reading, shown
from thinformer.files.source import (
    Request,
    Source,
    check_finite,
    check_numbered,
    check_rows,
    in_memory_source,
    matched,
    optional,
    row_numbers,
    side_by_side,
    used_columns,
    without_weights,
)
from thinformer.thinning.columns import INDEX, WITHOUT_DRAWS, is_index, may_be_index
from thinformer.thinning.posterior import (
    chosen_draws,
    draw_dimensions,
    drawn_variables,
    same_draws,
    sample_dimensions,
)

CLASSIC, CDF5 = b"CDF", b"CDF\x05"  # how files of NetCDF 3 begin, and its kind of 64-bit data


def open_netcdf(request: Request, stack: contextlib.ExitStack) -> Source:
    """Open the posterior of an ArviZ file, or a dataset; records are row numbers."""
    xr = optional("xarray", "NetCDF")
    optional("h5netcdf", "NetCDF")
    path = request.path
    groups, notes = _read(xr, path, stack)
    place = "/posterior" if "/posterior" in groups else "/"
    main = groups[place]
    if not main.data_vars:
        raise ValueError(f"{path}: has no group 'posterior' and no variables of its own")
    dims = sample_dimensions(main, f"{path}: the dataset")
    n = int(np.prod([main.sizes[d] for d in dims]))
    check_rows(n, path)
    decoded = xr.decode_cf(main, decode_times=False)
    request = matched(request, [str(v) for v in decoded.data_vars])
    over, others = drawn_variables(decoded, dims)
    kinds = {v: _time(main[v].attrs) or str(decoded[v].dtype) for v in over}
    times = [v for v in over if _time(main[v].attrs)]
    numeric = [
        v for v in over if decoded[v].dtype.kind in "biuf" and decoded[v].size and v not in times
    ]
    named = [v for v in numeric if may_be_index(v) and len(decoded[v].dims) == len(dims)]
    index = [v for v in named if is_index(v, decoded[v].transpose(*dims).to_numpy().ravel())]
    columns = default_columns(request, numeric, path, index)
    used = used_columns(request, columns, over)
    for name in used:
        if name not in numeric:
            raise ValueError(not_numbers(path, name, kinds[name]))
    with reading(path, "NetCDF"):
        arrays = {v: decoded[v].transpose(*dims, ...).to_numpy().reshape(n, -1) for v in used}
    points, labels = side_by_side(arrays)
    check_finite(points, labels, path)
    labels = without_weights(labels, request)
    thinned = [p for p, group in groups.items() if p == place or same_draws(p, group, main, dims)]
    for name in thinned:
        taken = [*map(str, groups[name].variables), *map(str, groups[name].dims)]
        check_numbered(request, taken, f"group {shown(name.strip('/'))} " if name != "/" else "")
    left = sorted(p.strip("/") for p, g in groups.items() if p not in thinned and g.variables)

    def write(target: Path, kept: list[tuple[NDArray, Any]], numbered: bool) -> None:
        rows = row_numbers(kept)
        out = {}
        for name, group in groups.items():
            out[name] = group.drop_encoding()
            if name in thinned:
                every = np.arange(n).reshape([group.sizes[d] for d in dims])
                counted = out[name].assign_coords(row=(dims, every)) if numbered else out[name]
                out[name] = chosen_draws(counted, dims, rows)
        xr.DataTree.from_dict(out).to_netcdf(target, engine="h5netcdf")

    if times:
        notes.append(f"dates and durations are no numbers and do not count: {listed(times)}")
    if left:
        notes.append(f"groups copied as they are, not thinned: {listed(left)}")
    unused = [v for v in [*over, *others] if v not in used]
    left_out = dict.fromkeys(index, INDEX) | dict.fromkeys(others, WITHOUT_DRAWS)
    source = in_memory_source(points, columns, labels, unused, notes, write)
    return source._replace(left_out=left_out, draws=bool(draw_dimensions(main, dims)))


def _read(xr: Any, path: Path, stack: contextlib.ExitStack) -> tuple[dict[str, Any], list[str]]:
    """The groups of a file by their paths, and what to tell the user.

    They are as stored: attributes and packed values are written back as they were.
    """
    raw = {"mask_and_scale": False, "decode_times": False}
    with path.open("rb") as stream:
        start = stream.read(len(CDF5))
    if start == CDF5:
        raise ValueError(
            f"{path}: is of NetCDF 3 with 64-bit data; convert it: nccopy -k nc4 IN.nc OUT.nc"
        )
    if start.startswith(CLASSIC):
        with reading(path, "NetCDF 3"):
            dataset = xr.open_dataset(path, engine="scipy", **raw)
            stack.callback(dataset.close)
            return {"/": dataset.load()}, ["IN is of NetCDF 3; OUT is of NetCDF 4"]
    with reading(path, "NetCDF 4"):
        tree = xr.open_datatree(path, engine="h5netcdf", **raw)
        stack.callback(tree.close)
        return {node.path: node.to_dataset(inherit=False) for node in tree.subtree}, []


def _time(attributes: dict[str, Any]) -> str:
    """What xarray would decode to dates or durations, from its attributes; "" for numbers."""
    kind, units = str(attributes.get("dtype", "")), str(attributes.get("units", ""))
    if kind.startswith("timedelta64"):
        return kind
    return f"times ({units})" if " since " in units else ""
