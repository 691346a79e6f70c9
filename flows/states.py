"""What the Prefect UI says of a flow run that waits.

with shown(client, flow_run.id) as show:
    show("AwaitingWorker", "no worker listens on the queue gpu")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.states import Running

__all__ = ["shown"]


@contextmanager
def shown(client: SyncPrefectClient, flow_run: UUID) -> Iterator[Callable[[str, str], None]]:
    """Names a running flow run's state, sends it only when the name changes, and takes it back at the end.

    A state that the server refuses, since the run was cancelled meanwhile, changes nothing.
    """
    current = "Running"

    def show(name: str, message: str) -> None:
        nonlocal current
        if name != current:
            current = name
            client.set_flow_run_state(flow_run, Running(name=name, message=message))

    try:
        yield show
    finally:
        state = client.read_flow_run(flow_run).state
        if current != "Running" and state is not None and state.is_running():
            client.set_flow_run_state(flow_run, Running())
