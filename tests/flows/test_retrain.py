"""Nights of a retraining: the first publishes, an unchanged one does nothing, then worse data and better data."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows.nightly_retrain import find_last, find_start
from flows.pipeline import Known
from stages.arguments import NightlyRetrainArguments
from stages.artifacts.reference import ArtifactRef
from stages.artifacts.store import LocalStore, Store, open_store
from stages.errors import ArgumentsError, UnknownReference
from tests.conftest import alpaca_rows
from tests.flows.conftest import PROJECT, Martlet
from tests.stages.publishing.conftest import TOKEN, Handler, HubState

RECIPE = """\
flow: nightly-retrain
model: {model}
dataset: [rows.jsonl]
val_dataset: [held-out.jsonl]
lora_rank: 4
num_train_epochs: 1
logging_steps: 1
save_steps: 100
learning_rate: 5e-3
per_device_train_batch_size: 2
max_length: 128
output_dir: out
add_version: false
use_hf: true
push_to_hub: true
hub_model_id: me/nightly
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubState]:
    """A hub on a free port that keeps what it is sent."""
    state = HubState()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def martlet(
    tmp_path_factory: pytest.TempPathFactory, prefect_environment: dict[str, str], tiny_model: Path, hub: HubState
) -> Martlet:
    folder = tmp_path_factory.mktemp("nights")
    write(folder / "held-out.jsonl", alpaca_rows(12))
    (folder / "recipe.yaml").write_text(RECIPE.format(model=tiny_model))
    on_hub = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "MARTLET_STORE": str(folder / "store"),
    }
    return Martlet({**prefect_environment, **on_hub}, folder)


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def garbage(count: int) -> list[dict[str, str]]:
    """The same questions with answers that teach the wrong thing."""
    generator = random.Random(0)
    rows = alpaca_rows(count)
    return [{**row, "output": "".join(generator.choices("#$%&*0123456789", k=24))} for row in rows]


