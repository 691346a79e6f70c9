"""An OpenAI-compatible server for one engine: `with serve(engine, "tuned") as server: print(server.url)`."""

from __future__ import annotations

import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.errors import Interrupted, MartletError, StageFailed, UserError
from stages.serving.engine import Completion, Engine, Sampling
from stages.serving.protocol import ChatRequest, CompletionRequest, RequestError

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

__all__ = ["Server", "create_app", "serve"]

START_SECONDS = 30.0
STOP_SECONDS = 30.0
logger = logging.getLogger("martlet.serving")


@dataclass
class Server:
    """A running server.

    Attributes:
        url: of the API: `http://127.0.0.1:40123/v1`.
        num_answered: requests that were answered, right or wrong.
        failures: what went wrong inside, one line each; the first of them is worth showing.
    """

    url: str
    num_answered: int = 0
    failures: list[str] = field(default_factory=list)


@contextmanager
def serve(engine: Engine, name: str, *, sampling: Sampling | None = None, host: str = "127.0.0.1") -> Iterator[Server]:
    """Serves on a free port while the block runs; afterwards nothing is left, not even a request under way.

    Args:
        engine: answers.
        name: the model's name in the API.
        sampling: settings that requests change.
        host: the address to listen at.

    Raises:
        StageFailed: the server does not come up.
    """
    import uvicorn

    listening = socket.create_server((host, 0))
    server = Server(f"http://{host}:{listening.getsockname()[1]}/v1")
    app = create_app(engine, name, sampling or Sampling(), server)
    runner = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, lifespan="off"))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listening]}, name="server", daemon=True)
    thread.start()
    try:
        _wait_until(lambda: runner.started or not thread.is_alive(), START_SECONDS)
        if not runner.started:
            raise StageFailed(f"the server at {server.url} did not come up")
        yield server
    finally:
        engine.close()
        runner.should_exit = True
        thread.join(STOP_SECONDS)
        listening.close()
        if thread.is_alive():
            logger.warning("the server at %s still runs", server.url)


def create_app(engine: Engine, name: str, sampling: Sampling, server: Server) -> FastAPI:
    """The application: /v1/models, /v1/chat/completions, /v1/completions.

    Generation runs in the thread pool, so that the server answers about its models meanwhile.
    """
    from fastapi import FastAPI
    from fastapi.exceptions import RequestValidationError

    app = FastAPI(title="Martlet", openapi_url=None)
    app.add_exception_handler(RequestError, _on_request_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    created = int(time.time())

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        card = {"id": name, "object": "model", "created": created, "owned_by": "martlet"}
        return {"object": "list", "data": [card]}

    @app.post("/v1/chat/completions")
    def chat(request: ChatRequest) -> dict[str, Any]:
        _check_model(request.model, name)
        request.check()
        messages = [{"role": message.role, "content": message.text()} for message in request.messages]
        with _reporting(server):
            made = engine.chat(messages, sampling.updated(**request.sampling()))
        answer = {"role": "assistant", "content": made.text}
        return _answer("chat.completion", "chatcmpl", name, made, {"message": answer})

    @app.post("/v1/completions")
    def complete(request: CompletionRequest) -> dict[str, Any]:
        _check_model(request.model, name)
        request.check()
        with _reporting(server):
            made = engine.complete(request.prompt, sampling.updated(**request.sampling()))
        return _answer("text_completion", "cmpl", name, made, {"text": made.text})

    return app


def _answer(kind: str, prefix: str, name: str, made: Completion, choice: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": name,
        "choices": [{"index": 0, "finish_reason": made.finish_reason, "logprobs": None, **choice}],
        "usage": {
            "prompt_tokens": made.num_prompt_tokens,
            "completion_tokens": made.num_tokens,
            "total_tokens": made.num_prompt_tokens + made.num_tokens,
        },
    }


def _check_model(wanted: str | None, name: str) -> None:
    if wanted not in (None, name):
        raise RequestError(404, f"model {wanted!r} does not exist. Choose from: {name}", "model_not_found")


@contextmanager
def _reporting(server: Server) -> Iterator[None]:
    """What the engine raises, in OpenAI's terms; what is our own fault is kept for the one who started the server."""
    try:
        yield
    except UserError as error:
        server.failures.append(str(error))
        raise RequestError(400, str(error), "invalid_request") from error
    except Interrupted as error:
        raise RequestError(503, str(error), "closing") from error
    except MartletError as error:
        raise RequestError(500, str(error), "internal_error") from error
    except Exception as error:
        logger.exception("a request failed")
        server.failures.append(f"{type(error).__name__}: {error}")
        raise RequestError(500, f"{type(error).__name__}: {error}", "internal_error") from error
    finally:
        server.num_answered += 1


def _on_request_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    return _error_response(error.status, str(error), error.code)


def _on_invalid(_request: Request, error: Exception) -> JSONResponse:
    from fastapi.exceptions import RequestValidationError

    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return _error_response(400, f"{place}: {first['msg']}" if place else str(first["msg"]), "invalid_request")


def _error_response(status: int, message: str, code: str) -> JSONResponse:
    from fastapi.responses import JSONResponse

    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": code}}, status_code=status)


def _wait_until(done: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.02)
