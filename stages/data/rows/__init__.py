"""Turns a row of any common format into a standard row: `Standardizer(seed=42).standardize(row)`.

A standard row has `messages`, a list of {role, content} in which an optional system turn is followed by pairs of a user
(or tool) turn and an assistant turn, and those of SWIFT's other columns that the row has. A message has `tool_calls`
(JSON text of a list of {name, arguments}) and `loss` only where they were given.
"""

from stages.data.rows.columns import COLUMNS
from stages.data.rows.standardizer import Standardizer
from stages.data.rows.values import RowError

__all__ = ["COLUMNS", "RowError", "Standardizer"]
