"""GaLore: the optimizer sees gradients in low rank; what it keeps is as small, and goes on exactly."""

from __future__ import annotations

import json
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import pytest

from stages.arguments import TrainArguments
from stages.errors import ArgumentsError
from tests.stages.test_train import tokens as tokens
from tests.stages.training.lab import SHORT, Lab, cut_off_and_whole, digests
from tests.stages.training.reference import STEADY, losses, losses_by_hand, write_one_row

GALORE = {"train_type": "full", "use_galore": True, "galore_rank": 4, "learning_rate": 1e-3}
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path, tokens: Path) -> Lab:
    return Lab(tmp_path, tiny_model, tokens)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def optimizer_state(lab: Lab, step: int) -> dict[str, Any]:
    import torch

    state: dict[str, Any] = torch.load(lab.attachments / f"checkpoint-{step}" / "optimizer.pt", weights_only=True)
    return state


def projectors(gradient: Any, kind: str, rank: int) -> tuple[Any, Any]:
    """As matrices that project from the left and from the right, the identity where nothing is projected."""
    import torch

    rows, columns = gradient.shape
    tall = rows >= columns
    both = {"full": (True, True), "left": (True, False), "right": (False, True)}
    both |= {"std": (not tall, tall), "reverse_std": (tall, not tall)}
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    left = u[:, :rank] if both[kind][0] else torch.eye(rows)
    right = v[:rank].T if both[kind][1] else torch.eye(columns)
    return left, right


class ByHand:
    """Algorithm 2 of the paper, with Adam, and weight decay after each step."""

    def __init__(self, model: Any, kind: str, gap: int, scale: float) -> None:
        self.model, self.kind, self.gap, self.scale = model, kind, gap, scale
        self.kept: dict[str, Any] = {}

    def step(self, number: int) -> None:
        import torch

        for name, weight in self.model.named_parameters():
            gradient = weight.grad
            projected = any(part in name for part in MATRICES)
            if projected:
                if number % self.gap == 0:
                    self.kept[name, "sides"] = projectors(gradient, self.kind, 4)
                left, right = self.kept[name, "sides"]
                gradient = left.T @ gradient @ right
            m = 0.9 * self.kept.get((name, "m"), 0) + 0.1 * gradient
            v = 0.999 * self.kept.get((name, "v"), 0) + 0.001 * gradient**2
            self.kept[name, "m"], self.kept[name, "v"] = m, v
            change = m / (v.sqrt() + 1e-8)
            if projected:
                change = self.scale * (left @ change @ right.T)
            rate = 1e-3 * sqrt(1 - 0.999 ** (number + 1)) / (1 - 0.9 ** (number + 1))
            with torch.no_grad():
                weight -= rate * change
                if "norm" not in name:
                    weight -= 1e-3 * 0.1 * weight


@pytest.mark.parametrize("kind", ["std", "reverse_std", "right", "left", "full"])
def test_losses_are_those_of_the_paper(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    lab = Lab(tmp_path, tiny_model, write_one_row(tmp_path / "tokens"))
    settings = {"galore_proj_type": kind, "galore_update_proj_gap": 3, "galore_scale": 0.5}
    lab.run(STEADY | GALORE | settings)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    found, expected = losses(lab), losses_by_hand(model, ByHand(model, kind, 3, 0.5).step)
    assert found[:3] == pytest.approx(expected[:3], abs=1e-5)
    assert found == pytest.approx(expected, rel=1e-5)  # a new projection sees rounding
    assert losses(lab)[-1] < losses(lab)[0] - 0.1


def change_of_one_step(folder: Path, model: Path, **settings: Any) -> dict[str, Any]:
    lab = Lab(folder, model, write_one_row(folder / "tokens"))
    lab.run(STEADY | GALORE | {"max_steps": 1, "weight_decay": 0} | settings)
    before, after = weights(model), weights(lab.out)
    return {name: after[name] - before[name] for name in before}


def rank_of(matrix: Any) -> int:
    import torch

    return int(torch.linalg.matrix_rank(matrix.double(), rtol=1e-4))


@pytest.mark.parametrize(
    ("settings", "projected"),
    [
        ({}, MATRICES),
        ({"galore_target_modules": ["self_attn", "up_proj"]}, (*MATRICES[:4], "up_proj")),
        ({"galore_target_modules": ["embed_tokens", "q_proj"]}, ("embed_tokens", "q_proj")),
        ({"galore_with_embedding": True}, (*MATRICES, "embed_tokens")),
        ({"galore_target_modules": ["lm_head"], "galore_with_embedding": True}, ("lm_head", "embed_tokens")),
    ],
)
def test_a_step_has_the_rank_where_it_should(
    tmp_path: Path, tiny_model: Path, settings: dict[str, Any], projected: tuple[str, ...]
) -> None:
    changes = change_of_one_step(tmp_path, tiny_model, galore_rank=3, **settings)
    for name, change in changes.items():
        assert change.abs().max() > 0, name
        if change.ndim == 2 and "embed_tokens" not in name:  # nine tokens have rows in it
            assert (rank_of(change) == 3) == any(part in name for part in projected), name
        elif change.ndim == 2:
            assert rank_of(change) == (3 if "embed_tokens" in projected else 9)


def test_the_scale(tmp_path: Path, tiny_model: Path) -> None:
    import torch

    whole = change_of_one_step(tmp_path / "1", tiny_model)
    half = change_of_one_step(tmp_path / "2", tiny_model, galore_scale=0.5)
    for name in whole:
        share = 0.5 if any(part in name for part in MATRICES) else 1.0
        torch.testing.assert_close(half[name], share * whole[name], atol=1e-7, rtol=1e-3)


def test_the_gap_and_what_a_checkpoint_holds(lab: Lab) -> None:
    """A new projection at the first, fourth … step; moments as small as the projection makes them."""
    lab.run(SHORT | GALORE | {"galore_update_proj_gap": 3, "save_steps": 1})
    sides = []
    for step in range(1, 7):
        state = optimizer_state(lab, step)["state"]
        sides.append(
            [one["right"] if one["right"] is not None else one["left"] for one in state.values() if "left" in one]
        )
    changed = [any(not a.equal(b) for a, b in zip(*pair, strict=True)) for pair in pairwise(sides)]
    assert changed == [False, False, True, False, False]
    shapes = [tuple(one["exp_avg"].shape) for one in state.values() if "left" in one]
    # q, k, v, o; gate, up, down of 64 × 128, whose shorter side is projected
    assert shapes == 2 * [(64, 4), (4, 64), (4, 64), (64, 4), (128, 4), (128, 4), (4, 128)]
    groups = optimizer_state(lab, 4)["param_groups"]
    assert [len(group["params"]) for group in groups] == [14, 2, 5]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0]
    assert {group["lr"] for group in groups} == {groups[0]["lr"]}
    assert groups[0]["lr"] < 1e-3  # the cosine falls


