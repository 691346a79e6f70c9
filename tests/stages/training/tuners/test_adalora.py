"""AdaLoRA: which ranks are kept, the term of the loss, and a resume in the middle of their fall."""

from __future__ import annotations

import json
from collections.abc import Mapping
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

ADALORA: dict[str, Any] = {
    "train_type": "adalora",
    "adalora_init_r": 4,
    "adalora_target_r": 2,
    "lora_alpha": 16,
    "weight_decay": 0.0,
}
MODULES = 14


def kept(folder: Path) -> dict[str, int]:
    """How many entries each module has kept."""
    pattern = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    return {name: sum(keep) for name, keep in pattern.items()}


def orthogonality(model: Any) -> Any:
    """Equation 4 with norms that are not squared, a mean over all matrices, times 0.5."""
    import torch

    pairs = [
        (module.lora_A["default"], module.lora_B["default"]) for module in model.modules() if hasattr(module, "ranknum")
    ]
    one = torch.eye(len(pairs[0][0]))
    terms = [((a @ a.T - one) ** 2).sum().sqrt() + ((b.T @ b - one) ** 2).sum().sqrt() for a, b in pairs]
    return 0.5 * sum(terms) / (2 * len(pairs))


def by_the_paper(lab: Lab, arguments: Mapping[str, Any]) -> tuple[Any, list[float]]:
    """The same training, with a budget of ranks of our own: sensitivity, uncertainty, the least entries set to zero."""
    import torch

    model = prepared(lab, arguments)
    names = [name for name in trained_names(model) if ".lora_E." in name]
    parameters = dict(model.named_parameters())
    worth = {name: torch.zeros_like(parameters[name]) for name in trained_names(model)}
    doubt = {name: torch.zeros_like(parameters[name]) for name in trained_names(model)}
    steps, first, last = arguments["max_steps"], 4 * MODULES, 2 * MODULES
    start, final = arguments.get("adalora_tinit", 0), arguments.get("adalora_tfinal", 0)
    done = 0

    def allocate() -> None:
        nonlocal done
        done += 1
        with torch.no_grad():
            for name, parameter in parameters.items():
                if name in worth and done < steps - final:
                    now = (parameter * parameter.grad).abs()
                    worth[name] = 0.85 * worth[name] + 0.15 * now
                    doubt[name] = 0.85 * doubt[name] + 0.15 * (now - worth[name]).abs()
            if done <= start:
                return
            left = max(0.0, 1 - (done - start) / (steps - final - start))
            budget = int((first - last) * left**3 + last)
            score = {name: worth[name] * doubt[name] for name in worth}
            value = {
                name: score[name].flatten()
                + score[name.replace("lora_E", "lora_A")].mean(1)
                + score[name.replace("lora_E", "lora_B")].mean(0)
                for name in names
            }
            least = torch.cat(list(value.values())).sort().values[first - budget - 1]
            if done <= steps - final:
                gone.update({name: value[name] <= least for name in names})
            for name in names:
                parameters[name][gone[name]] = 0.0

    gone: dict[str, Any] = {}
    losses = batch_losses(model, lab, arguments, orthogonality, allocate)
    return model, losses


def test_the_start(lab: Lab) -> None:
    model = prepared(lab, ADALORA)
    trained = trained_names(model)
    assert len(trained) == 3 * MODULES
    assert all(name.split(".")[-2] in ("lora_A", "lora_B", "lora_E") for name in trained)
    assert (logits_of(model) - logits_of(base_model(lab.inputs["model"]))).abs().max() == 0


@pytest.mark.parametrize("more", [{}, {"adalora_tinit": 1, "adalora_tfinal": 1}], ids=["all along", "in the middle"])
@pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning")  # peft, of each AdaLoRA folder
def test_against_the_paper(lab: Lab, more: dict[str, Any]) -> None:
    """Losses, the ranks that are kept, and what the artifact says: opened by peft, and merged by us."""
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file

    arguments = PLAIN | ADALORA | {"max_steps": 6} | more
    lab.run(arguments)
    reference, losses = by_the_paper(lab, arguments)
    assert logged_losses(lab) == pytest.approx(losses, abs=1e-5)
    live = logits_of(reference)
    base = base_model(lab.inputs["model"])
    assert (live - logits_of(base)).abs().max() > 1e-2
    torch.testing.assert_close(logits_of(merged(lab, lab.out)), live, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits_of(PeftModel.from_pretrained(base, lab.out)), live, atol=1e-4, rtol=0)

    ranks = kept(lab.out)
    assert sum(ranks.values()) == 2 * MODULES
    assert len(set(ranks.values())) > 1  # some modules need more than others
    stored = load_file(lab.out / "adapter_model.safetensors")
    for name, rank in ranks.items():
        assert stored[f"base_model.model.{name}"].shape == (rank, 1)
        assert stored[f"base_model.model.{name.replace('lora_E', 'lora_A')}"].shape[0] == rank
        assert (stored[f"base_model.model.{name}"] != 0).all()
    config = json.loads((lab.out / "adapter_config.json").read_text())
    assert (config["total_step"], config["orth_reg_weight"]) == (6, 0.5)


