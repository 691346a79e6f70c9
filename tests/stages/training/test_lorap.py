"""LoRA+: B is moved faster than A, by the ratio given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stages.errors import ArgumentsError
from tests.stages.test_train import tokens as tokens
from tests.stages.training.lab import SHORT, Lab, cut_off_and_whole
from tests.stages.training.reference import STEADY, losses, losses_by_hand, write_one_row

RATIO = 8.0


def stored(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Neither of its matrices is zero."""
    folder = tmp_path_factory.mktemp("adapter")
    lab = Lab(folder, tiny_model, write_one_row(folder / "tokens"))
    lab.run(STEADY | {"max_steps": 2})
    return lab.out


def start_from(folder: Path, model: Path, adapter: Path) -> Lab:
    lab = Lab(folder, model, write_one_row(folder / "tokens"))
    lab.inputs["adapter"] = adapter
    return lab


def test_the_first_step_of_adam_is_the_learning_rate(tmp_path: Path, tiny_model: Path, adapter: Path) -> None:
    """Of each element, whatever its gradient: so the ratio can be read from the weights."""
    lab = start_from(tmp_path, tiny_model, adapter)
    arguments = STEADY | {"max_steps": 1, "lorap_lr_ratio": RATIO, "weight_decay": 0, "max_grad_norm": 0}
    lab.run(arguments | {"adam_epsilon": 1e-12})
    before, after = stored(adapter), stored(lab.out)
    steps = {name: (after[name] - before[name]).abs().median().item() for name in before}
    assert len(steps) == 2 * 7 * 2
    for name, step in steps.items():
        assert step == pytest.approx(1e-3 * (RATIO if "lora_B" in name else 1), rel=1e-3), name


def test_losses_are_those_of_two_optimizers(tmp_path: Path, tiny_model: Path, adapter: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lab = start_from(tmp_path, tiny_model, adapter)
    lab.run(STEADY | {"lorap_lr_ratio": RATIO, "weight_decay": 0.1})

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter, is_trainable=True)
    sides: dict[str, list[Any]] = {"A": [], "B": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            sides["B" if "lora_B" in name else "A"].append(parameter)
    slow = torch.optim.AdamW(sides["A"], lr=1e-3, weight_decay=0.1)
    fast = torch.optim.AdamW(sides["B"], lr=1e-3 * RATIO, weight_decay=0.1)

    def step(number: int) -> None:
        slow.step()
        fast.step()

    assert losses(lab) == pytest.approx(losses_by_hand(model, step), abs=1e-5)
    plain = start_from(tmp_path / "plain", tiny_model, adapter)
    plain.run(STEADY)
    assert losses(plain)[0] == pytest.approx(losses(lab)[0], abs=1e-5)
    assert losses(plain)[-1] - losses(lab)[-1] > 0.01  # it learns faster


def test_the_schedule_keeps_the_ratio_and_embeddings_have_their_own_rate(
    tmp_path: Path, tiny_model: Path, tokens: Path
) -> None:
    import torch

    lab = Lab(tmp_path, tiny_model, tokens)
    lab.run(SHORT | {"lorap_lr_ratio": RATIO, "target_modules": ["q_proj", "embed_tokens"], "use_dora": True})
    groups = torch.load(lab.attachments / "checkpoint-4" / "optimizer.pt", weights_only=True)["param_groups"]
    rates = [(len(group["params"]), group["lr"]) for group in groups]
    slow = rates[0][1]
    assert 0 < slow < 1e-2  # the cosine has begun to fall
    # A of two layers; A and B of the embedding; B of two layers, and all magnitudes
    assert [count for count, _ in rates] == [2, 2, 5, 0]
    assert rates[1][1] / slow == pytest.approx(1e-6 / 1e-2)
    assert rates[2][1] / slow == pytest.approx(RATIO)


def test_a_run_that_was_cut_off_ends_in_the_same_bytes(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    arguments = SHORT | {"lorap_lr_ratio": RATIO, "lora_dropout": 0.2}
    cut_off_and_whole(tmp_path, tiny_model, tokens, arguments)


@pytest.mark.parametrize("optim", ["galore_adamw", "lomo"])
def test_an_optimizer_with_groups_of_its_own(tmp_path: Path, tiny_model: Path, tokens: Path, optim: str) -> None:
    with pytest.raises(ArgumentsError, match=f"`--lorap_lr_ratio` and `--optim {optim}` both group the parameters"):
        Lab(tmp_path, tiny_model, tokens).run(SHORT | {"lorap_lr_ratio": 4, "optim": optim})
