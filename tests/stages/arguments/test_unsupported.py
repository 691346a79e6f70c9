"""What is not acted upon yet is refused, and the list of it is frozen: later work empties it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from stages.arguments.command_line import parse, shape
from stages.arguments.recipe import FLOWS, recipe_arguments
from stages.arguments.unsupported import UNSUPPORTED, UNSUPPORTED_COMMANDS
from stages.errors import ArgumentsError

BASE = {
    "sft": ["--model", "m", "--dataset", "d"],
    "sft-then-export": ["--model", "m", "--dataset", "d"],
    "export": ["--model", "m", "--quant_method", "bnb", "--quant_bits", "4"],
}


def test_the_list(frozen: Callable[[str, Any], None]) -> None:
    rules = {
        name: [f"{rule.values or 'any value'} in {', '.join(rule.only) or 'all'}" for rule in of_name]
        for name, of_name in UNSUPPORTED.items()
    }
    frozen("unsupported", {"commands": list(UNSUPPORTED_COMMANDS), "parameters": rules})


def test_every_name_in_it_is_a_parameter() -> None:
    known = {name for flow in FLOWS for name in recipe_arguments(flow).model_fields}
    assert set(UNSUPPORTED) <= known


def other_value(flow: str, name: str) -> str:
    """Some value that is not the default, and that the field itself would take."""
    field = recipe_arguments(flow).model_fields[name]
    form = shape(field.rebuild_annotation())
    default = field.get_default()
    if form.choices:
        return str(next(choice for choice in form.choices if choice != default))
    if bool in form.kinds:
        return str(not default)
    if dict in form.kinds and str not in form.kinds:
        return '{"a": true}'
    if form.kinds & {int, float}:
        return "3" if name == "galore_proj_bits" else "1" if default != 1 else "2"
    return {"hub_model_id": "group/name"}.get(name, "x")


@pytest.mark.parametrize(
    ("flow", "name"),
    [
        (flow, name)
        for flow in BASE
        for name, rules in UNSUPPORTED.items()
        if name in recipe_arguments(flow).model_fields
        and any(not rule.values and (not rule.only or flow in rule.only) for rule in rules)
    ],
)
def test_it_is_refused_by_name(flow: str, name: str) -> None:
    with pytest.raises(ArgumentsError, match=rf"^--{name} is not supported yet$"):
        parse([*BASE[flow], f"--{name}={other_value(flow, name)}"], recipe_arguments(flow))


@pytest.mark.parametrize(
    ("flow", "flags", "line"),
    [
        ("sft-then-export", "--quant_method awq --quant_bits 4", "--quant_method awq is not supported yet"),
        ("sft-then-export", "--eval_dataset general_qa:a.jsonl gsm8k", "--eval_dataset gsm8k is not supported yet"),
    ],
)
def test_some_values_are_refused(flow: str, flags: str, line: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        parse([*BASE[flow], *flags.split()], recipe_arguments(flow))
    assert str(caught.value) == line


@pytest.mark.parametrize(
    ("flow", "flags"),
    [
        ("sft", "--attn_impl eager --train_type full --lazy_tokenize false"),
        ("sft", "--use_liger false --boft_block_size 4 --loss_scale default"),
        ("sft", "--train_type longlora --max_length 2048"),
        ("sft", "--num_labels 3"),
        ("sft", "--attn_impl flash_attn --tuner_backend unsloth --use_liger --fsdp_num 2 --deepspeed zero2"),
        ("sft-then-export", "--quant_method bnb --quant_bits 4 --bnb_4bit_quant_type fp4"),
        ("sft-then-export", "--eval_dataset general_qa:a.jsonl general_mcq:b --max_new_tokens 8 --top_k 5"),
        ("sft-then-export", "--push_to_hub true --hub_model_id group/name"),
    ],
)
def test_other_values_and_the_default_are_taken(flow: str, flags: str) -> None:
    assert flow == parse([*BASE[flow], *flags.split()], recipe_arguments(flow)).NAME


def test_what_is_not_supported_is_said_before_what_conflicts() -> None:
    with pytest.raises(ArgumentsError, match=r"^--hub_always_push is not supported yet$"):
        parse([*BASE["sft"], "--hub_always_push", "--use_galore", "--train_type", "lora"], recipe_arguments("sft"))
