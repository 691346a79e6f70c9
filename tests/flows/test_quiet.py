"""What the command tells Prefect before it is imported."""

from __future__ import annotations

import json
from pathlib import Path

from flows.quiet import SETTINGS
from flows.server.automations import HEARTBEAT_SECONDS, LOST_AFTER

POOLS = Path(__file__).parents[2] / "containers" / "pools"


def test_a_run_from_the_shell_beats_as_often_as_the_automation_for_lost_runs_expects() -> None:
    """Or every run that is longer than the automation waits would be ended as Crashed."""
    assert int(SETTINGS["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) == HEARTBEAT_SECONDS
    assert LOST_AFTER.total_seconds() >= 3 * HEARTBEAT_SECONDS
    for pool in POOLS.glob("*.json"):
        assert f'"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "{HEARTBEAT_SECONDS}"' in json.dumps(json.loads(pool.read_text()))
