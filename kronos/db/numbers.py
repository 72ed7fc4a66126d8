"""Whole numbers of many rows, read in one step.

Row by row, Python makes an object of each number and releases its lock for each row: beside a busy
thread a long answer takes very long, and holds that thread up as well. Here the database joins the
numbers to one text, for which it needs no lock, and NumPy reads the text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import ColumnElement, Connection, select

from kronos.db.sql import joined

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from sqlalchemy import CompoundSelect, Select


def read_numbers(
    connection: Connection, statement: Select[Any] | CompoundSelect[Any]
) -> NDArray[np.int64]:
    """Read rows of whole numbers.

    Args:
        connection: in a transaction.
        statement: selects columns that hold only whole numbers, none of them NULL.

    Returns:
        (rows, columns) int64, in ascending order of the first column.
    """
    columns = [*statement.subquery("found").c]
    text = connection.execute(select(joined(_row(columns)))).scalar_one()
    found = np.fromstring(text or "", np.int64, sep=" ").reshape(-1, len(columns))
    first = found[:, 0]
    return found if (first[1:] >= first[:-1]).all() else found[np.argsort(first, kind="stable")]


def _row(columns: list[ColumnElement[Any]]) -> ColumnElement[Any]:
    row = columns[0]
    for column in columns[1:]:
        row = row.op("||")(" ").op("||")(column)
    return row
