"""PiSSA starts from the base's own strongest directions; what is stored is an adapter to the base as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError, ModelError
from stages.training.tuners import get_tuner
from tests.stages.training.lab import Lab, digests
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

PISSA: dict[str, Any] = {"init_lora_weights": "pissa", "lora_rank": 4, "lora_alpha": 8, "weight_decay": 0.0}
KINDS: dict[str, dict[str, Any]] = {
    "pissa": {},
    "niter": {"init_lora_weights": "pissa_niter_4"},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_start(lab: Lab, kind: dict[str, Any]) -> None:
    """The base's outputs; in A and B its strongest directions, by an SVD of our own."""
    import torch

    model = prepared(lab, PISSA | kind)
    base = base_model(lab.inputs["model"])
    torch.testing.assert_close(logits_of(model), logits_of(base), atol=2e-5, rtol=0)
    layer = model.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    product = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    left, values, right = torch.linalg.svd(base.model.layers[0].mlp.up_proj.weight)
    best = left[:, :4] @ torch.diag(values[:4]) @ right[:4]
    if "init_lora_weights" in kind:  # a quick SVD finds other directions, nearly as strong
        assert 0.9 * best.norm() < product.norm() < best.norm()
    else:
        assert (product - best).norm() < 1e-5 * best.norm()
    trained = trained_names(model)
    assert all("lora_A" in name or "lora_B" in name or "lora_magnitude" in name for name in trained)
    assert len(trained) == 2 * 7 * (3 if "use_dora" in kind else 2)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_what_is_stored(lab: Lab, kind: dict[str, Any]) -> None:
    """Losses as a loop of our own has them; the folder fits the base as it was, in peft and when merged."""
    import torch
    from peft import PeftModel

    arguments = PLAIN | PISSA | kind
    lab.run(arguments)
    reference = prepared(lab, arguments)
    assert logged_losses(lab) == pytest.approx(batch_losses(reference, lab, arguments), abs=1e-5)
    live = logits_of(reference)  # trained by our own loop
    base = base_model(lab.inputs["model"])
    assert (live - logits_of(base)).abs().max() > 1e-2
    torch.testing.assert_close(logits_of(merged(lab, lab.out)), live, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(PeftModel.from_pretrained(base, lab.out)), live, atol=1e-4, rtol=0)
    config = json.loads((lab.out / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights:UserWarning")
def test_the_same_as_peft_converts(lab: Lab) -> None:
    """The way of peft itself needs the start as a folder, and a second adapter in memory."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    arguments = PLAIN | PISSA | {"target_modules": ["q_proj"]}
    lab.run(arguments)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="pissa")
    model = get_peft_model(base_model(lab.inputs["model"]), config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(lab.folder / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    batch_losses(model, lab, arguments)
    model.save_pretrained(lab.folder / "theirs", path_initial_model_for_weight_conversion=str(lab.folder / "start"))
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (lab.out, lab.folder / "theirs"))
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert tensor.shape == theirs[name].shape
        assert (tensor - theirs[name]).abs().max() < 1e-4


def test_resume(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    check_resume(tmp_path, tiny_model, tokens, PISSA | {"init_lora_weights": "pissa_niter_2", "lora_dropout": 0.2})


def test_weights_of_another_start(lab: Lab) -> None:
    """A quick SVD of another seed starts elsewhere; its adapter is the same model here."""
    import torch

    lab.run(PLAIN | PISSA | {"init_lora_weights": "pissa_niter_1"})
    stored = logits_of(merged(lab, lab.out))
    given = TrainArguments(**PISSA | {"init_lora_weights": "pissa_niter_1", "seed": 5})
    tuner = get_tuner(given)
    torch.manual_seed(5)
    model = tuner.prepare(base_model(lab.inputs["model"]))
    assert (logits_of(model) - stored).abs().max() > 1e-2
    tuner.load(model, lab.out)
    torch.testing.assert_close(logits_of(model), stored, atol=1e-4, rtol=0)
    tuner.save(model, lab.folder / "again")
    name = "adapter_model.safetensors"
    assert digests(lab.folder / "again")[name] == digests(lab.out)[name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lora_rank": 65}, r"`--lora_rank 65`: model.layers.0.self_attn.q_proj has no more than 64 directions"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens is of type Embedding: leave it out"),
        ({"tied": True, "target_modules": ["lm_head"]}, "would change the input embedding, whose weights lm_head"),
        ({"quantized": True}, "the model is quantized, and `--init_lora_weights pissa` takes its start out of float"),
    ],
)
def test_refused(lab: Lab, arguments: dict[str, Any], message: str) -> None:
    model = base_model(lab.inputs["model"])
    if arguments.pop("quantized", False):
        model.config.quantization_config = {"quant_method": "bitsandbytes"}
    if arguments.pop("tied", False):
        model.lm_head.weight = model.model.embed_tokens.weight
    with pytest.raises((ArgumentsError, ModelError), match=message):
        get_tuner(TrainArguments(**PISSA | arguments)).check(model)


def test_a_checkpoint_of_plain_lora_is_not_one_of_pissa(lab: Lab) -> None:
    lab.run(PLAIN | {"lora_rank": 4, "lora_alpha": 8})
    tuner = get_tuner(TrainArguments(**PISSA))
    model = tuner.prepare(base_model(lab.inputs["model"]))
    with pytest.raises(ModelError, match="its lora_alpha is 8, these arguments make it 16"):
        tuner.load(model, lab.out)
