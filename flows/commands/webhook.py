"""`martlet webhook`: hears of new dataset revisions from a hub and tells Prefect, which starts a retraining."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from flows.commands.common import take_options
from stages.errors import ArgumentsError

if TYPE_CHECKING:
    from flows.server.webhook import Update

__all__ = ["main"]

SECRET = "MARTLET_WEBHOOK_SECRET"
RESOURCE = "martlet.dataset"

USAGE = f"""usage: {SECRET}=… martlet webhook [--host ADDRESS] [--port PORT]

Receives the webhooks of a hub (POST /, Hugging Face's payload) and tells the Prefect server at PREFECT_API_URL of each
new revision of a dataset: the event martlet.dataset.updated of the resource {RESOURCE}.ORG/NAME.

  --host ADDRESS   where it listens (default: 127.0.0.1; 0.0.0.0 for all)
  --port PORT      (default: 4300; 0 takes a free one)

On the hub, give the same secret; a request without it in X-Webhook-Secret is refused. To retrain on new data:
martlet schedule configs/nightly-retrain.yaml --on_dataset true"""


def main(_command: str, argv: list[str]) -> int:
    """Serves until it is told to stop."""
    if "--help" in argv or "-h" in argv:
        print(USAGE)
        return 0
    argv, options = take_options(argv, "--host", "--port")
    if argv:
        raise ArgumentsError(f"martlet webhook takes no {argv[0]}. See martlet webhook --help")
    secret = os.environ.get(SECRET)
    if not secret:
        raise ArgumentsError(f"martlet webhook needs a secret: set {SECRET} to what the hub will send")
    if not os.environ.get("PREFECT_API_URL"):
        raise ArgumentsError("martlet webhook needs a Prefect server: set PREFECT_API_URL=http://127.0.0.1:4200/api")
    listener = _listen(options["--host"] or "127.0.0.1", options["--port"] or "4300")
    import uvicorn

    from flows.server.webhook import make_app

    host, port = listener.getsockname()[:2]
    print(f"listening on http://{host}:{port}, telling {os.environ['PREFECT_API_URL']}", flush=True)
    app = make_app(secret, _emit, lambda line: print(line, flush=True))
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])
    return 0


def _listen(host: str, port: str) -> socket.socket:
    """A socket that listens, so that a port which is taken is said before anything is loaded."""
    if not port.isdigit() or int(port) > 65535:
        raise ArgumentsError(f"--port {port}: must be a number from 0 to 65535")
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
        listener.listen(128)  # whoever calls from now on waits until the server is there
    except OSError as error:
        listener.close()
        raise ArgumentsError(f"--host {host} --port {port}: {error.strerror}. Choose another") from None
    return listener


async def _emit(update: Update) -> None:
    """Sends the event and waits until the server has it; `emit_event` would only queue it."""
    from prefect.client.orchestration import get_client
    from prefect.events import Event, Resource

    from flows.server.automations import DATASET_UPDATED

    name = {"prefect.resource.id": f"{RESOURCE}.{update.name}", "prefect.resource.name": update.name}
    payload: dict[str, Any] = update.model_dump()
    event = Event(event=DATASET_UPDATED, resource=Resource(name), payload=payload)
    async with get_client() as client:
        response = await client.request("POST", "/events", json=[event.model_dump(mode="json")])
        response.raise_for_status()
