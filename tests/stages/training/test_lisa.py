"""LISA: a few layers at a time are trained, others after every interval; embeddings, last norm and head always."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.errors import ArgumentsError, ModelError
from tests.stages.test_train import digests
from tests.stages.test_train import tokens as tokens
from tests.stages.training.lab import SHORT, Lab, cut_off_and_whole
from tests.stages.training.reference import STEADY, losses, losses_by_hand, write_one_row

LAYERS = 5
LISA = SHORT | {
    "train_type": "full",
    "learning_rate": 1e-3,
    "lisa_activated_layers": 2,
    "lisa_step_interval": 2,
    "save_steps": 1,
    "max_steps": 8,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Five layers, so that there is something to choose from."""
    import shutil

    from transformers import AutoConfig, AutoModelForCausalLM, set_seed

    folder = tmp_path_factory.mktemp("models") / "five"
    shutil.copytree(tiny_model, folder)
    set_seed(1)
    config = AutoConfig.from_pretrained(tiny_model, num_hidden_layers=LAYERS, hidden_size=16, intermediate_size=24)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def lab(tmp_path: Path, model: Path, tokens: Path) -> Lab:
    return Lab(tmp_path, model, tokens)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def moved(before: dict[str, Any], after: dict[str, Any]) -> tuple[set[int], set[str]]:
    """Layers in which everything moved, and what moved beside them; a layer moves as a whole or not at all."""
    names = {name for name in before if not before[name].equal(after[name])}
    layers = {int(name.split(".")[2]) for name in names if ".layers." in name}
    for layer in layers:
        assert {name for name in before if f".layers.{layer}." in name} <= names
    return layers, {name for name in names if ".layers." not in name}


def chosen(lab: Lab, step: int) -> list[int]:
    active: list[int] = json.loads((lab.attachments / f"checkpoint-{step}" / "tuner.json").read_text())[
        "lisa_active_layers"
    ]
    return active


def test_only_the_chosen_layers_move_and_others_are_chosen(lab: Lab) -> None:
    metrics = lab.run(LISA)
    before, sets = weights(lab.inputs["model"]), []
    for step in range(1, 9):
        after = weights(lab.attachments / f"checkpoint-{step}")
        layers, others = moved(before, after)
        assert layers == set(chosen(lab, step))
        assert len(layers) == 2
        assert others == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
        sets.append(layers)
        before = after
    assert sets[0::2] == sets[1::2]  # for two steps the same
    assert len({frozenset(layers) for layers in sets}) > 2
    assert metrics["num_trainable_parameters"] == metrics["num_parameters"]
    assert metrics["last_loss"] < metrics["first_loss"]
    assert "tuner.json" not in {path.name for path in lab.out.iterdir()}


@pytest.mark.parametrize(("interval", "count"), [(1, 8), (3, 3), (20, 1)])
def test_the_interval(lab: Lab, interval: int, count: int) -> None:
    """How often something is drawn."""
    import random

    lab.run(LISA | {"lisa_step_interval": interval})
    generator = random.Random(42)
    draws = [sorted(generator.sample(range(LAYERS), 2)) for _ in range(count)]
    assert [chosen(lab, step) for step in range(1, 9)] == [draws[(step - 1) // interval] for step in range(1, 9)]


def test_another_seed_chooses_others(tmp_path: Path, model: Path, tokens: Path) -> None:
    runs = []
    for seed in (1, 2):
        lab = Lab(tmp_path / str(seed), model, tokens)
        lab.run(LISA | {"seed": seed})
        runs.append([chosen(lab, step) for step in range(1, 9)])
    assert runs[0] != runs[1]


def test_losses_are_those_of_a_loop_by_hand(tmp_path: Path, model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    lab = Lab(tmp_path, model, write_one_row(tmp_path / "tokens"))
    lab.run(STEADY | {"train_type": "full", "lisa_activated_layers": 2, "lisa_step_interval": 2, "save_steps": 1})
    active = [chosen(lab, step) for step in range(1, 7)]

    live = AutoModelForCausalLM.from_pretrained(model)
    matrices = [parameter for parameter in live.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in live.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0}], 1e-3, weight_decay=0.1
    )
    found: list[float] = []
    for layers in active:  # here layers that are not chosen have a gradient, which is thrown away

        def freeze(number: int, layers: list[int] = layers) -> Any:
            return live.model.layers[number].requires_grad_(number in layers)

        for number in range(LAYERS):
            freeze(number)
        found += losses_by_hand(live, lambda _: optimizer.step() and None, steps=1)
    assert losses(lab) == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("cut", [4.5, 5.5, "end"])
def test_a_run_that_was_cut_off_ends_in_the_same_bytes(
    tmp_path: Path, model: Path, tokens: Path, cut: float | str
) -> None:
    """When others are to be chosen, in the middle of an interval, and after the last step."""
    lab, whole, _ = cut_off_and_whole(tmp_path, model, tokens, LISA, cut)
    assert [chosen(lab, step) for step in range(1, 9)] == [chosen(whole, step) for step in range(1, 9)]


def test_more_layers_than_there_are(lab: Lab) -> None:
    with pytest.raises(ArgumentsError, match=r"`--lisa_activated_layers 6`: the model has 5 layers \(model.layers\)"):
        lab.run(LISA | {"lisa_activated_layers": 6})


def test_a_checkpoint_without_lisa(tmp_path: Path, model: Path, tokens: Path) -> None:
    first = Lab(tmp_path / "first", model, tokens)
    first.run(SHORT | {"train_type": "full"})
    lab = Lab(tmp_path / "second", model, tokens)
    lab.inputs["checkpoint"] = first.attachments / "checkpoint-4"
    with pytest.raises(ModelError, match=r"has no tuner.json: it is not one of a training with LISA"):
        lab.run(LISA)


def test_recomputed_activations_change_nothing(tmp_path: Path, model: Path, tokens: Path) -> None:
    ends = []
    for recompute in (False, True):
        lab = Lab(tmp_path / str(recompute), model, tokens)
        lab.run(LISA | {"gradient_checkpointing": recompute})
        ends.append(digests(lab.out))
    assert ends[0] == ends[1]
