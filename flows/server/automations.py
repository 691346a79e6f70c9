"""The automations that `martlet setup` makes on the Prefect server: runs that nobody runs any more, and failures.

    for line in ensure_automations(client, os.environ): print(line)

Prefect does not notice by itself that a run's process and worker are both gone: the run would be Running, and hold its
slot of the queue, for ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from prefect.blocks.core import Block
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, RunDeployment, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

from stages.errors import ArgumentsError

__all__ = ["AUTOMATIONS", "DATASET_UPDATED", "EMAIL", "WEBHOOK", "ensure", "ensure_automations", "lost_run", "new_data"]

HEARTBEAT_SECONDS = 30  # PREFECT_FLOWS_HEARTBEAT_FREQUENCY in the pools' templates; Prefect allows no less
LOST_AFTER = timedelta(seconds=3 * HEARTBEAT_SECONDS + 10)
STARTED_WITHIN = timedelta(minutes=30)

WEBHOOK = "MARTLET_NOTIFY_WEBHOOK"
EMAIL = "MARTLET_NOTIFY_EMAIL"
AUTOMATIONS = ("martlet: lost runs", "martlet: runs that never started")
DATASET_UPDATED = "martlet.dataset.updated"
BY_WEBHOOK, BY_EMAIL = "martlet: failures by webhook", "martlet: failures by email"

# Filled in by the server from the event, as Jinja templates.
FACTS = {
    "flow": "{{ flow.name }}",
    "run": "{{ flow_run.name }}",
    "state": "{{ flow_run.state.name }}",
    "message": "{{ flow_run.state.message }}",
    "url": "{{ flow_run|ui_url }}",
}


def _tag(name: str) -> dict[str, str | list[str]]:
    """The events of runs with a tag: all of Martlet's have `martlet`, deployed flows also `flow`."""
    return {"prefect.resource.id": f"prefect.tag.{name}", "prefect.resource.role": "tag"}


def lost_run(within: timedelta = LOST_AFTER) -> AutomationCore:
    """Ends a run as Crashed whose heartbeat has stopped, so that its slot is free and a flow that waits starts anew."""
    return _ended(
        AUTOMATIONS[0],
        "A run whose process, container or machine is gone no longer holds its slot.",
        "prefect.flow-run.heartbeat",
        within,
        f"no heartbeat for {within.total_seconds():.0f} s",
    )


def never_started(within: timedelta = STARTED_WITHIN) -> AutomationCore:
    """The same for a run that a worker has taken and then could not tell any more what became of it."""
    return _ended(
        AUTOMATIONS[1],
        "A run that a worker took but never started no longer holds its slot.",
        "prefect.flow-run.Pending",
        within,
        f"taken by a worker, not started within {within.total_seconds() / 60:.0f} min",
    )


def _ended(name: str, description: str, after: str, within: timedelta, message: str) -> AutomationCore:
    """Ends a run as Crashed of which nothing was heard for a while after an event."""
    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=_tag("martlet"),  # whoever else uses the server may beat less often
            for_each={"prefect.resource.id"},
            after={after},
            expect={"prefect.flow-run.*"},
            threshold=1,
            within=within,
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def failed_flow(name: str, action: Any) -> AutomationCore:
    """Tells somebody of a deployed flow that failed; of the stages that it started, only the flow speaks."""
    return AutomationCore(
        name=name,
        description="Sent when a flow's run ends as Failed, Crashed or TimedOut.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=_tag("flow"),
            for_each={"prefect.resource.id"},
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed", "prefect.flow-run.TimedOut"},
            threshold=1,
            within=timedelta(0),
        ),
        actions=[action],
    )


def ensure_automations(client: SyncPrefectClient, environment: Mapping[str, str]) -> Iterator[str]:
    """Makes or renews the automations, and says of each what was done.

    Notifications go where the environment says: `MARTLET_NOTIFY_WEBHOOK` is a URL that gets a POST with JSON,
    `MARTLET_NOTIFY_EMAIL` an Apprise URL, `mailtos://user:password@host?to=…`. Both are kept as secret blocks.

    Raises:
        ArgumentsError: one of the two is no such URL.
    """
    for automation in (lost_run(), never_started()):
        yield f"automation {automation.name}: {ensure(client, automation)}"
    if url := environment.get(WEBHOOK):
        _check_scheme(WEBHOOK, url, ("http", "https"))
        block = _save(Webhook(method="POST", url=url, headers={"content-type": "application/json"}), "martlet-webhook")
        automation = failed_flow(BY_WEBHOOK, CallWebhook(block_document_id=block, payload=_as_json(FACTS)))
        yield f"automation {automation.name}: {ensure(client, automation)}"
    if url := environment.get(EMAIL):
        _check_scheme(EMAIL, url, ("mailto", "mailtos"))
        # Prefect hands any URL but Slack's own on to Apprise as it is.
        block = _save(SlackWebhook(url=url), "martlet-email")
        body = "\n".join(f"{name}: {value}" for name, value in FACTS.items())
        action = SendNotification(block_document_id=block, subject="Martlet: {{ flow_run.name }} failed", body=body)
        yield f"automation {BY_EMAIL}: {ensure(client, failed_flow(BY_EMAIL, action))}"


def new_data(name: str, datasets: Sequence[str], deployment: UUID) -> AutomationCore:
    """Starts a deployment when a hub has told `martlet webhook` of a new revision of one of these datasets."""
    return AutomationCore(
        name=f"martlet: new data for {name}",
        description=f"Starts {name} on a new revision of {', '.join(datasets)}.",
        trigger=EventTrigger(
            posture=Posture.Reactive,
            match={"prefect.resource.id": [f"martlet.dataset.{dataset}" for dataset in datasets]},
            for_each={"prefect.resource.id"},
            expect={DATASET_UPDATED},
            threshold=1,
            within=timedelta(0),
        ),
        actions=[RunDeployment(source="selected", deployment_id=deployment)],
    )


def ensure(client: SyncPrefectClient, automation: AutomationCore) -> str:
    """Makes an automation, or renews the one of its name, which stays disabled if somebody disabled it."""
    found = client.read_automations_by_name(automation.name)
    if not found:
        client.create_automation(automation)
        return "created"
    client.update_automation(found[0].id, automation.model_copy(update={"enabled": found[0].enabled}))
    return "updated" if found[0].enabled else "updated (disabled, as it was)"


def _save(block: Block, name: str) -> Any:
    return block.save(name, overwrite=True)


def _as_json(facts: Mapping[str, str]) -> str:
    """A JSON template; each value is quoted by the server, which knows what is in it."""
    pairs = (f'"{name}": {value.replace(" }}", "|tojson }}")}' for name, value in facts.items())
    return "{" + ", ".join(pairs) + "}"


def _check_scheme(variable: str, url: str, schemes: tuple[str, ...]) -> None:
    if urlsplit(url).scheme not in schemes or not urlsplit(url).netloc:
        raise ArgumentsError(f"{variable} is no URL of {' or '.join(f'{scheme}://' for scheme in schemes)}")
