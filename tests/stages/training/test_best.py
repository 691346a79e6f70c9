"""Which checkpoint is best by what was measured, that it is kept, and that a run ends where nothing becomes better."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError
from stages.training.best import Best, best_by
from stages.training.early_stopping import validations_since_best
from tests.stages.test_train import tokens as tokens
from tests.stages.training.lab import SHORT, FailsAtTheEnd, Lab, PowerCut, cut_off_and_whole, digests
from tests.stages.training.later import write_eager
from tests.stages.training.taught import ROWS, predictions, scores_by_hand

LEARNS = SHORT | {
    "max_steps": 32,
    "save_steps": 4,
    "train_type": "full",
    "learning_rate": 2e-2,
    "gradient_accumulation_steps": 1,
    "per_device_train_batch_size": 3,
    "per_device_eval_batch_size": 4,
}
RUINED = SHORT | {"max_steps": 20, "learning_rate": 0.5, "lr_scheduler_type": "constant", "early_stop_interval": 2}
"""Such a learning rate makes the model worse and worse."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return write_eager(tmp_path_factory.mktemp("tokens") / "tokens", ROWS, ROWS[:4], tiny_model)


@pytest.fixture
def learning(tmp_path: Path, tiny_model: Path, answers: Path) -> Lab:
    return Lab(tmp_path, tiny_model, answers)


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path, tokens: Path) -> Lab:
    return Lab(tmp_path, tiny_model, tokens)


def validations(lab: Lab, name: str) -> dict[int, float]:
    """What each validation has measured, by its step."""
    lines = map(json.loads, (lab.attachments / "logging.jsonl").read_text().splitlines())
    return {int(line["global_step/max_steps"].split("/")[0]): line[name] for line in lines if name in line}


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"train_sampling_strategy": "group_by_length", "save_total_limit": 1}])
def test_the_best_by_rouge_is_the_result(learning: Lab, more: dict[str, Any]) -> None:
    """Computed from what was written down, by the packages; the loss goes on falling meanwhile."""
    generated = {"predict_with_generate": True, "max_new_tokens": 8, "load_best_model_at_end": True}
    metrics = learning.run(LEARNS | generated | more)
    lines = predictions(learning)
    by_step = {
        step: scores_by_hand([(one["response"], one["label"]) for one in lines if one["global_step"] == step])[
            "rouge-l"
        ]
        for step in range(4, 33, 4)
    }
    best = max(by_step, key=lambda step: round(by_step[step], 6))  # the first of equals
    assert validations(learning, "eval_rouge-l") == pytest.approx(by_step, abs=1e-6)
    assert (metrics["best_step"], metrics["best_metric"]) == (best, pytest.approx(by_step[best], abs=1e-6))
    losses = validations(learning, "eval_loss")
    assert best != min(losses, key=lambda step: losses[step])
    kept = sorted(int(path.name.split("-")[1]) for path in learning.attachments.glob("checkpoint-*"))
    assert kept == sorted({best, 32}) if more else kept == list(range(4, 33, 4))
    weights = "model.safetensors"
    assert digests(learning.attachments / f"checkpoint-{best}")[weights] == digests(learning.out)[weights]
    assert best != 32 or digests(learning.attachments / "checkpoint-28")[weights] != digests(learning.out)[weights]


@pytest.mark.slow
def test_less_is_better_if_that_is_said(learning: Lab) -> None:
    given = {"load_best_model_at_end": True, "metric_for_best_model": "token_acc", "greater_is_better": False}
    metrics = learning.run(LEARNS | given | {"max_steps": 12})
    found = validations(learning, "eval_token_acc")
    assert metrics["best_metric"] == min(found.values()) < max(found.values())


def test_a_run_ends_where_nothing_becomes_better(lab: Lab) -> None:
    metrics = lab.run(RUINED)
    losses = validations(lab, "eval_loss")
    best = min(losses, key=lambda step: losses[step])
    assert list(losses) == list(range(2, best + 2 * 2 + 1, 2))
    assert metrics["global_step"] == best + 4 < 20
    assert metrics["best_step"] == best
    assert digests(lab.attachments / f"checkpoint-{best + 4}").items() >= digests(lab.out).items()


def test_a_run_that_becomes_better_does_not_end(learning: Lab) -> None:
    metrics = learning.run(SHORT | {"early_stop_interval": 1, "learning_rate": 1e-3})
    assert metrics["global_step"] == 6


@pytest.mark.slow
def test_it_may_end_with_the_best(lab: Lab) -> None:
    metrics = lab.run(RUINED | {"load_best_model_at_end": True, "save_total_limit": 1})
    assert digests(lab.attachments / f"checkpoint-{metrics['best_step']}").items() >= digests(lab.out).items()
    kept = {path.name for path in lab.attachments.glob("checkpoint-*")}
    assert kept == {f"checkpoint-{metrics[name]}" for name in ("best_step", "global_step")}


