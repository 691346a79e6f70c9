"""Houlsby's adapters against the formula, on models whose parts have other names, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError, ModelError
from stages.training.tuners import get_tuner
from stages.training.tuners.houlsby import load_houlsby
from tests.stages.training.lab import Lab
from tests.stages.training.tuners.methods import (
    PLAIN,
    base_model,
    batch_losses,
    check_resume,
    logged_losses,
    logits_of,
    merged,
    prepared,
    trained_names,
)

ADAPTER: dict[str, Any] = {"train_type": "adapter", "weight_decay": 0.0}


def by_formula(lab: Lab, arguments: dict[str, Any]) -> Any:
    """The base model; what its attention and feed-forward parts give passes through h + W₂ gelu(W₁ h + b₁) + b₂."""
    import torch
    from torch import nn

    class Followed(nn.Module):
        def __init__(self, part: Any, start: Any) -> None:
            super().__init__()
            self.part = part
            self.down = nn.Parameter(start.linear1.weight.detach().clone())
            self.bias = nn.Parameter(torch.zeros(128))
            self.up = nn.Parameter(torch.zeros(64, 128))
            self.end = nn.Parameter(torch.zeros(64))

        def forward(self, *args: Any, **others: Any) -> Any:
            given = self.part(*args, **others)
            states = given[0] if isinstance(given, tuple) else given
            inner = states @ self.down.T + self.bias
            inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
            states = states + inner @ self.up.T + self.end
            return (states, *given[1:]) if isinstance(given, tuple) else states

    model = base_model(lab.inputs["model"]).requires_grad_(False)
    tuned = prepared(lab, arguments)
    for layer, start in zip(model.model.layers, tuned.model.layers, strict=True):
        layer.self_attn = Followed(layer.self_attn, start.self_attn.adapter_default)
        layer.mlp = Followed(layer.mlp, start.mlp.adapter_default)
    return model


def test_the_start(lab: Lab) -> None:
    import torch

    model = prepared(lab, ADAPTER)
    parts = [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn", "mlp")]
    tensors = [f"linear{number}.{kind}" for number in (1, 2) for kind in ("weight", "bias")]
    assert trained_names(model) == {f"{part}.adapter_default.{tensor}" for part in parts for tensor in tensors}
    assert torch.equal(logits_of(model), logits_of(base_model(lab.inputs["model"])))


def test_against_the_formula(lab: Lab) -> None:
    """Losses, and the artifact put onto the base anew."""
    import torch
    from safetensors.torch import load_file

    arguments = PLAIN | ADAPTER
    metrics = lab.run(arguments)
    assert metrics["num_trainable_parameters"] == 4 * (2 * 64 * 128 + 128 + 64)
    reference = by_formula(lab, arguments)
    assert logged_losses(lab) == pytest.approx(batch_losses(reference, lab, arguments), abs=1e-5)
    live, base = logits_of(reference), base_model(lab.inputs["model"])
    assert (live - logits_of(base)).abs().max() > 1e-2
    torch.testing.assert_close(logits_of(load_houlsby(base, lab.out)), live, atol=1e-4, rtol=0)
    start = prepared(lab, arguments).state_dict()
    for name, tensor in load_file(lab.out / "adapter_model.safetensors").items():
        assert not torch.equal(tensor, start[name]), f"{name} has not moved"
    config = json.loads((lab.out / "adapter_config.json").read_text())
    assert (config["swift_type"], config["adapter_length"], config["act_layer"]) == ("ADAPTER", 128, "gelu")
    assert config["target_modules"] == r"model\.layers\.\d+\.(mlp|self_attn)"


def test_it_is_not_merged(lab: Lab) -> None:
    lab.run(PLAIN | ADAPTER | {"max_steps": 1})
    with pytest.raises(ModelError, match="holds networks that stand between the model's layers"):
        merged(lab, lab.out)


def test_resume(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    check_resume(tmp_path, tiny_model, tokens, ADAPTER | {"gradient_checkpointing": True})


def test_bfloat16(lab: Lab) -> None:
    from safetensors.torch import load_file

    lab.run(PLAIN | ADAPTER | {"torch_dtype": "bfloat16"})
    assert {str(tensor.dtype) for tensor in load_file(lab.out / "adapter_model.safetensors").values()} == {
        "torch.float32"
    }


@pytest.mark.parametrize(
    ("family", "arguments", "targets"),
    [
        ("gpt2", {}, r"transformer\.h\.\d+\.(attn|mlp)"),
        ("gpt_neox", {}, r"gpt_neox\.layers\.\d+\.(attention|mlp)"),
        ("qwen3_moe", {}, r"model\.layers\.\d+\.(mlp|self_attn)"),
        ("llama", {"target_modules": ["mlp"]}, r"(.*\.)?(mlp)"),
        ("llama", {"target_regex": r"model\.layers\.1\.mlp"}, r"model\.layers\.1\.mlp"),
        ("opt", {"target_modules": ["self_attn", "fc2"]}, r"(.*\.)?(self_attn|fc2)"),
    ],
)
def test_families(family: str, arguments: dict[str, Any], targets: str) -> None:
    """Each gives with an adapter, as it starts, what it gives without."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2}}.get(
        family, {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    )
    more = {
        "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
        "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    }
    config = AutoConfig.for_model(family, vocab_size=64, **sizes, **more.get(family, {"intermediate_size": 48}))
    config.pad_token_id = 0
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    tuner = get_tuner(TrainArguments(**ADAPTER | arguments))
    tuner.check(model)
    tuned = tuner.prepare(model)
    assert tuner._config(model)["target_modules"] == targets  # type: ignore[attr-defined]
    assert torch.equal(tuned(ids).logits, before)
    for name, parameter in tuned.named_parameters():
        if "linear2.weight" in name:
            torch.nn.init.normal_(parameter)
    assert not torch.equal(tuned(ids).logits, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_modules": ["nothing"]}, "no module is called so; model.layers.0 has self_attn, mlp, input_layernorm"),
        ({"target_modules": ["up_proj"]}, "takes the model's 64 features, and model.layers.0.mlp.up_proj gives 128"),
        ({"modules_to_save": ["lm_head"]}, "`--modules_to_save lm_head` does not go with `--train_type adapter`"),
        ({"lora_bias_trainable": "all"}, "`--lora_bias_trainable all` does not go with `--train_type adapter`"),
    ],
)
def test_refused(lab: Lab, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentsError, match=message):
        lab.run(PLAIN | ADAPTER | arguments)


def test_parts_without_a_known_name() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("opt"))
    with pytest.raises(
        ModelError, match=r"which part of \S+.0 is its feed-forward part is not known; it has self_attn"
    ):
        get_tuner(TrainArguments(**ADAPTER)).check(model)


def test_a_checkpoint_of_another_kind(lab: Lab) -> None:
    lab.run(PLAIN | ADAPTER | {"target_modules": ["mlp"]})
    tuner = get_tuner(TrainArguments(**ADAPTER))
    model = tuner.prepare(base_model(lab.inputs["model"]))
    with pytest.raises(ModelError, match="its target_modules is"):
        tuner.load(model, lab.out)
    other = Lab(lab.folder / "lora", *lab.inputs.values())
    other.run(PLAIN)
    with pytest.raises(ModelError, match="is an adapter of type LORA"):
        tuner.load(model, other.out)
