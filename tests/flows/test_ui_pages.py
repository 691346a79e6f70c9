"""The Prefect UI as a user sees it, in a browser: the form, the run's graph and what stands behind it."""

from __future__ import annotations

import io
import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from playwright.sync_api import expect

from stages.arguments import SftThenExportArguments
from stages.arguments.signature import MAIN
from stages.arguments.unsupported import unsupported_values
from tests.conftest import alpaca_rows
from tests.flows.conftest import Martlet, api, wait_for, wait_until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]

RECIPE = """\
flow: sft-then-export
model: {model}
dataset: [rows.jsonl]
split_dataset_ratio: 0.2
lora_rank: 4
max_steps: 100
logging_steps: 1
learning_rate: 1e-3
max_length: 128
gradient_checkpointing: false
eval_strategy: "no"
"""
TASKS = ["download", "preprocess", "tokenize", "train", "merge", "evaluate (base)", "evaluate (tuned)"]
GREEN = (33, 157, 75)
"""Of what is Completed, in the graph."""


class Ui:
    """Prefect's pages in one browser tab, and the API behind them."""

    def __init__(self, page: Any, environment: dict[str, str]) -> None:
        self.page = page
        self.environment = environment
        self.root = environment["PREFECT_API_URL"].removesuffix("/api")

    def open(self, path: str) -> Any:
        self.page.goto(f"{self.root}/v2/{path}")
        return self.page

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.root}/api/{path}", timeout=30) as response:
            return json.load(response)

    def artifacts(self, run: str) -> dict[str, dict[str, Any]]:
        """What a run shows, by key; a key that comes twice is a mistake."""
        found = api(self.environment, "artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}, "limit": 100})
        by_key = {artifact["key"]: artifact for artifact in found}
        assert len(by_key) == len(found), sorted(artifact["key"] for artifact in found)
        return by_key

    def open_artifact(self, run: str, key: str) -> Any:
        return self.open(f"artifacts/artifact/{self.artifacts(run)[key]['id']}")


@pytest.fixture(scope="module")
def martlet(tmp_path_factory: pytest.TempPathFactory, prefect_environment: dict[str, str], tiny_model: Path) -> Martlet:
    folder = tmp_path_factory.mktemp("ui")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(40)))
    (folder / "recipe.yaml").write_text(RECIPE.format(model=tiny_model))
    return Martlet({**prefect_environment, "MARTLET_STORE": str(folder / "store")}, folder)


@pytest.fixture(scope="module")
def moved(martlet: Martlet) -> list[float]:
    """What the bar of training showed while the first run went on, in the order of looking."""
    seen: list[float] = []
    body = {"artifacts": {"key": {"any_": ["train-progress"]}}, "sort": "CREATED_DESC", "limit": 1}
    of_others = {bar["id"] for bar in api(martlet.environment, "artifacts/filter", body)}
    running = martlet.start("run", "recipe.yaml", "--json")

    def look() -> bool:
        for bar in api(martlet.environment, "artifacts/filter", body):
            if bar["id"] in of_others:
                continue
            if bar["data"] not in seen[-1:]:
                seen.append(bar["data"])
        return running.poll() is not None

    wait_until(look, 180)
    assert running.returncode == 0
    return seen


@pytest.fixture(scope="module")
def first(martlet: Martlet, moved: list[float]) -> dict[str, Any]:
    """The run in which everything was computed."""
    return latest(martlet)


@pytest.fixture(scope="module")
def second(martlet: Martlet, first: dict[str, Any]) -> dict[str, Any]:
    """The run in which everything was found."""
    martlet("run", "recipe.yaml")
    return latest(martlet)


