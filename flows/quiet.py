"""Prefect as a library of this command: settings for short runs, and a terminal that shows facts, not tracebacks."""

from __future__ import annotations

import logging
import os
import sys

__all__ = ["start_prefect"]

SETTINGS = {
    # On SQLite, telemetry's first write and the server's own collide: "database is locked".
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # As in the pools' templates: `martlet setup` makes an automation that ends runs whose heartbeat has stopped, and
    # Prefect's own 180 s are longer than it waits.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}


class _FactsOnly(logging.Filter):
    """Lets warnings of stages through; what failed is said once, at the end, by the command itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno == logging.WARNING and record.exc_info is None


def start_prefect() -> None:
    """Sets Prefect's defaults (never over the user's own) before it is first imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from prefect.logging.configuration import setup_logging

    # A flow's first run does this too, and would take the handlers below away; once done, it leaves them.
    setup_logging()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    handler.addFilter(_FactsOnly())
    for name in ("prefect.flow_runs", "prefect.task_runs", "martlet"):
        logging.getLogger(name).addHandler(handler)
