"""What the Prefect UI shows of a run: progress that moves, a page for each stage, a summary and a model card."""

from __future__ import annotations

from flows.ui.reporter import PrefectReporter
from flows.ui.run import show_run

__all__ = ["PrefectReporter", "show_run"]