def latest(martlet: Martlet) -> dict[str, Any]:
    run: dict[str, Any] = api(martlet.environment, "flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]
    return run


@pytest.fixture(scope="module")
def ui(prefect_environment: dict[str, str]) -> Iterator[Ui]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        yield Ui(page, prefect_environment)
        browser.close()


@pytest.fixture(scope="module")
def deployment(prefect_environment: dict[str, str]) -> str:
    """The deployment of sft-then-export with the schema that `prefect deploy` gives it."""
    from prefect.utilities.callables import parameter_schema

    from flows.deployments import get_flow

    schema = parameter_schema(get_flow("sft_then_export")).model_dump_for_openapi()
    flow = api(prefect_environment, "flows/", {"name": "sft-then-export"})
    body = {"name": "form", "flow_id": flow["id"], "parameter_openapi_schema": schema, "enforce_parameter_schema": True}
    return str(api(prefect_environment, "deployments/", body)["id"])


def test_the_bar_moves(moved: list[float]) -> None:
    assert len(moved) >= 2
    assert moved == sorted(moved)
    assert moved[-1] == 100


def test_runs_are_told_apart_by_name_and_tags(ui: Ui, first: dict[str, Any]) -> None:
    assert first["name"] == "tiny-llama · rows · r4"
    assert {"model:tiny-llama", "data:rows"} <= set(first["tags"])
    page = ui.open("runs")
    page.get_by_role("link", name="tiny-llama · rows · r4").first.wait_for()
    page.get_by_text("model:tiny-llama").first.wait_for()


def test_the_graph_has_every_stage_and_its_arrows(ui: Ui, first: dict[str, Any]) -> None:
    graph = ui.get(f"flow_runs/{first['id']}/graph-v2")
    nodes = {node["id"]: node for _, node in graph["nodes"]}
    assert sorted(node["label"] for node in nodes.values()) == sorted(TASKS)
    parents = {node["label"]: {nodes[parent["id"]]["label"] for parent in node["parents"]} for node in nodes.values()}
    assert parents["train"] == {"download", "tokenize"}
    assert parents["evaluate (tuned)"] == {"merge", "tokenize"}
    shown = {node["label"]: {artifact["key"] for artifact in node["artifacts"]} for node in nodes.values()}
    assert shown["merge"] == {"merge"}
    assert shown["train"] == {"train", "train-progress"}
    assert {artifact["key"] for artifact in graph["artifacts"]} == {"summary", "model-card"}


def test_the_graph_is_drawn(ui: Ui, first: dict[str, Any]) -> None:
    from PIL import Image

    canvas = ui.open(f"runs/flow-run/{first['id']}").locator("canvas").first
    canvas.wait_for()

    def is_green(pixel: tuple[int, ...]) -> bool:
        return all(abs(have - want) < 30 for have, want in zip(pixel, GREEN, strict=False))

    def rows_with_bars() -> int:
        picture = Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")
        above_the_time_line = picture.crop((0, 0, picture.width, picture.height - 20))
        rows = (above_the_time_line.crop((0, y, picture.width, y + 1)) for y in range(above_the_time_line.height))
        return sum(any(is_green(color) for _, color in row.getcolors(picture.width) or []) for row in rows)

    wait_until(lambda: rows_with_bars() > 40, 30)


def test_hits_show_as_cached(ui: Ui, second: dict[str, Any]) -> None:
    graph = ui.get(f"flow_runs/{second['id']}/graph-v2")
    assert sorted(node["label"] for _, node in graph["nodes"]) == sorted(f"{task} · cached" for task in TASKS)
    page = ui.open(f"runs/flow-run/{second['id']}?tab=TaskRuns")
    expect(page.get_by_text("Cached", exact=True)).to_have_count(len(TASKS))


def test_training_shows_its_curve_and_what_it_took(ui: Ui, first: dict[str, Any]) -> None:
    page = ui.open_artifact(first["id"], "train")
    assert picture_width(page, "train_loss") == 900
    for words in ("training loss", "peak memory", "saved by the cache", "trained parameters"):
        page.get_by_role("cell", name=words, exact=True).wait_for()
    page.get_by_text("martlet artifacts show sha256:").wait_for()


def test_a_hit_has_the_pictures_too_and_says_what_it_saved(ui: Ui, second: dict[str, Any]) -> None:
    page = ui.open_artifact(second["id"], "train")
    assert picture_width(page, "train_loss") == 900
    saved = page.get_by_role("row").filter(has_text="saved by the cache").inner_text()
    assert " s, which it took on " in saved
    assert "0.00 s" not in saved
    page = ui.open_artifact(second["id"], "tokenize")
    assert picture_width(page, "token-lengths") > 600


def test_an_evaluation_shows_its_report(ui: Ui, first: dict[str, Any]) -> None:
    page = ui.open_artifact(first["id"], "evaluate-tuned")
    page.get_by_role("heading", name="Held-out rows").wait_for()
    page.get_by_role("columnheader", name="perplexity").wait_for()


def test_the_summary_leads_to_the_output(ui: Ui, first: dict[str, Any], second: dict[str, Any]) -> None:
    for run in (first, second):
        page = ui.open_artifact(run["id"], "summary")
        page.get_by_text("Output:").and_(page.locator("p")).wait_for()
        output = Path(page.locator("code").first.inner_text())
        assert (output / "checkpoint-100-merged" / "config.json").is_file()
        expect(page.get_by_role("row").filter(has_text="cached")).to_have_count(len(TASKS) if run is second else 0)
    page.get_by_text("push_to_hub: --push_to_hub was not given").wait_for()


def test_the_model_card_says_what_was_made_of_what(ui: Ui, first: dict[str, Any]) -> None:
    page = ui.open_artifact(first["id"], "model-card")
    for heading in ("Evaluation", "Base model", "Data", "Training", "Use", "Made by"):
        page.get_by_role("heading", name=heading, exact=True).wait_for()
    assert "4" in page.get_by_role("row").filter(has_text="lora_rank").inner_text()
    expect(page.get_by_role("row").filter(has_text="tokenize")).to_have_count(1)


def test_the_form_has_the_main_fields_first_with_choices(ui: Ui, deployment: str) -> None:
    page = ui.open(f"deployments/deployment/{deployment}/run")
    page.get_by_text("Parameters", exact=True).wait_for()
    page.get_by_text("train_type (Optional)").wait_for()
    labels = [text.removesuffix(" (Optional)") for text in page.locator("form label").all_inner_texts()]
    names = [label for label in labels if label in MAIN]
    assert names[:6] == ["model", "dataset", "use_hf", "model_revision", "train_type", "lora_rank"]
    assert len(names) == 40
    assert labels.index(names[-1]) - labels.index("model") == 39, "the main forty stand together"
    assert page.get_by_text('Property is type "None"').count() == 0
    refused = [
        name for name in SftThenExportArguments.model_fields if unsupported_values(name, "x", "sft-then-export") == []
    ]
    assert refused
    assert not set(refused) & set(labels)
    field = page.locator("div.group").filter(has=page.get_by_text("train_type (Optional)", exact=True)).last
    field.locator("fieldset button").first.click()
    page.get_by_role("option").first.wait_for()
    offered = get_args(SftThenExportArguments.model_fields["train_type"].annotation)
    taken = [value for value in offered if unsupported_values("train_type", value, "sft-then-export") is None]
    assert page.get_by_role("option").all_inner_texts() == taken
    page.keyboard.press("Escape")


def test_what_the_form_sends_is_what_was_filled_in(ui: Ui, deployment: str) -> None:
    def runs() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = api(
            ui.environment, "flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}}
        )
        return found

    page = ui.open(f"deployments/deployment/{deployment}/run")
    page.get_by_text("train_type (Optional)").wait_for()  # fields are laid anew when the schema has come
    page.get_by_label("model", exact=True).fill("org/M")
    page.locator("form textarea").nth(1).fill("rows.jsonl")
    page.get_by_label("lora_rank (Optional)").fill("16")
    # A server on a busy SQLite answers 503, which the page shows as a message and stays where it is.
    for _ in range(5):
        page.get_by_role("button", name="Submit").click()
        if wait_for(runs, 20):
            break
    sent = runs()[0]["parameters"]
    assert {name: sent[name] for name in ("model", "dataset", "lora_rank")} == {
        "model": "org/M",
        "dataset": "rows.jsonl",
        "lora_rank": 16,
    }
    assert None not in sent.values()
    assert "learning_rate" not in sent


def picture_width(page: Any, name: str) -> int:
    """How wide the picture itself is, once it is loaded; 0 if it is broken."""
    picture = page.get_by_alt_text(name)
    picture.wait_for()
    width: int = picture.evaluate("async image => { await image.decode(); return image.naturalWidth }")
    return width
