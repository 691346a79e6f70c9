"""A training loop of a few lines, which the train stage is held against."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.stages.training.lab import SHORT, Lab
from tests.stages.training.tokens import write_arrow

ROW = [17, 4, 99, 230, 8, 45, 301, 12, 7, 150]
STEADY = SHORT | {
    "logging_steps": 1,
    "gradient_accumulation_steps": 1,
    "lr_scheduler_type": "constant",
    "learning_rate": 1e-3,
    "lora_dropout": 0,
    "eval_strategy": "no",
}
"""A constant learning rate, nothing random after the start."""


def write_one_row(folder: Path) -> Path:
    """The same row again and again: whatever the order, each batch is the same."""
    folder.mkdir(parents=True)
    labels = [-100, -100, *ROW[2:]]
    write_arrow(folder / "train.arrow", {"input_ids": [ROW] * 12, "labels": [labels] * 12})
    return folder


def losses(lab: Lab) -> list[float]:
    """What the run has logged, a loss for each step."""
    lines = map(json.loads, (lab.attachments / "logging.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def losses_by_hand(
    model: Any, step: Callable[[int], None], steps: int = 6, extra: Callable[[], Any] | None = None
) -> list[float]:
    """Forward, backward, clipping and `step`, which is to update the parameters."""
    import torch

    ids = torch.tensor([ROW])
    model.train()
    found = []
    for number in range(steps):
        logits = model(ids).logits[0, 1:-1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 2:])
        if extra is not None:
            loss = loss + extra()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        found.append(loss.item())
        step(number)
        model.zero_grad()
    return found