def test_tied_weights_are_one(tmp_path: Path, tiny_model: Path, tokens: Path) -> None:
    import shutil

    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path / "tied"
    shutil.copytree(tiny_model, folder)
    config = AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    lab = Lab(tmp_path, folder, tokens)
    lab.run(SHORT | GALORE | {"galore_target_modules": ["lm_head", "embed"], "max_steps": 2})
    assert [len(group["params"]) for group in optimizer_state(lab, 2)["param_groups"]] == [1, 14, 5]
    assert AutoModelForCausalLM.from_pretrained(lab.out).config.tie_word_embeddings


@pytest.mark.parametrize(
    ("settings", "cut"),
    [
        ({}, 4.5),
        ({"galore_proj_type": "full", "galore_update_proj_gap": 4, "galore_with_embedding": True}, 4.5),
        ({"torch_dtype": "bfloat16", "galore_update_proj_gap": 3}, 4.5),
        ({"galore_optim_per_parameter": True, "gradient_accumulation_steps": 1, "galore_update_proj_gap": 4}, 4.5),
        ({"lisa_activated_layers": 1, "lisa_step_interval": 2}, 2.5),
        ({}, "end"),
    ],
)
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(
    tmp_path: Path, tiny_model: Path, tokens: Path, settings: dict[str, Any], cut: float | str
) -> None:
    arguments = SHORT | GALORE | settings
    _, _, undisturbed = cut_off_and_whole(tmp_path, tiny_model, tokens, arguments, cut)
    assert undisturbed["num_trainable_parameters"] == undisturbed["num_parameters"]


AT_ONCE = {"galore_optim_per_parameter": True, "gradient_accumulation_steps": 1}


def test_steps_in_the_backward_pass_are_the_same_steps(
    tmp_path: Path, tiny_model: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a batch is computed in parts; afterwards no gradient is left."""
    from torch import nn

    left: list[int] = []
    plain = nn.Module.zero_grad

    def zero_grad(self: Any, *args: Any) -> None:
        left.append(sum(parameter.grad is not None for parameter in self.parameters()))
        plain(self, *args)

    runs = []
    for name, more in (("all", {"max_grad_norm": 0, "gradient_accumulation_steps": 1}), ("each", AT_ONCE)):
        lab = Lab(tmp_path / name, tiny_model, tokens)
        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, "zero_grad", zero_grad)
            metrics = lab.run(SHORT | GALORE | {"per_device_train_batch_size": 4} | more)
        runs.append((metrics, digests(lab.out), losses(lab)))
        lines = map(json.loads, (lab.attachments / "logging.jsonl").read_text().splitlines())
        runs.append([line["grad_norm"] for line in lines if "grad_norm" in line])
    assert runs[0] == runs[2]
    assert runs[1] == pytest.approx(runs[3], rel=1e-4)
    assert max(left[: len(left) // 2]) == 21
    assert max(left[len(left) // 2 :]) == 0


def test_gradients_that_are_stepped_at_once_are_neither_added_up_nor_clipped() -> None:
    given = {"train_type": "full", "use_galore": True, "galore_optim_per_parameter": True}
    assert TrainArguments(**given).max_grad_norm == 0
    with pytest.raises(ArgumentsError, match="steps in each backward pass: drop `--gradient_accumulation_steps`"):
        TrainArguments(**given, gradient_accumulation_steps=2)
    with pytest.raises(ArgumentsError, match="never has all gradients, whose norm `--max_grad_norm` is about"):
        TrainArguments(**given, max_grad_norm=0.5)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"galore_target_modules": ["q_proj", "query"]},
            "`--galore_target_modules query`: no linear layer or embedding has it in its name. There are down_proj, ",
        ),
        ({"optim": "adafactor"}, "`--use_galore` works with AdamW: drop `--optim adafactor`"),
        ({"optim": "galore_adamw"}, "`--use_galore` works with AdamW: drop `--optim galore_adamw`"),
    ],
)
def test_what_cannot_be_projected(lab: Lab, settings: dict[str, Any], line: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        lab.run(SHORT | GALORE | settings)
    assert line in str(caught.value)