def test_the_budget_falls(lab: Lab) -> None:
    """A cubic schedule between the first and the last steps, every second step."""
    from safetensors.torch import load_file

    more = {"max_steps": 10, "adalora_tinit": 2, "adalora_tfinal": 2, "adalora_deltaT": 2}
    lab.run(PLAIN | ADALORA | more)
    left = {}
    for step in range(1, 11):
        stored = load_file(lab.scratch / f"checkpoint-{step}" / "adapter_model.safetensors")
        left[step] = sum(len(tensor) for name, tensor in stored.items() if name.endswith("lora_E"))
    full, last = 4 * MODULES, 2 * MODULES
    assert [left[step] for step in (1, 2, 3)] == [full] * 3
    assert left[4] == int((full - last) * (4 / 6) ** 3 + last)
    assert left[5] == full  # entries that were set to zero have moved: a checkpoint keeps them
    assert left[6] == int((full - last) * (2 / 6) ** 3 + last)
    assert [left[step] for step in (8, 9, 10)] == [last] * 3


def test_the_term_is_counted_once_and_not_in_validation(lab: Lab, tmp_path: Path, tokens: Path) -> None:
    """However a step is cut into parts, and whatever its weight, the loss of a model is the loss of its tokens."""
    import shutil

    both = tmp_path / "both"
    both.mkdir()
    for name in ("train", "validation"):
        shutil.copy(tokens / "train.arrow", both / f"{name}.arrow")
    lab.inputs["tokens"] = both
    arguments = PLAIN | ADALORA | {"max_steps": 2, "adalora_orth_reg_weight": 0.5, "eval_on_start": True}
    weighed = {}
    for weight in (0.0, 0.5):
        for parts in ({}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}):
            run = Lab(tmp_path / f"{weight}{len(parts)}", lab.inputs["model"], both)
            weighed[weight, len(parts)] = run.run(arguments | parts | {"adalora_orth_reg_weight": weight})
    term = float(orthogonality(prepared(lab, arguments)).detach())
    assert term > 0.5
    for parts in (0, 2):
        with_it, without = weighed[0.5, parts], weighed[0.0, parts]
        assert with_it["first_loss"] - without["first_loss"] == pytest.approx(term, abs=1e-5)
        assert with_it["first_eval_loss"] == without["first_eval_loss"]
    assert weighed[0.5, 0]["first_loss"] == pytest.approx(weighed[0.5, 2]["first_loss"], abs=1e-5)


@pytest.mark.parametrize(
    "more",
    [
        {"adalora_tinit": 1, "adalora_tfinal": 1, "lora_dropout": 0.2},
        {"adalora_deltaT": 3},
        {"adalora_tfinal": 3},
    ],
    ids=["in the middle", "between two changes", "with ranks fixed"],
)
def test_resume(tmp_path: Path, tiny_model: Path, tokens: Path, more: dict[str, Any]) -> None:
    check_resume(tmp_path, tiny_model, tokens, ADALORA | more)


def test_weights_alone(lab: Lab) -> None:
    """An adapter whose ranks have fallen is taken up by a new run, as the same model."""
    import torch

    lab.run(PLAIN | ADALORA)
    tuner = get_tuner(TrainArguments(**ADALORA | {"seed": 3}))
    tuner.plan(9)
    torch.manual_seed(3)
    model = tuner.prepare(base_model(lab.inputs["model"]))
    tuner.load(model, lab.out)
    torch.testing.assert_close(logits_of(model), logits_of(merged(lab, lab.out)), atol=1e-4, rtol=0)
    tuner.save(model, lab.folder / "again")
    name = "adapter_model.safetensors"
    assert digests(lab.folder / "again")[name] == digests(lab.out)[name]
    with pytest.raises(ModelError, match=r"has no tuner.safetensors, which says what each rank was worth"):
        tuner.load_state(model, lab.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adalora_tinit": 3, "adalora_tfinal": 3}, "`--adalora_tinit 3` and `--adalora_tfinal 3` leave none of the r"),
        ({"max_steps": 1}, "leave none of the run's 1 steps"),
        ({"adalora_beta1": 1.0}, "`--adalora_beta1 1` must lie between 0 and 1"),
        ({"use_dora": True}, "`--use_dora true` is for `--train_type lora` or"),
        ({"init_lora_weights": "pissa"}, "`--init_lora_weights pissa` is for `--train_type lora`"),
        ({"target_modules": ["embed_tokens"]}, "AdaLoRA adapts linear layers alone, and model.embed_tokens is of"),
    ],
)
def test_refused(lab: Lab, arguments: dict[str, Any], message: str) -> None:
    """Before the weights are loaded."""
    with pytest.raises(ArgumentsError, match=message):
        lab.run(PLAIN | ADALORA | {"max_steps": 6} | arguments)
