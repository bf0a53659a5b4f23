"""Cells of CSV as numbers, and errors that say which cell is none."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from thinformer.files.messages import shown
from thinformer.files.records import Block, Form, fields_of, hint
from thinformer.files.source import Request
from thinformer.thinning.columns import is_index

MISSING = ("", "na", "n/a", "#n/a", "nan", "null", "none")
# 1,234.5 and 1,5 and 1.234,5
WITH_COMMA = re.compile(
    r"[+-]?(\d{1,3}(,\d{3})+(\.\d+)?|\d+,\d+([eE][+-]?\d+)?|\d{1,3}(\.\d{3})+,\d+)"
)
COMMAS = (
    "; numbers take a point before decimals and nothing between thousands: pandas reads others by "
    "read_csv(..., decimal=',', thousands='.') or read_csv(..., thousands=','), and writes these"
)


class NotANumberError(ValueError):
    """A cell is no number; args[0] is its place."""


def floats(cells: Sequence[str]) -> NDArray[np.float64]:
    """Return the numbers in cells, NaN where a value is missing."""
    if "_" not in "".join(cells):  # float takes 1_000
        with contextlib.suppress(ValueError):
            return np.fromiter(map(float, cells), np.float64, len(cells))
    values = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        if cell.strip().lower() not in MISSING:
            if "_" in cell:
                raise NotANumberError(i)
            try:
                values[i] = float(cell)
            except ValueError:
                raise NotANumberError(i) from None
    return values


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, and not a missing one."""
    try:
        return not np.isnan(floats([cell])[0])
    except NotANumberError:
        return False


def _has_comma(cell: str) -> bool:
    return WITH_COMMA.fullmatch(cell.strip()) is not None


def values_of(block: Block, wanted: list[int], form: Form) -> NDArray[np.float64]:
    """Return the wanted columns of a block: (records, columns)."""
    if block.fields is None:
        # if a cell is no number, the code below finds and names it
        with contextlib.suppress(ValueError):
            values = np.loadtxt(
                block.raws, delimiter=form.delimiter, usecols=wanted, comments=None, ndmin=2
            )
            if len(values) == len(block.raws) and np.isfinite(values).all():
                return values
    fields = fields_of(block, form)
    values = np.empty((len(fields), len(wanted)))
    for k, j in enumerate(wanted):
        cells = [record[j] for record in fields]
        try:
            values[:, k] = floats(cells)
            at = np.flatnonzero(~np.isfinite(values[:, k]))
            place = int(at[0]) if at.size else None
        except NotANumberError as error:
            place = error.args[0]
        if place is not None:
            what = "nothing" if not cells[place].strip() else shown(cells[place])
            advice = "; columns that are computed with take finite numbers (--columns says which)"
            raise ValueError(
                f"{form.name}: line {block.starts[place]}, column {shown(form.columns[j])} holds "
                f"{what}{COMMAS if _has_comma(cells[place]) else advice}"
            )
    return values


def numeric_columns(block: Block, form: Form, request: Request) -> tuple[list[str], list[str]]:
    """Return the columns that hold numbers in the first records, and those that are an index.

    A column of numbers without a name is an index.
    """
    fields = fields_of(block, form)
    columns, index = [], []
    for j, column in enumerate(form.columns):
        if column == request.weights:
            continue
        cells = [record[j] for record in fields]
        try:
            values = floats(cells)
        except NotANumberError as error:
            if column:
                _check_column(cells, error.args[0], j, block, form)
            continue
        if np.isnan(values).all():
            continue
        columns.append(column)
        if is_index(column, values):
            index.append(column)
    if not columns:
        held = ", ".join(map(shown, fields[0][:3]))
        raise ValueError(
            f"{form.name}: has no column of numbers; line {block.starts[0]} holds {held}"
        )
    return columns, index


def _check_column(cells: list[str], place: int, j: int, block: Block, form: Form) -> None:
    """Raise where most of the cells are numbers, or would be with other commas."""
    where = f"{form.name}: line {block.starts[place]}, column {shown(form.columns[j])} holds "
    what = shown(cells[place])
    if 2 * sum(map(_is_read, cells)) <= len(cells):
        return
    if _has_comma(cells[place]):
        raise ValueError(f"{where}{what}{COMMAS}")
    raise ValueError(
        f"{where}{what}, but most of the column is numbers; correct the cell, or say with "
        f"--columns what to compute with{hint(block.raws[place], form)}"
    )


def _is_read(cell: str) -> bool:
    """Whether a cell is meant as a number."""
    return is_number(cell) or _has_comma(cell)
