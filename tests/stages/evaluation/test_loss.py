"""The held-out loss is the mean over all labelled tokens, however the rows are put together."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest

from stages.context import Context, NullReporter
from stages.errors import Interrupted, StageFailed
from stages.evaluation.loss import HeldOut, held_out_loss
from stages.serving.loading import load_model


class Recorder(NullReporter):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[float, float, str]] = []

    def progress(self, done: float, total: float, text: str) -> None:
        self.told.append((done, total, text))


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(tiny_model)


@pytest.fixture(scope="module")
def rows() -> Any:
    """Rows of 2 to 40 tokens, some of whose labels are -100, the first token's among those that are not."""
    import numpy as np

    from stages.training.rows import Part, TokenRows

    generator = np.random.default_rng(3)
    lengths = [2, 40, 17, 17, 5, 31, 8]
    ids = generator.integers(0, 384, sum(lengths)).astype(np.int32)
    labels = np.where(generator.random(len(ids)) < 0.4, -100, ids).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    labels[starts[1:] - 1] = ids[starts[1:] - 1]
    return TokenRows([Part(ids, labels, starts)])


def context(tmp_path: Path, **given: Any) -> Context:
    return Context(tmp_path, tmp_path, logging.getLogger("test"), **given)


def by_hand(model: Any, rows: Any) -> tuple[float, int]:
    """Row by row, all logits, one log-probability at a time, in float64."""
    import torch

    total, count = 0.0, 0
    for index in range(len(rows)):
        row = rows[index]
        with torch.inference_mode():
            logits = model(torch.tensor(row["input_ids"])[None].long()).logits[0].double()
        scores = torch.log_softmax(logits, -1)
        for position in range(1, len(row["labels"])):
            if row["labels"][position] != -100:
                total -= float(scores[position - 1, int(row["labels"][position])])
                count += 1
    return total / count, count


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_it_is_the_token_weighted_mean(batch_size: int, model: Any, rows: Any, tmp_path: Path) -> None:
    expected, count = by_hand(model, rows)
    found = held_out_loss(model, rows, batch_size=batch_size, context=context(tmp_path))
    assert found.loss == pytest.approx(expected, abs=2e-6)
    assert (found.num_tokens, found.num_samples) == (count, 7)
    assert found.perplexity == pytest.approx(math.exp(expected), rel=1e-5)


def test_a_model_that_gives_all_logits_has_the_same_loss(model: Any, rows: Any, tmp_path: Path) -> None:
    """Some architectures of transformers have no `logits_to_keep`."""
    import torch

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.device = model, model.device

        def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: bool = True) -> Any:
            return self.inner(input_ids, attention_mask=attention_mask, use_cache=use_cache)

    found = held_out_loss(Whole(), rows, batch_size=3, context=context(tmp_path))  # type: ignore[arg-type]
    assert found == held_out_loss(model, rows, batch_size=3, context=context(tmp_path))


def test_progress_counts_tokens_up_to_all_of_them(model: Any, rows: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    found = held_out_loss(model, rows, batch_size=2, context=context(tmp_path, reporter=recorder))
    assert [done for done, _, _ in recorder.told] == sorted(done for done, _, _ in recorder.told)
    done, total, text = recorder.told[-1]
    assert done == total == rows.num_tokens == 120
    assert text == f"7 of 7 held-out rows, loss {found.loss:.4f}"


def test_told_to_stop_it_stops(model: Any, rows: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped after 0 of 7 rows"):
        held_out_loss(model, rows, batch_size=1, context=context(tmp_path, stop_requested=lambda: True))


def test_broken_weights_are_no_result(tiny_model: Path, rows: Any, tmp_path: Path) -> None:
    import torch

    broken = load_model(tiny_model)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(StageFailed, match="the held-out loss is nan"):
        held_out_loss(broken, rows, batch_size=1, context=context(tmp_path))


def test_a_loss_beyond_exp_has_an_infinite_perplexity() -> None:
    assert HeldOut(800.0, 1, 1).perplexity == math.inf
