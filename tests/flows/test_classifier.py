"""What a flow plans for a classifier: whatever measures or rounds models that write is left out, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.pipeline import get_pipeline
from flows.plan import plan
from flows.sweep.trials import make_trials
from stages.arguments import NightlyRetrainArguments, SftThenExportArguments
from stages.artifacts.store import LocalStore
from stages.errors import ArgumentsError


@pytest.mark.parametrize(("flow", "train_type"), [("sft-then-export", "full"), ("sft-then-evaluate", "lora")])
def test_a_classifier_is_measured_by_training(tmp_path: Path, tiny_model: Path, flow: str, train_type: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [{"role": "user", "content": "red"}], "label": 1}) + "\n")
    given = {"model": str(tiny_model), "dataset": [str(rows)], "split_dataset_ratio": 0.5}
    arguments = SftThenExportArguments(**given, num_labels=2, train_type=train_type)
    lines = {line.stage: line for line in plan(get_pipeline(flow), arguments, LocalStore(tmp_path / "store"))}
    assert lines["train"].status == "run"
    assert lines["evaluate"].status == "skipped"
    assert lines["evaluate"].reason.endswith("is measured by train: eval_acc")


def test_trials_are_compared_by_accuracy() -> None:
    base: dict[str, Any] = {"model": "m", "dataset": ["rows.jsonl"], "num_labels": 2, "split_dataset_ratio": 0.5}
    for flow in ("sft", "sft-then-export"):
        assert len(make_trials(flow, base, {"lora_rank": [4, 8]}, "eval_acc")) == 2
    with pytest.raises(ArgumentsError, match=r"perplexity is not measured by .*\. Choose from: eval_acc, eval_loss"):
        make_trials("sft-then-export", base, {"lora_rank": [4, 8]}, "perplexity")
    without = {**base, "eval_strategy": "no", "val_dataset": ["rows.jsonl"], "split_dataset_ratio": 0.0}
    with pytest.raises(ArgumentsError, match="eval_acc is measured by training only if it validates"):
        make_trials("sft-then-export", without, {"lora_rank": [4, 8]}, "eval_acc")


REFUSED: list[tuple[type[Any], dict[str, Any], str]] = [
    (SftThenExportArguments, {"quant_method": "bnb", "quant_bits": 4}, "`--quant_method bnb` is for models that write"),
    (SftThenExportArguments, {"eval_dataset": ["general_qa:q.jsonl"]}, "`--eval_dataset` asks for answers"),
    (
        NightlyRetrainArguments,
        {"split_dataset_ratio": 0.5},
        "`--num_labels` trains a classifier, and what a retraining",
    ),
]


@pytest.mark.parametrize(("arguments", "given", "message"), REFUSED)
def test_what_is_for_models_that_write(arguments: type[Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        arguments(model="m", dataset=["rows.jsonl"], num_labels=2, **given)
    assert str(caught.value).startswith(message)
