"""Which modules names stand for, on models of several families that have no weights."""

from __future__ import annotations

from typing import Any

import pytest

from stages.errors import ArgumentsError
from stages.training.tuners.targets import find_modules_to_save, find_targets

LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def skeleton(family: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family))


@pytest.mark.parametrize(
    ("family", "names", "found"),
    [
        ("llama", ["all-linear"], LINEAR),
        ("llama", ["q_proj", "v_proj", "q_proj"], ["q_proj", "v_proj"]),
        ("llama", ["all-linear", "lm_head"], sorted([*LINEAR, "lm_head"])),
        ("llama", ["all-embedding"], ["embed_tokens"]),
        ("llama", ["self_attn.q_proj"], ["self_attn.q_proj"]),
        ("gpt2", ["all-linear"], ["c_attn", "c_fc", "c_proj"]),
        ("phi", ["all-linear"], ["dense", "fc1", "fc2", "k_proj", "q_proj", "v_proj"]),
    ],
)
def test_targets(family: str, names: list[str], found: list[str]) -> None:
    assert find_targets(skeleton(family), names, None) == found


def test_regex_replaces_names() -> None:
    regex = r"model\.layers\.0\..*_proj"
    assert find_targets(skeleton("llama"), ["nothing"], regex) == regex


@pytest.mark.parametrize(
    ("names", "regex", "message"),
    [
        (["q_prj"], None, r"`--target_modules q_prj`: the model has no such module. Did you mean q_proj\? It has "),
        (["input_layernorm"], None, "`--target_modules input_layernorm`: the model has no such module"),
        (["all-liner"], None, r"Did you mean all-linear\?"),
        (["q_proj"], r"layers\.0\..*", "matches no module. It has "),  # the whole path must match
    ],
)
def test_no_such_target(names: list[str], regex: str | None, message: str) -> None:
    with pytest.raises(ArgumentsError, match=message):
        find_targets(skeleton("llama"), names, regex)


def test_modules_to_save() -> None:
    model = skeleton("llama")
    norms = ["input_layernorm", "norm", "post_attention_layernorm"]
    assert find_modules_to_save(model, ["all-norm"]) == norms
    assert find_modules_to_save(model, ["all-embedding", "lm_head"]) == ["embed_tokens", "lm_head"]
    with pytest.raises(ArgumentsError, match=r"`--modules_to_save lm_haed`: .* Did you mean lm_head\?"):
        find_modules_to_save(model, ["lm_haed"])
