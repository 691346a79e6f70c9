"""`martlet schedule RECIPE --cron "0 2 * * *"`: a recipe as a deployment that starts by the clock, or on new data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.common import Request, read_request, take_options
from flows.plan import plan
from stages.artifacts.store import open_store
from stages.errors import ArgumentsError, UserError

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient

__all__ = ["datasets_of", "main"]

USAGE = """usage: martlet schedule RECIPE [--cron "MINUTE HOUR DAY MONTH WEEKDAY"] [--timezone NAME] [--on_dataset true]
                        [--deployment NAME] [--run_on here|workers] [--name value …]

Makes, on the Prefect server in use, the deployment FLOW/NAME with the recipe's parameters. Safe to repeat: it then has
the new parameters and the new times.

  --cron TEXT          when it starts: "0 2 * * *" is every night at two
  --timezone NAME      of these times, such as Europe/Berlin (default: UTC)
  --on_dataset true    it also starts when `martlet webhook` hears of a new revision of one of its datasets
  --deployment NAME    its name (default: the recipe file's)

`prefect deployment schedule pause FLOW/NAME` and the UI pause it; `prefect deployment delete FLOW/NAME` removes it."""
OPTIONS = ("--cron", "--timezone", "--on_dataset", "--deployment")


def main(_command: str, argv: list[str]) -> int:
    """Checks the recipe, then makes or renews its deployment."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    words, options = take_options(argv, *OPTIONS)
    on_dataset = options["--on_dataset"] or "false"
    if on_dataset not in ("true", "false"):
        raise ArgumentsError(f"--on_dataset {on_dataset}: choose from true, false")
    if options["--cron"] is None and on_dataset == "false":
        raise ArgumentsError('martlet schedule needs --cron "0 2 * * *", or --on_dataset true')
    request = read_request("run", words)
    if request is None:
        return 0
    plan(request.pipeline, request.arguments, open_store())
    name = options["--deployment"] or Path(words[0]).stem
    from prefect.client.orchestration import get_client

    schedule = _schedule(options["--cron"], options["--timezone"] or "UTC")
    with get_client(sync_client=True) as client:
        deployment, done = _deploy(client, request, name, schedule)
        print(f"deployment {request.pipeline.name}/{name}: {done}")
        if schedule is not None:
            print(f"schedule: {options['--cron']} ({options['--timezone'] or 'UTC'})")
        if on_dataset == "true":
            print(_trigger(client, request, name, deployment))
    print(f"\nStart it now:  prefect deployment run {request.pipeline.name}/{name}")
    return 0


def _schedule(cron: str | None, timezone: str) -> Any:
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    if cron is None:
        return None
    try:
        return CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise ArgumentsError(f"--cron {cron!r} --timezone {timezone}: {error.errors()[0]['msg']}") from None


def _deploy(client: SyncPrefectClient, request: Request, name: str, schedule: Any) -> tuple[UUID, str]:
    """A deployment like the flow's own one, with parameters and a schedule."""
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.exceptions import ObjectNotFound

    flow = request.pipeline.name
    model = f"{flow}/{'workers' if request.run_on == 'workers' else 'local'}"
    if f"{flow}/{name}" in (f"{flow}/local", f"{flow}/workers"):
        raise ArgumentsError(f"--deployment {name}: that one is made by `martlet setup`; choose another name")
    try:
        like = client.read_deployment_by_name(model)
    except ObjectNotFound:
        raise UserError(f"there is no deployment {model} on the Prefect server: run `martlet setup` first") from None
    try:
        client.read_deployment_by_name(f"{flow}/{name}")
        done = "updated"
    except ObjectNotFound:
        done = "created"
    made = client.create_deployment(
        flow_id=like.flow_id,
        name=name,
        schedules=[DeploymentScheduleCreate(schedule=schedule, active=True)] if schedule is not None else [],
        parameters={**request.given, "run_on": request.run_on},
        description=like.description,
        work_pool_name=like.work_pool_name,
        work_queue_name=like.work_queue_name,
        tags=[*like.tags, "scheduled"],
        entrypoint=like.entrypoint,
        path=like.path,
        pull_steps=_pull_steps(like.pull_steps),
        parameter_openapi_schema=like.parameter_openapi_schema,
        job_variables=like.job_variables,
    )
    return made, done


def _pull_steps(steps: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Relative paths in the recipe are relative to this folder, unless its runs are in containers."""
    from flows.server.pool import CONTAINER_HOME

    done = []
    for step in steps or []:
        [(what, given)] = step.items()
        moved = "directory" in given and given["directory"] != CONTAINER_HOME
        done.append({what: {**given, "directory": str(Path.cwd())} if moved else given})
    return done


def datasets_of(given: Mapping[str, Any]) -> list[str]:
    """The names under which hubs know the datasets of a run: `hf::org/name:subset#500` is `org/name`."""
    names = []
    for text in [*given.get("dataset", ()), *given.get("val_dataset", ())]:
        source, _, rest = text.rpartition("::")
        name = re.sub(r"(#\d+)?$", "", rest).partition(":")[0]
        if source in ("", "hf", "ms") and not Path(name).exists():
            names.append(name.partition("@")[0])
    return names


def _trigger(client: SyncPrefectClient, request: Request, name: str, deployment: UUID) -> str:
    from flows.server.automations import ensure, new_data

    names = datasets_of(request.given)
    if not names:
        raise ArgumentsError("--on_dataset true: the recipe has no dataset of a hub that could tell of a new revision")
    automation = new_data(f"{request.pipeline.name}/{name}", names, deployment)
    return (
        f"automation {automation.name}: {ensure(client, automation)} (webhook for {', '.join(names)}: martlet webhook)"
    )
