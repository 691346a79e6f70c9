"""Errors in the UI's logs as their one line: `say_errors_in_one_line()`, once a flow is made.

Prefect logs an exception with its traceback, in the task and again in the flow. Of an error that Martlet raises on
purpose the line says everything; how a stage broke down is only said where it did, in its task.
"""

from __future__ import annotations

import logging

from stages.errors import Interrupted, MartletError, UserError

__all__ = ["say_errors_in_one_line"]


class _OneLine(logging.Filter):
    """Drops the tracebacks of some errors."""

    def __init__(self, *errors: type[MartletError]) -> None:
        super().__init__()
        self.errors = errors

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, self.errors):
            record.exc_info = record.exc_text = None
            record.msg, record.args = f"{type(error).__name__}: {error}", ()
        return True


_FILTERS = {
    "prefect.flow_runs": _OneLine(MartletError),
    "prefect.task_runs": _OneLine(UserError, Interrupted),
}


def say_errors_in_one_line() -> None:
    """Safe to repeat."""
    for name, each in _FILTERS.items():
        logging.getLogger(name).addFilter(each)
