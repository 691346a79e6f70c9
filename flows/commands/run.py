"""`martlet sft|export|run …`: runs a flow in this process, on the Prefect server in use or a temporary one."""

from __future__ import annotations

import sys
from typing import Any
from uuid import UUID

from flows.commands.common import Request, read_request, split_json
from flows.plan import plan
from flows.record import public
from flows.summary import print_run
from stages.arguments import commands as command_arguments
from stages.arguments.command_line import help_text
from stages.artifacts.store import open_store
from stages.errors import ArgumentsError, Interrupted

__all__ = ["main", "run_request"]

NOT_YET = {"pt": "PtArguments", "rlhf": "RLHFArguments", "infer": "InferArguments", "deploy": "DeployArguments"}
NOT_YET["eval"] = "EvalArguments"


def main(command: str, argv: list[str]) -> int:
    """Runs a command or a recipe and prints what became of it."""
    argv, as_json = split_json(argv)
    if command in NOT_YET:
        if "--help" in argv or "-h" in argv:
            print(help_text(getattr(command_arguments, NOT_YET[command]), f"martlet {command}"))
            return 0
        raise ArgumentsError(f"martlet {command} is not supported yet. Supported: sft, export, run")
    request = read_request(command, argv)
    if request is None:
        return 0
    return run_request(request, as_json=as_json)


def run_request(request: Request, *, as_json: bool, force: frozenset[str] = frozenset()) -> int:
    """Runs a flow and answers its exit code; the error, if any, is one line on stderr."""
    from flows.cost import load_prices
    from flows.parameters import output_folder
    from flows.quiet import start_prefect

    load_prices()
    output_folder(request.arguments)
    plan(request.pipeline, request.arguments, open_store())  # a wrong path is said now, not once Prefect has started
    start_prefect()
    from prefect import tags

    from flows.flow import flow_for
    from flows.tasks import How

    how = How(request.run_on, force)
    flow = flow_for(request.pipeline, place=lambda arguments, _how: output_folder(arguments), how=how)
    with tags("martlet"):
        state = flow(**request.given, return_state=True)
    return finish(state, as_json=as_json)


def finish(state: Any, *, as_json: bool) -> int:
    """Prints the record of a finished flow run, which the store has, and answers the exit code."""
    run_id = str(state.state_details.flow_run_id)
    record = open_store().run(run_id)
    if state.is_completed():
        print_run(public(record), as_json=as_json)
        return 0
    error = record.get("error") or state.message
    failed = next((stage["stage"] for stage in record["stages"] if stage["status"] == "failed"), None)
    exit_code = int(record.get("exit_code") or 1)
    if exit_code == Interrupted.exit_code:
        _note_as_cancelled(state.state_details.flow_run_id, str(error))
    print(f"error: {error}", file=sys.stderr)
    if failed and exit_code == 1:
        print(f"{failed} failed; once mended: martlet rerun {failed} --run {run_id}", file=sys.stderr)
    if as_json:
        print_run(public(record), as_json=True)
    return exit_code


def _note_as_cancelled(flow_run: UUID, message: str) -> None:
    """A run that somebody has stopped here has not failed."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelled

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run, Cancelled(message=message), force=True)
