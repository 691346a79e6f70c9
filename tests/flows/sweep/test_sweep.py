"""Sweeps: their command line, what they refuse before anything runs, and real ones that share what they can."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from flows.metrics import is_better
from flows.sweep.axes import read_axes
from flows.sweep.comparison import draw_comparison, print_comparison
from flows.sweep.trials import Row, SweepRecord, axes_of, best_of, make_trials
from stages.arguments import SftArguments
from stages.artifacts.store import LocalStore
from stages.errors import ArgumentsError
from tests.conftest import alpaca_rows
from tests.flows.conftest import Martlet, api

RECIPE = """\
flow: {flow}
model: {model}
dataset: [rows.jsonl]
split_dataset_ratio: 0.2
lora_rank: 4
max_steps: 2
save_steps: 2
logging_steps: 1
learning_rate: 1e-3
per_device_train_batch_size: 2
max_length: 128
"""
PNG = b"\x89PNG\r\n"


def words(text: str) -> list[str]:
    """A command line; `|` stands between words."""
    return text.split("|")


@pytest.mark.parametrize(
    ("line", "fixed", "axes"),
    [
        ("--lora_rank|8|16|--seed|1", {"seed": "1"}, {"lora_rank": ["8", "16"]}),
        ("--learning-rate|1e-4|-1", {}, {"learning_rate": ["1e-4", "-1"]}),
        ("--use_dora|true|false|--packing", {"packing": True}, {"use_dora": ["true", "false"]}),
        ("--target_modules|q_proj|v_proj", {"target_modules": ["q_proj", "v_proj"]}, {}),
        ("--target_modules|a b|c d", {}, {"target_modules": [["a", "b"], ["c", "d"]]}),
        ('--target_modules|["a"]|["c", "d"]', {}, {"target_modules": [["a"], ["c", "d"]]}),
        ("--dataset|my rows.jsonl", {"dataset": ["my rows.jsonl"]}, {}),
        ("--system|none|be brief", {}, {"system": [None, "be brief"]}),
    ],
)  # fmt: skip
def test_several_values_are_an_axis(line: str, fixed: dict[str, Any], axes: dict[str, Any]) -> None:
    assert read_axes(words(line), SftArguments) == (fixed, axes)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--lora_rnk|8|16", "unknown option --lora_rnk. Did you mean --lora_rank?"),
        ("--lora_rank|8|--lora_rank|16", "--lora_rank is given twice"),
        ("--lora_rank|8|16|8", "--lora_rank has the value 8 twice"),
        ("--target_modules|q_proj v_proj|all-linear", "'all-linear' has no space and others have"),
        ('--target_modules|["q_proj"]|v_proj', "--target_modules v_proj: not a JSON list"),
        ("--dataset|my rows.jsonl|your rows.jsonl", "'my rows.jsonl' is a file, not a list"),
        ("8|16", "unexpected 8"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my rows.jsonl").write_text("{}")
    with pytest.raises(ArgumentsError) as caught:
        read_axes(words(line), SftArguments)
    assert said in str(caught.value)


def test_every_combination_is_a_trial() -> None:
    base = {"model": "M", "dataset": ["d.jsonl"], "split_dataset_ratio": 0.1, "lora_rank": 2}
    trials = make_trials("sft", base, {"learning_rate": ["1e-4", "2e-4"], "lora_rank": ["8", "16"]}, "eval_loss")
    assert [trial.title for trial in trials][1:3] == [
        "learning_rate 1e-4 · lora_rank 16",
        "learning_rate 2e-4 · lora_rank 8",
    ]
    arguments: list[Any] = [trial.arguments for trial in trials]
    assert [(a.learning_rate, a.lora_rank) for a in arguments] == [(1e-4, 8), (1e-4, 16), (2e-4, 8), (2e-4, 16)]
    assert axes_of(trials) == {"learning_rate": [1e-4, 2e-4], "lora_rank": [8, 16]}
    assert len({trial.folder for trial in trials}) == 4


@pytest.fixture
def user(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, rows and recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(20)))
    (tmp_path / "sft.yaml").write_text(RECIPE.format(flow="sft", model=tiny_model))
    (tmp_path / "export.yaml").write_text(RECIPE.format(flow="sft-then-export", model=tiny_model))
    (tmp_path / "quant.yaml").write_text(f"flow: export\nmodel: {tiny_model}\nquant_method: bnb\nquant_bits: 8\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "needs a recipe first"),
        ("nowhere.yaml|--lora_rank|8|16", "nowhere.yaml: no such recipe"),
        ("quant.yaml|--quant_bits|4|8", "a sweep compares trainings, not export"),
        ("sft.yaml", "nothing varies"),
        ("sft.yaml|--lora_rank|8", "nothing varies"),
        ("sft.yaml|--lora_rnk|8|16", "unknown option --lora_rnk. Did you mean --lora_rank?"),
        ("sft.yaml|--seed|1|2|--lora_rank|8|0", "seed 1 · lora_rank 0: --lora_rank 0: must be"),
        ("sft.yaml|--learning_rate|1e-3|0.001", "two combinations are the same"),
        ("sft.yaml|--logging_steps|1|2", "--logging_steps changes nothing that a sweep compares"),
        ("export.yaml|--quant_n_samples|4|8", "--quant_n_samples changes nothing that a sweep compares"),
        ("sft.yaml|--lora_rank|8|16|--metric|eval_los", "eval_los is not measured by sft. Did you mean eval_loss?"),
        ("sft.yaml|--lora_rank|8|16|--metric|perplexity", "is not measured by sft. Choose from"),
        ("sft.yaml|--lora_rank|8|16|--split_dataset_ratio|0", "--metric eval_loss needs held-out rows"),
        ("sft.yaml|--dataset|rows.jsonl nowhere.jsonl|rows.jsonl rows.jsonl", "dataset rows.jsonl nowhere.jsonl"),
        ("sft.yaml|--lora_rank|8|16|--export_best", "--export_best needs a recipe of sft-then-export"),
        ("export.yaml|--lora_rank|8|16|--export_best|maybe", "--export_best maybe: must be true or false"),
        ("export.yaml|--lora_rank|8|16|--metric|a|b", "--metric takes one value"),
        ("sft.yaml|--lora_rank|8|16|--run_on|moon", "--run_on moon"),
        ("sft.yaml|--lora_rank|8|16|--run_on|workers", "--run_on workers needs a Prefect server"),
    ],
)  # fmt: skip
def test_one_line_and_exit_2_before_anything_runs(
    line: str, said: str, user: Path, own_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *(words(line) if line else [])]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.startswith("error: ")
    assert len(captured.err.splitlines()) == 1
    assert not (user / "output").exists()
    assert list(own_store.glob("actions/*")) == []


@pytest.mark.parametrize(
    ("new", "old", "metric", "better"),
    [
        (1.0, 2.0, "eval_loss", True),
        (2.0, 1.0, "perplexity", False),
        (0.8, 0.7, "general_mcq_acc", True),
        (1.0, 1.0, "eval_loss", False),
        (math.nan, 1.0, "eval_loss", False),
        (9.0, math.nan, "eval_loss", True),
    ],
)
def test_which_figure_is_better(new: float, old: float, metric: str, better: bool) -> None:
    assert is_better(new, old, metric) is better


def sweep_record(values: list[float | None], ranks: list[int], metric: str = "eval_loss") -> SweepRecord:
    rows = [
        Row({"learning_rate": rate, "lora_rank": rank}, f"learning_rate {rate} · lora_rank {rank}", "0123456789", True)
        for rate in (1e-4, 1e-2)
        for rank in ranks
    ]
    for row, value in zip(rows, values, strict=True):
        row.ok, row.metrics = value is not None, {} if value is None else {metric: value}
        row.error = "train failed" if value is None else None
    return SweepRecord("1", "sft", {"learning_rate": [1e-4, 1e-2], "lora_rank": ranks}, metric, rows=rows)


def test_the_best_is_never_one_that_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = sweep_record([2.0, None, 1.5, 1.75], [4, 8])
    assert record.best is record.rows[2]
    assert best_of(record.rows, "train_loss") is None
    assert draw_comparison(record, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(PNG)
    print_comparison(record)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["0.01", "4", "1.5000", "←"]
    assert "failed: train failed" in lines[4]
    assert SweepRecord.from_store(json.loads(json.dumps(record.to_store()))).to_json() == record.to_json()


def test_nothing_is_drawn_or_best_if_all_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = sweep_record([None, None], [4])
    assert not draw_comparison(record, tmp_path / "sweep.png")
    assert record.to_json()["best"] is None
    print_comparison(record)
    assert "none: no run has measured eval_loss" in capsys.readouterr().out


@pytest.fixture(scope="module")
def martlet(tmp_path_factory: pytest.TempPathFactory, prefect_environment: dict[str, str], tiny_model: Path) -> Martlet:
    folder = tmp_path_factory.mktemp("sweeper")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(40)))
    (folder / "sft.yaml").write_text(RECIPE.format(flow="sft", model=tiny_model))
    quantized = "quant_method: bnb\nquant_bits: 8\n"
    (folder / "export.yaml").write_text(RECIPE.format(flow="sft-then-export", model=tiny_model) + quantized)
    return Martlet({**prefect_environment, "MARTLET_STORE": str(folder / "store")}, folder)


def statuses(run: dict[str, Any]) -> dict[str, str]:
    return {f"{stage['stage']} {stage['label']}".strip(): stage["status"] for stage in run["stages"]}


@pytest.mark.slow
@pytest.mark.server
def test_a_sweep_with_a_combination_that_fails_and_the_export_of_the_best(martlet: Martlet) -> None:
    line = "export.yaml|--learning_rate|1e-3|1e-2|--target_modules|q_proj v_proj|q_proj nonesuch|--export_best|true"
    record = martlet.json("sweep", *words(line), exit_code=1)
    assert (record["flow"], record["ok"]) == ("sweep", False)
    assert [run["ok"] for run in record["runs"]] == [True, False, True, False]
    assert record["runs"][0]["parameters"] == {"learning_rate": 1e-3, "target_modules": ["q_proj", "v_proj"]}
    assert "nonesuch" in record["runs"][1]["error"]
    shared = ("download", "preprocess", "tokenize")
    found = [[statuses(run)[stage] for stage in shared] for run in record["runs"]]
    assert found == [["ran"] * 3, *[["cached"] * 3] * 3]
    assert not any("quantize" in statuses(run) for run in record["runs"])
    losses = [record["runs"][place]["metrics"]["eval_loss"] for place in (0, 2)]
    assert record["best"]["eval_loss"] == min(losses)
    export = record["best"]["export"]
    assert {title: status for title, status in statuses(export).items() if status == "ran"} == {
        "quantize": "ran",
        "evaluate base": "ran",
        "evaluate quantized": "ran",
    }
    assert (Path(export["output_dir"]) / "checkpoint-2-bnb-int8" / "config.json").is_file()
    assert Path(record["picture"]).read_bytes().startswith(PNG)

    [parent] = api(martlet.environment, "flow_runs/filter", {"flow_runs": {"id": {"any_": [record["run"]]}}})
    assert parent["state"]["type"] == "FAILED"
    assert "2 of 4 failed" in parent["state"]["message"]
    children = {"flow_runs": {"parent_flow_run_id": {"any_": [record["run"]]}}}
    names = {run["name"] for run in api(martlet.environment, "flow_runs/filter", children)}
    assert "learning_rate 1e-3 · target_modules q_proj v_proj" in names
    assert len(names) == 5
    keys = {artifact["key"] for artifact in api(martlet.environment, "artifacts/latest/filter", {"limit": 200})}
    assert {"sweep-comparison", "sweep-picture"} <= keys


@pytest.mark.slow
@pytest.mark.server
def test_runs_that_start_together_compute_what_they_share_once(martlet: Martlet, tmp_path: Path) -> None:
    other = Martlet({**martlet.environment, "MARTLET_STORE": str(tmp_path / "store")}, martlet.folder)
    running = [other.start("run", "sft.yaml", "--lora_rank", rank) for rank in ("2", "3")]
    assert [process.wait(240) for process in running] == [0, 0]
    runs = LocalStore(tmp_path / "store").runs()
    assert len(runs) == 2
    for stage in ("download", "preprocess", "tokenize"):
        assert sorted(statuses(run)[stage] for run in runs) == ["cached", "ran"], stage
    assert [statuses(run)["train"] for run in runs] == ["ran", "ran"]


@pytest.fixture(scope="module")
def worker(martlet: Martlet) -> Iterator[None]:
    """`martlet setup`, and one worker for both queues."""
    martlet("setup", "--gpus", "1")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "martlet"]
    with (martlet.folder / "worker.log").open("w") as log:
        process = subprocess.Popen(
            command, env=martlet.environment, cwd=martlet.folder, stdout=log, stderr=subprocess.STDOUT
        )
        yield
        process.terminate()
        process.wait(60)


@pytest.mark.slow
@pytest.mark.server
def test_on_workers_all_start_together_and_share_what_they_have_in_common(martlet: Martlet, worker: None) -> None:
    record = martlet.json("sweep", "sft.yaml", "--lora_rank", "2", "3", "--seed", "7", "--run_on", "workers")
    assert [run["ok"] for run in record["runs"]] == [True, True]
    for stage in ("download", "preprocess", "tokenize"):
        assert [statuses(run)[stage] for run in record["runs"]].count("ran") <= 1, stage
    assert [statuses(run)["train"] for run in record["runs"]] == ["ran", "ran"]
    assert record["best"]["eval_loss"] == min(run["metrics"]["eval_loss"] for run in record["runs"])
    ids = [run["run"] for run in record["runs"]]
    runs = api(martlet.environment, "flow_runs/filter", {"flow_runs": {"id": {"any_": ids}}})
    assert {run["name"] for run in runs} == {"lora_rank 2", "lora_rank 3"}
    assert all(run["deployment_id"] and run["parent_task_run_id"] for run in runs)
    starts = sorted(run["start_time"] for run in runs)
    assert starts[1] < min(run["end_time"] for run in runs)