@pytest.fixture(scope="module")
def nights(martlet: Martlet) -> dict[str, dict[str, Any]]:
    """The record of each night."""
    published = ["--retrain_from", "published"]
    nights = {
        "first": ("run", alpaca_rows(40), []),
        "unchanged": ("run", alpaca_rows(40), []),
        "planned": ("plan", garbage(40), []),
        "worse": ("run", garbage(40), []),
        "worse again": ("run", garbage(40), []),
        "better": ("run", alpaca_rows(100), []),
        "from published": ("run", alpaca_rows(120), published),
        "from published again": ("run", alpaca_rows(120), published),
    }
    for name, (_, rows, _) in nights.items():
        write(martlet.folder / name, rows)
    steps = [(name, [command, "recipe.yaml", *words]) for name, (command, _, words) in nights.items()]
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(steps)],
        cwd=martlet.folder,
        env={**martlet.environment, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"flow"')]
    return dict(zip(nights, map(_with_lines, records), strict=True))


# One process for all nights spares each of them the imports; what they share is the store alone.
DRIVER = """
import json, shutil, sys
from flows.cli import main

for name, words in json.loads(sys.argv[1]):
    shutil.copyfile(name, "rows.jsonl")
    code = main([*words, "--json"])
    if code:
        sys.exit(code)
"""


def _with_lines(record: dict[str, Any]) -> dict[str, Any]:
    return {**record, "lines": {f"{line['stage']} {line['label']}".strip(): line for line in record["stages"]}}


@pytest.mark.slow
@pytest.mark.server
def test_the_first_run_publishes(nights: dict[str, Any], hub: HubState) -> None:
    lines = nights["first"]["lines"]
    assert lines["push_to_hub"]["status"] == "ran"
    assert lines["evaluate former"]["reason"] == "there is no model before this one"
    published = [name for name, night in nights.items() if night["lines"]["push_to_hub"]["status"] == "ran"]
    assert published[:2] == ["first", "better"]
    assert len(hub.repositories["me/nightly"].messages) == len(published)
    assert "evaluation/report.json" in hub.repositories["me/nightly"].files


@pytest.mark.slow
@pytest.mark.server
def test_nothing_has_changed_so_nothing_is_done(nights: dict[str, Any]) -> None:
    run = nights["unchanged"]
    statuses = {title: line["status"] for title, line in run["lines"].items()}
    nothing = {"quantize", "evaluate former", "push_to_hub"}
    assert statuses == {title: "skipped" if title in nothing else "cached" for title in statuses}
    assert run["lines"]["push_to_hub"]["reason"].startswith(
        f"nothing has changed since run {nights['first']['run'][:8]}"
    )
    assert run["seconds"] < 5
    assert run["cost"]["seconds"] == 0


@pytest.mark.slow
@pytest.mark.server
def test_a_plan_says_what_is_not_decided_yet(nights: dict[str, Any]) -> None:
    lines = nights["planned"]["lines"]
    assert {title: lines[title]["status"] for title in ("download", "preprocess", "train", "evaluate former")} == {
        "download": "cached",
        "preprocess": "run",
        "train": "run",
        "evaluate former": "run",
    }
    assert lines["push_to_hub"]["status"] == "unknown"
    assert lines["push_to_hub"]["reason"].startswith("runs if eval_loss is better than that of run ")


@pytest.mark.slow
@pytest.mark.server
def test_a_model_that_is_worse_on_the_same_rows_is_not_published(nights: dict[str, Any]) -> None:
    lines = nights["worse"]["lines"]
    new, former = (lines[f"evaluate {label}"]["metrics"] for label in ("new", "former"))
    assert lines["train"]["status"] == "ran"
    assert new["eval_loss"] > former["eval_loss"]
    assert new["num_tokens"] == former["num_tokens"]
    figures = f"{new['eval_loss']:.4f}, and {former['eval_loss']:.4f}"
    name = f"run {nights['first']['run'][:8]}"
    assert lines["push_to_hub"]["reason"] == f"not better: eval_loss {figures} of {name}"
    again = nights["worse again"]
    assert {line["status"] for line in again["lines"].values()} == {"cached", "skipped"}
    assert again["lines"]["push_to_hub"]["reason"] == lines["push_to_hub"]["reason"]


@pytest.mark.slow
@pytest.mark.server
def test_a_model_that_is_better_than_the_last_published_one_is_published(nights: dict[str, Any]) -> None:
    lines = nights["better"]["lines"]
    first = nights["first"]["lines"]["evaluate new"]["metrics"]["eval_loss"]
    assert lines["evaluate former"]["metrics"]["eval_loss"] == first
    assert lines["evaluate new"]["metrics"]["eval_loss"] < first
    assert lines["push_to_hub"]["status"] == "ran"


@pytest.mark.slow
@pytest.mark.server
def test_training_goes_on_from_the_adapter_that_was_published(nights: dict[str, Any], martlet: Martlet) -> None:
    better, after = nights["better"]["lines"]["train"], nights["from published"]["lines"]["train"]
    stored = LocalStore(martlet.folder / "store").run(nights["from published"]["run"])
    [line] = [line for line in stored["stages"] if line["stage"] == "train"]
    assert line["inputs"]["adapter"] == better["artifact"]
    assert after["metrics"]["first_loss"] < better["metrics"]["first_loss"] - 0.5
    again = nights["from published again"]["lines"]
    assert again["train"]["status"] == "cached"
    assert again["train"]["artifact"] == after["artifact"]


# --- which run counts, from records alone


def ref(store: Store, folder: Path, name: str, kind: Any = "model") -> ArtifactRef:
    place = folder / name
    place.mkdir()
    (place / "content").write_text(name)
    return store.put(place, kind)


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    return {"model": "M", "dataset": ["rows.jsonl"], "val_dataset": ["held.jsonl"]}


def save(store: Store, folder: Path, name: str, given: dict[str, Any], **facts: Any) -> ArtifactRef:
    """Keeps the record of a run whose new model has the loss `new`; answers that model."""
    model, adapter = ref(store, folder, f"model-{name}"), ref(store, folder, f"adapter-{name}", "adapter")
    tokens = facts.get("tokens") or ref(store, folder, f"tokens-{name}", "tokens")
    inputs = {"tokens": tokens.to_json()}
    if facts.get("start"):
        inputs["adapter"] = facts["start"].to_json()
    done = {"label": "", "status": "ran", "metrics": {}, "artifact": adapter.to_json(), "inputs": {}}
    stages = [{**done, "stage": "train", "inputs": inputs}]
    for label in ("new", "former"):
        if label in facts:
            measured = {"metrics": {"eval_loss": facts[label]}, "inputs": {"model": model.to_json()}}
            stages.append({**done, "stage": "evaluate", "label": label, **measured})
    stages.append({**done, "stage": "push_to_hub", "status": "ran" if facts.get("pushed") else "skipped"})
    store.save_run({"id": name, "run": name, "flow": "nightly-retrain", "arguments": given, "stages": stages})
    return model


def arguments(given: dict[str, Any], **more: Any) -> NightlyRetrainArguments:
    return NightlyRetrainArguments(**given, **more)


def test_the_last_model_is_the_one_that_was_accepted(tmp_path: Path, given: dict[str, Any]) -> None:
    store = open_store()
    assert find_last(arguments(given), store) is None
    accepted = save(store, tmp_path, "one", given, new=2.0)
    save(store, tmp_path, "two", given, new=2.5, former=2.0)
    save(store, tmp_path, "three", given)  # failed before it was measured
    save(store, tmp_path, "four", {**given, "dataset": ["other.jsonl"]}, new=1.0)
    last = find_last(arguments(given), store)
    assert last is not None
    assert (last.model, last.name) == (accepted, "run one")
    better = save(store, tmp_path, "five", given, new=1.5, former=2.0)
    last = find_last(arguments(given), store)
    assert last is not None
    assert last.model == better


def test_where_a_run_publishes_only_what_was_published_counts(tmp_path: Path, given: dict[str, Any]) -> None:
    store = open_store()
    given = {**given, "hub_model_id": "me/m"}
    published = save(store, tmp_path, "one", given, new=2.0, pushed=True)
    save(store, tmp_path, "two", given, new=1.0, former=2.0)
    last = find_last(arguments(given, push_to_hub=True), store)
    assert last is not None
    assert last.model == published


def test_a_model_that_is_gone_is_said_and_not_passed_over(tmp_path: Path, given: dict[str, Any]) -> None:
    store = open_store()
    model = save(store, tmp_path, "one", given, new=2.0)
    [tree] = [path for path in (Path(store.location) / "trees").rglob("*") if model.digest[7:30] in path.name]
    tree.unlink()
    with pytest.raises(UnknownReference, match="the model of run one, which a new one has to beat, is no longer"):
        find_last(arguments(given), store)
    assert find_last(arguments(given, former_model=str(tmp_path)), store) is None


def test_rows_that_were_trained_on_before_start_where_they_started(tmp_path: Path, given: dict[str, Any]) -> None:
    store = open_store()
    first, second, third = (Known(ref(store, tmp_path, name, "tokens"), {}) for name in ("t1", "t2", "t3"))
    save(store, tmp_path, "one", given, new=2.0, tokens=first.artifact)
    last = find_last(arguments(given), store)
    assert last is not None
    assert find_start(arguments(given), store, first, last) is None
    assert find_start(arguments(given), store, second, last) == last.adapter
    assert find_start(arguments(given), store, None, last) == last.adapter
    save(store, tmp_path, "two", given, new=1.0, former=2.0, tokens=second.artifact, start=last.adapter)
    newest = find_last(arguments(given), store)
    assert newest is not None
    assert newest.adapter != last.adapter
    assert find_start(arguments(given), store, second, newest) == last.adapter
    assert find_start(arguments(given), store, third, newest) == newest.adapter


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"val_dataset": [], "split_dataset_ratio": 0}, "nothing tells the new model from the former one"),
        ({"retrain_from": "published", "train_type": "full"}, "goes on from an adapter: drop `--train_type full`"),
        ({"compare_by": "general_mcq_acc"}, "add its `--eval_dataset`"),
        ({"retrain_from": "scratch"}, "--retrain_from"),
    ],
)
def test_arguments_that_cannot_work(more: dict[str, Any], said: str, given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentsError) as caught:
        NightlyRetrainArguments(**{**given, **more})
    assert said in str(caught.value)
