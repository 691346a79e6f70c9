"""`--help`: every parameter under SWIFT's headings, with default, choices and what is not there yet."""

from __future__ import annotations

import re

import pytest

from stages.arguments import SftArguments, SftThenExportArguments
from stages.arguments.command_line import help_text
from stages.arguments.help import GROUPS, groups
from stages.arguments.recipe import FLOWS, recipe_arguments


@pytest.mark.parametrize("flow", FLOWS)
def test_every_parameter_once(flow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    model = recipe_arguments(flow)
    text = help_text(model, f"martlet {flow}")
    assert sorted(re.findall(r"^  --(\w+)", text, re.MULTILINE)) == sorted(model.model_fields)
    assert max(map(len, text.splitlines())) <= 100


def test_headings_are_swifts_and_in_order() -> None:
    assert list(groups(SftArguments)) == [group for group in GROUPS if group in groups(SftArguments)]
    assert groups(SftArguments)["Model Parameters"][:2] == ["model", "model_revision"]


@pytest.mark.parametrize(
    ("flag", "entry"),
    [
        ("lora_rank", "--lora_rank N Rank of the two matrices. (default: 8)"),
        ("model", "hf:: and ms:: choose the hub. (required)"),
        ("hub_always_push", "(default: false; not supported yet)"),
        ("attn_impl", "--attn_impl {flash_attn,sdpa,eager}"),
        ("quant_method", "(not supported yet: awq)"),
        ("eval_dataset", "(not supported yet: other benchmarks)"),
        ("target_modules", "--target_modules TEXT …"),
        ("reft_layers", "--reft_layers N …"),
        ("lr_scheduler_kwargs", "--lr_scheduler_kwargs JSON"),
        ("train_type", "vera, boft, fourierft, reft. (default: lora)"),
        ("optim", "One of: adamw_torch, adamw_torch_fused,"),
    ],
)
def test_entries(flag: str, entry: str) -> None:
    text = " ".join(help_text(SftThenExportArguments, "martlet").split())
    start = text.index(f"--{flag} ")
    assert entry in text[start : start + 1600]


def test_usage_names_what_is_required() -> None:
    assert help_text(SftArguments, "martlet sft").startswith(
        "usage: martlet sft --model MODEL --dataset DATASET [--name value …]\n"
    )


def test_help_of_a_command_that_is_not_there_yet_says_so() -> None:
    assert "martlet rlhf is not supported yet" in help_text(recipe_arguments("rlhf"), "martlet rlhf")
