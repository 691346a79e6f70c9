"""A file of a user's own in a flow: each stage takes what it needs of it, and is done anew for that alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import alpaca_rows
from tests.flows.conftest import Martlet

pytestmark = [pytest.mark.slow, pytest.mark.server]

FILE = """
import torch
from stages.data.templates.meta import TemplateMeta, register_template
from stages.training.plugins import register_loss, register_optimizer

@register_optimizer("plain")
def plain(args, model, train_dataset):
    return torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=args.learning_rate)

@register_loss("squared")
def squared(outputs, labels, num_items_in_batch):
    kept = labels[:, 1:] != -100
    each = torch.nn.functional.cross_entropy(outputs.logits[:, :-1][kept], labels[:, 1:][kept], reduction="none")
    return (each**2).sum() / num_items_in_batch
"""
TEMPLATE = """
register_template(TemplateMeta("own", prefix="", prompt="Q: {{QUERY}} A:", chat_sep="; "))
"""


def statuses(record: dict[str, Any]) -> dict[str, str]:
    return {stage["stage"]: stage["status"] for stage in record["stages"]}


def test_a_loss_and_a_template(tmp_path: Path, prefect_environment: dict[str, str], tiny_model: Path) -> None:
    martlet = Martlet({**prefect_environment, "MARTLET_STORE": str(tmp_path / "store")}, tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(8)))
    (tmp_path / "own.py").write_text(FILE)
    flags = ["--model", str(tiny_model), "--dataset", "rows.jsonl", "--max_length", "64", "--max_steps", "1"]
    flags += ["--custom_register_path", "own.py", "--optimizer", "plain", "--loss_type"]

    refused = martlet("sft", *flags, "square", exit_code=2)
    assert "error: `--loss_type square`: no file of `--custom_register_path` registers it" in refused.stderr
    assert not (tmp_path / "output").exists()

    first = martlet.json("sft", *flags, "squared")
    assert statuses(first) == dict.fromkeys(["download", "preprocess", "tokenize", "train"], "ran")
    loss = first["stages"][-1]["metrics"]["first_loss"]
    assert loss > 5.5**2  # where cross entropy is about the logarithm of 384, 5.95

    (tmp_path / "own.py").write_text(FILE.replace("each**2", "each**3"))
    edited = martlet.json("plan", "sft", *flags, "squared")
    before = dict.fromkeys(["download", "preprocess", "tokenize"], "cached")
    assert statuses(edited) == before | {"train": "run"}

    (tmp_path / "own.py").write_text(FILE + TEMPLATE)
    planned = martlet.json("plan", "sft", *flags, "squared", "--template", "own")
    assert statuses(planned) == {"download": "cached", "preprocess": "cached", "tokenize": "run", "train": "run"}
