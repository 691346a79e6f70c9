"""Figures and tables as people read them."""

from __future__ import annotations

from typing import Any

import pytest

from flows.ui.words import facts, figure, headline, key_of, seconds_text, table


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("num_rows", 1234567, "1,234,567"),
        ("train_loss", 5.340132387479146, "5.3401"),
        ("perplexity", 407.765804, "407.8"),
        ("weights_bytes", 269_000_000, "269 MB"),
        ("load_seconds", 125.0, "2 min 5 s"),
        ("is_quantized", True, "yes"),
        ("dtype", "F32", "F32"),
        ("learning_rate", 1e-05, "1e-05"),
    ],
)
def test_figures(name: str, value: Any, text: str) -> None:
    assert figure(name, value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0012, "0.00 s"), (0.996, "1.0 s"), (99.96, "1 min 40 s"), (59.94, "59.9 s"), (7500, "2 h 5 min")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_both_splits_stand_side_by_side_and_what_belongs_together_is_joined() -> None:
    metrics = {"train_rows": 64, "validation_rows": 16, "first_loss": 6.0, "last_loss": 5.0, "num_parameters": 200}
    text = facts({**metrics, "num_trainable_parameters": 20, "eval_loss": 5.5})
    assert "| rows | 64 | 16 |" in text
    assert "| training loss | 6.0000 → 5.0000 |" in text
    assert "| trained parameters | 20 of 200 (10.00%) |" in text
    assert "| held-out loss | 5.5000 |" in text
    assert text.count("loss") == 2


def test_what_rows_say_is_no_markup() -> None:
    text = facts({"first_dropped": "a.jsonl row 2: `<image>` and <b>*x*</b> [y](z)\na.jsonl row 3: my_file"})
    assert r"`<image>` and \<b\>\*x\*\</b\> \[y\](z)<br>a.jsonl row 3: my\_file" in text


def test_cells_stay_in_their_row() -> None:
    text = table(["a", "b"], [["one\ntwo | three", "4 s"]], right=[1])
    assert text.splitlines() == ["| a | b |", "| --- | ---: |", "| one<br>two \\| three | 4\u00a0s |"]
    assert table(["a"], []) == ""


def test_a_column_in_which_nothing_stands_is_left_out() -> None:
    text = table(["stage", "took", "size"], [["train", "", "4 MB"], ["merge", "", "9 MB"]], right=[1, 2])
    assert text.splitlines()[:2] == ["| stage | size |", "| --- | ---: |"]


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({"first_loss": 6.01, "last_loss": 4.914, "eval_loss": 5.0}, "loss 6.010 → 4.914"),
        ({"eval_loss": 4.98791, "perplexity": 146.6}, "held-out loss 4.9879"),
        ({"size_before_bytes": 494944, "size_after_bytes": 263717}, "495 kB → 264 kB"),
        ({"train_rows": 64, "train_tokens": 2248}, "64 rows, 2,248 tokens"),
        ({"num_parameters": 134_515_008}, "135M parameters"),
        ({"mmlu_accuracy": 0.25}, "mmlu accuracy 0.25"),
        ({}, ""),
    ],
)
def test_headlines(metrics: dict[str, Any], text: str) -> None:
    assert headline(metrics) == text


def test_keys_are_what_prefect_takes() -> None:
    assert key_of("evaluate (tuned)", "progress") == "evaluate-tuned-progress"
    assert key_of("push_to_hub") == "push-to-hub"
