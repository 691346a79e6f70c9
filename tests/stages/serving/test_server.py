"""The server speaks OpenAI's protocol over real HTTP, and leaves nothing behind."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.serving.engine import Engine, Sampling
from stages.serving.server import Server, serve

ASK = [{"role": "user", "content": "what is the capital of France?"}]


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.open(tiny_model)


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    with serve(Engine(engine.model, engine.tokenizer), "tiny", sampling=Sampling(temperature=0.0)) as server:
        yield server


def post(server: Server, path: str, **body: Any) -> tuple[int, Any]:
    import httpx

    answer = httpx.post(server.url + path, json=body, timeout=60)
    return answer.status_code, answer.json()


def test_it_tells_its_model(server: Server) -> None:
    import httpx

    models = httpx.get(server.url + "/models").json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]] == ["tiny"]


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_chat_is_the_engines_answer(limit: str, server: Server, engine: Engine) -> None:
    expected = engine.chat(ASK, Sampling(temperature=0.0, max_new_tokens=8))
    status, answer = post(server, "/chat/completions", model="tiny", messages=ASK, **{limit: 8})
    assert status == 200
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected.text}
    assert answer["choices"][0]["finish_reason"] == expected.finish_reason
    counts = (expected.num_prompt_tokens, expected.num_tokens)
    assert answer["usage"] == {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}


def test_parts_of_text_are_joined(server: Server) -> None:
    parts = [{"type": "text", "text": "what is the capital "}, {"type": "text", "text": "of France?"}]
    body = {"max_tokens": 8, "model": "tiny"}
    first = post(server, "/chat/completions", messages=ASK, **body)[1]["choices"]
    assert (
        post(server, "/chat/completions", messages=[{"role": "user", "content": parts}], **body)[1]["choices"] == first
    )


def test_a_text_is_continued_up_to_a_stop_text(server: Server, engine: Engine) -> None:
    whole = engine.complete("hello world", Sampling(temperature=0.0, max_new_tokens=10)).text
    status, answer = post(server, "/completions", prompt="hello world", max_tokens=10, stop=whole[3:5])
    assert status == 200
    assert answer["choices"][0]["text"] == whole[: whole.index(whole[3:5])]
    assert answer["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/chat/completions", {"model": "other", "messages": ASK}, 404, "Choose from: tiny"),
        ("/chat/completions", {"messages": []}, 400, "messages: "),
        ("/chat/completions", {"messages": ASK, "temperature": -1}, 400, "temperature: "),
        ("/chat/completions", {"messages": ASK, "stream": True}, 400, "stream is not supported yet"),
        ("/chat/completions", {"messages": ASK, "n": 2}, 400, "n is not supported yet"),
        ("/chat/completions", {"messages": ASK, "logprobs": True}, 400, "logprobs is not supported yet"),
        (
            "/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "content of type 'image_url' is not supported",
        ),
        ("/completions", {"prompt": "sky sea " * 300}, 400, "the model takes 256"),
        ("/completions", {}, 400, "prompt: "),
    ],
)
def test_what_it_cannot_do_it_says(path: str, body: dict[str, Any], status: int, message: str, server: Server) -> None:
    got, answer = post(server, path, **body)
    assert got == status
    assert message in answer["error"]["message"]
    assert answer["error"]["type"] == "invalid_request_error"


def test_requests_at_a_time_have_the_answers_of_requests_alone(server: Server) -> None:
    prompts = ["red green", "blue sky", "one two three", "hello world"]
    alone = [post(server, "/completions", prompt=prompt, max_tokens=10)[1]["choices"] for prompt in prompts]
    together: dict[str, Any] = {}

    def ask(prompt: str) -> None:
        together[prompt] = post(server, "/completions", prompt=prompt, max_tokens=10)[1]["choices"]

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[prompt] for prompt in prompts] == alone


def running() -> int:
    return sum(thread.name == "server" for thread in threading.enumerate())


def test_afterwards_port_and_thread_are_gone(engine: Engine) -> None:
    before = running()
    ports = []

    def fail_while_serving() -> None:
        with serve(Engine(engine.model, engine.tokenizer), "tiny") as server:
            ports.append(int(server.url.rpartition(":")[2].partition("/")[0]))
            assert post(server, "/completions", prompt="hello", max_tokens=1)[0] == 200
            assert running() == before + 1
            raise RuntimeError("as when a stage fails")

    with pytest.raises(RuntimeError, match="as when a stage fails"):
        fail_while_serving()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", ports[0]), timeout=5)
    assert running() == before