@pytest.mark.parametrize("cut", [4.5, "end"])
def test_cut_off_before_it_ends(tmp_path: Path, tiny_model: Path, tokens: Path, cut: float | str) -> None:
    """What was counted before goes on being counted; an end that had come is not forgotten."""
    _, _, metrics = cut_off_and_whole(tmp_path, tiny_model, tokens, RUINED | {"early_stop_interval": 3}, cut)
    assert metrics["global_step"] < 20


@pytest.mark.slow
def test_cut_off_between_a_validation_and_its_checkpoint(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    """The run ends in a step without a checkpoint: that step is done again."""
    arguments = RUINED | {"save_steps": 5}
    whole, lab = Lab(tmp_path / "whole", tiny_model, tokens), Lab(tmp_path / "cut", tiny_model, tokens)
    undisturbed = whole.run(arguments | {"eval_steps": 2})
    with pytest.raises(PowerCut):
        lab.run(arguments | {"eval_steps": 2}, FailsAtTheEnd())
    assert lab.run(arguments | {"eval_steps": 2}) == undisturbed
    assert digests(lab.out) == digests(whole.out)


def test_only_what_is_better_is_saved(lab: Lab) -> None:
    given = {"save_strategy": "best", "metric_for_best_model": "loss", "eval_steps": 2, "eval_strategy": "steps"}
    metrics = lab.run(RUINED | given | {"max_steps": 6, "early_stop_interval": 9})
    losses = validations(lab, "eval_loss")
    better = [step for step in losses if all(losses[step] < losses[other] for other in losses if other < step)]
    kept = sorted(int(path.name.split("-")[1]) for path in lab.attachments.glob("checkpoint-*"))
    assert kept == better
    assert metrics["best_step"] == better[-1]


@pytest.mark.parametrize(
    ("values", "greater", "since"),
    [
        ([], True, 0),
        ([3], True, 0),
        ([3, 2, 1], True, 2),
        ([3, 2, 1], False, 0),
        ([1, 2, 2, 2], True, 2),
        ([1, float("nan"), float("nan")], False, 2),
        ([5, 1, 2, 0.5, 0.7], False, 1),
    ],
)
def test_how_long_ago_the_best_was(values: list[float], greater: bool, since: int) -> None:
    history = [entry for value in values for entry in ({"loss": 9.0}, {"eval_x": value})]
    assert validations_since_best(history, Best("x", greater)) == since


GENERATED = {"predict_with_generate": True}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"load_best_model_at_end": True}, Best("loss", False)),
        ({"load_best_model_at_end": True} | GENERATED, Best("rouge-l", True)),
        ({"load_best_model_at_end": True, "metric": "acc"} | GENERATED, Best("loss", False)),
        ({"early_stop_interval": 3}, Best("loss", False)),
        ({"metric_for_best_model": "eval_loss"}, Best("loss", False)),
        ({"metric_for_best_model": "token_acc"}, Best("token_acc", True)),
        ({"metric_for_best_model": "seq_acc", "acc_strategy": "sentence"}, Best("seq_acc", True)),
        ({"metric_for_best_model": "bleu-4"} | GENERATED, Best("bleu-4", True)),
        ({"metric_for_best_model": "loss", "greater_is_better": True}, Best("loss", True)),
        (
            {"metric": "mine", "custom_register_path": ["a.py"], "metric_for_best_model": "x_loss"},
            Best("x_loss", False),
        ),
    ],
)
def test_what_is_best(given: dict[str, Any], expected: Best | None) -> None:
    assert best_by(TrainArguments(**given)) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"metric_for_best_model": "rouge-l"},
            "`--metric_for_best_model rouge-l`: validation measures loss, token_acc: give `--predict_with_generate t",
        ),
        (
            {"metric_for_best_model": "seq_acc"},
            "`--metric_for_best_model seq_acc`: validation measures loss, token_acc: give `--acc_strategy sentence`",
        ),
        (
            {"metric_for_best_model": "f1"} | GENERATED,
            "`--metric_for_best_model f1`: validation measures loss, token_acc, rouge-1, rouge-2, rouge-l, bleu-4",
        ),
    ],
)
def test_what_is_not_measured(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        best_by(TrainArguments(**given))
    assert str(caught.value).startswith(said)


def test_early_stopping_needs_validations(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    with pytest.raises(ArgumentsError, match="`--early_stop_interval` counts validations, and `--eval_strategy no`"):
        TrainArguments(early_stop_interval=2, eval_strategy="no")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "train.arrow").write_bytes((tokens / "train.arrow").read_bytes())
    with pytest.raises(ArgumentsError, match="`--early_stop_interval` needs a validation, and none takes place"):
        Lab(tmp_path, tiny_model, tmp_path / "tokens").run(SHORT | {"early_stop_interval": 2})
