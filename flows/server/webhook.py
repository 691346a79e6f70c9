"""Listens to a hub's webhooks and tells Prefect of new dataset revisions: `make_app(secret, emit)`.

A hub that takes a push to `org/rows` sends a POST; here it becomes the event `martlet.dataset.updated` of the resource
`martlet.dataset.org/rows`, on which an automation starts a retraining (`martlet schedule RECIPE --on_dataset true`).
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError

__all__ = ["Update", "make_app"]

HEADER = "X-Webhook-Secret"
MAX_BYTES = 1_000_000


class Update(BaseModel):
    """A new revision of a dataset.

    Attributes:
        name: `org/rows`.
        revision: the commit at the head of the main branch, if the hub says it.
        refs: the branches that moved.
    """

    name: str
    revision: str | None = None
    refs: list[str] = []


class _Event(BaseModel):
    action: str
    scope: str


class _Repo(BaseModel):
    type: str
    name: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", max_length=200)]
    headSha: Annotated[str, Field(pattern=r"^[0-9a-f]{7,64}$")] | None = None  # noqa: N815 - the hub's spelling


class _Ref(BaseModel):
    ref: str
    newSha: str | None = None  # noqa: N815 - the hub's spelling


class _Payload(BaseModel):
    """What Hugging Face sends, as far as it is looked at (https://huggingface.co/docs/hub/webhooks)."""

    event: _Event
    repo: _Repo
    updatedRefs: list[_Ref] | None = None  # noqa: N815 - the hub's spelling


def make_app(
    secret: str, emit: Callable[[Update], Awaitable[None]], say: Callable[[str], None] = lambda _: None
) -> FastAPI:
    """The receiver.

    Args:
        secret: what the hub has to send along.
        emit: passes an update on; what it raises becomes a 503, after which the hub may send again.
        say: gets one line for each update, and for what was refused.
    """
    app = FastAPI(title="Martlet's webhook", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, bool]:
        return {"ok": True}

    @app.post("/")
    async def receive(request: Request) -> JSONResponse:
        given = request.headers.get(HEADER, "").encode("latin-1")  # as Starlette has decoded the bytes that came
        if not hmac.compare_digest(given, secret.encode()):
            say(f"refused: {HEADER} is {'wrong' if HEADER in request.headers else 'missing'}")
            return _answer(401, error=f"{HEADER} is not the secret that this receiver was started with")
        body = await _read(request)
        if body is None:
            return _answer(413, error=f"more than {MAX_BYTES} bytes")
        try:
            payload = _Payload.model_validate(json.loads(body))
        except (ValueError, ValidationError):
            return _answer(400, error="not the JSON of a Hugging Face webhook")
        if reason := _not_new_data(payload):
            return _answer(200, emitted=False, reason=reason)
        refs = [ref.ref for ref in payload.updatedRefs or []]
        update = Update(name=payload.repo.name, revision=payload.repo.headSha, refs=refs)
        try:
            await emit(update)
        except Exception as error:
            say(f"{update.name}: the Prefect server did not take the event: {type(error).__name__}: {error}")
            return _answer(503, error="the Prefect server did not take the event: send it again")
        say(f"{update.name} {(update.revision or '')[:12]}: told Prefect")
        return _answer(200, emitted=True)

    return app


def _answer(status: int, **content: Any) -> JSONResponse:
    return JSONResponse(content, status_code=status)


async def _read(request: Request) -> bytes | None:
    """The body, or None if it is longer than a webhook's."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BYTES:
            return None
    return body


def _not_new_data(payload: _Payload) -> str:
    """Why a webhook says nothing of new rows; empty if it does."""
    if payload.repo.type != "dataset":
        return f"a {payload.repo.type}, not a dataset"
    if not payload.event.scope.startswith("repo.content") or payload.event.action == "delete":
        return f"{payload.event.action} of {payload.event.scope}, not of content"
    branches = [ref for ref in payload.updatedRefs or [] if ref.ref.startswith("refs/heads/") and ref.newSha]
    if payload.updatedRefs and not branches:
        return "no branch has moved"
    return ""
