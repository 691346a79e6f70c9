"""LLaMA-Pro: copies that change nothing at the start, and alone are trained; a plain model in the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError, ModelError
from stages.train import STAGE
from stages.training.tuners.llamapro import LlamaProTuner
from tests.stages.test_train import tokens as tokens
from tests.stages.training.lab import SHORT, Lab, cut_off_and_whole
from tests.stages.training.reference import ROW, STEADY, losses, losses_by_hand, write_one_row

PRO = SHORT | {"train_type": "llamapro", "llamapro_num_new_blocks": 2, "learning_rate": 1e-3}
SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False, "mlp_bias": True, "attention_bias": True},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "gemma2": {"sliding_window": 4},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 48},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}


def make_model(family: str, **more: Any) -> Any:
    """Random weights, also where they start at zero or one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SIZES | FAMILIES[family] | more)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def logits_of(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([ROW])).logits


def prepared(family: str, new: int, groups: int | None) -> tuple[Any, LlamaProTuner]:
    arguments = {"train_type": "llamapro", "llamapro_num_new_blocks": new, "llamapro_num_groups": groups}
    tuner = LlamaProTuner(TrainArguments(**arguments))
    model = make_model(family)
    tuner.check(model)
    return tuner.prepare(model), tuner


@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_start_nothing_is_changed(tmp_path: Path, family: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = make_model(family)
    grown, tuner = prepared(family, 4, 2)
    assert tuner.order == [0, 1, 1, 1, 2, 3, 3, 3]
    assert tuner.added == [2, 3, 6, 7]
    assert (logits_of(grown) - logits_of(base)).abs().max() == 0

    tuner.save(grown, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config.num_hidden_layers == 8
    assert (logits_of(plain) - logits_of(base)).abs().max() == 0
    before = base.generate(torch.tensor([ROW]), max_new_tokens=6, do_sample=False)
    assert torch.equal(plain.generate(torch.tensor([ROW]), max_new_tokens=6, do_sample=False), before)  # with its cache


def test_each_layer_keeps_its_kind(tmp_path: Path) -> None:
    grown, _ = prepared("qwen2", 2, None)
    kinds = ["full_attention"] * 3 + ["sliding_attention"] * 3
    assert grown.config.layer_types == kinds
    assert [layer.self_attn.layer_idx for layer in grown.model.layers] == [0, 1, 2, 3, 4, 5]
    assert [layer.self_attn.sliding_window for layer in grown.model.layers] == [None] * 3 + [4] * 3


@pytest.mark.parametrize(
    ("new", "groups", "order"),
    [
        (1, None, [0, 1, 2, 3, 3]),
        (2, None, [0, 1, 1, 2, 3, 3]),
        (4, None, [0, 0, 1, 1, 2, 2, 3, 3]),
        (4, 1, [0, 1, 2, 3, 3, 3, 3, 3]),
        (4, 2, [0, 1, 1, 1, 2, 3, 3, 3]),
    ],
)
def test_groups(new: int, groups: int | None, order: list[int]) -> None:
    grown, tuner = prepared("llama", new, groups)
    base = dict(make_model("llama").named_parameters())
    for name, parameter in grown.named_parameters():
        _, _, rest = name.partition("layers.")
        number = int(rest.split(".")[0]) if rest else None
        source = name if number is None else name.replace(f"layers.{number}.", f"layers.{order[number]}.")
        new_layer = number in tuner.added
        assert parameter.requires_grad == new_layer
        if new_layer and ("o_proj" in name or "down_proj" in name):
            assert parameter.abs().max() == 0  # weight and bias
        else:
            assert parameter.equal(base[source])


def test_it_leaves_a_plain_model_in_which_only_copies_moved(lab: Lab) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    metrics = lab.run(PRO | {"gradient_checkpointing": True})
    base = lab.inputs["model"]
    assert {path.name for path in lab.out.iterdir()} == {path.name for path in base.iterdir()}
    assert AutoTokenizer.from_pretrained(lab.out).chat_template
    config = json.loads((lab.out / "config.json").read_text())
    assert config["num_hidden_layers"] == 4
    before = AutoModelForCausalLM.from_pretrained(base).state_dict()
    after = AutoModelForCausalLM.from_pretrained(lab.out).state_dict()
    for name, tensor in after.items():
        number = int(name.split(".")[2]) if ".layers." in name else None
        if number is None:
            assert tensor.equal(before[name])
        else:
            old = before[name.replace(f"layers.{number}.", f"layers.{number // 2}.")]
            assert tensor.equal(old) == (number % 2 == 0), name
    assert metrics["last_loss"] < metrics["first_loss"]
    trained = sum(tensor.numel() for name, tensor in after.items() if "layers.1." in name or "layers.3." in name)
    assert metrics["num_trainable_parameters"] == trained
    assert STAGE.output_kind(TrainArguments(train_type="llamapro")) == "model"


def test_losses_are_those_of_a_loop_by_hand(tmp_path: Path, tiny_model: Path) -> None:
    """The first is the base model's own."""
    import torch
    from transformers import AutoModelForCausalLM

    lab = Lab(tmp_path, tiny_model, write_one_row(tmp_path / "tokens"))
    lab.run(STEADY | {"train_type": "llamapro", "llamapro_num_new_blocks": 1, "weight_decay": 0})
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    copy = AutoModelForCausalLM.from_pretrained(tiny_model).model.layers[1]
    copy.self_attn.layer_idx = 2
    copy.self_attn.o_proj.weight.data.zero_()
    copy.mlp.down_proj.weight.data.zero_()
    model.requires_grad_(False)
    model.model.layers.append(copy)
    model.config.num_hidden_layers = 3
    optimizer = torch.optim.AdamW(copy.parameters(), lr=1e-3, weight_decay=0)
    assert losses(lab) == pytest.approx(losses_by_hand(model, lambda _: optimizer.step() and None), abs=1e-5)


@pytest.mark.parametrize("cut", [4.5, "end"])
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(
    tmp_path: Path, tiny_model: Path, tokens: Path, cut: float | str
) -> None:
    cut_off_and_whole(tmp_path, tiny_model, tokens, PRO, cut)


def test_layers_that_do_not_fall_into_groups(lab: Lab) -> None:
    line = "`--llamapro_num_new_blocks 4` does not divide the model's 2 layers into equal groups: choose from 1, 2"
    with pytest.raises(ArgumentsError, match=line):
        lab.run(SHORT | {"train_type": "llamapro"})
    line = line.replace("new_blocks 4", "groups 3")
    with pytest.raises(ArgumentsError, match=line):
        lab.run(PRO | {"llamapro_num_new_blocks": 6, "llamapro_num_groups": 3})


def test_a_checkpoint_of_another_size(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    first = Lab(tmp_path / "first", tiny_model, tokens)
    first.run(PRO)
    lab = Lab(tmp_path / "second", tiny_model, tokens)
    lab.inputs["checkpoint"] = first.attachments / "checkpoint-4"
    with pytest.raises(ModelError, match="the checkpoint has 4 layers, these arguments make the model one of 3"):
        lab.run(PRO | {"llamapro_num_new_blocks": 1})


def test_a_family_whose_layers_end_otherwise() -> None:
    from torch import nn

    model = make_model("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj = nn.Identity()
    with pytest.raises(ModelError, match=r"LLaMA-Pro cannot grow this model: model.layers.0 has fewer than two of"):
        LlamaProTuner(TrainArguments(train_type="llamapro")).check(model)


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path, tokens: Path) -> Lab:
    return Lab(tmp_path, tiny_model, tokens)
