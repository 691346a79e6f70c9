"""Reports say what was measured, are the same bytes each time, and hold no score that was made up."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import EvaluateArguments, QuantizeArguments
from stages.artifacts.store import LocalStore
from stages.context import Context, NullReporter
from stages.environments import environments
from stages.errors import ArgumentsError, DataError, MissingPackage, ModelError, StageFailed
from stages.evaluate import STAGE, evaluate, prepare
from stages.quantize import quantize
from stages.run import run_stage
from tests.stages.training.tokens import write_arrow

QA_ROWS = [
    {"question": "what is the capital of France?", "answer": "Paris"},
    {"query": "hello", "response": "hello world"},
]
MCQ_ROWS = [{"question": "one two", "A": "three", "B": "red", "answer": "A"}]


class Recorder(NullReporter):
    """Keeps the report that is shown."""

    def __init__(self) -> None:
        self.reports: dict[str, str] = {}

    def markdown(self, name: str, text: str) -> None:
        self.reports[name] = text


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokens artifact whose validation file has nine rows, half of their tokens labelled."""
    import numpy as np

    folder = tmp_path_factory.mktemp("tokens")
    generator = np.random.default_rng(1)
    ids = [generator.integers(3, 384, generator.integers(10, 40)).tolist() for _ in range(9)]
    labels = [[-100] * (len(row) // 2) + row[len(row) // 2 :] for row in ids]
    write_arrow(folder / "validation.arrow", {"input_ids": ids, "labels": labels})
    (folder / "tokens.json").write_text("{}")
    return folder


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tmp_path: Path, inputs: dict[str, Path], **arguments: Any) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The metrics, the report, and what is shown."""
    folders = [tmp_path / name for name in ("out", "scratch", "attachments")]
    for folder in folders:
        folder.mkdir(parents=True)
    recorder = Recorder()
    context = Context(folders[1], folders[2], logging.getLogger("test"), recorder)
    metrics = evaluate(EvaluateArguments(**arguments), inputs, folders[0], context)
    text = (folders[0] / "report.md").read_text()
    assert recorder.reports == {"report": text}
    return metrics, json.loads((folders[0] / "report.json").read_text()), text


def test_held_out_loss_is_reported(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    metrics, report, text = run(tmp_path, {"model": tiny_model, "tokens": tokens})
    assert list(metrics) == ["eval_loss", "perplexity", "num_tokens", "num_samples"]
    assert report["held_out"] == metrics
    assert report["model"]["quantization"] == "none"
    assert metrics["num_samples"] == 9
    assert f"| {metrics['eval_loss']:.4f} |" in text


@pytest.mark.parametrize("bits", [4, 8])
def test_a_model_quantized_by_bitsandbytes_is_measured(
    bits: int, tmp_path: Path, tiny_model: Path, tokens: Path
) -> None:
    float_metrics, _, _ = run(tmp_path / "float", {"model": tiny_model, "tokens": tokens})
    small = tmp_path / "small"
    for name in ("small", "scratch", "attachments"):
        (tmp_path / name).mkdir()
    arguments = QuantizeArguments(quant_method="bnb", quant_bits=bits)
    quantize(arguments, {"model": tiny_model}, small, Context(tmp_path / "scratch", tmp_path / "attachments"))
    metrics, report, _ = run(tmp_path / "eval", {"model": small, "tokens": tokens})
    assert report["model"]["quantization"] == "bitsandbytes"
    assert metrics["num_tokens"] == float_metrics["num_tokens"]
    assert metrics["eval_loss"] != float_metrics["eval_loss"]
    assert metrics["eval_loss"] == pytest.approx(float_metrics["eval_loss"], abs=0.01)


def test_the_same_key_gives_the_same_report(store: LocalStore, tiny_model: Path, tokens: Path) -> None:
    inputs = {"model": tiny_model, "tokens": tokens}
    first = run_stage(STAGE, EvaluateArguments(), inputs, store=store)
    assert run_stage(STAGE, EvaluateArguments(), inputs, store=store, force=True).artifact == first.artifact
    assert first.artifact.kind == "report"
    assert run_stage(STAGE, EvaluateArguments(), inputs, store=store).status == "cached"


def test_rows_that_are_trained_on_are_not_read(
    store: LocalStore, tiny_model: Path, tokens: Path, tmp_path: Path
) -> None:
    """Another training file leaves the key as it is."""
    others = shutil.copytree(tokens, tmp_path / "others")
    (others / "train.arrow").write_bytes(b"whatever")
    first = run_stage(STAGE, EvaluateArguments(), {"model": tiny_model, "tokens": tokens}, store=store)
    assert run_stage(STAGE, EvaluateArguments(), {"model": tiny_model, "tokens": others}, store=store).key == first.key


def test_nothing_to_measure_with_is_refused(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    with pytest.raises(ArgumentsError, match="nothing to measure with"):
        run(tmp_path / "one", {"model": tiny_model})
    without = tmp_path / "without"
    without.mkdir()
    (without / "tokens.json").write_text("{}")
    with pytest.raises(DataError, match="no row is held out: raise `--split_dataset_ratio`"):
        run(tmp_path / "two", {"model": tiny_model, "tokens": without})


def test_rows_of_another_tokenizer_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    write_arrow(tmp_path / "validation.arrow", {"input_ids": [[5, 9999]], "labels": [[5, 9999]]})
    with pytest.raises(DataError, match="the token id 9999, the model knows 384"):
        run(tmp_path / "run", {"model": tiny_model, "tokens": tmp_path})


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment `evaluate` that counts as ready, and in which nothing can run."""
    python = tmp_path / "environments" / "evaluate" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 7\n")
    python.chmod(0o755)
    (python.parents[1] / ".complete").touch()
    monkeypatch.setenv("MARTLET_ENVIRONMENTS", str(tmp_path / "environments"))
    return python


def test_paths_become_inputs_and_leave_the_arguments(ready: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "qa.jsonl", QA_ROWS)
    prepared = prepare(EvaluateArguments(eval_dataset=[f"general_qa:{rows}", f"general_mcq:{tmp_path}"]))
    assert prepared.inputs == {"eval_data": (rows, tmp_path)}
    assert prepared.arguments.eval_dataset == ["general_qa:local::0", "general_mcq:local::1"]
    assert prepare(prepared.arguments).inputs == {}  # a rerun


def test_a_path_that_is_not_there_is_refused(ready: Path) -> None:
    with pytest.raises(DataError, match=r"general_qa:/nowhere\.jsonl: no such file"):
        prepare(EvaluateArguments(eval_dataset=["general_qa:/nowhere.jsonl"]))


def test_a_missing_environment_is_told_before_anything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARTLET_ENVIRONMENTS", str(tmp_path))
    with pytest.raises(MissingPackage, match="run `martlet env create evaluate`"):
        prepare(EvaluateArguments(eval_dataset=["general_qa:rows.jsonl"]))
    assert prepare(EvaluateArguments()).inputs == {}  # held-out loss needs none


def test_a_malformed_row_is_told_before_the_model_is_loaded(tmp_path: Path, tiny_model: Path) -> None:
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    write_rows(tmp_path / "data" / "0" / "rows.jsonl", [{"question": "q"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:1: general_qa needs"):
        run(tmp_path / "run", {"model": broken, "eval_data": tmp_path / "data"}, eval_dataset=["general_qa:local::0"])


def test_a_model_that_cannot_chat_is_told_before_its_weights_are_read(tmp_path: Path, tiny_model: Path) -> None:
    mute = shutil.copytree(tiny_model, tmp_path / "mute")
    (mute / "chat_template.jinja").unlink()
    (mute / "model.safetensors").unlink()
    write_rows(tmp_path / "data" / "0" / "rows.jsonl", QA_ROWS)
    with pytest.raises(ModelError, match="the model has none"):
        run(tmp_path / "run", {"model": mute, "eval_data": tmp_path / "data"}, eval_dataset=["general_qa:local::0"])


def test_an_evalscope_that_breaks_down_is_no_score(ready: Path, tmp_path: Path, tiny_model: Path) -> None:
    write_rows(tmp_path / "data" / "0" / "rows.jsonl", QA_ROWS)
    inputs = {"model": tiny_model, "eval_data": tmp_path / "data"}
    with pytest.raises(StageFailed, match="evalscope ended with exit code 7"):
        run(tmp_path / "run", inputs, eval_dataset=["general_qa:local::0"])


needs_evalscope = pytest.mark.skipif(
    next(e.state for e in environments() if e.name == "evaluate") != "ready",
    reason="needs the environment evaluate: `martlet env create evaluate`",
)


@pytest.mark.environment
@pytest.mark.slow
@needs_evalscope
def test_benchmarks_are_run_by_evalscope(store: LocalStore, tiny_model: Path, tokens: Path, tmp_path: Path) -> None:
    qa = write_rows(tmp_path / "capitals.jsonl", QA_ROWS)
    mcq = write_rows(tmp_path / "mcq" / "sums_val.jsonl", MCQ_ROWS)
    arguments = EvaluateArguments(eval_dataset=[f"general_qa:{qa}", f"general_mcq:{mcq.parent}"], max_new_tokens=8)
    inputs = {"model": tiny_model, "tokens": tokens}
    first = run_stage(STAGE, arguments, inputs, store=store)
    assert {"eval_loss", "general_qa_rouge_l_recall", "general_qa_bleu_1", "general_mcq_accuracy"} <= set(first.metrics)
    again = run_stage(STAGE, arguments, inputs, store=store, force=True)
    assert again.artifact == first.artifact
    assert again.metrics == first.metrics
    assert first.attachments is not None
    store.copy_out(first.attachments, tmp_path / "attachments")
    answers = list((tmp_path / "attachments").rglob("predictions/*/general_qa_capitals.jsonl"))
    assert len(answers) == 1
    assert len(answers[0].read_text().splitlines()) == 2


@pytest.mark.environment
@pytest.mark.slow
@needs_evalscope
def test_a_question_that_fails_is_no_zero(tmp_path: Path, tiny_model: Path) -> None:
    """It would count as a wrong answer otherwise."""
    write_rows(tmp_path / "data" / "0" / "rows.jsonl", [*QA_ROWS, {"question": "sky sea " * 300, "answer": "sum"}])
    inputs = {"model": tiny_model, "eval_data": tmp_path / "data"}
    with pytest.raises(StageFailed, match="the model takes 256"):
        run(tmp_path / "run", inputs, eval_dataset=["general_qa:local::0"], max_new_tokens=4)
