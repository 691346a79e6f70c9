"""Accuracy against counts made one row at a time, whatever the batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.training.accuracy import Accuracy, sample_numbers
from stages.training.loss import predicting
from stages.training.measures import Measures
from stages.training.rows import read_rows
from tests.stages.training.lab import Lab
from tests.stages.training.later import write_eager
from tests.stages.training.taught import LEARN, ROWS, STILL, teach
from tests.stages.training.tokens import write_arrow

X = -100


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return write_eager(tmp_path_factory.mktemp("tokens") / "tokens", ROWS, ROWS[:5], tiny_model)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tokens: Path) -> Path:
    """One that is right about some tokens, and some answers."""
    return teach(tmp_path_factory.mktemp("model"), tiny_model, tokens)


def count(model: Path, file: Path) -> list[tuple[int, int]]:
    """Of each row, how many tokens with a label are predicted right, and how many there are."""
    import torch
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(model).eval()
    rows = read_rows(file, vocabulary=384)
    found = []
    for number in range(len(rows)):
        ids, labels = rows[number]["input_ids"].tolist(), rows[number]["labels"].tolist()
        with torch.no_grad():
            best = network(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        pairs = [(best[place - 1], labels[place]) for place in range(1, len(ids)) if labels[place] != X]
        found.append((sum(one == other for one, other in pairs), len(pairs)))
    return found


def first_line(lab: Lab) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((lab.attachments / "logging.jsonl").read_text().splitlines()[0])
    return line


PARTS = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}


@pytest.mark.parametrize("strategy", ["token", "seq"])
@pytest.mark.parametrize(
    ("rows", "parts", "held_out"),
    [(2, 3, 2), pytest.param(6, 1, 5, marks=pytest.mark.slow), pytest.param(1, 6, 1, marks=pytest.mark.slow)],
)
def test_against_counts_by_hand(
    tmp_path: Path, model: Path, tokens: Path, rows: int, parts: int, held_out: int, strategy: str
) -> None:
    lab = Lab(tmp_path, model, tokens)
    sizes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": parts}
    metrics = lab.run(STILL | sizes | {"per_device_eval_batch_size": held_out, "acc_strategy": strategy})
    train, validation = (count(model, tokens / f"{name}.arrow") for name in ("train", "validation"))
    assert 0 < sum(right for right, _ in train) < sum(tokens for _, tokens in train)
    assert 0 < sum(right == tokens for right, tokens in train) < 6
    for name, found in ((f"{strategy}_acc", train), (f"eval_{strategy}_acc", validation)):
        if strategy == "token":
            expected = sum(right for right, _ in found) / sum(tokens for _, tokens in found)
        else:
            expected = sum(right == tokens for right, tokens in found) / len(found)
        assert metrics[name] == pytest.approx(expected, abs=1e-12)
    assert first_line(lab)[f"{strategy}_acc"] == metrics[f"{strategy}_acc"]
    other = "seq" if strategy == "token" else "token"
    assert f"{other}_acc" not in metrics


def test_packed_rows_are_samples_of_their_own(tmp_path: Path, model: Path, tokens: Path) -> None:
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "train.arrow").write_bytes((tokens / "train.arrow").read_bytes())
    write_arrow(tmp_path / "packed" / "train_packs.arrow", {"rows": [[5, 0, 2], [1, 4], [3]]})
    rows = count(model, tokens / "train.arrow")
    packs = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 1, "eval_strategy": "no"}
    for strategy, name in (("token", "token_acc"), ("sentence", "seq_acc")):
        metrics = Lab(tmp_path / name, model, tmp_path / "packed").run(STILL | packs | {"acc_strategy": strategy})
        if strategy == "token":
            assert metrics[name] == sum(right for right, _ in rows) / sum(tokens for _, tokens in rows)
        else:
            assert metrics[name] == sum(right == tokens for right, tokens in rows) / 6


@pytest.mark.slow
def test_weights_change_nothing(tmp_path: Path, model: Path, tokens: Path) -> None:
    rows = read_rows(tokens / "train.arrow", vocabulary=384)
    columns: dict[str, list[Any]] = {"input_ids": [], "labels": [], "loss_scale": []}
    for number in range(6):
        for name in ("input_ids", "labels"):
            columns[name].append(rows[number][name].tolist())
        columns["loss_scale"].append([0.5 + place % 3 for place in range(len(columns["labels"][-1]))])
    (tmp_path / "weighted").mkdir()
    write_arrow(tmp_path / "weighted" / "train.arrow", columns)
    metrics = Lab(tmp_path, model, tmp_path / "weighted").run(STILL | PARTS | {"eval_strategy": "no"})
    found = count(model, tokens / "train.arrow")
    assert metrics["token_acc"] == sum(right for right, _ in found) / sum(tokens for _, tokens in found)


def test_acc_steps(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    """Every third step from the first on; a line that none of them fell into says nothing of it."""
    lab = Lab(tmp_path, tiny_model, tokens)
    lab.run(LEARN | {"logging_steps": 1, "acc_steps": 3, "max_steps": 8})
    lines = [json.loads(line) for line in (lab.attachments / "logging.jsonl").read_text().splitlines()]
    assert [number for number, line in enumerate(lines, 1) if "token_acc" in line] == [1, 4, 7]


def test_a_sample_is_right_if_all_of_it_is() -> None:
    import torch

    predicted, targets = torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([1, 2, 3, 9, 5, 6])
    samples = torch.tensor([0, 0, 2, 2, 5, 5])
    tokens, sentences = Accuracy("token"), Accuracy("sentence")
    for accuracy in (tokens, sentences):
        accuracy.add(predicted, targets, samples)
        accuracy.add(predicted[:1], targets[3:4], samples[:1])
        accuracy.add(predicted[:0], targets[:0], samples[:0])
    assert tokens.take() == pytest.approx(5 / 7)
    assert sentences.take() == 2 / 4
    assert sentences.take() is None


def test_samples_of_rows_and_packs() -> None:
    import torch

    kept = predicting(torch.tensor([[X, 7, 7, X], [X, X, X, X], [X, 7, X, 7]]))
    assert sample_numbers(kept).tolist() == [0, 0, 2, 2]
    positions = torch.tensor([[0, 1, 2, 3], [0, 1, 0, 1], [0, 1, 0, 1]])
    found = sample_numbers(kept, positions).tolist()
    assert found[0] == found[1] != found[2] != found[3]


def test_all_logits_or_only_those_with_a_label() -> None:
    """The loss may have asked for all of them."""
    import torch

    labels = torch.tensor([[X, 3, X, 4], [X, X, 0, 6]])
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    kept = predicting(labels)
    shares = []
    for given in (logits, logits[kept], logits[kept][None]):
        measures = Measures(Accuracy("token"), Accuracy("token"))
        measures.add(given, labels, kept, step=0)
        shares.append(measures.take_training())
    places = ((0, 1), (0, 3), (1, 2), (1, 3))
    right = [bool(logits[row, place - 1].argmax() == labels[row, place]) for row, place in places]
    assert shares == [{"token_acc": sum(right) / 4}] * 3
