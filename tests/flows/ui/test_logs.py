"""What was the user's to mend is said in a line, what broke down with its traceback, once."""

from __future__ import annotations

import logging

import pytest

from flows.ui.logs import say_errors_in_one_line
from stages.errors import DataError, StageFailed


@pytest.mark.parametrize(
    ("logger", "error", "has_traceback"),
    [
        ("prefect.flow_runs", DataError("no row in x.jsonl"), False),
        ("prefect.task_runs", DataError("no row in x.jsonl"), False),
        ("prefect.flow_runs", StageFailed("merge failed: no space"), False),
        ("prefect.task_runs", StageFailed("merge failed: no space"), True),
        ("prefect.flow_runs", RuntimeError("a bug"), True),
    ],
)
def test_tracebacks(
    logger: str,
    error: Exception,
    has_traceback: bool,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    say_errors_in_one_line()
    say_errors_in_one_line()
    log = logging.getLogger(logger)
    assert sum(type(each).__name__ == "_OneLine" for each in log.filters) == 1, "installed once"
    monkeypatch.setattr(log, "handlers", [caplog.handler])  # not Prefect's own, which wants a run
    log.error("Encountered exception during execution: %r", error, exc_info=error)
    [record] = {id(each): each for each in caplog.records}.values()
    assert bool(record.exc_info) is has_traceback
    assert str(error) in record.getMessage()
