"""Models are published through the hubs' own clients, against a hub on this machine that keeps what it is sent."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import PushToHubArguments
from stages.context import Context
from stages.errors import ArgumentsError, ModelError, StageFailed, UserError
from stages.push_to_hub import prepare, push_to_hub

# huggingface_hub 2.4 gives httpx the parts of large files by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

HUBS = {"hf": "HF_TOKEN", "ms": "MODELSCOPE_API_TOKEN"}


@pytest.fixture
def at_hub(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both clients ask the hub on this machine, with the right token, and do not wait long between attempts."""
    from huggingface_hub import constants

    import stages.publishing.hub

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(stages.publishing.hub, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
    monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "modelscope"))
    for name in HUBS.values():
        monkeypatch.setenv(name, hub.token)
    return hub


def push(tmp_path: Path, model: Path, report: Path | None = None, **arguments: Any) -> dict[str, Any]:
    """Runs the stage and answers its publication."""
    out = tmp_path / "out"
    for folder in (out, tmp_path / "scratch", tmp_path / "attachments"):
        folder.mkdir(exist_ok=True)
    inputs = {"model": model} | ({"report": report} if report else {})
    prepared = prepare(PushToHubArguments(**{"hub_model_id": "me/tiny", **arguments}))
    push_to_hub(prepared.arguments, inputs, out, Context(tmp_path / "scratch", tmp_path / "attachments"))
    record: dict[str, Any] = json.loads((out / "publication.json").read_text())
    return record


@pytest.mark.parametrize("name", HUBS)
def test_every_file_arrives_whole_in_one_commit(name: str, at_hub: Any, tmp_path: Path, tiny_model: Path) -> None:
    report = tmp_path / "report"
    report.mkdir()
    (report / "report.md").write_text("# Evaluation\n")
    record = push(tmp_path, tiny_model, report, use_hf=name == "hf", commit_message="first", hub_private_repo=True)
    page = at_hub.url + ("/me/tiny" if name == "hf" else "/models/me/tiny")
    assert record == {"hub": name, "repo_id": "me/tiny", "commit": at_hub.commit, "url": page}
    repository = at_hub.repositories["me/tiny"]
    expected = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    assert repository.files == expected | {"evaluation/report.md": b"# Evaluation\n"}
    assert repository.private
    assert len(repository.messages) == 1
    assert repository.messages[0].startswith("first")


def test_an_adapter_is_published_too(at_hub: Any, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    push(tmp_path, adapter, use_hf=True)
    assert set(at_hub.repositories["me/tiny"].files) == {"adapter_config.json", "adapter_model.safetensors"}
    assert not at_hub.repositories["me/tiny"].private


@pytest.mark.parametrize("name", HUBS)
@pytest.mark.parametrize("place", ["users/me|whoami", "repos/create|/api/v1/models", "/commit/"])
def test_a_server_error_is_tried_again(name: str, place: str, at_hub: Any, tmp_path: Path, tiny_model: Path) -> None:
    for path in place.split("|"):
        at_hub.failures[path] = [503, 502]
    push(tmp_path, tiny_model, use_hf=name == "hf")
    assert "model.safetensors" in at_hub.repositories["me/tiny"].files
    assert not any(at_hub.failures[path] for path in place.split("|") if any(path in r for r in at_hub.requests))


@pytest.mark.parametrize("name", ["hf", pytest.param("ms", marks=pytest.mark.slow)])
def test_a_server_that_stays_down_fails_the_stage(name: str, at_hub: Any, tmp_path: Path, tiny_model: Path) -> None:
    at_hub.failures["/commit/"] = [500] * 60
    with pytest.raises(StageFailed, match=r"me/tiny could not be pushed to (Hugging Face|ModelScope): "):
        push(tmp_path, tiny_model, use_hf=name == "hf")


@pytest.mark.parametrize("name", HUBS)
def test_a_token_that_is_refused_sends_nothing_and_is_not_told(
    name: str, at_hub: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(HUBS[name], "hf_WrongSecret987")
    with pytest.raises(UserError, match=rf"refuses the token in {HUBS[name]}") as error:
        push(tmp_path, tiny_model, use_hf=name == "hf")
    assert at_hub.repositories == {}
    assert "WrongSecret" not in str(error.value) + caplog.text


@pytest.mark.parametrize("name", HUBS)
def test_a_token_that_is_missing_asks_nobody(
    name: str, at_hub: Any, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(HUBS[name])
    with pytest.raises(UserError, match=f"set the environment variable {HUBS[name]}"):
        push(tmp_path, tiny_model, use_hf=name == "hf")
    assert at_hub.requests == []


@pytest.mark.parametrize("name", HUBS)
def test_what_is_private_does_not_go_into_a_public_repository(
    name: str, at_hub: Any, tmp_path: Path, tiny_model: Path
) -> None:
    push(tmp_path, tiny_model, use_hf=name == "hf")
    at_hub.repositories["me/tiny"].files.clear()
    with pytest.raises(ArgumentsError, match="me/tiny is a public repository"):
        push(tmp_path, tiny_model, use_hf=name == "hf", hub_private_repo=True)
    assert at_hub.repositories["me/tiny"].files == {}


@pytest.mark.parametrize(
    "repo_id", ["tiny", "me/", "/tiny", "me/ti ny", "me/tiny.git", "me/a--b", "a/b/c", "me/" + "x" * 96]
)
def test_a_name_that_no_hub_takes_is_refused_before_anything(repo_id: str) -> None:
    with pytest.raises(ArgumentsError, match="give group/name"):
        prepare(PushToHubArguments(hub_model_id=repo_id))


def test_a_folder_without_weights_is_refused(at_hub: Any, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="nothing to push"):
        push(tmp_path, empty, use_hf=True)
    assert at_hub.requests == []


@pytest.mark.parametrize(("value", "hub_name"), [("1", "hf"), ("", "ms")])
def test_the_hub_is_chosen_as_for_downloads(value: str, hub_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_HF", value)
    assert prepare(PushToHubArguments(hub_model_id="me/tiny")).arguments.use_hf is (hub_name == "hf")


def test_as_a_command_it_prints_one_line_and_no_token(hub: Any, tmp_path: Path, tiny_model: Path) -> None:
    command = [sys.executable, "-m", "stages", "push_to_hub", "--input", f"model={tiny_model}", "--use_hf", "true"]
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token,
        "HF_HUB_DISABLE_XET": "1",
        "MARTLET_STORE": str(tmp_path / "store"),
    }
    done = subprocess.run(
        [*command, "--hub_model_id", "me/tiny", "--json", "--verbose"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["metrics"]["repo_id"] == "me/tiny"
    assert hub.token not in done.stdout + done.stderr
    kept = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert hub.token.encode() not in kept
